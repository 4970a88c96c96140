//! Decision counts of policy rules, shared by all workers and kept from epoch to epoch.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

const CHUNK: usize = 1024;

/// Counters by the policy table's dense numbers. Clones share them; growing keeps them.
#[derive(Clone, Debug, Default)]
pub struct PolicyCounters {
    chunks: Vec<Arc<[AtomicU64]>>,
}

impl PolicyCounters {
    /// The same counters, extended to at least `count`.
    #[must_use]
    pub fn grown_to(&self, count: usize) -> Self {
        let mut chunks = self.chunks.clone();
        while chunks.len() * CHUNK < count {
            chunks.push((0..CHUNK).map(|_| AtomicU64::new(0)).collect());
        }
        Self { chunks }
    }

    /// Counts one. On the miss path only, so workers may share a cache line.
    #[inline]
    pub fn add(&self, number: u32) {
        self.add_many(number, 1);
    }

    /// Counts `count`.
    #[inline]
    pub(crate) fn add_many(&self, number: u32, count: u64) {
        let number = number as usize;
        if let Some(counter) = self.chunks.get(number / CHUNK).map(|c| &c[number % CHUNK]) {
            counter.fetch_add(count, Relaxed);
        }
    }

    /// Zeroes the counter of a number that gets a new meaning.
    pub(crate) fn reset(&self, number: u32) {
        let number = number as usize;
        if let Some(counter) = self.chunks.get(number / CHUNK).map(|c| &c[number % CHUNK]) {
            counter.store(0, Relaxed);
        }
    }

    /// The count of a number; zero if there is no such counter.
    pub fn get(&self, number: u32) -> u64 {
        let number = number as usize;
        self.chunks.get(number / CHUNK).map_or(0, |c| c[number % CHUNK].load(Relaxed))
    }
}
