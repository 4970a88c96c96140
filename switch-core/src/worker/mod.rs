//! A worker: one thread, one engine, its ends of all ports, and the poll loop.
//!
//! Busy while there is traffic; asleep in the kernel when there is none. A worker can also be
//! polled by hand, with virtual time, for tests and `replay`.

mod load;
mod sleep;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use crossbeam::queue::SegQueue;

pub use load::{Load, LoadMeter};
pub use sleep::Waker;

use crate::action::DropReason;
use crate::engine::{Engine, Observer, Outputs, Trace, Turn};
use crate::id::{Epoch, PortId};
use crate::packet::{BATCH, Batch, Origin, Packet, Pool, PoolConfig, fit, is_fit};
use crate::port::{Offloads, Port};
use crate::snapshot::Snapshot;
use crate::stats::WorkerCounters;
use crate::time::{Clock, Instant};
use sleep::Sleeper;

/// How long a worker spins (and yields) without traffic before it sleeps: long enough for an
/// answer that is on its way, short enough to leave the core to the pods (DESIGN §4).
const SPIN: Duration = Duration::from_micros(30);
/// The longest sleep while there is state to look after, and while there is none.
const NAP: Duration = Duration::from_millis(200);
const NIGHT: Duration = Duration::from_secs(2);
/// Up to this many ports are simply all received from in every round.
const LOOK_AT_ALL: usize = 4;
/// Longest sleep beside ports that cannot wake the worker.
const POLL_ONLY: Duration = Duration::from_micros(100);

/// What others can ask of a worker, between two polls.
pub(crate) enum Command {
    /// Takes a port into the loop.
    Add(PortId, Box<dyn Port>),
    /// Lets a port go.
    Remove(PortId),
    /// Has an observer told of drops.
    Observe(Option<Box<dyn Observer>>),
    /// Ends the thread.
    Stop,
}

/// The side of a worker that others see.
#[derive(Debug)]
pub struct WorkerHandle {
    /// The worker's counters.
    pub counters: Arc<WorkerCounters>,
    /// Its load.
    pub load: Arc<LoadMeter>,
    commands: SegQueue<Command>,
    acknowledged: AtomicU32,
    /// Ports that failed and were let go.
    failed: SegQueue<(PortId, io::Error)>,
    waker: Waker,
    commanded: AtomicBool,
}

impl core::fmt::Debug for Command {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Add(..) => "Add",
            Self::Remove(_) => "Remove",
            Self::Observe(_) => "Observe",
            Self::Stop => "Stop",
        })
    }
}

impl WorkerHandle {
    pub(crate) fn send(&self, command: Command) {
        self.commands.push(command);
        self.commanded.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// The newest snapshot that every packet of this worker is judged by from now on.
    pub fn acknowledged(&self) -> Epoch {
        Epoch(self.acknowledged.load(Ordering::Acquire))
    }

    /// The next port that failed and was let go, with the reason.
    pub fn next_failure(&self) -> Option<(PortId, io::Error)> {
        self.failed.pop()
    }
}

struct WorkerPort {
    id: PortId,
    port: Box<dyn Port>,
    /// Looked at in every round.
    always: bool,
    /// The kernel says that there is something, or there was in the round before.
    ready: bool,
}

fn total_bytes(batch: &Batch) -> u64 {
    batch.iter().map(|packet| packet.len() as u64).sum()
}

/// See the module's description.
pub struct Worker {
    engine: Engine,
    /// Where each port stands in `ports`, by its number.
    index: Vec<Option<u16>>,
    ports: Vec<WorkerPort>,
    pool: Pool,
    out: Outputs,
    batch: Batch,
    /// What finishing made and a burst had no room for.
    finished: VecDeque<Packet>,
    snapshots: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    handle: Arc<WorkerHandle>,
    sleeper: Sleeper,
    /// Whether the kernel is asked which ports have something, instead of looking at each.
    asked: bool,
    clock: Clock,
    /// Time of the latest poll.
    now: Instant,
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
        let handle = WorkerHandle {
            counters: engine.counters().clone(),
            load: Arc::default(),
            commands: SegQueue::new(),
            acknowledged: AtomicU32::new(0),
            failed: SegQueue::new(),
            waker: sleeper.waker(),
            commanded: AtomicBool::new(false),
        };
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
            asked: false,
            clock,
            now: Instant::ZERO,
            stopped: false,
        })
    }

    /// The side that others see.
    pub fn handle(&self) -> &Arc<WorkerHandle> {
        &self.handle
    }

    /// The engine, for a look at its tables.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The clock that [`run`](Self::run) polls by: the switch's own.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The worker's buffers, for a look at how many are out.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// One round: every port received from once, everything it led to sent. Returns how many
    /// frames came in.
    pub fn poll(&mut self, now: Instant) -> usize {
        self.now = now;
        self.obey();
        let snapshot = Arc::clone(self.snapshots.load());
        self.handle.acknowledged.store(snapshot.epoch.0, Ordering::Release);
        let mut received = 0;
        self.ask_which();
        for at in 0..self.ports.len() {
            let Some(port) = self.ports.get_mut(at) else { break };
            if !(port.always || port.ready) {
                continue;
            }
            let id = port.id;
            let result = port.port.rx(&mut self.pool, &mut self.batch);
            port.ready = matches!(result, Ok(1..));
            let lost = port.port.take_lost();
            if lost > 0 {
                self.engine.lost_on_arrival(now, id, lost);
            }
            match result {
                Ok(0) => continue,
                Ok(count) => {
                    received += count;
                    self.handle.load.burst(count);
                }
                Err(error) => self.failed(id, error),
            }
            let mut turn =
                Turn { snapshot: &snapshot, now, pool: &mut self.pool, out: &mut self.out };
            self.engine.process(&mut turn, id, &mut self.batch);
            self.flush(now);
        }
        let mut turn = Turn { snapshot: &snapshot, now, pool: &mut self.pool, out: &mut self.out };
        self.engine.poll(&mut turn);
        self.flush(now);
        received
    }

    /// Where there are many ports whose reception costs a system call each, one call asks the
    /// kernel which have something.
    fn ask_which(&mut self) {
        if self.asked {
            let (ports, index) = (&mut self.ports, &self.index);
            self.sleeper.ready(|id| {
                let at = index.get(id.index()).copied().flatten();
                if let Some(port) = at.and_then(|at| ports.get_mut(usize::from(at))) {
                    port.ready = true;
                }
            });
        }
    }

    /// Sends what waits, port by port. What a port does not take is counted and freed.
    fn flush(&mut self, now: Instant) {
        let mut out = std::mem::take(&mut self.out);
        out.flush(|id, batch| self.transmit(now, id, batch));
        self.out = out;
    }

    fn transmit(&mut self, now: Instant, id: PortId, batch: &mut Batch) {
        let at = self.index.get(id.index()).copied().flatten();
        let Some(WorkerPort { port, .. }) = at.and_then(|at| self.ports.get_mut(usize::from(at)))
        else {
            return self.lose(now, DropReason::PortDown, batch);
        };
        let offloads = port.info().offloads;
        let (mut bytes, mut unfinished) = (0, false);
        for packet in batch.iter() {
            bytes += packet.len() as u64;
            unfinished |= packet.offload.is_unfinished();
        }
        if unfinished && !batch.iter().all(|p| is_fit(p, offloads)) {
            self.finish_batch(now, offloads, batch);
            bytes = total_bytes(batch);
        }
        self.send(now, id, batch, bytes);
    }

    /// `bytes`: bytes of all in the batch.
    fn send(&mut self, now: Instant, id: PortId, batch: &mut Batch, mut bytes: u64) {
        let at = self.index.get(id.index()).copied().flatten();
        let Some(at) = at.map(usize::from).filter(|&at| at < self.ports.len()) else { return };
        loop {
            let frames = batch.len();
            let result = self.ports[at].port.tx(&mut self.pool, batch);
            let left = total_bytes(batch);
            if let Some(counters) = self.engine.counters().port(id) {
                counters.tx_frames.add((frames - batch.len()) as u64);
                counters.tx_bytes.add(bytes - left);
            }
            let reason = if result.is_err() { DropReason::TxFailed } else { DropReason::TxFull };
            if !batch.is_empty() {
                self.lose(now, reason, batch);
            }
            if let Err(error) = result {
                while let Some(packet) = self.finished.pop_front() {
                    self.engine.not_sent(now, Trace::from(&packet), reason);
                    self.pool.free(packet);
                }
                return self.failed(id, error);
            }
            if self.finished.is_empty() {
                return;
            }
            let count = self.finished.len().min(BATCH);
            batch.extend(self.finished.drain(..count));
            bytes = total_bytes(batch);
        }
    }

    /// Finishes checksums and cuts super-frames that the port does not take as they are: here,
    /// at the exit that needs it. What `batch` has no room for waits in `finished`.
    fn finish_batch(&mut self, now: Instant, offloads: Offloads, batch: &mut Batch) {
        let mut finished = std::mem::take(&mut self.finished);
        for packet in batch.drain(..) {
            let trace = Trace::from(&packet);
            let mut pieces = 0u64;
            let cut = fit(packet, offloads, &mut self.pool, &mut |_, mut piece| {
                piece.ingress = trace.ingress;
                piece.mark = trace.mark;
                piece.origin = if pieces == 0 { trace.origin } else { Origin::Copy };
                pieces += 1;
                finished.push_back(piece);
            });
            self.engine.counters().copies.add(pieces.saturating_sub(1));
            match cut {
                Err(error) if pieces == 0 => self.engine.not_sent(now, trace, error.reason),
                // The frame went out in part: what is missing is a copy less.
                Err(_) => self.engine.counters().originated_lost.add(1),
                Ok(_) => {}
            }
        }
        let count = finished.len().min(BATCH);
        batch.extend(finished.drain(..count));
        self.finished = finished;
    }

    fn lose(&mut self, now: Instant, reason: DropReason, batch: &mut Batch) {
        for packet in batch.drain(..) {
            self.engine.not_sent(now, Trace::from(&packet), reason);
            self.pool.free(packet);
        }
    }

    fn failed(&mut self, id: PortId, error: io::Error) {
        // A device that went away will not come back under this descriptor; anything else may
        // pass, and the counters show it.
        if error.kind() == io::ErrorKind::NotConnected {
            self.remove(id);
            self.handle.failed.push((id, error));
        }
    }

    fn obey(&mut self) {
        if !self.handle.commanded.swap(false, Ordering::Acquire) {
            return;
        }
        while let Some(command) = self.handle.commands.pop() {
            match command {
                Command::Add(id, port) => self.add(id, port),
                Command::Remove(id) => self.remove(id),
                Command::Observe(observer) => self.engine.set_observer(observer),
                Command::Stop => self.stopped = true,
            }
        }
    }

    fn add(&mut self, id: PortId, port: Box<dyn Port>) {
        self.remove(id);
        self.ports.push(WorkerPort { id, port, always: true, ready: false });
        self.reindex();
    }

    fn remove(&mut self, id: PortId) {
        let before = self.ports.len();
        self.ports.retain(|p| p.id != id);
        if self.ports.len() != before {
            let snapshot = Arc::clone(self.snapshots.load());
            let (pool, out) = (&mut self.pool, &mut self.out);
            let mut turn = Turn { snapshot: &snapshot, now: self.now, pool, out };
            self.engine.forget_port(&mut turn, id);
        }
        self.reindex();
    }

    fn reindex(&mut self) {
        self.index.clear();
        for (at, WorkerPort { id, .. }) in self.ports.iter().enumerate() {
            if self.index.len() <= id.index() {
                self.index.resize(id.index() + 1, None);
            }
            self.index[id.index()] = u16::try_from(at).ok();
        }
        let costly = |p: &WorkerPort| p.port.poll_fd().is_some() && !p.port.is_looked_at();
        self.asked = self.ports.iter().filter(|p| costly(p)).count() > LOOK_AT_ALL;
        for port in &mut self.ports {
            port.always = !self.asked || !costly(port);
        }
        self.sleeper.watch(self.ports.iter().map(|p| (p.id, p.port.poll_fd())));
    }

    /// Drops what is held, at the end of the input.
    pub fn finish(&mut self, now: Instant) {
        let snapshot = Arc::clone(self.snapshots.load());
        let mut turn = Turn { snapshot: &snapshot, now, pool: &mut self.pool, out: &mut self.out };
        self.engine.finish(&mut turn);
        self.flush(now);
    }

    /// Polls until told to stop. Spins a moment when idle, then sleeps until a port or the
    /// control plane wakes it.
    pub fn run(mut self) {
        let clock = self.clock;
        let mut quiet_since = None;
        while !self.stopped {
            let now = clock.now();
            if self.poll(now) > 0 {
                quiet_since = None;
                self.handle.load.busy(now, clock.now());
                continue;
            }
            self.handle.load.idle(now);
            let since = *quiet_since.get_or_insert(now);
            if now.since(since) < SPIN {
                std::thread::yield_now();
                continue;
            }
            self.sleep();
            quiet_since = None;
        }
    }

    fn sleep(&mut self) {
        // Each port is asked to wake us before we look the last time, or a frame that comes in
        // between would wait for the next.
        let ready = self.ports.iter_mut().any(|p| !p.port.arm());
        if ready || self.handle.commanded.load(Ordering::Acquire) {
            return;
        }
        let longest = if self.engine.is_idle() { NIGHT } else { NAP };
        let pollable = self.sleeper.all_pollable();
        self.sleeper.sleep(if pollable { longest } else { POLL_ONLY });
    }
}
