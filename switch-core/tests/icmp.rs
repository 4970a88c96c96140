//! ICMP through the engine: pings, errors that belong to a flow and those that do not, and errors
//! that the switch itself sends.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::time::Duration;

use podswitch_core::action::DropReason::{self, *};
use rig::frames::*;
use rig::*;

const NODE: [&str; 2] = ["192.168.0.1", "fd00:1::1"];
const GATEWAYS: [&str; 2] = ["169.254.1.1", "fe80::1"];

fn parse(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn echo_types(family: usize) -> (u8, u8) {
    if family == 0 { (8, 0) } else { (128, 129) }
}

fn message(src: IpAddr, dst: IpAddr, head: [u8; 2], rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    ip(src, dst, icmp_protocol(src), 64, None, &icmp(src, dst, head, rest, body))
}

/// The packet in a frame: source, destination, and the bytes behind the network header.
fn opened(frame: &[u8]) -> (IpAddr, IpAddr, &[u8]) {
    let packet = &frame[14..];
    let pair = |at: usize, len: usize| (&packet[at..at + len], &packet[at + len..at + 2 * len]);
    if packet[0] >> 4 == 4 {
        let (src, dst) = pair(12, 4);
        let four = |a: &[u8]| IpAddr::from(<[u8; 4]>::try_from(a).unwrap());
        let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        (four(src), four(dst), &packet[20..total])
    } else {
        let (src, dst) = pair(8, 16);
        let six = |a: &[u8]| IpAddr::from(<[u8; 16]>::try_from(a).unwrap());
        (six(src), six(dst), &packet[40..])
    }
}

fn checksum_holds(frame: &[u8]) -> bool {
    let (src, dst, message) = opened(frame);
    let sum = l4_checksum(src, dst, icmp_protocol(src), message);
    sum == 0 || sum == 0xffff
}

#[test]
fn pings_between_pods() {
    let mut switch = Switch::new(&config());
    for family in [0, 1] {
        let (a, b) = (addresses(0)[family], addresses(1)[family]);
        let (request, reply) = echo_types(family);
        for n in 0..3 {
            let rest = [0, 77, 0, n];
            switch.send(0, &framed(0, &message(a, b, [request, 0], rest, b"ping")));
            let out = switch.recv(1);
            assert_eq!(out.len(), 1);
            assert_eq!(opened(&out[0]).2, icmp(a, b, [request, 0], rest, b"ping"));
            switch.send(1, &framed(1, &message(b, a, [reply, 0], rest, b"ping")));
            assert_eq!(switch.recv(0).len(), 1);
        }
        assert_eq!(switch.control.connections().len(), 1 + family);
    }
    assert_eq!(switch.dropped(), []);
    assert_eq!(switch.count(|c| c.hits.get()), 8);
    // Pods may ping the node, and the node its pods.
    for family in [0, 1] {
        let (a, node) = (addresses(0)[family], parse(NODE[family]));
        let (request, reply) = echo_types(family);
        switch.send(0, &framed(0, &message(a, node, [request, 0], [0; 4], b"up")));
        assert_eq!(switch.recv(HOST).len(), 1);
        switch.send(HOST, &framed(HOST, &message(node, a, [reply, 0], [0; 4], b"up")));
        switch.send(HOST, &framed(HOST, &message(node, a, [request, 0], [9; 4], b"down")));
        assert_eq!(switch.recv(0).len(), 2);
    }
    assert_eq!(switch.dropped(), []);
    switch.assert_adds_up();
}

#[test]
fn the_gateway_answers_pings() {
    let mut switch = Switch::new(&config());
    for family in [0, 1] {
        let gateway = parse(GATEWAYS[family]);
        let (request, reply) = echo_types(family);
        let mut sources = vec![addresses(0)[family]];
        if family == 1 {
            sources.push(parse("fe80::858:aff:fe01:a"));
        }
        for src in sources {
            for len in [0, 1, 56, 1400] {
                let body = vec![3; len];
                let rest = [1, 2, 3, 4];
                switch.send(0, &framed(0, &message(src, gateway, [request, 0], rest, &body)));
                let out = switch.recv(0);
                assert_eq!(out.len(), 1);
                let (from, to, answer) = opened(&out[0]);
                assert_eq!((from, to), (gateway, src));
                assert_eq!(answer, icmp(gateway, src, [reply, 0], rest, &body));
                assert_eq!((&out[0][..6], &out[0][6..12]), (&pod_mac(0).0[..], &GATEWAY.0[..]));
            }
        }
        // A packet with a wrong checksum gets no answer.
        let mut bad = message(addresses(0)[family], gateway, [request, 0], [0; 4], b"ping");
        *bad.last_mut().unwrap() ^= 1;
        switch.send(0, &framed(0, &bad));
        assert!(switch.recv(0).is_empty());
        // Nothing listens there.
        let src = addresses(0)[family];
        let packet = ip(src, gateway, 17, 64, None, &udp(src, gateway, (5, 53), b"?"));
        switch.send(0, &framed(0, &packet));
        let out = switch.recv(0);
        let unreachable = if family == 0 { [3, 3] } else { [1, 4] };
        assert_eq!(&opened(&out[0]).2[..2], &unreachable);
        let packet = ip(src, gateway, 6, 64, None, &tcp(src, gateway, (5, 53), (7, 0, 2), b""));
        switch.send(0, &framed(0, &packet));
        let out = switch.recv(0);
        assert_eq!(out.len(), 1);
        assert_eq!(opened(&out[0]).2[13] & 4, 4, "a reset");
    }
    assert_eq!(switch.dropped(), []);
    assert_eq!(switch.control.connections().len(), 0);
    switch.assert_adds_up();
}

/// An error of type and code `head` from `src` to `dst` about `quoted`.
fn error(src: IpAddr, dst: IpAddr, head: [u8; 2], quoted: &[u8]) -> Vec<u8> {
    message(src, dst, head, [0, 0, 5, 0], &quoted[..quoted.len().min(500)])
}

/// Errors of either family: port unreachable, time exceeded, too big, parameter problem.
const ERRORS: [[[u8; 2]; 4]; 2] =
    [[[3, 3], [11, 0], [3, 4], [12, 0]], [[1, 4], [3, 0], [2, 0], [4, 0]]];

#[test]
fn errors_about_a_flow_go_back_along_it() {
    let mut config = config();
    // Isolated ingress does not block related errors (N5).
    allow_udp(&mut config, &[53]);
    let mut switch = Switch::new(&config);
    for family in [0, 1] {
        let (a, b) = (addresses(0)[family], addresses(1)[family]);
        let asked = ip(a, b, 17, 63, None, &udp(a, b, (1000, 53), b"question"));
        let answered = ip(b, a, 17, 63, None, &udp(b, a, (53, 1000), b"answer"));
        // Before the flow, nothing is related.
        switch.send(1, &framed(1, &error(b, a, [3, 3], &asked)));
        assert_eq!(switch.dropped(), [(1, IcmpUnrelated)]);
        switch.send(0, &framed(0, &asked));
        switch.send(1, &framed(1, &answered));
        assert_eq!((switch.recv(1).len(), switch.recv(0).len()), (1, 1));
        for head in ERRORS[family] {
            for (from, src, dst, quote) in [(1, b, a, &asked), (0, a, b, &answered)] {
                switch.send(from, &framed(from, &error(src, dst, head, quote)));
                let out = switch.recv(1 - from);
                assert_eq!((out.len(), switch.dropped().len()), (1, 0), "{head:?} from {from}");
                assert_eq!(
                    opened(&out[0]).2,
                    opened(&framed(from, &error(src, dst, head, quote))).2
                );
                assert!(checksum_holds(&out[0]));
            }
        }
        // It must go to the sender of the quoted packet, come from its destination, and quote a
        // live flow.
        let other = addresses(2)[family];
        let foreign = ip(a, b, 17, 63, None, &udp(a, b, (1001, 53), b"question"));
        let protocol = ip(a, b, 6, 63, None, &tcp(a, b, (1000, 53), (1, 1, 16), b""));
        for (from, src, dst, quote) in [
            (1, b, a, &foreign),
            (1, b, a, &protocol),
            (1, b, a, &answered),
            (1, b, other, &asked),
            (2, other, a, &asked),
            (0, a, b, &asked),
        ] {
            switch.send(from, &framed(from, &error(src, dst, [3, 3], quote)));
            assert_eq!(switch.dropped(), [(from as u16, IcmpUnrelated)]);
        }
        // The node's port does not bypass this check.
        let outside = if family == 0 { parse("8.8.8.8") } else { parse("2001:db8::8") };
        switch.send(HOST, &framed(HOST, &error(outside, a, [3, 3], &asked)));
        assert_eq!(switch.dropped(), [(HOST as u16, IcmpUnrelated)]);
    }
    assert_eq!([0, 1, 2].map(|port| switch.recv(port).len()), [0; 3]);
    // When the flow has ended, errors about it are not related any more.
    switch.pass_slowly(140);
    let (a, b) = (addresses(0)[0], addresses(1)[0]);
    let asked = ip(a, b, 17, 63, None, &udp(a, b, (1000, 53), b"question"));
    switch.send(1, &framed(1, &error(b, a, [3, 3], &asked)));
    assert_eq!(switch.dropped(), [(1, IcmpUnrelated)]);
    switch.assert_adds_up();
}

/// A router beyond the node reports about a packet that left by it.
#[test]
fn errors_from_outside_reach_the_pod() {
    let mut switch = Switch::new(&config());
    for family in [0, 1] {
        let a = addresses(0)[family];
        let far = if family == 0 { parse("8.8.8.8") } else { parse("2001:db8::8") };
        let router = if family == 0 { parse("172.16.0.9") } else { parse("2001:db8:1::1") };
        let sent = ip(a, far, 17, 3, None, &udp(a, far, (1000, 33434), b"probe"));
        switch.send(0, &framed(0, &sent));
        assert_eq!(switch.recv(HOST).len(), 1);
        for head in ERRORS[family] {
            switch.send(HOST, &framed(HOST, &error(router, a, head, &sent)));
            assert_eq!((switch.recv(0).len(), switch.dropped().len()), (1, 0));
        }
    }
    switch.assert_adds_up();
}

#[test]
fn traceroute_sees_the_switch_and_the_pod() {
    let mut switch = Switch::new(&config());
    for family in [0, 1] {
        let (a, b) = (addresses(0)[family], addresses(1)[family]);
        for probe in 0..3u16 {
            let port = 33434 + probe;
            let first = ip(a, b, 17, 1, None, &udp(a, b, (1000, port), b"probe"));
            switch.send(0, &framed(0, &first));
            assert_eq!(switch.dropped(), [(0, TtlExceeded)]);
            let out = switch.recv(0);
            let (from, to, answer) = opened(&out[0]);
            assert_eq!((from, to), (parse(NODE[family]), a));
            let exceeded = if family == 0 { [11, 0] } else { [3, 0] };
            assert_eq!(&answer[..2], &exceeded);
            assert_eq!(&answer[8..], &first[..], "quotes what was sent, as it was sent");
            assert!(checksum_holds(&out[0]));
            let second = ip(a, b, 17, 2, None, &udp(a, b, (1000, port), b"probe"));
            switch.send(0, &framed(0, &second));
            let arrived = switch.recv(1);
            assert_eq!(arrived[0][if family == 0 { 22 } else { 21 }], 1);
            let head = if family == 0 { [3, 3] } else { [1, 4] };
            switch.send(1, &framed(1, &error(b, a, head, &arrived[0][14..])));
            assert_eq!(switch.recv(0).len(), 1, "port unreachable from the pod itself");
        }
    }
    assert_eq!(switch.dropped(), []);
    switch.assert_adds_up();
}

#[test]
fn errors_are_limited() {
    let mut switch = Switch::new(&config());
    let answers = |switch: &mut Switch, from: usize, count: usize| {
        for n in 0..count {
            switch.send(from, &udp4_ttl(from, pod_v4(2), (1, n as u16), b"x", 1));
        }
        switch.recv(from).len()
    };
    assert_eq!(answers(&mut switch, 0, 300), 50, "a burst to one address");
    assert_eq!(answers(&mut switch, 1, 40), 40, "another has its own share");
    switch.pass(Duration::from_millis(500));
    assert_eq!(answers(&mut switch, 0, 300), 25, "50 a second");
    switch.pass(Duration::from_secs(100));
    assert_eq!(answers(&mut switch, 0, 300), 50);
    assert_eq!(switch.count(|c| c.dropped(TtlExceeded)), 940);
    switch.assert_adds_up();
}

#[test]
fn no_errors_about_packets_that_must_not_be_answered() {
    let mut switch = Switch::new(&config());
    for family in [0, 1] {
        let (a, b) = (addresses(0)[family], addresses(1)[family]);
        switch.send(1, &framed(1, &ip(b, a, 17, 64, None, &udp(b, a, (53, 9), b"x"))));
        assert_eq!(switch.recv(0).len(), 1);
        let quote = ip(b, a, 17, 63, None, &udp(b, a, (53, 9), b"x"));
        let protocol = icmp_protocol(a);
        let spent = |message: &[u8], fragment| ip(a, b, protocol, 1, fragment, message);
        // An error, a message of an unknown kind, a later fragment.
        let head = if family == 0 { [3, 3] } else { [1, 4] };
        let error = icmp(a, b, head, [0; 4], &quote);
        let unknown = icmp(a, b, if family == 0 { [40, 0] } else { [100, 0] }, [0; 4], b"");
        let list: [(Vec<u8>, DropReason); 2] =
            [(spent(&error, None), TtlExceeded), (spent(&unknown, None), TtlExceeded)];
        for (packet, reason) in list {
            switch.send(0, &framed(0, &packet));
            assert_eq!(switch.dropped(), [(0, reason)]);
            assert!(switch.recv(0).is_empty(), "no error about it");
        }
        // For a fragmented datagram, one error is sent.
        let message = udp(a, b, (1, 2), &[5; 2000]);
        let mut pieces = fragments((a, b), 17, 5, &message, &[800, 800]);
        for piece in &mut pieces {
            if family == 0 {
                piece[8] = 1;
                piece[10..12].fill(0);
                let sum = checksum(&[&piece[..20]]);
                piece[10..12].copy_from_slice(&sum.to_be_bytes());
            } else {
                piece[7] = 1;
            }
            switch.send(0, &framed(0, piece));
        }
        assert_eq!(switch.dropped(), [(0, TtlExceeded); 3]);
        assert_eq!(switch.recv(0).len(), 1);
    }
    // There is no route to a group address, and no error about it.
    let group: IpAddr = [224, 0, 0, 9].into();
    let a = addresses(0)[0];
    switch.send(0, &framed(0, &ip(a, group, 17, 1, None, &udp(a, group, (1, 2), b"x"))));
    assert_eq!(switch.dropped(), [(0, MulticastUnsupported)]);
    assert!(switch.recv(0).is_empty());
    switch.assert_adds_up();
}
