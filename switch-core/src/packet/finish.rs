//! What the sender left to the hardware, done in software: checksums, and the choice of what a
//! way out needs. The worker calls [`fit`] for every packet just before a port transmits it.
//! Nothing here blocks or allocates but from the worker's pool.

use podswitch_wire::checksum::{finish_partial, sctp_checksum};
use podswitch_wire::parse::Parsed;

use super::layout::Link;
use super::{GsoType, Offload, Offloads, Packet, Pool, gso};
use crate::action::DropReason;

/// A packet could not be taken apart, or not to its end. The packet itself is back in the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason:?} after {produced} packets")]
pub struct CutError {
    /// Why.
    pub reason: DropReason,
    /// Packets that were handed out before.
    pub produced: usize,
}

impl CutError {
    pub(super) fn new(reason: DropReason, produced: usize) -> Self {
        Self { reason, produced }
    }
}

/// Whether a port with these `offloads` takes `packet` as it is, so that [`fit`] would change
/// nothing.
#[inline]
pub fn is_fit(packet: &Packet, offloads: Offloads) -> bool {
    if packet.offload.is_gso() {
        return takes_super(packet, offloads);
    }
    !packet.offload.csum_partial || (offloads.checksum && !packet.offload.is_crc32c())
}

/// Makes of `packet` what a port with these `offloads` takes: finishes the checksum and cuts a
/// super-frame into segments where the port cannot, and otherwise leaves both as they are.
/// `out` gets each packet, and the pool, so that it can transmit when its batch is full.
/// Returns how many packets that were.
///
/// # Errors
/// Metadata that contradicts the frame ([`DropReason::OffloadInvalid`]), a super-frame that
/// cannot be cut ([`DropReason::GsoUnsupported`]) or an exhausted pool; what was not handed out
/// was given back to the pool.
#[inline]
pub fn fit(
    mut packet: Packet,
    offloads: Offloads,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<usize, CutError> {
    if packet.offload.is_gso() {
        return fit_super(packet, offloads, pool, out);
    }
    if !is_fit(&packet, offloads)
        && let Err(reason) = finish_checksum(&mut packet)
    {
        pool.free(packet);
        return Err(CutError::new(reason, 0));
    }
    out(pool, packet);
    Ok(1)
}

#[inline(never)]
fn fit_super(
    packet: Packet,
    offloads: Offloads,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<usize, CutError> {
    if takes_super(&packet, offloads) {
        out(pool, packet);
        return Ok(1);
    }
    if offloads.uso && offloads.checksum && gso::is_tunnelled(&packet) {
        return gso::repack(packet, pool, out);
    }
    gso::cut(packet, !offloads.checksum, pool, out)
}

/// Whether a port takes this super-frame whole. Most cut packets by their own layer-4 header, not
/// by one inside a tunnel.
fn takes_super(packet: &Packet, offloads: Offloads) -> bool {
    let kind = match packet.offload.gso_type {
        GsoType::None => true,
        GsoType::TcpV4 => offloads.tso4,
        GsoType::TcpV6 => offloads.tso6,
        GsoType::UdpL4 => offloads.uso,
    };
    kind && offloads.checksum && (offloads.tunnel || !gso::is_tunnelled(packet))
}

/// Finishes an unfinished checksum in place; a packet without one is left alone. Padding behind
/// the IP packet is not summed. A computed zero is stored as all ones: UDP's zero means "none"
/// (RFC 768), and the two are the same to everybody else.
///
/// # Errors
/// [`DropReason::OffloadInvalid`] if the checksum field lies outside the frame; the packet is
/// unchanged.
pub fn finish_checksum(packet: &mut Packet) -> Result<(), DropReason> {
    let offload = packet.offload;
    if !offload.csum_partial {
        return Ok(());
    }
    let start = usize::from(offload.csum_start);
    let frame = packet.bytes_mut();
    let end = Link::of(frame).map_or(frame.len(), |link| link.ip_end(frame));
    let frame = &mut frame[..end];
    if offload.is_crc32c() {
        let sum = frame.get(start..).and_then(sctp_checksum).ok_or(DropReason::OffloadInvalid)?;
        frame[start + 8..start + 12].copy_from_slice(&sum);
    } else if !finish_partial(frame, start, usize::from(offload.csum_offset)) {
        return Err(DropReason::OffloadInvalid);
    }
    packet.offload = Offload { csum_valid: true, ..Offload::default() };
    Ok(())
}

/// Bytes of the largest network-layer packet that a parsed packet stands for: of one segment of
/// a super-frame, of the packet itself otherwise. What a path MTU is compared with.
#[inline]
pub fn largest_l3(packet: &Packet, parsed: &Parsed) -> usize {
    let (l3, end) = (usize::from(parsed.l3), parsed.end as usize);
    if !packet.offload.is_gso() {
        return end - l3;
    }
    // Of a tunnelled super-frame every segment has the inner headers as well.
    let headers = parsed.payload.max(packet.offload.hdr_len);
    let payload = usize::from(headers).min(end);
    payload - l3 + usize::from(packet.offload.gso_size).min(end - payload)
}

#[cfg(test)]
mod tests;
