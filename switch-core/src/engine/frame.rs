//! MAC addresses of an Ethernet frame, and the sender ID that flow entries compare.

use podswitch_wire::addr::Mac;

use crate::packet::Packet;

/// Destination MAC address; zero if the frame is too short to have one.
pub(super) fn destination_mac(frame: &[u8]) -> Mac {
    Mac(frame.first_chunk::<6>().copied().unwrap_or_default())
}

/// Source MAC address; zero if the frame is too short to have one.
pub(super) fn source_mac(frame: &[u8]) -> Mac {
    Mac(frame.get(6..12).and_then(|m| m.first_chunk::<6>()).copied().unwrap_or_default())
}

/// The sender of a frame, as flow entries store it: source MAC address and ingress port. For a
/// frame from the tunnel the VTEP replaces the MAC address, marked by the group bit, which no
/// source MAC address has.
#[inline]
pub(super) fn sender_id(packet: &Packet) -> u64 {
    packet.bytes().first_chunk::<12>().map_or(0, |head| sender_id_of(head, packet))
}

/// [`sender_id`] of a frame that begins with `head`.
#[inline(always)]
pub(super) fn sender_id_of<const N: usize>(head: &[u8; N], packet: &Packet) -> u64 {
    let who = match packet.via() {
        // Two bytes of the destination, which the shift below removes, and the source.
        None => head[4..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)),
        Some(end) => 1 << 40 | u64::from(end.0),
    };
    who << 16 | u64::from(packet.ingress.0)
}
