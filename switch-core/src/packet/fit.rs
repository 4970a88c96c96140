//! Makes packets fit the offloads of an egress port: computes checksums and segments GSO packets in
//! software if the port does not. The worker calls [`fit`] just before a port transmits a packet.
//! Does not block, and allocates from the worker's pool only.

use podswitch_wire::parse::Parsed;

use super::checksum::finish_checksum;
use super::gso::{self, SegmentError};
use super::{GsoType, Offloads, Packet, Pool};

/// Whether a port with these `offloads` accepts `packet` as it is, so that [`fit`] would not change
/// it.
#[inline]
pub fn is_fit(packet: &Packet, offloads: Offloads) -> bool {
    if packet.offload.is_gso() {
        return accepts_gso(packet, offloads);
    }
    !packet.offload.csum_partial || (offloads.checksum && !packet.offload.is_crc32c())
}

/// Turns `packet` into packets that a port with these `offloads` accepts: computes the checksum and
/// segments a GSO packet if the port cannot. `out` gets each resulting packet, and the pool, so that
/// it can transmit when its batch is full. Returns the number of packets.
///
/// # Errors
/// The metadata contradicts the frame ([`OffloadInvalid`]), the GSO packet cannot be segmented
/// ([`GsoUnsupported`]), or the pool is exhausted. The rest of the packet was returned to the pool.
///
/// [`OffloadInvalid`]: crate::action::DropReason::OffloadInvalid
/// [`GsoUnsupported`]: crate::action::DropReason::GsoUnsupported
#[inline]
pub fn fit(
    mut packet: Packet,
    offloads: Offloads,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<usize, SegmentError> {
    if packet.offload.is_gso() {
        return fit_gso(packet, offloads, pool, out);
    }
    if !is_fit(&packet, offloads)
        && let Err(reason) = finish_checksum(&mut packet)
    {
        pool.free(packet);
        return Err(SegmentError::new(reason, 0));
    }
    out(pool, packet);
    Ok(1)
}

#[inline(never)]
fn fit_gso(
    packet: Packet,
    offloads: Offloads,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<usize, SegmentError> {
    if accepts_gso(&packet, offloads) {
        out(pool, packet);
        return Ok(1);
    }
    if offloads.uso && offloads.checksum && gso::is_tunnelled(&packet) {
        return gso::repack(packet, pool, out);
    }
    gso::segment_to(packet, !offloads.checksum, pool, out)
}

/// Whether a port accepts this GSO packet. Most ports segment packets at their own layer-4 header,
/// not at one inside a tunnel.
fn accepts_gso(packet: &Packet, offloads: Offloads) -> bool {
    let kind = match packet.offload.gso_type {
        GsoType::None => true,
        GsoType::TcpV4 => offloads.tso4,
        GsoType::TcpV6 => offloads.tso6,
        GsoType::UdpL4 => offloads.uso,
    };
    kind && offloads.checksum && (offloads.tunnel || !gso::is_tunnelled(packet))
}

/// Bytes of the largest network-layer packet that a parsed packet is sent as: one segment of a GSO
/// packet, otherwise the packet itself. To be compared with the path MTU.
#[inline]
pub fn largest_l3(packet: &Packet, parsed: &Parsed) -> usize {
    let (l3, end) = (usize::from(parsed.l3), parsed.end as usize);
    if !packet.offload.is_gso() {
        return end - l3;
    }
    // Each segment of a tunnelled GSO packet has the inner headers, too.
    let headers = parsed.payload.max(packet.offload.hdr_len);
    let payload = usize::from(headers).min(end);
    payload - l3 + usize::from(packet.offload.gso_size).min(end - payload)
}

#[cfg(test)]
mod tests;
