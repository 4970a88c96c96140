//! How often a Service port's connections were opened, to which backend, or refused.
//!
//! Kept by the entry, counted by workers when a connection is opened, and carried over from one
//! compilation to the next: tables of different age count into the same memory, so that nothing is
//! lost while workers go from one to the other.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::net::SocketAddr;
use std::sync::Arc;

/// Counters before those of backends, in the first block.
const REJECTED: usize = 0;
const DROPPED: usize = 1;
const DEPARTED: usize = 2;
const HEAD: usize = 3;

/// Place of a backend among the counters of its Service port.
#[derive(Clone, Copy)]
pub(super) struct Slot(u16);

/// Counters of one Service port in one family. Clones share them.
#[derive(Clone)]
pub(super) struct Counts {
    /// All that most ports ever need.
    first: Arc<[AtomicU64]>,
    /// For backends that came when there was no room; what is there never moves.
    more: Box<[Arc<[AtomicU64]>]>,
}

/// The counters of an entry that this one follows: its backends' addresses, sorted, with their
/// places.
pub(super) struct Before<'a> {
    pub(super) counts: &'a Counts,
    pub(super) find: &'a dyn Fn(SocketAddr) -> Option<Slot>,
}

impl Counts {
    /// Counters for these backends. Those that were counted before keep their places and counts;
    /// what was counted for backends that are gone stays in the sum.
    pub(super) fn new(before: Option<Before<'_>>, backends: &[SocketAddr]) -> (Self, Vec<Slot>) {
        let Some(Before { counts, find }) = before else {
            let slots = (0..backends.len()).map(|n| Slot(n as u16)).collect();
            return (Self { first: block(HEAD + backends.len()), more: Box::default() }, slots);
        };
        let known: Vec<Option<Slot>> = backends.iter().map(|b| find(*b)).collect();
        let mut used = vec![false; counts.room().max(backends.len())];
        known.iter().flatten().for_each(|slot| used[usize::from(slot.0)] = true);
        let mut free = (0..used.len()).filter(|slot| !used[*slot]).map(|slot| Slot(slot as u16));
        let slots: Vec<Slot> =
            known.into_iter().map(|slot| slot.or_else(|| free.next()).unwrap_or(Slot(0))).collect();
        // Not only those that left: a worker may have counted for one that did so before.
        for slot in (0..counts.room()).filter(|slot| !used[*slot]) {
            let left = counts.backend(Slot(slot as u16)).map_or(0, |c| c.swap(0, Relaxed));
            counts.first[DEPARTED].fetch_add(left, Relaxed);
        }
        let mut counts = counts.clone();
        let lacking = backends.len().saturating_sub(counts.room());
        if lacking > 0 {
            // As much again, so that a Service that grows one by one has few blocks.
            let more = lacking.max(counts.room().min(1024));
            counts.more = counts.more.iter().cloned().chain([block(more)]).collect();
        }
        (counts, slots)
    }

    /// How many backends there is room for.
    fn room(&self) -> usize {
        self.first.len() - HEAD + self.more.iter().map(|block| block.len()).sum::<usize>()
    }

    #[inline]
    fn backend(&self, slot: Slot) -> Option<&AtomicU64> {
        let mut at = usize::from(slot.0);
        if let Some(counter) = self.first.get(HEAD + at) {
            return Some(counter);
        }
        at -= self.first.len() - HEAD;
        for block in &self.more {
            match block.get(at) {
                Some(counter) => return Some(counter),
                None => at -= block.len(),
            }
        }
        None
    }

    #[inline]
    pub(super) fn add_opened(&self, slot: Slot) {
        if let Some(counter) = self.backend(slot) {
            counter.fetch_add(1, Relaxed);
        }
    }

    #[inline]
    pub(super) fn add_rejected(&self) {
        self.first[REJECTED].fetch_add(1, Relaxed);
    }

    #[inline]
    pub(super) fn add_dropped(&self) {
        self.first[DROPPED].fetch_add(1, Relaxed);
    }

    pub(super) fn opened(&self, slot: Slot) -> u64 {
        self.backend(slot).map_or(0, |counter| counter.load(Relaxed))
    }

    pub(super) fn rejected(&self) -> u64 {
        self.first[REJECTED].load(Relaxed)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.first[DROPPED].load(Relaxed)
    }

    pub(super) fn departed(&self) -> u64 {
        self.first[DEPARTED].load(Relaxed)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        /// Reference counts before the counters.
        const HEADER: usize = 16;
        let more =
            self.more.iter().map(|block| size_of::<Arc<[AtomicU64]>>() + HEADER + block.len() * 8);
        HEADER + self.first.len() * 8 + more.sum::<usize>()
    }
}

fn block(len: usize) -> Arc<[AtomicU64]> {
    (0..len).map(|_| AtomicU64::new(0)).collect()
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").field("room", &self.room()).finish_non_exhaustive()
    }
}

/// What was counted is no part of what an entry or backend is.
impl PartialEq for Counts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Counts {}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl PartialEq for Slot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Slot {}
