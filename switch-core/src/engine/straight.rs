//! The straight line that nearly every packet takes: parse all of a burst, look all up, then apply
//! each. Neither allocates nor locks. What is not wholly ordinary goes the [slow way](super::slow).

use vxlan::template::SourcePort;
use wire::addr::Mac;
use wire::flow_key::{HashKey, proto};
use wire::parse::tcp_flags::SYN;
use wire::parse::{Fragment, Icmp, Network, Parsed, parse_into, straight};

use super::admit::is_possible;
use super::ahead::{Ahead, Notes};
use super::encap::wrap;
use super::{Engine, Turn, slow};
use crate::action::{DropReason, Plan, PlanFlags, apply, apply_plain};
use crate::flow::connection::{ConnectionRef, Tracker};
use crate::flow::table::{EntryId, Follow, Renewals, Unfit, Untold};
use crate::flow::tcp::{Judgement, Segment};
use crate::id::PortId;
use crate::packet::{BATCH, Batch, Packet};

/// What became of a packet that hit.
enum Hit {
    /// It leaves by this port.
    Out(PortId),
    /// It is rewritten, but has no tunnel header yet: that is not done in passing. It gets this port.
    Unwrapped(SourcePort),
}

/// So many packets are worked on while what the next as many touch is brought near: some 100 ns,
/// and no more lines asked for at a time than a processor can wait for.
const AHEAD: usize = 8;

/// What is found out about a burst before its packets are applied.
struct Burst {
    /// A bit for each packet that may hit.
    plain: u64,
    /// What is wrong with those that are not.
    sound: [Result<(), DropReason>; BATCH],
    senders: [u64; BATCH],
    /// Their likely entries.
    ids: [EntryId; BATCH],
}

impl Burst {
    #[inline(always)]
    fn new() -> Self {
        let (sound, senders, ids) = ([Ok(()); BATCH], [0; BATCH], [EntryId::NONE; BATCH]);
        Self { plain: 0, sound, senders, ids }
    }
}

/// Whose frames are routed, as the first octets of a frame are compared with it.
#[derive(Clone, Copy)]
struct Addressee {
    mask: u64,
    mac: u64,
}

impl Addressee {
    fn new(mac: Option<Mac>) -> Self {
        match mac {
            Some(Mac([a, b, c, d, e, f])) => {
                Self { mask: !0xffff, mac: u64::from_be_bytes([a, b, c, d, e, f, 0, 0]) }
            }
            None => Self { mask: 0, mac: 0 },
        }
    }

    #[inline(always)]
    fn is_of(self, head: &[u8; 16]) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = *head;
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) & self.mask == self.mac
    }
}

impl Engine {
    /// The straight line: parse all, look all up, then apply each. Only frames to `gateway` are
    /// routed; `None`: all are addressed to the switch.
    pub(super) fn route_batch<'s>(
        &mut self,
        turn: &mut Turn<'s>,
        ingress: PortId,
        gateway: Option<Mac>,
        batch: &mut Batch,
    ) {
        let snapshot = turn.snapshot;
        let touched = &snapshot.touched;
        self.flows.begin(snapshot.epoch, touched);
        let seconds = turn.now.as_secs() as u32;
        let mut burst = Burst::new();
        let gateway = Addressee::new(gateway);
        let count = batch.len().min(BATCH);
        // What a group of packets asks of memory is on its way while the next group is parsed.
        for start in (0..count + AHEAD).step_by(AHEAD) {
            self.read(gateway, batch, start..(start + AHEAD).min(count), &mut burst);
            if let Some(start) = start.checked_sub(AHEAD) {
                self.find(start..(start + AHEAD).min(count), &mut burst);
            }
        }
        self.approach(&burst.ids[..AHEAD.min(count)]);
        let (mut hits, mut missed, mut notes) = (0, false, Notes::default());
        for (i, mut packet) in batch.drain(..).enumerate() {
            let i = i % BATCH;
            // The same for what the flows' answers take.
            if i.is_multiple_of(AHEAD) {
                let next = (i + AHEAD).min(count);
                self.approach(&burst.ids[next..(next + AHEAD).min(count)]);
            }
            if burst.plain & 1 << i != 0 {
                let parsed = &self.parsed[i];
                let (candidate, sender) = (burst.ids[i], burst.senders[i]);
                let id = match self.flows.look(candidate, parsed.hash, &parsed.key, sender, touched)
                {
                    Ok(id) => id,
                    Err(unfit) => {
                        if !missed {
                            missed = true;
                            self.read_ahead(snapshot, i, burst.plain, &burst.ids, &mut notes);
                        }
                        let parsed = *parsed;
                        let ahead = Ahead { absent: unfit == Unfit::Absent, note: notes.of(i) };
                        self.slow(turn, ingress, packet, &parsed, ahead);
                        continue;
                    }
                };
                let length = parsed.end.wrapping_sub(parsed.l3.into());
                let bytes = packet.len() as u32;
                if let Some(plan) = self.flows.hit_counted(id, length, bytes, seconds) {
                    hits += 1;
                    apply_plain(&mut packet, parsed, plan);
                    turn.out.push(plan.out, packet);
                    continue;
                }
                if parsed.tcp_flags != 0
                    && let Some(out) = self.hit_tcp(id, &mut packet, i, seconds)
                {
                    hits += 1;
                    turn.out.push(out, packet);
                    continue;
                }
                match self.hit(turn, id, &mut packet, i, seconds) {
                    Some(Hit::Out(port)) => {
                        hits += 1;
                        turn.out.push(port, packet);
                        continue;
                    }
                    Some(Hit::Unwrapped(source_port)) => {
                        let plan = self.flows.plan(id).copied().unwrap_or_default();
                        let plan = Plan { source_port, ..plan };
                        self.leave(turn, packet, self.parsed[i].traffic_class, &plan);
                        continue;
                    }
                    None => {}
                }
            }
            if let Err(reason) = burst.sound[i] {
                self.drop(turn, packet, reason, None);
                continue;
            }
            let parsed = self.parsed[i];
            self.slow(turn, ingress, packet, &parsed, Ahead::default());
        }
        self.counters.hits.add(hits);
        self.counters.forwarded.add(hits);
        let Renewals { kept, judged } = self.flows.renewals();
        if kept | judged != 0 {
            self.counters.kept.add(kept.into());
            self.counters.rederived.add(judged.into());
        }
    }

    /// Parses a group, and brings near where the flows of the ordinary ones begin.
    #[inline(never)]
    fn read(
        &mut self,
        gateway: Addressee,
        batch: &Batch,
        group: core::ops::Range<usize>,
        burst: &mut Burst,
    ) {
        let hash_key = &self.shared.hash_key;
        let Some(packets) = batch.get(group.clone()) else { return };
        let places = self.parsed[group.clone()].iter_mut().zip(&mut burst.senders[group.clone()]);
        let mut plain = 0;
        for ((packet, (parsed, from)), i) in packets.iter().zip(places).zip(group) {
            let frame = packet.bytes();
            let Some(head) = frame.first_chunk::<16>() else {
                burst.sound[i] = read(packet, hash_key, parsed);
                continue;
            };
            let ordinary = if straight(frame, hash_key, parsed) && !packet.offload.is_unfinished() {
                parsed.ttl > 1
            } else {
                burst.sound[i] = read(packet, hash_key, parsed);
                burst.sound[i].is_ok() && is_ordinary(parsed)
            };
            if ordinary && gateway.is_of(head) {
                self.flows.prefetch(parsed.hash);
                *from = sender_of(head, packet);
                plain |= 1 << i;
            }
        }
        burst.plain |= plain;
    }

    /// Finds the likely entries of a group, and brings them near.
    #[inline(never)]
    fn find(&self, group: core::ops::Range<usize>, burst: &mut Burst) {
        for (id, parsed) in burst.ids[group.clone()].iter_mut().zip(&self.parsed[group]) {
            *id = self.flows.candidate(parsed.hash);
        }
    }

    /// Brings near what hits on these entries will touch.
    #[inline(never)]
    fn approach(&self, candidates: &[EntryId]) {
        for id in candidates {
            if let Some(connection) = self.flows.approach(*id) {
                self.shared.tracker.prefetch(connection);
            }
        }
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
    fn hit(
        &mut self,
        turn: &Turn<'_>,
        id: EntryId,
        packet: &mut Packet,
        at: usize,
        seconds: u32,
    ) -> Option<Hit> {
        let parsed = &self.parsed[at % BATCH];
        let tracker = &self.shared.tracker;
        let length = parsed.end - u32::from(parsed.l3);
        let mut tunnel = None;
        let fits = |plan: &Plan| {
            if plan.flags.has(PlanFlags::ENCAP) {
                tunnel = turn.snapshot.tunnels.get(plan.tunnel);
            }
            let mtu = tunnel.map_or(plan.mtu, |tunnel| tunnel.inner_mtu(turn.now));
            length <= u32::from(mtu) || slow::segments_fit(packet, parsed, mtu)
        };
        let (plan, follow) = self.flows.hit(id, packet.len(), seconds, fits)?;
        let alive = match follow {
            Follow::Counted => true,
            Follow::Each(connection) if parsed.key.proto == proto::TCP => {
                let header = packet.bytes().get(usize::from(parsed.l4)..).unwrap_or_default();
                let payload = parsed.end - u32::from(parsed.payload);
                let segment = Segment::read(header, parsed.tcp_flags, payload);
                if segment.is_plain() {
                    tracker.touch_tcp(connection, &segment, packet.len(), seconds)
                } else {
                    closes(tracker, connection, &segment, packet.len(), seconds)
                }
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
        match tunnel {
            Some(tunnel)
                if !packet.offload.is_crc32c()
                    && wrap(tunnel, packet, parsed.traffic_class, source_port).is_ok() =>
            {
                Some(Hit::Out(plan.out))
            }
            _ => Some(Hit::Unwrapped(source_port)),
        }
    }
}

/// Parses a frame, and holds what its sender says of unfinished work against it: offsets that
/// point elsewhere would have the switch rewrite what policy has judged already.
#[inline]
pub(super) fn read(
    packet: &Packet,
    hash_key: &HashKey,
    parsed: &mut Parsed,
) -> Result<(), DropReason> {
    parse_into(packet.bytes(), hash_key, parsed)?;
    packet.offload.check(parsed)
}

/// Moves the connection by a segment that closes or resets it and no more. False, and nothing moved:
/// it is for the slow path to judge.
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
            == Some(Judgement::Fits)
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
#[inline]
pub(super) fn sender(packet: &Packet) -> u64 {
    packet.bytes().first_chunk().map_or(0, |head| sender_of(head, packet))
}

/// [`sender`] of a frame that begins with `head`.
#[inline(always)]
fn sender_of(head: &[u8; 16], packet: &Packet) -> u64 {
    let who = match packet.via() {
        // The last two octets of the destination, which are shifted out, and the source.
        None => {
            let [_, _, _, _, words @ .., _, _, _, _] = *head;
            u64::from_be_bytes(words)
        }
        Some(end) => 1 << 40 | u64::from(end.0),
    };
    who << 16 | u64::from(packet.ingress.0)
}
