//! Time since the machine's start, which is the same to every process and goes on while it sleeps; and which start
//! that was.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine's start.
pub(super) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// What this boot of the machine goes by.
pub(super) fn boot_id() -> String {
    // A container may not see it; leases on tmpfs are gone after a boot all the same.
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}
