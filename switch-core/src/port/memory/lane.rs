//! One direction of a memory port: a bounded queue, and a doorbell for a receiver that sleeps.
//!
//! A receiver that is about to sleep announces it first ([`Lane::arm`]) and then checks the queue
//! again. A sender enqueues the packet first and then checks whether a receiver sleeps. There is a full
//! fence between the two steps on both sides, so at least one side sees the other, and no packet is
//! left in the queue of a sleeping receiver. A doorbell that rings too often does no harm.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::packet::{Batch, Packet, Pool};

#[derive(Debug)]
pub(super) struct Lane {
    queue: ArrayQueue<Packet>,
    /// A receiver sleeps, or is about to, and the doorbell has not rung since.
    armed: CachePadded<AtomicBool>,
    event: OnceLock<OwnedFd>,
}

impl Lane {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            queue: ArrayQueue::new(capacity.max(1)),
            armed: CachePadded::new(AtomicBool::new(false)),
            event: OnceLock::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn push(&self, packet: Packet) -> Result<(), Packet> {
        self.queue.push(packet)?;
        self.ring();
        Ok(())
    }

    /// Moves packets from the front of `batch` into the queue while there is room. `pool`: the pool that
    /// they leave.
    #[inline]
    pub(super) fn push_burst(&self, batch: &mut Batch, mut pool: Option<&mut Pool>) -> usize {
        let before = batch.len();
        let mut waiting = mem::take(batch).into_iter();
        for packet in waiting.by_ref() {
            if let Some(pool) = &mut pool {
                pool.forget(&packet);
            }
            if let Err(packet) = self.queue.push(packet) {
                if let Some(pool) = &mut pool {
                    pool.adopt(&packet);
                }
                batch.push(packet);
                break;
            }
        }
        batch.extend(waiting);
        let count = before - batch.len();
        if count > 0 {
            self.ring();
        }
        count
    }

    pub(super) fn pop(&self) -> Option<Packet> {
        self.queue.pop()
    }

    /// Moves packets from the queue into `batch` while it has room. `pool`: the pool that they join.
    #[inline]
    pub(super) fn pop_burst(&self, batch: &mut Batch, mut pool: Option<&mut Pool>) -> usize {
        let before = batch.len();
        while !batch.is_full() {
            let Some(packet) = self.queue.pop() else { break };
            if let Some(pool) = &mut pool {
                pool.adopt(&packet);
            }
            batch.push(packet);
        }
        batch.len() - before
    }

    /// The descriptor that becomes readable when the doorbell rings.
    pub(super) fn event(&self) -> io::Result<BorrowedFd<'_>> {
        if self.event.get().is_none() {
            let fresh = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
            // If another thread was faster, its descriptor stays and this one is closed.
            let _ = self.event.set(fresh);
        }
        self.event.get().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Announces that the receiver is about to wait for [`event`](Self::event). `false`: there are
    /// packets already.
    pub(super) fn arm(&self) -> bool {
        self.armed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.queue.is_empty()
    }

    /// The receiver is awake: the doorbell need not ring.
    pub(super) fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
        if let Some(event) = self.event.get() {
            // There may be nothing to read: it was woken by something else.
            let _ = rustix::io::read(event, &mut [0; 8]);
        }
    }

    /// Rings if a receiver sleeps.
    #[inline]
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
            self.wake();
        }
    }

    /// Rings unconditionally.
    #[cold]
    pub(super) fn wake(&self) {
        if let Some(event) = self.event.get() {
            // Fails only if the counter is at its maximum, and then the descriptor is readable anyway.
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
}

/// Waits until `fd` is readable, at most `timeout`.
pub(super) fn wait(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(timeout).ok();
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
