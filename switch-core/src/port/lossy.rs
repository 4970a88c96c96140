//! A port that loses, duplicates, reorders and corrupts frames, for tests. Deterministic: the same seed
//! and the same traffic give the same faults.
//!
//! Runs on the thread of the worker that owns the wrapped port.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::random::Random;
use super::{Port, PortInfo};
use crate::packet::{BATCH, Batch, Packet, Pool, finish_checksum};

/// Probability of each fault, in 1,000.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// The frame is lost.
    pub lose: u16,
    /// The frame is duplicated.
    pub repeat: u16,
    /// The next frame overtakes this one.
    pub reorder: u16,
    /// One bit of the frame is inverted, after its checksum was computed. Not for GSO packets: their
    /// checksums are computed later and would include the fault.
    pub corrupt: u16,
}

/// Faults of a [`Lossy`] port so far, in both directions.
#[derive(Debug, Default)]
pub struct LossyCounters {
    lost: AtomicU64,
    repeated: AtomicU64,
    reordered: AtomicU64,
    corrupted: AtomicU64,
}

impl LossyCounters {
    /// Lost frames.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Duplicated frames.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Reordered frames.
    pub fn reordered(&self) -> u64 {
        self.reordered.load(Ordering::Relaxed)
    }

    /// Frames with an inverted bit.
    pub fn corrupted(&self) -> u64 {
        self.corrupted.load(Ordering::Relaxed)
    }
}

/// A port with faults.
#[derive(Debug)]
pub struct Lossy<P> {
    port: P,
    rx: Lane,
    tx: Lane,
    counters: Arc<LossyCounters>,
    /// Whether nothing was sent since the last reception.
    tx_quiet: bool,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    faults: Faults,
    random: Random,
    /// Frames to deliver, at most a burst and its duplicates.
    ready: VecDeque<Packet>,
    /// A frame that waits for the next one to overtake it.
    held: Option<Packet>,
}

impl<P: Port> Lossy<P> {
    /// Wraps `port`, with separate faults for received and for sent frames.
    pub fn new(port: P, rx: Faults, tx: Faults, seed: u64) -> Self {
        let mut seeds = Random::new(seed);
        let mut lane = |faults| Lane {
            faults,
            random: Random::new(seeds.next()),
            ready: VecDeque::new(),
            held: None,
        };
        let (rx, tx) = (lane(rx), lane(tx));
        Self { port, rx, tx, counters: Arc::default(), tx_quiet: false }
    }

    /// The counters. Remain readable after the port was handed to a worker.
    pub fn counters(&self) -> Arc<LossyCounters> {
        Arc::clone(&self.counters)
    }

    /// Sends the frames to deliver.
    fn flush(&mut self, pool: &mut Pool) -> io::Result<()> {
        while !self.tx.ready.is_empty() {
            let mut batch: Batch = {
                let count = self.tx.ready.len().min(BATCH);
                self.tx.ready.drain(..count).collect()
            };
            let result = self.port.tx(pool, &mut batch);
            let left = !batch.is_empty();
            for packet in batch.drain(..).rev() {
                self.tx.ready.push_front(packet);
            }
            result?;
            if left {
                break;
            }
        }
        Ok(())
    }
}

impl Lane {
    /// Applies the faults to a frame.
    fn pass(&mut self, mut packet: Packet, pool: &mut Pool, counters: &LossyCounters) {
        if self.random.chance(self.faults.lose) {
            counters.lost.fetch_add(1, Ordering::Relaxed);
            pool.free(packet);
            return;
        }
        if self.random.chance(self.faults.corrupt) && self.corrupt(&mut packet) {
            counters.corrupted.fetch_add(1, Ordering::Relaxed);
        }
        let duplicate =
            self.random.chance(self.faults.repeat).then(|| copy(&packet, pool)).flatten();
        if self.held.is_none() && self.random.chance(self.faults.reorder) {
            counters.reordered.fetch_add(1, Ordering::Relaxed);
            self.held = Some(packet);
        } else {
            self.ready.push_back(packet);
            self.release();
        }
        if let Some(duplicate) = duplicate {
            counters.repeated.fetch_add(1, Ordering::Relaxed);
            self.ready.push_back(duplicate);
        }
    }

    fn corrupt(&mut self, packet: &mut Packet) -> bool {
        if packet.is_empty() || packet.offload.is_gso() || finish_checksum(packet).is_err() {
            return false;
        }
        packet.offload.csum_valid = false;
        let bit = self.random.below(8 * packet.len() as u64) as usize;
        packet.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
        true
    }

    /// Releases the held frame.
    fn release(&mut self) {
        self.ready.extend(self.held.take());
    }

    fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.held.is_none()
    }
}

/// A duplicate of a frame; `None` if the pool is empty.
fn copy(packet: &Packet, pool: &mut Pool) -> Option<Packet> {
    let mut duplicate = pool.alloc_for(packet.len())?;
    duplicate.fill(packet.bytes());
    duplicate.offload = packet.offload;
    duplicate.ingress = packet.ingress;
    Some(duplicate)
}

impl<P: Port> Port for Lossy<P> {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        // No frame followed: the held frame must not wait forever.
        if self.tx_quiet {
            self.tx.release();
        }
        self.tx_quiet = true;
        self.flush(pool)?;
        if self.rx.ready.is_empty() {
            let mut received = Batch::new();
            if self.port.rx(pool, &mut received)? == 0 {
                self.rx.release();
            }
            for packet in received {
                self.rx.pass(packet, pool, &self.counters);
            }
        }
        let count = self.rx.ready.len().min(batch.remaining_capacity());
        batch.extend(self.rx.ready.drain(..count));
        Ok(count)
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        self.tx_quiet = false;
        self.flush(pool)?;
        // The port is full: frames that wait go first.
        if !self.tx.ready.is_empty() {
            return Ok(0);
        }
        let count = batch.len();
        for packet in batch.drain(..) {
            self.tx.pass(packet, pool, &self.counters);
        }
        self.flush(pool)?;
        Ok(count)
    }

    fn info(&self) -> &PortInfo {
        self.port.info()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.poll_fd()
    }

    fn is_always_polled(&self) -> bool {
        true
    }

    fn arm(&mut self) -> bool {
        self.rx.is_idle() && self.tx.is_idle() && self.port.arm()
    }
}

#[cfg(test)]
mod tests;
