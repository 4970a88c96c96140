//! Frames written by hand, one per rule.

use super::*;
use crate::flow_key::proto;
use proptest::prelude::*;
use std::vec::Vec;

const KEY: HashKey = HashKey::new(7);

fn checksummed(mut header: [u8; 20]) -> [u8; 20] {
    header[10] = 0;
    header[11] = 0;
    let mut sum: u32 = header.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    header
}

/// An Ethernet frame of at most 128 bytes, put together from pieces.
struct Frame([u8; 128], usize);

impl Frame {
    fn new(pieces: &[&[u8]]) -> Self {
        let mut frame = Self([0; 128], 0);
        for piece in pieces {
            frame.0[frame.1..frame.1 + piece.len()].copy_from_slice(piece);
            frame.1 += piece.len();
        }
        frame
    }

    fn parse(&self) -> Result<Parsed, ParseError> {
        parse(&self.0[..self.1], &KEY)
    }
}

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

fn v4(protocol: u8, total: u16, fragment_field: u16) -> [u8; 20] {
    let [t, u] = total.to_be_bytes();
    let [f, g] = fragment_field.to_be_bytes();
    checksummed([0x45, 0xb9, t, u, 0x12, 0x34, f, g, 63, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2])
}

const TCP: [u8; 20] =
    [0x1f, 0x90, 0x00, 0x50, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x12, 0, 9, 0, 0, 0, 0];

#[test]
fn tcp_over_ipv4_with_padding() {
    let frame = Frame::new(&[&MACS, &[8, 0], &v4(6, 40, 0x4000), &TCP, &[0; 6]]);
    let p = frame.parse().unwrap();
    assert_eq!((p.l3, p.l4, p.payload, p.end), (14, 34, 54, 54));
    assert_eq!((p.key.src_port, p.key.dst_port, p.key.proto), (8080, 80, 6));
    assert_eq!(p.key.src_addr(), "10.0.0.1".parse::<core::net::IpAddr>().unwrap());
    assert_eq!((p.ttl, p.traffic_class, p.tcp_flags), (63, 0xb9, 0x12));
    assert!(p.dont_fragment && !p.options);
    assert_eq!(p.hash, p.key.hash(&KEY));
}

#[test]
fn checksum_covers_every_bit_of_the_ipv4_header() {
    let frame = Frame::new(&[&MACS, &[8, 0], &v4(6, 40, 0), &TCP]);
    for bit in 0..160 {
        let mut broken = Frame(frame.0, frame.1);
        broken.0[14 + bit / 8] ^= 1 << (bit % 8);
        assert!(broken.parse().is_err(), "bit {bit}");
    }
}

#[test]
fn stacked_tags() {
    let inner: &[&[u8]] = &[&v4(6, 40, 0), &TCP];
    let one = Frame::new(&[&MACS, &[0x81, 0, 0x20, 5, 8, 0], inner[0], inner[1]]);
    let p = one.parse().unwrap();
    assert_eq!((p.tags, p.outer_tci, p.l3, p.ethertype), (1, 0x2005, 18, 0x0800));
    let two = Frame::new(&[&MACS, &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5, 8, 0], inner[0], inner[1]]);
    let p = two.parse().unwrap();
    assert_eq!((p.tags, p.outer_tci, p.inner_tci, p.l3), (2, 7, 5, 22));
    let three = Frame::new(&[&MACS, &[0x81, 0, 0, 7, 0x91, 0, 0, 5, 0x81, 0, 0, 6, 8, 0]]);
    assert_eq!(three.parse(), Err(ParseError::VlanTooDeep));
}

#[test]
fn fragments_over_ipv4() {
    let first = Frame::new(&[&MACS, &[8, 0], &v4(6, 44, 0x2000), &TCP, &[0; 4]]);
    let p = first.parse().unwrap();
    assert_eq!((p.fragment, p.fragment_id, p.key.dst_port), (Fragment::First, 0x1234, 80));
    let tiny = Frame::new(&[&MACS, &[8, 0], &v4(6, 36, 0x2000), &TCP[..16]]);
    assert_eq!(tiny.parse(), Err(ParseError::FragmentTiny));
    let rewriting = Frame::new(&[&MACS, &[8, 0], &v4(6, 36, 1), &TCP[..16]]);
    assert_eq!(rewriting.parse(), Err(ParseError::FragmentTiny));
    let later = Frame::new(&[&MACS, &[8, 0], &v4(6, 36, 2), &TCP[..16]]);
    let p = later.parse().unwrap();
    assert_eq!((p.fragment, p.fragment_offset, p.key.dst_port), (Fragment::Later, 16, 0));
    let odd = Frame::new(&[&MACS, &[8, 0], &v4(17, 33, 0x2002), &TCP[..13]]);
    assert_eq!(odd.parse(), Err(ParseError::FragmentLength));
    let beyond = Frame::new(&[&MACS, &[8, 0], &v4(17, 36, 0x1fff), &TCP[..16]]);
    assert_eq!(beyond.parse(), Err(ParseError::FragmentLength));
}

fn v6(next: u8, payload: u16) -> [u8; 40] {
    let mut header = [0; 40];
    header[0] = 0x6b;
    header[1] = 0x90;
    header[4..6].copy_from_slice(&payload.to_be_bytes());
    header[6] = next;
    header[7] = 64;
    header[8] = 0xfd;
    header[23] = 1;
    header[24] = 0xfd;
    header[39] = 2;
    header
}

const IPV6: [u8; 2] = [0x86, 0xdd];

#[test]
fn tcp_over_ipv6_with_and_without_extension_headers() {
    let plain = Frame::new(&[&MACS, &IPV6, &v6(6, 20), &TCP]).parse().unwrap();
    assert_eq!((plain.l4, plain.payload, plain.end, plain.traffic_class), (54, 74, 74, 0xb9));
    let hop: [u8; 8] = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination: [u8; 8] = [6, 0, 1, 4, 0, 0, 0, 0];
    let chain = Frame::new(&[&MACS, &IPV6, &v6(0, 36), &hop, &destination, &TCP]);
    let p = chain.parse().unwrap();
    assert_eq!((p.l4, p.options, p.key), (70, true, plain.key));
    let misplaced = Frame::new(&[&MACS, &IPV6, &v6(60, 36), &[0, 0, 1, 4, 0, 0, 0, 0], &hop, &TCP]);
    assert_eq!(misplaced.parse(), Err(ParseError::Ipv6Extension));
    let type_0 = Frame::new(&[&MACS, &IPV6, &v6(43, 28), &[6, 0, 0, 0, 0, 0, 0, 0], &TCP]);
    assert_eq!(type_0.parse(), Err(ParseError::Ipv6Extension));
    let jumbo = Frame::new(&[&MACS, &IPV6, &v6(0, 0), &[6, 0, 0xc2, 4, 0, 1, 0, 0], &TCP]);
    assert_eq!(jumbo.parse(), Err(ParseError::IpTotalLength));
}

#[test]
fn fragments_over_ipv6() {
    let parse = |field: u16, data: &[u8]| {
        let [f, g] = field.to_be_bytes();
        let header = [6, 0, f, g, 0xde, 0xad, 0xbe, 0xef];
        Frame::new(&[&MACS, &IPV6, &v6(44, 8 + data.len() as u16), &header, data]).parse()
    };
    let atomic = parse(0, &TCP).unwrap();
    assert_eq!((atomic.fragment, atomic.fragment_id, atomic.l4), (Fragment::Whole, 0, 62));
    let first = parse(1, &[&TCP[..], &[0; 4]].concat()).unwrap();
    assert_eq!((first.fragment, first.fragment_id), (Fragment::First, 0xdead_beef));
    assert_eq!(parse(1, &TCP[..16]), Err(ParseError::FragmentTiny));
    assert_eq!(parse(8, &TCP[..16]), Err(ParseError::FragmentTiny));
    assert_eq!(parse(0x11, &TCP[..13]), Err(ParseError::FragmentLength));
    // The datagram's payload may be at most 65,535 bytes long.
    assert_eq!(parse(0xfff8, &TCP[..7]).unwrap().fragment_offset, 65_528);
    assert_eq!(parse(0xfff8, &TCP[..8]), Err(ParseError::FragmentLength));
    let last = parse(0x20, &TCP[..13]).unwrap();
    assert_eq!((last.fragment, last.fragment_offset), (Fragment::Later, 32));
    assert_eq!((last.key.src_port, last.l4, last.payload), (0, 62, 62));
}

#[test]
fn a_quoted_packet_gives_the_key_of_its_flow() {
    let v4_quote = [&v4(6, 1500, 0x4000)[..], &TCP[..8]].concat();
    let quoted = parse_quoted(&v4_quote, Network::Ipv4, &KEY).unwrap();
    assert_eq!((quoted.key.src_port, quoted.key.dst_port, quoted.l4), (8080, 80, 20));
    assert_eq!(quoted.total_len, 1500);
    assert_eq!(parse_quoted(&v4_quote[..27], Network::Ipv4, &KEY), None);
    assert_eq!(parse_quoted(&v4_quote, Network::Ipv6, &KEY), None);
    let echo = [&v6(58, 1000)[..], &[128, 0, 0, 0, 0x12, 0x34, 0, 1]].concat();
    let quoted = parse_quoted(&echo, Network::Ipv6, &KEY).unwrap();
    assert_eq!((quoted.key.src_port, quoted.key.dst_port), (0x1234, 128));
    let error = [&v6(58, 1000)[..], &[1, 0, 0, 0, 0, 0, 0, 1]].concat();
    assert_eq!(parse_quoted(&error, Network::Ipv6, &KEY), None);
}

#[test]
fn arp_for_ipv4_over_ethernet_only() {
    let packet = [0, 1, 8, 0, 6, 4, 0, 1];
    let frame = Frame::new(&[&MACS, &[8, 6], &packet, &[0; 20], &[0xee; 18]]);
    let p = frame.parse().unwrap();
    assert_eq!((p.network, p.l3, p.end, p.hash), (Network::Arp, 14, 42, 0));
    let short = Frame::new(&[&MACS, &[8, 6], &packet, &[0; 19]]);
    assert_eq!(short.parse(), Err(ParseError::ArpInvalid));
    let other = Frame::new(&[&MACS, &[8, 6], &[0, 1, 0x86, 0xdd, 6, 16, 0, 1], &[0; 20]]);
    assert_eq!(other.parse(), Err(ParseError::ArpInvalid));
}

#[test]
fn non_ip_packets_end_with_the_frame() {
    for ethertype in [[0x88, 0xcc], [0x00, 0x26], [0x88, 0x47]] {
        let frame = Frame::new(&[&MACS, &ethertype, &[0; 46]]);
        let p = frame.parse().unwrap();
        assert_eq!((p.network, p.l3, p.l4, p.payload, p.end), (Network::Other, 14, 14, 14, 60));
        assert_eq!(p.ethertype, u16::from_be_bytes(ethertype));
    }
}

#[test]
fn ipv4_lengths_and_version() {
    let parse = |header: [u8; 20], behind: &[u8]| {
        Frame::new(&[&MACS, &[8, 0], &checksummed(header), behind]).parse()
    };
    let with = |at: usize, byte: u8| {
        let mut header = v4(6, 40, 0);
        header[at] = byte;
        header
    };
    assert_eq!(parse(with(0, 0x44), &TCP), Err(ParseError::Ipv4HeaderLength));
    assert_eq!(parse(with(0, 0x4f), &TCP), Err(ParseError::Ipv4HeaderLength));
    assert_eq!(parse(with(0, 0x65), &TCP), Err(ParseError::IpVersion));
    assert_eq!(parse(with(3, 19), &TCP), Err(ParseError::IpTotalLength));
    assert_eq!(parse(with(3, 41), &TCP), Err(ParseError::IpTotalLength));
    assert_eq!(parse(with(3, 39), &TCP), Err(ParseError::TcpInvalid));
    assert_eq!(parse(with(3, 20), &TCP), Err(ParseError::TcpInvalid));
    let truncated = Frame::new(&[&MACS, &[8, 0], &v4(6, 40, 0)[..19]]);
    assert_eq!(truncated.parse(), Err(ParseError::Ipv4HeaderLength));
    // The other family's header under this EtherType, long enough for either.
    let swapped = Frame::new(&[&MACS, &[8, 0], &v6(6, 20), &TCP]);
    assert_eq!(swapped.parse(), Err(ParseError::IpVersion));
    let swapped = Frame::new(&[&MACS, &IPV6, &v4(6, 40, 0), &TCP]);
    assert_eq!(swapped.parse(), Err(ParseError::IpVersion));
}

#[test]
fn ipv4_options() {
    let parse = |options: &[u8; 8]| {
        let mut header = [0; 28];
        header[..20].copy_from_slice(&v4(6, 48, 0));
        header[0] = 0x47;
        header[10..12].fill(0);
        header[20..].copy_from_slice(options);
        let checksum = crate::checksum::sum(&header).checksum();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        Frame::new(&[&MACS, &[8, 0], &header, &TCP]).parse()
    };
    // Router alert, no operation, end, and arbitrary bytes behind the end.
    let p = parse(&[0x94, 4, 0, 0, 1, 0, 0xff, 0xff]).unwrap();
    assert_eq!((p.l4, p.payload, p.options, p.key.dst_port), (42, 62, true, 80));
    for kind in [7, 131, 137] {
        let error = parse(&[1, kind, 7, 4, 10, 0, 0, 9]).unwrap_err();
        assert_eq!(error, ParseError::Ipv4SourceRoute);
    }
    for bad in [
        [0x94, 0, 0, 0, 0, 0, 0, 0],
        [0x94, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0x94, 4, 0],
        [1, 1, 1, 1, 1, 1, 1, 0x94],
    ] {
        assert_eq!(parse(&bad), Err(ParseError::Ipv4Options), "{bad:?}");
    }
}

#[test]
fn layer_4_headers() {
    let over_v4 = |protocol: u8, segment: &[u8]| {
        let total = 20 + segment.len() as u16;
        Frame::new(&[&MACS, &[8, 0], &v4(protocol, total, 0), segment]).parse()
    };
    let over_v6 = |protocol: u8, segment: &[u8]| {
        let len = segment.len() as u16;
        Frame::new(&[&MACS, &IPV6, &v6(protocol, len), segment]).parse()
    };
    let both = |protocol: u8, segment: &[u8]| {
        let (a, b) = (over_v4(protocol, segment), over_v6(protocol, segment));
        assert_eq!(a.map(|p| p.payload + 20), b.map(|p| p.payload));
        a.map(|p| (p.key.src_port, p.key.dst_port, p.payload - p.l4))
    };
    let tcp_with = |offset: u8| {
        let mut tcp = [0; 24];
        tcp[..20].copy_from_slice(&TCP);
        tcp[12] = offset << 4;
        both(proto::TCP, &tcp)
    };
    assert_eq!(tcp_with(4), Err(ParseError::TcpInvalid));
    assert_eq!(tcp_with(5), Ok((8080, 80, 20)));
    assert_eq!(tcp_with(6), Ok((8080, 80, 24)));
    assert_eq!(tcp_with(7), Err(ParseError::TcpInvalid));
    let udp_with = |len: u8| both(proto::UDP, &[0, 53, 0x80, 0, 0, len, 0, 0, 1, 2]);
    assert_eq!(udp_with(7), Err(ParseError::UdpInvalid));
    assert_eq!(udp_with(8), Ok((53, 0x8000, 8)));
    assert_eq!(udp_with(10), Ok((53, 0x8000, 8)));
    assert_eq!(udp_with(11), Err(ParseError::UdpInvalid));
    assert_eq!(both(proto::SCTP, &[0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]), Ok((1, 2, 12)));
    assert_eq!(both(proto::SCTP, &[0; 11]), Err(ParseError::SctpInvalid));
    assert_eq!(both(proto::UDP, &[0; 7]), Err(ParseError::UdpInvalid));
    // Unknown protocols, ESP and "no next header" among them, have no ports.
    for protocol in [2, 4, 41, 47, 50, 59, 89, 136, 255] {
        assert_eq!(both(protocol, &[0xff; 6]), Ok((0, 0, 0)), "{protocol}");
    }
    // The same holds for the other family's ICMP.
    let p = over_v4(proto::ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 0]).unwrap();
    assert_eq!((p.icmp, p.key.src_port), (Icmp::None, 0));
    let p = over_v6(proto::ICMP, &[8, 0, 0, 0, 0, 1, 0, 0]).unwrap();
    assert_eq!((p.icmp, p.key.src_port), (Icmp::None, 0));
}

#[test]
fn icmp_kinds() {
    let over_v4 = |kind: u8| {
        let message = [kind, 0, 0, 0, 0x12, 0x34, 0, 1];
        Frame::new(&[&MACS, &[8, 0], &v4(proto::ICMP, 28, 0), &message]).parse().unwrap()
    };
    let over_v6 = |kind: u8| {
        let message = [kind, 0, 0, 0, 0x12, 0x34, 0, 1];
        Frame::new(&[&MACS, &IPV6, &v6(proto::ICMPV6, 8), &message]).parse().unwrap()
    };
    for (query, reply) in
        [(over_v4(8), over_v4(0)), (over_v4(13), over_v4(14)), (over_v6(128), over_v6(129))]
    {
        assert_eq!((query.icmp, reply.icmp), (Icmp::Query, Icmp::Reply));
        assert_eq!(query.key.src_port, 0x1234);
        let answered = query.key.reversed();
        let ports = (answered.src_port, answered.dst_port);
        assert_eq!((reply.key.src_port, reply.key.dst_port), ports);
    }
    assert_ne!(over_v4(8).key, over_v4(13).key);
    for (kind, icmp) in [
        (3, Icmp::Error),
        (11, Icmp::Error),
        (12, Icmp::Error),
        (4, Icmp::Error),
        (5, Icmp::Other),
        (9, Icmp::Other),
        (255, Icmp::Other),
    ] {
        let p = over_v4(kind);
        assert_eq!((p.icmp, p.key.src_port, p.key.dst_port), (icmp, 0, 0), "{kind}");
    }
    for (kind, icmp) in [
        (1, Icmp::Error),
        (4, Icmp::Error),
        (5, Icmp::Other),
        (130, Icmp::Neighbour),
        (133, Icmp::Neighbour),
        (137, Icmp::Neighbour),
        (143, Icmp::Neighbour),
        (139, Icmp::Other),
    ] {
        let p = over_v6(kind);
        assert_eq!((p.icmp, p.key.src_port, p.key.dst_port), (icmp, 0, 0), "{kind}");
    }
    let short = Frame::new(&[&MACS, &[8, 0], &v4(proto::ICMP, 27, 0), &[8; 7]]);
    assert_eq!(short.parse(), Err(ParseError::IcmpInvalid));
}

/// Threat T-P3: header stacks of any depth end in a defined way.
#[test]
fn stacks_are_bounded() {
    for height in 0..=200_usize {
        let mut frame = MACS.to_vec();
        for _ in 0..height {
            frame.extend_from_slice(&[0x81, 0, 0, 1]);
        }
        frame.extend_from_slice(&[8, 0]);
        frame.extend_from_slice(&v4(6, 40, 0));
        frame.extend_from_slice(&TCP);
        let result = parse(&frame, &KEY).map(|p| p.tags);
        let expected = if height <= 2 { Ok(height as u8) } else { Err(ParseError::VlanTooDeep) };
        assert_eq!(result, expected, "{height} tags");

        let mut chain = Vec::new();
        for below in (0..height).rev() {
            chain.extend_from_slice(&[if below == 0 { 6 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        let first = if height == 0 { 6 } else { 60 };
        let mut frame = [&MACS[..], &IPV6, &v6(first, (chain.len() + 20) as u16)].concat();
        frame.extend_from_slice(&chain);
        frame.extend_from_slice(&TCP);
        let result = parse(&frame, &KEY).map(|p| (p.l4, p.key.dst_port));
        let expected = match height {
            0..=8 => Ok((54 + 8 * height as u16, 80)),
            _ => Err(ParseError::Ipv6Extension),
        };
        assert_eq!(result, expected, "{height} extension headers");
    }
}

#[test]
fn extension_headers_of_every_kind() {
    let parse = |first: u8, chain: &[u8]| {
        let len = (chain.len() + 20) as u16;
        Frame::new(&[&MACS, &IPV6, &v6(first, len), chain, &TCP]).parse()
    };
    // Routing of types 2 (mobility) and 4 (segment routing) with no segments left.
    for kind in [2, 4] {
        assert_eq!(parse(43, &[6, 0, kind, 0, 0, 0, 0, 0]).unwrap().l4, 62);
    }
    // An authentication header is treated as an upper-layer protocol, in both families.
    let header = [6, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    let p = parse(51, &header).unwrap();
    assert_eq!((p.l4, p.key.proto, p.key.dst_port, p.options), (54, 51, 0, false));
    let p = Frame::new(&[&MACS, &[8, 0], &v4(51, 20 + 12 + 20, 0), &header, &TCP]).parse().unwrap();
    assert_eq!((p.l4, p.key.proto, p.key.dst_port, p.options), (34, 51, 0, false));
    let bad: [(u8, &[u8]); 8] = [
        // Type 0 routing, even with no segments left; any other type with some left.
        (43, &[6, 0, 0, 0, 0, 0, 0, 0]),
        (43, &[6, 0, 2, 1, 0, 0, 0, 0]),
        (43, &[6, 0, 3, 1, 0, 0, 0, 0]),
        (43, &[6, 0, 4, 255, 0, 0, 0, 0]),
        (60, &[43, 0, 1, 4, 0, 0, 0, 0, 6, 0, 2, 1, 0, 0, 0, 0]),
        // Hop-by-hop not first; two fragment headers; lengths beyond the packet.
        (60, &[0, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0]),
        (44, &[44, 0, 0, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 1]),
        (60, &[6, 9, 1, 4, 0, 0, 0, 0]),
    ];
    for (first, chain) in bad {
        assert_eq!(parse(first, chain), Err(ParseError::Ipv6Extension), "{chain:?}");
    }
    // A first fragment must hold the whole chain (RFC 7112).
    let hidden = [60, 0, 0, 1, 0, 0, 0, 1, 6, 9, 1, 4, 0, 0, 0, 0];
    let frame = Frame::new(&[&MACS, &IPV6, &v6(44, 16), &hidden]);
    assert_eq!(frame.parse(), Err(ParseError::FragmentTiny));
}

#[test]
fn udp_in_a_first_fragment_is_longer_than_the_fragment() {
    let udp = [0, 53, 0, 54, 0x05, 0xdc, 0, 0];
    let frame = Frame::new(&[&MACS, &[8, 0], &v4(17, 28, 0x2000), &udp]);
    let p = frame.parse().unwrap();
    assert_eq!((p.fragment, p.key.src_port, p.payload), (Fragment::First, 53, 42));
    let last = Frame::new(&[&MACS, &[8, 0], &v4(17, 28, 0), &udp]);
    assert_eq!(last.parse(), Err(ParseError::UdpInvalid));
    let ends_beyond = Frame::new(&[&MACS, &[8, 0], &v4(17, 28, 0x1ffe), &udp]);
    assert_eq!(ends_beyond.parse(), Err(ParseError::FragmentLength));
    let empty = Frame::new(&[&MACS, &[8, 0], &v4(17, 20, 0x0002)]);
    assert_eq!(empty.parse(), Err(ParseError::FragmentLength));
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    let damage = prop::collection::vec((0..110_usize, any::<u8>()), 0..4);
    (any::<bool>(), any::<bool>(), any::<bool>(), payload, damage).prop_map(
        |(is_v6, is_tcp, fix, payload, damage)| {
            let mut segment =
                if is_tcp { TCP.to_vec() } else { [0, 53, 0x80, 1, 0, 0, 0, 0].to_vec() };
            segment.extend_from_slice(&payload);
            let len = segment.len() as u16;
            if !is_tcp {
                segment[4..6].copy_from_slice(&len.to_be_bytes());
            }
            let protocol = if is_tcp { 6 } else { 17 };
            let mut frame = MACS.to_vec();
            match is_v6 {
                true => frame.extend_from_slice(&[&IPV6[..], &v6(protocol, len)].concat()),
                false => {
                    frame.extend_from_slice(&[&[8, 0][..], &v4(protocol, 20 + len, 0)].concat())
                }
            }
            frame.extend_from_slice(&segment);
            for (at, byte) in damage {
                if let Some(slot) = frame.get_mut(at) {
                    *slot = byte;
                }
            }
            if fix && !is_v6 {
                let header = checksummed(frame[14..34].try_into().unwrap());
                frame[14..34].copy_from_slice(&header);
            }
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The fast parse accepts no frame that the full parse would refuse or read differently.
    #[test]
    fn fast_and_full_parse_agree(frame in any_frame(), cut: prop::sample::Index, whole_frame: bool) {
        let len = if whole_frame { frame.len() } else { cut.index(frame.len()) };
        let frame = &frame[..len];
        // Every stale value must be overwritten.
        let stale = Parsed {
            tags: 2, outer_tci: 1, inner_tci: 2, fragment: Fragment::Later, fragment_id: 7,
            fragment_offset: 8, icmp: Icmp::Error, options: true, tcp_flags: 0xff, l3: 22,
            ..Parsed::default()
        };
        let (mut from_fast, mut from_full) = (stale, stale);
        if fast::parse(frame, &KEY, &mut from_fast) {
            prop_assert_eq!(full(frame, &KEY, &mut from_full), Ok(()));
            prop_assert_eq!(from_fast, from_full);
        }
    }

    /// A quote of any length gives the flow's key or nothing.
    #[test]
    fn quotes_give_the_key_or_nothing(frame in any_frame(), cut: prop::sample::Index) {
        if let Ok(p) = parse(&frame, &KEY) {
            prop_assume!(matches!(p.network, Network::Ipv4 | Network::Ipv6));
            let quote = &frame[usize::from(p.l3)..p.end as usize];
            let quote = &quote[..cut.index(quote.len() + 1)];
            let enough = usize::from(p.l4 - p.l3) + 8 <= quote.len();
            match parse_quoted(quote, p.network, &KEY) {
                Some(quoted) => {
                    prop_assert_eq!((quoted.key, quoted.hash), (p.key, p.hash));
                    prop_assert_eq!(quoted.l4, p.l4 - p.l3);
                    prop_assert_eq!((quoted.fragment, quoted.fragment_id), (p.fragment, p.fragment_id));
                }
                None => prop_assert!(!enough || p.icmp == Icmp::Error),
            }
        }
    }

    #[test]
    fn arbitrary_quotes_do_not_panic(quote in prop::collection::vec(any::<u8>(), 0..120), v6: bool) {
        let mut quote = quote;
        if let Some(first) = quote.first_mut() {
            *first = if v6 { 0x60 } else { 0x40 | *first & 0x0f };
        }
        let network = if v6 { Network::Ipv6 } else { Network::Ipv4 };
        if let Some(quoted) = parse_quoted(&quote, network, &KEY) {
            prop_assert!(usize::from(quoted.l4) <= quote.len() || quoted.icmp == Icmp::None);
        }
    }
}
