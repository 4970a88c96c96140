//! A tunnel for each family: IPv4 packets over IPv4, IPv6 packets over IPv6, as dual-stack Flannel
//! has it with two devices on each node.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::DropReason;
use podswitch_core::config::{Config, RemoteNode, Underlay, VtepMac};
use podswitch_core::snapshot::Reach;
use podswitch_wire::addr::Mac;
use rig::overlay::*;
use rig::*;

/// MAC address of a node's second VTEP.
fn second(n: usize) -> Mac {
    Mac([0x8a, 0xc3, 0, 0, 6, n as u8])
}

/// Node `n`; the nodes in `dual` have two VTEPs each.
fn dual(n: usize, dual: &[usize]) -> Config {
    let mut config = node_config(n, Underlay::Ipv4First);
    let ends = |n| VtepMac { ipv4: vtep(n), ipv6: dual.contains(&n).then(|| second(n)) };
    config.node.vtep = ends(n);
    for node in &mut config.nodes {
        let number = usize::from(node.name.as_bytes()[1] - b'0');
        Arc::make_mut(node).vtep = ends(number);
    }
    config
}

fn reach(switch: &Switch, node: &str) -> [Reach; 2] {
    let snapshot = switch.control.snapshot();
    [false, true].map(|v6| snapshot.tunnels.reach(node, v6).expect("there is such a node"))
}

fn packet(from: usize, to: usize, v6: bool) -> Vec<u8> {
    udp(pod(from, 0, v6), pod(to, 0, v6), (1000, 2000), b"x")
}

/// Packets from node 0 to node 1: outer source and destination, inner MAC addresses.
fn sent(switch: &mut Switch, v6: bool) -> ([IpAddr; 2], [Mac; 2]) {
    let mut all = Vec::new();
    // One that misses and one that hits.
    for _ in 0..2 {
        switch.send(0, &from_pod(0, 0, &packet(0, 1, v6)));
        let frames = switch.recv(UPLINK);
        assert_eq!(frames.len(), 1, "{:?}", switch.dropped());
        let seen = dissect(&frames[0]);
        let mac = |at: usize| Mac(*seen.inner[at..].first_chunk().unwrap());
        all.push(([seen.source, seen.destination], [mac(0), mac(6)]));
    }
    assert_eq!(all[0], all[1]);
    all[0]
}

#[test]
fn two_ends_at_both_nodes_are_two_tunnels() {
    let mut pair = Pair([0, 1].map(|n| Switch::new(&dual(n, &[0, 1]))));
    for v6 in [false, true] {
        let (ends, macs) = sent(&mut pair.0[0], v6);
        assert_eq!(ends, [node_address(0, v6), node_address(1, v6)]);
        assert_eq!(macs, if v6 { [second(1), second(0)] } else { [vtep(1), vtep(0)] });
        for (from, to) in [(0, 1), (1, 0)] {
            pair.send(from, 0, &packet(from, to, v6));
            assert_eq!(pair.recv(to, 0).len(), 1);
        }
    }
    let [v4, v6] = reach(&pair.0[0], "n1");
    assert_ne!(v4, v6);
    pair.assert_no_drops();
    // The third node has one.
    let [v4, v6] = reach(&pair.0[0], "n2");
    assert!(v4 == v6 && matches!(v4, Reach::Tunnel(_)));
}

#[test]
fn one_tunnel_where_one_of_the_nodes_has_one_end() {
    for ends in [&[0][..], &[1]] {
        let mut pair = Pair([0, 1].map(|n| Switch::new(&dual(n, ends))));
        for v6 in [false, true] {
            let (addresses, macs) = sent(&mut pair.0[0], v6);
            assert_eq!(addresses, [node_address(0, false), node_address(1, false)]);
            assert_eq!(macs, [vtep(1), vtep(0)]);
            pair.send(1, 0, &packet(1, 0, v6));
            assert_eq!(pair.recv(0, 0).len(), 1);
        }
        pair.assert_no_drops();
    }
}

#[test]
fn without_one_family_all_packets_use_the_other() {
    for missing in [false, true] {
        for here in [false, true] {
            let mut config = dual(0, &[0, 1, 2]);
            if here {
                config.node.addresses.retain(|a| a.is_ipv6() != missing);
            } else {
                let node = Arc::make_mut(&mut config.nodes[0]);
                node.addresses.retain(|a| a.is_ipv6() != missing);
            }
            let mut switch = Switch::new(&config);
            for v6 in [false, true] {
                let (addresses, macs) = sent(&mut switch, v6);
                assert_eq!(addresses, [node_address(0, !missing), node_address(1, !missing)]);
                assert_eq!(macs, if missing { [vtep(1), vtep(0)] } else { [second(1), second(0)] });
            }
        }
    }
}

/// A node is accepted by either of its tunnels, with any inner family (a node that does not know
/// its own second VTEP yet sends everything by the first), and no other node by any tunnel.
#[test]
fn a_node_is_accepted_by_both_of_its_tunnels_only() {
    let mut switch = Switch::new(&dual(0, &[0, 1, 2]));
    for inside in [false, true] {
        for outside in [false, true] {
            let frame = inner(1, 0, &packet(1, 0, inside));
            let good = Tunnelled::new(1, 0, outside, &frame);
            for n in 0..2 {
                switch.send(UPLINK, &good.frame());
                assert_eq!(switch.recv(0).len(), 1, "{inside} in {outside}, packet {n}");
                // After those of the right node, whose flow this would be.
                let wrong = Tunnelled { source: node_address(2, outside), ..good.clone() };
                switch.send(UPLINK, &wrong.frame());
                assert_eq!(
                    switch.dropped(),
                    [(UPLINK as u16, DropReason::TunnelInnerSource)],
                    "{inside} in {outside}, packet {n}"
                );
                assert_eq!(switch.recv(0).len(), 0);
            }
        }
    }
}

#[test]
fn a_node_that_gets_or_loses_its_second_vtep_keeps_the_first() {
    let mut switch = Switch::new(&dual(0, &[0]));
    let [first, _] = reach(&switch, "n1");
    let other = reach(&switch, "n2");
    for _ in 0..2 {
        switch.control.apply(&dual(0, &[0, 1])).unwrap();
        let [v4, v6] = reach(&switch, "n1");
        assert!(v4 == first && v6 != first && !other.contains(&v6), "{v4:?} {v6:?}");
        // Flows follow.
        let (addresses, macs) = sent(&mut switch, true);
        assert_eq!(addresses, [node_address(0, true), node_address(1, true)]);
        assert_eq!(macs, [second(1), second(0)]);
        switch.control.apply(&dual(0, &[0])).unwrap();
        assert_eq!(reach(&switch, "n1"), [first; 2]);
        let (addresses, macs) = sent(&mut switch, true);
        assert_eq!(addresses, [node_address(0, false), node_address(1, false)]);
        assert_eq!(macs, [vtep(1), vtep(0)]);
        assert_eq!(reach(&switch, "n2"), other);
    }
    // Two nodes with two VTEPs each exchange their addresses.
    switch.control.apply(&dual(0, &[0, 1, 2])).unwrap();
    let before = [reach(&switch, "n1"), reach(&switch, "n2")];
    let mut config = dual(0, &[0, 1, 2]);
    let nodes: Vec<RemoteNode> = config.nodes.iter().map(|node| RemoteNode::clone(node)).collect();
    for (at, other) in nodes.iter().rev().enumerate() {
        let node = Arc::make_mut(&mut config.nodes[at]);
        (node.addresses, node.vtep) = (other.addresses.clone(), other.vtep);
    }
    switch.control.apply(&config).unwrap();
    assert_eq!([reach(&switch, "n1"), reach(&switch, "n2")], before);
    for v6 in [false, true] {
        let (addresses, _) = sent(&mut switch, v6);
        assert_eq!(addresses, [node_address(0, v6), node_address(2, v6)]);
    }
}

/// The MAC address of one may be known while the other's is not.
#[test]
fn one_vtep_without_a_neighbour_does_not_affect_the_other() {
    for unknown in [false, true] {
        let mut config = dual(0, &[0, 1]);
        Arc::make_mut(&mut config.nodes[0]).underlay_mac = Mac::ZERO;
        let all = config.neighbours.clone();
        let known = (node_address(1, !unknown), underlay_mac(1));
        let mut switch = Switch::new(&dual(0, &[0, 1]));
        let both = reach(&switch, "n1");
        for _ in 0..2 {
            config.neighbours = [&all[..], &[known]].concat();
            switch.control.apply(&config).unwrap();
            let now = reach(&switch, "n1");
            assert_eq!(now[usize::from(unknown)], Reach::NoNeighbour);
            assert!(matches!(now[usize::from(!unknown)], Reach::Tunnel(_)));
            sent(&mut switch, !unknown);
            switch.send(0, &from_pod(0, 0, &packet(0, 1, unknown)));
            assert_eq!(switch.dropped(), [(0, DropReason::NoNeighbour)]);
            config.neighbours.push((node_address(1, unknown), underlay_mac(1)));
            switch.control.apply(&config).unwrap();
            let again = reach(&switch, "n1");
            assert!(
                again[0] != again[1] && again[usize::from(!unknown)] == now[usize::from(!unknown)]
            );
            assert_eq!(both[0] == again[0], both[1] == again[1]);
            sent(&mut switch, unknown);
        }
    }
}

/// The path MTU of one tunnel does not apply to the other.
#[test]
fn each_tunnel_has_its_own_path_mtu() {
    for v6 in [false, true] {
        let mut switch = Switch::new(&dual(0, &[0, 1]));
        let mut tunnelled = Vec::new();
        for v6 in [false, true] {
            let long = udp(pod(0, 0, v6), pod(1, 0, v6), (1000, 2000), &[7; 1350]);
            switch.send(0, &from_pod(0, 0, &long));
            tunnelled.push(switch.recv(UPLINK).remove(0));
        }
        let quoted = &tunnelled[usize::from(v6)][14..];
        let (router, own) = (node_address(9, v6), node_address(0, v6));
        let (kind, rest) = if v6 { ([2, 0], [0, 0, 5, 20]) } else { ([3, 4], [0, 0, 5, 20]) };
        let message = frames::icmp(router, own, kind, rest, quoted);
        let error = frames::ip(router, own, frames::icmp_protocol(own), 64, None, &message);
        let ethertype = frames::ethertype(own);
        switch.send(UPLINK, &frames::ethernet(underlay_mac(0), underlay_mac(2), ethertype, &error));
        assert_eq!(switch.dropped(), []);
        let snapshot = switch.control.snapshot();
        let now = switch.now;
        for (of, reach) in [false, true].into_iter().zip(reach(&switch, "n1")) {
            let Reach::Tunnel(end) = reach else { panic!("{reach:?}") };
            let tunnel = snapshot.tunnels.to(end).unwrap();
            let head = if of { 70 } else { 50 };
            let mtu = if of == v6 { 1300 } else { 1500 };
            assert_eq!(tunnel.inner_mtu(now), mtu - head, "IPv6: {of}, learned for: {v6}");
        }
    }
}
