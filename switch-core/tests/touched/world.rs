//! A cluster of three nodes, seen from one of them, that changes at random.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{
    Attachment, Config, Endpoint, Masquerade, NextHop, PortConfig, PortRole, Route, Underlay,
};
use podswitch_core::control::Change;
use podswitch_core::id::{Cookie, PortId};
use podswitch_policy::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ClusterTier, Labels, NamedPort,
    Namespace, NamespacedPods, NetworkPolicy, Peer, Peers, PortRule, Ports, Protocol, Rule,
    Selector,
};
use podswitch_policy::service::model::{
    Conditions, Endpoint as Backend, EndpointSlice, HostPort, Ingress, IpMode, Service,
    ServicePort, ServiceType, SlicePort, TrafficPolicy, family_of,
};

use super::rig::overlay::{mac_of_pod, node_address, node_config, pod, remote};
use super::rig::random::Rng;

pub(crate) const NODE_PORT: u16 = 30_080;
const SPACES: [&str; 2] = ["default", "other"];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

pub(crate) fn vip(service: usize, v6: bool) -> IpAddr {
    match v6 {
        true => format!("fd00:96::1{service}").parse().unwrap(),
        false => [10, 96, 0, 10 + service as u8].into(),
    }
}

pub(crate) fn load_balancer(service: usize, v6: bool) -> IpAddr {
    match v6 {
        true => format!("2001:db8:1b::{service}").parse().unwrap(),
        false => [198, 51, 100, service as u8].into(),
    }
}

pub(crate) fn outside(n: usize, v6: bool) -> IpAddr {
    match v6 {
        true => format!("2001:db8::{n}").parse().unwrap(),
        false => [203, 0, 113, n as u8].into(),
    }
}

/// Another address that pod `n` of this node may get, its own or with others.
pub(crate) fn spare(n: usize, v6: bool) -> IpAddr {
    pod(0, 20 + n, v6)
}

pub(crate) struct World {
    pub(crate) config: Config,
}

fn replace<T>(list: &mut Vec<Arc<T>>, same: impl Fn(&T) -> bool, object: Option<Arc<T>>) {
    list.retain(|o| !same(o));
    list.extend(object);
}

fn labels(rng: &mut Rng, key: &'static str) -> Labels {
    match rng.below(4) {
        0 => Labels::default(),
        n => [(key, ["", "a", "b", "c"][n])].into_iter().collect(),
    }
}

/// Of one namespace or the other, nearly always.
fn team(rng: &mut Rng) -> Labels {
    [("team", ["a", "b"][rng.below(2)])].into_iter().collect()
}

fn selector(rng: &mut Rng, key: &'static str) -> Selector {
    Selector::of_labels(labels(rng, key))
}

impl World {
    pub(crate) fn new() -> Self {
        let mut config = node_config(0, Underlay::Ipv4First);
        config.service_cidrs =
            vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
        let mut world = Self { config };
        let mut rng = Rng::new(99);
        for number in 0..SPACES.len() {
            world.namespace(&mut rng, number, true);
        }
        for number in 0..3 {
            world.service(&mut rng, number, true);
            for v6 in [false, true] {
                world.slice(&mut rng, number, v6, true);
            }
        }
        world
    }

    /// Changes one thing or a few. `None`: changes that single objects cannot express.
    pub(crate) fn change(&mut self, rng: &mut Rng) -> Option<Vec<Change>> {
        if rng.chance(8) {
            self.ground(rng);
            return None;
        }
        if rng.chance(8) {
            return Some(self.port(rng));
        }
        let count = [1, 1, 1, 2, 4][rng.below(5)];
        Some((0..count).map(|_| self.one(rng)).collect())
    }

    fn one(&mut self, rng: &mut Rng) -> Change {
        let keep = rng.chance(80);
        match rng.below(26) {
            0..=6 => self.pod(rng),
            7 | 8 | 24 | 25 => {
                let number = rng.below(SPACES.len());
                self.namespace(rng, number, keep)
            }
            9 if rng.chance(30) => self.node(rng, keep),
            9..=13 => self.policy(rng, keep),
            14..=16 => self.cluster_policy(rng, keep),
            17..=19 => {
                let number = rng.below(3);
                self.service(rng, number, keep)
            }
            _ => {
                let (number, v6) = (rng.below(3), rng.chance(50));
                self.slice(rng, number, v6, keep)
            }
        }
    }

    fn pod(&mut self, rng: &mut Rng) -> Change {
        let (node, n) = ([0, 0, 0, 1, 2][rng.below(5)], rng.below(3));
        let cookie = Cookie::new(format!("Pod/default/p{node}{n}"));
        if rng.chance(15) {
            replace(&mut self.config.endpoints, |o| o.cookie == cookie, None);
            return Change::PodDeleted(cookie);
        }
        let there = self.config.endpoints.iter().find(|o| o.cookie == cookie);
        let mut object = there.map_or_else(
            || {
                let fresh = node_config(0, Underlay::Ipv4First).endpoints;
                let fresh = fresh.into_iter().find(|o| o.cookie == cookie);
                (*fresh.expect("one of these")).clone()
            },
            |known| (**known).clone(),
        );
        match rng.below(8) {
            0..=2 => object.workload.labels = labels(rng, "app"),
            3 => {
                object.workload.ports = match rng.below(3) {
                    0 => Vec::new(),
                    n => PROTOCOLS
                        .map(|protocol| NamedPort {
                            name: "web".into(),
                            protocol,
                            port: [0, 80, 8080][n],
                        })
                        .to_vec(),
                };
            }
            4 => object.workload.namespace = SPACES[rng.below(2)].into(),
            5 if node == 0 => {
                let mtu = [1280, 1450][rng.below(2)];
                let at = Attachment { port: PortId(n as u16), mac: mac_of_pod(0, n), mtu };
                object.attachment = rng.chance(70).then_some(at);
            }
            5 => object.node = format!("n{}", 1 + rng.below(2)).into(),
            6 => {
                let own = |v6| pod(node, n, v6);
                let given = [false, true].map(|v6| spare(rng.below(3), v6));
                object.workload.addresses = match rng.below(3) {
                    0 => vec![own(false), own(true)],
                    1 => vec![own(false), own(true), given[0], given[1]],
                    _ => vec![given[0], own(true)],
                };
            }
            _ => {
                object.workload.host_network = !object.workload.host_network;
                if object.workload.host_network {
                    let node: usize = object.node[1..].parse().unwrap();
                    object.attachment = None;
                    object.workload.addresses =
                        [false, true].map(|v6| node_address(node, v6)).into();
                } else {
                    object.workload.addresses = [false, true].map(|v6| pod(node, n, v6)).into();
                }
            }
        }
        let object: Arc<Endpoint> = Arc::new(object);
        let same = |o: &Endpoint| o.cookie == cookie;
        replace(&mut self.config.endpoints, same, Some(object.clone()));
        Change::Pod(object)
    }

    /// A port of this node's pods is added or removed, with its pod.
    fn port(&mut self, rng: &mut Rng) -> Vec<Change> {
        let n = rng.below(3);
        let id = PortId(n as u16);
        let there = self.config.ports.iter().any(|o| o.port == id);
        let port = PortConfig { port: id, role: PortRole::Pod };
        self.config.ports.retain(|o| o.port != id);
        if !there {
            self.config.ports.push(port.clone());
        }
        let mut changes = vec![if there { Change::PortDeleted(id) } else { Change::Port(port) }];
        let cookie = Cookie::new(format!("Pod/default/p0{n}"));
        let pod = self.config.endpoints.iter_mut().find(|o| o.cookie == cookie);
        if let Some(pod) = pod.filter(|pod| !pod.workload.host_network) {
            let at = Attachment { port: id, mac: mac_of_pod(0, n), mtu: 1450 };
            Arc::make_mut(pod).attachment = (!there).then_some(at);
            changes.push(Change::Pod(pod.clone()));
        }
        changes
    }

    fn namespace(&mut self, rng: &mut Rng, number: usize, keep: bool) -> Change {
        let name: Arc<str> = SPACES[number].into();
        let object = Arc::new(Namespace { name: name.clone(), labels: team(rng) });
        let kept = keep.then(|| object.clone());
        replace(&mut self.config.namespaces, |o| o.name == name, kept);
        if keep { Change::Namespace(object) } else { Change::NamespaceDeleted(name) }
    }

    fn node(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let mut object = remote(1 + rng.below(2));
        object.labels = labels(rng, "zone");
        if rng.chance(30) {
            object.pod_cidrs.clear();
        }
        let (name, object) = (object.name.clone(), Arc::new(object));
        replace(&mut self.config.nodes, |o| o.name == name, keep.then(|| object.clone()));
        if keep { Change::Node(object) } else { Change::NodeDeleted(name) }
    }

    fn ports(rng: &mut Rng) -> Ports {
        let protocol = PROTOCOLS[rng.below(2)];
        let range = |first, last| PortRule::Range { protocol, first, last };
        match rng.below(5) {
            0 => Ports::AnyOf(vec![range(80, 8080)]),
            1 => Ports::AnyOf(vec![PortRule::Every(protocol)]),
            2 => {
                Ports::AnyOf(vec![PortRule::Named { protocol: Some(protocol), name: "web".into() }])
            }
            _ => Ports::Any,
        }
    }

    fn rule(rng: &mut Rng) -> Rule {
        let peer = |rng: &mut Rng| match rng.below(4) {
            0 => Peer::IpBlock {
                cidr: ["10.1.0.0/16", "203.0.113.0/30", "fd00::/16", "0.0.0.0/0"][rng.below(4)]
                    .parse()
                    .unwrap(),
                except: Vec::new(),
            },
            1 => Peer::Selectors { pods: None, namespaces: Some(Selector::of_labels(team(rng))) },
            2 => Peer::Selectors { pods: Some(selector(rng, "app")), namespaces: None },
            _ => Peer::Selectors {
                pods: Some(selector(rng, "app")),
                namespaces: Some(selector(rng, "team")),
            },
        };
        let peers = match rng.below(6) {
            0 => Peers::Any,
            n => Peers::AnyOf((0..=n / 3).map(|_| peer(rng)).collect()),
        };
        Rule { peers, ports: Self::ports(rng) }
    }

    fn policy(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let number = rng.below(5);
        let cookie: Arc<str> = format!("NetworkPolicy/default/{number}").into();
        let rules = |rng: &mut Rng| (0..rng.below(4)).map(|_| Self::rule(rng)).collect();
        let object = Arc::new(NetworkPolicy {
            cookie: cookie.clone(),
            namespace: SPACES[usize::from(number == 4)].into(),
            name: number.to_string().into(),
            pods: selector(rng, "app"),
            ingress: rng.chance(60).then(|| rules(rng)),
            egress: rng.chance(40).then(|| rules(rng)),
        });
        // Most policies allow something, otherwise few flows would ever be known.
        let keep = keep && rng.chance(70);
        replace(&mut self.config.policies, |o| o.cookie == cookie, keep.then(|| object.clone()));
        if keep { Change::Policy(object) } else { Change::PolicyDeleted(cookie) }
    }

    fn cluster_policy(&mut self, rng: &mut Rng, keep: bool) -> Change {
        let number = rng.below(3);
        let cookie: Arc<str> = format!("ClusterNetworkPolicy/{number}").into();
        let pods = |rng: &mut Rng| NamespacedPods {
            namespaces: selector(rng, "team"),
            pods: selector(rng, "app"),
        };
        let rule = |rng: &mut Rng, out: bool| ClusterRule {
            name: "".into(),
            action: [Action::Accept, Action::Deny, Action::Pass][rng.below(3)],
            peers: vec![match rng.below(4) {
                0 if out => ClusterPeer::Nodes(selector(rng, "zone")),
                1 if out => ClusterPeer::Networks(vec!["10.0.0.0/8".parse().unwrap()]),
                _ => ClusterPeer::Pods(pods(rng)),
            }],
            ports: Self::ports(rng),
        };
        let object = Arc::new(ClusterNetworkPolicy {
            cookie: cookie.clone(),
            name: number.to_string().into(),
            tier: [ClusterTier::Admin, ClusterTier::Baseline][rng.below(2)],
            priority: rng.below(3) as u16,
            subject: pods(rng),
            ingress: (0..rng.below(3)).map(|_| rule(rng, false)).collect(),
            egress: (0..rng.below(3)).map(|_| rule(rng, true)).collect(),
        });
        let list = &mut self.config.cluster_policies;
        replace(list, |o| o.cookie == cookie, keep.then(|| object.clone()));
        if keep { Change::ClusterPolicy(object) } else { Change::ClusterPolicyDeleted(cookie) }
    }

    fn service(&mut self, rng: &mut Rng, number: usize, keep: bool) -> Change {
        let policy = |rng: &mut Rng| match rng.chance(30) {
            true => TrafficPolicy::Local,
            false => TrafficPolicy::Cluster,
        };
        let port = |protocol: Protocol| ServicePort {
            protocol,
            node_port: Some(NODE_PORT + number as u16),
            ..ServicePort::tcp(protocol.name(), 80)
        };
        let ports: Vec<_> = PROTOCOLS.into_iter().filter(|_| rng.chance(90)).map(port).collect();
        let addresses = [false, true].map(|v6| vip(number, v6));
        let ingress = |v6| Ingress { address: load_balancer(number, v6), mode: IpMode::Vip };
        let object = Arc::new(Service {
            kind: ServiceType::LoadBalancer,
            ports,
            ingress: [false, true].into_iter().filter(|_| rng.chance(80)).map(ingress).collect(),
            internal_policy: policy(rng),
            external_policy: policy(rng),
            affinity: rng.chance(30).then_some(100),
            source_ranges: match rng.chance(20) {
                true => vec!["203.0.113.0/31".parse().unwrap()],
                false => Vec::new(),
            },
            publish_not_ready: rng.chance(10),
            ..Service::cluster_ip("default", &format!("s{number}"), addresses)
        });
        let name = object.name.clone();
        replace(&mut self.config.services, |o| o.name == name, keep.then(|| object.clone()));
        if keep { Change::Service(object) } else { Change::ServiceDeleted(name) }
    }

    fn slice(&mut self, rng: &mut Rng, number: usize, v6: bool, keep: bool) -> Change {
        let backend = |rng: &mut Rng| {
            let node = [0, 0, 1, 2][rng.below(4)];
            let conditions = match rng.below(6) {
                0 => {
                    Conditions { ready: Some(false), serving: Some(true), terminating: Some(true) }
                }
                1 => Conditions { ready: Some(false), ..Conditions::default() },
                _ => Conditions::default(),
            };
            let at = Backend::ready(pod(node, rng.below(3), v6)).on(&format!("n{node}"));
            Backend { conditions, ..at }
        };
        let object = Arc::new(EndpointSlice {
            namespace: "default".into(),
            name: format!("s{number}-{v6}").into(),
            service: format!("s{number}").into(),
            family: family_of(vip(number, v6)),
            ports: PROTOCOLS
                .map(|p| SlicePort { protocol: p, ..SlicePort::tcp(p.name(), 8080) })
                .to_vec(),
            endpoints: (0..rng.below(5)).map(|_| backend(rng)).collect(),
        });
        let (namespace, name) = (object.namespace.clone(), object.name.clone());
        replace(&mut self.config.slices, |o| o.name == name, keep.then(|| object.clone()));
        if keep { Change::Slice(object) } else { Change::SliceDeleted(namespace, name) }
    }

    /// Changes that only whole configurations can express.
    fn ground(&mut self, rng: &mut Rng) {
        let config = &mut self.config;
        match rng.below(6) {
            0 => {
                config.masquerade = rng.chance(50).then(|| Masquerade {
                    ipv4: Some([192, 168, 0, 1].into()),
                    ..Masquerade::default()
                });
            }
            1 => {
                let next_hops = match rng.below(3) {
                    0 => vec![NextHop::Blackhole],
                    1 => vec![NextHop::Host],
                    _ => vec![NextHop::Host, NextHop::Blackhole],
                };
                let destination = "203.0.113.0/29".parse().unwrap();
                config.routes = match rng.chance(60) {
                    true => vec![Arc::new(Route { destination, next_hops })],
                    false => Vec::new(),
                };
            }
            2 => config.node.labels = labels(rng, "zone"),
            3 => {
                let port = HostPort {
                    address: None,
                    protocol: Protocol::Udp,
                    port: 9000,
                    target: (pod(0, rng.below(3), false), 8080).into(),
                };
                config.host_ports = match rng.chance(70) {
                    true => vec![(Cookie::new("Pod/default/p00"), Arc::new([port]))],
                    false => Vec::new(),
                };
            }
            4 => {
                let last = rng.below(3) as u8;
                for port in &mut config.ports {
                    if let PortRole::Host { mac, .. } = &mut port.role {
                        mac.0[5] = last;
                    }
                }
            }
            _ => {
                // Several at once, by comparison of the two states.
                for _ in 0..3 {
                    self.one(rng);
                }
            }
        }
    }
}
