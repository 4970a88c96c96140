//! The fast path: packets of known flows. All packets of a burst are parsed, then looked up, then
//! each is rewritten as its flow's plan says. Neither allocates nor locks.
//!
//! Everything else takes the [slow path](super::slow): first packets, packets of flows that a
//! configuration change may concern, segments that open a connection, packets that do not fit.

use core::ops::Range;

use podswitch_vxlan::template::SourcePort;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::Parsed;
use podswitch_wire::parse::tcp_flags::SYN;

use super::apply::{apply_inline, apply_route};
use super::egress::{encapsulate, segments_fit};
use super::ingress::{Burst, RouterMac};
use super::prefetch::{BurstLookups, MissInfo};
use super::{BurstContext, Engine};
use crate::action::{Plan, PlanFlags};
use crate::flow::connection::{ConnectionRef, Tracker};
use crate::flow::table::{EntryId, Flow, Follow, Hit, LookupMiss, PendingCounts, Revalidations};
use crate::flow::tcp::{Segment, SegmentCheck, is_possible};
use crate::id::PortId;
use crate::packet::{BATCH, Batch, Packet};

/// Prefetch distance, in packets: about 100 ns of work, and no more cache lines at a time than a
/// processor has fill buffers for.
const PREFETCH_DISTANCE: usize = 8;

impl Engine {
    /// Routes a burst. Only frames to the MAC address `router` are routed; `None`: all frames are
    /// addressed to the switch.
    pub(super) fn route_burst<'s>(
        &mut self,
        cx: &mut BurstContext<'s>,
        ingress: PortId,
        router: Option<Mac>,
        batch: &mut Batch,
    ) {
        let snapshot = cx.snapshot;
        self.flows.begin(snapshot.epoch, &snapshot.invalidation);
        let mut burst = Burst::new(ingress, cx.now.as_secs() as u32);
        let router = RouterMac::new(router);
        let count = batch.len().min(BATCH);
        // While one group of packets is parsed, the buckets of the group before are loaded.
        for start in (0..count + PREFETCH_DISTANCE).step_by(PREFETCH_DISTANCE) {
            let end = (start + PREFETCH_DISTANCE).min(count);
            self.parse_group(router, batch, start..end, &mut burst);
            if let Some(start) = start.checked_sub(PREFETCH_DISTANCE) {
                self.find_candidates(start..(start + PREFETCH_DISTANCE).min(count), &mut burst);
            }
        }
        self.prefetch_entries(&burst.candidates[..PREFETCH_DISTANCE.min(count)]);
        let (mut hits, mut lookups) = (0, BurstLookups::default());
        for (i, mut packet) in batch.drain(..).enumerate() {
            let i = i % BATCH;
            // While one group is rewritten, the entries of the next are loaded.
            if i.is_multiple_of(PREFETCH_DISTANCE) {
                let next = (i + PREFETCH_DISTANCE).min(count);
                let end = (next + PREFETCH_DISTANCE).min(count);
                self.prefetch_entries(&burst.candidates[next..end]);
            }
            if burst.eligible & 1 << i != 0
                && let Some(out) = self.fast_path(cx, &mut packet, &mut burst, i)
            {
                hits += 1;
                cx.out.push(out, packet);
                continue;
            }
            self.leave_fast_path(cx, &mut burst, &mut lookups, i, packet);
        }
        self.counters.hits.add(hits);
        self.counters.forwarded.add(hits);
        let Revalidations { kept, reevaluated } = self.flows.take_revalidations();
        if kept | reevaluated != 0 {
            self.counters.kept.add(kept.into());
            self.counters.rederived.add(reevaluated.into());
        }
    }

    /// Finds the candidate entries of a group, and prefetches them.
    #[inline(never)]
    fn find_candidates(&self, group: Range<usize>, burst: &mut Burst) {
        for (id, parsed) in burst.candidates[group.clone()].iter_mut().zip(&self.parsed[group]) {
            *id = self.flows.candidate(parsed.hash);
        }
    }

    /// Prefetches the data that hits on these entries will read.
    #[inline(never)]
    fn prefetch_entries(&self, candidates: &[EntryId]) {
        for id in candidates {
            if let Some(connection) = self.flows.prefetch_plan(*id) {
                self.shared.tracker.prefetch(connection);
            }
        }
    }

    /// Rewrites packet `i` of the burst as its flow's plan says, and returns its egress port.
    /// `None`: it is for [`leave_fast_path`](Self::leave_fast_path).
    #[inline(always)]
    fn fast_path(
        &mut self,
        cx: &BurstContext<'_>,
        packet: &mut Packet,
        burst: &mut Burst,
        i: usize,
    ) -> Option<PortId> {
        let parsed = &self.parsed[i];
        let flow = Flow {
            candidate: burst.candidates[i],
            hash: parsed.hash,
            key: &parsed.key,
            sender: burst.senders[i],
        };
        let length = parsed.end.wrapping_sub(parsed.l3.into());
        let lengths = (length, packet.len() as u32);
        match self.flows.hit(&flow, lengths, burst.seconds) {
            Hit::Counted(plan) => {
                apply_route(packet, parsed, plan);
                Some(plan.out)
            }
            Hit::Tcp(plan, connection) => {
                let tracker = &self.shared.tracker;
                if !follow_tcp(tracker, connection, packet, parsed, burst.seconds) {
                    return None;
                }
                apply_route(packet, parsed, plan);
                Some(plan.out)
            }
            Hit::Other(id) => self.hit_other(cx, packet, burst, i, id),
            Hit::Unknown => self.hit_by_search(cx, packet, burst, i),
        }
    }

    /// A packet whose candidate entry is not valid for it. It may have another one.
    #[inline(never)]
    fn hit_by_search(
        &mut self,
        cx: &BurstContext<'_>,
        packet: &mut Packet,
        burst: &mut Burst,
        i: usize,
    ) -> Option<PortId> {
        let i = i % BATCH;
        let parsed = &self.parsed[i];
        let flow = Flow {
            candidate: burst.candidates[i],
            hash: parsed.hash,
            key: &parsed.key,
            sender: burst.senders[i],
        };
        match self.flows.find(&flow, &cx.snapshot.invalidation) {
            Ok(id) => self.hit_other(cx, packet, burst, i, id),
            Err(miss) => {
                burst.miss = Some(miss);
                None
            }
        }
    }

    /// A hit on the valid entry `id` that needs more than routing: its packets are translated or
    /// encapsulated, or for this packet its connection must be updated or its size checked.
    ///
    /// `None`: either the packet was rewritten and is [unencapsulated](Burst::unencapsulated); or
    /// nothing was changed and it needs the slow path.
    #[inline(never)]
    fn hit_other(
        &mut self,
        cx: &BurstContext<'_>,
        packet: &mut Packet,
        burst: &mut Burst,
        i: usize,
        id: EntryId,
    ) -> Option<PortId> {
        let i = i % BATCH;
        let (parsed, seconds) = (&self.parsed[i], burst.seconds);
        let tracker = &self.shared.tracker;
        let length = parsed.end - u32::from(parsed.l3);
        let mut tunnel = None;
        let fits = |plan: &Plan| {
            if plan.flags.has(PlanFlags::ENCAP) {
                tunnel = cx.snapshot.tunnels.get(plan.tunnel);
            }
            let mtu = tunnel.map_or(plan.mtu, |tunnel| tunnel.inner_mtu(cx.now));
            length <= u32::from(mtu) || segments_fit(packet, parsed, mtu)
        };
        let (plan, follow) = self.flows.hit_entry(id, packet.len(), seconds, fits)?;
        let is_alive = match follow {
            Follow::Counted => true,
            Follow::Each(connection) if parsed.key.proto == proto::TCP => {
                follow_tcp(tracker, connection, packet, parsed, seconds)
            }
            Follow::Each(connection) => tracker.record(connection, packet.len(), seconds),
            Follow::Flush(PendingCounts { connection, packets, bytes }) => {
                tracker.record_many(connection, packets, bytes, seconds)
            }
        };
        if !is_alive {
            if let Follow::Flush(pending) = follow {
                self.flows.give_back(id, pending);
            }
            return None;
        }
        apply_inline(packet, parsed, plan);
        if !plan.flags.has(PlanFlags::ENCAP) {
            return Some(plan.out);
        }
        let source_port = match plan.is_translation() {
            true => plan.source_port,
            false => SourcePort::from_hash(parsed.key.hash(&cx.snapshot.cluster_key)),
        };
        match tunnel {
            Some(tunnel)
                if !packet.offload.is_crc32c()
                    && encapsulate(tunnel, packet, parsed.traffic_class, source_port).is_ok() =>
            {
                Some(plan.out)
            }
            _ => {
                burst.leave_unencapsulated(plan, source_port);
                None
            }
        }
    }

    /// Sends a packet that the fast path did not forward to the stage that handles it.
    #[inline(never)]
    fn leave_fast_path<'s>(
        &mut self,
        cx: &mut BurstContext<'s>,
        burst: &mut Burst,
        lookups: &mut BurstLookups<'s>,
        i: usize,
        packet: Packet,
    ) {
        let i = i % BATCH;
        if let Some(plan) = burst.unencapsulated.take() {
            return self.send(cx, packet, self.parsed[i].traffic_class, &plan);
        }
        if let Err(reason) = burst.sound[i] {
            return self.drop(cx, packet, reason, None);
        }
        let info = match burst.miss.take() {
            None => MissInfo::default(),
            Some(miss) => {
                if !burst.missed {
                    burst.missed = true;
                    let candidates = &burst.candidates;
                    self.prefetch_misses(cx.snapshot, i, burst.eligible, candidates, lookups);
                }
                MissInfo { is_absent: miss == LookupMiss::Absent, lookups: lookups.of(i) }
            }
        };
        let parsed = self.parsed[i];
        self.slow_path(cx, burst.ingress, packet, &parsed, info);
    }
}

/// Updates a connection with a TCP segment. False if nothing was changed: either the slow path must
/// evaluate the segment, or the connection has ended.
#[inline(never)]
fn follow_tcp(
    tracker: &Tracker,
    connection: ConnectionRef,
    packet: &Packet,
    parsed: &Parsed,
    seconds: u32,
) -> bool {
    let Some(header) = packet.bytes().get(usize::from(parsed.l4)..) else { return false };
    let payload = parsed.end.wrapping_sub(parsed.payload.into());
    let segment = Segment::read(header, parsed.tcp_flags, payload);
    if segment.is_data() {
        return tracker.record_segment(connection, &segment, packet.len(), seconds);
    }
    closes(tracker, connection, &segment, packet.len(), seconds)
}

/// Updates a connection with a segment that closes or resets it.
#[inline(never)]
fn closes(
    tracker: &Tracker,
    connection: ConnectionRef,
    segment: &Segment,
    bytes: usize,
    seconds: u32,
) -> bool {
    segment.flags & SYN == 0
        && is_possible(segment.flags)
        && tracker.control_segment(connection, segment, None, bytes, seconds)
            == Some(SegmentCheck::Fits)
}
