//! IPv6 (RFC 8200): header, extension header chain, fragments.

use super::bytes::{array, be16};
use super::layer4::{self, Layer4};
use super::parsed::{Fragment, Network, ParseError, Parsed};
use super::place::{Link, Place};
use crate::flow_key::{Family, FlowKey, HashKey, proto};

/// The longest extension header chain that is followed.
pub(super) const MAX_EXTENSIONS: usize = 8;

/// Extension headers that are followed (IANA ipv6-parameters). An authentication header (51) is not, as
/// in IPv4: it protects addresses and ports, so that nothing behind it can be translated.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// The fast path: no extension headers.
#[inline(always)]
pub(super) fn parse(
    frame: &[u8],
    link: Link,
    hash_key: &HashKey,
    parsed: &mut Parsed,
) -> Result<(), ParseError> {
    let packet = frame.get(usize::from(link.l3())..).unwrap_or_default();
    let Some(header) = packet.first_chunk::<40>() else {
        return Err(ParseError::IpTotalLength);
    };
    if header[0] >> 4 != 6 {
        return Err(ParseError::IpVersion);
    }
    let total = 40 + usize::from(be16(header, 4));
    let Some(segment) = packet.get(40..total) else {
        return Err(ParseError::IpTotalLength);
    };
    let next = header[6];
    if !matches!(next, proto::TCP | proto::UDP | proto::ICMPV6 | proto::SCTP) {
        return extended(frame, link, hash_key, parsed);
    }
    let layer4 = layer4::read::<true>(next, segment, false);
    finish(
        link,
        header,
        Chain { protocol: next, l4: 40, place: Place::WHOLE },
        layer4,
        hash_key,
        parsed,
    )
}

/// Extension headers, or an unknown protocol.
#[inline(never)]
fn extended(
    frame: &[u8],
    link: Link,
    hash_key: &HashKey,
    parsed: &mut Parsed,
) -> Result<(), ParseError> {
    let packet = frame.get(usize::from(link.l3())..).unwrap_or_default();
    let Some(header) = packet.first_chunk::<40>() else {
        return Err(ParseError::IpTotalLength);
    };
    let total = 40 + usize::from(be16(header, 4));
    let packet = packet.get(..total).ok_or(ParseError::IpTotalLength)?;
    // A payload length of zero before a hop-by-hop header announces a jumbogram (RFC 2675).
    if header[6] == extension::HOP_BY_HOP && total == 40 {
        return Err(ParseError::IpTotalLength);
    }
    let chain = follow_chain(packet, header[6], true)?;
    let segment = packet.get(usize::from(chain.l4)..).unwrap_or_default();
    let layer4 = chain.place.layer4::<true>(chain.protocol, segment);
    finish(link, header, chain, layer4, hash_key, parsed)
}

#[inline(always)]
fn finish(
    link: Link,
    header: &[u8; 40],
    chain: Chain,
    layer4: Layer4,
    hash_key: &HashKey,
    parsed: &mut Parsed,
) -> Result<(), ParseError> {
    if let Some(error) = layer4.error {
        return Err(error);
    }
    let key = FlowKey {
        src: array(header, 8),
        dst: array(header, 24),
        src_port: layer4.src_port,
        dst_port: layer4.dst_port,
        proto: chain.protocol,
        family: Family::V6,
        zone: 0,
    };
    let l4 = link.l3() + chain.l4;
    *parsed = Parsed {
        key,
        hash: key.hash(hash_key),
        end: u32::from(link.l3()) + 40 + u32::from(be16(header, 4)),
        l3: link.l3(),
        l4,
        payload: l4 + layer4.header,
        ethertype: link.ethertype,
        outer_tci: link.outer_tci,
        inner_tci: link.inner_tci,
        tags: link.tags,
        network: Network::Ipv6,
        ttl: header[7],
        traffic_class: header[0] << 4 | header[1] >> 4,
        fragment: chain.place.fragment,
        icmp: layer4.icmp,
        tcp_flags: layer4.tcp_flags,
        dont_fragment: true,
        options: chain.l4 != 40,
        fragment_offset: chain.place.offset,
        fragment_id: chain.place.id,
    };
    Ok(())
}

/// Where an extension header chain ends.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    /// The first next-header value that is not an extension header followed here (in a later
    /// fragment: the fragment header's).
    pub(super) protocol: u8,
    /// Offset behind the chain, from the start of the IPv6 header: at most 40 + 8 × 2,048.
    pub(super) l4: u16,
    pub(super) place: Place,
}

/// Follows the chain to its end. `strict`: check a fragment's length against the packet, which
/// fails for a truncated quote.
pub(super) fn follow_chain(packet: &[u8], mut next: u8, strict: bool) -> Result<Chain, ParseError> {
    let mut place = Place::WHOLE;
    let mut offset = 40;
    // The error for a truncated chain: behind a first fragment's header it is an evasion (RFC
    // 7112).
    let mut cut_off = ParseError::Ipv6Extension;
    let mut fragmented = false;
    for index in 0..=MAX_EXTENSIONS {
        let end = match next {
            // Only allowed as the first (RFC 8200 §4.1).
            extension::HOP_BY_HOP => index > 0,
            extension::ROUTING | extension::DESTINATION => false,
            extension::FRAGMENT => fragmented,
            _ => return Ok(Chain { protocol: next, l4: offset as u16, place }),
        };
        if end || index == MAX_EXTENSIONS {
            break;
        }
        let rest = packet.get(offset..).unwrap_or_default();
        let head = rest.first_chunk::<8>().ok_or(cut_off)?;
        let len = extension_len(next, head)?;
        let behind = rest.get(len..).ok_or(cut_off)?;
        offset += len;
        if next == extension::FRAGMENT {
            fragmented = true;
            if let Some(found) = fragment(head, offset, behind, strict)? {
                place = found;
                cut_off = ParseError::FragmentTiny;
            }
            if place.fragment == Fragment::Later {
                return Ok(Chain { protocol: head[0], l4: offset as u16, place });
            }
        }
        next = head[0];
    }
    Err(ParseError::Ipv6Extension)
}

/// Length of an extension header in bytes.
fn extension_len(kind: u8, head: &[u8; 8]) -> Result<usize, ParseError> {
    let units = usize::from(head[1]);
    match kind {
        extension::FRAGMENT => Ok(8),
        // Type 0 is deprecated source routing (RFC 5095). With segments left, of whatever type, the
        // packet is not for its destination: source routing as that of IPv4 (T-F6).
        extension::ROUTING if head[2] == 0 || head[3] != 0 => Err(ParseError::Ipv6Extension),
        _ => Ok((units + 1) * 8),
    }
}

/// Reads a fragment header whose data begin at `offset`. `None` for an atomic fragment (offset
/// zero, none to follow), which is a whole datagram (RFC 6946).
fn fragment(
    head: &[u8; 8],
    offset: usize,
    data: &[u8],
    strict: bool,
) -> Result<Option<Place>, ParseError> {
    let [_, _, _, _, a, b, c, d] = *head;
    let id = u32::from_be_bytes([a, b, c, d]);
    let field = be16(head, 2);
    let (at, more) = (field & 0xfff8, field & 1 != 0);
    if at == 0 && !more {
        return Ok(None);
    }
    if !strict {
        return Ok(Some(Place::unchecked(at, id)));
    }
    // The headers before the fragment header count towards the datagram's payload.
    Place::checked(at, id, more, offset - 48, data).map(Some)
}
