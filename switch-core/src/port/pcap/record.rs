//! Recording of the traffic of a port to a capture file.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arrayvec::ArrayVec;
use crossbeam::queue::ArrayQueue;

use super::{CaptureWriter, Direction};
use crate::packet::{BATCH, Batch, Packet, Pool};
use crate::port::{Now, Port, PortInfo};

/// How long the writing thread sleeps when there is nothing to write, and so the longest delay of a
/// capture.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);

/// A copied frame that is to be written.
#[derive(Debug)]
struct Copy {
    time_ns: u64,
    original_len: u32,
    direction: Direction,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    queue: ArrayQueue<Copy>,
    /// Free buffers.
    spare: ArrayQueue<Vec<u8>>,
    snap_len: usize,
    stop: AtomicBool,
    written: AtomicU64,
    missed: AtomicU64,
    failed: AtomicU64,
}

impl Shared {
    fn copy(&self, packet: &Packet, time_ns: u64, direction: Direction) -> Copy {
        let bytes = packet.bytes();
        let mut frame = self.spare.pop().unwrap_or_default();
        frame.clear();
        frame.extend_from_slice(&bytes[..bytes.len().min(self.snap_len)]);
        Copy { time_ns, original_len: bytes.len() as u32, direction, frame }
    }

    fn hand_over(&self, copy: Copy) {
        if let Err(copy) = self.queue.push(copy) {
            self.missed.fetch_add(1, Ordering::Relaxed);
            self.recycle(copy.frame);
        }
    }

    fn recycle(&self, frame: Vec<u8>) {
        // If the queue is full, the buffer is freed.
        let _ = self.spare.push(frame);
    }
}

/// Statistics of a recording.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecorderCounters {
    /// Frames written.
    pub written: u64,
    /// Frames that were not recorded because the queue was full: the file is slower than the traffic.
    pub missed: u64,
    /// Frames that could not be written.
    pub failed: u64,
}

/// Writes what [`Recorded`] ports copy, on a thread of its own. Dropping it ends the recording: queued
/// frames are written and the file is flushed. Its ports continue without recording.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Recorder {
    /// Starts recording to `writer`. At most `capacity` frames are queued, each truncated to `snap_len`
    /// bytes.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start<W: Write + Send + 'static>(
        writer: CaptureWriter<W>,
        capacity: usize,
        snap_len: usize,
    ) -> io::Result<Self> {
        let capacity = capacity.max(1);
        let shared = Arc::new(Shared {
            queue: ArrayQueue::new(capacity),
            spare: ArrayQueue::new(capacity),
            snap_len: snap_len.min(super::MAX_RECORD as usize),
            stop: AtomicBool::new(false),
            written: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || record(&theirs, writer))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Wraps a port so that its traffic is recorded. `now`: the time of its worker. `epoch_ns`: the
    /// capture time for a worker time of zero, in nanoseconds since 1970.
    pub fn wrap<P: Port>(&self, port: P, now: Now, epoch_ns: u64) -> Recorded<P> {
        Recorded { port, shared: Arc::clone(&self.shared), now, epoch_ns }
    }

    /// The statistics so far.
    pub fn counters(&self) -> RecorderCounters {
        RecorderCounters {
            written: self.shared.written.load(Ordering::Relaxed),
            missed: self.shared.missed.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
        }
    }

    /// Ends the recording and returns its statistics.
    ///
    /// # Errors
    /// The file could not be flushed.
    pub fn finish(mut self) -> io::Result<RecorderCounters> {
        self.stop()?;
        Ok(self.counters())
    }

    fn stop(&mut self) -> io::Result<()> {
        self.shared.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.thread().unpark();
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the capture thread panicked")))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Callers that need the error use `finish`.
        let _ = self.stop();
    }
}

/// The writing thread.
fn record<W: Write>(shared: &Shared, mut writer: CaptureWriter<W>) -> io::Result<()> {
    let mut unflushed = false;
    loop {
        // Read first: frames that were copied before the stop are in the queue by now.
        let stop = shared.stop.load(Ordering::Acquire);
        while let Some(copy) = shared.queue.pop() {
            let done = writer.write(copy.time_ns, &copy.frame, copy.original_len, copy.direction);
            let counter = if done.is_ok() { &shared.written } else { &shared.failed };
            counter.fetch_add(1, Ordering::Relaxed);
            shared.recycle(copy.frame);
            unflushed = true;
        }
        if stop {
            return writer.flush();
        }
        if unflushed && writer.flush().is_err() {
            shared.failed.fetch_add(1, Ordering::Relaxed);
        }
        unflushed = false;
        std::thread::park_timeout(WRITE_INTERVAL);
    }
}

/// A port whose traffic is recorded; see [`Recorder::wrap`]. Frames are recorded as they are: GSO
/// packets unsegmented, partial checksums partial.
#[derive(Debug)]
pub struct Recorded<P> {
    port: P,
    shared: Arc<Shared>,
    now: Now,
    epoch_ns: u64,
}

impl<P> Recorded<P> {
    fn time_ns(&self) -> u64 {
        self.epoch_ns.saturating_add(self.now.get().as_nanos())
    }

    fn off(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }
}

impl<P: Port> Port for Recorded<P> {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let before = batch.len();
        let received = self.port.rx(pool, batch)?;
        if !self.off() {
            let time = self.time_ns();
            for packet in &batch[before..] {
                self.shared.hand_over(self.shared.copy(packet, time, Direction::Inbound));
            }
        }
        Ok(received)
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        if self.off() {
            return self.port.tx(pool, batch);
        }
        // Copied before transmission: the port frees the packets that it sends.
        let time = self.time_ns();
        let copies: ArrayVec<Copy, BATCH> = batch
            .iter()
            .map(|packet| self.shared.copy(packet, time, Direction::Outbound))
            .collect();
        let before = batch.len();
        let result = self.port.tx(pool, batch);
        let sent = before - batch.len();
        for (n, copy) in copies.into_iter().enumerate() {
            if n < sent {
                self.shared.hand_over(copy);
            } else {
                self.shared.recycle(copy.frame);
            }
        }
        result
    }

    fn info(&self) -> &PortInfo {
        self.port.info()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.poll_fd()
    }

    fn is_always_polled(&self) -> bool {
        self.port.is_always_polled()
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }
}
