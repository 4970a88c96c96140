//! Admission: finds or makes a packet's connection, judges it, and remembers the answer.
//!
//! On the slow path, for what did not hit: first packets, packets after an epoch change, segments
//! that open or end a connection, first fragments.

use std::net::{IpAddr, SocketAddr};

use podswitch_vxlan::template::SourcePort;
use podswitch_wire::flow_key::{FlowKey, proto, to_bytes};
use podswitch_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};
use podswitch_wire::parse::{Fragment as Part, Parsed};

use super::ahead::Ahead;
use super::direction::PickUp;
use super::slow::source;
use super::{Engine, Turn, sender};
use crate::action::{DropReason, Plan};
use crate::flow::connection::{
    ConnectionRef, Created, Direction, Known, Opened, Pinned, Place, Refused, SourceNat,
};
use crate::flow::nat::Lease;
use crate::flow::table::FlowEntry;
use crate::flow::tcp::{Judgement, Segment, TcpState, is_over, window_scale};
use crate::limit::{KeyedLimiter, Rate};
use crate::packet::Packet;
use crate::resolve::{
    Answer, Denial, Fate, Query, Served, Verdict, check_source, decide, fate, may_open, outgoing,
};
use crate::snapshot::{Groups, PortFacts};

/// What admission says to a packet.
pub(super) enum Admission {
    /// Pass, as the plan says.
    Pass(Plan),
    /// The gateway takes it.
    Gateway,
    /// Drop.
    Deny(Denial),
}

impl From<DropReason> for Admission {
    fn from(reason: DropReason) -> Self {
        Self::Deny(reason.into())
    }
}

/// A TCP segment to a Service whose connection we do not know: its sender is told, as by any host
/// that has forgotten a connection, rather than left to wait (S11).
pub(super) const FORGOTTEN: Denial =
    Denial { reason: DropReason::TcpInvalidState, object: None, answer: Answer::PortUnreachable };

impl Engine {
    /// Judges a packet, or the datagram of a first fragment, with `payload` bytes behind its
    /// layer-4 header; finds or makes its connection, and remembers the answer.
    pub(super) fn admit<'s>(
        &mut self,
        turn: &mut Turn<'s>,
        packet: &Packet,
        parsed: &Parsed,
        payload: u32,
        ahead: Ahead<'_, 's>,
    ) -> Admission {
        self.counters.misses.add(1);
        let flags = parsed.tcp_flags;
        let is_tcp = parsed.key.proto == proto::TCP;
        if is_tcp && !is_possible(flags) {
            return DropReason::TcpInvalidState.into();
        }
        let place = match ahead.note {
            Some(note) => note.place,
            None => self.shared.tracker.place(&parsed.key, parsed.hash),
        };
        let found = self.shared.tracker.find(place, &parsed.key);
        let mut known = found.or_else(|| self.behind_link_local(turn, packet, parsed));
        if let Some(old) = known
            && let Some(end) = self.end_of(turn, &old, packet, parsed)
        {
            // But only its own ends can end it.
            if let Err(reason) = check_source(turn.snapshot, &Query::of(&parsed.key, packet)) {
                return reason.into();
            }
            self.shared.tracker.end(old.connection);
            if end == Fate::Reset {
                return Admission::Deny(FORGOTTEN);
            }
            known = None;
        }
        let opens = may_open(&parsed.key, flags);
        let (mut opened, mut backend) = (Opened::First, None);
        match &known {
            Some(known) => {
                if let Some(denial) = self.opens_against(turn, known, packet, parsed) {
                    return Admission::Deny(denial);
                }
            }
            None if !opens => match self.pick_up(turn, packet, parsed) {
                PickUp::Forward(how) => opened = how,
                PickUp::Through(server) => (opened, backend) = (Opened::MidStream, Some(server)),
                PickUp::Reply(connection) => known = Some(connection),
                PickUp::Deny(denial) => return Admission::Deny(denial),
            },
            None if parsed.key.proto == proto::SCTP && !is_sctp_init(packet.bytes(), parsed) => {
                opened = Opened::MidStream;
            }
            None => {}
        }
        let query = Query {
            known: known.as_ref().map(|k| (&k.pinned, k.connection.direction())),
            pins: Some((&self.shared.affinity, turn.now.as_secs() as u32)),
            backend,
            ..Query::of(&parsed.key, packet)
        };
        let mut plan = Plan::default();
        let mut pinned = query.pinned();
        if known.is_none() {
            pinned.opened = opened;
        }
        let likely = ahead.note.map(|note| &note.likely);
        let service = match decide(turn.snapshot, &query, likely, &mut pinned, &mut plan) {
            Verdict::Forward(service) => service,
            Verdict::Gateway => return Admission::Gateway,
            Verdict::Drop(denial) => return Admission::Deny(denial),
        };
        let connection = match &known {
            Some(known) => known.connection,
            None if !opens && pinned.is_translated() && !is_as_it_was(&pinned, backend) => {
                return Admission::Deny(FORGOTTEN);
            }
            None if !opens && turn.snapshot.services.is_backend(&parsed.key) => {
                // What a Service's connection was once: its client would take it for a stranger's.
                return DropReason::TcpInvalidState.into();
            }
            None if is_tcp && flags & RST != 0 => {
                // Ends a connection that we never saw: passes as it may, and leaves no trace.
                return Admission::Pass(plan);
            }
            None => {
                // Answers to what came through the tunnel go by the routes.
                if packet.via().is_none() {
                    pinned.origin_mac = source(packet.bytes());
                }
                let mut port = pinned.reply.dst_port;
                let connection = match self.open(turn, place, &mut pinned, service.as_ref()) {
                    Ok(Created::New(connection)) => connection,
                    Ok(Created::Existing(known)) => {
                        let direction = known.connection.direction();
                        let is_same =
                            direction == Direction::Original && same_ends(&known.pinned, &pinned);
                        pinned = known.pinned;
                        if !is_same {
                            // Another worker was first, by another state or from the other end.
                            let known = Some((&known.pinned, direction));
                            let query = Query { known, ..Query::of(&parsed.key, packet) };
                            match decide(turn.snapshot, &query, None, &mut pinned, &mut plan) {
                                Verdict::Forward(_) => {}
                                Verdict::Gateway => return Admission::Gateway,
                                Verdict::Drop(denial) => return Admission::Deny(denial),
                            }
                            port = pinned.reply.dst_port;
                        }
                        known.connection
                    }
                    Err(reason) => return reason.into(),
                };
                if pinned.reply.dst_port != port {
                    // Another port of the address that hides the client: in the tunnel, too.
                    let outgoing = outgoing(&pinned, Direction::Original);
                    let hash = outgoing.hash(&turn.snapshot.cluster_key);
                    plan.source_port = SourcePort::from_hash(hash);
                    plan = plan.translate(&parsed.key, &outgoing);
                }
                connection
            }
        };
        if let Some(reason) = self.track(turn, connection, packet, parsed, payload) {
            return reason.into();
        }
        self.remember(turn, packet, parsed, (connection, &pinned), &plan, ahead.absent);
        Admission::Pass(plan)
    }

    /// The connection that a datagram to the gateway answers although its source is link-local: to
    /// the link-local address that stands for a hairpin connection's client, an end that is not
    /// bound to an address speaks from its own link-local one (RFC 6724 §5, rule 2).
    fn behind_link_local(
        &self,
        turn: &Turn<'_>,
        packet: &Packet,
        parsed: &Parsed,
    ) -> Option<Known> {
        let snapshot = turn.snapshot;
        let IpAddr::V6(source) = parsed.key.src_addr() else { return None };
        if !source.is_unicast_link_local() || !snapshot.is_gateway(parsed.key.dst_addr()) {
            return None;
        }
        let find = |own: IpAddr| {
            let key = FlowKey { src: to_bytes(own).0, ..parsed.key };
            let tracker = &self.shared.tracker;
            tracker.find(tracker.place(&key, key.hash(&self.shared.hash_key)), &key)
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

    /// Whether a known connection ends with this packet, which may open another: a fresh SYN
    /// where a connection has been says that the old one is over, all of it; so does one of the
    /// other side where nobody's was seen; and what a Service's change ended ends when its client
    /// next speaks.
    fn end_of(
        &self,
        turn: &Turn<'_>,
        known: &Known,
        packet: &Packet,
        parsed: &Parsed,
    ) -> Option<Fate> {
        let is_syn = parsed.key.proto == proto::TCP && parsed.tcp_flags & (SYN | ACK) == SYN;
        let states = is_syn.then(|| self.shared.tracker.tcp_states(known.connection)).flatten();
        if states.is_some_and(|[own, peer]| is_over(own, peer)) {
            return Some(Fate::Anew);
        }
        if self.says_otherwise(known, packet, parsed) {
            return Some(Fate::Anew);
        }
        if known.connection.direction() == Direction::Reply {
            return None;
        }
        // A SYN that was never answered, or an INIT: there is nothing yet that could break.
        let begins = states.is_some_and(|[_, peer]| peer == TcpState::None)
            || is_sctp_init(packet.bytes(), parsed);
        Some(fate(turn.snapshot, &known.pinned, begins)).filter(|fate| *fate != Fate::Stays)
    }

    /// Makes a connection, or finds that the other worker or direction was first. A new one may have
    /// been given another port in place of the client's than `pinned` says; afterwards it says which.
    fn open(
        &mut self,
        turn: &Turn<'_>,
        place: Place,
        pinned: &mut Pinned,
        service: Option<&Served<'_>>,
    ) -> Result<Created, DropReason> {
        let range = &turn.snapshot.nat_ports;
        let ports = u64::from(range.end().saturating_sub(*range.start())) + 1;
        let has_ports = has_ports(pinned.original.proto);
        // Nobody outside can tell where the search for a port begins.
        let mut from = None;
        for attempt in 0..NAT_TRIES {
            // Where there are no ports, addresses alone tell connections apart.
            let leases = pinned.source_nat != SourceNat::Kept && has_ports;
            if leases {
                let fair = matches!(turn.snapshot.port(pinned.origin), PortFacts::Pod(_));
                let hash = || pinned.original.hash(&self.shared.hash_key);
                let lease = Lease { range, from: *from.get_or_insert_with(hash), fair };
                let nat = self.shared.tracker.nat();
                if !nat.share(pinned, &lease) {
                    return Err(DropReason::NatPortsExhausted);
                }
                let port = match pinned.source_nat {
                    SourceNat::Endpoint => nat.map(pinned, &lease),
                    _ => Some(range.start() + (lease.from % ports) as u16),
                };
                let Some(port) = port else {
                    // No client's port is left for all destinations: one for this connection alone.
                    nat.release_share(pinned);
                    pinned.source_nat = SourceNat::Connection;
                    continue;
                };
                pinned.reply.dst_port = port;
            }
            let made = self.create(turn, place, pinned);
            if leases && !matches!(made, Ok(Created::New(_))) {
                self.shared.tracker.nat().release(pinned);
            }
            match made {
                Ok(made) => {
                    if let Created::New(_) = made {
                        self.serve(turn, pinned, service);
                    }
                    return Ok(made);
                }
                // Another connection has these answers: two addresses of a Service, one backend,
                // one port of the client. Unless it gives way the second gets another port (S16).
                Err(Refused::Collision) if self.gives_way(turn, &pinned.reply, attempt) => {}
                Err(Refused::Collision) if has_ports => {
                    let at = from.unwrap_or_else(|| pinned.original.hash(&self.shared.hash_key));
                    let next = (at % ports) + stride(ports);
                    from = Some(next);
                    if pinned.source_nat == SourceNat::Endpoint {
                        // The port that all of the client's connections share has this peer
                        // already: one for this connection alone.
                        pinned.source_nat = SourceNat::Connection;
                    } else if !leases {
                        pinned.reply.dst_port = range.start() + (next % ports) as u16;
                    }
                }
                Err(refused) => return Err(refused.into()),
            }
        }
        Err(DropReason::NatPortsExhausted)
    }

    /// Whether the connection that has the answers of a new one ends for it. What is over does at once;
    /// what nobody has answered for a second when several ports are taken, which is when many are;
    /// and at last anything that nobody has answered.
    fn gives_way(&self, turn: &Turn<'_>, reply: &FlowKey, attempt: usize) -> bool {
        let patience = match attempt {
            ..CROWDED => None,
            CROWDED..LAST_TRIES => Some(1),
            _ => Some(0),
        };
        let tracker = &self.shared.tracker;
        let old = tracker.known_by(reply);
        old.is_some_and(|old| tracker.give_way(old.connection, patience, turn.now.as_secs() as u32))
    }

    /// Where a bound is hit, what is over goes first, then what nobody has answered (T-C5): of the same
    /// account where it is that one's bound.
    pub(super) fn create(
        &mut self,
        turn: &Turn<'_>,
        place: Place,
        pinned: &Pinned,
    ) -> Result<Created, Refused> {
        let seconds = turn.now.as_secs() as u32;
        let tracker = &self.shared.tracker;
        let mut made = tracker.create_at(place, pinned, seconds);
        for _ in 0..SEARCHES {
            let (charge, key) = match &made {
                Err(Refused::Full) => (None, u64::MAX),
                Err(Refused::Limit(charge)) => (Some(charge), charge.key()),
                _ => return made,
            };
            // So many searches that find nothing an account may ask for; others are free.
            if !self.searches.take(key, turn.now) {
                return made;
            }
            let (ended, next) = tracker.reclaim(self.pressed, charge, seconds);
            self.pressed = next;
            if ended > 0 {
                self.searches.put_back(key, turn.now);
                made = tracker.create_at(place, pinned, seconds);
            }
        }
        made
    }

    /// Notes that a Service gave a connection its backend.
    fn serve(&self, turn: &Turn<'_>, pinned: &Pinned, service: Option<&Served<'_>>) {
        let Some(Served { chosen, affinity }) = service else { return };
        chosen.entry.count_opened(chosen.index);
        if let Some(timeout) = affinity {
            let client = pinned.original.src_addr();
            let now = turn.now.as_secs() as u32;
            let backend = chosen.backend().socket();
            self.shared.affinity.pin(chosen.entry.id, client, backend, now, *timeout);
        }
    }

    /// Moves the connection by the packet. Some: the packet must not pass.
    fn track(
        &self,
        turn: &Turn<'_>,
        connection: ConnectionRef,
        packet: &Packet,
        parsed: &Parsed,
        payload: u32,
    ) -> Option<DropReason> {
        let seconds = turn.now.as_secs() as u32;
        let tracker = &self.shared.tracker;
        if parsed.key.proto != proto::TCP {
            tracker.touch(connection, packet.len(), seconds);
            return None;
        }
        let header = packet.bytes().get(usize::from(parsed.l4)..).unwrap_or_default();
        let segment = Segment::read(header, parsed.tcp_flags, payload);
        if segment.is_plain() {
            tracker.touch_tcp(connection, &segment, packet.len(), seconds);
            return None;
        }
        let scale = if segment.flags & SYN != 0 { window_scale(header) } else { None };
        let judged = tracker.control_segment(connection, &segment, scale, packet.len(), seconds);
        (judged == Some(Judgement::OutOfWindow)).then_some(DropReason::TcpOutOfWindow)
    }

    /// Enters the flow into this worker's table. Where that is full the flow goes on, by the slow path.
    fn remember(
        &mut self,
        turn: &Turn<'_>,
        packet: &Packet,
        parsed: &Parsed,
        (connection, pinned): (ConnectionRef, &Pinned),
        plan: &Plan,
        absent: bool,
    ) {
        if parsed.fragment != Part::Whole {
            return;
        }
        let entry = FlowEntry {
            key: parsed.key,
            sender: sender(packet),
            connection,
            groups: Groups::of_connection(pinned),
            last_seen: turn.now.as_secs() as u32,
            plan: *plan,
        };
        match absent {
            true => self.flows.insert_absent(parsed.hash, &entry),
            false => self.flows.insert(parsed.hash, &entry),
        };
    }
}

/// Searches for something to end when a bound is hit, for each new connection.
const SEARCHES: usize = 8;
/// Ports tried for a connection whose answers collide with another's.
const NAT_TRIES: usize = 64;
/// After so many that are taken, what nobody has answered for a second gives way; of the last ones
/// anything that nobody has answered.
const CROWDED: usize = 8;
const LAST_TRIES: usize = NAT_TRIES - 8;

/// Searches for something to end that find nothing, for each account.
pub(super) fn search_limiter() -> KeyedLimiter {
    KeyedLimiter::new(Rate::new(200, 200), 1024)
}

/// From one port that is tried to the next, round a range of so many: comes to all, neighbours late.
fn stride(ports: u64) -> u64 {
    let is_prime_to = |n: u64| {
        let (mut a, mut b) = (n, ports);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    // The golden section, or what is next to it.
    let about = ports * 40_503 / 65_536;
    (about.max(1)..).find(|n| is_prime_to(*n)).unwrap_or(1)
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6)
}

/// Whether two descriptions of a connection differ at most in the port that hides the client.
fn same_ends(a: &Pinned, b: &Pinned) -> bool {
    let ends = |p: &Pinned| (p.reply.src, p.reply.src_port, p.reply.dst);
    ends(a) == ends(b)
}

/// Whether a Service gives a connection in mid-stream the backend that it is known to have had, and the
/// client's own address with it.
fn is_as_it_was(pinned: &Pinned, backend: Option<SocketAddr>) -> bool {
    let client = &pinned.original;
    let is_kept = (pinned.reply.dst, pinned.reply.dst_port) == (client.src, client.src_port);
    let to = SocketAddr::new(pinned.reply.src_addr(), pinned.reply.src_port);
    is_kept && pinned.source_nat == SourceNat::Kept && backend == Some(to)
}

/// Whether the packet's first chunk is the INIT that opens an association (RFC 9260 §3.3.2): it
/// stands alone in its packet.
pub(super) fn is_sctp_init(frame: &[u8], parsed: &Parsed) -> bool {
    parsed.key.proto == proto::SCTP && frame.get(usize::from(parsed.l4) + 12) == Some(&1)
}

/// Whether an end system ever sends a segment with these flags (RFC 9293 §3.5, §3.10): all but
/// SYN and RST acknowledge, and what opens a connection neither closes nor resets it.
pub(super) fn is_possible(flags: u8) -> bool {
    match flags & (SYN | FIN | RST) {
        SYN | RST => true,
        0 | FIN => flags & ACK != 0,
        _ => false,
    }
}
