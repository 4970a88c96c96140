//! Standard output and standard error of a program that must not block on a reader: each has a
//! bounded queue and a thread that writes it.
//!
//! A line is written completely or not at all. If the queue is full, the line is lost and counted;
//! the count is logged as soon as there is room again. May be called from any thread except a
//! worker.
#![expect(
    clippy::disallowed_types,
    reason = "the lock is held to push or pop a line; no worker prints"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use rustix::event::{PollFd, PollFlags, poll};

/// The most bytes in a queue. An empty queue accepts a longer line.
const MAX_BYTES: usize = 4 << 20;
/// How long the program waits at its end for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Lines of standard output.
pub(crate) static OUT: Queue = Queue::new(Stream::Out);
/// Lines of standard error: the log.
pub(crate) static ERR: Queue = Queue::new(Stream::Err);

/// Whether lines go through the queues.
static QUEUED: AtomicBool = AtomicBool::new(false);
/// Whether the writing threads have been started.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Formats the log line that reports lost lines of a stream.
static LOST_LINE: OnceLock<fn(stream: &str, lines: u64) -> Vec<u8>> = OnceLock::new();

/// From now on lines are queued, until [`start`] starts to write them. `lost_line` formats the line
/// of standard error that reports lost lines of a stream.
pub(crate) fn queue(lost_line: fn(stream: &str, lines: u64) -> Vec<u8>) {
    // Called once per process.
    let _ = LOST_LINE.set(lost_line);
    QUEUED.store(true, Relaxed);
}

/// Whether lines go through the queues.
pub(crate) fn is_queued() -> bool {
    QUEUED.load(Relaxed)
}

/// Starts the writing threads. They drop their capabilities, which they do not need.
///
/// # Errors
/// The system cannot create a thread.
pub(crate) fn start() -> io::Result<()> {
    for queue in [&OUT, &ERR] {
        thread::Builder::new().name("output".to_owned()).spawn(|| {
            podswitch_linux::confine::worker_thread();
            queue.serve();
        })?;
    }
    STARTED.store(true, Relaxed);
    Ok(())
}

/// Waits until all lines are written, at most [`FLUSH_TIMEOUT`]: there may be no reader.
pub(crate) fn flush() {
    if !is_queued() {
        return;
    }
    let clock = Clock::start();
    let end = clock.now() + FLUSH_TIMEOUT;
    for queue in [&OUT, &ERR] {
        match STARTED.load(Relaxed) {
            true => queue.wait_until_written(&clock, end),
            false => queue.write_waiting(),
        }
    }
}

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

impl Stream {
    const fn name(self) -> &'static str {
        match self {
            Self::Out => "standard output",
            Self::Err => "standard error",
        }
    }
}

/// An entry of a queue.
#[derive(Debug, PartialEq, Eq)]
enum Item {
    Line(Vec<u8>),
    /// This many lines were lost at this point.
    Lost(u64),
}

/// Lines to be written.
#[derive(Debug)]
pub(crate) struct Queue {
    stream: Stream,
    state: Mutex<State>,
    pushed: Condvar,
    written: Condvar,
}

#[derive(Debug)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// Lines lost since the last entry.
    lost: u64,
    /// The last write failed: lost lines are reported with the next line.
    failed: bool,
    is_writing: bool,
}

impl State {
    /// Queues a line, or counts it as lost.
    fn push(&mut self, line: Vec<u8>) {
        if !self.items.is_empty() && self.bytes + line.len() > MAX_BYTES {
            self.lost += 1;
            return;
        }
        if self.lost > 0 {
            self.items.push_back(Item::Lost(std::mem::take(&mut self.lost)));
        }
        self.bytes += line.len();
        self.items.push_back(Item::Line(line));
    }

    /// The next entry to be written.
    fn pop(&mut self) -> Option<Item> {
        match self.items.pop_front() {
            Some(Item::Line(line)) => {
                self.bytes -= line.len();
                Some(Item::Line(line))
            }
            None if self.lost > 0 && !self.failed => {
                Some(Item::Lost(std::mem::take(&mut self.lost)))
            }
            item => item,
        }
    }
}

impl Queue {
    const fn new(stream: Stream) -> Self {
        let state =
            State { items: VecDeque::new(), bytes: 0, lost: 0, failed: false, is_writing: false };
        Self { stream, state: Mutex::new(state), pushed: Condvar::new(), written: Condvar::new() }
    }

    /// Queues a line, which includes its line feed. Never blocks on a reader.
    pub(crate) fn push(&self, line: Vec<u8>) {
        self.lock().push(line);
        self.pushed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes entries forever.
    fn serve(&self) {
        loop {
            let item = self.next();
            self.write(item);
        }
    }

    /// Writes all queued entries.
    fn write_waiting(&self) {
        loop {
            let Some(item) = self.lock().pop() else { return };
            self.write(item);
        }
    }

    fn write(&self, item: Item) {
        let (bytes, lost) = match item {
            Item::Line(line) => (line, 1),
            Item::Lost(count) => {
                let Some(lost_line) = LOST_LINE.get() else { return };
                let line = lost_line(self.stream.name(), count);
                match self.stream {
                    // Standard output is for programs: report the loss on standard error.
                    Stream::Out => return ERR.push(line),
                    Stream::Err => (line, count),
                }
            }
        };
        let written = match self.stream {
            Stream::Out => write_whole(io::stdout().as_fd(), &bytes),
            Stream::Err => write_whole(io::stderr().as_fd(), &bytes),
        };
        let mut state = self.lock();
        state.failed = written.is_err();
        if written.is_err() {
            state.lost += lost;
        }
    }

    /// Waits for something to write.
    fn next(&self) -> Item {
        let mut state = self.lock();
        state.is_writing = false;
        loop {
            if let Some(item) = state.pop() {
                state.is_writing = true;
                return item;
            }
            self.written.notify_all();
            state = self.pushed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_until_written(&self, clock: &Clock, end: Instant) {
        let mut state = self.lock();
        while !state.items.is_empty() || state.is_writing {
            let left = end.since(clock.now());
            if left.is_zero() {
                return;
            }
            (state, _) =
                self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes all bytes, however long the reader takes.
fn write_whole(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    use rustix::io::Errno;
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // The descriptor was made non-blocking elsewhere.
            Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue {
        Queue::new(Stream::Err)
    }

    #[test]
    fn a_full_queue_reports_lost_lines_in_their_place() {
        let queue = queue();
        let mut state = queue.lock();
        let line = vec![b'x'; MAX_BYTES / 4];
        (0..7).for_each(|_| state.push(line.clone()));
        assert_eq!((state.items.len(), state.lost), (4, 3));
        assert_eq!(state.pop(), Some(Item::Line(line.clone())));
        state.push(b"after\n".to_vec());
        (0..3).for_each(|_| assert_eq!(state.pop(), Some(Item::Line(line.clone()))));
        assert_eq!(state.pop(), Some(Item::Lost(3)));
        assert_eq!(state.pop(), Some(Item::Line(b"after\n".to_vec())));
        assert_eq!((state.pop(), state.bytes, state.lost), (None, 0, 0));
    }

    #[test]
    fn lost_lines_are_reported_when_the_queue_is_empty() {
        let queue = queue();
        let mut state = queue.lock();
        state.push(vec![b'x'; MAX_BYTES * 2]);
        state.push(b"lost\n".to_vec());
        assert!(
            matches!(state.pop(), Some(Item::Line(_))),
            "an empty queue takes a line of any size"
        );
        assert_eq!(state.pop(), Some(Item::Lost(1)));
        // After a write error, lost lines are reported only together with the next line.
        (state.lost, state.failed) = (2, true);
        assert_eq!(state.pop(), None);
        state.push(b"next\n".to_vec());
        assert_eq!(state.pop(), Some(Item::Lost(2)));
        assert_eq!(state.pop(), Some(Item::Line(b"next\n".to_vec())));
    }
}
