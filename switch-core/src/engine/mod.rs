//! The forwarding engine: takes a burst of frames with a snapshot and the time, and sorts what
//! becomes of each into outputs, answers and drops.
//!
//! Called by a worker's poll loop, one engine a worker; by tests and `replay` with virtual time.
//! Holds no socket, clock or thread. The hit path (this file and `action::apply`) neither
//! allocates nor locks; everything rarer is in the files beside it.
//!
//! Every frame handed in ends as forwarded, consumed, dropped with one reason, or held as a
//! fragment of a datagram that is not whole yet; the counters add up.

mod admit;
mod ahead;
mod bridge;
mod direction;
mod encap;
mod fragments;
mod gateway;
mod housekeeping;
mod neighbour;
mod outputs;
mod path;
mod related;
mod slow;
mod straight;
mod trace;
mod uplink;

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::Parsed;

use fragments::FragmentStore;
use straight::{read, sender};

pub use outputs::Outputs;
pub use trace::{Dropped, Observer, Trace};

use crate::action::DropReason;
use crate::answer::icmp::ErrorLimiter;
use crate::flow::affinity::Affinity;
use crate::flow::connection::{Tracker, TrackerConfig};
use crate::flow::fragments::Released;
use crate::flow::probes::Probes;
use crate::flow::table::{FlowTable, FlowTableConfig};
use crate::id::{Cookie, PortId};
use crate::limit::KeyedLimiter;
use crate::packet::{BATCH, Batch, Origin, Packet, Pool};
use crate::route::fdb::Fdb;
use crate::snapshot::{PortFacts, Snapshot};
use crate::stats::WorkerCounters;
use crate::time::Instant;

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// Connections.
    pub tracker: Tracker,
    /// Learnt link-layer addresses.
    pub fdb: Fdb,
    /// Clients that stay with their backend.
    pub affinity: Affinity,
    /// Clients that were asked which connection they have.
    pub probes: Probes,
    /// Secret of this process.
    pub hash_key: HashKey,
    fragments: FragmentStore,
    /// How many workers share the housekeeping.
    workers: AtomicUsize,
}

/// Bounds of the shared tables and of each worker's own.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most connections in all.
    pub connections: u32,
    /// The most connections that one port may originate; the same for each tunnel end of another
    /// node.
    pub connections_per_port: u32,
    /// The most flow entries (directions of connections) of each worker.
    pub flows: usize,
    /// The most learnt link-layer addresses.
    pub fdb: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1 << 20, connections_per_port: 1 << 17, flows: 1 << 21, fdb: 1 << 14 }
    }
}

impl Shared {
    /// Empty tables with the given bounds and secret.
    pub fn new(limits: &Limits, hash_key: HashKey) -> Self {
        let config = TrackerConfig {
            connections: limits.connections,
            per_port: limits.connections_per_port,
            hash_key,
        };
        Self {
            tracker: Tracker::new(config),
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

/// What one call of the engine works with.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The state that every packet of the call is judged by.
    pub snapshot: &'a Snapshot,
    /// The time.
    pub now: Instant,
    /// Buffers.
    pub pool: &'a mut Pool,
    /// Where frames go that leave.
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
    /// Questions to clients, by the port that gave rise to them.
    probes: KeyedLimiter,
    /// Searches for connections to end, by account.
    searches: KeyedLimiter,
    observer: Option<Box<dyn Observer>>,
    /// A burst's parsed frames, written in place.
    parsed: Box<[Parsed; BATCH]>,
    /// Where this worker's share of the tracker's sweep stands.
    sweep: usize,
    sweep_due: Instant,
    /// Where the search for something to end stands, when the tracker is full.
    pressed: usize,
    index: usize,
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
            searches: admit::search_limiter(),
            observer: None,
            parsed: Box::new([Parsed::default(); BATCH]),
            sweep: 0,
            sweep_due: Instant::ZERO,
            pressed: 0,
            index,
            shared,
            counters,
        }
    }

    /// Has `observer` told of drops from now on.
    pub fn set_observer(&mut self, observer: Option<Box<dyn Observer>>) {
        self.observer = observer;
    }

    /// This worker's counters.
    pub fn counters(&self) -> &Arc<WorkerCounters> {
        &self.counters
    }

    /// What all workers share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Flow entries in use.
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// Takes a burst that came in by `ingress`; `batch` is empty afterwards.
    pub fn process(&mut self, turn: &mut Turn<'_>, ingress: PortId, batch: &mut Batch) {
        self.counters.received.add(batch.len() as u64);
        let mut bytes = 0;
        for packet in batch.iter_mut() {
            packet.ingress = ingress;
            bytes += packet.len() as u64;
        }
        if let Some(port) = self.counters.port(ingress) {
            port.rx_frames.add(batch.len() as u64);
            port.rx_bytes.add(bytes);
        }
        match turn.snapshot.port(ingress) {
            PortFacts::Pod(_) | PortFacts::Host(_) => {
                let gateway = turn.snapshot.gateway.mac;
                self.route_batch(turn, ingress, Some(gateway), batch);
            }
            PortFacts::Uplink(uplink) => self.uplink_batch(turn, uplink, batch),
            PortFacts::Bridge(port) => self.bridge_batch(turn, ingress, port, batch),
            PortFacts::Unused => {
                for packet in batch.drain(..) {
                    self.drop(turn, packet, DropReason::EndpointNotReady, None);
                }
            }
        }
    }

    /// Counts and frees a frame that goes nowhere.
    pub(crate) fn drop(
        &mut self,
        turn: &mut Turn<'_>,
        packet: Packet,
        reason: DropReason,
        object: Option<&Cookie>,
    ) {
        self.count_drop(turn.now, Trace::from(&packet), reason, object);
        turn.pool.free(packet);
    }

    fn count_drop(
        &mut self,
        now: Instant,
        trace: Trace,
        reason: DropReason,
        object: Option<&Cookie>,
    ) {
        if trace.origin != Origin::Received {
            return;
        }
        self.counters.count_drop(trace.ingress, reason);
        if let Some(observer) = &mut self.observer {
            observer.dropped(&Dropped { trace, now, reason, object });
        }
    }

    /// Frames that a port received and lost.
    pub(crate) fn lost_on_arrival(&mut self, now: Instant, ingress: PortId, frames: u64) {
        self.counters.received.add(frames);
        if let Some(port) = self.counters.port(ingress) {
            port.rx_frames.add(frames);
        }
        let trace = Trace { ingress, origin: Origin::Received, mark: 0 };
        for _ in 0..frames {
            self.count_drop(now, trace, DropReason::RxLost, None);
        }
    }

    /// A frame that a port did not take after all: what was counted as forwarded was dropped.
    pub fn not_sent(&mut self, now: Instant, trace: Trace, reason: DropReason) {
        match trace.origin {
            // Counters wrap: this is minus one.
            Origin::Received => self.counters.forwarded.add(u64::MAX),
            Origin::Originated | Origin::Copy => self.counters.originated_lost.add(1),
        }
        self.count_drop(now, trace, reason, None);
    }

    /// Whether there is no state that time could end.
    pub fn is_idle(&self) -> bool {
        self.flows.is_empty() && self.shared.fragments.is_empty() && self.shared.tracker.is_empty()
    }

    /// A received frame that the switch itself took.
    fn consume(&mut self, turn: &mut Turn<'_>, packet: Packet) {
        self.counters.consumed.add(1);
        turn.pool.free(packet);
    }

    /// Sends a frame that the switch made.
    fn originate(&mut self, turn: &mut Turn<'_>, port: PortId, mut packet: Packet) {
        packet.origin = Origin::Originated;
        packet.ingress = port;
        self.counters.originated.add(1);
        turn.out.push(port, packet);
    }

    /// Sends a received frame on.
    fn forward(&mut self, turn: &mut Turn<'_>, port: PortId, packet: Packet) {
        match packet.origin {
            Origin::Received => self.counters.forwarded.add(1),
            Origin::Originated | Origin::Copy => self.counters.copies.add(1),
        }
        turn.out.push(port, packet);
    }
}
