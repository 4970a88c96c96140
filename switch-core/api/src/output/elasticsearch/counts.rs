//! Counts of records by result.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a record was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lost {
    /// The output's thread was too slow.
    Queue,
    /// It was waiting, and newer records needed the room.
    Spool,
    /// The server refused it: it does not match the index's mapping, or is too long.
    Refused,
    /// The switch stopped while the server was unreachable.
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

/// Counts of the records so far, by result. `made + recovered = delivered + lost() + waiting`, plus
/// those in the queue while the output runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryCounts {
    /// Passed to the output.
    pub made: u64,
    /// Found in files of an earlier run.
    pub recovered: u64,
    /// Delivered.
    pub delivered: u64,
    /// Waiting in memory and in files.
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
    /// All records that were not and will not be delivered.
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
