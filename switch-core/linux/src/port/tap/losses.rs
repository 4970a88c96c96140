//! Frames that the kernel dropped because a TAP's queue was full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::Netlink;

/// What the kernel dropped because a queue of the TAP was full. Workers say that a queue may have been;
/// the control thread asks the kernel, which no worker may wait for.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// A queue may have been full since the last reading.
    pub(super) may_be: AtomicBool,
    /// Frames that were read and that no worker has counted yet.
    pub(super) uncounted: AtomicU64,
}

/// Reads the losses of one interface: the kernel counts them for all its queues together.
#[derive(Debug)]
pub(super) struct LossCounter {
    /// In the interface's namespace.
    netlink: Netlink,
    index: u32,
    /// Frames that were read before.
    read: u64,
    pub(super) losses: Arc<Losses>,
}

impl LossCounter {
    /// `None`: the kernel does not say.
    pub(super) fn new(mut netlink: Netlink, index: u32) -> Option<Self> {
        // What was lost before is not this run's.
        let read = netlink.tx_dropped(index).ok()?;
        Some(Self { netlink, index, read, losses: Arc::default() })
    }

    /// Asks the kernel, if a queue may have been full.
    pub(super) fn read(&mut self) {
        if !self.losses.may_be.swap(false, Relaxed) {
            return;
        }
        // An interface that is gone is noticed elsewhere.
        let Ok(lost) = self.netlink.tx_dropped(self.index) else { return };
        let new = lost.saturating_sub(self.read);
        self.read = lost;
        self.losses.uncounted.fetch_add(new, Relaxed);
    }
}
