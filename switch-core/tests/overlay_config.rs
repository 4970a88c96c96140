//! Errors in the overlay's configuration are refused by name, and flow entries do not change the
//! result for tunnelled traffic.

use podswitch_testkit::rig;

use std::sync::Arc;

use podswitch_core::config::{
    Config, NextHop, PortRole, RemoteNode, Route, TunnelConfig, Underlay, VtepMac,
};
use podswitch_core::packet::Packet;
use podswitch_wire::addr::Mac;
use rig::overlay::*;
use rig::random::Rng;
use rig::*;

/// The errors that `spoil` causes, as "object: field".
fn refused(spoil: impl FnOnce(&mut Config)) -> Vec<String> {
    let mut switch = Switch::new(&node_config(0, Underlay::Ipv4First));
    let before = switch.control.snapshot();
    let mut config = node_config(0, Underlay::Ipv4First);
    spoil(&mut config);
    let errors = switch.control.apply(&config).expect_err("is wrong").0;
    assert!(Arc::ptr_eq(&before, &switch.control.snapshot()), "nothing changed");
    assert!(errors.iter().all(|e| !e.reason.is_empty()));
    errors.iter().map(|e| format!("{}: {}", e.object, e.field)).collect()
}

fn change(config: &mut Config, at: usize, with: impl FnOnce(&mut RemoteNode)) {
    let mut node = (*config.nodes[at]).clone();
    with(&mut node);
    config.nodes[at] = Arc::new(node);
}

fn uplink(config: &mut Config, with: impl FnOnce(&mut Mac, &mut u16, &mut bool, &mut bool)) {
    let PortRole::Uplink { mac, mtu, tunnel, direct } = &mut config.ports[UPLINK].role else {
        panic!("the uplink");
    };
    with(mac, mtu, tunnel, direct);
}

#[test]
fn errors_of_the_overlay_are_named() {
    let port = |field: &str| vec![format!("Port/4: {field}")];
    assert_eq!(refused(|c| uplink(c, |mac, _, _, _| *mac = Mac::BROADCAST)), port("mac"));
    assert_eq!(refused(|c| uplink(c, |_, mtu, _, _| *mtu = 600)), port("mtu"));
    let nothing =
        refused(|c| uplink(c, |_, _, tunnel, direct| (*tunnel, *direct) = (false, false)));
    assert_eq!(nothing, port("role"));
    let twice = refused(|c| c.ports[0].role = c.ports[UPLINK].role.clone());
    assert!(twice.contains(&"Port/4: tunnel".to_owned()), "{twice:?}");
    assert!(twice.contains(&"Port/4: direct".to_owned()), "{twice:?}");

    let vtep = |mac| VtepMac { ipv4: mac, ipv6: None };
    let node = |field: &str| vec![format!("Node/n2: {field}")];
    assert_eq!(refused(|c| change(c, 1, |n| n.vtep = vtep(self::vtep(1)))), node("vtep"));
    assert_eq!(refused(|c| change(c, 1, |n| n.vtep = vtep(Mac::BROADCAST))), node("vtep"));
    let taken = refused(|c| change(c, 1, |n| n.addresses = vec![node_address(1, false)]));
    assert_eq!(taken, node("addresses[0]"));
    let own = refused(|c| change(c, 1, |n| n.addresses = vec![node_address(0, false)]));
    assert_eq!(own, node("addresses[0]"));
    let group = refused(|c| change(c, 1, |n| n.addresses = vec!["224.0.0.1".parse().unwrap()]));
    assert_eq!(group, node("addresses[0]"));
    let local = refused(|c| c.node.vtep = vtep(Mac::ZERO));
    assert_eq!(local, ["Node/n0: vtep"; 2], "of both families");
    let port = refused(|c| c.tunnel = Some(TunnelConfig { port: 0, ..TunnelConfig::default() }));
    assert!(port.contains(&"Tunnel: port".to_owned()), "{port:?}");
    let route = refused(|c| {
        let destination = "198.51.100.0/24".parse().unwrap();
        let next_hops = vec![NextHop::Host, NextHop::Via("ff02::1".parse().unwrap())];
        c.routes.push(Arc::new(Route { destination, next_hops }));
    });
    assert_eq!(route, ["Route/198.51.100.0/24: next_hops[1]"]);
}

/// A frame that the switch of node 0 may receive.
fn next(rng: &mut Rng) -> (usize, Vec<u8>) {
    let v6 = rng.chance(50);
    let ports = (1000 + rng.below(3) as u16, 2000 + rng.below(2) as u16);
    let (ours, far) = (rng.below(2), (1 + rng.below(2), rng.below(2)));
    let (a, b) = (pod(0, ours, v6), pod(far.0, far.1, v6));
    let payload = vec![7; rng.below(40)];
    if rng.chance(30) {
        return (ours, from_pod(0, ours, &udp(a, b, ports, &payload)));
    }
    let packet = if rng.chance(20) {
        echo(b, a, &payload, 64)
    } else {
        udp(b, a, (ports.1, ports.0), &payload)
    };
    // Mostly through the VTEP behind which the source is.
    let through = if rng.chance(90) { far.0 } else { 1 + rng.below(2) };
    let outer_v6 = rng.chance(30);
    let mut tunnelled = Tunnelled::new(through, 0, outer_v6, &inner(through, 0, &packet));
    if rng.chance(20) {
        tunnelled.traffic_class = rng.below(4) as u8;
    }
    if rng.chance(15) {
        let at = rng.below(tunnelled.inner.len());
        tunnelled.inner[at] ^= 1 << rng.below(8);
    }
    let mut frame = tunnelled.frame();
    if rng.chance(5) {
        let at = rng.below(frame.len());
        frame[at] ^= 1 << rng.below(8);
    }
    if rng.chance(5) {
        frame.truncate(rng.below(frame.len()));
    }
    (UPLINK, frame)
}

#[test]
fn the_flow_table_changes_nothing_for_tunnelled_traffic() {
    let config = node_config(0, Underlay::Ipv4First);
    for seed in 0..4 {
        let mut rng = Rng::new(seed);
        let mut switches = [Switch::new(&config), Switch::new(&config)];
        for n in 0..6_000 {
            let (port, frame) = next(&mut rng);
            switches[1].forget(&config);
            let seen = switches.each_mut().map(|switch| {
                switch.send_packet(port, Packet::from_frame(&frame));
                let out: Vec<_> = (0..=UPLINK).map(|port| switch.recv(port)).collect();
                (out, switch.dropped())
            });
            let [cached, uncached] = &seen;
            assert_eq!(cached, uncached, "seed {seed}, packet {n} by {port}: {frame:02x?}");
        }
        let hits = switches.each_ref().map(|s| s.count(|c| c.hits.get()));
        assert!(hits[0] > 2_000 && hits[1] == 0, "{hits:?}");
        switches.iter().for_each(Switch::assert_adds_up);
    }
}
