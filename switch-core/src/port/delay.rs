//! A port that delays frames, for tests and simulated links. It uses the poller's time ([`Now`]), which
//! may be virtual.
//!
//! Runs on the thread of the worker that owns the wrapped port. The worker does not sleep while frames
//! are in flight.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Now, Port, PortInfo};
use crate::packet::{BATCH, Batch, Packet, Pool};
use crate::time::Instant;

/// A port that delays frames. Their order is kept.
#[derive(Debug)]
pub struct Delay<P> {
    port: P,
    rx: Line,
    tx: Line,
    now: Now,
    limit: usize,
    overflowed: Arc<AtomicU64>,
}

/// Frames in flight in one direction, with their arrival time.
#[derive(Debug)]
struct Line {
    delay: Duration,
    frames: VecDeque<(Instant, Packet)>,
}

impl Line {
    fn new(delay: Duration) -> Self {
        Self { delay, frames: VecDeque::new() }
    }

    /// Moves frames that have arrived into `batch` while it has room.
    fn arrived(&mut self, now: Instant, batch: &mut Batch) -> usize {
        let before = batch.len();
        while !batch.is_full() && self.frames.front().is_some_and(|(due, _)| *due <= now) {
            batch.extend(self.frames.pop_front().map(|(_, packet)| packet));
        }
        batch.len() - before
    }
}

impl<P: Port> Delay<P> {
    /// Wraps `port`: received frames arrive `rx` later, and sent frames leave `tx` later. At most
    /// `limit` frames are in flight in each direction. Further received frames are lost and counted;
    /// further sent frames are not accepted.
    pub fn new(port: P, rx: Duration, tx: Duration, limit: usize, now: Now) -> Self {
        let limit = limit.max(1);
        Self { port, rx: Line::new(rx), tx: Line::new(tx), now, limit, overflowed: Arc::default() }
    }

    /// Counter of received frames that were lost because too many were in flight. Remains readable after
    /// the port was handed to a worker.
    pub fn overflowed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.overflowed)
    }

    /// When the next frame arrives in either direction: the time to which virtual time can be advanced.
    pub fn next_due(&self) -> Option<Instant> {
        let first = |line: &Line| line.frames.front().map(|(due, _)| *due);
        first(&self.rx).into_iter().chain(first(&self.tx)).min()
    }

    /// Sends frames that are due.
    fn flush(&mut self, now: Instant, pool: &mut Pool) -> io::Result<()> {
        loop {
            let mut batch = Batch::new();
            if self.tx.arrived(now, &mut batch) == 0 {
                return Ok(());
            }
            let result = self.port.tx(pool, &mut batch);
            let left = !batch.is_empty();
            for packet in batch.drain(..).rev() {
                self.tx.frames.push_front((now, packet));
            }
            result?;
            if left {
                return Ok(());
            }
        }
    }
}

impl<P: Port> Port for Delay<P> {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let now = self.now.get();
        self.flush(now, pool)?;
        let mut received = Batch::new();
        let result = self.port.rx(pool, &mut received);
        for packet in received {
            if self.rx.frames.len() == self.limit {
                self.overflowed.fetch_add(1, Ordering::Relaxed);
                pool.free(packet);
            } else {
                self.rx.frames.push_back((now + self.rx.delay, packet));
            }
        }
        // Frames in flight still arrive after the port has failed.
        let arrived = self.rx.arrived(now, batch);
        if self.rx.frames.is_empty() && arrived == 0 { result.map(|_| 0) } else { Ok(arrived) }
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let now = self.now.get();
        self.flush(now, pool)?;
        let count = batch.len().min(self.limit - self.tx.frames.len()).min(BATCH);
        let due = now + self.tx.delay;
        self.tx.frames.extend(batch.drain(..count).map(|packet| (due, packet)));
        self.flush(now, pool)?;
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
        self.rx.frames.is_empty() && self.tx.frames.is_empty() && self.port.arm()
    }
}

#[cfg(test)]
mod tests;
