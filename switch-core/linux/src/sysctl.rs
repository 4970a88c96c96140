//! Kernel settings under `/proc/sys`, of a given network namespace.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::{Context, HostError, NetNs};

/// Longest value that is read, in bytes: longer than port lists are in practice.
const LONGEST: usize = 64 * 1024;

/// Root of the settings, if it is not `/proc/sys`.
static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// Reads and writes settings below `path` instead of `/proc/sys` from now on: a container's own
/// `/proc/sys` is read-only, and it may have another mount of the same files. As always, files
/// below `net` belong to the network namespace of the thread that opens them. Only the first call
/// has an effect.
pub fn use_root(path: impl Into<PathBuf>) {
    let _ = ROOT.set(path.into());
}

/// Sets a setting, written with slashes (`net/ipv4/ip_forward`), in `ns`.
///
/// # Errors
/// There is no such setting, or `/proc/sys` may not be written (containers often mount it
/// read-only).
pub fn set(ns: &NetNs, key: &str, value: &str) -> Result<(), HostError> {
    set_all(ns, &[(key, value)])
}

/// Sets several settings in `ns`, in order.
///
/// # Errors
/// As [`set`]; settings before the failed one remain set.
pub fn set_all(ns: &NetNs, settings: &[(&str, &str)]) -> Result<(), HostError> {
    ns.enter(|| {
        settings.iter().try_for_each(|(key, value)| {
            write(key, value).context(|| format!("set {key} to {value} in {ns}"))
        })
    })?
}

/// Sets a setting if its value differs. Returns whether it did.
///
/// # Errors
/// As [`set`].
pub fn repair(ns: &NetNs, key: &str, value: &str) -> Result<bool, HostError> {
    if get(ns, key)? == value {
        return Ok(false);
    }
    set(ns, key, value).map(|()| true)
}

/// Reads a setting of `ns`, without the line end.
///
/// # Errors
/// There is no such setting.
pub fn get(ns: &NetNs, key: &str) -> Result<String, HostError> {
    ns.enter(|| {
        read(&path(key))
            .map(|text| text.trim_end().to_owned())
            .context(|| format!("read {key} in {ns}"))
    })?
}

/// Does not write a value that is already set, so that a read-only `/proc/sys` with the right
/// values is sufficient.
fn write(key: &str, value: &str) -> io::Result<()> {
    let path = path(key);
    if read(&path)?.trim_end() == value {
        return Ok(());
    }
    // An empty write would have no effect.
    fs::write(&path, if value.is_empty() { "\n" } else { value })
}

/// The kernel answers only the first read and truncates it to the buffer: `fs::read_to_string` gets
/// 32 bytes.
fn read(path: &Path) -> io::Result<String> {
    let mut buffer = vec![0; LONGEST];
    let length = fs::File::open(path)?.read(&mut buffer)?;
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn path(key: &str) -> PathBuf {
    ROOT.get().map_or(Path::new("/proc/sys"), PathBuf::as_path).join(key)
}

/// Whether a setting may be written in `ns`.
///
/// # Errors
/// There is no such setting, or it may not be written.
pub fn is_writable(ns: &NetNs, key: &str) -> Result<(), HostError> {
    ns.enter(|| {
        let opened = fs::OpenOptions::new().write(true).open(path(key));
        opened.map(drop).context(|| format!("open {} for writing", path(key).display()))
    })?
}
