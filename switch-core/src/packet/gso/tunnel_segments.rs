//! A tunnelled GSO packet as a sequence of UDP datagrams of equal length, for egress that segments
//! by length alone, at the outer UDP header (UDP_SEGMENT, USO). Inner checksums are complete.

use podswitch_wire::checksum::{Sum, finish_partial, sum};
use podswitch_wire::flow_key::proto;

use super::{Segment, SegmentError, finish_ipv4, put_be16, refuse};
use crate::action::DropReason;
use crate::packet::layout::{Layout, Link, be16};
use crate::packet::{GsoType, Offload, Packet, Pool};

/// The UDP payloads of the datagrams that a tunnelled GSO packet is segmented into: tunnel header and inner packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelSegments {
    /// Offset of the UDP payload in the GSO packet.
    from: usize,
    /// The layout, relative to `from`.
    layout: Layout,
    size: usize,
    offload: Offload,
}

impl TunnelSegments {
    /// The datagrams of a GSO packet inside a UDP tunnel.
    ///
    /// # Errors
    /// The metadata contradicts the frame, or the frame is no tunnelled GSO packet
    /// ([`DropReason::OffloadInvalid`], [`DropReason::GsoUnsupported`]).
    pub fn of(packet: &Packet) -> Result<Self, DropReason> {
        let offload = packet.offload;
        let Layout { ip, outer, l4, payload, end } = Layout::of(packet.bytes(), &offload)?;
        let (_, udp) = outer.ok_or(DropReason::OffloadInvalid)?;
        let from = udp + 8;
        let layout = Layout {
            ip: Link { l3: ip.l3 - from, ..ip },
            outer: None,
            l4: l4 - from,
            payload: payload - from,
            end: end - from,
        };
        let segments = Self { from, layout, size: usize::from(offload.gso_size), offload };
        match segments.count() > Offload::MAX_SEGMENTS {
            true => Err(DropReason::OffloadInvalid),
            false => Ok(segments),
        }
    }

    /// Number of datagrams.
    pub fn count(&self) -> usize {
        (self.layout.end - self.layout.payload).div_ceil(self.size).max(1)
    }

    /// Bytes of each datagram except the last.
    pub fn stride(&self) -> usize {
        self.layout.payload + self.size
    }

    /// Bytes of all datagrams.
    pub fn total_len(&self) -> usize {
        self.layout.end + (self.count() - 1) * self.layout.payload
    }

    /// Writes datagram `index` to the start of `out`, with the headers of a separate packet. Returns its
    /// length. `frame`: the GSO packet.
    ///
    /// # Panics
    /// If `out` is shorter than the datagram.
    pub fn write(&self, frame: &[u8], index: usize, out: &mut [u8]) -> usize {
        let (frame, layout) = (&frame[self.from..], &self.layout);
        let start = layout.payload + index * self.size;
        let payload = &frame[start..(start + self.size).min(layout.end)];
        let len = layout.payload + payload.len();
        let out = &mut out[..len];
        out[..layout.payload].copy_from_slice(&frame[..layout.payload]);
        out[layout.payload..].copy_from_slice(payload);
        let place = Segment { index, last: index + 1 == self.count(), finish: true };
        // The checksum is computed here, while the copied bytes are in the L1 cache.
        place.rewrite_inner(out, layout, &self.offload);
        len
    }
}

/// Length of the longest UDP datagram over IPv4, in bytes. Over IPv6 it is longer.
const LONGEST: usize = 65_507;

/// Converts a tunnelled GSO packet into as few GSO packets of UDP datagrams as possible, for a port that
/// segments UDP but not inside a tunnel. `out` gets each of them, and the pool. Returns their number.
/// `packet` is returned to the pool.
///
/// # Errors
/// As [`fit`](crate::packet::fit).
pub(in crate::packet) fn repack(
    packet: Packet,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<usize, SegmentError> {
    let segments = match TunnelSegments::of(&packet) {
        Ok(segments) => segments,
        Err(reason) => return refuse(packet, reason, 0, pool),
    };
    let (count, head) = (segments.count(), segments.from);
    let each = LONGEST / segments.stride();
    let Ok(stride) = u16::try_from(segments.stride().min(segments.total_len())) else {
        return refuse(packet, DropReason::OffloadInvalid, 0, pool);
    };
    let mut produced = 0;
    for first in (0..count).step_by(each.max(1)) {
        let last = (first + each.max(1)).min(count);
        let Some(mut piece) = pool.alloc_for(head + (last - first) * segments.stride()) else {
            return refuse(packet, DropReason::PoolExhausted, produced, pool);
        };
        let space = piece.spare_mut();
        space[..head].copy_from_slice(&packet.bytes()[..head]);
        let mut end = head;
        for index in first..last {
            end += segments.write(packet.bytes(), index, &mut space[end..]);
        }
        piece.set_len(end);
        piece.inherit(&packet, first == 0);
        finish_outer(&mut piece, head - 8, stride, first as u16, last - first > 1);
        produced += 1;
        out(pool, piece);
    }
    pool.free(packet);
    Ok(produced)
}

/// Writes lengths, identification and checksum of the outer headers. `first`: index of the first datagram in this part.
fn finish_outer(piece: &mut Packet, udp: usize, stride: u16, first: u16, several: bool) {
    let frame = piece.bytes_mut();
    let Some(ip) = Link::of(frame) else { return };
    let length = (frame.len() - udp) as u16;
    if ip.v4 {
        put_be16(frame, ip.l3 + 2, (frame.len() - ip.l3) as u16);
        let id = be16(frame, ip.l3 + 4).wrapping_add(first);
        put_be16(frame, ip.l3 + 4, id);
        finish_ipv4(frame, ip.l3, ip.header_len(frame));
    } else {
        put_be16(frame, ip.l3 + 4, (frame.len() - ip.l3 - 40) as u16);
    }
    put_be16(frame, udp + 4, length);
    let unsummed = be16(frame, udp + 6) == 0;
    if unsummed && !several {
        piece.offload = Offload::default();
        return;
    }
    // UDP segmentation writes checksums. Over IPv4 a tunnel may have none.
    let addresses = if ip.v4 { ip.l3 + 12..ip.l3 + 20 } else { ip.l3 + 8..ip.l3 + 40 };
    let pseudo = sum(&frame[addresses]) + Sum::word(length) + Sum::word(u16::from(proto::UDP));
    put_be16(frame, udp + 6, pseudo.fold());
    piece.offload = Offload {
        gso_type: if several { GsoType::UdpL4 } else { GsoType::None },
        csum_partial: true,
        gso_size: if several { stride } else { 0 },
        hdr_len: if several { (udp + 8) as u16 } else { 0 },
        csum_start: udp as u16,
        csum_offset: 6,
        ..Offload::default()
    };
}

impl Segment {
    /// Rewrites the copied inner headers for this segment, and computes its checksum.
    fn rewrite_inner(self, frame: &mut [u8], layout: &Layout, whole: &Offload) {
        let l4 = layout.l4;
        if whole.gso_type == GsoType::UdpL4 {
            put_be16(frame, l4 + 4, (frame.len() - l4) as u16);
        } else {
            self.rewrite_tcp(frame, l4, whole);
        }
        self.rewrite_ip(frame, layout.ip);
        self.rewrite_pseudo(frame, layout, whole);
        let done = finish_partial(frame, l4, usize::from(whole.csum_offset));
        debug_assert!(done, "the field is in the copied headers");
    }
}
