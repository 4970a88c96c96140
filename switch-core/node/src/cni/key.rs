//! What identifies an attachment.

use std::fmt;

use crate::pod_name::PodName;

/// Maximum length of a container ID, in bytes. It becomes part of a file name.
const MAX_CONTAINER_ID: usize = 200;
/// Maximum length of an interface name, in bytes (IFNAMSIZ less the final zero).
const MAX_INTERFACE: usize = 15;
/// Namespace of containers that are not pods. No Kubernetes namespace has a dot in its name.
const NO_POD: &str = "cni.container";

/// What identifies an attachment (CNI SPEC). It is released by this alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

impl Key {
    /// A pod name for a container that is not a pod.
    pub(super) fn stand_in(&self) -> PodName {
        let text = format!("{}.{}", self.container, self.interface);
        // FNV-1a: the same name on every run. In practice no two keys have the same name.
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let is_kept = |c: &char| c.is_ascii_alphanumeric();
        let begin: String = self.container.chars().filter(is_kept).take(64).collect();
        let name = format!("c{}-{hash:016x}", begin.to_ascii_lowercase());
        PodName::new(NO_POD, &name).expect("letters, digits and a hyphen inside")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.interface, self.container)
    }
}

/// Checks the syntax of a container ID (CNI SPEC, "Parameters").
pub(super) fn check_container(id: &str) -> Result<(), String> {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let begins_well = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if id.len() > MAX_CONTAINER_ID {
        return Err(format!("has {} bytes, more than {MAX_CONTAINER_ID}", id.len()));
    }
    match begins_well && id.bytes().all(is_inner) {
        true => Ok(()),
        false => {
            Err(format!("{id:?} is not letters, digits, '_', '.' and '-' after a letter or digit"))
        }
    }
}

/// Checks what the kernel accepts as an interface name.
pub(super) fn check_interface(name: &str) -> Result<(), String> {
    let is_taken = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    let is_name = !name.is_empty() && name != "." && name != ".." && name.bytes().all(is_taken);
    if name.len() > MAX_INTERFACE {
        return Err(format!("{name:?} has {} bytes, more than {MAX_INTERFACE}", name.len()));
    }
    if is_name { Ok(()) } else { Err(format!("{name:?} is not an interface name")) }
}
