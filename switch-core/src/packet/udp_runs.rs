//! Runs of UDP datagrams of one flow in a burst, which a port can send as one GSO packet (UDP segmentation offload,
//! `VIRTIO_NET_HDR_GSO_UDP_L4`). The inverse of segmentation. Called by ports on transmission where a system call costs
//! more than a datagram (decision record 0030).
//!
//! No payload is copied: a run is the headers of its first datagram with other lengths, and the payload of each
//! datagram. Datagrams are joined only if [`segment`](super::segment) would produce them again, byte for byte. The one
//! exception is the IPv4 identification, which the receiver's kernel increments from the first. Every checksum that the
//! GSO packet no longer carries was verified, or is partial.

use arrayvec::ArrayVec;
use podswitch_wire::checksum::{pseudo_v4, pseudo_v6, sum};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;

use super::gso::finish_ipv4;
use super::layout::{be16, put_be16};
use super::{BATCH, GsoType, Offload, Packet};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of a UDP header.
const UDP: usize = 8;
/// Bytes of Ethernet, IPv6 and UDP headers, the longest that are joined.
pub const MAX_HEADERS: usize = ETHERNET + 40 + UDP;
/// Number of flows whose runs grow at the same time.
const FLOWS: usize = 8;
/// No datagram.
const NONE: u8 = u8::MAX;

const _: () =
    assert!(BATCH <= 64, "a bit for each packet; and Linux before 6.9 accepts at most 64 segments");

/// A UDP datagram that can be joined: a whole one, untagged, without IPv4 options or IPv6 extension headers, padding
/// or a missing checksum.
#[derive(Clone, Copy)]
struct Datagram {
    v4: bool,
    /// Start of the UDP header.
    l4: usize,
    /// Bytes of payload; not zero.
    payload: usize,
}

impl Datagram {
    fn read(packet: &Packet) -> Option<Self> {
        let (frame, offload) = (packet.bytes(), &packet.offload);
        let ip = frame.get(ETHERNET..)?;
        let (v4, l4, end) = match be16(frame, 12) {
            ethertype::IPV4 if ip.len() > 28 => {
                // Header without options; protocol; no fragment.
                if ip[0] != 0x45 || ip[9] != proto::UDP || be16(ip, 6) & 0xbfff != 0 {
                    return None;
                }
                (true, ETHERNET + 20, ETHERNET + usize::from(be16(ip, 2)))
            }
            ethertype::IPV6 if ip.len() > 48 && ip[0] >> 4 == 6 && ip[6] == proto::UDP => {
                (false, ETHERNET + 40, ETHERNET + 40 + usize::from(be16(ip, 4)))
            }
            _ => return None,
        };
        let is_whole = end == frame.len() && usize::from(be16(frame, l4 + 4)) == end - l4;
        // A partial checksum may also be that of a packet inside this one, which stays partial.
        let is_own = !offload.csum_partial
            || (usize::from(offload.csum_start), offload.csum_offset) == (l4, 6);
        let joinable = is_whole && is_own && !offload.is_gso() && be16(frame, l4 + 6) != 0;
        joinable.then(|| Self { v4, l4, payload: end - l4 - UDP })
    }

    /// Whether the addresses and ports are those of `first`, of the same family.
    fn is_same_flow(&self, first: &[u8], frame: &[u8]) -> bool {
        let from = if self.v4 { ETHERNET + 12 } else { ETHERNET + 8 };
        first[from..self.l4 + 4] == frame[from..self.l4 + 4]
    }

    /// Whether a receiver would see the same headers: MAC addresses, DSCP and ECN, TTL, DF or flow label.
    fn has_same_headers(&self, first: &[u8], frame: &[u8]) -> bool {
        let same = |from: usize, to: usize| first[from..to] == frame[from..to];
        match self.v4 {
            true => same(0, 16) && same(20, 24),
            false => same(0, 18) && same(20, 22),
        }
    }

    /// The sum of the pseudo-header of a datagram with a UDP header and `payload` bytes.
    fn pseudo(&self, frame: &[u8], payload: usize) -> podswitch_wire::checksum::Sum {
        let len = (UDP + payload) as u16;
        let ip = &frame[ETHERNET..];
        match (self.v4, ip.get(12..).and_then(<[u8]>::first_chunk::<8>)) {
            (true, Some(&[a, b, c, d, e, f, g, h])) => {
                pseudo_v4([a, b, c, d], [e, f, g, h], proto::UDP, len)
            }
            _ => match ip.get(8..).and_then(<[u8]>::first_chunk::<32>) {
                Some(addresses) => {
                    let (src, dst) = addresses.split_at(16);
                    let address = |bytes: &[u8]| bytes.first_chunk().copied().unwrap_or_default();
                    pseudo_v6(&address(src), &address(dst), proto::UDP, u32::from(len))
                }
                None => Default::default(),
            },
        }
    }

    /// Whether the checksum is partial, or valid.
    fn is_good(&self, packet: &Packet) -> bool {
        let (frame, offload) = (packet.bytes(), &packet.offload);
        offload.csum_partial
            || offload.csum_valid
            || (self.pseudo(frame, self.payload) + sum(&frame[self.l4..])).holds()
    }
}

/// Whether a frame that is not a [`Datagram`] certainly belongs to no UDP flow.
fn is_unrelated(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23).is_some_and(|protocol| *protocol != proto::UDP),
        Some([0x08, 0x06]) => true,
        Some([0x86, 0xdd]) => {
            frame.get(20).is_some_and(|next| matches!(*next, proto::TCP | proto::ICMPV6))
        }
        _ => false,
    }
}

/// A run that may grow.
struct Open {
    first: usize,
    last: usize,
    datagram: Datagram,
    /// Bytes of payload so far.
    payload: usize,
    /// Whether the first datagram's checksum is known to be right.
    verified: bool,
}

/// The runs of a burst. Packets are identified by their index in the burst.
#[derive(Debug)]
pub struct UdpRuns {
    /// For each packet, the next datagram of its run.
    next: [u8; BATCH],
    /// The packets that begin a run of at least two.
    firsts: u64,
    /// The packets that continue a run.
    others: u64,
}

impl UdpRuns {
    /// Finds the runs of a burst. `None`: there is no run of two datagrams or more.
    pub fn of(burst: &[Packet]) -> Option<Self> {
        if burst.len() < 2 {
            return None;
        }
        let mut runs = Self { next: [NONE; BATCH], firsts: 0, others: 0 };
        let mut open: ArrayVec<Open, FLOWS> = ArrayVec::new();
        for (at, packet) in burst.iter().enumerate().take(BATCH) {
            runs.add(burst, at, packet, &mut open);
        }
        (runs.firsts != 0).then_some(runs)
    }

    fn add(
        &mut self,
        burst: &[Packet],
        at: usize,
        packet: &Packet,
        open: &mut ArrayVec<Open, FLOWS>,
    ) {
        let frame = packet.bytes();
        let Some(datagram) = Datagram::read(packet) else {
            // It may be UDP of any flow in a form that is not joined. No later datagram may overtake it.
            if !is_unrelated(frame) {
                open.clear();
            }
            return;
        };
        let of_flow = open.iter().position(|run| {
            run.datagram.v4 == datagram.v4 && datagram.is_same_flow(burst[run.first].bytes(), frame)
        });
        if let Some(which) = of_flow {
            let run = &mut open[which];
            let first = &burst[run.first];
            let payload = run.payload + datagram.payload;
            // The length fields of IP and UDP have 16 bits.
            let fits = datagram.l4 - ETHERNET + UDP + payload <= usize::from(u16::MAX);
            let is_same = datagram.has_same_headers(first.bytes(), frame);
            if fits && is_same && datagram.payload <= run.datagram.payload {
                run.verified = run.verified || run.datagram.is_good(first);
                if run.verified && datagram.is_good(packet) {
                    self.next[run.last] = at as u8;
                    self.firsts |= 1 << run.first;
                    self.others |= 1 << at;
                    (run.last, run.payload) = (at, payload);
                    // A shorter datagram can only be the last.
                    if datagram.payload < run.datagram.payload {
                        open.remove(which);
                    }
                    return;
                }
            }
            open.remove(which);
        }
        if open.is_full() {
            open.remove(0);
        }
        let payload = datagram.payload;
        open.push(Open { first: at, last: at, datagram, payload, verified: false });
    }

    /// Whether the packet is sent together with an earlier one.
    pub fn continues(&self, at: usize) -> bool {
        self.others >> at & 1 != 0
    }

    /// The run that begins with packet `at` of the burst. `None`: it is sent alone, or [continues](Self::continues) a
    /// run.
    pub fn run<'a>(&'a self, burst: &'a [Packet], at: usize) -> Option<UdpRun<'a>> {
        let begins = self.firsts >> at & 1 != 0;
        let datagram = begins.then(|| Datagram::read(burst.get(at)?)).flatten()?;
        Some(UdpRun { runs: self, burst, first: at, datagram })
    }
}

/// A run of at least two datagrams.
pub struct UdpRun<'a> {
    runs: &'a UdpRuns,
    burst: &'a [Packet],
    first: usize,
    datagram: Datagram,
}

impl UdpRun<'_> {
    /// The indices of its packets in the burst.
    pub fn members(&self) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(self.first), |at| {
            Some(self.runs.next[*at]).filter(|next| *next != NONE).map(usize::from)
        })
    }

    /// The payload of each datagram, in order.
    pub fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let from = self.datagram.l4 + UDP;
        self.members().map(move |at| &self.burst[at].bytes()[from..])
    }

    /// Writes the headers of the GSO packet to the front of `out`, and returns how long they are, in bytes, and the
    /// packet's metadata.
    pub fn headers(&self, out: &mut [u8; MAX_HEADERS]) -> (usize, Offload) {
        let (Datagram { v4, l4, payload: size }, first) =
            (self.datagram, self.burst[self.first].bytes());
        let headers = l4 + UDP;
        let payload: usize = self.payloads().map(<[u8]>::len).sum();
        out[..headers].copy_from_slice(&first[..headers]);
        let len = (UDP + payload) as u16;
        if v4 {
            put_be16(out, ETHERNET + 2, len + 20);
            finish_ipv4(out, ETHERNET, 20);
        } else {
            put_be16(out, ETHERNET + 4, len);
        }
        put_be16(out, l4 + 4, len);
        put_be16(out, l4 + 6, self.datagram.pseudo(first, payload).fold());
        let offload = Offload {
            gso_type: GsoType::UdpL4,
            csum_partial: true,
            gso_size: size as u16,
            hdr_len: headers as u16,
            csum_start: l4 as u16,
            csum_offset: 6,
            ..Offload::default()
        };
        (headers, offload)
    }
}

#[cfg(test)]
mod tests;
