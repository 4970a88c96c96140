//! A port that receives the same frames again and again, for benchmarks of the fast path.

use std::io;

use crate::packet::{Batch, Packet, Pool};
use crate::port::{Port, PortInfo};

/// Receives the same frames in a loop, and discards what is sent. Like a device driver, it writes each
/// received frame into a buffer of the pool, and returns the buffer after transmission. There is no
/// queue, no other thread and no system call.
#[derive(Debug)]
pub struct FrameLoop {
    info: PortInfo,
    /// The frames, concatenated.
    bytes: Vec<u8>,
    /// Where each frame ends in `bytes`.
    ends: Vec<usize>,
    /// Whether every frame fits a small buffer.
    is_small: bool,
    next: usize,
    start: usize,
    sent: u64,
    sent_bytes: u64,
}

impl FrameLoop {
    /// A port that receives `frames` in turn.
    pub fn new<F: AsRef<[u8]>>(info: PortInfo, frames: impl IntoIterator<Item = F>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        let mut is_small = true;
        for frame in frames {
            is_small &= frame.as_ref().len() <= Pool::SMALL;
            bytes.extend_from_slice(frame.as_ref());
            ends.push(bytes.len());
        }
        // Bytes behind the last frame may be copied with it.
        bytes.extend([0; Packet::LINE]);
        Self { info, bytes, ends, is_small, next: 0, start: 0, sent: 0, sent_bytes: 0 }
    }

    /// Receives frames of any size, one by one.
    fn receive_large(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let before = batch.len();
        while !batch.is_full() {
            if self.next == self.ends.len() {
                if self.ends.is_empty() {
                    break;
                }
                (self.next, self.start) = (0, 0);
            }
            let end = self.ends[self.next];
            let Some(mut packet) = pool.alloc_for(end - self.start) else { break };
            packet.fill(&self.bytes[self.start..end]);
            batch.push(packet);
            self.start = end;
            self.next += 1;
        }
        Ok(batch.len() - before)
    }

    /// Number of frames sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Number of bytes sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }
}

impl Port for FrameLoop {
    #[inline]
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let before = batch.len();
        if !self.is_small || self.ends.is_empty() {
            return self.receive_large(pool, batch);
        }
        pool.alloc_burst(batch, batch.remaining_capacity());
        let (mut next, mut start) = (self.next, self.start);
        for packet in batch.iter_mut().skip(before) {
            if next == self.ends.len() {
                (next, start) = (0, 0);
            }
            let end = self.ends[next];
            packet.fill_from(&self.bytes[start..], end - start);
            start = end;
            next += 1;
        }
        (self.next, self.start) = (next, start);
        Ok(batch.len() - before)
    }

    #[inline]
    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let count = batch.len();
        let bytes: u64 = batch.iter().map(|packet| packet.len() as u64).sum();
        pool.free_burst(batch);
        self.sent_bytes += bytes;
        self.sent += count as u64;
        Ok(count)
    }

    fn info(&self) -> &PortInfo {
        &self.info
    }
}
