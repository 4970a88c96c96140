//! The one parse that every frame goes through: offsets, flow key, hash, TCP flags, fragment
//! state, or the reason why the frame is malformed.

use crate::flow_key::{Family, FlowKey, HashKey, proto};

/// EtherTypes that the switch tells apart.
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
    /// The tag that stacked VLANs had before 802.1ad, still met in the wild.
    pub const QINQ_OLD: u16 = 0x9100;
}

/// What stands behind the Ethernet header and its tags.
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

/// Where a packet stands in its datagram.
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

/// What ICMP message a packet is, as far as forwarding must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Icmp {
    /// Not ICMP.
    #[default]
    None,
    /// A query: echo request and its like; the key's source port is the identifier.
    Query,
    /// The answer to a query; the key's destination port is the identifier.
    Reply,
    /// An error that quotes another packet at `Parsed::payload`.
    Error,
    /// Neighbour discovery (RFC 4861) or multicast listener discovery: never forwarded.
    Neighbour,
    /// Anything else.
    Other,
}

/// TCP flag bits as they stand in the header's 14th octet.
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

/// A frame that was parsed. All offsets count octets from the start of the frame; what lies
/// beyond `end` is padding and belongs to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// 5-tuple; meaningful for `Network::Ipv4` and `Network::Ipv6`.
    pub key: FlowKey,
    /// `key.hash(hash_key)`; for frames that are not IP, zero.
    pub hash: u64,
    /// End of the network-layer packet: the length of the frame less its padding. For frames
    /// that are neither IP nor ARP, the length of the frame.
    pub end: u32,
    /// Start of the network header.
    pub l3: u16,
    /// Start of the layer-4 header (of the fragment's data for `Fragment::Later`).
    pub l4: u16,
    /// Start of what the layer-4 header carries (for ICMP errors: the quoted packet). Equal to
    /// `l4` where there is no layer-4 header that we know.
    pub payload: u16,
    /// EtherType behind the tags (below 0x0600: an 802.3 length).
    pub ethertype: u16,
    /// 802.1Q tag control information of the outermost tag, if `tags` > 0.
    pub outer_tci: u16,
    /// Of the second tag, if `tags` > 1.
    pub inner_tci: u16,
    /// Number of VLAN tags, 0 to 2.
    pub tags: u8,
    /// What the frame carries.
    pub network: Network,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The IPv4 type of service or IPv6 traffic class octet (DSCP and ECN).
    pub traffic_class: u8,
    /// Place in the datagram.
    pub fragment: Fragment,
    /// ICMP kind.
    pub icmp: Icmp,
    /// TCP flags (see [`tcp_flags`]), zero for other protocols.
    pub tcp_flags: u8,
    /// The "don't fragment" bit (IPv6: always set).
    pub dont_fragment: bool,
    /// The IPv4 header carries options, or the IPv6 chain extension headers.
    pub options: bool,
    /// Offset of a fragment's data within its datagram's payload, in octets.
    pub fragment_offset: u16,
    /// Identification of the datagram that a fragment belongs to, zero for whole ones. Which
    /// datagram it is, is told by it and both addresses; over IPv4 also by the protocol
    /// (RFC 791), over IPv6 not (RFC 8200 §4.5: fragments may name different next headers, and
    /// the key's protocol in a later fragment is what its fragment header names).
    pub fragment_id: u32,
}

/// Why a frame cannot be taken at its word. Each is a drop reason of its own.
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
    /// The IPv6 extension chain is cut off or longer than we follow, or a routing header that
    /// RFC 5095 and RFC 7126's spirit forbid (type 0).
    Ipv6Extension,
    /// The first fragment does not hold the whole layer-4 header (RFC 1858, RFC 7112).
    FragmentTiny,
    /// A fragment whose length is no multiple of 8 while more follow, or which ends beyond
    /// 65,535 octets.
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

/// Parses one Ethernet frame. Bounded work: at most two VLAN tags and eight IPv6 extension
/// headers. Lengths are checked against the frame and against each other.
///
/// # Errors
/// [`ParseError`] names the first thing that is wrong.
#[inline]
pub fn parse(frame: &[u8], hash_key: &HashKey) -> Result<Parsed, ParseError> {
    let Some(ethernet) = frame.first_chunk::<14>() else {
        return Err(ParseError::EthernetTruncated);
    };
    let ethertype = be16(ethernet, 12);
    let link = Link { l3: 14, ethertype, outer_tci: 0, inner_tci: 0, tags: 0 };
    match ethertype {
        ethertype::IPV4 => ipv4(frame, link, hash_key),
        ethertype::IPV6 => ipv6(frame, link, hash_key),
        _ => not_plain_ip(frame, ethertype, hash_key),
    }
}

/// What stands in front of the network header.
#[derive(Clone, Copy)]
struct Link {
    l3: u16,
    ethertype: u16,
    outer_tci: u16,
    inner_tci: u16,
    tags: u8,
}

/// Everything but untagged IP, out of line so that the common path stays short.
#[inline(never)]
fn not_plain_ip(
    frame: &[u8],
    mut ethertype: u16,
    hash_key: &HashKey,
) -> Result<Parsed, ParseError> {
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
    let link = Link { l3: l3 as u16, ethertype, outer_tci, inner_tci, tags: tags as u8 };
    match ethertype {
        ethertype::IPV4 => ipv4(frame, link, hash_key),
        ethertype::IPV6 => ipv6(frame, link, hash_key),
        ethertype::ARP => arp(frame, link),
        _ => Ok(not_ip(link, Network::Other, u32::try_from(frame.len()).unwrap_or(u32::MAX))),
    }
}

#[inline]
fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::VLAN | ethertype::QINQ | ethertype::QINQ_OLD)
}

fn not_ip(link: Link, network: Network, end: u32) -> Parsed {
    Parsed {
        end,
        l3: link.l3,
        l4: link.l3,
        payload: link.l3,
        ethertype: link.ethertype,
        outer_tci: link.outer_tci,
        inner_tci: link.inner_tci,
        tags: link.tags,
        network,
        ..Parsed::default()
    }
}

/// ARP (RFC 826) for IPv4 over Ethernet: 28 octets.
fn arp(frame: &[u8], link: Link) -> Result<Parsed, ParseError> {
    match frame.get(usize::from(link.l3)..).and_then(|rest| rest.first_chunk::<28>()) {
        // Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
        Some([0, 1, 0x08, 0x00, 6, 4, ..]) => {
            Ok(not_ip(link, Network::Arp, u32::from(link.l3) + 28))
        }
        _ => Err(ParseError::ArpInvalid),
    }
}

/// Where a fragment stands; all zero for a whole datagram.
#[derive(Clone, Copy, Default)]
struct Place {
    fragment: Fragment,
    offset: u16,
    id: u32,
}

/// What the layer-4 header says.
#[derive(Clone, Copy, Default)]
struct Layer4 {
    src_port: u16,
    dst_port: u16,
    /// Length of the header in octets.
    header: u16,
    tcp_flags: u8,
    icmp: Icmp,
}

#[inline(always)]
fn ipv4(frame: &[u8], link: Link, hash_key: &HashKey) -> Result<Parsed, ParseError> {
    let packet = frame.get(usize::from(link.l3)..).unwrap_or_default();
    let Some(header) = packet.first_chunk::<20>() else {
        return Err(ParseError::Ipv4HeaderLength);
    };
    let options = header[0] != 0x45;
    let header_len = if options { ipv4_options(packet, header[0])? } else { 20 };
    // Checked with the options, if there are any, by `ipv4_options`.
    if !options && !checksum_holds(header) {
        return Err(ParseError::Ipv4Checksum);
    }
    let total = usize::from(be16(header, 2));
    let segment = packet.get(header_len..total).ok_or(ParseError::IpTotalLength)?;

    let protocol = header[9];
    let fragment_field = be16(header, 6);
    let (place, layer4) = if fragment_field & 0x3fff == 0 {
        (Place::default(), layer4(protocol, Family::V4, segment, false)?)
    } else {
        ipv4_fragment(header, header_len, segment)?
    };

    let key = FlowKey {
        src: [header[12], header[13], header[14], header[15], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        dst: [header[16], header[17], header[18], header[19], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        src_port: layer4.src_port,
        dst_port: layer4.dst_port,
        proto: protocol,
        family: Family::V4,
        zone: 0,
    };
    let l4 = link.l3 + header_len as u16;
    Ok(Parsed {
        key,
        hash: key.hash(hash_key),
        end: u32::from(link.l3) + total as u32,
        l3: link.l3,
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
        dont_fragment: fragment_field & 0x4000 != 0,
        options,
        fragment_offset: place.offset,
        fragment_id: place.id,
    })
}

/// Whether the ones' complement sum over a header without options comes to all ones (RFC 1071).
#[inline(always)]
fn checksum_holds(header: &[u8; 20]) -> bool {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *header;
    let first = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let [a, b, c, d, e, f, g, h, rest @ ..] = rest;
    let second = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    let third = u32::from_ne_bytes(rest);
    let (sum, carry) = first.overflowing_add(second);
    let (sum, carry2) = sum.overflowing_add(u64::from(third) + u64::from(carry));
    let sum = sum + u64::from(carry2);
    // Adding a number to itself with its halves swapped leaves their ones' complement sum above.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    sum.wrapping_add(sum.rotate_left(16)) >> 16 == 0xffff
}

/// The header's length, its version, checksum and options checked.
#[cold]
#[inline(never)]
fn ipv4_options(packet: &[u8], first_octet: u8) -> Result<usize, ParseError> {
    if first_octet >> 4 != 4 {
        return Err(ParseError::IpVersion);
    }
    let header_len = usize::from(first_octet & 0x0f) * 4;
    let header = match packet.get(..header_len) {
        Some(header) if header_len >= 20 => header,
        _ => return Err(ParseError::Ipv4HeaderLength),
    };
    let (words, _) = header.as_chunks::<2>();
    let sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    // At most 30 words, so one fold leaves at most 0x1d over.
    let sum = (sum & 0xffff) + (sum >> 16);
    if (sum & 0xffff) + (sum >> 16) != 0xffff {
        return Err(ParseError::Ipv4Checksum);
    }
    let mut list = &header[20..];
    while let [kind, rest @ ..] = list {
        match kind {
            // End of list; what follows is padding.
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
    Ok(header_len)
}

#[cold]
#[inline(never)]
fn ipv4_fragment(
    header: &[u8; 20],
    header_len: usize,
    data: &[u8],
) -> Result<(Place, Layer4), ParseError> {
    let field = be16(header, 6);
    let (offset, more) = ((field & 0x1fff) * 8, field & 0x2000 != 0);
    let id = u32::from(be16(header, 4));
    fragment(Place { offset, id, ..Place::default() }, more, header_len, data)
        .and_then(|place| Ok((place, fragment_layer4(place, header[9], Family::V4, data)?)))
}

/// Checks a fragment's length and says what it is. `before` octets stand in front of the data in
/// a whole datagram and count towards the 65,535 that it may have.
fn fragment(mut place: Place, more: bool, before: usize, data: &[u8]) -> Result<Place, ParseError> {
    let ends_at = before + usize::from(place.offset) + data.len();
    if data.is_empty() || ends_at > 65_535 || (more && !data.len().is_multiple_of(8)) {
        return Err(ParseError::FragmentLength);
    }
    place.fragment = if place.offset == 0 { Fragment::First } else { Fragment::Later };
    Ok(place)
}

/// The layer-4 header of a fragment: in the first all of it, in later ones none. A TCP fragment
/// at offset 8 is there to rewrite the flags of the first (RFC 3128) and refused.
fn fragment_layer4(
    place: Place,
    protocol: u8,
    family: Family,
    data: &[u8],
) -> Result<Layer4, ParseError> {
    match place.fragment {
        Fragment::Later if place.offset == 8 && protocol == proto::TCP => {
            Err(ParseError::FragmentTiny)
        }
        Fragment::Later => Ok(Layer4::default()),
        Fragment::Whole | Fragment::First => layer4(protocol, family, data, true),
    }
}

#[inline(always)]
fn ipv6(frame: &[u8], link: Link, hash_key: &HashKey) -> Result<Parsed, ParseError> {
    let packet = frame.get(usize::from(link.l3)..).unwrap_or_default();
    let Some(header) = packet.first_chunk::<40>() else {
        return Err(ParseError::IpTotalLength);
    };
    if header[0] >> 4 != 6 {
        return Err(ParseError::IpVersion);
    }
    let total = 40 + usize::from(be16(header, 4));
    let packet = packet.get(..total).ok_or(ParseError::IpTotalLength)?;

    let next = header[6];
    let plain = matches!(next, proto::TCP | proto::UDP | proto::ICMPV6 | proto::SCTP);
    let (chain, layer4) = if plain {
        let chain = Chain { protocol: next, l4: 40, place: Place::default() };
        (chain, layer4(next, Family::V6, &packet[40..], false)?)
    } else {
        ipv6_extended(packet, next)?
    };

    let key = FlowKey {
        src: array16(header, 8),
        dst: array16(header, 24),
        src_port: layer4.src_port,
        dst_port: layer4.dst_port,
        proto: chain.protocol,
        family: Family::V6,
        zone: 0,
    };
    let l4 = link.l3 + chain.l4;
    Ok(Parsed {
        key,
        hash: key.hash(hash_key),
        end: u32::from(link.l3) + total as u32,
        l3: link.l3,
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
    })
}

/// Where an IPv6 extension header chain ends.
#[derive(Clone, Copy)]
struct Chain {
    /// The first next-header value that is no extension header we follow (in a later fragment:
    /// the fragment header's).
    protocol: u8,
    /// Offset behind the chain, from the start of the IPv6 header. At most 40 + 8 × 2,048.
    l4: u16,
    place: Place,
}

/// Longest extension header chain that is followed.
const MAX_EXTENSIONS: usize = 8;

#[cold]
#[inline(never)]
fn ipv6_extended(packet: &[u8], next: u8) -> Result<(Chain, Layer4), ParseError> {
    // A payload length of zero before a hop-by-hop header announces a jumbogram (RFC 2675).
    if next == extension::HOP_BY_HOP && packet.len() == 40 {
        return Err(ParseError::IpTotalLength);
    }
    let chain = follow_chain(packet, next, true)?;
    let data = packet.get(usize::from(chain.l4)..).unwrap_or_default();
    let layer4 = match chain.place.fragment {
        Fragment::Whole => layer4(chain.protocol, Family::V6, data, false)?,
        _ => fragment_layer4(chain.place, chain.protocol, Family::V6, data)?,
    };
    Ok((chain, layer4))
}

/// IPv6 extension headers that are followed (IANA ipv6-parameters).
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

/// Follows the chain to its end. `strict` checks a fragment's length against the packet, which
/// a truncated quote cannot stand.
fn follow_chain(packet: &[u8], mut next: u8, strict: bool) -> Result<Chain, ParseError> {
    let mut place = Place::default();
    let mut offset = 40;
    // What a chain that is cut off means: behind a first fragment's header it is RFC 7112's.
    let mut cut_off = ParseError::Ipv6Extension;
    let mut fragmented = false;
    for index in 0..=MAX_EXTENSIONS {
        let head = match next {
            extension::HOP_BY_HOP if index > 0 => return Err(ParseError::Ipv6Extension),
            extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::FRAGMENT
            | extension::AUTHENTICATION
            | extension::DESTINATION => {
                let rest = packet.get(offset..).unwrap_or_default();
                *rest.first_chunk::<8>().ok_or(cut_off)?
            }
            _ => return Ok(Chain { protocol: next, l4: offset as u16, place }),
        };
        if index == MAX_EXTENSIONS {
            break;
        }
        let len = match next {
            extension::FRAGMENT if fragmented => return Err(ParseError::Ipv6Extension),
            extension::FRAGMENT => 8,
            extension::AUTHENTICATION if head[1] == 0 => return Err(ParseError::Ipv6Extension),
            extension::AUTHENTICATION => (usize::from(head[1]) + 2) * 4,
            extension::ROUTING if head[2] == 0 => return Err(ParseError::Ipv6Extension),
            _ => (usize::from(head[1]) + 1) * 8,
        };
        let is_fragment = next == extension::FRAGMENT;
        next = head[0];
        offset += len;
        let behind = packet.get(offset..).ok_or(cut_off)?;
        if is_fragment {
            fragmented = true;
            let field = be16(&head, 2);
            // Offset zero and no more to follow: an atomic fragment is a whole datagram (RFC 6946).
            if field & 0xfff9 != 0 {
                let [.., a, b, c, d] = head;
                place.offset = field & 0xfff8;
                place.id = u32::from_be_bytes([a, b, c, d]);
                if strict {
                    place = fragment(place, field & 1 != 0, offset - 48, behind)?;
                } else {
                    place.fragment =
                        if place.offset == 0 { Fragment::First } else { Fragment::Later };
                }
                cut_off = ParseError::FragmentTiny;
                if place.fragment == Fragment::Later {
                    break;
                }
            }
        }
    }
    match place.fragment {
        Fragment::Later => Ok(Chain { protocol: next, l4: offset as u16, place }),
        _ => Err(ParseError::Ipv6Extension),
    }
}

/// Reads the layer-4 header. `first` if the segment is a first fragment: a header that it does
/// not hold is then an evasion (RFC 1858), and UDP's length is that of the whole datagram.
#[inline(always)]
fn layer4(protocol: u8, family: Family, segment: &[u8], first: bool) -> Result<Layer4, ParseError> {
    let cut_off = |error| if first { ParseError::FragmentTiny } else { error };
    match protocol {
        proto::TCP => {
            let error = ParseError::TcpInvalid;
            let header = segment.first_chunk::<20>().ok_or(cut_off(error))?;
            let len = usize::from(header[12] >> 4) * 4;
            if len < 20 {
                return Err(error);
            }
            if len > segment.len() {
                return Err(cut_off(error));
            }
            Ok(Layer4 {
                src_port: be16(header, 0),
                dst_port: be16(header, 2),
                header: len as u16,
                tcp_flags: header[13],
                icmp: Icmp::None,
            })
        }
        proto::UDP => {
            let error = ParseError::UdpInvalid;
            let header = segment.first_chunk::<8>().ok_or(cut_off(error))?;
            let len = usize::from(be16(header, 4));
            if len < 8 || (len > segment.len() && !first) {
                return Err(error);
            }
            Ok(ports(header, 8))
        }
        proto::SCTP => match segment.first_chunk::<12>() {
            Some([header @ .., _, _, _, _]) => Ok(ports(header, 12)),
            None => Err(cut_off(ParseError::SctpInvalid)),
        },
        proto::ICMP if family == Family::V4 => {
            icmp(segment, classify_icmpv4, cut_off(ParseError::IcmpInvalid))
        }
        proto::ICMPV6 if family == Family::V6 => {
            icmp(segment, classify_icmpv6, cut_off(ParseError::IcmpInvalid))
        }
        _ => Ok(Layer4::default()),
    }
}

#[inline(always)]
fn ports(header: &[u8; 8], len: u16) -> Layer4 {
    Layer4 {
        src_port: be16(header, 0),
        dst_port: be16(header, 2),
        header: len,
        ..Layer4::default()
    }
}

#[inline(always)]
fn icmp(
    segment: &[u8],
    classify: fn(u8) -> (Icmp, u8),
    error: ParseError,
) -> Result<Layer4, ParseError> {
    let header = segment.first_chunk::<8>().ok_or(error)?;
    let (icmp, request) = classify(header[0]);
    let identifier = be16(header, 4);
    let (src_port, dst_port) = match icmp {
        Icmp::Query => (identifier, u16::from(request)),
        Icmp::Reply => (u16::from(request), identifier),
        _ => (0, 0),
    };
    Ok(Layer4 { src_port, dst_port, header: 8, tcp_flags: 0, icmp })
}

/// What an ICMPv4 type is, and for queries and replies the type of the request. Redirects quote
/// a packet too, but are for a host's own link, so none is ever passed on as an error.
#[inline]
fn classify_icmpv4(kind: u8) -> (Icmp, u8) {
    match kind {
        8 => (Icmp::Query, 8),
        0 => (Icmp::Reply, 8),
        13 => (Icmp::Query, 13),
        14 => (Icmp::Reply, 13),
        // Destination unreachable, time exceeded, parameter problem.
        3 | 11 | 12 => (Icmp::Error, 0),
        _ => (Icmp::Other, 0),
    }
}

/// The same for ICMPv6 (IANA icmpv6-parameters).
#[inline]
fn classify_icmpv6(kind: u8) -> (Icmp, u8) {
    match kind {
        128 => (Icmp::Query, 128),
        129 => (Icmp::Reply, 128),
        // Unreachable, packet too big, time exceeded, parameter problem.
        1..=4 => (Icmp::Error, 0),
        // MLD, ND and redirect, inverse ND, MLDv2, SEND, multicast router discovery.
        130..=137 | 141..=143 | 148 | 149 | 151..=153 => (Icmp::Neighbour, 0),
        _ => (Icmp::Other, 0),
    }
}

/// The packet that an ICMP error quotes, as far as a flow can be found by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The quoted packet's own key: its source is who the error is for. Ports are zero in a
    /// later fragment.
    pub key: FlowKey,
    /// `key.hash(hash_key)`.
    pub hash: u64,
    /// Start of the layer-4 header within the quote. Unless the quote is of a later fragment,
    /// eight octets of it are there for TCP, UDP, SCTP and ICMP.
    pub l4: u16,
    /// Length of the packet that was quoted, as its header says; the quote may be shorter.
    pub total_len: u32,
    /// What ICMP message is quoted: [`Icmp::Query`], [`Icmp::Reply`], [`Icmp::Other`], or
    /// [`Icmp::None`] if another protocol is.
    pub icmp: Icmp,
    /// Place in the datagram.
    pub fragment: Fragment,
    /// Identification of the datagram, if it is a fragment (see [`Parsed::fragment_id`]).
    pub fragment_id: u32,
}

/// Reads the packet that an ICMP error quotes (`&frame[parsed.payload..parsed.end]`). Lenient,
/// as quotes are cut off and routers have changed them on their way: lengths are not compared
/// with what is there, and the header checksum is not verified. `None` if no flow can be told,
/// and for a quoted ICMP error, about which no error may be sent (RFC 1122 §3.2.2).
pub fn parse_quoted(quote: &[u8], network: Network, hash_key: &HashKey) -> Option<Quoted> {
    let (family, total_len, src, dst, chain) = match network {
        Network::Ipv4 => quoted_ipv4(quote)?,
        Network::Ipv6 => quoted_ipv6(quote)?,
        Network::Other | Network::Arp => return None,
    };
    let header = quote.get(usize::from(chain.l4)..).unwrap_or_default();
    let layer4 = match (chain.place.fragment, chain.protocol) {
        (Fragment::Later, _) => Layer4::default(),
        (_, proto::TCP | proto::UDP | proto::SCTP) => ports(header.first_chunk::<8>()?, 0),
        (_, proto::ICMP) if family == Family::V4 => {
            icmp(header, classify_icmpv4, ParseError::IcmpInvalid).ok()?
        }
        (_, proto::ICMPV6) if family == Family::V6 => {
            icmp(header, classify_icmpv6, ParseError::IcmpInvalid).ok()?
        }
        _ => Layer4::default(),
    };
    if layer4.icmp == Icmp::Error {
        return None;
    }
    let key = FlowKey {
        src,
        dst,
        src_port: layer4.src_port,
        dst_port: layer4.dst_port,
        proto: chain.protocol,
        family,
        zone: 0,
    };
    Some(Quoted {
        key,
        hash: key.hash(hash_key),
        l4: chain.l4,
        total_len,
        icmp: layer4.icmp,
        fragment: chain.place.fragment,
        fragment_id: chain.place.id,
    })
}

type QuotedHeader = (Family, u32, [u8; 16], [u8; 16], Chain);

fn quoted_ipv4(quote: &[u8]) -> Option<QuotedHeader> {
    let header = quote.first_chunk::<20>()?;
    let header_len = u16::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return None;
    }
    let field = be16(header, 6);
    let offset = (field & 0x1fff) * 8;
    let fragment = match (offset, field & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let id = if fragment == Fragment::Whole { 0 } else { u32::from(be16(header, 4)) };
    let place = Place { fragment, offset, id };
    let v4 = |at: usize| {
        let mut octets = [0; 16];
        octets[..4].copy_from_slice(&header[at..at + 4]);
        octets
    };
    let chain = Chain { protocol: header[9], l4: header_len, place };
    Some((Family::V4, u32::from(be16(header, 2)), v4(12), v4(16), chain))
}

fn quoted_ipv6(quote: &[u8]) -> Option<QuotedHeader> {
    let header = quote.first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let chain = follow_chain(quote, header[6], false).ok()?;
    let total = 40 + u32::from(be16(header, 4));
    Some((Family::V6, total, array16(header, 8), array16(header, 24), chain))
}

#[inline(always)]
fn be16<const N: usize>(octets: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

#[inline(always)]
fn array16(octets: &[u8; 40], at: usize) -> [u8; 16] {
    let mut array = [0; 16];
    array.copy_from_slice(&octets[at..at + 16]);
    array
}

#[cfg(test)]
mod tests;
