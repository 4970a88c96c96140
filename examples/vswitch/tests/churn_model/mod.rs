//! Objects that change at random: pods here and elsewhere, nodes, policies, Services with their slices.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use podswitch_linux::NetNs;
use podswitch_testkit::rig::random::Rng;
use serde_json::{Value, json};

/// Pods of this node, always there; the last one by a veth pair.
pub(crate) const PODS: usize = 4;
/// Most of each kind.
const REMOTE_PODS: usize = 400;
const OTHER_NODES: usize = 8;
const POLICIES: usize = 60;
const SERVICES: usize = 40;
const LABELS: [&str; 4] = ["red", "green", "blue", "grey"];

/// Address of a pod of this node.
pub(crate) fn pod_address(number: usize, v6: bool) -> IpAddr {
    match v6 {
        false => [10, 1, 0, 10 + number as u8].into(),
        true => format!("fd00:1::{:x}", 0x10 + number).parse().expect("an address"),
    }
}

/// The wanted objects.
pub(crate) struct Model {
    pub(crate) node: String,
    local: [usize; PODS],
    remote: BTreeMap<usize, usize>,
    nodes: BTreeMap<usize, ()>,
    policies: BTreeMap<usize, Value>,
    /// The local pods behind each, as bits.
    services: BTreeMap<usize, usize>,
}

impl Model {
    pub(crate) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            local: [0; PODS],
            remote: BTreeMap::new(),
            nodes: BTreeMap::new(),
            policies: BTreeMap::new(),
            services: BTreeMap::new(),
        }
    }

    /// Changes one object.
    pub(crate) fn change(&mut self, rng: &mut Rng) {
        let is_gone = rng.chance(40);
        match rng.below(100) {
            0..60 => change(&mut self.remote, rng.below(REMOTE_PODS), is_gone, rng.below(4)),
            60..65 => self.local[rng.below(PODS)] = rng.below(4),
            65..70 => change(&mut self.nodes, rng.below(OTHER_NODES), is_gone, ()),
            70..90 => {
                let spec = policy(rng);
                change(&mut self.policies, rng.below(POLICIES), is_gone, spec);
            }
            _ => change(&mut self.services, rng.below(SERVICES), is_gone, 1 + rng.below(15)),
        }
    }

    /// The addresses of the Services.
    pub(crate) fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.services.keys().map(|n| cluster_ip(*n).into())
    }

    /// All objects. `netns`: the namespaces of this node's pods.
    pub(crate) fn manifests(&self, netns: &[NetNs]) -> String {
        let mut items =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})];
        items.push(node(
            &self.node,
            &["192.0.2.1", "2001:db8:1::1"],
            &["10.1.0.0/24", "fd00:1::/64"],
        ));
        for n in self.nodes.keys() {
            let (name, third) = (format!("other{n}"), n + 2);
            items.push(node(
                &name,
                &[&format!("192.0.2.{third}"), &format!("2001:db8:1::{third}")],
                &[&format!("10.{third}.0.0/24"), &format!("fd00:{third}::/64")],
            ));
        }
        for (n, label) in self.local.iter().enumerate() {
            let kind = if n + 1 == PODS { "veth" } else { "tap" };
            let annotations = json!({
                "podswitch.io/netns": netns[n].path().display().to_string(),
                "podswitch.io/port": kind,
            });
            let addresses = [pod_address(n, false), pod_address(n, true)].map(|a| a.to_string());
            items.push(pod(&format!("local{n}"), &self.node, &addresses, *label, annotations));
        }
        for (n, label) in &self.remote {
            let (on, host) = (n % OTHER_NODES, n / OTHER_NODES + 10);
            let third = on + 2;
            let addresses = [format!("10.{third}.0.{host}"), format!("fd00:{third}::{host:x}")];
            items.push(pod(
                &format!("remote{n}"),
                &format!("other{on}"),
                &addresses,
                *label,
                json!({}),
            ));
        }
        for (n, spec) in &self.policies {
            items.push(json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"name": format!("policy{n}"), "namespace": "a"}, "spec": spec,
            }));
        }
        for (n, backends) in &self.services {
            items.extend(self.service(*n, *backends));
        }
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }

    fn service(&self, n: usize, backends: usize) -> [Value; 2] {
        let (name, address) = (format!("service{n}"), cluster_ip(n).to_string());
        let endpoints: Vec<Value> = (0..PODS)
            .filter(|pod| backends & 1 << pod != 0)
            .map(|pod| {
                json!({"addresses": [pod_address(pod, false).to_string()], "nodeName": self.node, "conditions": {"ready": true}})
            })
            .collect();
        [
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "a"},
                "spec": {
                    "type": "NodePort", "clusterIP": address, "clusterIPs": [address],
                    "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30_000 + n, "protocol": "UDP"}],
                },
            }),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("{name}-1"), "namespace": "a", "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"port": 8080, "protocol": "UDP"}], "endpoints": endpoints,
            }),
        ]
    }
}

fn change<T>(objects: &mut BTreeMap<usize, T>, n: usize, is_gone: bool, value: T) {
    match is_gone {
        true => objects.remove(&n),
        false => objects.insert(n, value),
    };
}

fn cluster_ip(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 1, n as u8 + 1)
}

fn node(name: &str, addresses: &[&str], ranges: &[&str]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDRs": ranges}, "status": {"addresses": addresses},
    })
}

fn pod(name: &str, node: &str, addresses: &[String], label: usize, annotations: Value) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|a| json!({"ip": a})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "a", "labels": {"app": LABELS[label]}, "annotations": annotations},
        "spec": {"nodeName": node}, "status": {"phase": "Running", "podIPs": ips},
    })
}

/// Some pods may be reached by some on one of the ports that are tried, or by nobody.
fn policy(rng: &mut Rng) -> Value {
    let label = |rng: &mut Rng| json!({"matchLabels": {"app": LABELS[rng.below(4)]}});
    let ports = [
        json!([{"port": 53, "protocol": "UDP"}]),
        json!([{"port": 80, "protocol": "UDP"}]),
        json!([]),
    ];
    let from = match rng.below(3) {
        0 => json!([{"podSelector": label(rng)}]),
        1 => {
            json!([{"ipBlock": {"cidr": "10.1.0.0/24", "except": [format!("10.1.0.{}/32", 10 + rng.below(PODS))]}}])
        }
        _ => json!([{"podSelector": label(rng)}, {"ipBlock": {"cidr": "fd00:1::/64"}}]),
    };
    json!({"podSelector": label(rng), "ingress": [{"from": from, "ports": rng.pick(&ports)}]})
}
