//! DELs that the agent could not be given: a file for each in a folder beside the socket, put there by rename. There is
//! no lock that a process could die with.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;

use crate::agent::frame;
use crate::error::Error;
use crate::{Call, DEL_BUDGET};

/// The folder, beside the socket.
const FOLDER: &str = "cni-queue";
/// Longest container ID and name of an interface, in bytes.
const MAX_CONTAINER_ID: usize = 200;
const MAX_INTERFACE: usize = 15;

/// Whether the environment says what is to be detached.
pub(crate) fn check(call: &Call) -> Result<(), Error> {
    let (container, interface) = key(call);
    let missing: Vec<&str> = [("CNI_CONTAINERID", container), ("CNI_IFNAME", interface)]
        .into_iter()
        .filter_map(|(name, value)| value.is_empty().then_some(name))
        .collect();
    if !missing.is_empty() {
        let text = format!("required environment variables are missing: {}", missing.join(", "));
        return Err(Error::environment(text));
    }
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let begins_well = container.as_bytes()[0].is_ascii_alphanumeric();
    if !begins_well || !container.bytes().all(is_inner) || container.len() > MAX_CONTAINER_ID {
        let text = format!("CNI_CONTAINERID: {container:?} is not the ID of a container");
        return Err(Error::environment(text));
    }
    let is_taken = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    let is_dots = interface == "." || interface == "..";
    if is_dots || !interface.bytes().all(is_taken) || interface.len() > MAX_INTERFACE {
        let text = format!("CNI_IFNAME: {interface:?} is not an interface name");
        return Err(Error::environment(text));
    }
    Ok(())
}

/// Leaves a DEL in the queue.
pub(crate) fn leave(call: &Call) -> io::Result<()> {
    let Some(beside) = call.socket.parent().filter(|folder| folder.is_dir()) else {
        // There never was an agent since the machine started, so nothing is attached.
        return Ok(());
    };
    let folder = beside.join(FOLDER);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let name = file_name(call);
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    fs::write(&temporary, frame(call, None, DEL_BUDGET))?;
    fs::rename(&temporary, folder.join(name)).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn key(call: &Call) -> (&str, &str) {
    let of = |name: &str| call.environment.get(name).map(String::as_str).unwrap_or_default();
    (of("CNI_CONTAINERID"), of("CNI_IFNAME"))
}

/// The name by which the agent finds the DEL of an attachment, too.
fn file_name(call: &Call) -> String {
    let (container, interface) = key(call);
    let mut name = format!("{container}@");
    for byte in interface.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b"_-".contains(&b) => name.push(char::from(b)),
            b => name.push_str(&format!("%{b:02x}")),
        }
    }
    name
}
