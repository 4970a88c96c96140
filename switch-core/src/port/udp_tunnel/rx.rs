//! Receiving: the outer headers are put back. Datagrams that the kernel joined (UDP_GRO) are taken
//! apart again, but consecutive TCP segments inside them become one super-frame in place.
//!
//! A peer on the same machine may hand over a super-frame of its own as one long datagram, the
//! kernel having found nobody to cut it for; its inner checksum is unfinished then, which shows
//! in that it equals the pseudo-header's sum.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use arrayvec::ArrayVec;
use wire::checksum::{Sum, is_partial, sum, verify_l4};
use wire::flow_key::{HashKey, proto};
use wire::parse::{Network, Parsed, ethertype, parse};

use super::{Receiver, Slot, UdpTunnelPort, underlay_mac};
use crate::packet::{Batch, GsoType, Offload, Packet, Pool, Run, SizeClass, coalesce};
use crate::sys::datagram::{self, SLOTS};

/// A burst ends when it holds about this many octets, so that super-frames are still in the
/// cache when the same worker sends them.
const BURST_OCTETS: usize = 384 * 1024;

/// Slots that a call of `recvmmsg` begins with; grows while bursts fill it.
pub(super) const FEW_SLOTS: usize = 4;

/// Octets of a VXLAN header.
const VXLAN: usize = vxlan::header::LEN;

/// What stands in front of every datagram that came in one piece.
#[derive(Clone, Copy)]
struct Outer {
    from: SocketAddr,
    to: SocketAddr,
    class: u8,
}

impl UdpTunnelPort {
    /// Receives from each socket once.
    pub(super) fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<()> {
        for n in 0..self.receivers.len() {
            if batch.is_full() {
                break;
            }
            let receiver = &mut self.receivers[n];
            let mut slots: ArrayVec<Slot, SLOTS> = ArrayVec::new();
            while slots.len() < receiver.slots.min(batch.remaining_capacity()) {
                let Some(large) = pool.alloc(SizeClass::Large) else { break };
                let Some(small) = pool.alloc(SizeClass::Small) else {
                    pool.free(large);
                    break;
                };
                slots.push(Slot::new(small, large));
            }
            let result = match slots.len() {
                0 => Ok(0),
                _ => datagram::receive(receiver.socket.as_fd(), &mut slots),
            };
            let count = match &result {
                Ok(count) => *count,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR | libc::ECONNREFUSED) => 0,
                    _ => {
                        free(slots, pool);
                        return result.map(drop);
                    }
                },
            };
            let octets: usize = slots[..count].iter().map(|slot| slot.len).sum();
            adapt(receiver, count, octets);
            let address = receiver.address;
            for (i, slot) in slots.into_iter().enumerate() {
                if i < count {
                    self.accept(slot, address, pool, batch);
                } else {
                    pool.free(slot.small);
                    pool.free(slot.large);
                }
            }
        }
        coalesce(batch, Some(self.port), pool);
        Ok(())
    }

    /// Makes frames of what one slot holds. What the burst has no room for waits.
    fn accept(&mut self, slot: Slot, address: IpAddr, pool: &mut Pool, batch: &mut Batch) {
        let Slot { mut small, mut large, len, from, class, segment, cut } = slot;
        let Some(from) = from.filter(|_| !cut) else {
            // Longer than any datagram, or from nowhere: neither happens.
            pool.free(small);
            pool.free(large);
            return;
        };
        let outer = Outer { from, to: SocketAddr::new(address, self.port), class };
        let mtu = self.info.mtu as usize;
        let waiting = &mut self.waiting;
        let mut out = |packet: Packet| match batch.try_push(packet) {
            Ok(()) => {}
            Err(full) => waiting.push_back(full.element()),
        };
        if len <= Pool::SMALL {
            pool.free(large);
            small.set_len(len);
            if segment == 0 || segment >= len {
                return out(outer.single(small, mtu, 0));
            }
            return outer.split(small, segment, pool, &mut out);
        }
        large.spare_mut()[..Pool::SMALL].copy_from_slice(&small.spare_mut()[..Pool::SMALL]);
        pool.free(small);
        large.set_len(len.min(large.capacity()));
        if segment == 0 || segment >= len || is_whole(large.bytes(), segment) {
            return out(outer.single(large, mtu, segment));
        }
        outer.split(large, segment, pool, &mut out);
    }
}

fn free(slots: ArrayVec<Slot, SLOTS>, pool: &mut Pool) {
    for slot in slots {
        pool.free(slot.small);
        pool.free(slot.large);
    }
}

/// Offers more slots while they are filled by little, fewer when they hold much or stay empty.
fn adapt(receiver: &mut Receiver, count: usize, octets: usize) {
    if count == receiver.slots && octets < BURST_OCTETS / 2 {
        receiver.slots = (receiver.slots * 2).min(SLOTS);
    } else if octets > BURST_OCTETS || count < receiver.slots / 4 {
        receiver.slots = (receiver.slots / 2).max(FEW_SLOTS);
    }
}

/// Whether a datagram longer than `segment` is one super-frame of a peer's, whose segments are
/// that long, rather than several datagrams joined: then the inner packet is as long as it all.
fn is_whole(payload: &[u8], segment: usize) -> bool {
    let Some(inner) = payload.get(VXLAN..) else { return false };
    payload.len() > segment && ip_end(inner) == Some(inner.len())
}

/// Where the IP packet in an untagged frame says that it ends.
fn ip_end(frame: &[u8]) -> Option<usize> {
    let be16 = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    match be16(12)? {
        ethertype::IPV4 => Some(14 + usize::from(be16(16)?)),
        ethertype::IPV6 => Some(54 + usize::from(be16(18)?)),
        _ => None,
    }
}

impl Outer {
    /// A frame of a single datagram. `segment` is what the kernel says about a super-frame of a
    /// peer's, if it does.
    fn single(&self, mut packet: Packet, mtu: usize, segment: usize) -> Packet {
        let offload = match packet.bytes().get(VXLAN..) {
            Some(inner) => self.unfinished(inner, mtu, segment),
            None => Offload::default(),
        };
        self.complete(&mut packet, offload);
        packet
    }

    /// Metadata of an inner frame whose checksum is not finished, or nothing.
    fn unfinished(&self, inner: &[u8], mtu: usize, segment: usize) -> Offload {
        let Ok(parsed) = parse(inner, &HashKey::new(0)) else { return Offload::default() };
        if !is_partial(inner, &parsed) {
            return Offload::default();
        }
        // Longer than what fits the underlay: whoever sent it relied on its being cut.
        let longest = mtu.saturating_sub(vxlan::template::overhead(self.to.is_ipv6()));
        let (l3, payload) = (usize::from(parsed.l3), usize::from(parsed.payload));
        let is_super = parsed.end as usize - l3 > longest;
        // One in 65,536 finished checksums looks unfinished.
        if !is_super && verify_l4(inner, &parsed) {
            return Offload::default();
        }
        let partial = Offload {
            csum_partial: true,
            csum_start: parsed.l4,
            csum_offset: if parsed.key.proto == proto::TCP { 16 } else { 6 },
            ..Offload::default()
        };
        let size = if segment != 0 { segment } else { longest.saturating_sub(payload - l3) };
        if !is_super || size == 0 {
            return partial;
        }
        Offload {
            gso_type: gso_type(&parsed),
            gso_size: u16::try_from(size).unwrap_or(u16::MAX),
            hdr_len: parsed.payload,
            ..partial
        }
    }

    /// Takes joined datagrams apart into as few frames as can be.
    fn split(
        &self,
        mut joined: Packet,
        segment: usize,
        pool: &mut Pool,
        out: &mut impl FnMut(Packet),
    ) {
        let mut later: ArrayVec<Packet, 64> = ArrayVec::new();
        let octets = joined.bytes();
        let first = run_of(octets, segment);
        let mut at = first.as_ref().map_or(1, Run::count) * segment;
        while at < octets.len() {
            let rest = &octets[at..];
            let run = run_of(rest, segment);
            let count = run.as_ref().map_or(1, Run::count);
            let one = segment.min(rest.len());
            let len = run.as_ref().map_or(one, |run| VXLAN + run.len());
            // Without a buffer what is left is lost, as on a full queue.
            let Some(mut packet) = pool.alloc_for(len) else { break };
            match run.filter(|run| run.count() > 1) {
                None => {
                    packet.fill(&rest[..one]);
                    self.complete(&mut packet, Offload::default());
                }
                Some(run) => {
                    packet.set_len(len);
                    let headers = VXLAN + run.headers();
                    let mut end = headers;
                    let target = packet.bytes_mut();
                    target[..headers].copy_from_slice(&rest[..headers]);
                    for datagram in rest.chunks(segment).take(run.count()) {
                        let payload = &datagram[headers..];
                        target[end..end + payload.len()].copy_from_slice(payload);
                        end += payload.len();
                    }
                    let offload = run.finish(&mut target[VXLAN..]);
                    self.complete(&mut packet, offload);
                }
            }
            at += count * segment;
            if let Err(full) = later.try_push(packet) {
                pool.free(full.element());
                break;
            }
        }
        let offload = match first.filter(|run| run.count() > 1) {
            None => {
                joined.truncate(segment);
                Offload::default()
            }
            Some(run) => join(&mut joined, &run, segment),
        };
        self.complete(&mut joined, offload);
        out(joined);
        later.into_iter().for_each(out);
    }

    /// Puts the outer headers in front of a datagram's payload. `offload` is about the inner frame.
    fn complete(&self, packet: &mut Packet, mut offload: Offload) {
        let payload = packet.len();
        let len = match self.to.ip() {
            IpAddr::V4(_) => 42,
            IpAddr::V6(_) => 62,
        };
        let udp_len = (payload + 8) as u16;
        let head = packet.push_front(len);
        head[..6].copy_from_slice(&underlay_mac(self.to.ip()).0);
        head[6..12].copy_from_slice(&underlay_mac(self.from.ip()).0);
        let mut udp_sum = 0;
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                head[12..14].copy_from_slice(&ethertype::IPV6.to_be_bytes());
                head[14..18].copy_from_slice(&[0x60 | self.class >> 4, self.class << 4, 0, 0]);
                head[18..20].copy_from_slice(&udp_len.to_be_bytes());
                head[20..22].copy_from_slice(&[proto::UDP, 64]);
                head[22..38].copy_from_slice(&from.octets());
                head[38..54].copy_from_slice(&to.octets());
                let pseudo = sum(&head[22..54]) + Sum::word(udp_len) + Sum::word(17);
                udp_sum = match pseudo.fold() {
                    0 => 0xffff,
                    sum => sum,
                };
            }
            (from, to) => {
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(v4) => v4.octets(),
                    IpAddr::V6(_) => [0; 4],
                };
                head[12..14].copy_from_slice(&ethertype::IPV4.to_be_bytes());
                let total = (payload + 28) as u16;
                head[14..16].copy_from_slice(&[0x45, self.class]);
                head[16..18].copy_from_slice(&total.to_be_bytes());
                head[18..26].copy_from_slice(&[0, 0, 0x40, 0, 64, proto::UDP, 0, 0]);
                head[26..30].copy_from_slice(&octets(from));
                head[30..34].copy_from_slice(&octets(to));
                let checksum = sum(&head[14..34]).checksum();
                head[24..26].copy_from_slice(&checksum.to_be_bytes());
            }
        }
        let udp = len - 8;
        head[udp..udp + 2].copy_from_slice(&self.from.port().to_be_bytes());
        head[udp + 2..udp + 4].copy_from_slice(&self.to.port().to_be_bytes());
        head[udp + 4..udp + 6].copy_from_slice(&udp_len.to_be_bytes());
        head[udp + 6..udp + 8].copy_from_slice(&u16::to_be_bytes(udp_sum));
        offload.shift((len + VXLAN) as i32);
        offload.csum_valid = true;
        packet.offload = offload;
    }
}

fn gso_type(parsed: &Parsed) -> GsoType {
    match (parsed.key.proto, parsed.network) {
        (proto::TCP, Network::Ipv4) => GsoType::TcpV4,
        (proto::TCP, _) => GsoType::TcpV6,
        _ => GsoType::UdpL4,
    }
}

/// The run of TCP segments that joined datagrams begin with; `None` if not even the first is one.
fn run_of(octets: &[u8], segment: usize) -> Option<Run> {
    let mut datagrams = octets.chunks(segment);
    let (header, first) = datagrams.next()?.split_at_checked(VXLAN)?;
    let mut run = Run::start(first)?;
    if !run.verify(first) {
        return None;
    }
    for datagram in datagrams {
        let Some((other, frame)) = datagram.split_at_checked(VXLAN) else { break };
        let mut longer = run;
        if other != header || !longer.push(first, frame) || !run.verify(frame) {
            break;
        }
        run = longer;
    }
    Some(run)
}

/// Moves the payloads of the run that `joined` begins with together and makes it the super-frame.
fn join(joined: &mut Packet, run: &Run, segment: usize) -> Offload {
    let headers = VXLAN + run.headers();
    let octets = joined.bytes_mut();
    let mut end = segment;
    for n in 1..run.count() {
        let from = n * segment + headers;
        let to = ((n + 1) * segment).min(octets.len());
        octets.copy_within(from..to, end);
        end += to - from;
    }
    joined.truncate(VXLAN + run.len());
    run.finish(&mut joined.bytes_mut()[VXLAN..])
}
