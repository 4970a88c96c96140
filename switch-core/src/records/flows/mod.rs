//! Records of connections: one when a connection opens, one when it ends, and on demand one of each connection that
//! continues.
//!
//! ```text
//! worker: opened, ended -> a bounded queue; events that find no room are counted
//! reader: queues -> FlowRecord, with the names and the verdict of the snapshot that allowed the connection
//! ```
//!
//! Made on the slow path: a hit costs nothing. The worker's side neither allocates nor locks.
//!
//! Invariants: the records of opened connections plus those left out are the opened connections. The records of ended
//! connections plus those left out plus the live connections are the opened connections, too. Packets and bytes of the
//! records plus those left out are what the connections forwarded. If a change denies a connection, its end is recorded
//! at that time. If another change allows it and a packet passes, it counts as opened again, with the same number.
//! Workers count packets of connections that are neither TCP nor translated in their own tables. So if such a
//! connection ends without having been idle before, its record comes [`LATE`](self::LATE) later.

mod answered;
mod record;

use core::fmt;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use hashbrown::HashMap;
use podswitch_wire::flow_key::proto;

use super::history::History;
use crate::engine::{EndCause, FlowEvent, FlowObserver};
use crate::flow::connection::{ConnectionInfo, ConnectionRef, Direction, OpenedAt, Pinned};
use crate::flow::table::PendingCounts;
use crate::id::Epoch;
use crate::snapshot::Snapshot;
use crate::time::Instant;

use answered::Answered;
pub use record::{Allowed, CloseReason, FlowChange, FlowRecord, NameQuestion};
use record::{Names, closed_by_ends};

/// Maximum number of events in a worker's queue.
pub(super) const QUEUE: usize = 16_384;
/// Maximum number of answered name queries in a worker's queue.
const ANSWERS: usize = 4096;
/// Number of connections whose names are remembered from their opening to their end. Other connections get the names of
/// their end.
const REMEMBERED: usize = 65_536;
/// Number of connections that a change ended and that may continue: their counts at that time are remembered. For
/// further ones that continue, these packets would be counted twice.
const STOPPED: usize = 1 << 20;
/// Ends of such connections that found no room in a queue, at one time. What was counted before further ones is counted
/// twice.
const OVERFLOWED: usize = 16_384;
/// Room in a queue that is reserved for the final end of connections.
const RESERVE: usize = QUEUE / 8;
/// Maximum number of ended connections whose records wait for counts.
const WAITING: usize = 16_384;
/// In this time each worker visits each of its flow entries: a step of a hundredth of them is due every 100 ms, and a
/// worker sleeps for at most 200 ms.
const LATE: Duration = Duration::from_secs(25);

/// Events that found no room in a queue, or arrived too late for their record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlowsLeftOut {
    /// Connections without a record of their opening.
    pub opened: u64,
    /// Connections without a record of their end.
    pub closed: u64,
    /// Packets of connections without a record of their end, and packets that arrived too late for their record.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// Answered name queries without a record.
    pub answered: u64,
}

impl FlowsLeftOut {
    /// Whether nothing was left out.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// An event as a worker records it.
enum Raw {
    Opened { connection: ConnectionRef, pinned: Pinned, opened: OpenedAt },
    Ended { info: ConnectionInfo, cause: EndCause, time: Instant, epoch: Epoch },
    Late(PendingCounts),
}

/// State shared by a worker and the reader.
struct Shared {
    events: ArrayQueue<Raw>,
    opened: AtomicU64,
    closed: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Connections with an earlier record whose end found no room. All their packets are counted above.
    overflowed: ArrayQueue<u64>,
    /// Answered name queries. A queue of their own: a flood of queries leaves connections their records.
    answers: ArrayQueue<Answered>,
    answers_left_out: AtomicU64,
}

impl Shared {
    /// Counts all packets of a connection whose end has no record.
    fn count(&self, info: &ConnectionInfo) {
        self.packets.fetch_add(info.packets.iter().sum(), Relaxed);
        self.bytes.fetch_add(info.bytes.iter().sum(), Relaxed);
    }

    fn take_left_out(&self) -> FlowsLeftOut {
        let take = |count: &AtomicU64| count.swap(0, Relaxed);
        FlowsLeftOut {
            opened: take(&self.opened),
            closed: take(&self.closed),
            packets: take(&self.packets),
            bytes: take(&self.bytes),
            answered: take(&self.answers_left_out),
        }
    }
}

/// The worker's side.
struct WorkerSide(Arc<Shared>);

impl FlowObserver for WorkerSide {
    fn event(&mut self, event: FlowEvent<'_>) {
        let raw = match event {
            FlowEvent::Opened { connection, pinned, opened } => {
                Raw::Opened { connection, pinned: *pinned, opened }
            }
            FlowEvent::Ended { info, cause, time, epoch } => {
                Raw::Ended { info, cause, time, epoch }
            }
            FlowEvent::Late(counts) => Raw::Late(counts),
            FlowEvent::Answered(query) => {
                if self.0.answers.push(Answered::of(&query)).is_err() {
                    self.0.answers_left_out.fetch_add(1, Relaxed);
                }
                return;
            }
        };
        let Err(raw) = self.0.events.push(raw) else { return };
        match raw {
            Raw::Opened { .. } => {
                self.0.opened.fetch_add(1, Relaxed);
            }
            Raw::Ended { info, .. } => {
                let id = info.connection.id();
                // Its record was made when a change ended it. The reader knows what was forwarded since.
                if info.is_recorded {
                    if self.0.overflowed.push(id).is_ok() {
                        self.0.count(&info);
                    }
                    return;
                }
                self.0.closed.fetch_add(1, Relaxed);
                self.0.count(&info);
                if info.is_resumed {
                    // Without room it is counted twice: see `OVERFLOWED`.
                    let _ = self.0.overflowed.push(id);
                }
            }
            Raw::Late(counts) => {
                self.0.packets.fetch_add(counts.packets.into(), Relaxed);
                self.0.bytes.fetch_add(counts.bytes.into(), Relaxed);
            }
        }
    }

    fn has_room(&self) -> bool {
        let events = &self.0.events;
        events.len() + RESERVE.min(events.capacity() / 2) < events.capacity()
    }
}

/// The reader of all workers' events.
#[derive(Default)]
pub struct FlowRecorder {
    workers: Vec<Arc<Shared>>,
    history: History,
    names: HashMap<u64, Names>,
    /// Packets and bytes of connections at the time when a change ended them.
    stopped: HashMap<u64, [[u64; 2]; 2]>,
    /// Records that are complete, but are delivered only with the next reading: the queue of another worker may still
    /// have the record of the opening.
    next: Vec<u64>,
    /// Records that wait for counts, with the time when the wait ends.
    waiting: VecDeque<(Instant, u64)>,
    /// The records of `next` and `waiting`.
    ended: HashMap<u64, FlowRecord>,
    /// Counts of the last reading. The end of their connection may be in a queue that was read before the end was
    /// queued.
    late: Vec<PendingCounts>,
    left_out: FlowsLeftOut,
    /// Number of records of answered name queries.
    answered: u64,
}

impl fmt::Debug for FlowRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowRecorder").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl FlowRecorder {
    /// A recorder without workers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The observer for one more worker
    /// ([`ControlPlane::observe_flows`](crate::control::ControlPlane::observe_flows) calls this for each worker).
    pub fn observer(&mut self) -> Box<dyn FlowObserver> {
        self.observer_with(QUEUE)
    }

    pub(super) fn observer_with(&mut self, queue: usize) -> Box<dyn FlowObserver> {
        let zero = || AtomicU64::new(0);
        let shared = Arc::new(Shared {
            events: ArrayQueue::new(queue),
            opened: zero(),
            closed: zero(),
            packets: zero(),
            bytes: zero(),
            overflowed: ArrayQueue::new(OVERFLOWED),
            answers: ArrayQueue::new(ANSWERS),
            answers_left_out: zero(),
        });
        self.workers.push(Arc::clone(&shared));
        Box::new(WorkerSide(shared))
    }

    /// Remembers the names of a published snapshot until its records are read. Call it for each.
    pub fn published(&mut self, snapshot: Arc<Snapshot>) {
        self.history.published(snapshot);
    }

    /// Whether a queue is so full that it should be read soon.
    pub fn is_busy(&self) -> bool {
        self.workers.iter().any(|shared| {
            shared.events.len() > shared.events.capacity() / 4 || shared.answers.len() > ANSWERS / 4
        })
    }

    /// Reads the events that have arrived. `now`: the time on the switch's clock.
    pub fn read(&mut self, now: Instant, mut each: impl FnMut(FlowRecord)) {
        let complete = std::mem::take(&mut self.next);
        let late = std::mem::take(&mut self.late);
        // Before the queues: the record that is subtracted below was queued earlier, maybe by another worker.
        let overflowed: Vec<u64> =
            self.workers.iter().flat_map(|w| take_all(&w.overflowed)).collect();
        for worker in 0..self.workers.len() {
            let shared = Arc::clone(&self.workers[worker]);
            // Reads only the events that are in the queue now: a worker may be faster than this loop.
            for _ in 0..shared.events.len() {
                let Some(raw) = shared.events.pop() else { break };
                self.take(raw, &mut each);
            }
            for _ in 0..shared.answers.len() {
                let Some(answered) = shared.answers.pop() else { break };
                self.answered += 1;
                // Connections count upwards from zero.
                let id = u64::MAX - self.answered;
                each(answered.record(id, self.snapshot(answered.epoch())));
            }
            let left = shared.take_left_out();
            self.left_out.opened += left.opened;
            self.left_out.closed += left.closed;
            self.left_out.packets += left.packets;
            self.left_out.bytes += left.bytes;
            self.left_out.answered += left.answered;
        }
        overflowed.into_iter().for_each(|id| self.subtract_recorded(id));
        late.into_iter().for_each(|counts| self.add(counts));
        for id in complete {
            self.ended.remove(&id).into_iter().for_each(&mut each);
        }
        while let Some(&(until, id)) = self.waiting.front()
            && (until <= now || self.waiting.len() > WAITING)
        {
            self.waiting.pop_front();
            self.ended.remove(&id).into_iter().for_each(&mut each);
        }
        self.history.end_reading();
    }

    /// Records of the connections that continue. `alive`: all live connections; those without a packet since `since`
    /// are skipped.
    pub fn update(
        &self,
        alive: &[ConnectionInfo],
        since: Instant,
        now: Instant,
        mut each: impl FnMut(FlowRecord),
    ) {
        let is_listed = |info: &&ConnectionInfo| {
            u64::from(info.last_seen) >= since.as_secs() && !info.is_recorded
        };
        for info in alive.iter().filter(is_listed) {
            let names = self.names_of(info);
            each(names.counted(FlowChange::Updated, &self.since_stopped(info), now));
        }
    }

    /// The last records, after the workers have stopped: of all ended connections that wait, and of the connections
    /// that are still `alive`.
    pub fn finish(
        &mut self,
        alive: &[ConnectionInfo],
        now: Instant,
        mut each: impl FnMut(FlowRecord),
    ) {
        // Reads twice: late counts are added to the records of the first reading.
        self.read(now, &mut each);
        self.read(now + LATE, &mut each);
        for info in alive {
            let info = &self.since_stopped(info);
            if info.is_recorded {
                self.leave_out(info);
                continue;
            }
            let names = self.names_of(info);
            let reason = closed_by_ends(info).unwrap_or(CloseReason::Shutdown);
            each(names.counted(FlowChange::Closed(reason), info, now));
        }
    }

    /// The events left out since the last call.
    pub fn take_left_out(&mut self) -> FlowsLeftOut {
        std::mem::take(&mut self.left_out)
    }

    fn take(&mut self, raw: Raw, each: &mut impl FnMut(FlowRecord)) {
        match raw {
            Raw::Opened { connection, pinned, opened } => {
                let names = Names::of(&pinned, self.snapshot(opened.epoch));
                let id = connection.id();
                // A change had ended it, and another one lets it continue.
                if let Some(record) = self.ended.remove(&id) {
                    self.waiting.retain(|(_, waiting)| *waiting != id);
                    each(record);
                }
                each(names.opened(id, &pinned, opened));
                if self.names.len() < REMEMBERED {
                    self.names.insert(id, names);
                }
            }
            Raw::Ended { info, cause, time, epoch } => {
                let id = info.connection.id();
                let counts = [info.packets, info.bytes];
                let info = self.since_stopped(&info);
                self.stopped.remove(&id);
                if info.is_recorded {
                    self.leave_out(&info);
                    return;
                }
                if matches!(cause, EndCause::PolicyChanged | EndCause::PodDeleted)
                    && self.stopped.len() < STOPPED
                {
                    self.stopped.insert(id, counts);
                }
                let names = self.names_of(&info);
                self.names.remove(&id);
                let reason = names.close_reason(&info, cause, self.snapshot(epoch));
                let record = names.counted(FlowChange::Closed(reason), &info, time);
                match may_be_late(&info, time) {
                    true => self.waiting.push_back((time + LATE, id)),
                    false => self.next.push(id),
                }
                // It continued, and ended again, before its first record was complete.
                self.ended.insert(id, record).into_iter().for_each(each);
            }
            Raw::Late(counts) => self.late.push(counts),
        }
    }

    /// Takes what the earlier record of a connection has out of what was left out: its end found no room in a queue, and
    /// all its packets were counted there.
    fn subtract_recorded(&mut self, id: u64) {
        let Some([packets, bytes]) = self.stopped.remove(&id) else { return };
        self.names.remove(&id);
        self.left_out.packets = self.left_out.packets.saturating_sub(packets.iter().sum());
        self.left_out.bytes = self.left_out.bytes.saturating_sub(bytes.iter().sum());
    }

    /// Adds counts to the record of a connection.
    fn add(&mut self, counts: PendingCounts) {
        let PendingCounts { connection, packets, bytes } = counts;
        match self.ended.get_mut(&connection.id()) {
            Some(record) => {
                let direction = usize::from(connection.direction() == Direction::Reply);
                record.packets[direction] += u64::from(packets);
                record.bytes[direction] += u64::from(bytes);
            }
            None => {
                self.left_out.packets += u64::from(packets);
                self.left_out.bytes += u64::from(bytes);
            }
        }
    }

    /// A connection with its counts since a change ended it, if that happened.
    fn since_stopped(&self, info: &ConnectionInfo) -> ConnectionInfo {
        let mut info = info.clone();
        let known = self.stopped.get(&info.connection.id()).copied();
        let stopped = match info.is_recorded {
            true => Some(known.unwrap_or([info.packets, info.bytes])),
            false => known,
        };
        if let Some([packets, bytes]) = stopped {
            for direction in [0, 1] {
                info.packets[direction] =
                    info.packets[direction].saturating_sub(packets[direction]);
                info.bytes[direction] = info.bytes[direction].saturating_sub(bytes[direction]);
            }
        }
        info
    }

    /// Counts packets that passed after the end of their connection was recorded, through a worker that had not yet
    /// seen the change.
    fn leave_out(&mut self, info: &ConnectionInfo) {
        self.left_out.packets += info.packets.iter().sum::<u64>();
        self.left_out.bytes += info.bytes.iter().sum::<u64>();
    }

    fn names_of(&self, info: &ConnectionInfo) -> Names {
        match self.names.get(&info.connection.id()) {
            Some(names) => names.clone(),
            None => Names::of(&info.pinned, self.snapshot(info.opened.epoch)),
        }
    }

    /// The snapshot of an epoch, or the newest one if it is not known.
    fn snapshot(&self, epoch: Epoch) -> Option<&Snapshot> {
        self.history.get(epoch).or_else(|| self.history.newest())
    }
}

/// What is in a queue now. A worker may go on adding to it.
fn take_all(queue: &ArrayQueue<u64>) -> impl Iterator<Item = u64> {
    (0..queue.len()).map_while(|_| queue.pop())
}

/// Whether workers may have counts of an ended connection in their flow entries.
fn may_be_late(info: &ConnectionInfo, ended: Instant) -> bool {
    let silent = ended.since(Instant::from_secs(info.last_seen.into()));
    info.pinned.original.proto != proto::TCP && !info.pinned.is_translated() && silent < LATE
}
