//! Several queues of a device that one worker has: its own, and those left over from a process with more workers, which
//! handed its queues over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use podswitch_core::packet::{Batch, Pool};
use podswitch_core::port::{Port, PortInfo};
use rustix::event::epoll;

/// One port of several queues. Transmits by the first.
#[derive(Debug)]
struct Several<P> {
    queues: Vec<P>,
    /// The one that receives next.
    next: usize,
    /// Readable while any of them is.
    watch: OwnedFd,
}

/// A port of these queues, of which there is at least one.
///
/// # Errors
/// No descriptor is free.
pub(super) fn join<P: Port + 'static>(mut queues: Vec<P>) -> io::Result<Box<dyn Port>> {
    match queues.pop() {
        Some(only) if queues.is_empty() => Ok(Box::new(only)),
        None => Err(io::ErrorKind::InvalidInput.into()),
        Some(last) => {
            queues.push(last);
            let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            for fd in queues.iter().filter_map(Port::poll_fd) {
                epoll::add(&watch, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
            }
            Ok(Box::new(Several { queues, next: 0, watch }))
        }
    }
}

impl<P: Port> Port for Several<P> {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        for _ in 0..self.queues.len() {
            let at = self.next;
            self.next = (at + 1) % self.queues.len();
            let received = self.queues[at].rx(pool, batch)?;
            if received > 0 {
                return Ok(received);
            }
        }
        Ok(0)
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        self.queues[0].tx(pool, batch)
    }

    fn info(&self) -> &PortInfo {
        self.queues[0].info()
    }

    fn take_lost(&mut self) -> u64 {
        self.queues.iter_mut().map(Port::take_lost).sum()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn arm(&mut self) -> bool {
        // All of them, not only until one has frames.
        self.queues.iter_mut().filter_map(|queue| (!queue.arm()).then_some(())).count() == 0
    }

    fn hold(&mut self) -> bool {
        let at = self.queues.iter_mut().position(Port::hold);
        self.next = at.unwrap_or(self.next);
        at.is_some()
    }
}
