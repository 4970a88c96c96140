//! Signals, for commands that run until they are stopped: recorded in flags, with a wait that a
//! signal ends at once.

use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::failure::Failure;

/// The signals that were received.
#[derive(Debug)]
pub(crate) struct Signals {
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    wake: UnixStream,
}

impl Signals {
    /// From now on SIGTERM and SIGINT request a stop, SIGHUP a reload.
    pub(crate) fn listen() -> Result<Self, Failure> {
        Self::register()
            .map_err(|e| Failure::Setup(format!("cannot register signal handlers: {e}")))
    }

    fn register() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let signals = Self { stop: Arc::default(), reload: Arc::default(), wake };
        for (signal, noted) in
            [(SIGTERM, &signals.stop), (SIGINT, &signals.stop), (SIGHUP, &signals.reload)]
        {
            flag::register(signal, Arc::clone(noted))?;
            pipe::register(signal, write.try_clone()?)?;
        }
        Ok(signals)
    }

    /// Readable while a signal is noted that no wait has seen.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Whether a stop was requested.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Whether a reload was requested since the last call.
    pub(crate) fn take_reload(&self) -> bool {
        self.reload.swap(false, Relaxed)
    }

    /// Waits for a signal, or until one of `others` is readable, at most for `longest`.
    pub(crate) fn wait<'a>(
        &self,
        longest: Duration,
        others: impl IntoIterator<Item = BorrowedFd<'a>>,
    ) {
        let timeout = Timespec {
            tv_sec: longest.as_secs() as i64,
            tv_nsec: i64::from(longest.subsec_nanos()),
        };
        // A wait that a signal interrupts is complete.
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        fds.extend(others.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let _ = poll(&mut fds, Some(&timeout));
        let mut noted = [0; 64];
        while matches!((&self.wake).read(&mut noted), Ok(n) if n > 0) {}
    }
}
