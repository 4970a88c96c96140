//! What became of records.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a record did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lost {
    /// The output's thread was behind.
    Queue,
    /// It waited, and newer ones needed the room.
    Spool,
    /// The server refused it: it does not fit the index's mapping, or is too long.
    Refused,
    /// The switch stopped while the server was away.
    Shutdown,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    made: AtomicU64,
    recovered: AtomicU64,
    delivered: AtomicU64,
    waiting: AtomicU64,
    lost: [AtomicU64; 4],
}

/// What became of the records so far. `made + recovered = delivered + lost() + waiting`, and those in the queue while the
/// output runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryCounts {
    /// Handed over.
    pub made: u64,
    /// Found in files of an earlier run.
    pub recovered: u64,
    /// Arrived.
    pub delivered: u64,
    /// In memory and in files.
    pub waiting: u64,
    /// See [`Lost::Queue`].
    pub lost_queue: u64,
    /// See [`Lost::Spool`].
    pub lost_spool: u64,
    /// See [`Lost::Refused`].
    pub lost_refused: u64,
    /// See [`Lost::Shutdown`].
    pub lost_shutdown: u64,
}

impl DeliveryCounts {
    /// All that did not and will not arrive.
    pub fn lost(&self) -> u64 {
        self.lost_queue + self.lost_spool + self.lost_refused + self.lost_shutdown
    }
}

impl Counts {
    pub(super) fn add_made(&self, count: u64) {
        self.made.fetch_add(count, Relaxed);
    }

    pub(super) fn add_recovered(&self, count: u64) {
        self.recovered.fetch_add(count, Relaxed);
    }

    pub(super) fn add_delivered(&self, count: u64) {
        self.delivered.fetch_add(count, Relaxed);
    }

    pub(super) fn add_lost(&self, why: Lost, count: u64) {
        self.lost[why as usize].fetch_add(count, Relaxed);
    }

    pub(super) fn set_waiting(&self, count: u64) {
        self.waiting.store(count, Relaxed);
    }

    pub(super) fn read(&self) -> DeliveryCounts {
        let lost = |why: Lost| self.lost[why as usize].load(Relaxed);
        DeliveryCounts {
            made: self.made.load(Relaxed),
            recovered: self.recovered.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            lost_queue: lost(Lost::Queue),
            lost_spool: lost(Lost::Spool),
            lost_refused: lost(Lost::Refused),
            lost_shutdown: lost(Lost::Shutdown),
        }
    }
}
