//! Frames that the kernel dropped because a TAP's queue was full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::Netlink;

/// Counts the frames that the kernel dropped because a queue of the TAP interface was full. Workers report that a queue
/// may have been full; the control thread queries the kernel, which no worker may wait for.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// A queue may have been full since the last reading.
    pub(super) may_be: AtomicBool,
    /// Lost frames that were read from the kernel and that no worker has counted yet.
    pub(super) uncounted: AtomicU64,
}

/// Reads the losses of one interface: the kernel counts them for all its queues together.
#[derive(Debug)]
pub(super) struct LossCounter {
    /// A connection in the interface's namespace.
    netlink: Netlink,
    index: u32,
    /// Lost frames that were read before.
    read: u64,
    pub(super) losses: Arc<Losses>,
}

impl LossCounter {
    /// `None`: the kernel does not report them.
    pub(super) fn new(mut netlink: Netlink, index: u32) -> Option<Self> {
        // Frames lost before do not belong to this run.
        let read = netlink.tx_dropped(index).ok()?;
        Some(Self { netlink, index, read, losses: Arc::default() })
    }

    /// Queries the kernel, if a queue may have been full.
    pub(super) fn read(&mut self) {
        if !self.losses.may_be.swap(false, Relaxed) {
            return;
        }
        // If the interface was removed, this is noticed elsewhere.
        let Ok(lost) = self.netlink.tx_dropped(self.index) else { return };
        let new = lost.saturating_sub(self.read);
        self.read = lost;
        self.losses.uncounted.fetch_add(new, Relaxed);
    }
}
