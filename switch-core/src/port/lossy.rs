//! A port that loses, repeats, reorders and corrupts frames, for tests of what must withstand
//! that. Deterministic: the same seed and the same traffic give the same faults.
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

/// How often each fault happens, in cases of 1,000.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// The frame is lost.
    pub lose: u16,
    /// The frame comes twice.
    pub repeat: u16,
    /// The frame is overtaken by the one after it.
    pub reorder: u16,
    /// One bit of the frame is turned over, once its checksum is finished. Super-frames are
    /// spared: their checksums come later and would cover the fault up.
    pub corrupt: u16,
}

/// What a [`Lossy`] port did so far, both directions together.
#[derive(Debug, Default)]
pub struct LossyCounters {
    lost: AtomicU64,
    repeated: AtomicU64,
    reordered: AtomicU64,
    corrupted: AtomicU64,
}

impl LossyCounters {
    /// Frames lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Frames that came twice.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Frames that were overtaken.
    pub fn reordered(&self) -> u64 {
        self.reordered.load(Ordering::Relaxed)
    }

    /// Frames with a bit turned over.
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
    /// Nothing was sent since frames were last received.
    tx_quiet: bool,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    faults: Faults,
    random: Random,
    /// Frames that are through, at most a burst and its repeats.
    ready: VecDeque<Packet>,
    /// A frame that waits for one to overtake it.
    held: Option<Packet>,
}

impl<P: Port> Lossy<P> {
    /// Wraps `port`, with faults of their own for frames that it receives and that it sends.
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

    /// What was done so far; stays readable when the port was handed to a worker.
    pub fn counters(&self) -> Arc<LossyCounters> {
        Arc::clone(&self.counters)
    }

    /// Sends what is through.
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
    /// Puts a frame through, faults and all.
    fn pass(&mut self, mut packet: Packet, pool: &mut Pool, counters: &LossyCounters) {
        if self.random.chance(self.faults.lose) {
            counters.lost.fetch_add(1, Ordering::Relaxed);
            pool.free(packet);
            return;
        }
        if self.random.chance(self.faults.corrupt) && self.corrupt(&mut packet) {
            counters.corrupted.fetch_add(1, Ordering::Relaxed);
        }
        let twin = self.random.chance(self.faults.repeat).then(|| copy(&packet, pool)).flatten();
        if self.held.is_none() && self.random.chance(self.faults.reorder) {
            counters.reordered.fetch_add(1, Ordering::Relaxed);
            self.held = Some(packet);
        } else {
            self.ready.push_back(packet);
            self.release();
        }
        if let Some(twin) = twin {
            counters.repeated.fetch_add(1, Ordering::Relaxed);
            self.ready.push_back(twin);
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

    /// Lets the held frame go.
    fn release(&mut self) {
        self.ready.extend(self.held.take());
    }

    fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.held.is_none()
    }
}

/// A second frame like this one; none if the pool has no buffer.
fn copy(packet: &Packet, pool: &mut Pool) -> Option<Packet> {
    let mut twin = pool.alloc_for(packet.len())?;
    twin.fill(packet.bytes());
    twin.offload = packet.offload;
    twin.ingress = packet.ingress;
    Some(twin)
}

impl<P: Port> Port for Lossy<P> {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        // Nothing followed: the held frame need not wait for ever.
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
        // Full: what is through already goes first.
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

    fn is_looked_at(&self) -> bool {
        true
    }

    fn arm(&mut self) -> bool {
        self.rx.is_idle() && self.tx.is_idle() && self.port.arm()
    }
}

#[cfg(test)]
mod tests;
