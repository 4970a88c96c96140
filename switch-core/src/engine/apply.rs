//! Applies a plan to a packet: the last step of the fast path. Does not allocate.

use podswitch_wire::parse::{Network, Parsed};

use crate::action::Plan;
use crate::nat::rewrite::{rewrite, rewrite_common};
use crate::packet::Packet;

/// Rewrites the frame as `plan` says. The caller has checked TTL and MTU, and that the frame has no
/// VLAN tags. Padding behind the IP packet is cut off: it belongs to the ingress link.
#[inline(never)]
pub(super) fn apply(packet: &mut Packet, parsed: &Parsed, plan: &Plan) {
    apply_inline(packet, parsed, plan);
}

/// [`apply`], inlined.
#[inline(always)]
pub(super) fn apply_inline(packet: &mut Packet, parsed: &Parsed, plan: &Plan) {
    if plan.is_translation() {
        packet.truncate(parsed.end as usize);
        if rewrite_common(packet, parsed, plan) {
            return;
        }
        rewrite(packet, parsed, plan);
    }
    apply_route(packet, parsed, plan);
}

/// [`apply`] for a plan without translation: new MAC addresses, TTL decremented.
#[inline(always)]
pub(super) fn apply_route(packet: &mut Packet, parsed: &Parsed, plan: &Plan) {
    packet.truncate(parsed.end as usize);
    // No IP packet is shorter than an IPv4 header, and there are no tags before it.
    let Some(head) = packet.bytes_mut().first_chunk_mut::<34>() else { return };
    head[..12].copy_from_slice(&plan.macs);
    match parsed.network {
        Network::Ipv4 => {
            head[L3 + 8] = head[L3 + 8].wrapping_sub(1);
            let sum = u16::from_le_bytes([head[L3 + 10], head[L3 + 11]]);
            head[L3 + 10..L3 + 12].copy_from_slice(&decrement_ttl(sum).to_le_bytes());
        }
        Network::Ipv6 => head[L3 + 7] = head[L3 + 7].wrapping_sub(1),
        Network::Arp | Network::Other => {}
    }
}

/// Offset of the network header in a frame without tags.
const L3: usize = 14;

/// The IPv4 header checksum after the TTL was decremented. The checksum is in little-endian byte
/// order. RFC 1624 equation 3 with `~m + m'` = 0xfeff, which is 0xfffe in that byte order (RFC 1071
/// §2): an increment by one, and the carry.
#[inline(always)]
fn decrement_ttl(checksum: u16) -> u16 {
    checksum.wrapping_add(1 + u16::from(checksum >= 0xfffe))
}

#[cfg(test)]
mod rewrites;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PortId;
    use podswitch_wire::addr::Mac;
    use proptest::prelude::*;

    fn sum(header: &[u8]) -> u16 {
        let mut s: u32 =
            header.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
        while s > 0xffff {
            s = (s & 0xffff) + (s >> 16);
        }
        s as u16
    }

    #[test]
    fn every_checksum_is_updated_as_rfc_1624_says() {
        for checksum in 0..=u16::MAX {
            let sum = u32::from(!checksum) + 0xfeff;
            let wanted = !((sum & 0xffff) as u16 + (sum >> 16) as u16);
            assert_eq!(
                decrement_ttl(checksum.swap_bytes()),
                wanted.swap_bytes(),
                "{checksum:#06x}"
            );
        }
    }

    proptest! {
        #[test]
        fn header_checksum_remains_valid(mut header: [u8; 20], ttl in 2u8..) {
            header[0] = 0x45;
            header[8] = ttl;
            header[10] = 0;
            header[11] = 0;
            let c = !sum(&header);
            header[10..12].copy_from_slice(&c.to_be_bytes());
            let mut packet = Packet::from_frame(&[&[0u8; 14][..], &header, &[7u8; 9]].concat());
            let parsed =
                Parsed { l3: 14, end: 34, network: Network::Ipv4, ttl, ..Parsed::default() };
            let plan = Plan::route(PortId(1), 1500, Mac([2; 6]), Mac([4; 6]));
            apply(&mut packet, &parsed, &plan);
            prop_assert_eq!(packet.len(), 34, "padding is cut off");
            prop_assert_eq!(sum(&packet.bytes()[14..]), 0xffff);
            prop_assert_eq!(packet.bytes()[22], ttl - 1);
            prop_assert_eq!(&packet.bytes()[..12], &[2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4]);
        }
    }
}
