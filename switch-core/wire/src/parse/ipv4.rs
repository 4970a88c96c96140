//! IPv4 (RFC 791): header, checksum, options, fragments.

use super::bytes::{array, be16};
use super::layer4::{self, Layer4};
use super::parsed::{Network, ParseError, Parsed};
use super::place::{Link, Place};
use crate::flow_key::{Family, FlowKey, HashKey};
use crate::sum::{ipv4_header_holds, sum};

pub(super) fn parse(
    frame: &[u8],
    link: Link,
    hash_key: &HashKey,
    parsed: &mut Parsed,
) -> Result<(), ParseError> {
    let packet = frame.get(usize::from(link.l3())..).unwrap_or_default();
    let Some(header) = packet.first_chunk::<20>() else {
        return Err(ParseError::Ipv4HeaderLength);
    };
    if header[0] != 0x45 || be16(header, 6) & 0x3fff != 0 {
        return unusual(frame, link, hash_key, parsed);
    }
    if !ipv4_header_holds(header) {
        return Err(ParseError::Ipv4Checksum);
    }
    let total = be16(header, 2);
    let Some(segment) = packet.get(20..usize::from(total)) else {
        return Err(ParseError::IpTotalLength);
    };
    let layer4 = layer4::read::<false>(header[9], segment, false);
    finish(link, header, 20, Place::WHOLE, layer4, hash_key, parsed)
}

/// Options, a fragment, or not IPv4 at all.
fn unusual(
    frame: &[u8],
    link: Link,
    hash_key: &HashKey,
    parsed: &mut Parsed,
) -> Result<(), ParseError> {
    let packet = frame.get(usize::from(link.l3())..).unwrap_or_default();
    let Some(header) = packet.first_chunk::<20>() else {
        return Err(ParseError::Ipv4HeaderLength);
    };
    if header[0] >> 4 != 4 {
        return Err(ParseError::IpVersion);
    }
    let header_len = u16::from(header[0] & 0x0f) * 4;
    let whole_header = match packet.get(..usize::from(header_len)) {
        Some(whole_header) if header_len >= 20 => whole_header,
        _ => return Err(ParseError::Ipv4HeaderLength),
    };
    if !sum(whole_header).holds() {
        return Err(ParseError::Ipv4Checksum);
    }
    let total = usize::from(be16(header, 2));
    let Some(segment) = packet.get(usize::from(header_len)..total) else {
        return Err(ParseError::IpTotalLength);
    };
    check_options(&whole_header[20..])?;
    let field = be16(header, 6);
    let place = if field & 0x3fff == 0 {
        Place::WHOLE
    } else {
        let (offset, more) = ((field & 0x1fff) * 8, field & 0x2000 != 0);
        let id = u32::from(be16(header, 4));
        Place::checked(offset, id, more, usize::from(header_len), segment)?
    };
    let layer4 = place.layer4::<false>(header[9], segment);
    finish(link, header, header_len, place, layer4, hash_key, parsed)
}

#[inline(always)]
fn finish(
    link: Link,
    header: &[u8; 20],
    header_len: u16,
    place: Place,
    layer4: Layer4,
    hash_key: &HashKey,
    parsed: &mut Parsed,
) -> Result<(), ParseError> {
    if let Some(error) = layer4.error {
        return Err(error);
    }
    let key = FlowKey {
        src: address(header, 12),
        dst: address(header, 16),
        src_port: layer4.src_port,
        dst_port: layer4.dst_port,
        proto: header[9],
        family: Family::V4,
        zone: 0,
    };
    let l4 = link.l3() + header_len;
    *parsed = Parsed {
        key,
        hash: key.hash(hash_key),
        end: u32::from(link.l3()) + u32::from(be16(header, 2)),
        l3: link.l3(),
        l4,
        payload: l4 + layer4.header,
        ethertype: link.ethertype,
        outer_tci: link.outer_tci,
        inner_tci: link.inner_tci,
        tags: link.tags,
        network: Network::Ipv4,
        ttl: header[8],
        traffic_class: header[1],
        fragment: place.fragment,
        icmp: layer4.icmp,
        tcp_flags: layer4.tcp_flags,
        dont_fragment: header[6] & 0x40 != 0,
        options: header_len != 20,
        fragment_offset: place.offset,
        fragment_id: place.id,
    };
    Ok(())
}

/// An address in the key's form, loaded as one integer. If it were read byte by byte, it would also
/// be stored byte by byte.
#[inline(always)]
pub(super) fn address(header: &[u8; 20], at: usize) -> [u8; 16] {
    u128::from(u32::from_le_bytes(array(header, at))).to_le_bytes()
}

/// Walks the option list (at most 40 bytes).
fn check_options(mut list: &[u8]) -> Result<(), ParseError> {
    while let [kind, rest @ ..] = list {
        match kind {
            // End of list; the rest is padding.
            0 => break,
            // No operation.
            1 => list = rest,
            // Record route, loose and strict source route (threat T-F6).
            7 | 131 | 137 => return Err(ParseError::Ipv4SourceRoute),
            _ => {
                let len = usize::from(*rest.first().ok_or(ParseError::Ipv4Options)?);
                match list.get(len..) {
                    Some(behind) if len >= 2 => list = behind,
                    _ => return Err(ParseError::Ipv4Options),
                }
            }
        }
    }
    Ok(())
}
