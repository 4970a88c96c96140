//! The direction of a connection: which end is the client. The packets that open a connection (SYN, INIT) show it. For
//! a segment in mid-stream of an unknown connection, after a restart or a long silence, it is derived from the services
//! that listen at either port. If that leaves doubt, the client itself is probed.
//!
//! On the slow path. The order in which the two ends happen to send is never used.

use core::cmp::Ordering;
use std::net::SocketAddr;

use arrayvec::ArrayVec;
use podswitch_policy::service::table::FrontendKind;
use podswitch_wire::checksum::{fill_l4, sum};
use podswitch_wire::flow_key::{FlowKey, proto};
use podswitch_wire::parse::tcp_flags::{ACK, RST, SYN};
use podswitch_wire::parse::{Network, Parsed, parse};

use super::{BurstContext, Engine};
use crate::action::{DropClass, DropReason, Plan};
use crate::flow::connection::{Created, Known};
use crate::flow::probes::{Progress, client_key};
use crate::flow::tcp::{Segment, TcpState};
use crate::id::PortId;
use crate::limit::{KeyedLimiter, Rate};
use crate::packet::{Origin, Packet};
use crate::pinned::{Direction, Opened, Pinned};
use crate::resolve::{Answer, Denial, Query, Verdict, check_source, decide};
use crate::snapshot::{Location, Reach, Snapshot};

/// A TCP segment to a Service whose connection is not known. Its sender gets a reset, as from any host that has lost
/// the connection, so it does not have to time out (S11).
pub(super) const UNKNOWN_CONNECTION: Denial<'static> = Denial {
    reason: DropReason::TcpInvalidState,
    object: None,
    answer: Answer::PortUnreachable,
    counter: None,
};

/// The handling of a segment of an unknown connection.
pub(super) enum PickUp<'s> {
    /// Its sender is the client, or may be: the segment is evaluated in its own direction.
    Forward(Opened),
    /// Its sender is the server. The connection is known from now on.
    Reply(Known),
    /// It is from the client of a connection through a Service, with this backend.
    Through(SocketAddr),
    /// It is dropped.
    Deny(Denial<'s>),
}

/// Which end of a connection sent a segment in mid-stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sender {
    Client,
    Server,
    Unknown,
}

/// The first port that systems assign to clients (the default of Linux's
/// `net.ipv4.ip_local_port_range`; IANA's range begins at 49,152).
const FIRST_EPHEMERAL: u16 = 32_768;
/// Maximum number of frontends for which a client is probed.
const CANDIDATES: usize = 16;

/// The rate of probes that segments from one port cause.
pub(super) fn probe_limiter() -> KeyedLimiter {
    KeyedLimiter::new(Rate::new(1000, 1000), PortId::MAX_PORTS)
}

impl Engine {
    /// Whether a packet shows that a known connection, whose first packet was not seen, has the
    /// opposite direction. The connection must end.
    pub(super) fn corrects_direction(
        &self,
        known: &Known,
        packet: &Packet,
        parsed: &Parsed,
    ) -> bool {
        let Known { connection, pinned } = known;
        let direction = connection.direction();
        if pinned.is_translated() {
            return false;
        }
        if opens_association(packet.bytes(), parsed) {
            return direction == Direction::Reply && pinned.opened != Opened::First;
        }
        if parsed.key.proto != proto::TCP || parsed.tcp_flags & SYN == 0 {
            return false;
        }
        // A SYN is from the client and a SYN-ACK from the server, unless both ends open at once
        // (RFC 9293 §3.5).
        let is_from_client = parsed.tcp_flags & ACK == 0;
        let agrees = (direction == Direction::Original) == is_from_client;
        if agrees || pinned.opened == Opened::First && is_from_client {
            return false;
        }
        let states = self.shared.tracker.tcp_states(*connection);
        pinned.opened != Opened::First
            || states.is_some_and(|[own, _]| own >= TcpState::Established)
    }

    /// The denial of a SYN of the reply direction, if policy denies the connection that it opens. The verdict on the
    /// known connection is not used. Only if both ends open at once, one end's SYN is a reply to the other's.
    ///
    /// SCTP's INIT and COOKIE ECHO restart an association from either end (RFC 9260 §5.2.4), so they
    /// are evaluated likewise. If both ends open at once, one end's chunks suffice (§5.2.1).
    pub(super) fn opens_against<'s>(
        &self,
        cx: &BurstContext<'s>,
        known: &Known,
        packet: &Packet,
        parsed: &Parsed,
    ) -> Option<Denial<'s>> {
        if known.connection.direction() == Direction::Original {
            return None;
        }
        if !opens_association(packet.bytes(), parsed) {
            if parsed.key.proto != proto::TCP || parsed.tcp_flags & (SYN | ACK) != SYN {
                return None;
            }
            let states = self.shared.tracker.tcp_states(known.connection)?;
            if matches!(states, [TcpState::None | TcpState::SynSent, TcpState::SynSent]) {
                return None;
            }
        }
        denial(cx.snapshot, &Query::of(&parsed.key, packet)).filter(is_policy)
    }

    /// Evaluates a TCP segment that opens nothing and belongs to no known connection.
    ///
    /// Connections without translation are picked up, so that a restart does not break them, but only in their own
    /// direction: if policy denies the client's connection, the server cannot open it by sending first. Segments of a
    /// Service's backend pass after the client has confirmed the address of the Service to which it connected.
    pub(super) fn pick_up<'s>(
        &mut self,
        cx: &mut BurstContext<'s>,
        packet: &Packet,
        parsed: &Parsed,
    ) -> PickUp<'s> {
        let (snapshot, key) = (cx.snapshot, &parsed.key);
        let query = Query::of(key, packet);
        if let Err(reason) = check_source(snapshot, &query) {
            return PickUp::Deny(reason.into());
        }
        let unknown = || PickUp::Deny(DropReason::TcpInvalidState.into());
        let segment = read_segment(packet, parsed);
        if parsed.tcp_flags & RST != 0 {
            return match self.shared.probes.deny(key, &segment) {
                true => unknown(),
                false => PickUp::Forward(Opened::MidStream),
            };
        }
        if let Some(backend) = self.shared.probes.confirm(key, &segment, cx.now.as_secs() as u32) {
            return PickUp::Through(backend);
        }
        let sender = sender(snapshot, key, parsed.tcp_flags);
        if sender == Sender::Client || snapshot.is_gateway(key.dst_addr()) {
            return PickUp::Forward(Opened::MidStream);
        }
        let Some(pinned) = snapshot.opened_by_receiver(key) else {
            return PickUp::Forward(Opened::Undirected);
        };
        let known = Some((&pinned, Direction::Reply));
        let as_reply = denial(snapshot, &Query { known, ..query });
        let as_sent = denial(snapshot, &query);
        if sender == Sender::Unknown {
            return match (as_sent, as_reply) {
                (None, Some(denial)) if is_policy(&denial) => PickUp::Deny(UNKNOWN_CONNECTION),
                _ => PickUp::Forward(Opened::Undirected),
            };
        }
        if let Some(denial) = as_reply {
            return PickUp::Deny(denial);
        }
        let is_syn_ack = parsed.tcp_flags & SYN != 0;
        if snapshot.services.is_backend(key) {
            if is_syn_ack {
                // The client retransmits its SYN, which opens the connection.
                return unknown();
            }
            if let Some(denial) = self.probe_for_service(cx, packet, parsed, &pinned) {
                return PickUp::Deny(denial);
            }
        }
        if as_sent.is_some_and(|denial| is_policy(&denial)) {
            // The client accepts no connections from this server. It must show that it opened one
            // itself before it gets the server's data.
            if !is_syn_ack && self.may_probe(cx, packet) {
                self.probe(cx, packet, parsed, &pinned);
            }
            return unknown();
        }
        let index_hash = self.shared.tracker.index_hash(key, parsed.hash);
        match self.create(cx, index_hash, &pinned) {
            Ok(Created::New(connection)) => {
                PickUp::Reply(Known { connection: connection.reversed(), pinned })
            }
            Ok(Created::Existing(Known { connection, pinned })) => {
                PickUp::Reply(Known { connection: connection.reversed(), pinned })
            }
            Err(refused) => PickUp::Deny(DropReason::from(refused).into()),
        }
    }

    /// For a segment of a Service's backend to the client of `direct`: probes the client for each
    /// address of the Service by which it may know the connection and which this node would
    /// translate. The client's answer is picked up as [`Through`](PickUp::Through). `Some`: the
    /// segment must be dropped, since the client could not match it untranslated (S15). `None`: the
    /// connection does not use a Service.
    fn probe_for_service(
        &mut self,
        cx: &mut BurstContext<'_>,
        packet: &Packet,
        parsed: &Parsed,
        direct: &Pinned,
    ) -> Option<Denial<'static>> {
        let (snapshot, key) = (cx.snapshot, &parsed.key);
        let client = key.dst_addr();
        let is_own = snapshot.node_addresses.contains(&client);
        if is_own && snapshot.nat_ports.contains(&key.dst_port) {
            // An SNAT port. Its client is not known any more, so the server gets a reset.
            return Some(UNKNOWN_CONNECTION);
        }
        let is_here = is_own || snapshot.is_local_pod(client);
        let is_outside =
            !is_here && direct.origin_end.is_none() && snapshot.reach(client).is_none();
        let seconds = cx.now.as_secs() as u32;
        let unknown = Some(DropReason::TcpInvalidState.into());
        match self.shared.probes.progress(key, seconds) {
            Some(Progress::Denied) => return None,
            Some(Progress::Waiting) => return unknown,
            None => {}
        }
        let tracker = &self.shared.tracker;
        let backend = SocketAddr::new(key.src_addr(), key.src_port);
        let frontends: ArrayVec<SocketAddr, CANDIDATES> = snapshot
            .services
            .frontends_of(backend)
            // Other nodes translate for their own pods, except at this node's NodePorts. Cluster IPs are not reachable
            // from outside.
            .filter(|(kind, _)| match is_outside {
                true => *kind != FrontendKind::ClusterIp,
                false => is_here || *kind == FrontendKind::NodePort,
            })
            .map(|(_, frontend)| frontend)
            // A known connection of the client to this frontend has another backend.
            .filter(|frontend| !tracker.is_taken(&client_key(key, *frontend)))
            .take(CANDIDATES)
            .collect();
        if frontends.is_empty() {
            // Only the packets of a client outside the cluster show to which address it connected.
            return is_outside.then_some(UNKNOWN_CONNECTION);
        }
        let segment = read_segment(packet, parsed);
        if self.may_probe(cx, packet)
            && self.shared.probes.begin(key, &segment, &frontends, seconds)
        {
            for frontend in frontends {
                let pinned = Pinned { original: client_key(key, frontend), ..*direct };
                self.probe(cx, packet, parsed, &pinned);
            }
        }
        unknown
    }

    /// Whether the rate of probes allows one more for a segment from this port.
    fn may_probe(&mut self, cx: &BurstContext<'_>, packet: &Packet) -> bool {
        self.probes.take(packet.ingress.0.into(), cx.now)
    }

    /// Sends the client of `pinned` the header of its server's segment, as a bare acknowledgment with an old sequence
    /// number. A stack that has the connection answers with an acknowledgment (RFC 9293 §3.10.7.4); a stack that does
    /// not have it answers with a reset.
    fn probe(
        &mut self,
        cx: &mut BurstContext<'_>,
        packet: &Packet,
        parsed: &Parsed,
        pinned: &Pinned,
    ) {
        let known = Some((pinned, Direction::Reply));
        let query = Query { known, ..Query::of(&parsed.key, packet) };
        let (mut pinned, mut plan) = (query.pinned(), Plan::default());
        let verdict = decide(cx.snapshot, &query, None, &mut pinned, &mut plan);
        if !matches!(verdict, Verdict::Forward(_)) {
            return;
        }
        let Some(mut probe) = cx.pool.alloc_for(usize::from(parsed.payload)) else { return };
        let header = packet.bytes().get(..usize::from(parsed.payload)).unwrap_or_default();
        probe.fill(header);
        (probe.ingress, probe.origin) = (packet.ingress, Origin::Copy);
        probe.set_via(packet.via());
        make_stale(probe.bytes_mut(), parsed);
        match parse(probe.bytes(), &self.shared.hash_key) {
            Ok(parsed) => self.transmit(cx, probe, &parsed, &plan),
            Err(_) => cx.pool.free(probe),
        }
    }
}

fn read_segment(packet: &Packet, parsed: &Parsed) -> Segment {
    let header = packet.bytes().get(usize::from(parsed.l4)..).unwrap_or_default();
    Segment::read(header, parsed.tcp_flags, 0)
}

/// Turns a frame that ends behind its TCP header into a bare acknowledgment with a sequence number far
/// before the receiver's window.
fn make_stale(frame: &mut [u8], parsed: &Parsed) {
    /// A quarter of the sequence space: more than any window (RFC 7323 §2.3).
    const BACK: u32 = 1 << 30;
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let len = frame.len();
    match parsed.network {
        Network::Ipv4 => {
            put(frame, l3 + 2, ((len - l3) as u16).to_be_bytes());
            put(frame, l3 + 10, [0; 2]);
            let sum = sum(frame.get(l3..l4).unwrap_or_default()).checksum();
            put(frame, l3 + 10, sum.to_be_bytes());
        }
        _ => put(frame, l3 + 4, ((len - l3 - 40) as u16).to_be_bytes()),
    }
    let seq = frame.get(l4 + 4..l4 + 8).and_then(|b| b.first_chunk()).copied().unwrap_or_default();
    put(frame, l4 + 4, u32::from_be_bytes(seq).wrapping_sub(BACK).to_be_bytes());
    if let Some(flags) = frame.get_mut(l4 + 13) {
        *flags = ACK;
    }
    // No urgent pointer.
    put(frame, l4 + 18, [0; 2]);
    let mut parsed = *parsed;
    parsed.end = len as u32;
    fill_l4(frame, &parsed);
}

fn put<const N: usize>(frame: &mut [u8], at: usize, bytes: [u8; N]) {
    if let Some(field) = frame.get_mut(at..at + N) {
        field.copy_from_slice(&bytes);
    }
}

/// Why a packet would be dropped. Does not count.
fn denial<'s>(snapshot: &'s Snapshot, query: &Query<'_>) -> Option<Denial<'s>> {
    let (mut pinned, mut plan) = (query.pinned(), Plan::default());
    match decide(snapshot, query, None, &mut pinned, &mut plan) {
        Verdict::Drop(denial) => Some(denial),
        Verdict::Forward(_) | Verdict::Gateway => None,
    }
}

fn is_policy(denial: &Denial<'_>) -> bool {
    denial.reason.class() == DropClass::Policy
}

/// Which end sent a segment in mid-stream, derived from the known facts of both ends.
fn sender(snapshot: &Snapshot, key: &FlowKey, flags: u8) -> Sender {
    if snapshot.services.is_frontend(key) {
        return Sender::Client;
    }
    if flags & SYN != 0 {
        // A SYN-ACK.
        return Sender::Server;
    }
    match serves(snapshot, key).cmp(&serves(snapshot, &key.reversed())) {
        Ordering::Less => Sender::Client,
        Ordering::Equal => Sender::Unknown,
        Ordering::Greater => Sender::Server,
    }
}

/// How likely the source of `key` is a listening port: 2 for an endpoint of a Service and a port that
/// its pod declares, 1 for a port below the ephemeral ones.
fn serves(snapshot: &Snapshot, key: &FlowKey) -> u8 {
    let declares = || {
        let facts = snapshot.endpoints.get(&key.src_addr());
        let ports = facts.map(|facts| &*facts.endpoint.workload.ports).unwrap_or_default();
        ports.iter().any(|p| p.port == key.src_port && p.protocol.number() == key.proto)
    };
    if snapshot.services.is_backend(key) || declares() {
        2
    } else {
        u8::from(key.src_port < FIRST_EPHEMERAL)
    }
}

impl Snapshot {
    /// The untranslated connection that a packet with this key belongs to if its receiver is the
    /// client. `None` if there is no port that the receiver's packets could come from.
    fn opened_by_receiver(&self, key: &FlowKey) -> Option<Pinned> {
        let client = key.dst_addr();
        let (origin, origin_end) = match self.endpoints.get(&client).map(|facts| &facts.location) {
            Some(Location::Attached { port, .. }) => (*port, None),
            _ => match self.reach(client) {
                Some(Reach::Tunnel(end)) => (self.tunnels.port, Some(end)),
                Some(Reach::Neighbour(_)) => (self.uplinks.direct?.port, None),
                _ => (self.host?.port, None),
            },
        };
        let opened = Opened::MidStream;
        Some(Pinned { origin_end, opened, ..Pinned::new(key.reversed(), origin) })
    }
}

/// The type of an SCTP packet's first chunk (RFC 9260 §3.2).
fn first_chunk(frame: &[u8], parsed: &Parsed) -> Option<u8> {
    let is_sctp = parsed.key.proto == proto::SCTP;
    is_sctp.then(|| frame.get(usize::from(parsed.l4) + 12).copied()).flatten()
}

/// Whether the packet's first chunk is the INIT that opens an association (RFC 9260 §3.3.2), which
/// is always alone in its packet.
pub(super) fn is_sctp_init(frame: &[u8], parsed: &Parsed) -> bool {
    first_chunk(frame, parsed) == Some(1)
}

/// Whether the packet's first chunk is INIT, or COOKIE ECHO, which is always the first chunk of its packet (RFC 9260
/// §3.3.11). Only the end that opens or restarts an association sends these chunks.
pub(super) fn opens_association(frame: &[u8], parsed: &Parsed) -> bool {
    matches!(first_chunk(frame, parsed), Some(1 | 10))
}
