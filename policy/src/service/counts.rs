//! Counts a Service port's connections: opened, by backend, and refused.
//!
//! Stored with the entry, incremented by workers when a connection is opened, and carried over from
//! one compilation to the next. Tables of different age share the memory, so nothing is lost while
//! workers switch tables.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::net::SocketAddr;
use std::sync::Arc;

/// Counters before those of backends, in the first block.
const REJECTED: usize = 0;
const DROPPED: usize = 1;
const DEPARTED: usize = 2;
const HEAD: usize = 3;

/// Index of a backend among the counters of its Service port.
#[derive(Clone, Copy)]
pub(super) struct Slot(u16);

/// Counters of one Service port in one family. Clones share them.
#[derive(Clone)]
pub(super) struct Counts {
    /// Sufficient for most ports.
    first: Arc<[AtomicU64]>,
    /// For backends added when the first block was full; counters in use never move.
    more: Box<[Arc<[AtomicU64]>]>,
}

/// The counters of the previous entry.
pub(super) struct Before<'a> {
    pub(super) counts: &'a Counts,
    /// Its backends with their slots, sorted by address.
    pub(super) backends: Vec<(SocketAddr, Slot)>,
}

impl Counts {
    /// Counters for these backends. Backends that were counted before keep their slots and counts.
    /// The counts of removed backends remain in the sum.
    pub(super) fn new(before: Option<Before<'_>>, backends: &[SocketAddr]) -> (Self, Vec<Slot>) {
        let Some(Before { counts, backends: old }) = before else {
            let slots = (0..backends.len()).map(|n| Slot(n as u16)).collect();
            return (Self { first: block(HEAD + backends.len()), more: Box::default() }, slots);
        };
        let find = |b: &SocketAddr| old.binary_search_by_key(b, |(address, _)| *address).ok();
        let known: Vec<Option<Slot>> = backends.iter().map(|b| Some(old[find(b)?].1)).collect();
        let room = counts.room();
        // At most one slot for each new backend, and never more than slot numbers.
        let most = (room + backends.len()).min(usize::from(u16::MAX) + 1);
        let mut state = vec![Place::Free; most];
        old.iter().for_each(|(_, slot)| state[usize::from(slot.0)] = Place::Vacated);
        known.iter().flatten().for_each(|slot| state[usize::from(slot.0)] = Place::Taken);
        // A worker with an older table may still count for a removed backend, so its slot is given
        // to a new backend only if no other slot is free.
        let of = |wanted: Place| {
            let places = state.iter().enumerate().filter(move |(_, place)| **place == wanted);
            places.map(|(slot, _)| Slot(slot as u16))
        };
        let mut free = of(Place::Free).chain(of(Place::Vacated));
        let slots: Vec<Slot> =
            known.into_iter().map(|slot| slot.or_else(|| free.next()).unwrap_or(Slot(0))).collect();
        // Also the connections counted since then for backends that were removed earlier.
        for slot in (0..room).filter(|slot| state[*slot] != Place::Taken) {
            let left = counts.backend(Slot(slot as u16)).map_or(0, |c| c.swap(0, Relaxed));
            counts.first[DEPARTED].fetch_add(left, Relaxed);
        }
        let mut counts = counts.clone();
        let needed = slots.iter().map(|slot| usize::from(slot.0) + 1).max().unwrap_or(0);
        if needed > room {
            // More slots than needed, so that a Service that grows one by one has few blocks.
            let more = (needed - room).max(room.min(1024) / 2);
            counts.more = counts.more.iter().cloned().chain([block(more)]).collect();
        }
        (counts, slots)
    }

    /// The number of backend slots.
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

    /// Adds the count of a backend from an earlier process; `None`: for backends that no longer
    /// exist.
    pub(super) fn restore_opened(&self, slot: Option<Slot>, count: u64) {
        let counter = slot.and_then(|slot| self.backend(slot)).unwrap_or(&self.first[DEPARTED]);
        counter.fetch_add(count, Relaxed);
    }

    /// Adds the refused connections that an earlier process has counted.
    pub(super) fn restore_refused(&self, rejected: u64, dropped: u64) {
        self.first[REJECTED].fetch_add(rejected, Relaxed);
        self.first[DROPPED].fetch_add(dropped, Relaxed);
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

/// State of a backend's slot during compilation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// Its backend is removed.
    Vacated,
    /// Its backend stays.
    Taken,
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").field("room", &self.room()).finish_non_exhaustive()
    }
}

/// Counts do not take part in comparing entries or backends.
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
