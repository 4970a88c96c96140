//! The counters of a policy: the rule that allowed a connection counts once, when it is opened; the
//! rule that denied a packet counts every denied packet. Evaluation by itself counts nothing.

use podswitch_testkit::rig;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use podswitch_core::action::DropReason::{ConnectionLimit, PolicyEgress, PolicyIngress};
use podswitch_core::config::Config;
use podswitch_core::control::{Options, policy_rules};
use podswitch_core::engine::Limits;
use podswitch_core::id::PortId;
use podswitch_core::resolve::{Decision, DenialCounter, Query, resolve};
use podswitch_policy::rule::Direction::{Egress, Ingress};
use podswitch_policy::rule::{
    Direction, NetworkPolicy, Peers, PortRule, Ports, Protocol, Rule, Selector,
};
use podswitch_wire::flow_key::{FlowKey, proto};
use rig::frames::{icmp, icmp_protocol, ip, udp};
use rig::*;

/// Isolates both directions of every pod. UDP and TCP to `ports` are allowed, one rule each.
fn isolated(ports: &[u16]) -> Config {
    let rule = |&port: &u16| Rule {
        peers: Peers::Any,
        ports: Ports::AnyOf(
            [Protocol::Udp, Protocol::Tcp]
                .map(|protocol| PortRule::Range { protocol, first: port, last: port })
                .into(),
        ),
    };
    let rules: Vec<Rule> = ports.iter().map(rule).collect();
    let policy = NetworkPolicy {
        cookie: "NetworkPolicy/default/isolated".into(),
        namespace: "default".into(),
        name: "isolated".into(),
        pods: Selector::everything(),
        ingress: Some(rules.clone()),
        egress: Some(rules),
    };
    Config { policies: vec![Arc::new(policy)], ..config() }
}

/// Counts that are not zero: direction, rule, count.
fn counts(switch: &Switch) -> Vec<(Direction, Option<usize>, u64)> {
    let counts = switch.control.policy_counts().into_iter();
    counts.map(|count| (count.direction, count.rule, count.decided)).collect()
}

/// Rules that never matched are listed with those that did, except rules of policies that apply to
/// no pod here. Earlier counts of such a policy are kept.
#[test]
fn rules_that_never_matched_are_listed() {
    let mut config = isolated(&[53, 54]);
    let mut elsewhere = NetworkPolicy::clone(&config.policies[0]);
    elsewhere.cookie = "NetworkPolicy/elsewhere/isolated".into();
    elsewhere.namespace = "elsewhere".into();
    let mut ingress_only = NetworkPolicy::clone(&config.policies[0]);
    ingress_only.cookie = "NetworkPolicy/default/more".into();
    ingress_only.name = "more".into();
    ingress_only.egress = None;
    ingress_only.ingress = Some(vec![]);
    config.policies.extend([elsewhere, ingress_only].map(Arc::new));
    let mut switch = Switch::new(&config);
    switch.send(0, &udp4(0, pod_v4(1), (1000, 54), b"x"));
    assert_eq!(switch.recv(1).len(), 1);
    let listed = |switch: &Switch| {
        let rows = policy_rules(&switch.control.snapshot()).into_iter().map(|count| {
            let rule = count.rule.map_or_else(String::new, |rule| format!("[{rule}]"));
            format!("{} {}{rule} {}", count.policy, count.direction, count.decided)
        });
        rows.collect::<BTreeSet<String>>()
    };
    let expected = [
        "NetworkPolicy/default/isolated egress 0",
        "NetworkPolicy/default/isolated egress[0] 0",
        "NetworkPolicy/default/isolated egress[1] 1",
        "NetworkPolicy/default/isolated ingress 0",
        "NetworkPolicy/default/isolated ingress[0] 0",
        "NetworkPolicy/default/isolated ingress[1] 1",
        "NetworkPolicy/default/more ingress 0",
    ];
    assert_eq!(listed(&switch), expected.map(str::to_owned).into());
    // Without pods no policy applies: only the earlier counts are left.
    config.endpoints.clear();
    switch.control.apply(&config).expect("a good state");
    assert_eq!(listed(&switch), [expected[2], expected[5]].map(str::to_owned).into());
}

fn once(rule: usize) -> Vec<(Direction, Option<usize>, u64)> {
    vec![(Egress, Some(rule), 1), (Ingress, Some(rule), 1)]
}

/// A client sends twelve datagrams to a closed port, and the server's kernel answers each with port
/// unreachable: one connection.
#[test]
fn icmp_errors_about_a_connection_are_not_counted() {
    let mut config = config();
    allow_udp(&mut config, &[9]);
    for family in [0, 1] {
        let mut switch = Switch::new(&config);
        let [a, b] = [0, 1].map(|n| addresses(n)[family]);
        let datagram = ip(a, b, 17, 64, None, &udp(a, b, (1000, 9), b"x"));
        let arrived = ip(a, b, 17, 63, None, &udp(a, b, (1000, 9), b"x"));
        let unreachable = if family == 0 { [3, 3] } else { [1, 4] };
        let error = icmp(b, a, unreachable, [0; 4], &arrived);
        let error = ip(b, a, icmp_protocol(b), 64, None, &error);
        for _ in 0..12 {
            switch.send(0, &framed(0, &datagram));
            assert_eq!(switch.recv(1).len(), 1);
            switch.send(1, &framed(1, &error));
            assert_eq!(switch.recv(0).len(), 1);
        }
        assert_eq!(switch.dropped(), []);
        assert_eq!(counts(&switch), [(Ingress, Some(0), 1)]);
    }
}

#[test]
fn an_allowed_connection_is_counted_once_by_each_direction_that_was_evaluated() {
    let config = isolated(&[53]);
    let mut switch = Switch::with_workers(&config, 2);
    let request = udp4(0, pod_v4(1), (1000, 53), b"x");
    let reply = udp4(1, pod_v4(0), (53, 1000), b"y");
    switch.send(0, &request);
    assert_eq!(counts(&switch), once(0));
    // Replies, later packets, and packets of both directions on another worker.
    for worker in [0, 1, 0] {
        switch.send_by(worker, 1, &reply);
        switch.send_by(worker, 0, &request);
    }
    assert_eq!(counts(&switch), once(0));
    // After a change that concerns every flow, both directions are evaluated again.
    switch.forget(&config);
    switch.send(0, &request);
    switch.send(1, &reply);
    assert_eq!(counts(&switch), once(0));
    // The entries of the workers expire, the connection does not.
    assert_eq!((switch.recv(1).len(), switch.recv(0).len()), (5, 4));
    assert_eq!(switch.control.connections().len(), 1);
    // A second connection, and a first one after the connection has timed out.
    switch.send(0, &udp4(0, pod_v4(1), (1001, 53), b"x"));
    assert_eq!(counts(&switch), [(Egress, Some(0), 2), (Ingress, Some(0), 2)]);
    switch.pass_slowly(140);
    switch.send(0, &request);
    assert_eq!(counts(&switch), [(Egress, Some(0), 3), (Ingress, Some(0), 3)]);
    assert_eq!(switch.dropped(), []);
}

/// A denied flow is not remembered, so each of its packets is an attempt of its own.
#[test]
fn every_denied_packet_is_counted_by_the_rule_that_denied_it() {
    let mut switch = Switch::new(&isolated(&[53]));
    for _ in 0..12 {
        switch.send(0, &udp4(0, pod_v4(1), (1000, 54), b"x"));
    }
    assert_eq!(switch.dropped(), [(0, PolicyEgress); 12]);
    assert_eq!(counts(&switch), [(Egress, None, 12)], "ingress was not evaluated");
    assert_eq!(switch.control.connections().len(), 0);
}

/// The egress rule allowed the packet, but no connection was opened.
#[test]
fn a_rule_that_allowed_a_packet_later_denied_is_not_counted() {
    let mut config = isolated(&[53, 54]);
    let mut policy = (*config.policies[0]).clone();
    policy.ingress = policy.ingress.map(|mut rules| rules.drain(..1).collect());
    config.policies = vec![Arc::new(policy)];
    let mut switch = Switch::new(&config);
    for _ in 0..3 {
        switch.send(0, &udp4(0, pod_v4(1), (1000, 54), b"x"));
    }
    assert_eq!(switch.dropped(), [(0, PolicyIngress); 3]);
    assert_eq!(counts(&switch), [(Ingress, None, 3)]);
}

#[test]
fn a_live_connection_that_policy_denies_later_counts_each_packet_as_denied() {
    let config = isolated(&[53]);
    let mut switch = Switch::new(&config);
    let request = udp4(0, pod_v4(1), (1000, 53), b"x");
    switch.send(0, &request);
    assert_eq!(counts(&switch), once(0));
    // The same policy with another rule: its counters stay.
    switch.control.apply(&isolated(&[55])).unwrap();
    for _ in 0..2 {
        switch.send(0, &request);
    }
    assert_eq!(switch.dropped(), [(0, PolicyEgress); 2]);
    let denied = |c: &&(Direction, Option<usize>, u64)| c.1.is_none();
    let counts = counts(&switch);
    assert_eq!(counts.iter().filter(denied).collect::<Vec<_>>(), [&(Egress, None, 2)]);
}

#[test]
fn a_connection_that_could_not_be_opened_is_not_counted_as_allowed() {
    let limits = Limits { connections_per_port: 1, ..Limits::default() };
    let mut switch = Switch::with(&isolated(&[53]), 1, Options { limits, ..Options::default() });
    switch.send(0, &udp4(0, pod_v4(1), (1000, 53), b"x"));
    // With a reply: a connection without one would end in favour of the next.
    switch.send(1, &udp4(1, pod_v4(0), (53, 1000), b"y"));
    for port in 1001..1005 {
        switch.send(0, &udp4(0, pod_v4(1), (port, 53), b"x"));
    }
    assert_eq!(switch.dropped(), [(0, ConnectionLimit); 4]);
    assert_eq!(counts(&switch), once(0));
}

/// It is forwarded, since policy allows it, but opens no connection.
#[test]
fn a_reset_of_an_unknown_connection_is_not_counted() {
    let mut switch = Switch::new(&isolated(&[53]));
    switch.send(0, &tcp4(0, 1, (1000, 53), &Tcp { seq: 1, ack: None, flags: "R", payload: 0 }));
    assert_eq!((switch.recv(1).len(), switch.dropped().len()), (1, 0));
    assert_eq!(counts(&switch), []);
    assert_eq!(switch.control.connections().len(), 0);
}

#[test]
fn segments_of_one_tcp_connection_are_counted_once() {
    let mut switch = Switch::new(&isolated(&[53]));
    let segment = |seq, ack, flags, payload| Tcp { seq, ack, flags, payload };
    switch.send(0, &tcp4(0, 1, (1000, 53), &segment(1, None, "S", 0)));
    switch.send(0, &tcp4(0, 1, (1000, 53), &segment(1, None, "S", 0)));
    switch.send(1, &tcp4(1, 0, (53, 1000), &segment(9, Some(2), "S", 0)));
    switch.send(0, &tcp4(0, 1, (1000, 53), &segment(2, Some(10), "", 0)));
    switch.send(0, &tcp4(0, 1, (1000, 53), &segment(2, Some(10), "P", 100)));
    switch.send(0, &tcp4(0, 1, (1000, 53), &segment(102, Some(10), "F", 0)));
    switch.send(1, &tcp4(1, 0, (53, 1000), &segment(10, Some(103), "F", 0)));
    assert_eq!((switch.recv(1).len(), switch.recv(0).len()), (5, 2));
    assert_eq!(counts(&switch), once(0));
    // A new connection with the same ports.
    switch.pass(Duration::from_secs(1));
    switch.send(0, &tcp4(0, 1, (1000, 53), &segment(5000, None, "S", 0)));
    assert_eq!(counts(&switch), [(Egress, Some(0), 2), (Ingress, Some(0), 2)]);
    assert_eq!(switch.dropped(), []);
}

/// `resolve` names the counters and changes none of them.
#[test]
fn resolve_counts_nothing() {
    let switch = Switch::new(&isolated(&[53]));
    let snapshot = switch.control.snapshot();
    let key = |port| {
        let [from, to] = [0, 1].map(|n| IpAddr::from(pod_v4(n)));
        FlowKey::new(from, to, proto::UDP, 1000, port).unwrap()
    };
    for _ in 0..100 {
        let allowed = resolve(&snapshot, &Query::new(&key(53), PortId(0)));
        let Decision::Forward { allowed_by, .. } = allowed else { panic!("{allowed:?}") };
        assert!(allowed_by.egress.is_some() && allowed_by.ingress.is_some());
        assert_ne!(allowed_by.egress, allowed_by.ingress);
        let denied = resolve(&snapshot, &Query::new(&key(54), PortId(0)));
        let Decision::Drop(denial) = denied else { panic!("{denied:?}") };
        assert!(matches!(denial.counter, Some(DenialCounter::Policy(_))));
    }
    assert_eq!(counts(&switch), []);
}

#[test]
fn counts_of_an_earlier_process_are_added_by_name() {
    let mut switch = Switch::new(&isolated(&[9, 10]));
    let [a, b] = [0, 1].map(|n| addresses(n)[0]);
    for port in [9, 10, 11] {
        let packet = ip(a, b, 17, 64, None, &udp(a, b, (1000, port), b"x"));
        switch.send(0, &framed(0, &packet));
    }
    let before = switch.control.policy_counts();
    assert_eq!(before.len(), 5);
    let mut next = Switch::new(&isolated(&[9]));
    let packet = ip(a, b, 17, 64, None, &udp(a, b, (1000, 9), b"x"));
    next.send(0, &framed(0, &packet));
    next.control.restore_counts(&before, &[]);
    // Its second rule does not exist any more; the count of packets that no rule matched is kept.
    let expected = [(Egress, None, 1), (Egress, Some(0), 2), (Ingress, Some(0), 2)];
    assert_eq!(counts(&next), expected);
    let mut other = isolated(&[9, 10]);
    Arc::make_mut(&mut other.policies[0]).cookie = "NetworkPolicy/default/other".into();
    let other = Switch::new(&other);
    other.control.restore_counts(&before, &[]);
    assert_eq!(counts(&other), []);
}
