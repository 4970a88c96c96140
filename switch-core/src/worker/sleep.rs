//! Sleep in the kernel until a port is readable or another thread wakes the worker.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::load::WakeReason;
use crate::id::PortId;

const WAKE: u64 = u64::MAX;
/// Most readable ports reported by one call.
const READY: usize = 32;

/// Ends a worker's sleep from another thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// Wakes the worker. If it is awake, its next sleep returns at once.
    pub fn wake(&self) {
        // Fails only if the counter is full, and then the worker wakes up anyway.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// A worker's epoll set: its waker and every port with a descriptor.
#[derive(Debug)]
pub(super) struct Sleeper {
    epoll: OwnedFd,
    waker: Waker,
    all_pollable: bool,
}

impl Sleeper {
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let mut sleeper = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            waker: Waker(Arc::new(wake)),
            all_pollable: true,
        };
        sleeper.watch(std::iter::empty());
        Ok(sleeper)
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn all_pollable(&self) -> bool {
        self.all_pollable
    }

    /// Replaces the watched ports. Ports change rarely, so a new set is made each time.
    pub(super) fn watch<'a>(
        &mut self,
        ports: impl Iterator<Item = (PortId, Option<BorrowedFd<'a>>)>,
    ) {
        let Ok(set) = epoll::create(epoll::CreateFlags::CLOEXEC) else { return };
        let wake = epoll::EventData::new_u64(WAKE);
        let _ = epoll::add(&set, &*self.waker.0, wake, epoll::EventFlags::IN);
        self.all_pollable = true;
        for (id, fd) in ports {
            let data = epoll::EventData::new_u64(u64::from(id.0));
            let added =
                fd.is_some_and(|fd| epoll::add(&set, fd, data, epoll::EventFlags::IN).is_ok());
            self.all_pollable &= added;
        }
        self.epoll = set;
    }

    /// Calls `each` for readable ports, at most [`READY`] of them. The kernel reports the others in the
    /// next round.
    pub(super) fn ready(&self, mut each: impl FnMut(PortId)) {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; READY];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events[..], Some(&now)) else {
            return;
        };
        for event in events.iter() {
            if let Ok(id) = u16::try_from(event.data.u64()) {
                each(PortId(id));
            }
        }
    }

    /// Sleeps until a port is readable or the waker is used, at most for `longest`. Returns which.
    pub(super) fn sleep(&self, longest: Duration) -> WakeReason {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 4];
        let timeout = Timespec {
            tv_sec: longest.as_secs() as i64,
            tv_nsec: i64::from(longest.subsec_nanos()),
        };
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events[..], Some(&timeout)) else {
            return WakeReason::Timeout;
        };
        if events.iter().any(|e| e.data.u64() == WAKE) {
            let mut count = [0u8; 8];
            let _ = rustix::io::read(&*self.waker.0, &mut count);
            return WakeReason::Command;
        }
        if events.is_empty() { WakeReason::Timeout } else { WakeReason::Port }
    }
}
