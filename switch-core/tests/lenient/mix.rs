//! Random valid and invalid objects, and a simple implementation of which of them are accepted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{
    Attachment, BridgeDomain, Config, ConfigError, Endpoint, NextHop, PortConfig, PortRole,
    Precedence, RefusedPolicy, RemoteNode, Route, Underlay, Vlans, VtepMac,
};
use podswitch_core::control::Change;
use podswitch_core::id::{Cookie, PortId};
use podswitch_policy::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ClusterTier, Labels, NamespacedPods,
    NetworkPolicy, Peers, PortRule, Ports, Protocol, Rule, Selector, Workload,
};
use podswitch_policy::service::model::{
    Endpoint as Backend, EndpointSlice, HostPort, Service, ServicePort, ServiceType, SlicePort,
    family_of,
};
use podswitch_wire::addr::Mac;

use super::rig::overlay::{node_config, underlay_mac};
use super::rig::random::Rng;

/// Ports 0 to 2 are pods', 3 the node's, 4 the uplink, 5 to 7 change.
pub(crate) const PORTS: u16 = 8;
pub(crate) const NODE_PORTS: [u16; 3] = [30_000, 30_001, 9000];

pub(crate) fn vips() -> [IpAddr; 3] {
    [0, 1, 2].map(|n| IpAddr::from([10, 96, 0, n]))
}

pub(crate) fn nodes() -> impl Iterator<Item = String> {
    (1..6).map(|n| format!("n{n}"))
}

/// The addresses that several pods may claim.
pub(crate) fn pod_addresses() -> impl Iterator<Item = IpAddr> {
    let v4 = (0..5u8).map(|n| IpAddr::from([10, 1, 0, 10 + n]));
    v4.chain((0..3u16).map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 10 + n])))
}

pub(crate) struct Mix {
    /// The desired objects.
    pub(crate) config: Config,
    /// Last accepted versions of policies.
    last: BTreeMap<Arc<str>, Arc<NetworkPolicy>>,
    last_cluster: BTreeMap<Arc<str>, Arc<ClusterNetworkPolicy>>,
    left_out: BTreeSet<String>,
}

fn replace<T>(list: &mut Vec<T>, same: impl Fn(&T) -> bool, object: Option<T>) {
    list.retain(|o| !same(o));
    list.extend(object);
}

fn precedence(rng: &mut Rng) -> Precedence {
    let (living, running) = (rng.chance(80), rng.chance(80));
    Precedence { living, running, created: rng.below(3) as u64 }
}

fn udp_or_tcp(first: u16, last: u16) -> Ports {
    Ports::AnyOf(vec![PortRule::Range { protocol: Protocol::Tcp, first, last }])
}

/// Some of them are invalid.
fn ports(rng: &mut Rng) -> Ports {
    match rng.below(4) {
        0 => udp_or_tcp(53, 52),
        1 => udp_or_tcp(53, 53),
        2 => udp_or_tcp(50, 90),
        _ => Ports::Any,
    }
}

fn are_good(ports: &Ports) -> bool {
    *ports != udp_or_tcp(53, 52)
}

fn error(object: &Arc<str>) -> ConfigError {
    let object = Cookie::new(object.clone());
    ConfigError { object, field: "spec".into(), reason: "cannot be read".into() }
}

impl Mix {
    pub(crate) fn new() -> Self {
        let mut config = node_config(0, Underlay::Ipv4First);
        config.endpoints.clear();
        config.nodes.clear();
        // The last port that a switch has.
        config.ports.push(PortConfig { port: PortId(PORTS - 1), role: PortRole::Pod });
        let (last, last_cluster, left_out) = Default::default();
        Self { config, last, last_cluster, left_out }
    }

    /// Changes the order of the desired objects.
    pub(crate) fn shuffle(&mut self, rng: &mut Rng) {
        let turn = |len: usize, rng: &mut Rng| if len == 0 { 0 } else { rng.below(len) };
        let config = &mut self.config;
        let at = turn(config.endpoints.len(), rng);
        config.endpoints.rotate_left(at);
        let at = turn(config.nodes.len(), rng);
        config.nodes.rotate_left(at);
        config.ports.reverse();
        config.policies.reverse();
        config.services.reverse();
    }

    /// Changes one object.
    pub(crate) fn change(&mut self, rng: &mut Rng) -> Change {
        let keep = rng.chance(75);
        match rng.below(16) {
            0..=4 => self.pod(rng, keep),
            5 | 6 => self.node(rng, keep),
            7 | 8 => self.port(rng, keep),
            9 => self.bridge(rng, keep),
            10 => self.policy(rng, keep),
            11 => self.cluster_policy(rng, keep),
            12 => self.service(rng, keep),
            13 => self.slice(rng, keep),
            14 => self.host_ports(rng, keep),
            _ => self.route(rng, keep),
        }
    }

    fn pod(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let n = rng.below(7);
        let cookie = Cookie::new(format!("Pod/default/p{n}"));
        let mut addresses = BTreeSet::new();
        for _ in 0..1 + rng.below(3) {
            addresses.extend(pod_addresses().nth(rng.below(8)));
        }
        if rng.chance(5) {
            addresses.insert([[224, 0, 0, 1], [192, 168, 0, 1]][rng.below(2)].into());
        }
        let mtu = if rng.chance(10) { 60 } else { 1450 };
        let at = PortId([0, 0, 1, 1, 2, 3, 5, 7, 9][rng.below(9)]);
        let attachment = Attachment { port: at, mac: Mac([0x0a, 0x58, 10, 1, 0, n as u8]), mtu };
        let here = rng.chance(50);
        let pod = Arc::new(Endpoint {
            cookie: cookie.clone(),
            workload: Workload {
                namespace: "default".into(),
                name: format!("p{n}").into(),
                labels: [("app", ["a", "b"][n % 2])].into_iter().collect(),
                addresses: addresses.into_iter().collect(),
                ports: Vec::new(),
                host_network: false,
            },
            node: if here { "n0".into() } else { "n1".into() },
            attachment: here.then_some(attachment),
            precedence: precedence(rng),
        });
        let same = |o: &Arc<Endpoint>| o.cookie == cookie;
        replace(&mut self.config.endpoints, same, keep.then(|| pod.clone()));
        if keep { Change::Pod(pod) } else { Change::PodDeleted(cookie) }
    }

    fn node(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let n = 1 + rng.below(5);
        let name: Arc<str> = format!("n{n}").into();
        let v4 = |rng: &mut Rng| IpAddr::from([192, 168, 0, 1 + rng.below(7) as u8]);
        let mut addresses = vec![v4(rng)];
        match rng.below(4) {
            0 => addresses.push(format!("fd00:ffff::{}", rng.below(4)).parse().unwrap()),
            1 => addresses.push(v4(rng)),
            2 => addresses = vec![format!("fd00:ffff::{}", 1 + rng.below(4)).parse().unwrap()],
            _ => {}
        }
        let pod_cidrs = (0..rng.below(3)).map(|_| {
            let range = ["10.2.0.0/24", "10.3.0.0/24", "fd02::/64", "10.2.0.0/25", "10.1.0.0/24"];
            range[rng.below(5)].parse().unwrap()
        });
        let pod_cidrs = pod_cidrs.collect();
        let mac = match rng.below(12) {
            0 => Mac::BROADCAST,
            m => Mac([0x0e, 0x58, 0, 0, 0, (m % 6) as u8]),
        };
        let node = Arc::new(RemoteNode {
            cookie: Cookie::new(format!("Node/{name}")),
            name: name.clone(),
            labels: Labels::default(),
            addresses,
            pod_cidrs,
            vtep: VtepMac { ipv4: mac, ipv6: None },
            underlay_mac: if rng.chance(90) { underlay_mac(n) } else { Mac::ZERO },
            precedence: precedence(rng),
        });
        let same = |o: &Arc<RemoteNode>| o.name == name;
        replace(&mut self.config.nodes, same, keep.then(|| node.clone()));
        if keep { Change::Node(node) } else { Change::NodeDeleted(name) }
    }

    fn port(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let port = PortId([0, 1, 2, 5, 5, 6, 6, 7][rng.below(8)]);
        let mac = if rng.chance(80) { Mac([2, 0, 0, 0, 9, 9]) } else { Mac::BROADCAST };
        let role = match rng.below(7) {
            0 => PortRole::Host { mac, mtu: 1500 },
            1 => PortRole::Uplink { mac, mtu: 1500, tunnel: rng.chance(50), direct: false },
            2..=4 => {
                let vlans = match rng.below(4) {
                    0 => Vlans { untagged: Some(5), tagged: vec![5] },
                    n => Vlans { untagged: Some(n as u16), tagged: vec![7, 8] },
                };
                let domain = ["lan", "wan"][rng.below(2)].into();
                PortRole::Bridge { domain, vlans }
            }
            _ => PortRole::Pod,
        };
        let config = PortConfig { port, role };
        replace(&mut self.config.ports, |o| o.port == port, keep.then(|| config.clone()));
        if keep { Change::Port(config) } else { Change::PortDeleted(port) }
    }

    fn bridge(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let name: Arc<str> = ["lan", "wan"][rng.below(2)].into();
        let ageing_secs = if rng.chance(70) { 300 } else { 0 };
        let bridge = Arc::new(BridgeDomain { name: name.clone(), ageing_secs, learn_limit: 9 });
        replace(&mut self.config.bridges, |o| o.name == name, keep.then(|| bridge.clone()));
        if keep { Change::Bridge(bridge) } else { Change::BridgeDeleted(name) }
    }

    fn policy(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let n = rng.below(3);
        let cookie: Arc<str> = format!("NetworkPolicy/default/{n}").into();
        let app: Labels = [("app", ["a", "b"][rng.below(2)])].into_iter().collect();
        let rules = |rng: &mut Rng| vec![Rule { peers: Peers::Any, ports: ports(rng) }];
        let policy = Arc::new(NetworkPolicy {
            cookie: cookie.clone(),
            namespace: "default".into(),
            name: n.to_string().into(),
            pods: Selector::of_labels(app),
            ingress: rng.chance(70).then(|| rules(rng)),
            egress: rng.chance(50).then(|| rules(rng)),
        });
        let is_refused = rng.chance(30);
        let refused = RefusedPolicy::Network { policy: policy.clone(), error: error(&cookie) };
        let refused = Arc::new(refused);
        self.forget_refused(&cookie);
        let written = (keep && !is_refused).then(|| policy.clone());
        replace(&mut self.config.policies, |o| o.cookie == cookie, written);
        self.config.refused_policies.extend((keep && is_refused).then(|| refused.clone()));
        match (keep, is_refused) {
            (true, false) => Change::Policy(policy),
            (true, true) => Change::RefusedPolicy(refused),
            (false, _) => Change::PolicyDeleted(cookie),
        }
    }

    fn cluster_policy(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let n = rng.below(2);
        let cookie: Arc<str> = format!("ClusterNetworkPolicy/{n}").into();
        let rules = |rng: &mut Rng| {
            let everybody =
                NamespacedPods { namespaces: Selector::everything(), pods: Selector::everything() };
            let rule = ClusterRule {
                name: "".into(),
                action: [Action::Accept, Action::Deny][rng.below(2)],
                peers: vec![ClusterPeer::Pods(everybody)],
                ports: ports(rng),
            };
            if rng.chance(60) { vec![rule] } else { Vec::new() }
        };
        let app: Labels = [("app", ["a", "b"][rng.below(2)])].into_iter().collect();
        let policy = Arc::new(ClusterNetworkPolicy {
            cookie: cookie.clone(),
            name: n.to_string().into(),
            tier: [ClusterTier::Admin, ClusterTier::Baseline][rng.below(2)],
            priority: [1, 2, 1001][rng.below(3)],
            subject: NamespacedPods {
                namespaces: Selector::everything(),
                pods: Selector::of_labels(app),
            },
            ingress: rules(rng),
            egress: rules(rng),
        });
        let is_refused = rng.chance(30);
        let refused = RefusedPolicy::Cluster { policy: policy.clone(), error: error(&cookie) };
        let refused = Arc::new(refused);
        self.forget_refused(&cookie);
        let written = (keep && !is_refused).then(|| policy.clone());
        replace(&mut self.config.cluster_policies, |o| o.cookie == cookie, written);
        self.config.refused_policies.extend((keep && is_refused).then(|| refused.clone()));
        match (keep, is_refused) {
            (true, false) => Change::ClusterPolicy(policy),
            (true, true) => Change::RefusedPolicy(refused),
            (false, _) => Change::ClusterPolicyDeleted(cookie),
        }
    }

    fn forget_refused(&mut self, cookie: &Arc<str>) {
        self.config.refused_policies.retain(|refused| match &**refused {
            RefusedPolicy::Network { policy, .. } => policy.cookie != *cookie,
            RefusedPolicy::Cluster { policy, .. } => policy.cookie != *cookie,
        });
    }

    fn service(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let mut service =
            Service::cluster_ip("ns", &format!("s{}", rng.below(4)), [vips()[rng.below(3)]]);
        service.kind = ServiceType::NodePort;
        let node_port = Some(NODE_PORTS[rng.below(2)]);
        service.ports = vec![ServicePort { node_port, ..ServicePort::tcp("", 80) }];
        if rng.chance(20) {
            service.ports.push(ServicePort::tcp("", 80));
        }
        let (name, service) = (service.name.clone(), Arc::new(service));
        replace(&mut self.config.services, |o| o.name == name, keep.then(|| service.clone()));
        if keep { Change::Service(service) } else { Change::ServiceDeleted(name) }
    }

    fn slice(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let n = rng.below(4);
        let address = pod_addresses().nth(rng.below(5)).unwrap();
        let port = if rng.chance(80) { 8080 } else { 0 };
        let slice = Arc::new(EndpointSlice {
            namespace: "ns".into(),
            name: format!("s{n}-x").into(),
            service: format!("s{n}").into(),
            family: family_of(address),
            ports: vec![SlicePort::tcp("", port)],
            endpoints: vec![Backend::ready(address)],
        });
        let name = slice.name.clone();
        replace(&mut self.config.slices, |o| o.name == name, keep.then(|| slice.clone()));
        if keep { Change::Slice(slice) } else { Change::SliceDeleted("ns".into(), name) }
    }

    fn host_ports(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let pod = Cookie::new(format!("Pod/default/p{}", rng.below(7)));
        let target = pod_addresses().nth(rng.below(5)).unwrap();
        let port = if rng.chance(80) { NODE_PORTS[2] } else { 0 };
        let protocol = Protocol::Tcp;
        let port = HostPort { address: None, protocol, port, target: (target, 80).into() };
        let ports: Arc<[HostPort]> = if keep { [port].into() } else { [].into() };
        let object = keep.then(|| (pod.clone(), ports.clone()));
        replace(&mut self.config.host_ports, |(o, _)| *o == pod, object);
        Change::HostPorts(pod, ports)
    }

    fn route(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let destination = ["10.2.0.0/24", "203.0.113.0/24"][rng.below(2)].parse().unwrap();
        let via = |rng: &mut Rng| NextHop::Via([192, 168, 0, 1 + rng.below(9) as u8].into());
        let next_hops = match rng.below(4) {
            0 => Vec::new(),
            1 => vec![NextHop::Host],
            2 => vec![via(rng)],
            _ => vec![via(rng), via(rng)],
        };
        let route = Arc::new(Route { destination, next_hops });
        let same = |o: &Arc<Route>| o.destination == destination;
        replace(&mut self.config.routes, same, keep.then(|| route.clone()));
        if keep { Change::Route(route) } else { Change::RouteDeleted(destination) }
    }
}

/// In the order of their precedence, then by name.
fn ordered<T, K: Ord>(list: &[Arc<T>], rank: impl Fn(&T) -> (Precedence, K)) -> Vec<Arc<T>> {
    let mut list = list.to_vec();
    list.sort_by_key(|o| {
        let (precedence, name) = rank(o);
        (Reverse(precedence), name)
    });
    list
}

/// The simple implementation.
impl Mix {
    /// The names of the objects that are left out, in order.
    pub(crate) fn left_out(&self) -> Vec<String> {
        self.left_out.iter().cloned().collect()
    }

    /// The configuration of the valid objects alone.
    pub(crate) fn settle(&mut self) -> Config {
        self.left_out.clear();
        let mut good = self.config.clone();
        good.refused_policies.clear();
        let mut out = |name: String, is_good: bool| {
            if !is_good {
                self.left_out.insert(name);
            }
            is_good
        };
        good.bridges.retain(|o| out(format!("BridgeDomain/{}", o.name), o.ageing_secs > 0));
        good.ports.sort_by_key(|o| o.port);
        let mut parts = BTreeSet::new();
        let domains: Vec<_> = good.bridges.iter().map(|o| o.name.clone()).collect();
        good.ports.retain(|o| {
            let claims = match &o.role {
                PortRole::Pod => Some(vec![]),
                PortRole::Host { mac, .. } => mac.is_unicast().then(|| vec!["host"]),
                PortRole::Uplink { mac, tunnel, direct, .. } => {
                    let is_good = mac.is_unicast() && (*tunnel || *direct);
                    let claims = [tunnel.then_some("tunnel"), direct.then_some("direct")];
                    is_good.then(|| claims.into_iter().flatten().collect())
                }
                PortRole::Bridge { domain, vlans } => {
                    let both = vlans.untagged.is_some_and(|v| vlans.tagged.contains(&v));
                    (domains.contains(domain) && !both).then(Vec::new)
                }
            };
            let free = |claims: &Vec<&str>| claims.iter().all(|c| !parts.contains(*c));
            let claims = claims.filter(free);
            let is_good = claims.is_some();
            parts.extend(claims.into_iter().flatten().map(str::to_owned));
            out(format!("Port/{}", o.port), is_good)
        });
        let for_pods: Vec<PortId> =
            good.ports.iter().filter(|o| o.role == PortRole::Pod).map(|o| o.port).collect();
        let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
        let local = self.config.node.clone();
        good.endpoints = ordered(&good.endpoints, |o| (o.precedence, o.cookie.clone()));
        good.endpoints.retain(|o| {
            let own = &o.workload.addresses;
            let least = if own.iter().any(|a| a.is_ipv6()) { 1280 } else { 68 };
            let is_free = own.iter().all(|a| {
                !a.is_multicast() && !local.addresses.contains(a) && !addresses.contains(a)
            });
            let fits = o.attachment.is_none_or(|at| {
                at.mtu >= least && for_pods.contains(&at.port) && !ports.contains(&at.port)
            });
            if is_free && fits {
                addresses.extend(own.iter().copied());
                ports.extend(o.attachment.map(|at| at.port));
            }
            out(o.cookie.to_string(), is_free && fits)
        });
        let is_there = |list: &[Arc<Endpoint>], pod: &Cookie| list.iter().any(|o| o.cookie == *pod);
        good.host_ports.retain(|(pod, ports)| {
            let waits = is_there(&self.config.endpoints, pod) && !is_there(&good.endpoints, pod);
            out(pod.to_string(), !waits && ports.iter().all(|port| port.port > 0))
        });
        let (mut ends, mut ranges, mut macs) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        good.nodes = ordered(&good.nodes, |o| (o.precedence, o.name.clone()));
        good.nodes.retain(|o| {
            let first = |v6: bool| o.addresses.iter().find(|a| a.is_ipv6() == v6).copied();
            let own: BTreeSet<IpAddr> = [first(false), first(true)].into_iter().flatten().collect();
            // This node has both families, so its only VTEP is over IPv4 if there is IPv4.
            let mac = (o.vtep.ipv4, first(false).is_none());
            let is_good = mac.0.is_unicast()
                && o.addresses.iter().all(|a| !local.addresses.contains(a) && !a.is_unspecified())
                && o.pod_cidrs.iter().all(|r| !local.pod_cidrs.contains(r) && !ranges.contains(r))
                && own.is_disjoint(&ends)
                && !macs.contains(&mac);
            if is_good {
                ends.extend(own);
                ranges.extend(o.pod_cidrs.iter().copied());
                macs.insert(mac);
            }
            out(format!("Node/{}", o.name), is_good)
        });
        good.routes.retain(|o| out(format!("Route/{}", o.destination), !o.next_hops.is_empty()));
        good.services.retain(|o| out(o.cookie.to_string(), o.ports.len() == 1));
        good.slices
            .retain(|o| out(format!("EndpointSlice/ns/{}", o.name), o.ports[0].port != Some(0)));
        self.policies(&mut good);
        self.cluster_policies(&mut good);
        good
    }

    fn policies(&mut self, good: &mut Config) {
        let refused = self.config.refused_policies.iter().filter_map(|refused| match &**refused {
            RefusedPolicy::Network { policy, .. } => Some((policy, false)),
            RefusedPolicy::Cluster { .. } => None,
        });
        let is_good = |o: &NetworkPolicy| {
            o.ingress.iter().chain(&o.egress).flatten().all(|rule| are_good(&rule.ports))
        };
        let written = self.config.policies.iter().map(|o| (o, is_good(o)));
        let wanted: Vec<_> = written.chain(refused).collect();
        self.last.retain(|cookie, _| wanted.iter().any(|(o, _)| o.cookie == *cookie));
        good.policies.clear();
        for (policy, is_good) in wanted {
            if is_good {
                self.last.insert(policy.cookie.clone(), policy.clone());
            } else {
                self.left_out.insert(policy.cookie.to_string());
            }
            let closed = || {
                let mut closed = (**policy).clone();
                closed.ingress.iter_mut().chain(&mut closed.egress).for_each(Vec::clear);
                Arc::new(closed)
            };
            let last = self.last.get(&policy.cookie).cloned();
            good.policies.push(last.unwrap_or_else(closed));
        }
    }

    fn cluster_policies(&mut self, good: &mut Config) {
        let refused = self.config.refused_policies.iter().filter_map(|refused| match &**refused {
            RefusedPolicy::Cluster { policy, .. } => Some((policy, false)),
            RefusedPolicy::Network { .. } => None,
        });
        let is_good = |o: &ClusterNetworkPolicy| {
            o.priority <= 1000 && o.ingress.iter().chain(&o.egress).all(|r| are_good(&r.ports))
        };
        let written = self.config.cluster_policies.iter().map(|o| (o, is_good(o)));
        let wanted: Vec<_> = written.chain(refused).collect();
        self.last_cluster.retain(|cookie, _| wanted.iter().any(|(o, _)| o.cookie == *cookie));
        good.cluster_policies.clear();
        for (policy, is_good) in wanted {
            if is_good {
                self.last_cluster.insert(policy.cookie.clone(), policy.clone());
            } else {
                self.left_out.insert(policy.cookie.to_string());
            }
            let closed = || {
                // All addresses: pods, nodes and others.
                let all = |rules: &mut Vec<ClusterRule>| {
                    for rule in rules {
                        rule.action = Action::Deny;
                        rule.ports = Ports::Any;
                        rule.peers = vec![ClusterPeer::Unknown];
                    }
                };
                let mut closed = (**policy).clone();
                closed.priority = closed.priority.min(1000);
                all(&mut closed.ingress);
                all(&mut closed.egress);
                Arc::new(closed)
            };
            let last = self.last_cluster.get(&policy.cookie).cloned();
            good.cluster_policies.push(last.unwrap_or_else(closed));
        }
    }
}
