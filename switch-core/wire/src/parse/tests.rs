//! Frames written by hand, one per rule.

use super::*;

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

/// An Ethernet frame of at most 128 octets, put together from pieces.
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
fn every_bit_of_the_ipv4_header_is_under_its_checksum() {
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
