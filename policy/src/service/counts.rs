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

/// What an entry that another one follows counted, and where.
pub(super) struct Before<'a> {
    pub(super) counts: &'a Counts,
    /// Its backends with their places, sorted by address.
    pub(super) backends: Vec<(SocketAddr, Slot)>,
}

impl Counts {
    /// Counters for these backends. Those that were counted before keep their places and counts;
    /// what was counted for backends that are gone stays in the sum.
    pub(super) fn new(before: Option<Before<'_>>, backends: &[SocketAddr]) -> (Self, Vec<Slot>) {
        let Some(Before { counts, backends: old }) = before else {
            let slots = (0..backends.len()).map(|n| Slot(n as u16)).collect();
            return (Self { first: block(HEAD + backends.len()), more: Box::default() }, slots);
        };
        let find = |b: &SocketAddr| old.binary_search_by_key(b, |(address, _)| *address).ok();
        let known: Vec<Option<Slot>> = backends.iter().map(|b| Some(old[find(b)?].1)).collect();
        let room = counts.room();
        // One place more for each newcomer at most, and never more than there are numbers.
        let most = (room + backends.len()).min(usize::from(u16::MAX) + 1);
        let mut state = vec![Place::Free; most];
        old.iter().for_each(|(_, slot)| state[usize::from(slot.0)] = Place::Vacated);
        known.iter().flatten().for_each(|slot| state[usize::from(slot.0)] = Place::Taken);
        // A worker may count for those that left a while longer; it had better not do so for those
        // that came, unless there is no other place.
        let of = |wanted: Place| {
            let places = state.iter().enumerate().filter(move |(_, place)| **place == wanted);
            places.map(|(slot, _)| Slot(slot as u16))
        };
        let mut free = of(Place::Free).chain(of(Place::Vacated));
        let slots: Vec<Slot> =
            known.into_iter().map(|slot| slot.or_else(|| free.next()).unwrap_or(Slot(0))).collect();
        // Also what was counted, later than that, for those that left before.
        for slot in (0..room).filter(|slot| state[*slot] != Place::Taken) {
            let left = counts.backend(Slot(slot as u16)).map_or(0, |c| c.swap(0, Relaxed));
            counts.first[DEPARTED].fetch_add(left, Relaxed);
        }
        let mut counts = counts.clone();
        let needed = slots.iter().map(|slot| usize::from(slot.0) + 1).max().unwrap_or(0);
        if needed > room {
            // More than that, so that a Service that grows one by one has few blocks.
            let more = (needed - room).max(room.min(1024) / 2);
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

/// Of a place for a backend's counter, as a compilation finds it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// Its backend leaves.
    Vacated,
    /// Its backend stays.
    Taken,
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
