//! Kernel settings under `/proc/sys`, of a given network namespace.

use std::fs;
use std::io;

use super::{Context, HostError, NetNs};

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
/// As [`set`]; what was set before stays set.
pub fn set_all(ns: &NetNs, settings: &[(&str, &str)]) -> Result<(), HostError> {
    ns.enter(|| {
        settings.iter().try_for_each(|(key, value)| {
            write(key, value).context(|| format!("set {key} to {value} in {ns}"))
        })
    })?
}

/// Reads a setting of `ns`, without the line end.
///
/// # Errors
/// There is no such setting.
pub fn get(ns: &NetNs, key: &str) -> Result<String, HostError> {
    ns.enter(|| {
        fs::read_to_string(path(key))
            .map(|text| text.trim_end().to_owned())
            .context(|| format!("read {key} in {ns}"))
    })?
}

/// Writes nothing when the value is in force already, so that a read-only `/proc/sys` that was
/// set up right is good enough.
fn write(key: &str, value: &str) -> io::Result<()> {
    let path = path(key);
    if fs::read_to_string(&path)?.trim_end() == value {
        return Ok(());
    }
    // Writing nothing at all would not be a write.
    fs::write(&path, if value.is_empty() { "\n" } else { value })
}

fn path(key: &str) -> String {
    format!("/proc/sys/{key}")
}
