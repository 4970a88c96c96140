//! The queue of copies from a worker to the reader, bounded in number and in bytes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crossbeam::queue::ArrayQueue;

use super::frame::Copy;

/// Maximum number of copies in a queue.
const COPIES: usize = 4096;
/// Maximum bytes of frames in a queue.
const BYTES: usize = 16 << 20;

/// One worker's queue.
#[derive(Debug)]
pub(crate) struct Queue {
    copies: ArrayQueue<Copy>,
    /// Buffers to be reused.
    spare: ArrayQueue<Vec<u8>>,
    bytes: AtomicUsize,
    lost: AtomicU64,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            copies: ArrayQueue::new(COPIES),
            spare: ArrayQueue::new(COPIES),
            bytes: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// An empty buffer.
    pub(super) fn buffer(&self) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Takes a buffer back. The buffer is freed if there are enough, or if it was made for a GSO packet: such buffers
    /// would take more memory than the queue may hold.
    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        if buffer.capacity() <= BYTES / COPIES {
            let _ = self.spare.push(buffer);
        }
    }

    /// Queues a copy. If there is no room, the copy is lost and counted.
    pub(super) fn push(&self, copy: Copy) {
        let len = copy.frame.len();
        if self.bytes.load(Relaxed) + len > BYTES {
            return self.lose(copy);
        }
        self.bytes.fetch_add(len, Relaxed);
        if let Err(copy) = self.copies.push(copy) {
            self.bytes.fetch_sub(len, Relaxed);
            self.lose(copy);
        }
    }

    /// Counts a copy as lost.
    pub(super) fn lose(&self, copy: Copy) {
        self.lost.fetch_add(1, Relaxed);
        self.recycle(copy.frame);
    }

    pub(super) fn pop(&self) -> Option<Copy> {
        let copy = self.copies.pop()?;
        self.bytes.fetch_sub(copy.frame.len(), Relaxed);
        Some(copy)
    }

    /// The number of copies in the queue now.
    pub(super) fn len(&self) -> usize {
        self.copies.len()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}
