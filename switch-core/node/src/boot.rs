//! Time since the machine was booted, equal for all processes, including time asleep; and the ID of
//! that boot.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine was booted.
pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// ID of this boot of the machine.
pub(crate) fn boot_id() -> String {
    // A container may not have access to it. Leases on tmpfs do not survive a reboot anyway.
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}
