//! The parse that every frame goes through: offsets, flow key, hash, TCP flags, fragment state, or
//! the reason why the frame is malformed.
//!
//! Called by each worker for every received frame. Never allocates, never panics, and its work is
//! bounded for any input. Common frames (untagged IPv4 without options, IPv6 without extension
//! headers, not fragments) take the fast path in `fast`; the code for other frames is not inlined.

mod bytes;
mod fast;
mod ipv4;
mod ipv6;
mod layer4;
mod parsed;
mod place;
mod quoted;

pub use parsed::{Fragment, Icmp, Network, ParseError, Parsed, ethertype, tcp_flags};
pub use quoted::{Quoted, parse_quoted};

use crate::flow_key::HashKey;
use bytes::be16;
use place::Link;

/// Parses one Ethernet frame. The work is bounded: at most two VLAN tags and eight IPv6 extension
/// headers. Lengths are checked against the frame and each other.
///
/// # Errors
/// [`ParseError`] names the first error.
#[inline]
pub fn parse(frame: &[u8], hash_key: &HashKey) -> Result<Parsed, ParseError> {
    let mut parsed = Parsed::default();
    parse_into(frame, hash_key, &mut parsed).map(|()| parsed)
}

/// [`parse`] into storage of the caller, such as an entry of a burst's array. The packet path uses
/// this: returning the result by value costs more (10 ns) than computing it (7 ns).
///
/// # Errors
/// As [`parse`]; the content of `parsed` is then unspecified.
#[inline]
pub fn parse_into(frame: &[u8], hash_key: &HashKey, parsed: &mut Parsed) -> Result<(), ParseError> {
    if fast::parse(frame, hash_key, parsed) { Ok(()) } else { full(frame, hash_key, parsed) }
}

/// The fast path of [`parse_into`]. True if the frame is of the common kind and was parsed:
/// untagged, IPv4 without options or IPv6 without extension headers, a whole TCP or UDP datagram,
/// and valid in all that is checked. False says nothing about the frame, and the content of
/// `parsed` is unspecified; call `parse_into`.
#[inline(always)]
pub fn parse_fast(frame: &[u8], hash_key: &HashKey, parsed: &mut Parsed) -> bool {
    fast::parse(frame, hash_key, parsed)
}

/// The parse with all its rules, for frames that are not of the common kind and for malformed ones.
#[inline(never)]
fn full(frame: &[u8], hash_key: &HashKey, parsed: &mut Parsed) -> Result<(), ParseError> {
    let Some(ethernet) = frame.first_chunk::<14>() else {
        return Err(ParseError::EthernetTruncated);
    };
    let mut ethertype = be16(ethernet, 12);
    let mut l3 = 14;
    let mut tci = [0; 2];
    let mut tags = 0;
    while is_tag(ethertype) {
        let Some(tag) = frame.get(l3..).and_then(|rest| rest.first_chunk::<4>()) else {
            return Err(ParseError::VlanTruncated);
        };
        let Some(slot) = tci.get_mut(tags) else {
            return Err(ParseError::VlanTooDeep);
        };
        *slot = be16(tag, 0);
        ethertype = be16(tag, 2);
        tags += 1;
        l3 += 4;
    }
    let [outer_tci, inner_tci] = tci;
    let link = Link { ethertype, outer_tci, inner_tci, tags: tags as u8 };
    match ethertype {
        ethertype::IPV4 => ipv4::parse(frame, link, hash_key, parsed),
        ethertype::IPV6 => ipv6::parse(frame, link, hash_key, parsed),
        ethertype::ARP => {
            check_arp(frame.get(l3..).unwrap_or_default())?;
            *parsed = not_ip(link, Network::Arp, l3 as u32 + 28);
            Ok(())
        }
        _ => {
            let end = u32::try_from(frame.len()).unwrap_or(u32::MAX);
            *parsed = not_ip(link, Network::Other, end);
            Ok(())
        }
    }
}

#[inline]
fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::VLAN | ethertype::QINQ | ethertype::QINQ_OLD)
}

fn not_ip(link: Link, network: Network, end: u32) -> Parsed {
    Parsed {
        end,
        l3: link.l3(),
        l4: link.l3(),
        payload: link.l3(),
        ethertype: link.ethertype,
        outer_tci: link.outer_tci,
        inner_tci: link.inner_tci,
        tags: link.tags,
        network,
        ..Parsed::default()
    }
}

/// ARP (RFC 826) for IPv4 over Ethernet: 28 bytes.
fn check_arp(packet: &[u8]) -> Result<(), ParseError> {
    match packet.first_chunk::<28>() {
        // Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
        Some([0, 1, 0x08, 0x00, 6, 4, ..]) => Ok(()),
        _ => Err(ParseError::ArpInvalid),
    }
}

#[cfg(test)]
mod tests;
