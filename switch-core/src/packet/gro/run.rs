//! A run of consecutive TCP segments that becomes one GRO packet.

use podswitch_wire::checksum::{Sum, sum};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;

use crate::packet::gso::finish_ipv4;
use crate::packet::layout::{be16, put_be16};
use crate::packet::{GsoType, Offload};

/// Bytes of the Ethernet header.
pub(super) const ETHERNET: usize = 14;

const PSH: u8 = 0x08;
/// Flags that segments of a GRO packet may have: ACK in all, PSH in the last, ECE in all or none.
const MERGED_FLAGS: u8 = 0x10 | PSH | 0x40;
const ACK: u8 = 0x10;

/// Offsets of a TCP packet that can be merged: not a fragment, without IP options, extension headers and
/// padding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tcp {
    pub(super) v4: bool,
    pub(super) l4: usize,
    pub(super) payload: usize,
}

impl Tcp {
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET..)?;
        let (v4, l4, end) = match be16(frame, 12) {
            ethertype::IPV4 if ip.len() >= 40 => {
                if ip[0] != 0x45 || ip[9] != proto::TCP || be16(ip, 6) & 0xbfff != 0 {
                    return None;
                }
                (true, ETHERNET + 20, ETHERNET + usize::from(be16(ip, 2)))
            }
            ethertype::IPV6 if ip.len() >= 60 => {
                if ip[0] >> 4 != 6 || ip[6] != proto::TCP {
                    return None;
                }
                (false, ETHERNET + 40, ETHERNET + 40 + usize::from(be16(ip, 4)))
            }
            _ => return None,
        };
        let payload = l4 + usize::from(frame[l4 + 12] >> 4) * 4;
        (end == frame.len() && payload >= l4 + 20 && payload <= end).then_some(Self {
            v4,
            l4,
            payload,
        })
    }

    /// The addresses, for the pseudo-header and for comparing flows.
    fn addresses<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        &frame[ETHERNET + if self.v4 { 12 } else { 8 }..self.l4]
    }

    /// The sum of the pseudo-header.
    pub(super) fn pseudo(&self, frame: &[u8]) -> Sum {
        let len = frame.len() - self.l4;
        sum(self.addresses(frame)) + Sum::word(u16::from(proto::TCP)) + Sum::word(len as u16)
    }

    pub(super) fn is_same_flow(&self, a: &[u8], b: &[u8]) -> bool {
        let ports = self.l4..self.l4 + 4;
        self.addresses(a) == self.addresses(b) && a.get(ports.clone()) == b.get(ports)
    }
}

/// IPv4 identifications of the packets in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ids {
    /// There is only one packet.
    One,
    /// All are equal, which only packets with DF may have.
    Same,
    /// Each is the one before plus one.
    Rising,
}

impl Ids {
    /// The identifications of a run of `count` packets and one more; `None` if it does not fit. `a` and
    /// `b`: the IPv4 headers of the first packet and of the new one.
    pub(super) fn and(self, a: &[u8], b: &[u8], count: u16) -> Option<Self> {
        let (first, next) = (be16(a, 4), be16(b, 4));
        let atomic = be16(a, 6) == 0x4000;
        if next == first.wrapping_add(count) && self != Self::Same {
            return Some(Self::Rising);
        }
        (next == first && atomic && self != Self::Rising).then_some(Self::Same)
    }
}

/// Segments that become one GRO packet. Frames are Ethernet frames without outer headers.
#[derive(Clone, Copy, Debug)]
pub struct GroRun {
    pub(super) tcp: Tcp,
    /// Payload bytes of each segment but the last.
    size: usize,
    /// Payload bytes of all segments.
    bytes: usize,
    /// Sequence number that continues the run.
    next: u32,
    pub(super) count: u16,
    ids: Ids,
    /// A short segment or PSH ended it.
    pub(super) closed: bool,
    /// Flags of the last segment.
    flags: u8,
}

impl GroRun {
    /// A run of one segment. `None` if the frame cannot be merged. Its checksum is not verified.
    pub fn start(frame: &[u8]) -> Option<Self> {
        let tcp = Tcp::read(frame)?;
        let flags = frame[tcp.l4 + 13];
        let size = frame.len() - tcp.payload;
        if size == 0 || flags & !MERGED_FLAGS != 0 || flags & ACK == 0 {
            return None;
        }
        Some(Self {
            tcp,
            size,
            bytes: size,
            next: sequence(frame, tcp.l4).wrapping_add(size as u32),
            count: 1,
            ids: Ids::One,
            closed: flags & PSH != 0,
            flags,
        })
    }

    /// Bytes of headers, which are common to all segments.
    pub fn headers(&self) -> usize {
        self.tcp.payload
    }

    /// Number of segments.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Length of the GRO packet.
    pub fn frame_len(&self) -> usize {
        self.tcp.payload + self.bytes
    }

    /// Whether the checksums of a frame with the layout of this run are valid.
    pub fn verify(&self, frame: &[u8]) -> bool {
        self.verify_ip(frame) && (self.tcp.pseudo(frame) + sum(&frame[self.tcp.l4..])).holds()
    }

    pub(super) fn verify_ip(&self, frame: &[u8]) -> bool {
        !self.tcp.v4 || sum(&frame[ETHERNET..self.tcp.l4]).holds()
    }

    /// Adds `frame` as the next segment; false if it does not continue the run. `first`: the first
    /// segment, with unchanged headers. The checksums are not verified.
    pub fn push(&mut self, first: &[u8], frame: &[u8]) -> bool {
        let Some(ids) = self.fits(first, frame) else { return false };
        let len = frame.len() - self.tcp.payload;
        self.ids = ids;
        self.flags = frame[self.tcp.l4 + 13];
        self.closed = len < self.size || self.flags & PSH != 0;
        self.bytes += len;
        self.next = self.next.wrapping_add(len as u32);
        self.count += 1;
        true
    }

    fn fits(&self, first: &[u8], frame: &[u8]) -> Option<Ids> {
        let Tcp { v4, l4, payload } = self.tcp;
        if self.closed || frame.len() <= payload || frame.len() - payload > self.size {
            return None;
        }
        // Ports, acknowledgment and data offset, window, urgent pointer, options; flags except PSH.
        let same = |from: usize, to: usize| first[from..to] == frame[from..to];
        let tcp = same(l4, l4 + 4)
            && same(l4 + 8, l4 + 13)
            && same(l4 + 14, l4 + 16)
            && same(l4 + 18, payload)
            && (first[l4 + 13] ^ frame[l4 + 13]) & !PSH == 0
            && sequence(frame, l4) == self.next;
        if !tcp || !same(0, ETHERNET) {
            return None;
        }
        let ip = ETHERNET;
        if v4 {
            let sane = usize::from(be16(frame, ip + 2)) == frame.len() - ip;
            let equal = same(ip, ip + 2) && same(ip + 6, ip + 10) && same(ip + 12, l4);
            (sane && equal).then(|| self.ids.and(&first[ip..], &frame[ip..], self.count))?
        } else {
            let sane = usize::from(be16(frame, ip + 4)) == frame.len() - l4;
            let equal = same(ip, ip + 4) && same(ip + 6, l4);
            (sane && equal).then_some(Ids::Same)
        }
    }

    /// Updates the headers of `frame`, the first segment followed by the payloads of all others. Returns
    /// its offload metadata. Not for a run of one segment.
    pub fn finish(&self, frame: &mut [u8]) -> Offload {
        let Tcp { v4, l4, payload } = self.tcp;
        debug_assert!(frame.len() == self.frame_len() && self.count > 1);
        if v4 {
            put_be16(frame, ETHERNET + 2, (frame.len() - ETHERNET) as u16);
            finish_ipv4(frame, ETHERNET, 20);
        } else {
            put_be16(frame, ETHERNET + 4, (frame.len() - l4) as u16);
        }
        frame[l4 + 13] = self.flags;
        let pseudo = self.tcp.pseudo(frame).fold();
        put_be16(frame, l4 + 16, pseudo);
        Offload {
            gso_type: if v4 { GsoType::TcpV4 } else { GsoType::TcpV6 },
            csum_partial: true,
            gso_size: self.size as u16,
            hdr_len: payload as u16,
            csum_start: l4 as u16,
            csum_offset: 16,
            ..Offload::default()
        }
    }
}

fn sequence(frame: &[u8], l4: usize) -> u32 {
    u32::from_be_bytes([frame[l4 + 4], frame[l4 + 5], frame[l4 + 6], frame[l4 + 7]])
}
