use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{LaxSlicedPacket, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use podswitch_wire::addr::Mac;
use podswitch_wire::parse::{Network, parse};
use proptest::prelude::*;

use super::super::testing::*;
use super::*;
use crate::packet::PoolConfig;

const NOW: Instant = Instant::from_secs(100);

fn limiter() -> ErrorLimiter {
    ErrorLimiter::new(HashKey::new(3))
}

fn source(v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(gateway().ipv6) } else { IpAddr::V4(gateway().ipv4) }
}

fn pod_to_other(v6: bool, payload: &[u8]) -> Vec<u8> {
    match v6 {
        true => udp(POD6.into(), OTHER6.into(), 1, payload),
        false => udp(POD4.into(), OTHER4.into(), 1, payload),
    }
}

fn about(frame: &[u8], what: Error) -> Result<Packet, NoAnswer> {
    let (packet, parsed) = packet(frame);
    let v6 = parsed.network == Network::Ipv6;
    error(what, &packet, &parsed, source(v6), NOW, &mut limiter(), &mut dirty_pool())
}

/// Type, code, second word and quote of an error. Its headers and checksums are checked by an
/// independent parser.
fn dissect(answer: &Packet) -> (u8, u8, u32, Vec<u8>) {
    let bytes = answer.bytes();
    let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
    assert_eq!(bytes[..6], POD_MAC.0);
    assert_eq!(bytes[6..12], gateway().mac.0);
    match (sliced.net.unwrap(), sliced.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let header = ip.header().to_header();
            assert_eq!(header.source, gateway().ipv4.octets());
            assert_eq!(header.destination, POD4.octets());
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((header.time_to_live, header.total_len as usize), (64, bytes.len() - 14));
            assert_eq!(bytes[15], 0xc0);
            let checksum = icmp.icmp_type().calc_checksum(icmp.payload());
            assert_eq!(rfc1071(icmp.slice()), 0);
            assert_eq!(icmp.checksum(), checksum);
            let rest = u32::from_be_bytes(icmp.slice()[4..8].try_into().unwrap());
            (icmp.type_u8(), icmp.code_u8(), rest, icmp.slice()[8..].to_vec())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let header = ip.header().to_header();
            assert_eq!(header.source, gateway().ipv6.octets());
            assert_eq!(header.destination, POD6.octets());
            assert_eq!(header.hop_limit, 64);
            assert_eq!(header.payload_length as usize, bytes.len() - 54);
            assert!(icmp.is_checksum_valid(header.source, header.destination));
            let rest = u32::from_be_bytes(icmp.slice()[4..8].try_into().unwrap());
            (icmp.type_u8(), icmp.code_u8(), rest, icmp.slice()[8..].to_vec())
        }
        _ => panic!("no ICMP"),
    }
}

#[test]
fn types_and_codes() {
    let too_big = |mtu| Error::TooBig { mtu };
    let table = [
        (Error::TimeExceeded, (11, 0, 0), (3, 0, 0)),
        (Error::NoRoute, (3, 0, 0), (1, 0, 0)),
        (Error::AddressUnreachable, (3, 1, 0), (1, 3, 0)),
        (Error::PortUnreachable, (3, 3, 0), (1, 4, 0)),
        (Error::AdminProhibited, (3, 13, 0), (1, 1, 0)),
        (too_big(1450), (3, 4, 1450), (2, 0, 1450)),
        (too_big(68), (3, 4, 68), (2, 0, 1280)),
        (too_big(70_000), (3, 4, 0xffff), (2, 0, 70_000)),
    ];
    for (what, v4, v6) in table {
        for (family, expected) in [(false, v4), (true, v6)] {
            let frame = pod_to_other(family, b"who are you");
            let (kind, code, rest, quote) = dissect(&about(&frame, what).unwrap());
            assert_eq!((kind, code, rest), expected, "{what:?}");
            assert_eq!(quote, frame[14..]);
        }
    }
}

#[test]
fn quotes_as_much_as_fits_and_no_padding() {
    for v6 in [false, true] {
        let (limit, before) = if v6 { (1280, 48) } else { (576, 28) };
        for len in [0, 1, 18, 500, 512, 513, 1183, 1184, 1185, 1400, 9000] {
            let frame = pod_to_other(v6, &vec![0x5a; len]);
            let (.., quote) = dissect(&about(&frame, Error::TimeExceeded).unwrap());
            let expected = (frame.len() - 14).min(limit - before);
            assert_eq!(quote, frame[14..14 + expected]);
            // An independent parser parses the quote to the same values.
            assert!(LaxSlicedPacket::from_ip(&quote).unwrap().transport.is_some());
        }
        let mut padded = pod_to_other(v6, b"x");
        let len = padded.len();
        padded.resize(len + 30, 0xee);
        let (.., quote) = dissect(&about(&padded, Error::TimeExceeded).unwrap());
        assert_eq!(quote, padded[14..len]);
    }
}

#[test]
fn a_partial_checksum_is_quoted_as_it_was_sent() {
    let frame = pod_to_other(false, b"half");
    let (mut packet, parsed) = packet(&frame);
    packet.offload.csum_partial = true;
    let answer =
        error(Error::NoRoute, &packet, &parsed, source(false), NOW, &mut limiter(), &mut pool());
    assert_eq!(dissect(&answer.unwrap()).3, frame[14..]);
}

fn icmp4(kind: u8, code: u8) -> Vec<u8> {
    let raw = etherparse::Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: [0; 4] };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(POD_MAC.0, gateway().mac.0)
        .ipv4(POD4.octets(), OTHER4.octets(), 1)
        .icmpv4(raw)
        .write(&mut frame, &[0x45; 28])
        .unwrap();
    frame
}

#[test]
fn never_about_an_error_or_a_redirect() {
    for kind in 0..=255 {
        let informational = matches!(kind, 0 | 8..=10 | 13..=18);
        let answer = about(&icmp4(kind, 0), Error::TimeExceeded);
        assert_eq!(answer.is_ok(), informational, "ICMP type {kind}");

        let eth = (POD_MAC, gateway().mac);
        let frame = icmp6(eth, POD6, OTHER6, 1, [kind, 0], &[0; 44]);
        let answer = about(&frame, Error::TimeExceeded);
        assert_eq!(answer.is_ok(), kind >= 128 && kind != 137, "ICMPv6 type {kind}");
    }
}

#[test]
fn never_about_group_and_invalid_addresses() {
    let forbidden = |src: &str, dst: &str| {
        let frame = udp(src.parse().unwrap(), dst.parse().unwrap(), 1, b"x");
        let answer = about(&frame, Error::TimeExceeded);
        assert_eq!(answer.unwrap_err(), NoAnswer::Forbidden, "{src} to {dst}");
    };
    for bad in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
        forbidden(bad, "10.244.1.6");
        forbidden("10.244.1.5", bad);
    }
    for bad in ["::", "::1", "ff02::1", "ff0e::5"] {
        forbidden(bad, "fd00:0:0:1::6");
        forbidden("fd00:0:0:1::5", bad);
    }
    let good = pod_to_other(false, b"x");
    for (at, mac) in [(0, Mac::BROADCAST), (0, Mac([1, 0, 0x5e, 0, 0, 1])), (6, Mac::BROADCAST)] {
        let mut frame = good.clone();
        frame[at..at + 6].copy_from_slice(&mac.0);
        assert_eq!(about(&frame, Error::NoRoute).unwrap_err(), NoAnswer::Forbidden);
    }
    let arp = Arp {
        eth_src: POD_MAC,
        eth_dst: gateway().mac,
        operation: 1,
        sender_mac: POD_MAC,
        sender_ip: POD4,
        target_mac: Mac::ZERO,
        target_ip: OTHER4,
    };
    assert_eq!(about(&arp.frame(), Error::NoRoute).unwrap_err(), NoAnswer::Forbidden);
}

#[test]
fn about_first_fragments_only() {
    let (packet, mut parsed) = packet(&pod_to_other(false, b"x"));
    let mut about = |fragment| {
        parsed.fragment = fragment;
        error(Error::NoRoute, &packet, &parsed, source(false), NOW, &mut limiter(), &mut pool())
            .is_ok()
    };
    assert!(about(Fragment::First));
    assert!(!about(Fragment::Later));
}

#[test]
fn from_a_valid_source_address_only() {
    let (packet, parsed) = packet(&pod_to_other(false, b"x"));
    for from in [IpAddr::V6(OTHER6), IpAddr::V4(Ipv4Addr::BROADCAST)] {
        let answer =
            error(Error::NoRoute, &packet, &parsed, from, NOW, &mut limiter(), &mut pool());
        assert_eq!(answer.unwrap_err(), NoAnswer::Forbidden);
    }
}

#[test]
fn limited_per_address_and_in_total() {
    let mut limiter =
        ErrorLimiter::with_rates(HashKey::new(3), Rate::new(10, 5), Rate::new(1, 2), 64);
    let mut pool = Pool::new(PoolConfig { small: 100, large: 0 });
    let mut send = |host: u8, secs| {
        let src = IpAddr::V4(Ipv4Addr::new(10, 0, 0, host));
        let (packet, parsed) = packet(&udp(src, OTHER4.into(), 1, b"x"));
        let at = Instant::from_secs(secs);
        let answer =
            error(Error::NoRoute, &packet, &parsed, source(false), at, &mut limiter, &mut pool);
        answer.map(|_| ())
    };
    for _ in 0..2 {
        assert_eq!(send(1, 0), Ok(()));
    }
    // The address that asked most got two of the five answers in total, and no more.
    for _ in 0..100 {
        assert_eq!(send(1, 0), Err(NoAnswer::RateLimited));
    }
    assert_eq!([send(2, 0), send(3, 0), send(4, 0)], [Ok(()); 3]);
    assert_eq!(send(5, 0), Err(NoAnswer::RateLimited));
    assert_eq!([send(1, 1), send(5, 1)], [Ok(()); 2]);
}

#[test]
fn no_buffer() {
    let (packet, parsed) = packet(&pod_to_other(true, b"x"));
    let mut empty = Pool::new(PoolConfig { small: 0, large: 0 });
    let answer =
        error(Error::NoRoute, &packet, &parsed, source(true), NOW, &mut limiter(), &mut empty);
    assert_eq!(answer.unwrap_err(), NoAnswer::NoBuffer);
}

fn ping(v6: bool, payload: &[u8]) -> Vec<u8> {
    let eth = PacketBuilder::ethernet2(POD_MAC.0, gateway().mac.0);
    let mut frame = Vec::new();
    match v6 {
        true => eth
            .ipv6(POD6.octets(), gateway().ipv6.octets(), 64)
            .icmpv6_echo_request(77, 3)
            .write(&mut frame, payload)
            .unwrap(),
        false => eth
            .ipv4(POD4.octets(), gateway().ipv4.octets(), 64)
            .icmpv4_echo_request(77, 3)
            .write(&mut frame, payload)
            .unwrap(),
    }
    frame
}

#[test]
fn pings_are_answered() {
    for v6 in [false, true] {
        for len in [0, 1, 56, 1472, 30_000] {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let (request, parsed) = packet(&ping(v6, &payload));
            let answer = echo_reply(&request, &parsed, &mut dirty_pool()).unwrap();
            let bytes = answer.bytes();
            assert_eq!((&bytes[..6], &bytes[6..12]), (&POD_MAC.0[..], &gateway().mac.0[..]));
            let sliced = SlicedPacket::from_ethernet(bytes).unwrap();
            match sliced.transport.unwrap() {
                TransportSlice::Icmpv4(icmp) => {
                    assert_eq!((icmp.type_u8(), icmp.code_u8()), (0, 0));
                    assert_eq!(rfc1071(icmp.slice()), 0);
                    assert_eq!(icmp.slice()[4..8], [0, 77, 0, 3]);
                    assert_eq!(icmp.payload(), payload);
                }
                TransportSlice::Icmpv6(icmp) => {
                    assert_eq!((icmp.type_u8(), icmp.code_u8()), (129, 0));
                    assert!(icmp.is_checksum_valid(gateway().ipv6.octets(), POD6.octets()));
                    assert_eq!(icmp.slice()[4..8], [0, 77, 0, 3]);
                    assert_eq!(icmp.payload(), payload);
                }
                _ => panic!("no ICMP"),
            }
            // The answer is not a request.
            let (answer, parsed) = packet(answer.bytes());
            assert!(echo_reply(&answer, &parsed, &mut pool()).is_err());
        }
    }
}

#[test]
fn pings_that_are_not_answered() {
    for v6 in [false, true] {
        let frame = ping(v6, b"abcd");
        let mut corrupted = frame.clone();
        *corrupted.last_mut().unwrap() ^= 4;
        let (request, parsed) = packet(&corrupted);
        let answer = echo_reply(&request, &parsed, &mut pool());
        assert_eq!(answer.unwrap_err(), NoAnswer::BadChecksum);

        let (request, parsed) = packet(&frame);
        let first = Parsed { fragment: Fragment::First, ..parsed };
        assert_eq!(echo_reply(&request, &first, &mut pool()).unwrap_err(), NoAnswer::Forbidden);
        let mut empty = Pool::new(PoolConfig { small: 0, large: 0 });
        assert_eq!(echo_reply(&request, &parsed, &mut empty).unwrap_err(), NoAnswer::NoBuffer);
    }
    let (other, parsed) = packet(&pod_to_other(true, b"x"));
    assert_eq!(echo_reply(&other, &parsed, &mut pool()).unwrap_err(), NoAnswer::Forbidden);
}

proptest! {
    /// For any input: no panic, and every answer is well formed, no longer than its family's limit,
    /// and goes to a single host.
    #[test]
    fn answers_are_well_formed_and_to_one_host(
        v6 in any::<bool>(),
        base in 0usize..4,
        len in 0usize..1500,
        edits in prop::collection::vec((0usize..80, any::<u8>()), 0..4),
        junk in prop::option::of(prop::collection::vec(any::<u8>(), 0..120)),
    ) {
        let mut frame = match base {
            0 => pod_to_other(v6, &vec![7; len]),
            1 => ping(v6, &vec![7; len]),
            2 => icmp4(edits.first().map_or(3, |e| e.1), 1),
            _ => icmp6((POD_MAC, gateway().mac), POD6, OTHER6, 1, [1, 0], &vec![0; len + 4]),
        };
        if let Some(junk) = junk {
            frame = junk;
        }
        for (at, value) in edits {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        if frame.get(12..15) == Some(&[8, 0, 0x45]) && frame.len() >= 34 {
            frame[24..26].fill(0);
            let sum = rfc1071(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let Ok(parsed) = parse(&frame, &HashKey::new(7)) else { return Ok(()) };
        let packet = Packet::from_frame(&frame);
        let from = source(parsed.network == Network::Ipv6);
        let mut answers = Vec::new();
        let mut pool = pool();
        for what in [Error::TimeExceeded, Error::TooBig { mtu: 1400 }] {
            answers.extend(error(what, &packet, &parsed, from, NOW, &mut limiter(), &mut pool));
        }
        for answer in &answers {
            let limit = if parsed.network == Network::Ipv6 { 1280 } else { 576 };
            prop_assert!(answer.len() <= 14 + limit);
        }
        answers.extend(echo_reply(&packet, &parsed, &mut pool));
        answers.extend(super::super::tcp::reset(&packet, &parsed, NOW, &mut limiter(), &mut pool));
        for answer in answers {
            let answer = parse(answer.bytes(), &HashKey::new(7));
            prop_assert!(answer.is_ok(), "{answer:?}");
            let key = answer.unwrap().key;
            prop_assert_eq!(key.dst, parsed.key.src);
            let one_host = match key.dst_addr() {
                IpAddr::V4(a) => !a.is_broadcast() && !a.is_multicast() && !a.is_unspecified(),
                IpAddr::V6(a) => !a.is_multicast() && a != Ipv6Addr::UNSPECIFIED,
            };
            prop_assert!(one_host, "answer to {}", key.dst_addr());
        }
    }
}
