//! Offsets of a frame's headers, determined from the frame itself. The frame was parsed on reception,
//! but headers were added, removed and rewritten since.

use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;

use super::{GsoType, Offload};
use crate::action::DropReason;

/// Where the network header begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) l3: usize,
    pub(super) v4: bool,
}

impl Link {
    /// The network header of an Ethernet frame with up to two VLAN tags. The frame must hold at least an IP header.
    #[inline]
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let mut l3 = 14;
        for _ in 0..3 {
            match u16::from_be_bytes([*frame.get(l3 - 2)?, *frame.get(l3 - 1)?]) {
                ethertype::IPV4 if frame.len() >= l3 + 20 => return Some(Self { l3, v4: true }),
                ethertype::IPV6 if frame.len() >= l3 + 40 => return Some(Self { l3, v4: false }),
                ethertype::VLAN | ethertype::QINQ | ethertype::QINQ_OLD => l3 += 4,
                _ => return None,
            }
        }
        None
    }

    /// Where the IP packet ends according to its length field, limited to the end of the frame.
    #[inline]
    pub(super) fn ip_end(&self, frame: &[u8]) -> usize {
        self.claimed_end(frame).min(frame.len())
    }

    /// The end of the IP packet according to its length field, which may be behind the frame's end.
    #[inline]
    pub(super) fn claimed_end(&self, frame: &[u8]) -> usize {
        let length = if self.v4 {
            usize::from(be16(frame, self.l3 + 2))
        } else {
            40 + usize::from(be16(frame, self.l3 + 4))
        };
        self.l3 + length
    }

    /// Length of the IPv4 header, or of the fixed IPv6 header.
    #[inline]
    pub(super) fn header_len(&self, frame: &[u8]) -> usize {
        if self.v4 { usize::from(frame[self.l3] & 0x0f) * 4 } else { 40 }
    }

    /// Protocol or first next header.
    #[inline]
    pub(super) fn protocol(&self, frame: &[u8]) -> u8 {
        frame[self.l3 + if self.v4 { 9 } else { 6 }]
    }
}

/// The end of the IP packet in a frame according to its length field, which may be behind the frame's end. `None`: no
/// IP header, or an incomplete one. Only the length field is checked.
pub fn ip_end(frame: &[u8]) -> Option<usize> {
    Link::of(frame).map(|link| link.claimed_end(frame))
}

/// The headers of a GSO packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// The IP header of the packet that is segmented.
    pub(super) ip: Link,
    /// The tunnel's IP header in front of it, and the offset of the tunnel's UDP header.
    pub(super) outer: Option<(Link, usize)>,
    /// Start of the TCP or UDP header.
    pub(super) l4: usize,
    /// Start of the payload.
    pub(super) payload: usize,
    /// End of the payload.
    pub(super) end: usize,
}

/// Bytes of a UDP header and a VXLAN header.
const UDP_VXLAN: usize = 16;

impl Layout {
    /// The layout of a GSO packet, checked against its metadata.
    pub(super) fn of(frame: &[u8], offload: &Offload) -> Result<Self, DropReason> {
        let invalid = DropReason::OffloadInvalid;
        let first = Link::of(frame).ok_or(invalid)?;
        let (ip, outer) = match tunnel(frame, first, offload) {
            None => (first, None),
            Some((inner, udp)) => (inner.ok_or(DropReason::GsoUnsupported)?, Some((first, udp))),
        };
        let l4 = usize::from(offload.csum_start);
        let (wanted, field, v4) = match offload.gso_type {
            GsoType::None => return Err(invalid),
            GsoType::TcpV4 => (proto::TCP, 16, true),
            GsoType::TcpV6 => (proto::TCP, 16, false),
            GsoType::UdpL4 => (proto::UDP, 6, ip.v4),
        };
        let header = ip.header_len(frame);
        let direct = ip.v4 || l4 == ip.l3 + header;
        let fragment = ip.v4 && be16(frame, ip.l3 + 6) & 0x3fff != 0;
        let end = ip.ip_end(frame);
        let good = offload.csum_partial
            && offload.gso_size != 0
            && usize::from(offload.csum_offset) == field
            && ip.v4 == v4
            && header >= if v4 { 20 } else { 40 }
            && !fragment
            && if direct {
                l4 == ip.l3 + header && ip.protocol(frame) == wanted
            } else {
                l4 > ip.l3 + header
            };
        if !good || l4 + 8 > end {
            return Err(invalid);
        }
        let l4_len = match wanted {
            proto::TCP if l4 + 20 <= end => usize::from(frame[l4 + 12] >> 4) * 4,
            proto::TCP => return Err(invalid),
            _ => 8,
        };
        let payload = l4 + l4_len;
        if payload > end || (wanted == proto::TCP && l4_len < 20) {
            return Err(invalid);
        }
        Ok(Self { ip, outer, l4, payload, end })
    }
}

/// If the packet is segmented at a layer-4 header inside a UDP tunnel: the inner IP header (`None` if
/// it is not recognised) and the offset of the tunnel's UDP header.
pub(super) fn tunnel(
    frame: &[u8],
    outer: Link,
    offload: &Offload,
) -> Option<(Option<Link>, usize)> {
    let udp = outer.l3 + outer.header_len(frame);
    let l4 = usize::from(offload.csum_start);
    if outer.protocol(frame) != proto::UDP || l4 < udp + UDP_VXLAN {
        return None;
    }
    let base = udp + UDP_VXLAN;
    let inner = frame.get(base..).and_then(Link::of);
    Some((inner.map(|link| Link { l3: base + link.l3, ..link }), udp))
}

#[inline]
pub(super) fn be16(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

#[inline]
pub(super) fn put_be16(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
