//! Packets from the underlay that must not be delivered (threats T-O1 to T-O6), each with its drop
//! reason.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::config::{PortRole, Routing, TunnelConfig, Underlay};
use podswitch_core::packet::{GsoType, Offload, Packet};
use podswitch_wire::addr::Mac;
use rig::frames;
use rig::overlay::*;
use rig::*;

/// Checks that nothing leaves and that the frame is dropped for `reason`.
fn refused(switch: &mut Switch, port: usize, frame: &[u8], reason: DropReason, what: &str) {
    switch.send(port, frame);
    let dropped = switch.dropped();
    assert_eq!(dropped, [(port as u16, reason)], "{what}");
    for port in 0..=UPLINK {
        assert_eq!(switch.recv(port).len(), 0, "{what}: left by {port}");
    }
    switch.assert_adds_up();
}

fn both(test: impl Fn(bool, Switch)) {
    test(false, Switch::new(&node_config(0, Underlay::Ipv4First)));
    test(true, Switch::new(&node_config(0, Underlay::Ipv6First)));
    // With a tunnel for each family, no more senders are trusted.
    for v6 in [false, true] {
        test(v6, Switch::new(&node_config(0, Underlay::Inner)));
    }
}

/// A valid packet from pod 1 of node 1 to pod 0 of node 0, in a frame.
fn good(v6: bool) -> Vec<u8> {
    inner(1, 0, &udp(pod(1, 1, v6), pod(0, 0, v6), (1, 2), b"good"))
}

#[test]
fn invalid_outer_packets_are_dropped() {
    both(|v6, mut switch| {
        let plain = Tunnelled::new(1, 0, v6, &good(v6));
        switch.send(UPLINK, &plain.frame());
        assert_eq!(switch.recv(0).len(), 1, "the valid one arrives");

        let cases = [
            (
                Tunnelled { header: [0, 0, 0, 0, 0, 0, 1, 0], ..plain.clone() },
                TunnelHeader,
                "I flag",
            ),
            (
                Tunnelled { header: [8, 0, 0, 0, 0, 0, 2, 0], ..plain.clone() },
                TunnelUnknownVni,
                "VNI",
            ),
            (
                Tunnelled { source: node_address(6, v6), ..plain.clone() },
                TunnelUnknownVtep,
                "stranger",
            ),
            (
                Tunnelled { source: node_address(0, v6), ..plain.clone() },
                TunnelUnknownVtep,
                "ourselves",
            ),
            (
                Tunnelled { destination: node_address(7, v6), ..plain.clone() },
                NotForUs,
                "another's",
            ),
            (Tunnelled { inner: vec![0; 13], ..plain.clone() }, TunnelHeader, "no inner frame"),
            (
                Tunnelled { inner: frames::tagged(&plain.inner, 5), ..plain.clone() },
                TunnelInnerVlan,
                "inner tag",
            ),
        ];
        for (packet, reason, what) in cases {
            refused(&mut switch, UPLINK, &packet.frame(), reason, what);
        }
        // Reserved bits are ignored.
        let reserved = Tunnelled { header: [0xff, 1, 2, 3, 0, 0, 1, 9], ..plain.clone() };
        switch.send(UPLINK, &reserved.frame());
        assert_eq!(switch.recv(0).len(), 1);

        // If there is a UDP checksum, it must be right.
        let mut frame = Tunnelled { bare: false, ..plain.clone() }.frame();
        switch.send(UPLINK, &frame);
        assert_eq!(switch.recv(0).len(), 1);
        *frame.last_mut().unwrap() ^= 1;
        refused(&mut switch, UPLINK, &frame, TunnelChecksum, "outer checksum");
        if v6 {
            let none = Tunnelled { bare: true, ..plain.clone() };
            refused(&mut switch, UPLINK, &none.frame(), TunnelChecksum, "none over IPv6");
        }
        // Truncated at any byte: no panic, and nothing is delivered.
        let frame = plain.frame();
        for len in 0..frame.len() {
            switch.send(UPLINK, &frame[..len]);
            assert_eq!(switch.recv(0).len(), 0, "{len} bytes");
        }
        switch.dropped();
        // Fragments of tunnel packets.
        let (src, dst) = (plain.source, plain.destination);
        let packet = plain.packet();
        let message = &packet[if v6 { 40 } else { 20 }..];
        let pieces = frames::fragments((src, dst), 17, 3, message, &[48]);
        let reasons = [TunnelFragment, NotForUs];
        for (piece, reason) in pieces.iter().zip(reasons) {
            let frame =
                frames::ethernet(underlay_mac(0), underlay_mac(2), frames::ethertype(src), piece);
            // A later fragment has no ports; its datagram is not delivered either.
            switch.send(UPLINK, &frame);
            let dropped = switch.dropped();
            if reason == TunnelFragment {
                assert_eq!(dropped, [(UPLINK as u16, reason)]);
            }
            assert_eq!(switch.recv(0).len(), 0);
        }
    });
}

#[test]
fn no_node_sends_for_another_nodes_pods() {
    both(|v6, mut switch| {
        let to = pod(0, 0, v6);
        let off: IpAddr = if v6 { "2001:db8::1" } else { "8.8.8.8" }.parse().unwrap();
        let loopback: IpAddr = if v6 { "::1" } else { "127.0.0.1" }.parse().unwrap();
        let sources = [
            (pod(2, 0, v6), "another node's pod"),
            (pod(0, 1, v6), "a pod of ours"),
            (node_address(2, v6), "another node"),
            (node_address(0, v6), "this node"),
            (off, "off the cluster"),
            (loopback, "a martian"),
        ];
        for (source, what) in sources {
            let packet = inner(1, 0, &udp(source, to, (1, 2), b"spoof"));
            let frame = Tunnelled::new(1, 0, v6, &packet).frame();
            refused(&mut switch, UPLINK, &frame, TunnelInnerSource, what);
        }
        // The node's own address, and the address that Flannel gives it, are allowed.
        let first = ranges(1)[usize::from(v6)].address();
        for source in [node_address(1, v6), first] {
            let packet = inner(1, 0, &udp(source, to, (1, 2), b"node"));
            switch.send(UPLINK, &Tunnelled::new(1, 0, v6, &packet).frame());
            assert_eq!(switch.recv(0).len(), 1, "{source}");
        }
        // Nobody can use the flow of another node.
        switch.send(UPLINK, &Tunnelled::new(1, 0, v6, &good(v6)).frame());
        assert_eq!(switch.recv(0).len(), 1);
        let frame =
            Tunnelled { source: node_address(2, v6), ..Tunnelled::new(1, 0, v6, &good(v6)) };
        refused(&mut switch, UPLINK, &frame.frame(), TunnelInnerSource, "another's flow");
    });
}

#[test]
fn pods_are_on_their_node_not_where_ranges_say() {
    both(|v6, _| {
        let underlay = if v6 { Underlay::Ipv6First } else { Underlay::Ipv4First };
        let mut config = node_config(0, underlay);
        // Pod 0 of node 2 is on node 1 now, with its address, and there are no ranges.
        for endpoint in &mut config.endpoints {
            if endpoint.cookie.as_str() == "Pod/default/p20" {
                *endpoint = Arc::new(podswitch_core::config::Endpoint {
                    node: "n1".into(),
                    ..(**endpoint).clone()
                });
            }
        }
        let mut bare = config.clone();
        for node in &mut bare.nodes {
            *node = Arc::new(podswitch_core::config::RemoteNode {
                pod_cidrs: Vec::new(),
                ..(**node).clone()
            });
        }
        for config in [config, bare] {
            let mut switch = Switch::new(&config);
            let (ours, moved) = (pod(0, 0, v6), pod(2, 0, v6));
            switch.send(0, &from_pod(0, 0, &udp(ours, moved, (5, 6), b"x")));
            assert_eq!(dissect(&switch.recv(UPLINK)[0]).destination, node_address(1, v6));
            let packet = inner(1, 0, &udp(moved, ours, (6, 5), b"x"));
            switch.send(UPLINK, &Tunnelled::new(1, 0, v6, &packet).frame());
            assert_eq!(switch.recv(0).len(), 1);
            let frame = Tunnelled::new(2, 0, v6, &packet).frame();
            refused(&mut switch, UPLINK, &frame, TunnelInnerSource, "where it was");
        }
    });
}

#[test]
fn only_this_nodes_pods_are_reachable() {
    both(|v6, mut switch| {
        let from = pod(1, 1, v6);
        let off: IpAddr = if v6 { "2001:db8::1" } else { "8.8.8.8" }.parse().unwrap();
        for to in [pod(2, 0, v6), node_address(2, v6), off, pod(1, 0, v6)] {
            let packet = inner(1, 0, &udp(from, to, (1, 2), b"x"));
            let frame = Tunnelled::new(1, 0, v6, &packet).frame();
            refused(&mut switch, UPLINK, &frame, TunnelInnerDestination, &to.to_string());
        }
        // MAC addresses: only the VTEP's own is accepted.
        let good = udp(from, pod(0, 0, v6), (1, 2), b"x");
        let to = |mac: Mac| {
            let inner = frames::ethernet(mac, vtep(1), frames::ethertype(from), &good);
            Tunnelled::new(1, 0, v6, &inner).frame()
        };
        let strays = [
            (Mac([2, 0, 0, 0, 0, 9]), TunnelInnerDestination),
            (mac_of_pod(0, 0), TunnelInnerDestination),
            (GATEWAY, TunnelInnerDestination),
            (Mac::BROADCAST, MulticastUnsupported),
            (Mac([1, 0x80, 0xc2, 0, 0, 0]), BridgeReserved),
        ];
        for (mac, reason) in strays {
            refused(&mut switch, UPLINK, &to(mac), reason, &mac.to_string());
        }
        let group =
            frames::ethernet(vtep(0), Mac([1, 0, 0, 0, 0, 1]), frames::ethertype(from), &good);
        let frame = Tunnelled::new(1, 0, v6, &group).frame();
        refused(&mut switch, UPLINK, &frame, SourceMulticast, "inner source is a group");
    });
}

#[test]
fn no_tunnel_packets_inside_the_tunnel_or_from_pods() {
    both(|v6, mut switch| {
        let (ours, theirs) = (pod(0, 0, v6), pod(1, 1, v6));
        // Nested up to eight deep.
        let mut packet =
            udp(theirs, ours, (50_000, VXLAN), &Tunnelled::new(1, 0, v6, &good(v6)).packet());
        for depth in 1..=8 {
            let frame = Tunnelled::new(1, 0, v6, &inner(1, 0, &packet)).frame();
            refused(&mut switch, UPLINK, &frame, TunnelNested, &format!("{depth} deep"));
            packet = udp(theirs, ours, (50_000, VXLAN), &frame);
        }
        // To this node and to others, from any source port.
        for (to, sport) in [(0, 50_000), (1, 50_000), (2, 4789)] {
            let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &good(v6)].concat();
            let packet = udp(ours, node_address(to, v6), (sport, VXLAN), &payload);
            refused(&mut switch, 0, &from_pod(0, 0, &packet), TunnelFromPod, "from a pod");
        }
        // Nor to a pod of this node or another: one rule for all, and also through a Service.
        for to in [pod(0, 1, v6), theirs] {
            let packet = udp(ours, to, (50_000, VXLAN), b"x");
            refused(&mut switch, 0, &from_pod(0, 0, &packet), TunnelFromPod, "from pod to pod");
        }
        // A pod of this node that uses this port number gets its replies, and so does one that
        // communicates with another node's pod.
        switch.send(1, &from_pod(0, 1, &udp(pod(0, 1, v6), ours, (VXLAN, 9), b"x")));
        assert_eq!(switch.recv(0).len(), 1);
        switch.send(0, &from_pod(0, 0, &udp(ours, pod(0, 1, v6), (9, VXLAN), b"x")));
        assert_eq!(switch.recv(1).len(), 1);
        switch.send(0, &from_pod(0, 0, &udp(ours, theirs, (VXLAN, 9), b"x")));
        assert_eq!(switch.recv(UPLINK).len(), 1);
        let answer = inner(1, 0, &udp(theirs, ours, (9, VXLAN), b"x"));
        switch.send(UPLINK, &Tunnelled::new(1, 0, v6, &answer).frame());
        assert_eq!(switch.recv(0).len(), 1);
        // Other ports of nodes are not restricted here.
        let packet = udp(ours, node_address(1, v6), (50_000, 8472), b"x");
        switch.send(0, &from_pod(0, 0, &packet));
        assert_eq!(switch.recv(UPLINK).len(), 1);
    });
}

#[test]
fn unencapsulated_frames_from_the_underlay_reach_no_pod() {
    both(|v6, mut switch| {
        let to = pod(0, 0, v6);
        let off: IpAddr = if v6 { "2001:db8::1" } else { "8.8.8.8" }.parse().unwrap();
        let plain = |src: IpAddr, dst: IpAddr| {
            let packet = udp(src, dst, (1, 2), b"x");
            frames::ethernet(underlay_mac(0), underlay_mac(2), frames::ethertype(src), &packet)
        };
        let cases = [
            (plain(off, to), NotForUs, "from off the cluster to a pod"),
            (plain(off, node_address(0, v6)), NotForUs, "to a port that no Service has"),
            (plain(node_address(1, v6), to), NotForUs, "a node outside the tunnel"),
            (plain(pod(1, 1, v6), to), SpoofedIp, "a pod outside the tunnel"),
            (plain(pod(0, 1, v6), to), SpoofedIp, "as a pod of ours"),
            (plain(node_address(0, v6), to), SpoofedIp, "as this node"),
        ];
        for (frame, reason, what) in cases {
            refused(&mut switch, UPLINK, &frame, reason, what);
        }
        let arp =
            frames::arp(1, (underlay_mac(2), [192, 168, 0, 9]), (Mac::ZERO, [192, 168, 0, 1]));
        let arp = frames::ethernet(Mac::BROADCAST, underlay_mac(2), 0x0806, &arp);
        refused(&mut switch, UPLINK, &arp, NotForUs, "the node's kernel answers ARP");
    });
}

#[test]
fn an_uplink_without_direct_traffic_takes_the_tunnel_only() {
    let mut config = node_config(0, Underlay::Ipv4First);
    config.ports[UPLINK].role =
        PortRole::Uplink { mac: underlay_mac(0), mtu: 1500, tunnel: true, direct: false };
    let mut switch = Switch::new(&config);
    let packet = udp([8, 8, 8, 8].into(), pod(0, 0, false), (1, 2), b"x");
    let frame = frames::ethernet(underlay_mac(0), underlay_mac(2), 0x0800, &packet);
    refused(&mut switch, UPLINK, &frame, NotForUs, "plain");
    switch.send(UPLINK, &Tunnelled::new(1, 0, false, &good(false)).frame());
    assert_eq!(switch.recv(0).len(), 1);
}

#[test]
fn without_a_common_family_or_neighbour_packets_are_dropped() {
    let mut config = node_config(0, Underlay::Ipv4First);
    config.node.addresses = vec![node_address(0, true)];
    let mut node = (*config.nodes[0]).clone();
    node.addresses = vec![node_address(1, false)];
    config.nodes[0] = Arc::new(node.clone());
    let mut switch = Switch::new(&config);
    let packet = from_pod(0, 0, &udp(pod(0, 0, false), pod(1, 1, false), (1, 2), b"x"));
    switch.send(0, &packet);
    assert_eq!(switch.dropped(), [(0, TunnelNoSource)]);
    assert_eq!(switch.recv(0).len(), 1, "the pod gets an error");
    // The other node is reached over the family that both nodes have.
    let packet6 = from_pod(0, 0, &udp(pod(0, 0, false), pod(2, 1, false), (1, 2), b"x"));
    switch.send(0, &packet6);
    assert_eq!(dissect(&switch.recv(UPLINK)[0]).destination, node_address(2, true));

    let mut config = node_config(0, Underlay::Ipv4First);
    node.underlay_mac = Mac::ZERO;
    config.nodes[0] = Arc::new(node);
    let mut switch = Switch::new(&config);
    switch.send(0, &packet);
    assert_eq!(switch.dropped(), [(0, NoNeighbour)]);
    config.neighbours = vec![(node_address(1, false), Mac([2, 7, 7, 7, 7, 7]))];
    switch.control.apply(&config).unwrap();
    switch.recv(0);
    switch.send(0, &packet);
    assert_eq!(dissect(&switch.recv(UPLINK)[0]).macs.0, Mac([2, 7, 7, 7, 7, 7]));

    config.ports.pop();
    switch.control.apply(&config).unwrap();
    switch.send(0, &packet);
    assert_eq!(switch.dropped(), [(0, PortDown)], "no uplink");
}

#[test]
fn outer_offloads_of_a_node_on_the_same_machine_are_accepted() {
    both(|v6, mut switch| {
        let l4 = if v6 { 54 } else { 34 };
        // The outer checksum is left to the device.
        let frame = Tunnelled { bare: false, ..Tunnelled::new(1, 0, v6, &good(v6)) }.frame();
        let mut packet = Packet::from_frame(&frame);
        packet.bytes_mut()[l4 + 6..l4 + 8].copy_from_slice(&[1, 2]);
        packet.offload = Offload {
            csum_partial: true,
            csum_start: l4 as u16,
            csum_offset: 6,
            ..Offload::default()
        };
        switch.send_packet(UPLINK, packet);
        let got = switch.ends[0].recv().expect("arrived");
        assert!(
            !got.offload.csum_partial && !got.offload.csum_valid,
            "the inner checksum was not verified"
        );
        assert!(is_sound(got.bytes()));

        // Several tunnel packets as one UDP GSO packet (UDP_SEGMENT).
        let one = Tunnelled { bare: false, ..Tunnelled::new(1, 0, v6, &good(v6)) };
        let unit = [&one.header[..], &one.inner].concat();
        let payload = unit.repeat(100);
        let message = frames::udp(one.source, one.destination, (50_000, VXLAN), &payload);
        let packet = frames::ip(one.source, one.destination, 17, 64, None, &message);
        let frame = frames::ethernet(
            underlay_mac(0),
            underlay_mac(1),
            frames::ethertype(one.source),
            &packet,
        );
        let mut packet = Packet::with_capacity(podswitch_core::packet::Pool::LARGE);
        packet.fill(&frame);
        packet.offload = Offload {
            gso_type: GsoType::UdpL4,
            gso_size: unit.len() as u16,
            csum_partial: true,
            csum_start: l4 as u16,
            csum_offset: 6,
            ..Offload::default()
        };
        switch.send_packet(UPLINK, packet);
        let got = switch.recv(0);
        assert_eq!(got.len(), 100);
        assert!(got.iter().all(|frame| is_sound(frame)));
        switch.assert_adds_up();

        // A partial checksum that is not the inner packet's own is not completed.
        let mut packet = Packet::from_frame(&Tunnelled::new(1, 0, v6, &good(v6)).frame());
        let start = l4 as u16 + 16 + 14;
        packet.offload = Offload {
            csum_partial: true,
            csum_start: start,
            csum_offset: 12,
            ..Offload::default()
        };
        switch.send_packet(UPLINK, packet);
        assert_eq!(switch.dropped(), [(UPLINK as u16, OffloadInvalid)]);
        assert_eq!(switch.recv(0).len(), 0);
    });
}

#[test]
fn nodes_on_one_segment_can_do_without_a_tunnel() {
    for v6 in [false, true] {
        let mut config = node_config(0, Underlay::Ipv4First);
        config.tunnel = Some(TunnelConfig { routing: Routing::HostGw, ..TunnelConfig::default() });
        let mut switch = Switch::new(&config);
        let (ours, theirs) = (pod(0, 0, v6), pod(1, 1, v6));
        switch.send(0, &from_pod(0, 0, &udp(ours, theirs, (1, 2), b"x")));
        let sent = switch.recv(UPLINK);
        assert_eq!(
            (sent.len(), &sent[0][..6], &sent[0][6..12]),
            (1, &underlay_mac(1).0[..], &underlay_mac(0).0[..])
        );
        assert_eq!((ttl(&sent[0]), is_sound(&sent[0])), (63, true));
        let back = |mac: Mac, port: u16| {
            let packet = udp(theirs, ours, (port, 1), b"x");
            frames::ethernet(underlay_mac(0), mac, frames::ethertype(ours), &packet)
        };
        switch.send(UPLINK, &back(underlay_mac(1), 2));
        assert_eq!(switch.recv(0).len(), 1, "the answer");
        switch.send(UPLINK, &back(underlay_mac(1), 3));
        assert_eq!(switch.recv(0).len(), 1, "a connection from there");
        refused(&mut switch, UPLINK, &back(underlay_mac(2), 2), SpoofedMac, "another node");
        refused(&mut switch, UPLINK, &back(Mac([2, 4, 4, 4, 4, 4]), 9), SpoofedMac, "anybody");
        let frame = Tunnelled::new(1, 0, false, &good(v6)).frame();
        refused(&mut switch, UPLINK, &frame, NotForUs, "through a tunnel");

        config.ports.pop();
        let mut switch = Switch::new(&config);
        switch.send(0, &from_pod(0, 0, &udp(ours, theirs, (1, 2), b"x")));
        assert_eq!(switch.recv(HOST).len(), 1, "by the node's own routes");
    }
}
