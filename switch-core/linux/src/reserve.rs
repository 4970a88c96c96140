//! Reserves ports of the switch, so that the node's kernel does not use them for its own
//! connections: source NAT ports and node ports.

use std::ops::RangeInclusive;

use super::settings::{ChangedSettings, PORTS};
use super::{HostError, NetNs};

const SETTING: &str = "net/ipv4/ip_local_reserved_ports";

/// Ports that the kernel does not choose as source ports while this value lives, in addition to
/// those reserved before. After the process was killed they stay reserved until the next run ends.
#[derive(Debug)]
pub struct ReservedPorts {
    ports: Vec<RangeInclusive<u16>>,
    settings: ChangedSettings,
}

impl ReservedPorts {
    /// Reserves ports in `ns`, for TCP, UDP and both families.
    ///
    /// # Errors
    /// `/proc/sys` may not be written.
    pub fn reserve(ns: &NetNs, ports: &[RangeInclusive<u16>]) -> Result<Self, HostError> {
        let settings = ChangedSettings::new(ns, PORTS);
        let mut reserved = Self { ports: ports.to_vec(), settings };
        reserved.reconcile()?;
        Ok(reserved)
    }

    /// Reserves the ports again if another program set the list in the meantime; that program's
    /// ports stay reserved at the end. Returns the settings that were restored.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    pub fn reconcile(&mut self) -> Result<Option<String>, HostError> {
        let wanted = merge(&self.settings.others(SETTING)?, &self.ports);
        let is_changed = self.settings.set(SETTING, &wanted)?;
        Ok(is_changed.then(|| format!("{SETTING} = {wanted}")))
    }

    /// Leaves the ports reserved when this is dropped, for the next run.
    pub fn leave_in_force(&mut self) {
        self.settings.leave_in_force();
    }
}

/// The list with additional ports, in the kernel's own form: `8080,9000-9010`.
fn merge(list: &str, ports: &[RangeInclusive<u16>]) -> String {
    let parsed = list.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    });
    let ours = ports.iter().map(|range| (*range.start(), *range.end()));
    let mut ranges: Vec<(u16, u16)> = parsed.chain(ours).filter(|(a, b)| a <= b).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    let text = |(first, last): (u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    merged.into_iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_merged() {
        let ours = [44_000..=65_535, 30_000..=32_767];
        assert_eq!(merge("", &ours), "30000-32767,44000-65535");
        assert_eq!(merge("8080,9000-9010", &ours), "8080,9000-9010,30000-32767,44000-65535");
        assert_eq!(merge("29999,32768-44000,65535", &ours), "29999-65535");
        assert_eq!(merge("30000-32767,44000-65535", &ours), "30000-32767,44000-65535");
        assert_eq!(merge("0-65535", &[1..=1]), "0-65535");
    }
}
