//! Packets obey network policy: first packets and later ones, both directions, live changes.

use podswitch_testkit::rig;

use std::sync::Arc;

use podswitch_core::action::DropReason;
use podswitch_core::config::Config;
use podswitch_policy::rule::{
    Labels, NetworkPolicy, Peer, Peers, PortRule, Ports, Protocol, Rule, Selector,
};
use rig::*;

fn policy(name: &str, ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>) -> Arc<NetworkPolicy> {
    Arc::new(NetworkPolicy {
        cookie: format!("NetworkPolicy/default/{name}").into(),
        namespace: "default".into(),
        name: name.into(),
        pods: Selector::everything(),
        ingress,
        egress,
    })
}

/// The rig's pods with the label `n` = their number.
fn labelled(policies: Vec<Arc<NetworkPolicy>>) -> Config {
    let mut config = config();
    for (n, endpoint) in config.endpoints.iter_mut().enumerate() {
        let mut changed = (**endpoint).clone();
        changed.workload.labels = Labels::new([("n".into(), n.to_string().into())]);
        *endpoint = Arc::new(changed);
    }
    config.policies = policies;
    config
}

fn from_pod_0_to(port: u16) -> Rule {
    let zero = Selector::of_labels(Labels::new([("n".into(), "0".into())]));
    Rule {
        peers: Peers::AnyOf(vec![Peer::Selectors { pods: Some(zero), namespaces: None }]),
        ports: Ports::AnyOf(vec![PortRule::Range {
            protocol: Protocol::Udp,
            first: port,
            last: port,
        }]),
    }
}

#[test]
fn only_allowed_packets_come_in_and_replies_go_out() {
    let allow = policy("allow", Some(vec![from_pod_0_to(53)]), Some(vec![]));
    // Only ingress is isolated for the client pod: its own egress must be allowed.
    let allow = Arc::new(NetworkPolicy { egress: None, ..(*allow).clone() });
    let mut switch = Switch::new(&labelled(vec![allow]));
    for _ in 0..2 {
        switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
        assert_eq!(switch.recv(1).len(), 1);
        switch.send(1, &udp4(1, pod_v4(0), (53, 1000), b"y"));
        assert_eq!(switch.recv(0).len(), 1, "the reply");
    }
    switch.send(0, &udp4(0, pod_v4(1), (1000, 54), b"x"));
    switch.send(2, &udp4(2, pod_v4(1), (1000, 53), b"x"));
    switch.send(0, &udp6(0, pod_v6(1), (1000, 54), b"x"));
    switch.send(0, &tcp4(0, 1, (1000, 53), &Tcp { seq: 1, ack: None, flags: "S", payload: 0 }));
    // The direction that no rule allows, from a port from which only replies may come.
    switch.send(1, &udp4(1, pod_v4(0), (53, 1001), b"x"));
    assert_eq!(switch.dropped(), [0, 2, 0, 0, 1].map(|port| (port, DropReason::PolicyIngress)),);
    let counts: Vec<_> = switch
        .control
        .policy_counts()
        .into_iter()
        .map(|c| (c.direction, c.rule, c.decided))
        .collect();
    use podswitch_policy::rule::Direction::Ingress;
    assert_eq!(counts, [(Ingress, None, 5), (Ingress, Some(0), 1)], "denied packets, connections");
    // The node always reaches its pods (N16).
    let mut from_node = udp4(0, pod_v4(1), (1, 54), b"x");
    from_node[6..12].copy_from_slice(&HOST_MAC.0);
    from_node[26..30].copy_from_slice(&[192, 168, 0, 1]);
    fix_ipv4(&mut from_node);
    switch.send(HOST, &from_node);
    assert_eq!(switch.dropped(), []);
    assert_eq!(switch.recv(1).len(), 1);
    switch.assert_adds_up();
}

#[test]
fn live_connections_are_re_evaluated_at_their_next_packet() {
    let allow = policy("allow", Some(vec![from_pod_0_to(53)]), None);
    let deny = policy("allow", Some(vec![]), None);
    let mut switch = Switch::new(&labelled(vec![allow.clone()]));
    let question = udp4(0, pod_v4(1), (1000, 53), b"x");
    let answer = udp4(1, pod_v4(0), (53, 1000), b"y");
    switch.send(0, &question);
    switch.send(1, &answer);
    assert_eq!((switch.recv(1).len(), switch.recv(0).len()), (1, 1));
    switch.control.apply(&labelled(vec![deny])).unwrap();
    switch.send(0, &question);
    switch.send(1, &answer);
    assert_eq!(
        switch.dropped(),
        [(0, DropReason::PolicyIngress), (1, DropReason::PolicyIngress)],
        "both directions, at once"
    );
    switch.control.apply(&labelled(vec![allow])).unwrap();
    switch.send(0, &question);
    switch.send(1, &answer);
    assert_eq!((switch.recv(1).len(), switch.recv(0).len()), (1, 1));
    assert_eq!(switch.control.connections().len(), 1, "the same connection throughout");
    switch.assert_adds_up();
}
