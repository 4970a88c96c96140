//! ICMP errors through Services, outside and inside: path MTU discovery, traceroute, unreachable
//! backends (RFC 5508 §4, T-N2).

use std::net::SocketAddr;

use podswitch_wire::flow_key::proto;

use crate::play::{Play, Seen, Sent, first, icmp, tcp, udp, udp_with};
use crate::world::{
    End, FAMILIES, Host, NODE, NODE_PORTS, OUTSIDE, PORTS, X, Y, gateway_ip, node_ip,
    other_node_ip, remote_ip, vip, web,
};
use podswitch_testkit::rig::frames as bytes;

/// Type and code: port unreachable, time exceeded, too big.
const UNREACHABLE: [[u8; 2]; 2] = [[3, 3], [1, 4]];
const EXCEEDED: [[u8; 2]; 2] = [[11, 0], [3, 0]];
const TOO_BIG: [[u8; 2]; 2] = [[3, 4], [2, 0]];

/// An MTU in an error's header: the low half of four bytes (RFC 1191 §4), or all four (RFC 4443
/// §3.2).
fn mtu(mtu: u16) -> [u8; 4] {
    u32::from(mtu).to_be_bytes()
}

fn error(from: Host, v6: bool, to: &Seen, head: [[u8; 2]; 2], rest: [u8; 4]) -> Sent {
    let quote = &to.packet()[..to.packet().len().min(500)];
    icmp(from.ip(v6), to.from().ip(), head[usize::from(v6)], rest, quote)
}

/// What the error quotes is what its receiver sent.
#[track_caller]
fn quotes(seen: &Seen, from: SocketAddr, to: SocketAddr) {
    let key = seen.quoted().key;
    let ends = [(key.src_addr(), key.src_port), (key.dst_addr(), key.dst_port)];
    assert_eq!(ends.map(SocketAddr::from), [from, to]);
}

#[test]
fn should_translate_errors_of_backends() {
    for v6 in FAMILIES {
        for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
            let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
            let sent = first(protocol, X.at(v6, 4000), vip(10, v6, 80));
            let arrived = play.send(X, &sent).by("a_y");
            let told = play.send(Y, &error(Y, v6, &arrived, UNREACHABLE, [0; 4])).by("a_x");
            assert_eq!(told.from().ip(), sent.to.ip(), "from the address that was asked");
            assert_eq!(told.message()[..2], UNREACHABLE[usize::from(v6)]);
            quotes(&told, sent.from, sent.to);
        }
    }
}

/// Path MTU discovery of the backend's answers: the client's end says that they are too big.
#[test]
fn should_translate_errors_of_clients_about_answers() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let sent = first(proto::TCP, X.at(v6, 4000), vip(10, v6, 80));
        play.send(X, &sent).by("a_y");
        let answer = tcp(Y.at(v6, 8080), sent.from, (5000, 1001, 0x12));
        let heard = play.send(Y, &answer).by("a_x");
        let told = play.send(X, &error(X, v6, &heard, TOO_BIG, mtu(1300))).by("a_y");
        assert_eq!((told.from().ip(), told.to().ip()), (X.ip(v6), Y.ip(v6)));
        assert_eq!(told.message()[4..8], mtu(1300));
        quotes(&told, answer.from, answer.to);
    }
}

/// A client outside behind a smaller MTU, seen by the backend as the node (S8).
#[test]
fn should_translate_errors_of_routers_towards_hidden_clients() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(&format!("type: NodePort, {NODE_PORTS}"), &[End::pod(Y)]));
        let to = SocketAddr::new(node_ip(v6), 30_080);
        let arrived = play.send(OUTSIDE, &udp(OUTSIDE.at(v6, 4000), to)).by("a_y");
        let answer = udp_with(Y.at(v6, 8080), arrived.from(), 64, &[7; 1300]);
        let heard = play.send(Y, &answer).by(&OUTSIDE.file());
        // A router on the way to the client says so, with an address of its own.
        let router = if v6 { "2001:db8:ffff::1" } else { "203.0.113.254" };
        let router = router.parse().expect("an address");
        let quote = &heard.packet()[..200];
        let big = icmp(router, to.ip(), TOO_BIG[usize::from(v6)], mtu(1280), quote);
        let told = play.send(OUTSIDE, &big).by("a_y");
        assert_eq!(told.from().ip(), router, "routers speak for themselves");
        assert_eq!(told.to().ip(), Y.ip(v6));
        assert_eq!(told.message()[4..8], mtu(1280));
        quotes(&told, answer.from, answer.to);
        // And the backend's errors reach the client from the address that it asked.
        let told = play.send(Y, &error(Y, v6, &arrived, UNREACHABLE, [0; 4])).by(&OUTSIDE.file());
        assert_eq!((told.from().ip(), told.to().ip()), (to.ip(), OUTSIDE.ip(v6)));
        quotes(&told, OUTSIDE.at(v6, 4000), to);
    }
}

/// The backend of a hairpin connection complains to the gateway's address, which stands for it.
#[test]
fn should_translate_errors_of_hairpin_connections() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(X)]));
        let sent = udp(X.at(v6, 4000), vip(10, v6, 80));
        let arrived = play.send(X, &sent).by("a_x");
        assert_eq!(arrived.from().ip(), gateway_ip(v6));
        let told = play.send(X, &error(X, v6, &arrived, UNREACHABLE, [0; 4])).by("a_x");
        assert_eq!((told.from().ip(), told.to().ip()), (sent.to.ip(), X.ip(v6)));
        quotes(&told, sent.from, sent.to);
        // Errors about what the gateway itself said stay with it.
        let ping =
            icmp(X.ip(v6), gateway_ip(v6), [if v6 { 128 } else { 8 }, 0], [0, 1, 0, 1], b"p");
        let pong = play.send(X, &ping).left.remove(0);
        let outcome = play.send(X, &error(X, v6, &pong, UNREACHABLE, [0; 4]));
        assert!(outcome.left.is_empty(), "{outcome:?}");
    }
}

/// Traceroute: the first hop is this node; the next is the backend, known by the Service's name.
#[test]
fn should_show_up_in_traceroute() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let (from, to) = (X.at(v6, 4000), vip(10, v6, 80));
        let told = play.send(X, &udp_with(from, to, 1, b"probe")).told("ttl_exceeded");
        assert_eq!(told.port, "a_x");
        assert_eq!((told.from().ip(), told.to().ip()), (node_ip(v6), X.ip(v6)));
        assert_eq!(told.message()[..2], EXCEEDED[usize::from(v6)]);
        quotes(&told, from, to);
        let arrived = play.send(X, &udp_with(from, to, 2, b"probe")).by("a_y");
        assert_eq!(arrived.parsed.ttl, 1);
        let told = play.send(Y, &error(Y, v6, &arrived, UNREACHABLE, [0; 4])).by("a_x");
        assert_eq!(told.from().ip(), to.ip());
        quotes(&told, from, to);
        // The answers' way back has a first hop too.
        let answer = udp_with(Y.at(v6, 8080), from, 1, b"answer");
        let told = play.send(Y, &answer).told("ttl_exceeded");
        assert_eq!((told.port.as_str(), told.from().ip()), ("a_y", node_ip(v6)));
        quotes(&told, answer.from, answer.to);
    }
}

/// What is too long for the way to the backend: the client is told of it as of what it sent.
#[test]
fn should_support_path_mtu_discovery() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let mut sent = udp_with(X.at(v6, 4000), vip(10, v6, 80), 64, &[7; 1800]);
        if !v6 {
            // Do not fragment; the header's checksum follows.
            sent.packet[6] = 0x40;
            sent.packet[10..12].fill(0);
            let sum = bytes::checksum(&[&sent.packet[..20]]);
            sent.packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let told = play.send(X, &sent).told("mtu_exceeded");
        assert_eq!(told.message()[..2], TOO_BIG[usize::from(v6)]);
        assert_eq!(told.message()[4..8], mtu(1500));
        quotes(&told, sent.from, sent.to);
        let fits = udp_with(X.at(v6, 4000), vip(10, v6, 80), 64, &[7; 1400]);
        play.send(X, &fits).by("a_y");
    }
}

/// T-N2: an error that quotes no packet of a living connection goes nowhere and ends nothing.
#[test]
fn should_drop_errors_about_nothing() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let sent = udp(X.at(v6, 4000), vip(10, v6, 80));
        let arrived = play.send(X, &sent).by("a_y");
        let mut wrong = arrived.clone();
        let l4 = usize::from(wrong.parsed.l4);
        wrong.frame[l4] ^= 1;
        play.send(Y, &error(Y, v6, &wrong, UNREACHABLE, [0; 4])).silent("icmp_unrelated");
        // Another pod speaks of a connection that is not its own.
        let z = crate::world::Z;
        play.send(z, &error(z, v6, &arrived, UNREACHABLE, [0; 4])).silent("icmp_unrelated");
        // The true one passes, and the flow lives on behind it (RFC 4787 REQ-12).
        play.send(Y, &error(Y, v6, &arrived, UNREACHABLE, [0; 4])).by("a_x");
        play.send(X, &sent).by("a_y");
    }
}

/// An error within the cluster about a Service's answer to the node itself.
#[test]
fn should_translate_errors_to_and_from_the_node() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let sent = udp(NODE.at(v6, 4000), vip(10, v6, 80));
        let arrived = play.send(NODE, &sent).by("a_y");
        let told = play.send(Y, &error(Y, v6, &arrived, UNREACHABLE, [0; 4])).by("host");
        assert_eq!((told.from().ip(), told.to().ip()), (sent.to.ip(), NODE.ip(v6)));
        quotes(&told, sent.from, sent.to);
    }
}

/// Masquerade by the switch (P3): errors from outside find the pod.
#[test]
fn should_translate_errors_about_masqueraded_packets() {
    let state = web(PORTS, &[End::pod(Y)]);
    for v6 in FAMILIES {
        let egress = ["--masquerade", "198.51.100.9,2001:db8:5::9"];
        let mut play = Play::new(&state).with(&egress);
        let sent = udp(X.at(v6, 4000), OUTSIDE.at(v6, 33_434));
        let out = play.send(X, &sent).by("host");
        let ip = if v6 { "2001:db8:5::9" } else { "198.51.100.9" };
        assert_eq!(out.from().ip().to_string(), ip);
        let told = play.send(NODE, &{
            let router = if v6 { "2001:db8:ffff::1" } else { "203.0.113.254" };
            let router = router.parse().expect("an address");
            icmp(router, out.from().ip(), EXCEEDED[usize::from(v6)], [0; 4], out.packet())
        });
        let told = told.by("a_x");
        quotes(&told, sent.from, sent.to);
        // Nodes and pods are of the cluster, and see pods as they are.
        let own = udp(X.at(v6, 4000), NODE.at(v6, 53));
        assert_eq!(play.send(X, &own).by("host").from(), own.from);
        for to in [other_node_ip(v6), remote_ip(5, v6)] {
            let sent = udp(X.at(v6, 4000), SocketAddr::new(to, 53));
            assert_eq!(play.send(X, &sent).sent().inner().from(), sent.from, "{to}");
        }
    }
}
