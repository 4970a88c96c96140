//! Segmentation in software: splits a TCP or UDP GSO packet into its segments, as the kernel does
//! for devices without TSO or USO. Called by the worker for egress ports that do not support GSO.

use podswitch_wire::checksum::{Sum, finish_partial, sum};
use podswitch_wire::flow_key::proto;

use super::checksum::finish_checksum;
use super::layout::{Layout, Link, be16, put_be16, tunnel};
use super::{GsoType, Offload, Packet, Pool};
use crate::action::DropReason;

/// A GSO packet could not be segmented, or not completely. The rest was returned to the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason:?} after {produced} packets")]
pub struct SegmentError {
    /// The reason.
    pub reason: DropReason,
    /// Number of packets that were passed to `out` before.
    pub produced: usize,
}

impl SegmentError {
    pub(super) fn new(reason: DropReason, produced: usize) -> Self {
        Self { reason, produced }
    }
}

/// TCP flags that belong to the last segment only: FIN and PSH.
const LAST_ONLY: u8 = 0x09;
/// Congestion window reduced: belongs to the first segment only (RFC 3168 §6.1.2).
const CWR: u8 = 0x80;

/// Splits a GSO packet into segments of `gso_size` bytes of payload each, with lengths, IPv4
/// identification, TCP sequence number, flags and checksums as if the sender had sent them one by
/// one. VLAN tags, IPv4 options, IPv6 extension headers and outer VXLAN headers are in every segment.
/// If `packet` is no GSO packet, its checksum is computed.
///
/// `out` gets each segment, and the pool. The first segment has the packet's origin, the others are
/// copies. Returns the number of segments. `packet` is always returned to the pool.
///
/// # Errors
/// As [`fit`](super::fit).
pub fn segment(
    packet: Packet,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<usize, SegmentError> {
    segment_to(packet, true, pool, out)
}

/// Whether the GSO packet is segmented at a layer-4 header inside a tunnel.
pub(super) fn is_tunnelled(packet: &Packet) -> bool {
    let frame = packet.bytes();
    Link::of(frame).is_some_and(|link| tunnel(frame, link, &packet.offload).is_some())
}

/// Offsets of a tunnelled GSO packet's headers, from the start of the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelOffsets {
    /// The outer packet is IPv4.
    pub v4: bool,
    /// The outer UDP header.
    pub udp: u16,
    /// The outer UDP packet has a checksum.
    pub is_summed: bool,
    /// The inner IP header.
    pub inner: u16,
    /// The inner IP packet ends where the frame ends, by its own length field.
    pub is_exact: bool,
}

/// The offsets of a GSO packet that is segmented at a header inside a UDP tunnel; `None` for every
/// other packet.
pub fn tunnel_offsets(packet: &Packet) -> Option<TunnelOffsets> {
    let (frame, offload) = (packet.bytes(), &packet.offload);
    if !offload.is_gso() {
        return None;
    }
    let outer = Link::of(frame)?;
    let (inner, udp) = tunnel(frame, outer, offload)?;
    let inner = inner?;
    let is_exact = inner.claimed_end(frame) == frame.len();
    let is_summed = be16(frame, udp + 6) != 0;
    let inner = u16::try_from(inner.l3).ok()?;
    Some(TunnelOffsets { v4: outer.v4, udp: udp as u16, is_summed, inner, is_exact })
}

/// As [`segment`]. Without `finish`, the layer-4 checksums of the segments stay partial.
pub(super) fn segment_to(
    mut packet: Packet,
    finish: bool,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<usize, SegmentError> {
    if !packet.offload.is_gso() {
        return match finish_checksum(&mut packet) {
            Ok(()) => {
                out(pool, packet);
                Ok(1)
            }
            Err(reason) => refuse(packet, reason, 0, pool),
        };
    }
    let layout = match Layout::of(packet.bytes(), &packet.offload) {
        Ok(layout) => layout,
        Err(reason) => return refuse(packet, reason, 0, pool),
    };
    let size = usize::from(packet.offload.gso_size);
    let count = (layout.end - layout.payload).div_ceil(size).max(1);
    if count > Offload::MAX_SEGMENTS {
        return refuse(packet, DropReason::OffloadInvalid, 0, pool);
    }
    for index in 0..count {
        let from = layout.payload + index * size;
        let to = (from + size).min(layout.end);
        let Some(mut piece) = pool.alloc_for(layout.payload + to - from) else {
            return refuse(packet, DropReason::PoolExhausted, index, pool);
        };
        let frame = packet.bytes();
        piece.fill_parts([&frame[..layout.payload], &frame[from..to]]);
        piece.inherit(&packet, index == 0);
        let place = Segment { index, last: index + 1 == count, finish };
        place.rewrite(&mut piece, &layout, &packet.offload);
        out(pool, piece);
    }
    pool.free(packet);
    Ok(count)
}

/// Returns a packet that cannot be segmented to the pool.
fn refuse(
    packet: Packet,
    reason: DropReason,
    produced: usize,
    pool: &mut Pool,
) -> Result<usize, SegmentError> {
    pool.free(packet);
    Err(SegmentError::new(reason, produced))
}

/// A segment of a GSO packet.
#[derive(Clone, Copy)]
struct Segment {
    index: usize,
    last: bool,
    finish: bool,
}

impl Segment {
    /// Rewrites the copied headers for this segment, from the innermost to the outermost.
    fn rewrite(self, piece: &mut Packet, layout: &Layout, whole: &Offload) {
        let frame = piece.bytes_mut();
        let l4 = layout.l4;
        let udp = whole.gso_type == GsoType::UdpL4;
        if udp {
            put_be16(frame, l4 + 4, (frame.len() - l4) as u16);
        } else {
            self.rewrite_tcp(frame, l4, whole);
        }
        self.rewrite_ip(frame, layout.ip);
        self.rewrite_pseudo(frame, layout, whole);
        // The outer checksum covers the inner one.
        let finish = self.finish || layout.outer.is_some();
        if finish {
            let done = finish_partial(frame, l4, usize::from(whole.csum_offset));
            debug_assert!(done, "the field is in the copied headers");
        }
        if let Some((ip, header)) = layout.outer {
            self.rewrite_outer(frame, ip, header);
        }
        piece.offload = if finish {
            Offload { csum_valid: true, ..Offload::default() }
        } else {
            Offload {
                csum_partial: true,
                csum_start: whole.csum_start,
                csum_offset: whole.csum_offset,
                ..Offload::default()
            }
        };
    }

    /// The field holds the pseudo-header sum of the GSO packet. Only the length differs.
    fn rewrite_pseudo(self, frame: &mut [u8], layout: &Layout, whole: &Offload) {
        let (l4, field) = (layout.l4, layout.l4 + usize::from(whole.csum_offset));
        let pseudo = Sum::word(be16(frame, field))
            + Sum::word(!((layout.end - l4) as u16))
            + Sum::word((frame.len() - l4) as u16);
        put_be16(frame, field, pseudo.fold());
    }

    fn rewrite_tcp(self, frame: &mut [u8], l4: usize, whole: &Offload) {
        let seq = &mut frame[l4 + 4..l4 + 8];
        let first = u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]);
        let offset = self.index as u32 * u32::from(whole.gso_size);
        seq.copy_from_slice(&first.wrapping_add(offset).to_be_bytes());
        if !self.last {
            frame[l4 + 13] &= !LAST_ONLY;
        }
        // Without the ECN bit in the metadata CWR is no congestion signal (it may be part of the
        // AccECN counter, RFC 9768), and is kept in every segment.
        if whole.ecn && self.index > 0 {
            frame[l4 + 13] &= !CWR;
        }
    }

    /// Rewrites the length; for IPv4 also identification and checksum.
    fn rewrite_ip(self, frame: &mut [u8], ip: Link) {
        let length = frame.len() - ip.l3;
        if !ip.v4 {
            put_be16(frame, ip.l3 + 4, (length - 40) as u16);
            return;
        }
        put_be16(frame, ip.l3 + 2, length as u16);
        let id = be16(frame, ip.l3 + 4).wrapping_add(self.index as u16);
        put_be16(frame, ip.l3 + 4, id);
        finish_ipv4(frame, ip.l3, ip.header_len(frame));
    }

    fn rewrite_outer(self, frame: &mut [u8], ip: Link, udp: usize) {
        self.rewrite_ip(frame, ip);
        let length = (frame.len() - udp) as u16;
        put_be16(frame, udp + 4, length);
        if be16(frame, udp + 6) == 0 {
            return;
        }
        let addresses = if ip.v4 { ip.l3 + 12..ip.l3 + 20 } else { ip.l3 + 8..ip.l3 + 40 };
        let pseudo = sum(&frame[addresses]) + Sum::word(length) + Sum::word(u16::from(proto::UDP));
        put_be16(frame, udp + 6, pseudo.fold());
        let done = finish_partial(frame, udp, 6);
        debug_assert!(done, "the tunnel's header was there");
    }
}

/// Computes the checksum of the IPv4 header at `l3`.
pub(super) fn finish_ipv4(frame: &mut [u8], l3: usize, header: usize) {
    put_be16(frame, l3 + 10, 0);
    let sum = sum(&frame[l3..l3 + header]).checksum();
    put_be16(frame, l3 + 10, sum);
}

mod tunnel_segments;

pub use tunnel_segments::TunnelSegments;
pub(super) use tunnel_segments::repack;

#[cfg(test)]
mod tests;
