//! The straight line that nearly every packet takes: parse all of a burst, look all up, then apply
//! each. Neither allocates nor locks. What is not wholly ordinary goes the [slow way](super::slow).

use podswitch_vxlan::template::SourcePort;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{HashKey, proto};
use podswitch_wire::parse::tcp_flags::SYN;
use podswitch_wire::parse::{Fragment, Icmp, Network, Parsed, parse_into, straight};

use super::admit::is_possible;
use super::ahead::{Ahead, Notes};
use super::encap::wrap;
use super::{Engine, Turn, slow};
use crate::action::{DropReason, Plan, PlanFlags, apply_in_line, apply_plain};
use crate::flow::connection::{ConnectionRef, Tracker};
use crate::flow::table::{EntryId, Follow, Renewals, Unfit, Untold};
use crate::flow::tcp::{Judgement, Segment};
use crate::id::PortId;
use crate::packet::{BATCH, Batch, Packet};

/// So many packets are worked on while what the next as many touch is brought near: some 100 ns,
/// and no more lines asked for at a time than a processor can wait for.
const AHEAD: usize = 8;

/// What is found out about a burst before its packets are applied.
struct Burst {
    ingress: PortId,
    /// The second it is.
    seconds: u32,
    /// Whether a packet was met that is of no known flow.
    missed: bool,
    /// Why no entry holds for a packet that was looked up just now.
    unfit: Option<Unfit>,
    /// The plan of a packet that was rewritten as it says, but has no tunnel header yet: that is not
    /// done in passing.
    unwrapped: Option<Plan>,
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
    fn new(ingress: PortId, seconds: u32) -> Self {
        let (sound, senders, ids) = ([Ok(()); BATCH], [0; BATCH], [EntryId::NONE; BATCH]);
        let (missed, unfit, unwrapped) = (false, None, None);
        Self { ingress, seconds, missed, unfit, unwrapped, plain: 0, sound, senders, ids }
    }

    #[inline(never)]
    fn leave_unwrapped(&mut self, plan: &Plan, source_port: SourcePort) {
        self.unwrapped = Some(Plan { source_port, ..*plan });
    }
}

/// Whose frames are routed, as the first bytes of a frame are compared with it.
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
    fn is_of<const N: usize>(self, head: &[u8; N]) -> bool {
        let first = head.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        first & self.mask == self.mac
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
        self.flows.begin(snapshot.epoch, &snapshot.touched);
        let mut burst = Burst::new(ingress, turn.now.as_secs() as u32);
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
        let (mut hits, mut notes) = (0, Notes::default());
        for (i, mut packet) in batch.drain(..).enumerate() {
            let i = i % BATCH;
            // The same for what the flows' answers take.
            if i.is_multiple_of(AHEAD) {
                let next = (i + AHEAD).min(count);
                self.approach(&burst.ids[next..(next + AHEAD).min(count)]);
            }
            if burst.plain & 1 << i != 0 {
                let out = match self.pass(&mut packet, &burst, i) {
                    None => self.hit(turn, &mut packet, &mut burst, i),
                    out => out,
                };
                if let Some(out) = out {
                    hits += 1;
                    turn.out.push(out, packet);
                    continue;
                }
            }
            self.rest(turn, &mut burst, &mut notes, i, packet);
        }
        self.counters.hits.add(hits);
        self.counters.forwarded.add(hits);
        let Renewals { kept, judged } = self.flows.renewals();
        if kept | judged != 0 {
            self.counters.kept.add(kept.into());
            self.counters.rederived.add(judged.into());
        }
    }

    /// What nearly every packet gets: rewritten as its likely entry says, if that is its own.
    /// `None`, and nothing was changed: [`hit`](Self::hit) knows more.
    #[inline(always)]
    fn pass(&mut self, packet: &mut Packet, burst: &Burst, i: usize) -> Option<PortId> {
        let parsed = &self.parsed[i];
        let (candidate, sender) = (burst.ids[i], burst.senders[i]);
        if parsed.tcp_flags != 0 {
            return self.pass_tcp(packet, burst, i);
        }
        let length = parsed.end.wrapping_sub(parsed.l3.into());
        let lengths = (length, packet.len() as u32);
        let plan = self.flows.pass(candidate, &parsed.key, sender, lengths, burst.seconds)?;
        apply_plain(packet, parsed, plan);
        Some(plan.out)
    }

    /// Packets that do not leave as a known flow's: what is wrong, what is new.
    #[inline(never)]
    fn rest<'s>(
        &mut self,
        turn: &mut Turn<'s>,
        burst: &mut Burst,
        notes: &mut Notes<'s>,
        i: usize,
        packet: Packet,
    ) {
        let i = i % BATCH;
        if let Some(plan) = burst.unwrapped.take() {
            return self.leave(turn, packet, self.parsed[i].traffic_class, &plan);
        }
        if let Err(reason) = burst.sound[i] {
            return self.drop(turn, packet, reason, None);
        }
        let ahead = match burst.unfit.take() {
            None => Ahead::default(),
            Some(unfit) => {
                if !burst.missed {
                    burst.missed = true;
                    self.read_ahead(turn.snapshot, i, burst.plain, &burst.ids, notes);
                }
                Ahead { absent: unfit == Unfit::Absent, note: notes.of(i) }
            }
        };
        let parsed = self.parsed[i];
        self.slow(turn, burst.ingress, packet, &parsed, ahead);
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
            *from = match frame.first_chunk::<42>() {
                Some(head)
                    if straight(frame, hash_key, parsed) && !packet.offload.is_unfinished() =>
                {
                    if parsed.ttl <= 1 || !gateway.is_of(head) {
                        continue;
                    }
                    sender_of(head, packet)
                }
                _ => match read_rare(packet, hash_key, parsed, gateway) {
                    Ok(Some(sender)) => sender,
                    Ok(None) => continue,
                    Err(reason) => {
                        burst.sound[i] = Err(reason);
                        continue;
                    }
                },
            };
            self.flows.prefetch(parsed.hash);
            plain |= 1 << i;
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

    /// [`pass`](Self::pass) for plain segments of TCP.
    #[inline(never)]
    fn pass_tcp(&mut self, packet: &mut Packet, burst: &Burst, at: usize) -> Option<PortId> {
        let at = at % BATCH;
        let (parsed, seconds) = (&self.parsed[at], burst.seconds);
        let length = parsed.end.wrapping_sub(parsed.l3.into());
        let (candidate, sender) = (burst.ids[at], burst.senders[at]);
        let (plan, connection) =
            self.flows.pass_tcp(candidate, &parsed.key, sender, length, seconds)?;
        let header = packet.bytes().get(usize::from(parsed.l4)..)?;
        let payload = parsed.end.wrapping_sub(parsed.payload.into());
        let segment = Segment::read(header, parsed.tcp_flags, payload);
        if !segment.is_plain()
            || !self.shared.tracker.touch_tcp(connection, &segment, packet.len(), seconds)
        {
            return None;
        }
        apply_plain(packet, parsed, plan);
        Some(plan.out)
    }

    /// Rewrites the packet parsed at `at` as its entry says, and tells its port. `None`: it was
    /// rewritten, and is left [unwrapped](Burst::unwrapped); or nothing was changed, and it needs the
    /// slow path, because it opens, ends or restarts the connection, or is too long, or the
    /// connection is gone.
    #[inline(never)]
    fn hit(
        &mut self,
        turn: &Turn<'_>,
        packet: &mut Packet,
        burst: &mut Burst,
        at: usize,
    ) -> Option<PortId> {
        let at = at % BATCH;
        let (parsed, seconds) = (&self.parsed[at], burst.seconds);
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
        let touched = &turn.snapshot.touched;
        let (candidate, sender) = (burst.ids[at], burst.senders[at]);
        let id = match self.flows.look(candidate, parsed.hash, &parsed.key, sender, touched) {
            Ok(id) => id,
            Err(unfit) => {
                burst.unfit = Some(unfit);
                return None;
            }
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
        apply_in_line(packet, parsed, plan);
        if !plan.flags.has(PlanFlags::ENCAP) {
            return Some(plan.out);
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
                Some(plan.out)
            }
            _ => {
                burst.leave_unwrapped(plan, source_port);
                None
            }
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

/// [`read`] of what does not go straight; whose it is, if it may hit.
#[inline(never)]
fn read_rare(
    packet: &Packet,
    hash_key: &HashKey,
    parsed: &mut Parsed,
    gateway: Addressee,
) -> Result<Option<u64>, DropReason> {
    read(packet, hash_key, parsed)?;
    let head = packet.bytes().first_chunk::<16>();
    let of_it = head.filter(|head| is_ordinary(parsed) && gateway.is_of(head));
    Ok(of_it.map(|head| sender_of(head, packet)))
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
    packet.bytes().first_chunk::<12>().map_or(0, |head| sender_of(head, packet))
}

/// [`sender`] of a frame that begins with `head`.
#[inline(always)]
fn sender_of<const N: usize>(head: &[u8; N], packet: &Packet) -> u64 {
    let who = match packet.via() {
        // The last two bytes of the destination, which are shifted out, and the source.
        None => head[4..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)),
        Some(end) => 1 << 40 | u64::from(end.0),
    };
    who << 16 | u64::from(packet.ingress.0)
}
