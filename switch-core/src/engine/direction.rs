//! A connection has one direction: its client's. What is judged here are the packets that say who
//! the client is (a SYN, an INIT), or fail to: segments in mid-stream of connections that the
//! switch does not know, after it was restarted or after long silence.
//!
//! On the slow path. Nothing here trusts the order in which two ends happen to speak.

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use podswitch_policy::service::table::FrontendKind;
use podswitch_wire::checksum::{fill_l4, sum};
use podswitch_wire::flow_key::{FlowKey, proto};
use podswitch_wire::parse::tcp_flags::{ACK, RST, SYN};
use podswitch_wire::parse::{Network, Parsed, parse};

use super::admit::{FORGOTTEN, is_sctp_init};
use super::{Engine, Turn};
use crate::action::{DropClass, DropReason, Plan};
use crate::flow::connection::{Created, Direction, Known, Opened, Pinned, Refused};
use crate::flow::probes::{Progress, client_key};
use crate::flow::tcp::{Segment, TcpState};
use crate::id::PortId;
use crate::limit::{KeyedLimiter, Rate};
use crate::packet::{Origin, Packet};
use crate::resolve::{Denial, Query, Verdict, check_source, decide};
use crate::snapshot::{Location, Reach, Snapshot};

/// What becomes of a segment whose connection is not known.
pub(super) enum PickUp {
    /// Its sender is the client, or may be: it is judged as it goes.
    Forward(Opened),
    /// It answers a client: the connection is known from now on.
    Reply(Known),
    /// It is a client's whose connection is through a Service, with this backend.
    Through(SocketAddr),
    /// It does not pass.
    Deny(Denial),
}

/// Which end of a connection sent a segment in mid-stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sender {
    Client,
    Server,
    Unknown,
}

/// The first port that systems give to clients of their own accord (Linux's default of
/// `net.ipv4.ip_local_port_range`; IANA's range begins at 49,152).
const FIRST_EPHEMERAL: u16 = 32_768;

/// The most addresses of Services that a client is asked for.
const CANDIDATES: usize = 16;

/// Questions that one port's segments may give rise to.
pub(super) fn probe_limiter() -> KeyedLimiter {
    KeyedLimiter::new(Rate::new(1000, 1000), PortId::MAX_PORTS)
}

impl Engine {
    /// Whether a packet says that a known connection goes the other way than the switch believed,
    /// so that the connection ends: only where its first packet was not seen.
    pub(super) fn says_otherwise(&self, known: &Known, packet: &Packet, parsed: &Parsed) -> bool {
        let Known { connection, pinned } = known;
        let direction = connection.direction();
        if pinned.is_translated() {
            return false;
        }
        if is_sctp_init(packet.bytes(), parsed) {
            return direction == Direction::Reply && pinned.opened != Opened::First;
        }
        if parsed.key.proto != proto::TCP || parsed.tcp_flags & SYN == 0 {
            return false;
        }
        // A SYN is the client's, a SYN-ACK the server's, unless both open at once (RFC 9293 §3.5).
        let is_clients = parsed.tcp_flags & ACK == 0;
        let agrees = (direction == Direction::Original) == is_clients;
        if agrees || pinned.opened == Opened::First && is_clients {
            return false;
        }
        let states = self.shared.tracker.tcp_states(*connection);
        pinned.opened != Opened::First
            || states.is_some_and(|[own, _]| own >= TcpState::Established)
    }

    /// Whether a SYN of the reply direction opens a connection of its own and policy denies that,
    /// whatever it allows the known one. Only where both ends open at once is the one's SYN an answer to
    /// the other's.
    pub(super) fn opens_against(
        &self,
        turn: &Turn<'_>,
        known: &Known,
        packet: &Packet,
        parsed: &Parsed,
    ) -> Option<Denial> {
        let is_syn = parsed.key.proto == proto::TCP && parsed.tcp_flags & (SYN | ACK) == SYN;
        if known.connection.direction() == Direction::Original || !is_syn {
            return None;
        }
        let states = self.shared.tracker.tcp_states(known.connection)?;
        let opens = !matches!(states, [TcpState::None | TcpState::SynSent, TcpState::SynSent]);
        match opens.then(|| judge(turn.snapshot, &Query::of(&parsed.key, packet)))? {
            Verdict::Drop(denial) if is_policy(&denial) => Some(denial),
            _ => None,
        }
    }

    /// Judges a TCP segment that opens nothing and belongs to no known connection.
    ///
    /// Liberal where nothing is translated (a restart must not break connections), but never the
    /// wrong way round: what policy denies the client, the server's speaking first does not allow.
    /// What a Service's backend sends is translated as its client says that it knows it.
    pub(super) fn pick_up(
        &mut self,
        turn: &mut Turn<'_>,
        packet: &Packet,
        parsed: &Parsed,
    ) -> PickUp {
        let (snapshot, key) = (turn.snapshot, &parsed.key);
        let query = Query::of(key, packet);
        if let Err(reason) = check_source(snapshot, &query) {
            return PickUp::Deny(reason.into());
        }
        let seconds = turn.now.as_secs() as u32;
        let segment = read_segment(packet, parsed);
        if parsed.tcp_flags & RST != 0 {
            let is_answer = self.shared.probes.deny(key, &segment);
            let reason = DropReason::TcpInvalidState;
            return if is_answer {
                PickUp::Deny(reason.into())
            } else {
                PickUp::Forward(Opened::MidStream)
            };
        }
        if let Some(backend) = self.shared.probes.confirm(key, &segment, seconds) {
            return PickUp::Through(backend);
        }
        let sender = sender(snapshot, key, parsed.tcp_flags);
        if sender == Sender::Client {
            return PickUp::Forward(Opened::MidStream);
        }
        let as_sent = match judge(snapshot, &query) {
            Verdict::Gateway => return PickUp::Forward(Opened::MidStream),
            Verdict::Forward(_) => None,
            Verdict::Drop(denial) => Some(denial),
        };
        let Some(pinned) = snapshot.opened_by_receiver(key) else {
            return PickUp::Forward(Opened::Undirected);
        };
        let known = Some((&pinned, Direction::Reply));
        let as_reply = match judge(snapshot, &Query { known, ..query }) {
            Verdict::Drop(denial) => Some(denial),
            Verdict::Forward(_) | Verdict::Gateway => None,
        };
        if sender == Sender::Unknown {
            return match (as_sent, as_reply) {
                (None, Some(denial)) if is_policy(&denial) => PickUp::Deny(FORGOTTEN),
                _ => PickUp::Forward(Opened::Undirected),
            };
        }
        if let Some(denial) = as_reply {
            return PickUp::Deny(denial);
        }
        let is_syn_ack = parsed.tcp_flags & SYN != 0;
        if snapshot.services.is_backend(key) {
            if is_syn_ack {
                return PickUp::Deny(DropReason::TcpInvalidState.into());
            }
            if let Some(denial) = self.ask_for_service(turn, packet, parsed, &pinned) {
                return PickUp::Deny(denial);
            }
        }
        match as_sent {
            Some(denial) if is_policy(&denial) => {
                // The receiver takes no connections from there: its own word is needed that it has
                // opened one. It answers what it cannot accept (RFC 9293 §3.10.7.4), and that answer
                // is judged as its own.
                if !is_syn_ack && self.may_probe(turn, packet) {
                    self.probe(turn, packet, parsed, &pinned);
                }
                PickUp::Deny(DropReason::TcpInvalidState.into())
            }
            _ => {
                let place = self.shared.tracker.place(key, parsed.hash);
                match self.create(turn, place, &pinned) {
                    Ok(Created::New(connection)) => {
                        let connection = connection.reversed();
                        PickUp::Reply(Known { connection, pinned })
                    }
                    Ok(Created::Existing(Known { connection, pinned })) => {
                        PickUp::Reply(Known { connection: connection.reversed(), pinned })
                    }
                    Err(refused) => PickUp::Deny(DropReason::from(refused).into()),
                }
            }
        }
    }

    /// Of a Service's backend that sends to the client of `direct`: asks the client for the addresses of
    /// the Service by which it may know the connection, where this node would translate them. What the
    /// client answers is picked up as its own (`Through`). Some: the segment does not pass; untranslated
    /// its client would take it for a stranger's (S15). `None`: the connection is not a Service's.
    fn ask_for_service(
        &mut self,
        turn: &mut Turn<'_>,
        packet: &Packet,
        parsed: &Parsed,
        direct: &Pinned,
    ) -> Option<Denial> {
        let (snapshot, key) = (turn.snapshot, &parsed.key);
        let client = key.dst_addr();
        let is_own = snapshot.node_addresses.contains(&client);
        if is_own && snapshot.nat_ports.contains(&key.dst_port) {
            // It stands for a client that nothing tells any more: the server is told.
            return Some(FORGOTTEN);
        }
        let is_here = is_own || snapshot.is_local_pod(client);
        if !is_here && direct.origin_end.is_none() && snapshot.reach(client).is_none() {
            // Off the cluster, by a way that only its own packets tell.
            return Some(FORGOTTEN);
        }
        let seconds = turn.now.as_secs() as u32;
        let unknown = Some(DropReason::TcpInvalidState.into());
        match self.shared.probes.progress(key, seconds) {
            Some(Progress::Denied) => return None,
            Some(Progress::Waiting) => return unknown,
            None => {}
        }
        let tracker = &self.shared.tracker;
        let backend = SocketAddr::new(key.src_addr(), key.src_port);
        let addresses: ArrayVec<SocketAddr, CANDIDATES> = snapshot
            .services
            .frontends_of(backend)
            // Other nodes translate for their own pods, but node ports.
            .filter(|(kind, _)| is_here || *kind == FrontendKind::NodePort)
            .map(|(_, address)| address)
            // With another backend it is known.
            .filter(|address| !tracker.is_taken(&client_key(key, *address)))
            .take(CANDIDATES)
            .collect();
        if addresses.is_empty() {
            return None;
        }
        let segment = read_segment(packet, parsed);
        if self.may_probe(turn, packet)
            && self.shared.probes.begin(key, &segment, &addresses, seconds)
        {
            for address in addresses {
                let pinned = Pinned { original: client_key(key, address), ..*direct };
                self.probe(turn, packet, parsed, &pinned);
            }
        }
        unknown
    }

    /// Whether one more segment that came in by a port may give rise to questions.
    fn may_probe(&mut self, turn: &Turn<'_>, packet: &Packet) -> bool {
        self.probes.take(packet.ingress.0.into(), turn.now)
    }

    /// Has the client of `pinned` say whether it has this connection: sends it the header of its
    /// server's segment, with a sequence number that it has long had. A stack answers that with what
    /// it expects, or with a reset where there is no such connection.
    fn probe(&mut self, turn: &mut Turn<'_>, packet: &Packet, parsed: &Parsed, pinned: &Pinned) {
        let known = Some((pinned, Direction::Reply));
        let query = Query { known, ..Query::of(&parsed.key, packet) };
        let (mut pinned, mut plan) = (query.pinned(), Plan::default());
        let verdict = decide(turn.snapshot, &query, None, &mut pinned, &mut plan);
        if !matches!(verdict, Verdict::Forward(_)) {
            return;
        }
        let Some(mut probe) = turn.pool.alloc_for(usize::from(parsed.payload)) else { return };
        let header = packet.bytes().get(..usize::from(parsed.payload)).unwrap_or_default();
        probe.fill(header);
        (probe.ingress, probe.origin) = (packet.ingress, Origin::Copy);
        probe.set_via(packet.via());
        stale(probe.bytes_mut(), parsed);
        match parse(probe.bytes(), &self.shared.hash_key) {
            Ok(parsed) => self.transmit(turn, probe, &parsed, &plan),
            Err(_) => turn.pool.free(probe),
        }
    }
}

fn read_segment(packet: &Packet, parsed: &Parsed) -> Segment {
    let header = packet.bytes().get(usize::from(parsed.l4)..).unwrap_or_default();
    Segment::read(header, parsed.tcp_flags, 0)
}

/// Makes a frame that ends behind its TCP header a bare acknowledgment whose sequence number its
/// receiver has long had.
fn stale(frame: &mut [u8], parsed: &Parsed) {
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
    // No urgent data either.
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

/// What the state says of a packet; nothing is kept of it.
fn judge<'s>(snapshot: &'s Snapshot, query: &Query<'_>) -> Verdict<'s> {
    let (mut pinned, mut plan) = (query.pinned(), Plan::default());
    decide(snapshot, query, None, &mut pinned, &mut plan)
}

fn is_policy(denial: &Denial) -> bool {
    denial.reason.class() == DropClass::Policy
}

/// Who sent a segment in mid-stream, by what is known of both ends.
fn sender(snapshot: &Snapshot, key: &FlowKey, flags: u8) -> Sender {
    if snapshot.services.is_frontend(key) {
        return Sender::Client;
    }
    if flags & SYN != 0 {
        // Not alone: it answers one.
        return Sender::Server;
    }
    match serves(snapshot, key).cmp(&serves(snapshot, &key.reversed())) {
        core::cmp::Ordering::Less => Sender::Client,
        core::cmp::Ordering::Equal => Sender::Unknown,
        core::cmp::Ordering::Greater => Sender::Server,
    }
}

/// How much speaks for a listener at the source of `key`: 2 for a Service's endpoint or a port that
/// its pod declares, 1 for a port below those of clients.
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
    /// The connection, not translated, that a packet of this key answers: opened by its receiver,
    /// from where that one's packets come in. `None`: from nowhere.
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

impl From<Refused> for DropReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::ConnectionTableFull,
            Refused::Limit(_) => Self::ConnectionLimit,
            Refused::Collision => Self::NatPortsExhausted,
        }
    }
}
