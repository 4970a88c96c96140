//! Layer 4, as far as forwarding needs it: ports, header length, TCP flags, ICMP class.

use super::bytes::be16;
use super::parsed::{Icmp, ParseError};
use crate::flow_key::proto;

/// The content of the layer-4 header, or what is wrong with it.
///
/// `error` is a field and not a `Result` around the values, so that the values stay in registers. A
/// `Result` of a struct went through memory and cost 10 ns a frame.
#[derive(Clone, Copy)]
pub(super) struct Layer4 {
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    /// Length of the header in bytes.
    pub(super) header: u16,
    pub(super) tcp_flags: u8,
    pub(super) icmp: Icmp,
    pub(super) error: Option<ParseError>,
}

impl Layer4 {
    /// No layer-4 header, or one of an unknown protocol.
    pub(super) const NONE: Layer4 = Self::ports(0, 0, 0);

    pub(super) const fn wrong(error: ParseError) -> Self {
        Self { error: Some(error), ..Self::NONE }
    }

    const fn ports(src_port: u16, dst_port: u16, header: u16) -> Self {
        Self { src_port, dst_port, header, tcp_flags: 0, icmp: Icmp::None, error: None }
    }

    /// Ports from the first bytes of TCP, UDP or SCTP, without checks.
    #[inline(always)]
    pub(super) fn from_ports(bytes: &[u8; 8], header: u16) -> Self {
        Self::ports(be16(bytes, 0), be16(bytes, 2), header)
    }
}

/// Reads the layer-4 header. `first`: the segment is a first fragment. If a first fragment does not
/// hold the complete header, that is an evasion (RFC 1858), and its UDP length is that of the whole
/// datagram.
#[inline(always)]
pub(super) fn read<const V6: bool>(protocol: u8, segment: &[u8], first: bool) -> Layer4 {
    let cut_off = |error| Layer4::wrong(if first { ParseError::FragmentTiny } else { error });
    match protocol {
        proto::TCP => {
            let Some(header) = segment.first_chunk::<20>() else {
                return cut_off(ParseError::TcpInvalid);
            };
            let len = usize::from(header[12] >> 4) * 4;
            if len < 20 {
                return Layer4::wrong(ParseError::TcpInvalid);
            }
            if len > segment.len() {
                return cut_off(ParseError::TcpInvalid);
            }
            let ports = Layer4::ports(be16(header, 0), be16(header, 2), len as u16);
            Layer4 { tcp_flags: header[13], ..ports }
        }
        proto::UDP => {
            let Some(header) = segment.first_chunk::<8>() else {
                return cut_off(ParseError::UdpInvalid);
            };
            let len = usize::from(be16(header, 4));
            if len < 8 || (len > segment.len() && !first) {
                return Layer4::wrong(ParseError::UdpInvalid);
            }
            Layer4::from_ports(header, 8)
        }
        proto::SCTP => match segment.first_chunk::<12>() {
            Some([header @ .., _, _, _, _]) => Layer4::from_ports(header, 12),
            None => cut_off(ParseError::SctpInvalid),
        },
        proto::ICMP if !V6 => match segment.first_chunk::<8>() {
            Some(header) => icmp::<V6>(header),
            None => cut_off(ParseError::IcmpInvalid),
        },
        proto::ICMPV6 if V6 => match segment.first_chunk::<8>() {
            Some(header) => icmp::<V6>(header),
            None => cut_off(ParseError::IcmpInvalid),
        },
        _ => Layer4::NONE,
    }
}

/// ICMP from its first eight bytes. No message in use is shorter.
#[inline(always)]
pub(super) fn icmp<const V6: bool>(header: &[u8; 8]) -> Layer4 {
    let (icmp, request) = if V6 { classify_v6(header[0]) } else { classify_v4(header[0]) };
    let identifier = be16(header, 4);
    let ports = match icmp {
        Icmp::Query => Layer4::ports(identifier, u16::from(request), 8),
        Icmp::Reply => Layer4::ports(u16::from(request), identifier, 8),
        _ => Layer4::ports(0, 0, 8),
    };
    Layer4 { icmp, ..ports }
}

/// The class of an ICMPv4 type, and for requests and replies the type of the request. Redirects
/// quote a packet too, but concern the host's own link, so they are never forwarded as errors.
#[inline]
fn classify_v4(kind: u8) -> (Icmp, u8) {
    match kind {
        8 => (Icmp::Query, 8),
        0 => (Icmp::Reply, 8),
        13 => (Icmp::Query, 13),
        14 => (Icmp::Reply, 13),
        // Destination unreachable, source quench (deprecated, RFC 6633), time exceeded, parameter
        // problem.
        3 | 4 | 11 | 12 => (Icmp::Error, 0),
        _ => (Icmp::Other, 0),
    }
}

/// The same for ICMPv6 (IANA icmpv6-parameters).
#[inline]
fn classify_v6(kind: u8) -> (Icmp, u8) {
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
