//! The side of a worker that other threads use: commands to it, and its reports.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam::queue::SegQueue;

use super::load::LoadMeter;
use super::sleep::Waker;
use crate::engine::{FlowObserver, Observer, Tap};
use crate::id::{Epoch, PortId};
use crate::port::Port;
use crate::stats::WorkerCounters;

/// A command to a worker, executed between two polls.
pub(crate) enum Command {
    /// Adds a port to the poll loop.
    Add(PortId, Box<dyn Port>),
    /// Removes a port.
    Remove(PortId),
    /// Transmits a frame by a port.
    Send(PortId, Box<[u8]>),
    /// Sets the observer of drops.
    Observe(Option<Box<dyn Observer>>),
    /// Makes the observer of drops deliver what it collected.
    Collect,
    /// Begins a capture.
    Capture(Box<dyn Tap>),
    /// Ends this capture, if it still runs.
    EndCapture(u64),
    /// Sets the observer of connections.
    ObserveFlows(Option<Box<dyn FlowObserver>>),
    /// Stops or resumes receiving from the ports.
    Hold(bool),
    /// Ends the thread.
    Stop,
}

impl core::fmt::Debug for Command {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Add(..) => "Add",
            Self::Remove(_) => "Remove",
            Self::Send(..) => "Send",
            Self::Observe(_) => "Observe",
            Self::Collect => "Collect",
            Self::Capture(_) => "Capture",
            Self::EndCapture(_) => "EndCapture",
            Self::ObserveFlows(_) => "ObserveFlows",
            Self::Hold(_) => "Hold",
            Self::Stop => "Stop",
        })
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct WorkerHandle {
    /// The worker's counters.
    pub counters: Arc<WorkerCounters>,
    /// The worker's load.
    pub load: Arc<LoadMeter>,
    commands: SegQueue<Command>,
    /// Whether there may be commands, so that a poll without commands does not access the queue.
    has_commands: AtomicBool,
    acknowledged: AtomicU32,
    /// Frames are left in the devices.
    held: AtomicBool,
    failed: SegQueue<(PortId, io::Error)>,
    waker: Waker,
}

impl WorkerHandle {
    pub(super) fn new(counters: Arc<WorkerCounters>, waker: Waker) -> Self {
        Self {
            counters,
            load: Arc::default(),
            commands: SegQueue::new(),
            has_commands: AtomicBool::new(false),
            acknowledged: AtomicU32::new(0),
            held: AtomicBool::new(false),
            failed: SegQueue::new(),
            waker,
        }
    }

    pub(crate) fn send(&self, command: Command) {
        self.commands.push(command);
        self.has_commands.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// The latest epoch that the worker has acknowledged: all packets that it receives from now on
    /// are evaluated with this snapshot or a newer one.
    pub fn acknowledged(&self) -> Epoch {
        Epoch(self.acknowledged.load(Ordering::Acquire))
    }

    /// The next port that failed and was removed, with the error.
    pub fn next_failure(&self) -> Option<(PortId, io::Error)> {
        self.failed.pop()
    }

    /// Acknowledges a snapshot. Returns whether it differs from the last acknowledged one.
    pub(super) fn acknowledge(&self, epoch: Epoch) -> bool {
        // Only the worker writes it.
        let is_new = self.acknowledged.load(Ordering::Relaxed) != epoch.0;
        self.acknowledged.store(epoch.0, Ordering::Release);
        is_new
    }

    /// Whether the worker leaves frames in the devices, and has none of them.
    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    pub(super) fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    pub(super) fn report_failure(&self, port: PortId, error: io::Error) {
        self.failed.push((port, error));
    }

    pub(super) fn has_commands(&self) -> bool {
        self.has_commands.load(Ordering::Acquire)
    }

    /// Takes all commands. Calls `each` for each of them, in order. Returns whether there may have been
    /// any.
    pub(super) fn take_commands(&self, mut each: impl FnMut(Command)) -> bool {
        if !self.has_commands.swap(false, Ordering::Acquire) {
            return false;
        }
        while let Some(command) = self.commands.pop() {
            each(command);
        }
        true
    }
}
