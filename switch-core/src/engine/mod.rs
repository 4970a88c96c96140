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
mod bridge;
mod encap;
mod fragments;
mod gateway;
mod housekeeping;
mod neighbour;
mod outputs;
mod path;
mod related;
mod slow;
mod trace;
mod uplink;

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use vxlan::template::SourcePort;
use wire::addr::Mac;
use wire::flow_key::{HashKey, proto};
use wire::parse::{Fragment, Icmp, Network, Parsed, parse_into, straight};

use encap::wrap;
use fragments::FragmentStore;

pub use outputs::Outputs;
pub use trace::{Dropped, Observer, Trace};

use crate::action::{DropReason, Plan, PlanFlags, apply, apply_plain};
use crate::answer::icmp::ErrorLimiter;
use crate::flow::affinity::Affinity;
use crate::flow::connection::{Tracker, TrackerConfig};
use crate::flow::fragments::Released;
use crate::flow::table::{EntryId, FlowTable, FlowTableConfig, Follow, Untold};
use crate::flow::tcp::Segment;
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
    /// The most connections that one port may originate.
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

/// What became of a packet that hit.
enum Hit {
    /// It leaves by this port.
    Out(PortId),
    /// It is rewritten, but has no tunnel header yet: that is not done in passing.
    Unwrapped(Plan),
}

/// One worker's engine. See the module's description.
pub struct Engine {
    shared: Arc<Shared>,
    counters: Arc<WorkerCounters>,
    flows: FlowTable,
    released: Released,
    errors: ErrorLimiter,
    floods: KeyedLimiter,
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

    /// The straight line: parse all, look all up, then apply each. Only frames to `gateway` are
    /// routed; `None`: all are addressed to the switch.
    fn route_batch(
        &mut self,
        turn: &mut Turn<'_>,
        ingress: PortId,
        gateway: Option<Mac>,
        batch: &mut Batch,
    ) {
        self.flows.begin(turn.snapshot.epoch);
        let seconds = turn.now.as_secs() as u32;
        let mut sound = [Ok(()); BATCH];
        let mut senders = [0; BATCH];
        let mut ids = [EntryId::NONE; BATCH];
        let plain = self.read_all(gateway, batch, &mut sound, &mut senders);
        for (i, (id, parsed)) in ids.iter_mut().zip(&self.parsed[..batch.len()]).enumerate() {
            if plain & 1 << i != 0 {
                *id = self.flows.candidate(parsed.hash);
            }
        }
        for (i, id) in ids.iter_mut().enumerate().take(batch.len()) {
            if plain & 1 << i != 0 {
                *id = self.look(*id, senders[i], i);
            }
        }
        let mut hits = 0;
        // Once a packet went the slow way what was looked up before may be no more.
        let mut changed = false;
        for (i, mut packet) in batch.drain(..).enumerate() {
            let i = i % BATCH;
            if plain & 1 << i != 0 {
                if changed {
                    ids[i] = self.look(EntryId::NONE, senders[i], i);
                }
                let parsed = &self.parsed[i];
                let length = parsed.end.wrapping_sub(parsed.l3.into());
                let bytes = packet.len() as u32;
                if let Some(plan) = self.flows.hit_counted(ids[i], length, bytes, seconds) {
                    hits += 1;
                    apply_plain(&mut packet, parsed, plan);
                    turn.out.push(plan.out, packet);
                    continue;
                }
                if parsed.tcp_flags != 0
                    && let Some(out) = self.hit_tcp(ids[i], &mut packet, i, seconds)
                {
                    hits += 1;
                    turn.out.push(out, packet);
                    continue;
                }
                match self.hit(turn, ids[i], &mut packet, i) {
                    Some(Hit::Out(port)) => {
                        hits += 1;
                        turn.out.push(port, packet);
                        continue;
                    }
                    Some(Hit::Unwrapped(plan)) => {
                        self.leave(turn, packet, self.parsed[i].traffic_class, &plan);
                        continue;
                    }
                    None => {}
                }
            }
            if let Err(reason) = sound[i] {
                self.drop(turn, packet, reason, None);
                continue;
            }
            changed = true;
            let parsed = self.parsed[i];
            self.slow(turn, ingress, packet, &parsed);
        }
        self.counters.hits.add(hits);
        self.counters.forwarded.add(hits);
    }

    /// Parses all, and brings near where the flows of the ordinary ones begin. A bit for each of
    /// these; `sound` says what is wrong with others.
    #[inline]
    fn read_all(
        &mut self,
        gateway: Option<Mac>,
        batch: &Batch,
        sound: &mut [Result<(), DropReason>; BATCH],
        senders: &mut [u64; BATCH],
    ) -> u64 {
        let mut plain = 0;
        let places = self.parsed.iter_mut().zip(senders);
        for ((i, packet), (parsed, from)) in batch.iter().enumerate().zip(places) {
            let frame = packet.bytes();
            let ordinary = if straight(frame, &self.shared.hash_key, parsed)
                && !packet.offload.is_unfinished()
            {
                parsed.ttl > 1
            } else {
                sound[i] = read(packet, &self.shared.hash_key, parsed);
                sound[i].is_ok() && is_ordinary(parsed)
            };
            let to_us = gateway.is_none_or(|mac| frame.first_chunk::<6>() == Some(&mac.0));
            if ordinary && to_us {
                self.flows.prefetch(parsed.hash);
                *from = sender(packet);
                plain |= 1 << i;
            }
        }
        plain
    }

    /// The entry of the packet parsed at `at`; brings near what else its flow will touch.
    #[inline(always)]
    fn look(&self, candidate: EntryId, sender: u64, at: usize) -> EntryId {
        let parsed = &self.parsed[at % BATCH];
        let (id, connection) = self.flows.look(candidate, parsed.hash, &parsed.key, sender);
        if let Some(connection) = connection {
            self.shared.tracker.prefetch(connection);
        }
        id
    }

    /// [`hit`](Self::hit) for plain segments of connections that nothing is translated of.
    #[inline(never)]
    fn hit_tcp(
        &mut self,
        id: EntryId,
        packet: &mut Packet,
        at: usize,
        seconds: u32,
    ) -> Option<PortId> {
        let parsed = &self.parsed[at % BATCH];
        let header = packet.bytes().get(usize::from(parsed.l4)..)?;
        let payload = parsed.end.wrapping_sub(parsed.payload.into());
        let segment = Segment::read(header, parsed.tcp_flags, payload);
        let length = parsed.end.wrapping_sub(parsed.l3.into());
        if !segment.is_plain() {
            return None;
        }
        let (plan, connection) = self.flows.hit_tcp(id, length, seconds)?;
        if !self.shared.tracker.touch_tcp(connection, &segment, packet.len(), seconds) {
            return None;
        }
        apply_plain(packet, parsed, plan);
        Some(plan.out)
    }

    /// Rewrites the packet parsed at `at` as its entry says. `None`, and nothing was changed: it
    /// needs the slow path, because it opens, ends or restarts the connection, or is too long, or the
    /// connection is gone.
    #[inline(never)]
    fn hit(&mut self, turn: &Turn<'_>, id: EntryId, packet: &mut Packet, at: usize) -> Option<Hit> {
        let parsed = &self.parsed[at];
        let tracker = &self.shared.tracker;
        let seconds = turn.now.as_secs() as u32;
        let length = parsed.end - u32::from(parsed.l3);
        let fits = |plan: &Plan| {
            let mtu = Self::way_mtu(turn, plan);
            length <= u32::from(mtu) || slow::segments_fit(packet, parsed, mtu)
        };
        let (plan, follow) = self.flows.hit(id, packet.len(), seconds, fits)?;
        let alive = match follow {
            Follow::Counted => true,
            Follow::Each(connection) if parsed.key.proto == proto::TCP => {
                let header = packet.bytes().get(usize::from(parsed.l4)..).unwrap_or_default();
                let payload = parsed.end - u32::from(parsed.payload);
                let segment = Segment::read(header, parsed.tcp_flags, payload);
                segment.is_plain() && tracker.touch_tcp(connection, &segment, packet.len(), seconds)
            }
            Follow::Each(connection) => tracker.touch(connection, packet.len(), seconds),
            Follow::Tell(Untold { connection, packets, bytes }) => {
                tracker.touch_many(connection, packets, bytes, seconds)
            }
        };
        if !alive {
            return None;
        }
        apply(packet, parsed, plan);
        if !plan.flags.has(PlanFlags::ENCAP) {
            return Some(Hit::Out(plan.out));
        }
        let source_port = match plan.is_translation() {
            true => plan.source_port,
            false => SourcePort::from_hash(parsed.key.hash(&turn.snapshot.cluster_key)),
        };
        match turn.snapshot.tunnels.get(plan.tunnel) {
            Some(tunnel)
                if !packet.offload.is_crc32c()
                    && wrap(tunnel, packet, parsed.traffic_class, source_port).is_ok() =>
            {
                Some(Hit::Out(plan.out))
            }
            _ => Some(Hit::Unwrapped(Plan { source_port, ..*plan })),
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

/// Parses a frame, and holds what its sender says of unfinished work against it: offsets that
/// point elsewhere would have the switch rewrite what policy has judged already.
#[inline]
fn read(packet: &Packet, hash_key: &HashKey, parsed: &mut Parsed) -> Result<(), DropReason> {
    parse_into(packet.bytes(), hash_key, parsed)?;
    packet.offload.check(parsed)
}

/// Nothing about the packet asks for more than its flow's plan.
#[inline]
fn is_ordinary(parsed: &Parsed) -> bool {
    matches!(parsed.network, Network::Ipv4 | Network::Ipv6)
        && parsed.fragment == Fragment::Whole
        // Other ICMP messages have all one key, and not all of them may pass.
        && !matches!(parsed.icmp, Icmp::Error | Icmp::Neighbour | Icmp::Other)
        && parsed.tags == 0
        && parsed.ttl > 1
}

/// Who sent a frame, in the form that entries keep: source MAC and ingress port; of what came
/// through a tunnel the tunnel end in place of the MAC, told apart by the bit of group addresses.
#[inline(always)]
fn sender(packet: &Packet) -> u64 {
    let who = match packet.via() {
        // The last two octets of the destination, which are shifted out, and the source.
        None => match packet.bytes().first_chunk::<12>() {
            Some([_, _, _, _, words @ ..]) => u64::from_be_bytes(*words),
            None => 0,
        },
        Some(end) => 1 << 40 | u64::from(end.0),
    };
    who << 16 | u64::from(packet.ingress.0)
}
