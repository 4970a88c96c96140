//! The one parse that every frame goes through: offsets, flow key, hash, TCP flags, fragment
//! state, or the reason why the frame is malformed.
//!
//! Called by each worker for every received frame. Never allocates, never panics, and its work is
//! bounded for any input. Common frames (untagged IPv4 without options, IPv6 without extension
//! headers, not fragments) take the fast path in `fast`; the rest is out of line.

mod fast;
mod ipv4;
mod ipv6;
mod layer4;
mod quoted;

pub use quoted::{Quoted, parse_quoted};

use crate::flow_key::{FlowKey, HashKey};
use layer4::Layer4;

/// EtherTypes that the switch distinguishes.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// 802.1ad service tag (QinQ).
    pub const QINQ: u16 = 0x88a8;
    /// The tag of stacked VLANs before 802.1ad, still in use.
    pub const QINQ_OLD: u16 = 0x9100;
}

/// The protocol behind the Ethernet header and its tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Network {
    /// Neither ARP nor IP: only a bridge can carry it. Includes 802.3 length frames.
    #[default]
    Other,
    /// ARP for IPv4 over Ethernet, its length checked.
    Arp,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// A packet's place in its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Fragment {
    /// A whole datagram (also an IPv6 atomic fragment, RFC 6946).
    #[default]
    Whole,
    /// The first fragment; it holds the whole layer-4 header and more follow.
    First,
    /// A later fragment: no layer-4 header, both ports of the key are zero.
    Later,
}

/// The kind of ICMP message, as much as forwarding needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Icmp {
    /// Not ICMP.
    #[default]
    None,
    /// A query: echo request and its like; the key's source port is the identifier.
    Query,
    /// The reply to a query; the key's destination port is the identifier.
    Reply,
    /// An error that quotes another packet at `Parsed::payload`.
    Error,
    /// Neighbour discovery (RFC 4861) or multicast listener discovery: never forwarded.
    Neighbour,
    /// Any other message.
    Other,
}

/// TCP flag bits of the header's 14th byte.
pub mod tcp_flags {
    /// No more data from sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledgment field significant.
    pub const ACK: u8 = 0x10;
    /// Urgent pointer significant.
    pub const URG: u8 = 0x20;
}

/// A parsed frame. All offsets are bytes from the start of the frame. What lies beyond `end` is
/// padding.
///
/// Order of the fields: first what differs from frame to frame, then what is the same in nearly all
/// frames and is written with a few wide stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Parsed {
    /// 5-tuple; meaningful for `Network::Ipv4` and `Network::Ipv6`.
    pub key: FlowKey,
    /// `key.hash(hash_key)`; for frames that are not IP, zero.
    pub hash: u64,
    /// End of the network-layer packet: the length of the frame less its padding. For frames
    /// that are neither IP nor ARP, the length of the frame.
    pub end: u32,
    /// Start of the layer-4 payload (in ICMP errors: the quoted packet). Equal to `l4` where there
    /// is no known layer-4 header.
    pub payload: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The IPv4 type of service or IPv6 traffic class byte (DSCP and ECN).
    pub traffic_class: u8,
    /// TCP flags (see [`tcp_flags`]), zero for other protocols.
    pub tcp_flags: u8,
    /// The "don't fragment" bit (IPv6: always set).
    pub dont_fragment: bool,
    /// Offset of a fragment's data within its datagram's payload, in bytes.
    pub fragment_offset: u16,
    /// Identification of the datagram that a fragment belongs to, zero for whole datagrams. It
    /// identifies the datagram together with both addresses, over IPv4 also with the protocol (RFC
    /// 791), over IPv6 without it (RFC 8200 §4.5: fragments may name different next headers; the
    /// key's protocol in a later fragment is the one in its fragment header).
    pub fragment_id: u32,
    /// Start of the network header.
    pub l3: u16,
    /// Start of the layer-4 header (of the fragment's data for `Fragment::Later`).
    pub l4: u16,
    /// EtherType behind the tags (below 0x0600: an 802.3 length).
    pub ethertype: u16,
    /// 802.1Q tag control information of the outermost tag if `tags` > 0.
    pub outer_tci: u16,
    /// The same of the second tag if `tags` > 1.
    pub inner_tci: u16,
    /// Number of VLAN tags, 0 to 2.
    pub tags: u8,
    /// What the frame carries.
    pub network: Network,
    /// Place in the datagram.
    pub fragment: Fragment,
    /// ICMP kind.
    pub icmp: Icmp,
    /// The IPv4 header carries options, or the IPv6 chain extension headers.
    pub options: bool,
}

const _: () = assert!(size_of::<Parsed>() == 80);

/// Why a frame is malformed. Each variant has a drop reason of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ParseError {
    /// Shorter than an Ethernet header.
    EthernetTruncated,
    /// A VLAN tag is cut off.
    VlanTruncated,
    /// More than two VLAN tags.
    VlanTooDeep,
    /// ARP shorter than its header says, or not Ethernet/IPv4.
    ArpInvalid,
    /// The IP version field disagrees with the EtherType.
    IpVersion,
    /// The IPv4 header is cut off, or its IHL is below 5.
    Ipv4HeaderLength,
    /// The IPv4 header checksum is wrong.
    Ipv4Checksum,
    /// The IP total or payload length exceeds the frame or does not hold its own header.
    IpTotalLength,
    /// IPv4 source routing or record route (threat T-F6, RFC 7126).
    Ipv4SourceRoute,
    /// A malformed IPv4 options list.
    Ipv4Options,
    /// The IPv6 extension header chain is truncated or longer than is followed, or it has a routing
    /// header of type 0 (RFC 5095).
    Ipv6Extension,
    /// The first fragment does not hold the whole layer-4 header (RFC 1858, RFC 7112).
    FragmentTiny,
    /// A fragment whose length is not a multiple of 8 although more follow, or which ends beyond
    /// 65,535 bytes.
    FragmentLength,
    /// TCP header cut off, or its data offset is below 5 or beyond the packet.
    TcpInvalid,
    /// UDP header cut off, or its length below 8 or beyond the packet.
    UdpInvalid,
    /// SCTP common header cut off.
    SctpInvalid,
    /// ICMP header cut off.
    IcmpInvalid,
}

/// Parses one Ethernet frame. Bounded work: at most two VLAN tags and eight IPv6 extension headers.
/// Lengths are checked against the frame and each other.
///
/// # Errors
/// [`ParseError`] names the first error.
#[inline]
pub fn parse(frame: &[u8], hash_key: &HashKey) -> Result<Parsed, ParseError> {
    let mut parsed = Parsed::default();
    parse_into(frame, hash_key, &mut parsed).map(|()| parsed)
}

/// [`parse`] into storage of the caller, such as an entry of a burst's array. The packet path uses
/// this: returning the result by value costs more than computing it (10 ns beside 7).
///
/// # Errors
/// As [`parse`]; the content of `parsed` is then unspecified.
#[inline]
pub fn parse_into(frame: &[u8], hash_key: &HashKey, parsed: &mut Parsed) -> Result<(), ParseError> {
    if fast::parse(frame, hash_key, parsed) { Ok(()) } else { full(frame, hash_key, parsed) }
}

/// The fast path of [`parse_into`]: true if the frame is of the common kind and was parsed
/// (untagged IPv4 without options or IPv6 without extension headers, a whole TCP or UDP datagram,
/// valid in all that is checked). False says nothing about the frame, and the content of `parsed`
/// is unspecified; call `parse_into`.
#[inline(always)]
pub fn straight(frame: &[u8], hash_key: &HashKey, parsed: &mut Parsed) -> bool {
    fast::parse(frame, hash_key, parsed)
}

/// What precedes the network header; small enough to be passed in a register.
#[derive(Clone, Copy)]
struct Link {
    ethertype: u16,
    outer_tci: u16,
    inner_tci: u16,
    tags: u8,
}

const _: () = assert!(size_of::<Link>() == 8);

impl Link {
    /// Start of the network header.
    #[inline(always)]
    fn l3(self) -> u16 {
        14 + 4 * u16::from(self.tags)
    }
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

/// A fragment's place in its datagram; all zero for a whole datagram.
#[derive(Clone, Copy, Default)]
struct Place {
    fragment: Fragment,
    offset: u16,
    id: u32,
}

impl Place {
    const WHOLE: Place = Place { fragment: Fragment::Whole, offset: 0, id: 0 };

    /// The place of a fragment whose length has been checked. `before` bytes precede its data in a
    /// whole datagram and count towards the maximum of 65,535.
    fn checked(
        offset: u16,
        id: u32,
        more: bool,
        before: usize,
        data: &[u8],
    ) -> Result<Self, ParseError> {
        let ends_at = before + usize::from(offset) + data.len();
        if data.is_empty() || ends_at > 65_535 || (more && !data.len().is_multiple_of(8)) {
            return Err(ParseError::FragmentLength);
        }
        Ok(Self::unchecked(offset, id))
    }

    fn unchecked(offset: u16, id: u32) -> Self {
        let fragment = if offset == 0 { Fragment::First } else { Fragment::Later };
        Self { fragment, offset, id }
    }

    /// The layer-4 header: complete in a whole datagram and in a first fragment, absent in a later
    /// one. A TCP fragment at offset 8 can only serve to rewrite the flags of the first and is
    /// refused (RFC 3128).
    fn layer4<const V6: bool>(self, protocol: u8, data: &[u8]) -> Layer4 {
        match self.fragment {
            Fragment::Later if self.offset == 8 && protocol == crate::flow_key::proto::TCP => {
                Layer4::wrong(ParseError::FragmentTiny)
            }
            Fragment::Later => Layer4::NONE,
            Fragment::Whole => layer4::read::<V6>(protocol, data, false),
            Fragment::First => layer4::read::<V6>(protocol, data, true),
        }
    }
}

#[inline(always)]
fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// `M` bytes at offset `at`, which is a constant in every use.
#[inline(always)]
fn array<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    let mut array = [0; M];
    array.copy_from_slice(&bytes[at..at + M]);
    array
}

#[cfg(test)]
mod tests;
