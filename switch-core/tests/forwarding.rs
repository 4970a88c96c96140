//! Frames in, frames out: routing between pods and to the node.

use podswitch_testkit::rig;

use etherparse::SlicedPacket;
use podswitch_core::action::DropReason;
use rig::*;

fn checks_out(frame: &[u8]) {
    let parsed = podswitch_wire::parse::parse(frame, &podswitch_wire::flow_key::HashKey::new(1))
        .expect("parses");
    assert!(podswitch_wire::checksum::verify_l4(frame, &parsed), "layer-4 checksum");
}

#[test]
fn udp_is_forwarded_between_pods_and_back() {
    let mut switch = Switch::new(&config());
    for round in 0..3 {
        switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"question"));
        let out = switch.recv(1);
        assert_eq!(out.len(), 1, "round {round}");
        let frame = &out[0];
        assert_eq!(&frame[..6], &pod_mac(1).0);
        assert_eq!(&frame[6..12], &GATEWAY.0);
        assert_eq!(frame[22], 63, "one router hop");
        checks_out(frame);
        switch.send(1, &udp4(1, pod_v4(0), (53, 1000), b"answer"));
        assert_eq!(switch.recv(0).len(), 1);
        switch.send(0, &udp6(0, pod_v6(1), (1000, 53), b"question"));
        let out = switch.recv(1);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0][21], 63);
        checks_out(&out[0]);
    }
    assert_eq!(switch.dropped(), []);
    let counters = switch.control.workers().next().unwrap().counters.clone();
    assert_eq!(counters.misses.get(), 3, "one for each direction of each flow that was seen");
    assert_eq!(counters.hits.get(), 6);
    assert_eq!(switch.control.connections().len(), 2);
    switch.assert_adds_up();
}

#[test]
fn other_addresses_go_to_the_node_or_are_dropped() {
    let mut switch = Switch::new(&config());
    switch.send(0, &udp4(0, [8, 8, 8, 8], (1000, 53), b"x"));
    assert_eq!(switch.recv(HOST).len(), 1, "off-cluster");
    switch.send(0, &udp4(0, [192, 168, 0, 1], (1000, 53), b"x"));
    assert_eq!(switch.recv(HOST).len(), 1, "the node itself");
    switch.send(0, &udp4(0, [10, 1, 0, 99], (1000, 53), b"x"));
    assert_eq!(switch.dropped(), [(0, DropReason::UnknownPod)]);
    let answer = switch.recv(0);
    assert_eq!(answer.len(), 1);
    let sliced = SlicedPacket::from_ethernet(&answer[0]).unwrap();
    assert!(matches!(sliced.transport, Some(etherparse::TransportSlice::Icmpv4(_))));
    switch.assert_adds_up();
}

#[test]
fn spoofed_sources_change_nothing() {
    let mut switch = Switch::new(&config());
    let mut wrong_mac = udp4(0, pod_v4(1), (1, 2), b"x");
    wrong_mac[6..12].copy_from_slice(&pod_mac(2).0);
    switch.send(0, &wrong_mac);
    switch.send(0, &{
        let mut f = udp4(2, pod_v4(1), (1, 2), b"x");
        f[6..12].copy_from_slice(&pod_mac(0).0);
        f
    });
    assert_eq!(switch.dropped(), [(0, DropReason::SpoofedMac), (0, DropReason::SpoofedIp)]);
    assert_eq!(switch.control.connections().len(), 0);
    assert!(switch.recv(1).is_empty());
    // Not even for a flow that exists.
    switch.send(2, &udp4(2, pod_v4(1), (1, 2), b"x"));
    assert_eq!(switch.recv(1).len(), 1);
    switch.send(0, &udp4(2, pod_v4(1), (1, 2), b"x"));
    assert_eq!(switch.dropped(), [(0, DropReason::SpoofedMac)]);
    assert!(switch.recv(1).is_empty());
    switch.assert_adds_up();
}

#[test]
fn ttl_ends_with_an_icmp_error() {
    let mut switch = Switch::new(&config());
    switch.send(0, &udp4_ttl(0, pod_v4(1), (1, 2), b"x", 1));
    assert_eq!(switch.dropped(), [(0, DropReason::TtlExceeded)]);
    assert_eq!(switch.recv(0).len(), 1);
    assert!(switch.recv(1).is_empty());
}

#[test]
fn two_workers_make_one_connection() {
    let mut switch = Switch::with_workers(&config(), 2);
    switch.send_by(
        0,
        0,
        &tcp4(0, 1, (1000, 80), &Tcp { seq: 1, ack: None, flags: "S", payload: 0 }),
    );
    switch.send_by(
        1,
        1,
        &tcp4(1, 0, (80, 1000), &Tcp { seq: 9, ack: Some(2), flags: "S", payload: 0 }),
    );
    switch.send_by(
        0,
        0,
        &tcp4(0, 1, (1000, 80), &Tcp { seq: 2, ack: Some(10), flags: "", payload: 10 }),
    );
    switch.send_by(
        1,
        1,
        &tcp4(1, 0, (80, 1000), &Tcp { seq: 10, ack: Some(12), flags: "", payload: 0 }),
    );
    let list = switch.control.connections();
    assert_eq!(list.len(), 1);
    use podswitch_core::flow::tcp::TcpState::Established;
    assert_eq!(list[0].tcp, Some([Established, Established]));
    assert_eq!(list[0].packets, [2, 2]);
    switch.assert_adds_up();
}

#[test]
fn the_node_may_have_more_than_one_mac_address() {
    let mut switch = Switch::new(&config());
    let mut frame = udp4(0, pod_v4(1), (1, 2), b"x");
    frame[26..30].copy_from_slice(&[192, 168, 0, 1]);
    fix_ipv4(&mut frame);
    for mac in [HOST_MAC.0, [2, 9, 9, 9, 9, 9]] {
        frame[6..12].copy_from_slice(&mac);
        switch.send(HOST, &frame);
        assert_eq!(switch.recv(1).len(), 1);
    }
    frame[6] |= 1;
    switch.send(HOST, &frame);
    assert_eq!(switch.dropped(), [(HOST as u16, DropReason::SourceMulticast)]);
}
