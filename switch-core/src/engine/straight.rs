//! The straight line that nearly every packet takes: parse all of a burst, look all up, then apply
//! each. Neither allocates nor locks. What is not wholly ordinary goes the [slow way](super::slow).

use vxlan::template::SourcePort;
use wire::addr::Mac;
use wire::flow_key::{HashKey, proto};
use wire::parse::tcp_flags::SYN;
use wire::parse::{Fragment, Icmp, Network, Parsed, parse_into, straight};

use super::admit::is_possible;
use super::encap::wrap;
use super::{Engine, Turn, slow};
use crate::action::{DropReason, Plan, PlanFlags, apply, apply_plain};
use crate::flow::connection::{ConnectionRef, Tracker};
use crate::flow::table::{EntryId, Follow, Renewals, Untold};
use crate::flow::tcp::{Judgement, Segment};
use crate::id::PortId;
use crate::packet::{BATCH, Batch, Packet};
use crate::snapshot::LastTouched;

/// What became of a packet that hit.
enum Hit {
    /// It leaves by this port.
    Out(PortId),
    /// It is rewritten, but has no tunnel header yet: that is not done in passing.
    Unwrapped(Plan),
}

impl Engine {
    /// The straight line: parse all, look all up, then apply each. Only frames to `gateway` are
    /// routed; `None`: all are addressed to the switch.
    pub(super) fn route_batch(
        &mut self,
        turn: &mut Turn<'_>,
        ingress: PortId,
        gateway: Option<Mac>,
        batch: &mut Batch,
    ) {
        let snapshot = turn.snapshot;
        let touched = &snapshot.touched;
        self.flows.begin(snapshot.epoch, touched);
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
                *id = self.look(*id, senders[i], i, touched);
            }
        }
        let mut hits = 0;
        // Once a packet went the slow way what was looked up before may be no more.
        let mut changed = false;
        for (i, mut packet) in batch.drain(..).enumerate() {
            let i = i % BATCH;
            if changed && plain & 1 << i != 0 {
                ids[i] = self.look(EntryId::NONE, senders[i], i, touched);
            }
            if plain & 1 << i != 0 && !ids[i].is_none() {
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
            if !changed {
                self.read_ahead(turn.snapshot, i, plain, &ids);
            }
            changed = true;
            let parsed = self.parsed[i];
            self.slow(turn, ingress, packet, &parsed);
        }
        self.counters.hits.add(hits);
        self.counters.forwarded.add(hits);
        let Renewals { kept, judged } = self.flows.renewals();
        if kept | judged != 0 {
            self.counters.kept.add(kept.into());
            self.counters.rederived.add(judged.into());
        }
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
    fn look(
        &mut self,
        candidate: EntryId,
        sender: u64,
        at: usize,
        touched: &LastTouched,
    ) -> EntryId {
        let parsed = &self.parsed[at % BATCH];
        let (id, connection) =
            self.flows.look(candidate, parsed.hash, &parsed.key, sender, touched);
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
#[inline(always)]
pub(super) fn sender(packet: &Packet) -> u64 {
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
