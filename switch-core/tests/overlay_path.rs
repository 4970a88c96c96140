//! Packet sizes, answers of the switch itself, and neighbour resolution inside the tunnel.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::time::Duration;

use podswitch_core::action::DropReason::*;
use podswitch_core::config::{Config, NextHop, Route, Underlay};
use podswitch_core::control::LearntMtu;
use podswitch_core::time::Instant;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Icmp, parse};
use rig::frames;
use rig::overlay::*;
use rig::*;

fn each(test: impl Fn(bool, bool, Pair)) {
    for v6 in [false, true] {
        for (underlay, outer) in [(Underlay::Ipv4First, false), (Underlay::Ipv6First, true)] {
            test(v6, outer, Pair::new(underlay));
        }
    }
}

/// Type, code and second word of an ICMP error, and its source.
fn error(frame: &[u8]) -> (u8, u8, u32, IpAddr) {
    let parsed = parse(frame, &HASH_KEY).expect("parses");
    assert_eq!(parsed.icmp, Icmp::Error);
    assert!(is_sound(frame));
    let at = usize::from(parsed.l4);
    let word = u32::from_be_bytes(frame[at + 4..at + 8].try_into().unwrap());
    (frame[at], frame[at + 1], word, parsed.key.src_addr())
}

const HASH_KEY: HashKey = HashKey::new(1);

/// A datagram of `len` bytes from its IP header on, with DF set.
fn datagram(v6: bool, len: usize) -> Vec<u8> {
    let head = if v6 { 48 } else { 28 };
    let mut packet = udp(pod(0, 0, v6), pod(1, 1, v6), (1, 2), &vec![1; len - head]);
    if !v6 {
        packet[6] |= 0x40;
        packet[10..12].fill(0);
        let sum = frames::checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

#[test]
fn the_largest_packet_fits_and_a_larger_one_gets_an_error() {
    each(|v6, outer, mut pair| {
        let most = if outer { 1430 } else { 1450 };
        for round in 0..2 {
            pair.0[0].send(0, &from_pod(0, 0, &datagram(v6, most)));
            let carried = pair.carry();
            assert_eq!(carried[0].1.len(), 1514, "fills the underlay, round {round}");
            assert_eq!(pair.recv(1, 1).len(), 1);
            pair.send(0, 0, &datagram(v6, most + 1));
            assert_eq!(pair.recv(1, 1).len(), 0);
            let told = pair.recv(0, 0);
            let (kind, code) = if v6 { (2, 0) } else { (3, 4) };
            assert_eq!(error(&told[0]), (kind, code, most as u32, node_address(0, v6)));
            assert_eq!(pair.0[0].dropped(), [(0, MtuExceeded)]);
        }
    });
}

#[test]
fn packets_without_df_are_fragmented_before_the_tunnel() {
    for underlay in [Underlay::Ipv4First, Underlay::Ipv6First] {
        let mut pair = Pair::new(underlay);
        let packet = udp(pod(0, 0, false), pod(1, 1, false), (1, 2), &[9; 3000]);
        pair.0[0].send(0, &from_pod(0, 0, &packet));
        let carried = pair.carry();
        assert_eq!(carried.len(), 3);
        for (_, frame) in &carried {
            let seen = dissect(frame);
            assert!(frame.len() <= 1514 && seen.checksum_holds && seen.dont_fragment);
        }
        assert_eq!(pair.recv(1, 1).len(), 3, "the far switch forwards the fragments together");
        pair.assert_no_drops();
    }
}

#[test]
fn every_hop_of_a_traceroute_answers() {
    each(|v6, _, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
        let kind = if v6 { 3 } else { 11 };
        for (ttl, from) in [(1, 0), (2, 1)] {
            pair.send(0, 0, &echo(a, b, b"trace", ttl));
            let told = pair.recv(0, 0);
            assert_eq!(told.len(), 1, "at TTL {ttl}");
            assert_eq!(error(&told[0]), (kind, 0, 0, node_address(from, v6)));
            assert_eq!(told[0][..6], mac_of_pod(0, 0).0);
            let port = if from == 0 { 0 } else { UPLINK as u16 };
            assert_eq!(pair.0[from].dropped(), [(port, TtlExceeded)]);
        }
        pair.send(0, 0, &echo(a, b, b"trace", 3));
        assert_eq!(pair.recv(1, 1).len(), 1);
    });
}

#[test]
fn a_pods_own_icmp_errors_are_returned() {
    each(|v6, _, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
        pair.send(0, 0, &udp(a, b, (7, 9), b"closed"));
        let got = pair.recv(1, 1).remove(0);
        let head = if v6 { [1, 4] } else { [3, 3] };
        let message = frames::icmp(b, a, head, [0; 4], &got[14..]);
        let packet = frames::ip(b, a, frames::icmp_protocol(a), 64, None, &message);
        pair.send(1, 1, &packet);
        assert_eq!(error(&pair.recv(0, 0)[0]).3, b);
        pair.assert_no_drops();
        // An error about a packet that was never sent is dropped.
        let other = udp(a, b, (8, 9), b"never");
        let message = frames::icmp(b, a, head, [0; 4], &other);
        let packet = frames::ip(b, a, frames::icmp_protocol(a), 64, None, &message);
        pair.send(1, 1, &packet);
        assert_eq!(pair.recv(0, 0).len(), 0);
    });
}

#[test]
fn an_unassigned_address_is_reported_through_the_tunnel() {
    each(|v6, _, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 77, v6));
        pair.send(0, 0, &udp(a, b, (1, 2), b"x"));
        let (kind, code) = if v6 { (1, 3) } else { (3, 1) };
        let told = pair.recv(0, 0);
        assert_eq!(error(&told[0]), (kind, code, 0, node_address(1, v6)));
        assert_eq!(pair.0[1].dropped(), [(UPLINK as u16, UnknownPod)]);
    });
}

#[test]
fn the_first_address_of_a_range_answers_as_flannels_nodes_do() {
    each(|v6, _, mut pair| {
        let first = ranges(1)[usize::from(v6)].address();
        pair.send(0, 0, &echo(pod(0, 0, v6), first, b"hello", 64));
        let got = pair.recv(0, 0);
        assert_eq!(got.len(), 1);
        let parsed = parse(&got[0], &HASH_KEY).unwrap();
        assert_eq!((parsed.icmp, parsed.key.src_addr()), (Icmp::Reply, first));
        // A closed port of it refuses.
        pair.send(0, 0, &tcp(pod(0, 0, v6), first, (9, 80), (5, 0, 2), b""));
        let got = pair.recv(0, 0);
        assert_eq!(parse(&got[0], &HASH_KEY).unwrap().tcp_flags, 0x14);
        pair.assert_no_drops();
    });
}

/// An ICMP error on the underlay about a tunnel packet.
fn underlay_error(sent: &[u8], mtu: u32, quote: usize) -> Vec<u8> {
    let seen = dissect(sent);
    let v6 = seen.source.is_ipv6();
    let router: IpAddr = if v6 { "fd00:ffff::99" } else { "192.168.0.99" }.parse().unwrap();
    let head = if v6 { [2, 0] } else { [3, 4] };
    let quoted = &sent[14..sent.len().min(14 + quote)];
    let message = frames::icmp(router, seen.source, head, mtu.to_be_bytes(), quoted);
    let packet = frames::ip(router, seen.source, frames::icmp_protocol(router), 64, None, &message);
    frames::ethernet(underlay_mac(0), Mac([2, 1, 1, 1, 1, 1]), frames::ethertype(router), &packet)
}

#[test]
fn the_path_mtu_is_learnt_and_forgotten() {
    each(|v6, outer, mut pair| {
        let most = if outer { 1430 } else { 1450 };
        let overhead = if outer { 70 } else { 50 };
        let switch = &mut pair.0[0];
        switch.send(0, &from_pod(0, 0, &datagram(v6, most)));
        let sent = switch.recv(UPLINK).remove(0);
        switch.send(UPLINK, &underlay_error(&sent, 1400, 500));
        assert_eq!(switch.dropped(), []);
        for _ in 0..2 {
            switch.send(0, &from_pod(0, 0, &datagram(v6, 1400 - overhead)));
            assert_eq!(switch.recv(UPLINK).len(), 1);
            switch.send(0, &from_pod(0, 0, &datagram(v6, 1401 - overhead)));
            assert_eq!(error(&switch.recv(0)[0]).2, 1400 - overhead as u32);
            assert_eq!(switch.dropped(), [(0, MtuExceeded)]);
        }
        // Another node's path is not affected.
        let far = udp(pod(0, 0, v6), pod(2, 1, v6), (1, 2), &vec![0; most - 48]);
        switch.send(0, &from_pod(0, 0, &far));
        assert_eq!(switch.recv(UPLINK).len(), 1);
        // A publish keeps it, ten minutes end it.
        let underlay = if outer { Underlay::Ipv6First } else { Underlay::Ipv4First };
        switch.control.apply(&node_config(0, underlay)).unwrap();
        switch.send(0, &from_pod(0, 0, &datagram(v6, 1401 - overhead)));
        assert_eq!(switch.dropped(), [(0, MtuExceeded)]);
        switch.now = switch.now + Duration::from_secs(601);
        switch.send(0, &from_pod(0, 0, &datagram(v6, most)));
        assert_eq!(switch.recv(UPLINK).len(), 1);
        switch.assert_adds_up();
    });
}

/// The next process uses the learned MTU, for the remaining time.
#[test]
fn the_path_mtu_is_restored() {
    each(|v6, outer, mut pair| {
        let (most, overhead) = if outer { (1430, 70) } else { (1450, 50) };
        let switch = &mut pair.0[0];
        switch.send(0, &from_pod(0, 0, &datagram(v6, most)));
        let sent = switch.recv(UPLINK).remove(0);
        switch.send(UPLINK, &underlay_error(&sent, 1400, 500));
        let mut learnt = switch.control.path_mtus();
        let vtep = dissect(&sent).destination;
        assert_eq!(learnt.iter().map(|l| (l.vtep, l.mtu)).collect::<Vec<_>>(), [(vtep, 1400)]);

        let underlay = if outer { Underlay::Ipv6First } else { Underlay::Ipv4First };
        let mut next = Switch::new(&node_config(0, underlay));
        learnt.push(LearntMtu { vtep: "198.51.100.1".parse().unwrap(), mtu: 1300, left: 60 });
        learnt[0].left = 300;
        next.control.restore_path_mtus(&learnt);
        next.send(0, &from_pod(0, 0, &datagram(v6, 1401 - overhead)));
        assert_eq!(error(&next.recv(0)[0]).2, 1400 - overhead as u32);
        assert_eq!(next.dropped(), [(0, MtuExceeded)]);
        assert_eq!(next.control.path_mtus().len(), 1, "only one node has it");
        // A value learned since then is kept.
        next.control.restore_path_mtus(&[LearntMtu { mtu: 1290, ..learnt[0] }]);
        assert_eq!(next.control.path_mtus()[0].mtu, 1400);
        next.now = Instant::from_secs(301);
        next.send(0, &from_pod(0, 0, &datagram(v6, most)));
        assert_eq!(next.recv(UPLINK).len(), 1, "its time is over");
        // A file cannot starve a tunnel by a small value.
        next.control.restore_path_mtus(&[LearntMtu { mtu: 1, left: u64::MAX, ..learnt[0] }]);
        let mtu = next.control.path_mtus().iter().map(|l| (l.mtu, l.left)).next();
        assert!(mtu.is_none_or(|(mtu, left)| mtu >= 552 && left <= 600), "{mtu:?}");
    });
}

#[test]
fn forged_path_mtus_change_nothing_or_little() {
    each(|v6, outer, mut pair| {
        let most = if outer { 1430 } else { 1450 };
        let switch = &mut pair.0[0];
        let whole = from_pod(0, 0, &datagram(v6, most));
        switch.send(0, &whole);
        let sent = switch.recv(UPLINK).remove(0);
        let ip = if outer { 40 } else { 20 };
        let mut cases: Vec<(Vec<u8>, &str)> = vec![
            (underlay_error(&sent, 0, 500), "no number"),
            (underlay_error(&sent, 1500, 500), "it fitted"),
            (underlay_error(&sent, 1400, ip + 8), "nothing of the inside"),
        ];
        let mut spoil = |at: usize, what| {
            let mut other = sent.clone();
            other[at] ^= 1;
            if at == 33 {
                other[24..26].fill(0);
                let sum = frames::checksum(&[&other[14..34]]);
                other[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            let mut frame = underlay_error(&sent, 1400, 500);
            let quote = frame.len() - 500;
            frame[quote..].copy_from_slice(&other[14..514]);
            let at = 14 + ip;
            let (src, dst) = {
                let parsed = parse(&frame, &HASH_KEY).unwrap();
                (parsed.key.src_addr(), parsed.key.dst_addr())
            };
            frame[at + 2..at + 4].fill(0);
            let sum = frames::l4_checksum(src, dst, frames::icmp_protocol(src), &frame[at..]);
            frame[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
            cases.push((frame, what));
        };
        let udp = 14 + ip;
        let inner = udp + 16 + 14 + if v6 { 40 } else { 20 };
        spoil(udp + 3, "another port");
        spoil(udp + 14, "another VNI");
        spoil(inner + 1, "an inner flow that is not");
        let mut broken = underlay_error(&sent, 1400, 500);
        *broken.last_mut().unwrap() ^= 1;
        cases.push((broken, "a wrong checksum"));
        for (frame, what) in cases {
            switch.send(UPLINK, &frame);
            let dropped = switch.dropped();
            assert_eq!(dropped.len(), 1, "{what}");
            assert_ne!(dropped[0].1, OffloadInvalid);
            switch.send(0, &whole);
            assert_eq!(switch.recv(UPLINK).len(), 1, "{what}");
        }
        // MTU 68, as well quoted as can be: never below the floor.
        switch.send(UPLINK, &underlay_error(&sent, 68, 500));
        let floor = if outer { 1280 - 70 } else { 552 - 50 };
        switch.send(0, &from_pod(0, 0, &datagram(v6, floor)));
        assert_eq!(switch.recv(UPLINK).len(), 1);
        switch.send(0, &whole);
        let told = error(&switch.recv(0)[0]).2;
        assert_eq!(told as usize, if v6 { floor.max(1280) } else { floor });
    });
}

#[test]
fn arp_inside_the_tunnel_is_answered_for_our_pods_and_not_learned() {
    for (underlay, outer) in [(Underlay::Ipv4First, false), (Underlay::Ipv6First, true)] {
        let mut switch = Switch::new(&node_config(0, underlay));
        let kernel = Mac([2, 0xaa, 0, 0, 0, 1]);
        let ask = |target: [u8; 4], sender: [u8; 4]| {
            let arp = frames::arp(1, (kernel, sender), (Mac::ZERO, target));
            let inner = frames::ethernet(Mac::BROADCAST, kernel, 0x0806, &arp);
            Tunnelled::new(1, 0, outer, &inner).frame()
        };
        for target in [[10, 1, 0, 10], [10, 1, 0, 0]] {
            switch.send(UPLINK, &ask(target, [10, 2, 0, 0]));
            let sent = switch.recv(UPLINK);
            let seen = dissect(&sent[0]);
            assert_eq!(seen.destination, node_address(1, outer), "back through the tunnel");
            assert_eq!(seen.inner[..6], kernel.0);
            assert_eq!(seen.inner[6..12], vtep(0).0);
            let answer = frames::arp(2, (vtep(0), target), (kernel, [10, 2, 0, 0]));
            assert_eq!(seen.inner[14..42], answer[..]);
        }
        for other in [[10, 2, 0, 11], [10, 1, 0, 77], [8, 8, 8, 8]] {
            switch.send(UPLINK, &ask(other, [10, 2, 0, 0]));
            assert_eq!(switch.recv(UPLINK).len(), 0, "{other:?}");
        }
        assert_eq!(switch.dropped(), []);
        // A sender that claims an address of this node is dropped with a reason.
        switch.send(UPLINK, &ask([10, 1, 0, 11], [10, 1, 0, 10]));
        assert_eq!(switch.dropped(), [(UPLINK as u16, SpoofedArp)]);
        assert!(switch.control.shared().fdb.dump(switch.now).is_empty(), "T-O5");
        switch.assert_adds_up();
    }
}

#[test]
fn neighbour_solicitations_inside_the_tunnel_are_answered() {
    let mut switch = Switch::new(&node_config(0, Underlay::Ipv4First));
    let kernel = Mac([2, 0xaa, 0, 0, 0, 1]);
    let (asker, target) = (ranges(1)[1].address(), pod(0, 0, true));
    let IpAddr::V6(bytes) = target else { unreachable!() };
    let mut group = [0; 16];
    group[..2].copy_from_slice(&[0xff, 2]);
    group[11..13].copy_from_slice(&[1, 0xff]);
    group[13..].copy_from_slice(&bytes.octets()[13..]);
    let body = [&bytes.octets()[..], &[1, 1], &kernel.0].concat();
    let to = IpAddr::from(group);
    let message = frames::icmp(asker, to, [135, 0], [0; 4], &body);
    let packet = frames::ip(asker, to, 58, 255, None, &message);
    let mac = Mac([0x33, 0x33, group[12], group[13], group[14], group[15]]);
    let inner = frames::ethernet(mac, kernel, 0x86dd, &packet);
    switch.send(UPLINK, &Tunnelled::new(1, 0, false, &inner).frame());
    assert_eq!(switch.dropped(), []);
    let seen = dissect(&switch.recv(UPLINK)[0]);
    assert_eq!(seen.inner[..6], kernel.0);
    assert_eq!(seen.inner[54], 136, "an advertisement");
    assert!(is_sound(&seen.inner));
    assert_eq!(seen.inner[seen.inner.len() - 6..], vtep(0).0);
}

#[test]
fn equal_cost_routers_share_flows_alike_on_every_node() {
    let mut config = node_config(0, Underlay::Ipv4First);
    let routers: Vec<IpAddr> = (1..=4).map(|n| IpAddr::from([192, 168, 0, 100 + n])).collect();
    let mac = |n: usize| Mac([2, 0, 0, 0, 1, n as u8]);
    config.neighbours = routers.iter().enumerate().map(|(n, ip)| (*ip, mac(n))).collect();
    let hops = |order: &[usize]| order.iter().map(|n| NextHop::Via(routers[*n])).collect();
    let route = |order: &[usize]| {
        let destination = "198.51.100.0/24".parse().unwrap();
        std::sync::Arc::new(Route { destination, next_hops: hops(order) })
    };
    let choices = |config: &Config, order: &[usize]| {
        let mut config = config.clone();
        config.routes = vec![route(order)];
        let mut switch = Switch::new(&config);
        let mut all = Vec::new();
        for port in 0..200 {
            let to = [198, 51, 100, 7].into();
            for _ in 0..2 {
                switch.send(0, &from_pod(0, 0, &udp(pod(0, 0, false), to, (1000 + port, 9), b"")));
            }
            let sent = switch.recv(UPLINK);
            assert_eq!((sent.len(), &sent[0][..6]), (2, &sent[1][..6]), "one flow, one way");
            assert_eq!(sent[0][6..12], underlay_mac(0).0);
            all.push(sent[0][..6].to_vec());
        }
        all
    };
    let one = choices(&config, &[0, 1, 2, 3]);
    assert_eq!(one, choices(&config, &[2, 0, 3, 1]), "their order does not matter");
    for n in 0..4 {
        let share = one.iter().filter(|to| **to == mac(n).0).count();
        assert!((25..=80).contains(&share), "{share} of 200");
    }
    // One router fewer: flows of the others stay.
    let fewer = choices(&config, &[0, 1, 2]);
    let moved = one.iter().zip(&fewer).filter(|(a, b)| **a != mac(3).0 && a != b).count();
    assert!(moved <= 8, "{moved} moved without need");

    // Replies to packets that came from a router go to the same router; other packets go to the
    // node.
    let mut routed = config.clone();
    routed.routes = vec![route(&[0, 1])];
    let mut switch = Switch::new(&routed);
    let (beyond, inside) = (IpAddr::from([198, 51, 100, 9]), pod(0, 0, false));
    let by_router = |from: IpAddr, to: IpAddr| {
        frames::ethernet(underlay_mac(0), mac(1), 0x0800, &udp(from, to, (7, 8), b"?"))
    };
    for n in 0..3 {
        switch.send(UPLINK, &by_router(beyond, inside));
        assert_eq!(switch.recv(0).len(), 1, "packet {n}: {:?}", switch.dropped());
        switch.send(0, &from_pod(0, 0, &udp(inside, beyond, (8, 7), b"!")));
        let answer = switch.recv(UPLINK);
        assert_eq!((answer.len(), &answer[0][..6]), (1, &mac(1).0[..]));
    }
    for (from, to) in [([198, 51, 99, 9].into(), inside), (beyond, node_address(0, false))] {
        switch.send(UPLINK, &by_router(from, to));
        assert_eq!(switch.dropped(), [(UPLINK as u16, NotForUs)], "{from} to {to}");
    }

    // A router that does not answer is treated as absent until it answers.
    let without = |gone: usize| {
        let mut config = config.clone();
        config.neighbours.remove(gone);
        config
    };
    for gone in 0..4 {
        let left = choices(&without(gone), &[0, 1, 2, 3]);
        let moved = one.iter().zip(&left).filter(|(a, b)| **a != mac(gone).0 && a != b).count();
        assert!(moved <= 8 && left.iter().all(|to| *to != mac(gone).0), "{moved} moved");
    }

    let mut unknown = config.clone();
    unknown.neighbours.clear();
    unknown.routes = vec![route(&[0])];
    let mut switch = Switch::new(&unknown);
    let to = [198, 51, 100, 7].into();
    switch.send(0, &from_pod(0, 0, &udp(pod(0, 0, false), to, (1, 9), b"")));
    assert_eq!(switch.dropped(), [(0, NoNeighbour)]);
    assert!(switch.recv(0).is_empty(), "it may be resolved before the sender tries again");
}
