//! Memory for the slots of the connection table: on the heap, or in memory from the caller that may survive a restart.

#![allow(
    clippy::disallowed_types,
    reason = "the mutex is taken when a chunk is first used: once for hundreds of connections"
)]

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Slots that are allocated together.
#[derive(Debug)]
pub(crate) enum Chunk<T: 'static> {
    /// On the heap.
    Heap(Box<[T]>),
    /// In memory from the caller.
    Given(&'static [T]),
}

impl<T> Deref for Chunk<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match self {
            Self::Heap(items) => items,
            Self::Given(items) => items,
        }
    }
}

/// The part of the caller's memory that belongs to one chunk: slots, and the reply keys of translated connections.
type Place<S, R> = (Option<&'static mut [S]>, Option<&'static mut [R]>);

/// The source of chunks. `S`: slots, `R`: reply keys of translated connections.
#[derive(Debug)]
pub(crate) struct Chunks<S: 'static, R: 'static> {
    given: Mutex<Vec<Place<S, R>>>,
    /// Number of the caller's chunks that may be used: their memory is allocated.
    usable: AtomicU32,
    /// Number of the highest used chunk of the caller's memory, plus one. Stored in that memory.
    used: Option<&'static AtomicU32>,
}

impl<S, R> Chunks<S, R> {
    /// All chunks on the heap.
    pub(crate) const fn on_heap() -> Self {
        Self { given: Mutex::new(Vec::new()), usable: AtomicU32::new(0), used: None }
    }

    /// Chunks in the caller's memory. None may be used before [`allow`](Self::allow) is called.
    pub(crate) fn in_memory(places: Vec<Place<S, R>>, used: &'static AtomicU32) -> Self {
        Self { given: Mutex::new(places), usable: AtomicU32::new(0), used: Some(used) }
    }

    /// Allows the use of the first `chunks` chunks of the caller's memory.
    pub(crate) fn allow(&self, chunks: u32) {
        self.usable.store(chunks, Relaxed);
    }

    /// The slots of a chunk. Called once for each chunk.
    pub(crate) fn slots(&self, chunk: usize, new: impl FnOnce() -> Box<[S]>) -> Chunk<S> {
        let given = self.take(chunk, |place| place.0.take());
        if given.is_some()
            && let Some(used) = self.used
        {
            used.fetch_max(chunk as u32 + 1, Relaxed);
        }
        given.map_or_else(|| Chunk::Heap(new()), |items| Chunk::Given(items))
    }

    /// The reply keys of a chunk. Called once for each chunk.
    pub(crate) fn replies(&self, chunk: usize, new: impl FnOnce() -> Box<[R]>) -> Chunk<R> {
        let given = self.take(chunk, |place| place.1.take());
        given.map_or_else(|| Chunk::Heap(new()), |items| Chunk::Given(items))
    }

    fn take<T>(&self, chunk: usize, take: impl FnOnce(&mut Place<S, R>) -> Option<T>) -> Option<T> {
        if chunk >= self.usable.load(Relaxed) as usize {
            return None;
        }
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.get_mut(chunk).and_then(take)
    }
}
