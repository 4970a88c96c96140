//! Checksums of parsed frames: verify, compute, complete partial ones.

use super::{Sum, pseudo_v4, pseudo_v6, sctp_checksum, sum};
use crate::flow_key::{Family, FlowKey, proto};
use crate::parse::{Fragment, Network, Parsed};

/// Offset of the checksum field within a layer-4 header, `None` for protocols whose checksum is not
/// known. SCTP's is four bytes of CRC32c, the others have two bytes.
#[inline]
pub const fn l4_checksum_offset(protocol: u8, family: Family) -> Option<usize> {
    match (protocol, family) {
        (proto::TCP, _) => Some(16),
        (proto::UDP, _) => Some(6),
        (proto::SCTP, _) => Some(8),
        (proto::ICMP, Family::V4) | (proto::ICMPV6, Family::V6) => Some(2),
        _ => None,
    }
}

/// The sum of the pseudo-header for a layer-4 packet of `len` bytes, header included. With an IPv6
/// routing header, the key's destination is not the final destination, which the sender used in its
/// sum.
#[inline]
pub fn pseudo_l4(key: &FlowKey, len: u32) -> Sum {
    match key.family {
        Family::V4 => {
            let first = |a: &[u8; 16]| [a[0], a[1], a[2], a[3]];
            pseudo_v4(first(&key.src), first(&key.dst), key.proto, len as u16)
        }
        Family::V6 => pseudo_v6(&key.src, &key.dst, key.proto, len),
    }
}

/// The data that a layer-4 checksum covers: the sum of the pseudo-header (zero without one) and the bytes.
fn coverage<'f>(frame: &'f [u8], parsed: &Parsed) -> Option<(Sum, &'f [u8])> {
    let packet = frame.get(usize::from(parsed.l4)..parsed.end as usize)?;
    let bytes = match parsed.key.proto {
        // Bytes between the end of UDP and the end of IP are not covered.
        proto::UDP => {
            let len = u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]);
            packet.get(..usize::from(len))?
        }
        _ => packet,
    };
    let pseudo = match parsed.key.proto {
        proto::ICMP => Sum::ZERO,
        _ => pseudo_l4(&parsed.key, bytes.len() as u32),
    };
    Some((pseudo, bytes))
}

/// Offset of a checksum that can be verified from this frame alone: a whole IP datagram of a known
/// protocol.
fn field_of(parsed: &Parsed) -> Option<usize> {
    let ip = matches!(parsed.network, Network::Ipv4 | Network::Ipv6);
    if !ip || parsed.fragment != Fragment::Whole {
        return None;
    }
    l4_checksum_offset(parsed.key.proto, parsed.key.family)
}

/// Whether the layer-4 checksum of a parsed frame is right. Also true where there is none to
/// verify: frames that are not IP, fragments, unknown protocols, UDP over IPv4 without a checksum.
/// (UDP over IPv6 must have one, RFC 8200 §8.1; a VTEP that permits zero checks for it before.)
pub fn verify_l4(frame: &[u8], parsed: &Parsed) -> bool {
    let Some(field) = field_of(parsed) else {
        return true;
    };
    let Some((pseudo, bytes)) = coverage(frame, parsed) else {
        return false;
    };
    match parsed.key.proto {
        proto::SCTP => {
            sctp_checksum(bytes).is_some_and(|crc| bytes.get(field..field + 4) == Some(&crc))
        }
        proto::UDP if bytes.get(field..field + 2) == Some(&[0, 0]) => {
            parsed.key.family == Family::V4
        }
        _ => (pseudo + sum(bytes)).holds(),
    }
}

/// Whether the checksum field holds only the pseudo-header's sum (a partial checksum). This is a
/// TCP or UDP packet whose sender left the checksum to the hardware, but which never passed through
/// any hardware. Kernel peers on veth send such frames inside a tunnel. One in 65,536 complete
/// checksums looks partial by chance, so call this only where [`verify_l4`] returned false.
pub fn is_partial(frame: &[u8], parsed: &Parsed) -> bool {
    let (Some(field), proto::TCP | proto::UDP) = (field_of(parsed), parsed.key.proto) else {
        return false;
    };
    coverage(frame, parsed).is_some_and(|(pseudo, bytes)| {
        bytes.get(field..field + 2) == Some(&pseudo.fold().to_be_bytes())
    })
}

/// Computes the layer-4 checksum of a parsed frame and writes it. Does nothing where [`verify_l4`]
/// has nothing to verify, except for UDP without a checksum, which gets one.
pub fn fill_l4(frame: &mut [u8], parsed: &Parsed) {
    let Some(field) = field_of(parsed) else {
        return;
    };
    let at = usize::from(parsed.l4) + field;
    if parsed.key.proto == proto::SCTP {
        let crc = coverage(frame, parsed).and_then(|(_, bytes)| sctp_checksum(bytes));
        if let (Some(crc), Some(slot)) = (crc, frame.get_mut(at..at + 4)) {
            slot.copy_from_slice(&crc);
        }
        return;
    }
    let Some(slot) = frame.get_mut(at..at + 2) else {
        return;
    };
    slot.fill(0);
    let Some((pseudo, bytes)) = coverage(frame, parsed) else {
        return;
    };
    let checksum = (pseudo + sum(bytes)).checksum();
    let checksum = if parsed.key.proto == proto::UDP { never_zero(checksum) } else { checksum };
    if let Some(slot) = frame.get_mut(at..at + 2) {
        slot.copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Completes a partial checksum. `packet` is the frame without padding (up to [`Parsed::end`]). The
/// bytes from `start` on are summed, including the pseudo-header's sum in the field `offset` bytes
/// behind `start`, and the result replaces that field. Where UDP has its checksum, a result of zero is written as 0xffff
/// (RFC 768). TCP's stays zero, as its sender writes it: GRO and segmentation must give back the same segments.
///
/// Returns false, and changes nothing, if the field does not lie in `packet`.
#[must_use]
pub fn finish_partial(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(bytes) = packet.get_mut(start..) else {
        return false;
    };
    let checksum = sum(bytes).checksum();
    let checksum = if offset == UDP_FIELD { never_zero(checksum) } else { checksum };
    match bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        Some(field) => {
            *field = checksum.to_be_bytes();
            true
        }
        None => false,
    }
}

/// Offset of the checksum in a UDP header.
const UDP_FIELD: usize = 6;

#[inline]
const fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twenty bytes whose sum with `field` zero is 0xffff: their checksum is zero.
    fn zero(offset: usize) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[0..2].copy_from_slice(&[0xff, 0xff]);
        assert!(finish_partial(&mut bytes, 0, offset));
        bytes
    }

    #[test]
    fn only_udp_never_has_a_checksum_of_zero() {
        assert_eq!(zero(6)[6..8], [0xff, 0xff], "UDP: RFC 768");
        assert_eq!(zero(16)[16..18], [0, 0], "TCP");
        assert_eq!(zero(2)[2..4], [0, 0], "ICMP");
    }
}
