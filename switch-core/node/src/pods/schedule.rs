//! When pods' interfaces are compared with their wanted settings.

use podswitch_core::time::Instant;
use podswitch_linux::NetNs;
use podswitch_linux::netlink::Changes;

/// When to compare a pod's interface with its wanted settings.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Change notifications of the pod's namespace. Without them (descriptors may be short) it is
    /// compared at each sweep.
    changes: Option<Changes>,
    pub(super) is_due: bool,
    pub(super) not_before: Option<Instant>,
}

impl Upkeep {
    /// For an interface that was just set up.
    pub(super) fn of(namespace: &NetNs) -> Self {
        Self { changes: Changes::listen(namespace).ok(), is_due: false, not_before: None }
    }

    /// Whether to compare now. `sweep`: also without notifications.
    pub(super) fn is_due(&mut self, now: Instant, sweep: bool) -> bool {
        self.is_due |= self.changes.as_mut().map_or(sweep, Changes::happened);
        let is_due = self.is_due && self.not_before.is_none_or(|at| now >= at);
        self.is_due &= !is_due;
        is_due
    }
}
