//! The forwarding engine: takes a burst of frames, a snapshot and the time, and turns every frame
//! into output, an answer or a drop.
//!
//! Called by a worker's poll loop, one engine per worker; by tests and `replay` with virtual time.
//! Holds no socket, clock or thread.
//!
//! The stages, one file each:
//!
//! ```text
//! ingress -> (decap) -> fast ------------------------------------------> egress
//!                        | miss                                            ^
//!                        v                                                 |
//!                       slow -> admission -> open (a new connection) ------+
//!                        |
//!                        +-> neighbour, fragments, icmp_error, answer
//! ```
//!
//! * `ingress`: counts and parses; `decap`: frames from an uplink; `bridge`: layer 2.
//! * `fast`: packets of known flows. Neither allocates nor locks. `apply` rewrites them.
//! * `slow`: everything else; `prefetch`: its lookups, made for a whole burst at once.
//! * `admission`: finds the packet's connection or opens one, and calls `resolve`;
//!   `direction`: which end of a connection is the client.
//! * `egress`: TTL, MTU, tunnel headers; `pmtu`: path MTU of the tunnel.
//! * `answer`: ICMP errors, resets, the gateway; `neighbour`: ARP and ND; `names`: cluster DNS.
//!
//! Every received frame ends as forwarded, consumed, dropped with one reason, or held as a fragment
//! of an incomplete datagram. The counters add up.

mod admission;
mod answer;
mod apply;
mod bridge;
mod decap;
mod direction;
mod egress;
mod fast;
mod flow_events;
mod fragments;
mod frame;
mod housekeeping;
mod icmp_error;
mod ingress;
mod names;
mod neighbour;
mod open;
mod outputs;
mod pmtu;
mod prefetch;
mod review;
mod slow;
mod trace;

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::Parsed;

use fragments::FragmentStore;

pub use flow_events::{AnsweredQuery, EndCause, FlowEvent, FlowObserver};
pub use outputs::Outputs;
pub use trace::{Dropped, Observer, Tap, Trace};

use crate::action::DropReason;
use crate::answer::icmp::ErrorLimiter;
use crate::flow::connection::{Kept, MemoryError, SlotMemory, Tracker, TrackerConfig};
use crate::flow::fragments::Released;
use crate::flow::probes::Probes;
use crate::flow::table::{FlowTable, FlowTableConfig};
use crate::id::{Cookie, Epoch, PortId};
use crate::limit::KeyedLimiter;
use crate::nat::affinity::Affinity;
use crate::packet::{BATCH, Origin, Packet, Pool};
use crate::route::fdb::Fdb;
use crate::snapshot::Snapshot;
use crate::stats::WorkerCounters;
use crate::time::Instant;

/// State shared by all workers.
#[derive(Debug)]
pub struct Shared {
    /// The connection table.
    pub tracker: Tracker,
    /// Learned MAC addresses.
    pub fdb: Fdb,
    /// Session affinity of clients.
    pub affinity: Affinity,
    /// Clients that are probed for unknown connections.
    pub probes: Probes,
    /// Secret hash key of this process.
    pub hash_key: HashKey,
    fragments: FragmentStore,
    /// Number of workers, which divide the sweep of the tables among them.
    workers: AtomicUsize,
}

/// Limits of the shared tables and of each worker's own tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of connections in total.
    pub connections: u32,
    /// Maximum number of connections that one port may originate. The same limit holds for each
    /// VTEP of another node.
    pub connections_per_port: u32,
    /// Maximum number of flow entries (directions of connections) of each worker.
    pub flows: usize,
    /// Maximum number of learned MAC addresses.
    pub fdb: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1 << 20, connections_per_port: 1 << 17, flows: 1 << 21, fdb: 1 << 14 }
    }
}

impl Limits {
    fn tracker(&self, hash_key: HashKey) -> TrackerConfig {
        let (connections, per_port) = (self.connections, self.connections_per_port);
        TrackerConfig { connections, per_port, hash_key }
    }
}

impl Shared {
    /// Empty tables with the given limits and hash key.
    pub fn new(limits: &Limits, hash_key: HashKey) -> Self {
        Self::with_tracker(Tracker::new(limits.tracker(hash_key)), limits, hash_key)
    }

    /// As [`new`](Self::new), with connections in memory that survives a restart.
    pub(crate) fn in_memory(
        limits: &Limits,
        hash_key: HashKey,
        memory: SlotMemory,
    ) -> Result<(Self, Kept), MemoryError> {
        let (tracker, kept) = Tracker::in_memory(limits.tracker(hash_key), memory)?;
        Ok((Self::with_tracker(tracker, limits, hash_key), kept))
    }

    fn with_tracker(tracker: Tracker, limits: &Limits, hash_key: HashKey) -> Self {
        Self {
            tracker,
            fdb: Fdb::new(limits.fdb, &hash_key),
            affinity: Affinity::default(),
            probes: Probes::default(),
            hash_key,
            fragments: FragmentStore::new(hash_key),
            workers: AtomicUsize::new(1),
        }
    }

    pub(crate) fn set_workers(&self, workers: usize) {
        self.workers.store(workers.max(1), Relaxed);
    }
}

/// The environment of one call of the engine.
#[derive(Debug)]
pub struct BurstContext<'a> {
    /// The snapshot that every packet of the call is evaluated with.
    pub snapshot: &'a Snapshot,
    /// The current time.
    pub now: Instant,
    /// The worker's packet buffers.
    pub pool: &'a mut Pool,
    /// Egress queues.
    pub out: &'a mut Outputs,
}

/// One worker's engine. See the module's description.
pub struct Engine {
    shared: Arc<Shared>,
    counters: Arc<WorkerCounters>,
    flows: FlowTable,
    released: Released,
    errors: ErrorLimiter,
    floods: KeyedLimiter,
    /// Rate of probes, by the port whose segments cause them.
    probes: KeyedLimiter,
    /// Rate of unsuccessful searches for a connection to end, by account.
    searches: KeyedLimiter,
    observer: Option<Box<dyn Observer>>,
    /// The running capture.
    capture: Option<Box<dyn Tap>>,
    flow_observer: Option<Box<dyn FlowObserver>>,
    /// Parsed headers of the current burst.
    parsed: Box<[Parsed; BATCH]>,
    /// Position of the sweep in this worker's share of the connection table.
    sweep: usize,
    sweep_due: Instant,
    /// The changes with which the connections were compared.
    review: review::Review,
    /// Where the search for a connection to end continues when the connection table is full.
    eviction_cursor: usize,
    /// Index of this worker.
    index: usize,
    /// Content of the answer to a name query that is being written.
    name_answer: Box<[u8; podswitch_dns::MAX_SIZE]>,
    /// Number of the next answer.
    rotation: u32,
}

impl core::fmt::Debug for Engine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Engine").field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}

impl Engine {
    /// The engine of worker `index`.
    pub fn new(
        shared: Arc<Shared>,
        counters: Arc<WorkerCounters>,
        limits: &Limits,
        index: usize,
    ) -> Self {
        let hash_key = shared.hash_key;
        Self {
            flows: FlowTable::new(FlowTableConfig { entries: limits.flows, hash_key }),
            released: Released::default(),
            errors: ErrorLimiter::new(hash_key),
            floods: bridge::flood_limiter(),
            probes: direction::probe_limiter(),
            searches: open::search_limiter(),
            observer: None,
            capture: None,
            flow_observer: None,
            parsed: Box::new([Parsed::default(); BATCH]),
            sweep: 0,
            sweep_due: Instant::ZERO,
            review: review::Review::default(),
            eviction_cursor: 0,
            index,
            name_answer: Box::new([0; podswitch_dns::MAX_SIZE]),
            rotation: 0,
            shared,
            counters,
        }
    }

    /// Sets the observer that is notified of drops.
    pub fn set_observer(&mut self, observer: Option<Box<dyn Observer>>) {
        self.observer = observer;
    }

    /// This worker's counters.
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.counters
    }

    /// The state that all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The flow table of this worker.
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// Drops a frame: counts it and frees its buffer.
    pub(crate) fn drop(
        &mut self,
        cx: &mut BurstContext<'_>,
        packet: Packet,
        reason: DropReason,
        object: Option<&Cookie>,
    ) {
        let (trace, epoch) = (Trace::from(&packet), cx.snapshot.epoch);
        let frame = Some(packet.bytes());
        self.count_drop(&Dropped { trace, now: cx.now, epoch, reason, object, frame, count: 1 });
        cx.pool.free(packet);
    }

    /// Drops a frame whose buffer was passed on.
    fn drop_traced(&mut self, now: Instant, epoch: Epoch, trace: Trace, reason: DropReason) {
        let (object, frame) = (None, None);
        self.count_drop(&Dropped { trace, now, epoch, reason, object, frame, count: 1 });
    }

    fn count_drop(&mut self, drop: &Dropped<'_>) {
        if drop.trace.origin != Origin::Received {
            return;
        }
        self.counters.count_drops(drop.trace.ingress, drop.reason, drop.count);
        if let Some(observer) = &mut self.observer {
            observer.dropped(drop);
        }
        if let Some(capture) = &mut self.capture {
            capture.dropped(drop);
        }
    }

    /// Begins a capture.
    pub(crate) fn start_capture(&mut self, tap: Box<dyn Tap>) {
        self.capture = Some(tap);
    }

    /// Ends a capture, if it still runs.
    pub(crate) fn end_capture(&mut self, id: u64) {
        self.capture.take_if(|capture| capture.id() == id);
    }

    /// The running capture.
    #[inline]
    pub(crate) fn capture(&mut self) -> Option<&mut (dyn Tap + 'static)> {
        self.capture.as_deref_mut()
    }

    /// Whether a [capture](crate::capture) runs.
    pub fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    /// Has the observer deliver what it collected.
    pub(crate) fn collect(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer.collect();
        }
    }

    /// Counts frames that a port lost on reception.
    pub(crate) fn count_rx_lost(&mut self, now: Instant, ingress: PortId, frames: u64) {
        self.counters.received.add(frames);
        if let Some(port) = self.counters.port(ingress) {
            port.rx_frames.add(frames);
        }
        let trace = Trace { ingress, origin: Origin::Received, mark: 0, tag: 0 };
        self.count_drop(&Dropped {
            trace,
            now,
            epoch: Epoch::default(),
            reason: DropReason::RxLost,
            object: None,
            frame: None,
            count: frames,
        });
    }

    /// Counts a frame that its egress port did not accept: it was counted as forwarded, and becomes
    /// a drop.
    pub fn not_sent(&mut self, now: Instant, trace: Trace, reason: DropReason) {
        match trace.origin {
            // Counters wrap, so this subtracts one.
            Origin::Received => self.counters.forwarded.add(u64::MAX),
            Origin::Originated | Origin::Copy => self.counters.originated_lost.add(1),
        }
        self.drop_traced(now, Epoch::default(), trace, reason);
    }

    /// Whether there is no state that can time out.
    pub fn is_idle(&self) -> bool {
        self.flows.is_empty() && self.shared.fragments.is_empty() && self.shared.tracker.is_empty()
    }

    /// Consumes a received frame that was for the switch itself.
    fn consume(&mut self, cx: &mut BurstContext<'_>, packet: Packet) {
        self.counters.consumed.add(1);
        cx.pool.free(packet);
    }

    /// Sends a frame that the control plane created.
    pub fn send_created(&mut self, cx: &mut BurstContext<'_>, port: PortId, frame: &[u8]) {
        let Some(mut packet) = cx.pool.alloc_for(frame.len()) else { return };
        packet.fill(frame);
        self.originate(cx, port, packet);
    }

    /// Sends a frame that the switch created.
    fn originate(&mut self, cx: &mut BurstContext<'_>, port: PortId, mut packet: Packet) {
        packet.origin = Origin::Originated;
        packet.ingress = port;
        self.counters.originated.add(1);
        cx.out.push(port, packet);
    }

    /// Forwards a received frame.
    fn forward(&mut self, cx: &mut BurstContext<'_>, port: PortId, packet: Packet) {
        match packet.origin {
            Origin::Received => self.counters.forwarded.add(1),
            Origin::Originated | Origin::Copy => self.counters.copies.add(1),
        }
        cx.out.push(port, packet);
    }
}
