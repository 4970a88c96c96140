//! Services whose backends are on another node: two switches connected by VXLAN, both families.
#![allow(clippy::disallowed_types, reason = "tests store what an observer reports")]

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::DropReason;
use podswitch_core::config::{Config, Underlay};
use podswitch_policy::rule::{NetworkPolicy, Peer, Peers, Ports, Protocol, Rule, Selector};
use podswitch_policy::service::model::{
    Endpoint, EndpointSlice, Service, ServicePort, ServiceType, SlicePort, TrafficPolicy, family_of,
};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Parsed, parse};
use rig::overlay::*;
use rig::{HOST, Switch, framed, frames};

const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0xc, 1]);
const NODE_PORT: u16 = 30_080;

fn vip(v6: bool) -> IpAddr {
    if v6 { "fd00:96::10".parse().unwrap() } else { [10, 96, 0, 10].into() }
}

fn outside(v6: bool) -> IpAddr {
    if v6 { "2001:db8::7".parse().unwrap() } else { [203, 0, 113, 7].into() }
}

/// UDP 80 → 8080, NodePort 30080, to pod 1 of node `backend`.
fn add_service(config: &mut Config, backend: usize, local: bool) {
    let port = ServicePort {
        protocol: Protocol::Udp,
        node_port: Some(NODE_PORT),
        ..ServicePort::tcp("", 80)
    };
    let web = Service {
        kind: ServiceType::NodePort,
        ports: vec![port],
        external_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        ..Service::cluster_ip("default", "web", [vip(false), vip(true)])
    };
    config.services = vec![Arc::new(web)];
    let slice = |v6| {
        Arc::new(EndpointSlice {
            namespace: "default".into(),
            name: format!("web-{v6}").into(),
            service: "web".into(),
            family: family_of(vip(v6)),
            ports: vec![SlicePort { protocol: Protocol::Udp, ..SlicePort::tcp("", 8080) }],
            endpoints: vec![Endpoint::ready(pod(backend, 1, v6)).on(&format!("n{backend}"))],
        })
    };
    config.slices = [false, true].map(slice).to_vec();
}

/// Ingress of pods with node 1's numbers is isolated; `allowed` are the allowed sources.
fn isolate(config: &mut Config, allowed: IpAddr) {
    let cidr = podswitch_core::config::Cidr::host(allowed);
    let peers = Peers::AnyOf(vec![Peer::IpBlock { cidr, except: Vec::new() }]);
    config.policies = vec![Arc::new(NetworkPolicy {
        cookie: "NetworkPolicy/default/only".into(),
        namespace: "default".into(),
        name: "only".into(),
        pods: Selector::everything(),
        ingress: Some(vec![Rule { peers, ports: Ports::Any }]),
        egress: None,
    })];
}

fn pair(change: impl Fn(&mut Config)) -> Pair {
    Pair([0, 1].map(|n| {
        let mut config = node_config(n, Underlay::Ipv4First);
        change(&mut config);
        Switch::new(&config)
    }))
}

/// A raw frame from a client on node `n`'s underlay.
fn from_outside(pair: &mut Pair, n: usize, packet: &[u8]) {
    let ethertype = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let frame = frames::ethernet(underlay_mac(n), CLIENT_MAC, ethertype, packet);
    pair.0[n].send(UPLINK, &frame);
}

/// Carries tunnel packets between the two; returns other packets.
fn carry(pair: &mut Pair) -> Vec<(usize, Vec<u8>)> {
    let mut others = Vec::new();
    loop {
        let mut moved = false;
        for n in 0..2 {
            for frame in pair.0[n].recv(UPLINK) {
                if frame[..6] == underlay_mac(1 - n).0 {
                    pair.0[1 - n].send(UPLINK, &frame);
                    moved = true;
                } else {
                    others.push((n, frame));
                }
            }
        }
        if !moved {
            return others;
        }
    }
}

#[track_caller]
fn one(frames: Vec<Vec<u8>>) -> (Vec<u8>, Parsed) {
    assert_eq!(frames.len(), 1);
    let frame = frames.into_iter().next().unwrap();
    assert!(is_sound(&frame));
    let parsed = parse(&frame, &HashKey::new(1)).unwrap();
    (frame, parsed)
}

#[test]
fn a_pod_reaches_a_backend_on_the_other_node() {
    for v6 in [false, true] {
        let mut pair = pair(|config| add_service(config, 1, false));
        let (client, backend) = (pod(0, 0, v6), pod(1, 1, v6));
        for n in 0..3 {
            pair.send(0, 0, &udp(client, vip(v6), (4000, 80), &[n; 20]));
            let (_, parsed) = one(pair.recv(1, 1));
            assert_eq!((parsed.key.src_addr(), parsed.key.src_port), (client, 4000), "kept (S8)");
            assert_eq!((parsed.key.dst_addr(), parsed.key.dst_port), (backend, 8080));
            pair.send(1, 1, &udp(backend, client, (8080, 4000), &[n; 20]));
            let (_, parsed) = one(pair.recv(0, 0));
            assert_eq!((parsed.key.src_addr(), parsed.key.src_port), (vip(v6), 80));
        }
        pair.assert_no_drops();
    }
}

/// The client reaches node 0, the backend is on node 1, which must reply through node 0.
#[test]
fn a_client_outside_reaches_a_backend_on_the_other_node() {
    for v6 in [false, true] {
        let mut pair = pair(|config| add_service(config, 1, false));
        let (client, backend) = (outside(v6), pod(1, 1, v6));
        for n in 0..3 {
            let ask = udp(client, node_address(0, v6), (4000, NODE_PORT), &[n; 20]);
            from_outside(&mut pair, 0, &ask);
            assert_eq!(carry(&mut pair).len(), 0);
            let (_, parsed) = one(pair.recv(1, 1));
            assert_eq!(parsed.key.src_addr(), node_address(0, v6), "masqueraded (S8)");
            assert!(parsed.key.src_port >= 44_000);
            let answer = udp(backend, parsed.key.src_addr(), (8080, parsed.key.src_port), &[n; 9]);
            pair.0[1].send(1, &from_pod(1, 1, &answer));
            let others = carry(&mut pair);
            let (frame, parsed) = one(others.into_iter().map(|(_, frame)| frame).collect());
            assert_eq!(frame[..6], CLIENT_MAC.0, "to the sender of the request");
            assert_eq!(frame[6..12], underlay_mac(0).0);
            assert_eq!(parsed.key.src_addr(), node_address(0, v6));
            assert_eq!((parsed.key.src_port, parsed.key.dst_port), (NODE_PORT, 4000));
        }
        pair.assert_no_drops();
    }
}

/// Local policy: no endpoint here, so the packet is not sent on (S3); with a local endpoint, the client's address is
/// kept.
#[test]
fn local_policy_at_the_uplink() {
    for v6 in [false, true] {
        let mut pair = pair(|config| add_service(config, 1, true));
        let ask = |n| udp(outside(v6), node_address(n, v6), (4000, NODE_PORT), b"?");
        from_outside(&mut pair, 0, &ask(0));
        assert_eq!(carry(&mut pair).len(), 0);
        assert_eq!(pair.0[0].dropped(), [(UPLINK as u16, DropReason::ServiceNoLocalEndpoints)]);
        from_outside(&mut pair, 1, &ask(1));
        let (_, parsed) = one(pair.recv(1, 1));
        assert_eq!(parsed.key.src_addr(), outside(v6));
    }
}

/// If another node's pod uses this node's port, this node masquerades it: otherwise the reply would not come back
/// through this node.
#[test]
fn a_pod_uses_another_nodes_port() {
    for v6 in [false, true] {
        let mut pair = pair(|config| add_service(config, 0, false));
        let (client, backend) = (pod(0, 0, v6), pod(0, 1, v6));
        pair.send(0, 0, &udp(client, node_address(1, v6), (4000, NODE_PORT), b"?"));
        let (_, parsed) = one(pair.recv(0, 1));
        assert_eq!(parsed.key.src_addr(), node_address(1, v6));
        let answer = udp(backend, parsed.key.src_addr(), (8080, parsed.key.src_port), b"!");
        pair.send(0, 1, &answer);
        let (_, parsed) = one(pair.recv(0, 0));
        assert_eq!((parsed.key.src_addr(), parsed.key.src_port), (node_address(1, v6), NODE_PORT));
        pair.assert_no_drops();
    }
}

/// The entry node evaluates policy for the masqueraded client; the backend's node trusts it, for these source ports
/// only (N15, S8).
#[test]
fn policy_of_a_remote_backend_is_evaluated_with_the_real_client() {
    for v6 in [false, true] {
        for allowed in [true, false] {
            let friend = if allowed { outside(v6) } else { pod(0, 2, v6) };
            let mut pair = pair(|config| {
                add_service(config, 1, false);
                isolate(config, friend);
            });
            let ask = udp(outside(v6), node_address(0, v6), (4000, NODE_PORT), b"?");
            from_outside(&mut pair, 0, &ask);
            carry(&mut pair);
            assert_eq!(pair.recv(1, 1).len(), usize::from(allowed));
            let at_entry = pair.0[0].dropped();
            let expected: &[_] =
                if allowed { &[] } else { &[(UPLINK as u16, DropReason::PolicyIngress)] };
            assert_eq!(at_entry, expected);
            // The node's own process, from a port that is not reserved for this, is an ordinary peer.
            let ask = udp(node_address(0, v6), pod(1, 1, v6), (5000, 8080), b"?");
            pair.0[0].send(HOST, &framed(HOST, &ask));
            carry(&mut pair);
            assert_eq!(pair.recv(1, 1).len(), 0);
            assert_eq!(pair.0[1].dropped(), [(UPLINK as u16, DropReason::PolicyIngress)]);
        }
    }
}

/// Packets to no Service are not for the switch (the node's own stack handles them), and are not forwarded.
#[test]
fn nothing_else_is_accepted_from_the_uplink() {
    for v6 in [false, true] {
        let mut pair = pair(|config| add_service(config, 1, false));
        for (to, port) in [(node_address(0, v6), 22), (pod(0, 0, v6), 8080), (pod(1, 1, v6), 8080)]
        {
            from_outside(&mut pair, 0, &udp(outside(v6), to, (4000, port), b"?"));
            assert_eq!(carry(&mut pair).len(), 0);
            assert_eq!(pair.recv(0, 0).len() + pair.recv(1, 1).len(), 0);
            assert_eq!(pair.0[0].dropped(), [(UPLINK as u16, DropReason::NotForUs)], "{to}");
        }
    }
}
