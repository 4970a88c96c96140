//! The result of a parse: a [`Parsed`], or a [`ParseError`].

use crate::flow_key::FlowKey;

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
    /// Neither ARP nor IP: only a bridge can forward it. Includes 802.3 frames with a length field.
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
    /// The first fragment; it holds the whole layer-4 header, and more fragments follow.
    First,
    /// A later fragment: no layer-4 header, both ports of the key are zero.
    Later,
}

/// The kind of ICMP message, as far as forwarding needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Icmp {
    /// Not ICMP.
    #[default]
    None,
    /// A query, such as an echo request; the key's source port is the identifier.
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

/// A parsed frame. All offsets are bytes from the start of the frame. Bytes beyond `end` are
/// padding.
///
/// Order of the fields: first those that differ from frame to frame, then those that are the same
/// in nearly all frames and are written with a few wide stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Parsed {
    /// 5-tuple; meaningful for `Network::Ipv4` and `Network::Ipv6`.
    pub key: FlowKey,
    /// `key.hash(hash_key)`; for frames that are not IP, zero.
    pub hash: u64,
    /// End of the network-layer packet: the length of the frame without its padding. For frames
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
    /// The protocol that the frame carries.
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
    /// The IPv6 extension header chain is truncated or longer than the parser follows, or it has a
    /// routing header of type 0 (RFC 5095).
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
