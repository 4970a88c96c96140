//! What identifies an attachment.

use std::fmt;

use crate::pod_name::PodName;

/// Longest container ID, in bytes. It becomes part of a file's name.
const MAX_CONTAINER_ID: usize = 200;
/// Longest name of an interface, in bytes (IFNAMSIZ less the final zero).
const MAX_INTERFACE: usize = 15;
/// Namespace of containers that are no pods. No Kubernetes namespace has a dot in its name.
const NO_POD: &str = "cni.container";

/// What identifies an attachment (CNI SPEC): by this alone it is released.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

impl Key {
    /// A pod's name for a container that is none.
    pub(super) fn stand_in(&self) -> PodName {
        let text = format!("{}.{}", self.container, self.interface);
        // FNV-1a: the same name on every run, and not one for two keys in practice.
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

/// What a container ID may be (CNI SPEC, "Parameters").
pub(super) fn check_container(id: &str) -> Result<(), String> {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let begins_well = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if id.len() > MAX_CONTAINER_ID {
        return Err(format!("has {} bytes, and may have {MAX_CONTAINER_ID}", id.len()));
    }
    match begins_well && id.bytes().all(is_inner) {
        true => Ok(()),
        false => {
            Err(format!("{id:?} is not letters, digits, '_', '.' and '-' after a letter or digit"))
        }
    }
}

/// What the kernel takes as the name of an interface.
pub(super) fn check_interface(name: &str) -> Result<(), String> {
    let is_taken = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    let is_name = !name.is_empty() && name != "." && name != ".." && name.bytes().all(is_taken);
    if name.len() > MAX_INTERFACE {
        return Err(format!("{name:?} has {} bytes, and may have {MAX_INTERFACE}", name.len()));
    }
    if is_name { Ok(()) } else { Err(format!("{name:?} is no name of an interface")) }
}
