//! Fragments, and packets of every size, through Services (T-F4, T-F5).

use std::net::SocketAddr;

use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::Fragment;

use crate::play::{Outcome, Play, Seen, tcp_with, udp_with};
use crate::world::{End, FAMILIES, NODE_PORTS, OUTSIDE, PORTS, X, Y, Z, node_ip, vip, web};
use podswitch_testkit::rig::frames as bytes;

/// A datagram's fragments.
fn pieces(from: SocketAddr, to: SocketAddr, id: u32, payload: &[u8]) -> Vec<Vec<u8>> {
    let message = bytes::udp(from.ip(), to.ip(), (from.port(), to.port()), payload);
    bytes::fragments((from.ip(), to.ip()), proto::UDP, id, &message, &[800, 808])
}

/// The UDP message that fragments carry together.
fn whole(seen: &[&Seen]) -> Vec<u8> {
    let mut message = Vec::new();
    for piece in seen {
        let at = usize::from(piece.parsed.fragment_offset);
        message.resize(message.len().max(at + piece.message().len()), 0);
        message[at..at + piece.message().len()].copy_from_slice(piece.message());
    }
    message
}

fn all_left(outcomes: &[Outcome]) -> Vec<&Seen> {
    outcomes.iter().flat_map(|outcome| &outcome.left).collect()
}

const ORDERS: [[usize; 3]; 4] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]];

#[test]
fn should_translate_all_fragments_of_a_datagram() {
    let payload: Vec<u8> = (0..2200u32).map(|n| (n * 7) as u8).collect();
    for v6 in FAMILIES {
        for (id, order) in (1..).zip(ORDERS) {
            let mut play = Play::new(&web(PORTS, &[End::pod(Y), End::pod(Z)]));
            let (from, to) = (X.at(v6, 4000 + id as u16), vip(10, v6, 80));
            let cut = pieces(from, to, id, &payload);
            let outcomes = play.send_packets(X, order.iter().map(|&at| cut[at].clone()).collect());
            let left = all_left(&outcomes);
            assert_eq!(left.len(), 3, "{order:?}");
            let backend = if left[0].port == "a_y" { Y } else { Z };
            assert!(left.iter().all(|piece| piece.port == backend.file()));
            assert!(left.iter().all(|piece| piece.to().ip() == backend.ip(v6)));
            let expected = bytes::udp(from.ip(), backend.ip(v6), (from.port(), 8080), &payload);
            assert_eq!(whole(&left), expected, "checksum and ports are the new ones");
            // The answer in fragments, all of them with the Service's address.
            let server = backend.at(v6, 8080);
            let cut = pieces(server, from, 100 + id, &payload);
            let outcomes =
                play.send_packets(backend, order.iter().map(|&at| cut[at].clone()).collect());
            let left = all_left(&outcomes);
            assert!(left.iter().all(|piece| piece.from().ip() == to.ip() && piece.port == "a_x"));
            let expected = bytes::udp(to.ip(), from.ip(), (80, from.port()), &payload);
            assert_eq!(whole(&left), expected);
        }
    }
}

/// With both ends translated.
#[test]
fn should_translate_fragments_of_hidden_clients() {
    let payload = [7u8; 2000];
    for v6 in FAMILIES {
        let mut play = Play::new(&web(&format!("type: NodePort, {NODE_PORTS}"), &[End::pod(Y)]));
        let (from, to) = (OUTSIDE.at(v6, 4000), SocketAddr::new(node_ip(v6), 30_080));
        let outcomes = play.send_packets(OUTSIDE, pieces(from, to, 9, &payload));
        let left = all_left(&outcomes);
        assert_eq!(left.len(), 3);
        let first = left.iter().find(|p| p.parsed.fragment == Fragment::First).expect("one");
        let hidden = first.from();
        assert_eq!(hidden.ip(), node_ip(v6));
        let expected = bytes::udp(node_ip(v6), Y.ip(v6), (hidden.port(), 8080), &payload);
        assert_eq!(whole(&left), expected);
    }
}

/// A datagram that lacks a piece goes nowhere, in part or whole; nor do overlapping ones.
#[test]
fn should_send_fragments_only_when_they_are_whole() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let (from, to) = (X.at(v6, 4000), vip(10, v6, 80));
        for (id, lacks) in [(1, 0), (2, 1), (3, 2)] {
            let mut cut = pieces(from, to, id, &[7; 2000]);
            cut.remove(lacks);
            let outcomes = play.send_packets(X, cut);
            assert!(all_left(&outcomes).is_empty(), "without piece {lacks}");
        }
        let mut cut = pieces(from, to, 4, &[7; 2000]);
        let again = cut[1].clone();
        let mut other = again.clone();
        *other.last_mut().expect("data") ^= 1;
        cut.insert(1, other);
        let outcomes = play.send_packets(X, cut);
        assert!(all_left(&outcomes).is_empty(), "two that differ at one place");
    }
}

/// Refused in pieces is told once.
#[test]
fn should_refuse_fragmented_datagrams_once() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[]));
        let (from, to) = (X.at(v6, 4000), vip(10, v6, 80));
        let outcomes = play.send_packets(X, pieces(from, to, 1, &[7; 2000]));
        let left = all_left(&outcomes);
        assert_eq!(left.len(), 1, "about the first fragment alone");
        assert_eq!(left[0].message()[..2], if v6 { [1, 4] } else { [3, 3] });
        let reasons: Vec<_> = outcomes.iter().filter_map(Outcome::reason).collect();
        assert_eq!(reasons, ["service_no_endpoints"; 3]);
    }
}

/// Every length there is, odd and even, and with padding behind (T-P2).
#[test]
fn should_keep_the_checksums_of_packets_of_every_length() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let data: Vec<u8> = (0..1400u32).map(|n| (n * 31) as u8).collect();
        let (from, to) = (X.at(v6, 4000), vip(10, v6, 80));
        let mut packets = Vec::new();
        for length in (0..40).chain((40..1400).step_by(97)) {
            packets.push(udp_with(from, to, 64, &data[..length]).packet);
            packets.push(tcp_with(from, to, (1000, 0, 2), &data[..length]).packet);
            let mut padded = udp_with(from, to, 64, &data[..length]).packet;
            padded.extend([0xff; 9]);
            packets.push(padded);
        }
        let count = packets.len();
        let outcomes = play.send_packets(X, packets);
        // `Seen` has looked at every checksum.
        assert_eq!(outcomes.iter().filter(|o| o.sent().port == "a_y").count(), count);
    }
}

/// UDP without a checksum stays so over IPv4 (RFC 768).
#[test]
fn should_leave_a_missing_udp_checksum_missing() {
    let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
    let mut sent = udp_with(X.at(false, 4000), vip(10, false, 80), 64, b"datagram");
    sent.packet[26..28].fill(0);
    let seen = play.send(X, &sent).by("a_y");
    assert_eq!(seen.message()[6..8], [0, 0]);
}

/// A wrong checksum is nobody's to make good: the receiver must see it.
#[test]
fn should_not_repair_what_arrived_broken() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let mut sent = udp_with(X.at(v6, 4000), vip(10, v6, 80), 64, b"datagram");
        *sent.packet.last_mut().expect("data") ^= 0x10;
        let outcome = play.send_broken(X, &sent);
        assert_eq!(outcome, ["a_y"], "arrives, and is wrong still");
    }
}
