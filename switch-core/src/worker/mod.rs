//! A worker: one thread with one engine, its queues of all ports, and the poll loop.
//!
//! Polls while there is traffic, and sleeps in the kernel while there is none. Tests and `replay` poll
//! a worker by hand, with virtual time.

mod handle;
mod load;
mod pauses;
mod sleep;
mod transmit;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};

pub(crate) use handle::Command;
pub use handle::WorkerHandle;
pub use load::{BURST_CLASSES, DURATION_CLASSES, Load, LoadMeter};
pub use pauses::{Activity, Pause};
pub use sleep::Waker;

use crate::engine::{BurstContext, Engine, Outputs};
use crate::id::PortId;
use crate::packet::{Batch, Packet, Pool, PoolConfig};
use crate::port::Port;
use crate::snapshot::Snapshot;
use crate::time::{Clock, Instant};
use sleep::Sleeper;

/// How long a worker without traffic polls (and yields) before it sleeps: long enough for a reply
/// that is on its way, short enough to leave the core to the pods.
const SPIN_BEFORE_SLEEP: Duration = Duration::from_micros(30);
/// Longest sleep while there is state that can time out.
const MAX_SLEEP_ACTIVE: Duration = Duration::from_millis(200);
/// Longest sleep while there is none.
const MAX_SLEEP_IDLE: Duration = Duration::from_secs(2);
/// Up to this many ports are polled in every round without asking the kernel first.
const POLL_ALL: usize = 4;
/// Longest sleep while there are ports that cannot wake the worker.
const MAX_SLEEP_UNWAKEABLE: Duration = Duration::from_micros(100);

/// A port in the poll loop.
struct WorkerPort {
    id: PortId,
    port: Box<dyn Port>,
    /// Polled in every round.
    always: bool,
    /// The kernel reports it as readable, or it had frames in the last round.
    ready: bool,
}

/// See the module's description.
pub struct Worker {
    engine: Engine,
    /// Index of each port in `ports`, by its number.
    index: Vec<Option<u16>>,
    ports: Vec<WorkerPort>,
    pool: Pool,
    out: Outputs,
    batch: Batch,
    /// Packets that the last batch had no room for after segmentation.
    finished: VecDeque<Packet>,
    snapshots: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    handle: Arc<WorkerHandle>,
    sleeper: Sleeper,
    /// Whether the kernel reports which ports are readable, so that not every port is polled.
    polls_ready: bool,
    clock: Clock,
    /// Time of the latest poll.
    now: Instant,
    /// The activities of the latest poll.
    activity: Activity,
    /// Whether receiving from the ports is stopped.
    held: bool,
    stopped: bool,
}

impl core::fmt::Debug for Worker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Worker").field("ports", &self.ports.len()).finish_non_exhaustive()
    }
}

impl Worker {
    pub(crate) fn new(
        engine: Engine,
        snapshots: Arc<ArcSwap<Snapshot>>,
        pool: PoolConfig,
        clock: Clock,
    ) -> io::Result<Self> {
        let sleeper = Sleeper::new()?;
        let handle = WorkerHandle::new(engine.counters().clone(), sleeper.waker());
        Ok(Self {
            engine,
            index: Vec::new(),
            ports: Vec::new(),
            pool: Pool::new(pool),
            out: Outputs::new(),
            batch: Batch::new(),
            finished: VecDeque::new(),
            snapshots: Cache::new(snapshots),
            handle: Arc::new(handle),
            sleeper,
            polls_ready: false,
            clock,
            now: Instant::ZERO,
            activity: Activity::default(),
            held: false,
            stopped: false,
        })
    }

    /// The side that other threads use.
    pub fn handle(&self) -> &Arc<WorkerHandle> {
        &self.handle
    }

    /// The engine, for inspection of its tables.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The clock of [`run`](Self::run), which all workers of the switch share.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The worker's packet buffers, to inspect how many are in use.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// One round: receives from every port once, and sends all resulting frames. Returns the number of
    /// frames received.
    pub fn poll(&mut self, now: Instant) -> usize {
        self.now = now;
        let mut activity = Activity::default();
        activity.add_if(self.handle_commands(), Activity::COMMANDS);
        let snapshot = Arc::clone(self.snapshots.load());
        activity.add_if(self.handle.acknowledge(snapshot.epoch), Activity::PUBLISH);
        if self.held {
            self.activity = activity;
            self.finish_bursts(now, &snapshot);
            return 0;
        }
        let mut received = 0;
        self.poll_ready();
        for at in 0..self.ports.len() {
            let Some(port) = self.ports.get(at) else { break };
            if port.always || port.ready {
                received += self.poll_port(now, &snapshot, at);
            }
        }
        let mut cx =
            BurstContext { snapshot: &snapshot, now, pool: &mut self.pool, out: &mut self.out };
        activity.add_if(self.engine.poll(&mut cx), Activity::SWEEP);
        self.flush(now);
        if let Some(capture) = self.engine.capture() {
            capture.finish();
        }
        activity.add_if(received > 0, Activity::FRAMES);
        activity.add_if(self.engine.flows().is_growing(), Activity::GROWTH);
        self.activity = activity;
        received
    }

    /// Receives from one port once, and sends the resulting frames. Returns the number of frames received.
    #[inline]
    fn poll_port(&mut self, now: Instant, snapshot: &Arc<Snapshot>, at: usize) -> usize {
        let Some(port) = self.ports.get_mut(at) else { return 0 };
        let id = port.id;
        let result = port.port.rx(&mut self.pool, &mut self.batch);
        port.ready = matches!(result, Ok(1..));
        let lost = port.port.take_lost();
        if lost > 0 {
            self.engine.count_rx_lost(now, id, lost);
        }
        let mut received = 0;
        match result {
            Ok(0) => return 0,
            Ok(count) => {
                received = count;
                self.handle.load.burst(count);
            }
            Err(error) => self.port_failed(id, error),
        }
        if let Some(capture) = self.engine.capture() {
            capture.received(snapshot, now, id, &mut self.batch);
        }
        let mut cx = BurstContext { snapshot, now, pool: &mut self.pool, out: &mut self.out };
        self.engine.process(&mut cx, id, &mut self.batch);
        self.flush(now);
        received
    }

    /// While frames are left in the devices: receives those that were taken from them already, drops fragments that wait for
    /// others, and says when there are none left, with all counts up to date.
    fn finish_bursts(&mut self, now: Instant, snapshot: &Arc<Snapshot>) {
        if self.handle.is_held() {
            return;
        }
        for at in 0..self.ports.len() {
            while self.ports.get_mut(at).is_some_and(|port| port.port.hold()) {
                if self.poll_port(now, snapshot, at) == 0 {
                    break;
                }
            }
        }
        // Another process does not get them.
        self.finish(now);
        self.engine.hand_over();
        self.handle.set_held(true);
    }

    /// With many ports that need a system call each to receive, one system call finds the readable
    /// ones.
    fn poll_ready(&mut self) {
        if self.polls_ready {
            let (ports, index) = (&mut self.ports, &self.index);
            self.sleeper.ready(|id| {
                let at = index.get(id.index()).copied().flatten();
                if let Some(port) = at.and_then(|at| ports.get_mut(usize::from(at))) {
                    port.ready = true;
                }
            });
        }
    }

    /// Executes commands. Returns whether there were any.
    fn handle_commands(&mut self) -> bool {
        let handle = Arc::clone(&self.handle);
        handle.take_commands(|command| match command {
            Command::Add(id, port) => self.add(id, port),
            Command::Remove(id) => self.remove(id),
            Command::Send(id, frame) => self.send_created(id, &frame),
            Command::Observe(observer) => self.engine.set_observer(observer),
            Command::Collect => self.engine.collect(),
            Command::Capture(tap) => self.engine.start_capture(tap),
            Command::EndCapture(id) => self.engine.end_capture(id),
            Command::ObserveFlows(observer) => self.engine.set_flow_observer(observer),
            Command::Hold(hold) => {
                self.held = hold;
                self.handle.set_held(false);
                self.reindex();
            }
            Command::Stop => self.stopped = true,
        })
    }

    /// Adds a port to the poll loop.
    fn add(&mut self, id: PortId, port: Box<dyn Port>) {
        self.remove(id);
        self.ports.push(WorkerPort { id, port, always: true, ready: false });
        self.reindex();
    }

    /// Removes a port, and ends all state that belongs to it.
    fn remove(&mut self, id: PortId) {
        let before = self.ports.len();
        self.ports.retain(|p| p.id != id);
        if self.ports.len() != before {
            let snapshot = Arc::clone(self.snapshots.load());
            let (pool, out) = (&mut self.pool, &mut self.out);
            let mut cx = BurstContext { snapshot: &snapshot, now: self.now, pool, out };
            self.engine.forget_port(&mut cx, id);
        }
        self.reindex();
    }

    /// Transmits a frame that the control plane created.
    fn send_created(&mut self, id: PortId, frame: &[u8]) {
        let snapshot = Arc::clone(self.snapshots.load());
        let (pool, out) = (&mut self.pool, &mut self.out);
        let mut cx = BurstContext { snapshot: &snapshot, now: self.now, pool, out };
        self.engine.send_created(&mut cx, id, frame);
        self.flush(self.now);
    }

    /// Recomputes what depends on the list of ports.
    fn reindex(&mut self) {
        self.index.clear();
        for (at, WorkerPort { id, .. }) in self.ports.iter().enumerate() {
            if self.index.len() <= id.index() {
                self.index.resize(id.index() + 1, None);
            }
            self.index[id.index()] = u16::try_from(at).ok();
        }
        let costly = |p: &WorkerPort| p.port.poll_fd().is_some() && !p.port.is_always_polled();
        self.polls_ready = self.ports.iter().filter(|p| costly(p)).count() > POLL_ALL;
        for port in &mut self.ports {
            port.always = !self.polls_ready || !costly(port);
        }
        // Frames that are left in the devices wake nobody.
        let watched = self.ports.iter().filter(|_| !self.held);
        self.sleeper.watch(watched.map(|p| (p.id, p.port.poll_fd())));
    }

    /// Drops held fragments, at the end of the input.
    pub fn finish(&mut self, now: Instant) {
        let snapshot = Arc::clone(self.snapshots.load());
        let mut cx =
            BurstContext { snapshot: &snapshot, now, pool: &mut self.pool, out: &mut self.out };
        self.engine.finish(&mut cx);
        self.flush(now);
    }

    /// Polls until a command stops it. When idle, it continues to poll for a moment and then sleeps until a port or the
    /// control plane wakes it.
    pub fn run(mut self) {
        let clock = self.clock;
        let mut quiet_since = None;
        // Start of the poll before, if there was no sleep since.
        let mut before = None;
        while !self.stopped {
            let now = clock.now();
            if let Some(before) = before.replace(now) {
                self.handle.load.pause(before, now, self.activity);
            }
            if self.poll(now) > 0 {
                quiet_since = None;
                self.handle.load.busy(now, clock.now());
                continue;
            }
            self.handle.load.idle(now);
            let since = *quiet_since.get_or_insert(now);
            if now.since(since) < SPIN_BEFORE_SLEEP {
                std::thread::yield_now();
                continue;
            }
            self.sleep();
            quiet_since = None;
            before = None;
        }
        self.engine.hand_over();
    }

    fn sleep(&mut self) {
        // Every port is armed to wake this worker before the last check for frames. Otherwise a frame
        // that arrives in between would not be noticed.
        let ready = !self.held && self.ports.iter_mut().any(|p| !p.port.arm());
        if ready || self.handle.has_commands() {
            return;
        }
        let longest = if self.engine.is_idle() { MAX_SLEEP_IDLE } else { MAX_SLEEP_ACTIVE };
        let pollable = self.sleeper.all_pollable();
        let longest = if pollable { longest } else { MAX_SLEEP_UNWAKEABLE };
        let from = self.clock.now();
        self.handle.load.sleeps(from);
        let woken = self.sleeper.sleep(longest);
        self.handle.load.slept(from, self.clock.now(), woken);
    }
}
