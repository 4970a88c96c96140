//! Admission: finds or opens a packet's connection, evaluates the packet, and enters its flow into
//! the worker's table.
//!
//! On the slow path, for packets without a valid flow entry: first packets, packets after a
//! configuration change, segments that open a connection, and datagrams that came in fragments.
//!
//! The only place that counts decisions. The rules and the backend that allowed a connection are
//! counted once, when the connection is opened: the policy rules of both directions, and the
//! Service's backend. Replies, packets on other workers, ICMP errors about the connection and
//! re-evaluations after a configuration change do not count again. The rule that denied a packet is
//! counted for every denied packet: it opens no connection, so each is an attempt of its own.

use std::net::{IpAddr, SocketAddr};

use podswitch_vxlan::template::SourcePort;
use podswitch_wire::flow_key::{FlowKey, proto, to_bytes};
use podswitch_wire::parse::tcp_flags::{ACK, RST, SYN};
use podswitch_wire::parse::{Fragment, Parsed};

use super::direction::{PickUp, UNKNOWN_CONNECTION, is_sctp_init};
use super::flow_events::EndCause;
use super::frame::{sender_id, source_mac};
use super::prefetch::MissInfo;
use super::{BurstContext, Engine};
use crate::action::{DropReason, Plan};
use crate::flow::connection::{ConnectionRef, Created, IndexHash, Known};
use crate::flow::table::FlowEntry;
use crate::flow::tcp::{Segment, SegmentCheck, TcpState, is_over, is_possible, window_scale};
use crate::invalidation::Groups;
use crate::packet::Packet;
use crate::pinned::{Direction, Opened, Pinned, SourceNat};
use crate::resolve::{
    ConnAction, Denial, DenialCounter, Forward, Hints, Query, Verdict, check_source,
    connection_action, decide, may_open,
};
use crate::snapshot::{PortFacts, Snapshot};

/// The result of admission.
pub(super) enum Admission<'s> {
    /// Forward the packet as the plan says.
    Pass(Plan),
    /// The packet is for the gateway.
    Gateway,
    /// Send this frame to the packet's sender: the answer to it.
    Answer(Packet),
    /// Drop the packet.
    Deny(Denial<'s>),
}

impl From<DropReason> for Admission<'_> {
    fn from(reason: DropReason) -> Self {
        Self::Deny(reason.into())
    }
}

impl<'s> From<Denial<'s>> for Admission<'s> {
    fn from(denial: Denial<'s>) -> Self {
        Self::Deny(denial)
    }
}

/// The decision about a packet before its connection is opened.
struct Decided<'s> {
    pinned: Pinned,
    plan: Plan,
    forward: Forward<'s>,
}

impl Engine {
    /// Admits a packet, or the datagram whose first fragment it is. `payload`: bytes behind the
    /// layer-4 header.
    pub(super) fn admit<'s>(
        &mut self,
        cx: &mut BurstContext<'s>,
        packet: &Packet,
        parsed: &Parsed,
        payload: u32,
        info: MissInfo<'_, 's>,
    ) -> Admission<'s> {
        self.counters.misses.add(1);
        let is_tcp = parsed.key.proto == proto::TCP;
        if is_tcp && !is_possible(parsed.tcp_flags) {
            return DropReason::TcpInvalidState.into();
        }
        let index_hash = match info.lookups {
            Some(lookups) => lookups.index_hash,
            None => self.shared.tracker.index_hash(&parsed.key, parsed.hash),
        };
        let found = self.shared.tracker.find(index_hash, &parsed.key);
        let mut known = found.or_else(|| self.find_for_link_local(cx, packet, parsed));
        if let Some(old) = known
            && let Some(action) = self.ending_action(cx, &old, packet, parsed)
        {
            // Only a packet from its own ends may end a connection.
            if let Err(reason) = check_source(cx.snapshot, &Query::of(&parsed.key, packet)) {
                return reason.into();
            }
            self.end_connection(cx, old.connection, end_cause(cx.snapshot, &old, action));
            if action == ConnAction::Reset {
                return UNKNOWN_CONNECTION.into();
            }
            known = None;
        }
        let (mut opened, mut backend) = (Opened::First, None);
        match &known {
            Some(known) => {
                if let Some(denial) = self.opens_against(cx, known, packet, parsed) {
                    return denial.into();
                }
            }
            None if !may_open(&parsed.key, parsed.tcp_flags) => {
                match self.pick_up(cx, packet, parsed) {
                    PickUp::Forward(how) => opened = how,
                    PickUp::Through(server) => {
                        (opened, backend) = (Opened::MidStream, Some(server));
                    }
                    PickUp::Reply(connection) => known = Some(connection),
                    PickUp::Deny(denial) => return denial.into(),
                }
            }
            None if parsed.key.proto == proto::SCTP && !is_sctp_init(packet.bytes(), parsed) => {
                opened = Opened::MidStream;
            }
            None => {}
        }
        let query = Query {
            known: known.as_ref().map(|k| (&k.pinned, k.connection.direction())),
            affinity: Some((&self.shared.affinity, cx.now.as_secs() as u32)),
            backend,
            ..Query::of(&parsed.key, packet)
        };
        let hints = info.lookups.map(|lookups| &lookups.hints);
        let mut decided =
            Decided { pinned: query.pinned(), plan: Plan::default(), forward: Forward::default() };
        if known.is_none() {
            decided.pinned.opened = opened;
        }
        if let Some(other) = evaluate(cx.snapshot, &query, hints, &mut decided) {
            return other;
        }
        let asked = cx.snapshot.names.as_deref().filter(|names| {
            names.is_queried_by(&parsed.key) && query.direction() == Direction::Original
        });
        if let Some(names) = asked {
            match self.answer_name(cx, names, packet, parsed, (&decided.pinned, &decided.forward)) {
                Some(answer) => return Admission::Answer(answer),
                None => self.counters.names.passed.add(1),
            }
        }
        let connection = match &known {
            Some(known) => known.connection,
            None => match self.connect(cx, index_hash, packet, parsed, (backend, &mut decided)) {
                Ok(Some(connection)) => connection,
                Ok(None) => return Admission::Pass(decided.plan),
                Err(admission) => return admission,
            },
        };
        if let Some(reason) = self.track(cx, connection, packet, parsed, payload) {
            return reason.into();
        }
        let Decided { pinned, plan, .. } = &decided;
        if known.is_some() {
            self.resume(cx, connection, pinned);
        }
        // Without a flow entry the next datagram is looked at, too: it may ask for a name of the zone.
        if asked.is_none() {
            self.remember(cx, packet, parsed, (connection, pinned), plan, info.is_absent);
        }
        Admission::Pass(decided.plan)
    }

    /// Opens the connection of a packet that was evaluated as the first of a new one. `Ok(None)`:
    /// the packet passes without a connection.
    #[inline]
    fn connect<'s>(
        &mut self,
        cx: &BurstContext<'s>,
        index_hash: IndexHash,
        packet: &Packet,
        parsed: &Parsed,
        (backend, decided): (Option<SocketAddr>, &mut Decided<'s>),
    ) -> Result<Option<ConnectionRef>, Admission<'s>> {
        let flags = parsed.tcp_flags;
        if !may_open(&parsed.key, flags) {
            if decided.pinned.is_translated() && !is_unchanged(&decided.pinned, backend) {
                return Err(UNKNOWN_CONNECTION.into());
            }
            if cx.snapshot.services.is_backend(&parsed.key) {
                // A reply of a Service's connection that is no longer known. Without translation,
                // its client could not match it.
                return Err(DropReason::TcpInvalidState.into());
            }
        }
        if parsed.key.proto == proto::TCP && flags & RST != 0 {
            // Ends a connection that is not known here: it needs no entry.
            return Ok(None);
        }
        // Replies to packets from the tunnel are routed.
        if packet.via().is_none() {
            decided.pinned.origin_mac = source_mac(packet.bytes());
        }
        let mut port = decided.pinned.reply.dst_port;
        let Decided { pinned, forward, .. } = &mut *decided;
        let connection = match self.open(cx, index_hash, pinned, forward)? {
            Created::New(connection) => {
                self.counters.opened.add(1);
                connection
            }
            Created::Existing(known) => {
                // Another worker was faster. Its snapshot may have been another one, or its packet
                // may have come from the other end.
                let direction = known.connection.direction();
                let is_same = direction == Direction::Original && same_ends(&known.pinned, pinned);
                *pinned = known.pinned;
                if !is_same {
                    let known = Some((&known.pinned, direction));
                    let query = Query { known, ..Query::of(&parsed.key, packet) };
                    if let Some(other) = evaluate(cx.snapshot, &query, None, decided) {
                        return Err(other);
                    }
                    port = decided.pinned.reply.dst_port;
                }
                known.connection
            }
        };
        let Decided { pinned, plan, .. } = decided;
        if pinned.reply.dst_port != port {
            // The connection got another source port than the plan was made with.
            let outgoing = pinned.outgoing(Direction::Original);
            plan.source_port = SourcePort::from_hash(outgoing.hash(&cx.snapshot.cluster_key));
            *plan = plan.translate(&parsed.key, &outgoing);
        }
        Ok(Some(connection))
    }

    /// The connection of a reply whose source is a link-local address. The peer of a hairpin
    /// connection has a link-local address of the gateway; a server whose socket is not bound to an
    /// address replies to it from its own link-local address (RFC 6724 §5, rule 2).
    fn find_for_link_local(
        &self,
        cx: &BurstContext<'_>,
        packet: &Packet,
        parsed: &Parsed,
    ) -> Option<Known> {
        let snapshot = cx.snapshot;
        let IpAddr::V6(source) = parsed.key.src_addr() else { return None };
        if !source.is_unicast_link_local() || !snapshot.is_gateway(parsed.key.dst_addr()) {
            return None;
        }
        let find = |own: IpAddr| {
            let key = FlowKey { src: to_bytes(own).0, ..parsed.key };
            let tracker = &self.shared.tracker;
            tracker.find(tracker.index_hash(&key, key.hash(&self.shared.hash_key)), &key)
        };
        match snapshot.port(packet.ingress) {
            PortFacts::Pod(pod) => pod.ipv6.iter().find_map(|own| find((*own).into())),
            PortFacts::Host(_) => snapshot
                .node_addresses
                .iter()
                .filter(|own| own.is_ipv6())
                .find_map(|own| find(*own)),
            PortFacts::Uplink(_) | PortFacts::Unused | PortFacts::Bridge(_) => None,
        }
    }

    /// Whether a known connection ends with this packet: a SYN after the connection was closed, one
    /// that shows that its direction was wrong, or the client's next packet after a change of its
    /// Service. `None`: it continues.
    fn ending_action(
        &self,
        cx: &BurstContext<'_>,
        known: &Known,
        packet: &Packet,
        parsed: &Parsed,
    ) -> Option<ConnAction> {
        let is_syn = parsed.key.proto == proto::TCP && parsed.tcp_flags & (SYN | ACK) == SYN;
        let states = is_syn.then(|| self.shared.tracker.tcp_states(known.connection)).flatten();
        if states.is_some_and(|[own, peer]| is_over(own, peer)) {
            return Some(ConnAction::Reopen);
        }
        if self.corrects_direction(known, packet, parsed) {
            return Some(ConnAction::Reopen);
        }
        if known.connection.direction() == Direction::Reply {
            return None;
        }
        // A SYN without a reply so far, or an INIT: nothing is lost if it goes to another backend.
        let opens = states.is_some_and(|[_, peer]| peer == TcpState::None)
            || is_sctp_init(packet.bytes(), parsed);
        let action = connection_action(cx.snapshot, &known.pinned, opens);
        Some(action).filter(|action| *action != ConnAction::Keep)
    }

    /// Updates the connection with the packet. `Some`: the packet must be dropped.
    fn track(
        &self,
        cx: &BurstContext<'_>,
        connection: ConnectionRef,
        packet: &Packet,
        parsed: &Parsed,
        payload: u32,
    ) -> Option<DropReason> {
        let seconds = cx.now.as_secs() as u32;
        let tracker = &self.shared.tracker;
        if parsed.key.proto != proto::TCP {
            tracker.record(connection, packet.len(), seconds);
            return None;
        }
        let header = packet.bytes().get(usize::from(parsed.l4)..).unwrap_or_default();
        let segment = Segment::read(header, parsed.tcp_flags, payload);
        if segment.is_data() {
            tracker.record_segment(connection, &segment, packet.len(), seconds);
            return None;
        }
        let scale = if segment.flags & SYN != 0 { window_scale(header) } else { None };
        let judgement = tracker.control_segment(connection, &segment, scale, packet.len(), seconds);
        (judgement == Some(SegmentCheck::OutOfWindow)).then_some(DropReason::TcpOutOfWindow)
    }

    /// Enters the flow into this worker's table. If the table is full, the flow's packets keep taking
    /// the slow path.
    fn remember(
        &mut self,
        cx: &BurstContext<'_>,
        packet: &Packet,
        parsed: &Parsed,
        (connection, pinned): (ConnectionRef, &Pinned),
        plan: &Plan,
        is_absent: bool,
    ) {
        if parsed.fragment != Fragment::Whole {
            return;
        }
        let entry = FlowEntry {
            key: parsed.key,
            sender: sender_id(packet),
            connection,
            groups: Groups::of_connection(&pinned.original, &pinned.reply),
            last_seen: cx.now.as_secs() as u32,
            plan: *plan,
        };
        match is_absent {
            true => self.flows.insert_absent(parsed.hash, &entry),
            false => self.flows.insert(parsed.hash, &entry),
        };
    }
}

/// Evaluates a packet, and counts a denial. `Some`: it is not forwarded.
#[inline]
fn evaluate<'s>(
    snapshot: &'s Snapshot,
    query: &Query<'_>,
    hints: Option<&Hints<'s>>,
    decided: &mut Decided<'s>,
) -> Option<Admission<'s>> {
    let Decided { pinned, plan, forward } = decided;
    match decide(snapshot, query, hints, pinned, plan) {
        Verdict::Forward(decision) => {
            *forward = decision;
            None
        }
        Verdict::Gateway => Some(Admission::Gateway),
        Verdict::Drop(denial) => {
            match denial.counter {
                None => {}
                Some(DenialCounter::Policy(number)) => snapshot.policy_counters.add(number),
                Some(DenialCounter::ServiceRejected(entry)) => entry.count_rejected(),
                Some(DenialCounter::ServiceDropped(entry)) => entry.count_dropped(),
            }
            Some(Admission::Deny(denial))
        }
    }
}

/// The cause with which `action` ends a connection.
fn end_cause(snapshot: &Snapshot, known: &Known, action: ConnAction) -> EndCause {
    let is_gone = || connection_action(snapshot, &known.pinned, true) == ConnAction::Reopen;
    match action {
        ConnAction::Reset => EndCause::BackendGone,
        _ if known.pinned.is_via_service() && is_gone() => EndCause::BackendGone,
        _ => EndCause::Replaced,
    }
}

/// Whether two descriptions of a connection differ at most in the SNAT port.
fn same_ends(a: &Pinned, b: &Pinned) -> bool {
    let ends = |p: &Pinned| (p.reply.src, p.reply.src_port, p.reply.dst);
    ends(a) == ends(b)
}

/// Whether a Service gives a connection in mid-stream its known backend, and keeps the client's
/// address.
fn is_unchanged(pinned: &Pinned, backend: Option<SocketAddr>) -> bool {
    let client = &pinned.original;
    let is_kept = (pinned.reply.dst, pinned.reply.dst_port) == (client.src, client.src_port);
    let to = SocketAddr::new(pinned.reply.src_addr(), pinned.reply.src_port);
    is_kept && pinned.source_nat == SourceNat::Kept && backend == Some(to)
}
