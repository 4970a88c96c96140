//! A port whose frames take their time, for tests and simulated links. The time is the
//! poller's ([`Now`]): virtual where that is.
//!
//! Runs on the thread of the worker that owns the wrapped port. While frames are under way the
//! worker is kept from sleeping.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Now, Port, PortInfo};
use crate::packet::{BATCH, Batch, Packet, Pool};
use crate::time::Instant;

/// A port with delay. Frames keep their order.
#[derive(Debug)]
pub struct Delay<P> {
    port: P,
    rx: Line,
    tx: Line,
    now: Now,
    limit: usize,
    overflowed: Arc<AtomicU64>,
}

/// Frames under way in one direction, with the time when they arrive.
#[derive(Debug)]
struct Line {
    delay: Duration,
    frames: VecDeque<(Instant, Packet)>,
}

impl Line {
    fn new(delay: Duration) -> Self {
        Self { delay, frames: VecDeque::new() }
    }

    /// Moves what has arrived into `batch`, as far as there is room.
    fn arrived(&mut self, now: Instant, batch: &mut Batch) -> usize {
        let before = batch.len();
        while !batch.is_full() && self.frames.front().is_some_and(|(due, _)| *due <= now) {
            batch.extend(self.frames.pop_front().map(|(_, packet)| packet));
        }
        batch.len() - before
    }
}

impl<P: Port> Delay<P> {
    /// Wraps `port`: frames that it receives come `rx` later and frames sent leave `tx` later.
    /// At most `limit` frames are under way in each direction. More that are received are lost
    /// and counted; more that are sent do not fit.
    pub fn new(port: P, rx: Duration, tx: Duration, limit: usize, now: Now) -> Self {
        let limit = limit.max(1);
        Self { port, rx: Line::new(rx), tx: Line::new(tx), now, limit, overflowed: Arc::default() }
    }

    /// Received frames that were lost because too many were under way; stays readable when the
    /// port was handed to a worker.
    pub fn overflowed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.overflowed)
    }

    /// When the next frame arrives, either way: how long a poller in virtual time may skip.
    pub fn next_due(&self) -> Option<Instant> {
        let first = |line: &Line| line.frames.front().map(|(due, _)| *due);
        first(&self.rx).into_iter().chain(first(&self.tx)).min()
    }

    /// Sends what is due.
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
        // What is under way still arrives when the port has failed.
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

    fn is_looked_at(&self) -> bool {
        true
    }

    fn arm(&mut self) -> bool {
        self.rx.frames.is_empty() && self.tx.frames.is_empty() && self.port.arm()
    }
}

#[cfg(test)]
mod tests;
