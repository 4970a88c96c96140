//! N15: policy means the real client and the real backend, whatever address led there. Every pod
//! has a Service; each pair's verdict by its cluster IP, by its node port and by the pod's own
//! address is the plain reference's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use podswitch_kubernetes::{Manifests, Options};
use podswitch_policy::reference::{Cluster, evaluate};
use podswitch_policy::rule::{Node, Pod};
use podswitch_policy::verdict::Traffic;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{HashKey, proto};
use podswitch_wire::parse::parse;
use serde_json::Value;

use crate::replayed::{Input, first_packet, is_by_policy, pod_mac};
use podswitch_vswitch_testkit::cases::{self, Case, NAMESPACES, OUTSIDE, PODS};
use podswitch_vswitch_testkit::{NODE, mac};

/// Ports and protocols that are asked for; each Service has all of them.
const ASKED: [(u16, &str, u8); 6] = [
    (80, "TCP", proto::TCP),
    (81, "TCP", proto::TCP),
    (80, "UDP", proto::UDP),
    (81, "UDP", proto::UDP),
    (80, "SCTP", proto::SCTP),
    (81, "SCTP", proto::SCTP),
];

/// Pod number `n` of nine, by namespace and name.
fn names() -> impl Iterator<Item = (usize, &'static str, &'static str)> {
    let all = NAMESPACES.into_iter().flat_map(|namespace| PODS.map(|pod| (namespace, pod)));
    all.enumerate().map(|(n, (namespace, pod))| (n, namespace, pod))
}

fn pod_ip(n: usize, v6: bool) -> IpAddr {
    let (namespace, at) = (n / 3, n % 3 + 1);
    match v6 {
        false => [10, 0, namespace as u8, at as u8].into(),
        true => [0xfd00, 0, 0, namespace as u16, 0, 0, 0, at as u16].into(),
    }
}

fn node_ip(v6: bool) -> IpAddr {
    if v6 { [0xfd01, 0, 0, 0, 0, 0, 0, 1].into() } else { NODE.into() }
}

/// The ways to pod `n`'s port: its own address, its Service's, a port of the node.
fn ways(n: usize, v6: bool, port: u16) -> [(&'static str, SocketAddr); 3] {
    let vip: IpAddr = match v6 {
        false => [10, 96, 0, n as u8].into(),
        true => [0xfd00, 0x96, 0, 0, 0, 0, 0, n as u16].into(),
    };
    let node_port = 30_000 + 2 * n as u16 + (port - 80);
    [
        ("pod", SocketAddr::new(pod_ip(n, v6), port)),
        ("ClusterIP", SocketAddr::new(vip, port)),
        ("NodePort", SocketAddr::new(node_ip(v6), node_port)),
    ]
}

/// A Service of its own for every pod.
fn services() -> String {
    let mut text = String::new();
    for (n, namespace, pod) in names() {
        let ports: Vec<_> = ASKED
            .iter()
            .map(|(port, name, _)| {
                let [_, _, (_, node)] = ways(n, false, *port);
                format!(
                    "{{name: {}{port}, port: {port}, protocol: {name}, nodePort: {}}}",
                    name.to_lowercase(),
                    node.port()
                )
            })
            .collect();
        let [four, six] = [false, true].map(|v6| ways(n, v6, 80)[1].1.ip());
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {pod}, namespace: {namespace}}}\n\
             spec: {{type: NodePort, clusterIP: {four}, clusterIPs: [{four}, '{six}'], \
             ports: [{}]}}\n",
            ports.join(", ")
        );
        for (v6, family) in [(false, "IPv4"), (true, "IPv6")] {
            let ports: Vec<_> = ASKED
                .iter()
                .map(|(port, name, _)| {
                    let lower = name.to_lowercase();
                    format!("{{name: {lower}{port}, port: {port}, protocol: {name}}}")
                })
                .collect();
            text += &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {{name: {pod}-{}, namespace: {namespace}, \
                 labels: {{kubernetes.io/service-name: {pod}}}}}\n\
                 addressType: {family}\nports: [{}]\n\
                 endpoints: [{{addresses: ['{}'], nodeName: n1}}]\n",
                family.to_lowercase(),
                ports.join(", "),
                pod_ip(n, v6)
            );
        }
    }
    text
}

/// What the plain reference decides.
fn reference(state: &str) -> Cluster {
    let manifests = Manifests::parse(Path::new("state.yaml"), state).expect("reads");
    let compiled = manifests.compile(Some("n1"), &Options::default());
    assert_eq!(compiled.refused().next(), None);
    let config = compiled.config;
    let local = Node {
        name: config.node.name.clone(),
        labels: config.node.labels.clone(),
        addresses: config.node.addresses.clone(),
    };
    let others = config.nodes.iter().map(|node| Node {
        name: node.name.clone(),
        labels: node.labels.clone(),
        addresses: node.addresses.clone(),
    });
    let pod = |endpoint: &Arc<podswitch_core::config::Endpoint>| Pod {
        cookie: endpoint.cookie.as_str().into(),
        workload: endpoint.workload.clone(),
        node: endpoint.node.clone(),
    };
    Cluster {
        pods: config.endpoints.iter().map(pod).map(Arc::new).collect(),
        namespaces: config.namespaces.clone(),
        nodes: others.chain([local]).map(Arc::new).collect(),
        network_policies: config.policies.clone(),
        cluster_policies: config.cluster_policies.clone(),
    }
}

/// Everybody who calls: port of the switch, MAC address, address.
fn callers(v6: bool) -> Vec<(String, Mac, IpAddr)> {
    let mut list: Vec<_> = names()
        .map(|(n, namespace, pod)| {
            let IpAddr::V4(v4) = pod_ip(n, false) else { panic!("IPv4") };
            let ip = pod_ip(n, v6);
            (format!("{namespace}/{pod}"), pod_mac(ip, v4.octets()), ip)
        })
        .collect();
    let outside = OUTSIDE.iter().map(|text| text.parse().expect("an address"));
    let of_family = outside.filter(|ip: &IpAddr| ip.is_ipv6() == v6);
    let host = Mac(mac(NODE));
    list.extend([node_ip(v6)].into_iter().chain(of_family).map(|ip| ("host".to_owned(), host, ip)));
    list
}

/// Where the wire and the reference disagree.
fn differences(case: &Case) -> (usize, Vec<String>) {
    let state = cases::cluster(["n1", "n1", "n1"]) + &case.policies() + &services();
    let cluster = reference(&state);
    let (mut input, mut asked) = (Input::default(), Vec::new());
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    for v6 in [false, true] {
        for (port, sender, from) in callers(v6) {
            for (n, namespace, pod) in names() {
                for (number, name, protocol) in ASKED {
                    for (way, to) in ways(n, v6, number) {
                        let via_service = way != "pod";
                        let traffic = Traffic { protocol, port: number, via_service };
                        let allow = evaluate(&cluster, from, pod_ip(n, v6), traffic).allow();
                        let what = format!("{}/{name}", to.port());
                        let frame = first_packet(sender, from, to.ip(), &what);
                        let at = input.add(&port, 1.0, frame);
                        *expected.entry(format!("{namespace}/{pod}")).or_default() +=
                            usize::from(allow);
                        asked.push((port.clone(), at, from, to, way, name, allow));
                    }
                }
            }
        }
    }
    let replayed = input.replay(&state, &[]);
    let mut wrong = Vec::new();
    for (port, at, from, to, way, name, allow) in &asked {
        let drop = replayed.drop(port, *at);
        if (drop.is_none(), drop.is_some_and(is_by_policy)) != (*allow, !*allow) {
            let drop = drop.map(Value::to_string);
            wrong.push(format!("{}: {from} {to}/{name} by {way} {allow}: {drop:?}", case.name));
        }
    }
    // What was allowed arrived, and as what its pod expects.
    for ((name, count), (n, ..)) in expected.into_iter().zip(names()) {
        let sent = replayed.sent(&name);
        if sent.len() != count {
            wrong.push(format!("{}: {} frames left by {name}, not {count}", case.name, sent.len()));
        }
        for frame in sent {
            let key = parse(&frame, &HashKey::new(1)).expect("parses").key;
            let own = pod_ip(n, key.dst_addr().is_ipv6());
            if key.dst_addr() != own || !(80..=81).contains(&key.dst_port) {
                wrong.push(format!("{}: {key:?} left by {name}", case.name));
            }
        }
    }
    (asked.len(), wrong)
}

#[test]
fn verdicts_are_the_same_by_every_address() {
    // Every fifth case: each is some 4,000 frames.
    crate::all_agree(5, differences);
}
