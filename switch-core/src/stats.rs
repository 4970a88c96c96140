//! Counters. Each worker writes its own with plain stores; anybody reads them.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::utils::CachePadded;

use crate::action::DropReason;
use crate::id::PortId;

/// A counter with one writer, so that adding is a load and a store.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Frames and bytes of one port, as one worker saw them.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames received.
    pub rx_frames: Counter,
    /// Bytes received.
    pub rx_bytes: Counter,
    /// Frames handed to the device.
    pub tx_frames: Counter,
    /// Bytes handed to the device.
    pub tx_bytes: Counter,
    /// Frames received here and dropped, whatever the reason.
    pub dropped: Counter,
}

/// Counters of one worker.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Frames received by any port.
    pub received: Counter,
    /// Received frames that left by at least one port.
    pub forwarded: Counter,
    /// Received frames that the switch itself took: ARP, ND, echo to the gateway.
    pub consumed: Counter,
    /// Frames that the switch made itself and handed to a port.
    pub originated: Counter,
    /// Further copies of forwarded frames handed to ports: flooding, fragments.
    pub copies: Counter,
    /// Frames made here, or copies, that a port did not take, or that no tunnel could.
    pub originated_lost: Counter,
    /// Packets that hit the worker's flow table.
    pub hits: Counter,
    /// Packets that needed `resolve`.
    pub misses: Counter,
    /// Known flows that were judged again, because something that they depend on was changed.
    pub rederived: Counter,
    /// Known flows that were asked after a change whether it concerns them, and which it did not:
    /// their packets are among the hits.
    pub kept: Counter,
    drops: Box<[Counter]>,
    ports: Box<[CachePadded<PortCounters>]>,
}

impl WorkerCounters {
    /// Zeroes, for ports up to number `ports`.
    pub fn new(ports: usize) -> Self {
        Self {
            received: Counter::default(),
            forwarded: Counter::default(),
            consumed: Counter::default(),
            originated: Counter::default(),
            copies: Counter::default(),
            originated_lost: Counter::default(),
            hits: Counter::default(),
            misses: Counter::default(),
            rederived: Counter::default(),
            kept: Counter::default(),
            drops: (0..DropReason::COUNT).map(|_| Counter::default()).collect(),
            ports: (0..ports).map(|_| CachePadded::default()).collect(),
        }
    }

    /// Counters of one port.
    #[inline]
    pub fn port(&self, port: PortId) -> Option<&PortCounters> {
        self.ports.get(port.index()).map(|p| &**p)
    }

    /// Counts a dropped frame that a port had received.
    pub fn count_drop(&self, ingress: PortId, reason: DropReason) {
        self.drops[reason as usize].add(1);
        if let Some(port) = self.port(ingress) {
            port.dropped.add(1);
        }
    }

    /// Frames dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Frames dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum()
    }
}
