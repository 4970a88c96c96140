//! A cluster of the target size: 150,000 pods with 5,000 label sets in 1,000 namespaces, and any
//! number of policies, each with selectors of both kinds, an ipBlock with an exception, named
//! ports, single ports and ranges up to 1–65535.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::rule::*;
use podswitch_policy::verdict::Traffic;
use podswitch_wire::cidr::Cidr;

pub const NAMESPACES: usize = 1_000;
pub const APPS: usize = 5;
pub const PODS: usize = 150_000;
pub const NODES: usize = 5_000;

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(k, v)| (*k, v.as_str())).collect()
}

fn app(number: usize) -> Labels {
    labels(&[("app", format!("app{}", number % APPS))])
}

fn team(number: usize) -> Labels {
    labels(&[("team", format!("t{}", number % 50))])
}

fn namespace_name(number: usize) -> Arc<str> {
    format!("ns{number}").into()
}

/// Addresses of a pod.
pub fn pod_addresses(number: usize) -> [IpAddr; 2] {
    let n = number as u32;
    let v4 = Ipv4Addr::from(0x0a00_0000 | (n / 250) << 8 | (n % 250 + 2));
    let v6 = Ipv6Addr::from(0xfd00 << 112 | u128::from(n / 250) << 64 | u128::from(n % 250 + 2));
    [v4.into(), v6.into()]
}

/// Pod `number`, in namespace `number % NAMESPACES`; the apps of the namespace alternate.
pub fn pod(number: usize) -> Pod {
    let (namespace, turn) = (number % NAMESPACES, number / NAMESPACES);
    let name: Arc<str> = format!("pod{number}").into();
    let http = NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
    let workload = Workload {
        namespace: namespace_name(namespace),
        name: Arc::clone(&name),
        labels: app(turn).with("tier", format!("tier{}", turn % APPS)),
        addresses: pod_addresses(number).to_vec(),
        ports: vec![http],
        host_network: false,
    };
    let cookie = format!("Pod/ns{namespace}/{name}").into();
    Pod { cookie, workload, node: format!("node{}", number % NODES).into() }
}

fn selectors(pods: Option<Labels>, namespaces: Option<Labels>) -> Peers {
    let pods = pods.map(Selector::of_labels);
    let namespaces = namespaces.map(Selector::of_labels);
    Peers::AnyOf(vec![Peer::Selectors { pods, namespaces }])
}

fn block(cidr: Cidr, except: Cidr) -> Peers {
    Peers::AnyOf(vec![Peer::IpBlock { cidr, except: vec![except] }])
}

fn range(first: u16, last: u16) -> Ports {
    Ports::AnyOf(vec![PortRule::Range { protocol: Protocol::Tcp, first, last }])
}

fn named() -> Ports {
    let protocol = Some(Protocol::Tcp);
    Ports::AnyOf(vec![PortRule::Named { protocol, name: "http".into() }])
}

/// The first address of the range that policy `number` allows. Its exception starts 128 addresses
/// higher.
fn block_start(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0000 + (number as u32) * 256)
}

fn single_port(number: usize) -> u16 {
    8000 + (number % 100) as u16
}

/// Policy `number`, applying to one app of one namespace.
pub fn network_policy(number: usize) -> NetworkPolicy {
    let (namespace, turn) = (number % NAMESPACES, number / NAMESPACES);
    let start = IpAddr::V4(block_start(number));
    let cut = IpAddr::V4(Ipv4Addr::from(u32::from(block_start(number)) + 128));
    let cidr = |address, length| Cidr::new(address, length).expect("a range");
    let all = cidr(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let inside = cidr(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8);
    let rule = |peers, ports| Rule { peers, ports };
    let port = single_port(number);
    let ingress = vec![
        rule(selectors(Some(app(turn + 1)), None), range(port, port)),
        rule(selectors(Some(app(turn)), Some(team(number))), named()),
        rule(block(cidr(start, 24), cidr(cut, 28)), range(1, u16::MAX)),
        rule(selectors(None, Some(Labels::default())), range(9090, 9090)),
    ];
    let dns = |p| PortRule::port(p, 53);
    let egress = vec![
        rule(
            selectors(None, Some(Labels::default())),
            Ports::AnyOf(vec![dns(Protocol::Udp), dns(Protocol::Tcp)]),
        ),
        rule(block(all, inside), range(1, u16::MAX)),
        rule(selectors(Some(app(turn + 4)), None), range(port, port)),
        rule(selectors(Some(app(turn)), Some(team(number))), named()),
    ];
    let name: Arc<str> = format!("policy{number}").into();
    NetworkPolicy {
        cookie: format!("NetworkPolicy/ns{namespace}/{name}").into(),
        namespace: namespace_name(namespace),
        name,
        pods: Selector::of_labels(app(turn)),
        ingress: Some(ingress),
        egress: Some(egress),
    }
}

/// Every namespace.
pub fn namespaces() -> impl Iterator<Item = Namespace> {
    (0..NAMESPACES).map(|n| Namespace { name: namespace_name(n), labels: team(n) })
}

/// The whole cluster with this many policies.
pub fn compiler(policies: usize) -> PolicyCompiler {
    let mut compiler = PolicyCompiler::new();
    for namespace in namespaces() {
        compiler.upsert_namespace(&namespace);
    }
    for number in 0..PODS {
        let pod = pod(number);
        compiler.upsert_pod(&pod.cookie, &pod.workload, &pod.node);
    }
    for number in 0..policies {
        compiler.upsert_network_policy(&Arc::new(network_policy(number)));
    }
    compiler
}

/// A connection, and the end whose policies are evaluated.
pub struct Probe {
    pub from: IpAddr,
    pub to: IpAddr,
    pub traffic: Traffic,
    pub direction: Direction,
}

/// Connections that together use every policy and each of its rules, in random order. The evaluated
/// end always has a policy, and six in eight connections are allowed, so that the work does not
/// depend on the number of policies.
pub fn probes(policies: usize, count: usize) -> Vec<Probe> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    (0..count).map(|_| probe(random(policies), &mut random)).collect()
}

fn probe(policy: usize, random: &mut impl FnMut(usize) -> usize) -> Probe {
    let (namespace, turn) = (policy % NAMESPACES, policy / NAMESPACES % APPS);
    let kind = random(8);
    // A pod of an app of a namespace.
    let mut pod_of = |namespace: usize, turn: usize| {
        let each = PODS / NAMESPACES / APPS;
        let place = turn % APPS + random(each) * APPS;
        pod_addresses(namespace % NAMESPACES + place * NAMESPACES)[0]
    };
    let selected = pod_of(namespace, turn);
    let mate = pod_of(namespace, turn + 1);
    let other_mate = pod_of(namespace, turn + 4);
    let team = pod_of(namespace + 50, turn);
    let stranger = pod_of(namespace + 7, turn + 2);
    let outside = IpAddr::V4(Ipv4Addr::from(u32::from(block_start(policy)) + 7));
    let tcp = |port| Traffic::to_port(Protocol::Tcp, port);
    let port = single_port(policy);
    let (direction, peer, traffic) = match kind {
        0 => (Direction::Ingress, mate, tcp(port)),
        1 => (Direction::Ingress, team, tcp(8080)),
        2 => (Direction::Ingress, outside, tcp(443)),
        3 => (Direction::Ingress, stranger, tcp(22)),
        4 => (Direction::Egress, other_mate, tcp(port)),
        5 => (Direction::Egress, outside, tcp(443)),
        6 => (Direction::Egress, team, tcp(8080)),
        _ => (Direction::Egress, stranger, tcp(22)),
    };
    let (from, to) = match direction {
        Direction::Egress => (selected, peer),
        Direction::Ingress => (peer, selected),
    };
    Probe { from, to, traffic, direction }
}
