//! Policies made to be expensive (threat T-C8): the compiled size stays within a small multiple of
//! the size of the policies, and the verdicts are still right.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::rule::*;
use podswitch_policy::table::PolicyTable;
use podswitch_policy::verdict::Traffic;
use podswitch_wire::cidr::Cidr;

fn pod_address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0001 + number).into()
}

/// Pods of one namespace, pod `n` with the label `pod=n`.
fn pods(compiler: &mut PolicyCompiler, count: u32) {
    for number in 0..count {
        let name: Arc<str> = format!("pod{number}").into();
        let workload = Workload {
            namespace: "ns".into(),
            name: Arc::clone(&name),
            labels: [("pod", number.to_string())].into_iter().collect(),
            addresses: vec![pod_address(number)],
            ports: Vec::new(),
            host_network: false,
        };
        compiler.upsert_pod(&format!("Pod/ns/{name}").into(), &workload, &"node".into());
    }
}

/// A policy on every pod of the namespace.
fn policy(number: u32, ingress: Vec<Rule>) -> Arc<NetworkPolicy> {
    let name = format!("p{number:05}");
    Arc::new(NetworkPolicy {
        cookie: format!("NetworkPolicy/ns/{name}").into(),
        namespace: "ns".into(),
        name: name.into(),
        pods: Selector::everything(),
        ingress: Some(ingress),
        egress: None,
    })
}

fn port(number: u16) -> Ports {
    Ports::AnyOf(vec![PortRule::port(Protocol::Tcp, number)])
}

fn allows(table: &PolicyTable, from: IpAddr, port: u16) -> bool {
    let (from, to) = (table.party(from), table.party(pod_address(0)));
    table.verdict(&from, &to, Traffic::to_port(Protocol::Tcp, port)).allow()
}

#[test]
fn ten_thousand_policies_on_every_pod_each_with_a_port() {
    let mut compiler = PolicyCompiler::new();
    pods(&mut compiler, 300);
    for number in 0..10_000 {
        let rule = Rule { peers: Peers::Any, ports: port(number as u16 * 3 + 1) };
        compiler.upsert_network_policy(&policy(number, vec![rule]));
    }
    let table = compiler.publish();
    let footprint = compiler.footprint();
    assert_eq!(footprint.stages, 1, "all pods share one set of policies");
    assert!(footprint.stage_bytes < 2_000_000, "{footprint:?}");
    let outside = Ipv4Addr::new(192, 0, 2, 1).into();
    assert!((0..30_000u16).all(|p| allows(&table, outside, p) == (p % 3 == 1)));
}

#[test]
fn ten_thousand_policies_each_with_its_own_peer_and_port() {
    let mut compiler = PolicyCompiler::new();
    pods(&mut compiler, 1_000);
    for number in 0..10_000 {
        let labels = [("pod", (number % 1_000).to_string())].into_iter().collect();
        let pods = Some(Selector::of_labels(labels));
        let peers = Peers::AnyOf(vec![Peer::Selectors { pods, namespaces: None }]);
        let rule = Rule { peers, ports: port(number as u16) };
        compiler.upsert_network_policy(&policy(number, vec![rule]));
    }
    let table = compiler.publish();
    let footprint = compiler.footprint();
    assert_eq!(footprint.stages, 1);
    assert!(footprint.stage_bytes < 2_000_000, "{footprint:?}");
    for peer in [1, 7, 999] {
        let open = |p| allows(&table, pod_address(peer), p);
        assert!((0..10_000).all(|p| open(p) == (u32::from(p) % 1_000 == peer)));
    }
}

#[test]
fn one_entry_for_every_port() {
    let mut compiler = PolicyCompiler::new();
    pods(&mut compiler, 2);
    let entries = (1..=u16::MAX).step_by(2).map(|n| PortRule::port(Protocol::Tcp, n)).collect();
    let rule = Rule { peers: Peers::Any, ports: Ports::AnyOf(entries) };
    compiler.upsert_network_policy(&policy(0, vec![rule]));
    let table = compiler.publish();
    assert!(compiler.footprint().stage_bytes < 3_000_000, "{:?}", compiler.footprint());
    let outside = Ipv4Addr::new(192, 0, 2, 1).into();
    assert!((0..=u16::MAX).all(|p| allows(&table, outside, p) == (p % 2 == 1)));
}

#[test]
fn ten_thousand_nested_ranges_with_exceptions() {
    let mut compiler = PolicyCompiler::new();
    pods(&mut compiler, 2);
    let range = |number: u32, length| {
        Cidr::new(Ipv4Addr::from(0xc000_0000 | number << 8).into(), length).unwrap()
    };
    let block = |number| {
        let peers = vec![Peer::IpBlock {
            cidr: range(number, 24),
            except: vec![range(number, 26), range(number, 28)],
        }];
        Rule { peers: Peers::AnyOf(peers), ports: Ports::Any }
    };
    let all = Peer::IpBlock { cidr: range(0, 2), except: vec![range(0, 3)] };
    let mut rules: Vec<Rule> = (0..10_000).map(block).collect();
    rules.push(Rule { peers: Peers::AnyOf(vec![all]), ports: port(80) });
    compiler.upsert_network_policy(&policy(0, rules));
    let table = compiler.publish();
    assert!(compiler.footprint().stage_bytes < 20_000_000, "{:?}", compiler.footprint());
    for number in (0..10_000).step_by(97) {
        let at = |low: u32| Ipv4Addr::from(0xc000_0000 | number << 8 | low).into();
        assert!(allows(&table, at(64), 443) && allows(&table, at(255), 443));
        assert!(!allows(&table, at(63), 443) && !allows(&table, at(1), 80));
    }
}
