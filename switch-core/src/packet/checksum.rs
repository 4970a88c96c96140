//! Computes checksums that a sender left to the hardware.

use podswitch_wire::checksum::{finish_partial, sctp_checksum};

use super::layout::Link;
use super::{Offload, Packet};
use crate::action::DropReason;

/// Computes a partial checksum in place. A packet without one is not changed. Padding behind the IP
/// packet is not summed. A result of zero is stored as all ones: for UDP zero means "no checksum"
/// (RFC 768), and for other protocols the two are equivalent.
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
