//! Two switches connected by VXLAN, for each inner and outer family: packets from one node's pod
//! arrive at the other's unchanged, and replies return.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::DropReason;
use podswitch_core::config::{RemoteNode, Underlay, VtepMac};
use podswitch_core::packet::{GsoType, Offload, Packet, Pool};
use podswitch_wire::addr::Mac;
use rig::overlay::*;
use rig::*;

const UNDERLAYS: [(Underlay, bool); 2] =
    [(Underlay::Ipv4First, false), (Underlay::Ipv6First, true)];

/// Inner family, underlay: all four.
fn each(test: impl Fn(bool, bool, Pair)) {
    for v6 in [false, true] {
        for (underlay, outer_v6) in UNDERLAYS {
            test(v6, outer_v6, Pair::new(underlay));
        }
        test(v6, v6, Pair::new(Underlay::Inner));
    }
}

#[test]
fn pods_of_two_nodes_reach_each_other() {
    each(|v6, outer_v6, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
        // First packets, and those that hit.
        for n in 0..40u8 {
            pair.0[0].send(0, &from_pod(0, 0, &udp(a, b, (1000, 2000), &[n; 30])));
            let carried = pair.carry();
            assert_eq!(carried.len(), 1);
            let seen = dissect(&carried[0].1);
            assert_eq!(seen.source, node_address(0, outer_v6));
            assert_eq!(seen.destination, node_address(1, outer_v6));
            assert_eq!(seen.macs, (underlay_mac(1), underlay_mac(0)));
            assert_eq!((seen.vni, seen.port, seen.ttl), (1, VXLAN, 64));
            assert!(seen.source_port >= 49152 && seen.checksum_holds && seen.dont_fragment);
            assert_eq!(seen.checksum == 0, !outer_v6);
            assert_eq!(seen.inner[..6], vtep(1).0);
            assert_eq!(seen.inner[6..12], vtep(0).0);
            assert_eq!((ttl(&seen.inner), is_sound(&seen.inner)), (63, true));

            let got = pair.recv(1, 1);
            assert_eq!(got.len(), 1);
            assert_eq!((ttl(&got[0]), is_sound(&got[0])), (62, true));
            assert_eq!(got[0][..6], mac_of_pod(1, 1).0);
            assert_eq!(got[0][6..12], GATEWAY.0);
            assert!(got[0].ends_with(&[n; 30]));

            pair.send(1, 1, &udp(b, a, (2000, 1000), &[n; 9]));
            let got = pair.recv(0, 0);
            assert_eq!(got.len(), 1);
            assert_eq!((ttl(&got[0]), is_sound(&got[0])), (62, true));
        }
        pair.assert_no_drops();
        for switch in &pair.0 {
            assert_eq!(switch.count(|c| c.misses.get()), 2, "one for each direction");
            assert_eq!(switch.count(|c| c.hits.get()), 2 * 39);
        }
    });
}

#[test]
fn pings_and_tcp_connections_work() {
    each(|v6, _, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
        for _ in 0..3 {
            pair.send(0, 0, &echo(a, b, b"ping", 64));
            assert_eq!(pair.recv(1, 1).len(), 1);
        }
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        const FIN: u8 = 1;
        let segments = [
            (0, (100, 0, SYN), 0),
            (1, (500, 101, SYN | ACK), 0),
            (0, (101, 501, ACK), 0),
            (0, (101, 501, ACK), 1000),
            (1, (501, 1101, ACK), 300),
            (0, (1101, 801, ACK | FIN), 0),
            (1, (801, 1102, ACK | FIN), 0),
            (0, (1102, 802, ACK), 0),
        ];
        for (from, head, len) in segments {
            let (src, dst) = if from == 0 { (a, b) } else { (b, a) };
            let ports = if from == 0 { (4000, 80) } else { (80, 4000) };
            pair.send(from, from, &tcp(src, dst, ports, head, &vec![7; len]));
            let got = pair.recv(1 - from, 1 - from);
            assert_eq!(got.len(), 1, "{head:?}");
            assert!(is_sound(&got[0]));
        }
        pair.assert_no_drops();
    });
}

#[test]
fn the_source_port_is_the_flows_own() {
    let mut pair = Pair::new(Underlay::Ipv4First);
    let mut ports = Vec::new();
    for sport in 0..50 {
        let packet = udp(pod(0, 0, false), pod(1, 1, false), (1000 + sport, 9), b"x");
        let mut of_flow = Vec::new();
        for _ in 0..3 {
            pair.0[0].send(0, &from_pod(0, 0, &packet));
            of_flow.extend(pair.carry().iter().map(|(_, frame)| dissect(frame).source_port));
        }
        assert_eq!(of_flow.len(), 3);
        assert!(of_flow.iter().all(|port| *port == of_flow[0]), "slow path and hits agree");
        ports.push(of_flow[0]);
    }
    ports.sort_unstable();
    ports.dedup();
    assert!(ports.len() > 45, "{} of 50 differ", ports.len());
}

/// A TCP GSO packet of a pod with a partial checksum.
fn gso_packet(v6: bool, payload: usize, size: u16) -> Packet {
    let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
    let packet = tcp(a, b, (4000, 80), (1, 1, 16), &vec![0x5a; payload]);
    let frame = from_pod(0, 0, &packet);
    let mut packet = Packet::with_capacity(Pool::LARGE);
    packet.fill(&frame);
    let l4 = if v6 { 54 } else { 34 };
    unfinish(&mut packet, a, b, 6, l4, 16);
    packet.offload.gso_type = if v6 { GsoType::TcpV6 } else { GsoType::TcpV4 };
    packet.offload.gso_size = size;
    packet.offload.hdr_len = l4 as u16 + 20;
    packet
}

/// Writes the pseudo-header sum into the checksum field, as a sender does that leaves the rest to
/// offloads.
fn unfinish(packet: &mut Packet, a: IpAddr, b: IpAddr, protocol: u8, l4: usize, field: usize) {
    let frame = packet.bytes_mut();
    let len = frame.len() - l4;
    let pseudo = !frames::l4_checksum(a, b, protocol, &[]);
    let pseudo = u32::from(pseudo) + len as u32;
    let pseudo = ((pseudo & 0xffff) + (pseudo >> 16)) as u16;
    frame[l4 + field..l4 + field + 2].copy_from_slice(&pseudo.to_be_bytes());
    packet.offload = Offload {
        csum_partial: true,
        csum_start: l4 as u16,
        csum_offset: field as u16,
        ..Offload::default()
    };
}

#[test]
fn gso_packets_pass_unsegmented() {
    each(|v6, _, mut pair| {
        for payload in [30_000, 64_000] {
            pair.0[0].send_packet(0, gso_packet(v6, payload, 1300));
            let mut total = 0;
            let mut pieces = 0;
            while let Some(packet) = pair.0[0].ends[UPLINK].recv() {
                pieces += 1;
                let mut copy = Packet::with_capacity(Pool::LARGE);
                copy.fill(packet.bytes());
                copy.offload = packet.offload;
                if !packet.offload.is_gso() {
                    let seen = dissect(packet.bytes());
                    assert!(seen.checksum_holds && is_sound(&seen.inner));
                }
                pair.0[1].send_packet(UPLINK, copy);
            }
            while let Some(packet) = pair.0[1].ends[1].recv() {
                let head = if v6 { 74 } else { 54 };
                total += packet.len() - head;
                if packet.offload.csum_partial {
                    assert_eq!(packet.offload.csum_start as usize, head - 20);
                } else {
                    assert!(is_sound(packet.bytes()));
                }
            }
            assert_eq!((total, pieces), (payload, 1), "memory ports accept it unsegmented");
        }
        pair.assert_no_drops();
    });
}

#[test]
fn a_gso_packet_too_long_for_the_tunnel_is_segmented_before() {
    each(|v6, _, mut pair| {
        let payload = 65_535 - if v6 { 20 } else { 40 };
        pair.0[0].send_packet(0, gso_packet(v6, payload, 1300));
        let carried = pair.carry();
        assert_eq!(carried.len(), payload.div_ceil(1300));
        for (_, frame) in &carried {
            let seen = dissect(frame);
            assert!(seen.checksum_holds && is_sound(&seen.inner));
        }
        assert_eq!(pair.recv(1, 1).len(), carried.len());
        pair.assert_no_drops();
    });
}

#[test]
fn partial_checksums_are_carried_or_completed() {
    each(|v6, outer_v6, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
        for odd in [0, 1] {
            let frame = from_pod(0, 0, &udp(a, b, (1, 2), &vec![0x77; 100 + odd]));
            let mut packet = Packet::from_frame(&frame);
            unfinish(&mut packet, a, b, 17, if v6 { 54 } else { 34 }, 6);
            pair.0[0].send_packet(0, packet);
            let mut sent = pair.0[0].ends[UPLINK].recv().expect("went on");
            assert!(sent.offload.csum_partial, "memory ports accept them");
            let mut copy = Packet::from_frame(sent.bytes());
            copy.offload = sent.offload;
            pair.0[1].send_packet(UPLINK, copy);
            let mut got = pair.0[1].ends[1].recv().expect("arrived");
            assert!(got.offload.csum_partial, "as it was sent");
            podswitch_core::packet::finish_checksum(&mut got).unwrap();
            assert!(is_sound(got.bytes()));

            // The same, completed on egress: the outer checksum is right then.
            podswitch_core::packet::finish_checksum(&mut sent).unwrap();
            let seen = dissect(sent.bytes());
            assert!(seen.checksum_holds && is_sound(&seen.inner), "over IPv6: {outer_v6}");
        }
        pair.assert_no_drops();
    });
}

#[test]
fn congestion_marks_are_copied_in_and_out() {
    // RFC 6040 figure 4: inner by outer, in the order of the two bits.
    const NOT: u8 = 0;
    const ECT1: u8 = 1;
    const ECT0: u8 = 2;
    const CE: u8 = 3;
    let figure = [
        (NOT, [Some(NOT), Some(NOT), Some(NOT), None]),
        (ECT1, [Some(ECT1), Some(ECT1), Some(ECT1), Some(CE)]),
        (ECT0, [Some(ECT0), Some(ECT1), Some(ECT0), Some(CE)]),
        (CE, [Some(CE); 4]),
    ];
    each(|v6, outer_v6, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
        for (mark, row) in figure {
            let mut packet = udp(a, b, (7, 9), b"marked");
            set_class(&mut packet, 0xb8 | mark);
            // Encapsulation: ECN as inside, DSCP as configured, which is zero.
            pair.0[0].send(0, &from_pod(0, 0, &packet));
            let carried = pair.carry();
            assert_eq!(dissect(&carried[0].1).traffic_class, mark);
            let got = pair.recv(1, 1);
            assert_eq!(class(&got[0]), 0xb8 | mark);
            for (outer, expected) in (0..4).zip(row) {
                let tunnelled = Tunnelled {
                    traffic_class: outer,
                    ..Tunnelled::new(0, 1, outer_v6, &inner(0, 1, &packet))
                };
                pair.0[1].send(UPLINK, &tunnelled.frame());
                let got = pair.recv(1, 1);
                let marks: Vec<u8> = got.iter().map(|f| class(f)).collect();
                match expected {
                    Some(mark) => assert_eq!(marks, [0xb8 | mark], "{outer} over {mark}"),
                    None => {
                        assert_eq!(marks, []);
                        let dropped = pair.0[1].dropped();
                        assert_eq!(dropped, [(UPLINK as u16, DropReason::TunnelEcn)]);
                    }
                }
            }
        }
        pair.assert_no_drops();
    });
}

#[test]
fn fragments_of_a_datagram_arrive() {
    each(|v6, _, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
        let message = frames::udp(a, b, (5, 6), &vec![3; 2000]);
        let mut ports = Vec::new();
        for piece in frames::fragments((a, b), 17, 77, &message, &[1200]) {
            pair.0[0].send(0, &from_pod(0, 0, &piece));
            ports.extend(pair.carry().iter().map(|(_, frame)| dissect(frame).source_port));
        }
        assert_eq!(ports.len(), 2);
        assert_eq!(ports[0], ports[1], "they use the same path");
        assert_eq!(pair.recv(1, 1).len(), 2);
        pair.assert_no_drops();
    });
}

#[test]
fn the_node_itself_reaches_pods_of_other_nodes() {
    each(|v6, _, mut pair| {
        let (node, b) = (node_address(0, v6), pod(1, 1, v6));
        pair.0[0].send(HOST, &framed(HOST, &udp(node, b, (1, 2), b"hello")));
        pair.carry();
        assert_eq!(pair.recv(1, 1).len(), 1);
        pair.send(1, 1, &udp(b, node, (2, 1), b"back"));
        let got = pair.0[0].recv(HOST);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0][..6], HOST_MAC.0);
        pair.assert_no_drops();
    });
}

/// Node 1 as node 0 sees it, with changes.
fn change_remote(pair: &mut Pair, with: impl FnOnce(&mut RemoteNode)) {
    let mut config = node_config(0, Underlay::Ipv4First);
    let mut node = (*config.nodes[0]).clone();
    with(&mut node);
    config.nodes[0] = Arc::new(node);
    pair.0[0].control.apply(&config).unwrap();
}

#[test]
fn flows_follow_a_node_that_changes() {
    let mut pair = Pair::new(Underlay::Ipv4First);
    let (a, b) = (pod(0, 0, false), pod(1, 1, false));
    let packet = from_pod(0, 0, &udp(a, b, (1, 2), b"x"));
    let next = |pair: &mut Pair| {
        pair.0[0].send(0, &packet);
        let sent = pair.0[0].recv(UPLINK);
        assert_eq!(sent.len(), 1);
        dissect(&sent[0])
    };
    assert_eq!(next(&mut pair).inner[..6], vtep(1).0);
    let end = pair.0[0].control.snapshot().tunnels.reach("n1", false);

    let other = Mac([2, 9, 9, 9, 9, 9]);
    change_remote(&mut pair, |node| node.vtep = VtepMac { ipv4: other, ipv6: None });
    assert_eq!(next(&mut pair).inner[..6], other.0, "its VTEP MAC");
    change_remote(&mut pair, |node| node.addresses = vec!["192.168.0.77".parse().unwrap()]);
    let seen = next(&mut pair);
    assert_eq!(seen.destination, IpAddr::from([192, 168, 0, 77]), "its address");
    assert_eq!(seen.inner[..6], vtep(1).0);
    change_remote(&mut pair, |node| node.underlay_mac = other);
    assert_eq!(next(&mut pair).macs.0, other, "its link-layer address");
    assert_eq!(pair.0[0].control.snapshot().tunnels.reach("n1", false), end, "its index stays");

    // Packets from the old address are not accepted any more.
    change_remote(&mut pair, |node| node.addresses = vec!["192.168.0.77".parse().unwrap()]);
    let answer = udp(b, a, (2, 1), b"x");
    let mut from = Tunnelled::new(1, 0, false, &inner(1, 0, &answer));
    pair.0[0].send(UPLINK, &from.frame());
    assert_eq!(pair.0[0].dropped(), [(UPLINK as u16, DropReason::TunnelUnknownVtep)]);
    from.source = "192.168.0.77".parse().unwrap();
    pair.0[0].send(UPLINK, &from.frame());
    assert_eq!(pair.recv(0, 0).len(), 1);

    // When a node is removed, its pods cannot be reached any more.
    let mut config = node_config(0, Underlay::Ipv4First);
    config.nodes.remove(0);
    pair.0[0].control.apply(&config).unwrap();
    pair.0[0].send(0, &packet);
    assert_eq!(pair.0[0].dropped(), [(0, DropReason::NoRoute)]);
    assert_eq!(pair.0[0].recv(UPLINK).len(), 0);
    pair.0[0].control.apply(&node_config(0, Underlay::Ipv4First)).unwrap();
    assert_eq!(next(&mut pair).destination, node_address(1, false));
}

#[test]
fn two_nodes_can_swap_their_addresses() {
    let mut switch = Switch::new(&node_config(0, Underlay::Ipv4First));
    let mut config = node_config(0, Underlay::Ipv4First);
    let swapped: Vec<_> = [0, 1]
        .map(|i| {
            let mut node = (*config.nodes[i]).clone();
            node.addresses = config.nodes[1 - i].addresses.clone();
            node.vtep = config.nodes[1 - i].vtep;
            Arc::new(node)
        })
        .to_vec();
    config.nodes = swapped;
    let before = switch.control.snapshot().tunnels.reach("n2", false);
    switch.control.apply(&config).unwrap();
    assert_eq!(switch.control.snapshot().tunnels.reach("n2", false), before);
    switch.send(0, &from_pod(0, 0, &udp(pod(0, 0, false), pod(1, 1, false), (1, 2), b"x")));
    let sent = switch.recv(UPLINK);
    assert_eq!(dissect(&sent[0]).destination, node_address(2, false));
}
