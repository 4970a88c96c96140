//! A node with pods, another node, and what tests look at and take away.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use podswitch_core::config::{Config, LocalNode, RemoteNode, TunnelConfig, VtepMac};
use podswitch_core::id::Cookie;
use podswitch_linux::netlink::{LinkSpec, Route};
use podswitch_linux::{NetNs, Netlink};
use podswitch_node::{
    Event, Failure, InterfaceKind, Node, NodeOptions, PodAttachment, PodName, UnderlayOptions,
};
use podswitch_policy::rule::Labels;
use podswitch_wire::addr::Mac;

pub(crate) const NODE: &str = "192.0.2.1";
pub(crate) const OTHER: &str = "192.0.2.2";

/// A node with an address that an interface of it has, pods of both families, and another node.
pub(crate) fn config(address: &str) -> Config {
    let node = LocalNode {
        name: "n1".into(),
        addresses: vec![address.parse().unwrap()],
        pod_cidrs: vec!["10.8.0.0/24".parse().unwrap(), "fd08::/64".parse().unwrap()],
        vtep: vtep(1),
        ..LocalNode::default()
    };
    let other = RemoteNode {
        cookie: Cookie::new("Node/n2"),
        name: "n2".into(),
        labels: Labels::default(),
        addresses: vec![OTHER.parse().unwrap()],
        pod_cidrs: vec!["10.8.2.0/24".parse().unwrap()],
        vtep: vtep(2),
        underlay_mac: Mac([2, 0, 0, 0, 1, 2]),
        precedence: Default::default(),
    };
    let tunnel = Some(TunnelConfig::default());
    Config { node, nodes: vec![Arc::new(other)], tunnel, ..Config::default() }
}

pub(crate) fn vtep(number: u8) -> VtepMac {
    VtepMac { ipv4: Mac([2, 0, 0, 0, 0, number]), ipv6: None }
}

pub(crate) fn pod_addresses(number: u8) -> [IpAddr; 2] {
    let v6 = IpAddr::from([0xfd08, 0, 0, 0, 0, 0, 0, u16::from(number)]);
    [[10, 8, 0, number].into(), v6]
}

/// A node's namespace with an interface and an address; a node with two pods, of either kind.
pub(crate) struct World {
    pub(crate) netns: NetNs,
    /// Where the other end of its interface is.
    pub(crate) beyond: NetNs,
    pub(crate) pods: [NetNs; 2],
    pub(crate) node: Node,
    pub(crate) events: Receiver<Event>,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::with(UnderlayOptions::default())
    }

    pub(crate) fn with(underlay: UnderlayOptions) -> Self {
        let [netns, red, blue] = [(); 3].map(|()| NetNs::anonymous().unwrap());
        let mut netlink = Netlink::open(&netns).unwrap();
        let beyond = NetNs::anonymous().unwrap();
        let uplink = add_uplink(&mut netlink, &beyond);
        netlink.add_address(uplink, format!("{NODE}/24").parse().unwrap()).unwrap();
        let (sender, events) = channel();
        let options = NodeOptions::new("n1")
            .namespace(netns.clone())
            .switch_namespace(switch_namespace())
            .underlay(underlay)
            .on_event(move |event| drop(sender.send(event)));
        let mut node = Node::start(options, config(NODE)).unwrap();
        let pods = [red, blue];
        for (number, kind) in [(2, InterfaceKind::Tap), (3, InterfaceKind::Veth)] {
            let name = PodName::new("default", &format!("p{number}")).unwrap();
            let netns = pods[usize::from(number) - 2].clone();
            let pod = PodAttachment::new(name, netns, pod_addresses(number)).kind(kind);
            let labels: Labels = [("app", "any")].into_iter().collect();
            node.add_pod(pod.labels(labels)).unwrap();
        }
        let mut world = Self { netns, beyond, pods, node, events };
        world.poll_until("the start", |world| world.node_reaches_pods());
        world.events.try_iter().for_each(drop);
        world
    }

    /// Polls as a program does, at the times that the node asks for, until something holds.
    pub(crate) fn poll_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..120 {
            thread::sleep(self.node.poll().unwrap());
            if holds(self) {
                return;
            }
        }
        let told: Vec<String> = self.events.try_iter().map(|event| event.to_string()).collect();
        panic!("after {what}: it never came about; told: {told:#?}");
    }

    /// What was put back since the last call, and of which object. There was no failure.
    pub(crate) fn repaired(&self) -> Vec<(String, String)> {
        let mut list = Vec::new();
        for event in self.events.try_iter() {
            match event {
                Event::Repaired { object, done } => list.push((object, done.join(", "))),
                Event::Failure(Failure::TunnelOffload(_)) | Event::Applied { .. } => {}
                other => panic!("{other}"),
            }
        }
        list
    }

    /// Something is taken away from `netns`; all that was there is there again, and a note says so of `object`.
    pub(crate) fn is_put_back(
        &mut self,
        netns: &NetNs,
        object: &str,
        what: &str,
        take: impl FnOnce(&NetNs),
    ) {
        let before = found(netns);
        take(netns);
        assert_ne!(found(netns), before, "{what} takes nothing away");
        self.poll_until(what, |_| before.is_subset(&found(netns)));
        let repaired = self.repaired();
        assert!(repaired.iter().any(|(of, _)| of == object), "{what}: {repaired:?}");
    }

    /// By IPv4: the node has no IPv6 address to send from.
    pub(crate) fn node_reaches_pods(&self) -> bool {
        let all = self.pods.iter().zip([2, 3]);
        all.into_iter().all(|(pod, number)| reaches(&self.netns, pod, pod_addresses(number)[0]))
    }

    pub(crate) fn pods_reach_each_other(&self) -> bool {
        pod_addresses(3).into_iter().all(|a| reaches(&self.pods[0], &self.pods[1], a))
    }
}

/// One of its own for each node of a test.
pub(crate) fn switch_namespace() -> NetNs {
    let netns = NetNs::anonymous().unwrap();
    podswitch_linux::attach::silence(&netns).unwrap();
    netns
}

/// An interface to `beyond`.
pub(crate) fn add_uplink(netlink: &mut Netlink, beyond: &NetNs) -> u32 {
    netlink.add_veth(&LinkSpec::new("u0").up(), &LinkSpec::new("u0").up(), beyond).unwrap()
}

/// Whether a datagram arrives; the first may be lost while neighbours are asked for.
pub(crate) fn reaches(from: &NetNs, to: &NetNs, address: IpAddr) -> bool {
    let Ok(server) = to.enter(|| UdpSocket::bind((address, 0))).unwrap() else { return false };
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = from.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
    let target: SocketAddr = server.local_addr().unwrap();
    (0..10).any(|_| client.send_to(b"?", target).is_ok() && server.recv_from(&mut [0; 16]).is_ok())
}

/// Interfaces, addresses, routes, rules and permanent neighbours, as words.
pub(crate) fn found(netns: &NetNs) -> BTreeSet<String> {
    let mut netlink = Netlink::open(netns).unwrap();
    let mut found = BTreeSet::new();
    for link in netlink.links().unwrap() {
        found
            .insert(format!("{} up={} mtu={} mac={:?}", link.name, link.is_up, link.mtu, link.mac));
    }
    // The kernel's own link-local addresses and routes are random or come late.
    let addresses = netlink.addresses().unwrap().into_iter().map(|a| a.address.to_string());
    found.extend(addresses.filter(|a| !a.starts_with("fe80:")));
    let routes = netlink.routes().unwrap().into_iter().filter(|r| r.gateway.is_some());
    found.extend(routes.map(|r| {
        format!("{} via {:?} from {:?} in {}", r.destination, r.gateway, r.source, r.table)
    }));
    found.extend(netlink.rules().unwrap().iter().map(ToString::to_string));
    let gateways = ["169.254.1.1", "fe80::1"].map(|a| a.parse::<IpAddr>().unwrap());
    let neighbours = netlink.neighbours().unwrap().into_iter();
    let neighbours = neighbours.filter(|n| gateways.contains(&n.address) && n.is_confirmed);
    found.extend(neighbours.map(|n| format!("{} at {:?}", n.address, n.mac)));
    found
}

/// Switched off meanwhile, and on again.
pub(crate) fn rename(netns: &NetNs, from: &str, to: &str) {
    let mut netlink = Netlink::open(netns).unwrap();
    let index = netlink.link(from).unwrap().index;
    netlink.set_down(index).unwrap();
    netlink.rename(index, to).unwrap();
    netlink.set_up(index).unwrap();
}

pub(crate) fn set_link(netns: &NetNs, name: &str, up: bool) {
    let mut netlink = Netlink::open(netns).unwrap();
    let index = netlink.link(name).unwrap().index;
    if up { netlink.set_up(index) } else { netlink.set_down(index) }.unwrap();
}

pub(crate) fn flush_addresses(netns: &NetNs, name: &str) {
    let mut netlink = Netlink::open(netns).unwrap();
    let index = netlink.link(name).unwrap().index;
    for address in netlink.addresses().unwrap().into_iter().filter(|a| a.link == index) {
        netlink.delete_address(index, address.address).unwrap();
    }
}

pub(crate) fn flush_routes(netns: &NetNs, name: &str) {
    let mut netlink = Netlink::open(netns).unwrap();
    let index = netlink.link(name).unwrap().index;
    let ours = |r: &Route| r.link == Some(index) && r.gateway.is_some();
    for route in netlink.routes().unwrap().into_iter().filter(ours) {
        netlink.delete_route(&route).unwrap();
    }
}

/// Every setting of a namespace's network, by path.
pub(crate) fn settings(netns: &NetNs) -> BTreeSet<String> {
    pub(crate) fn read(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => read(&path, found),
                _ => {
                    // The kernel answers the first read alone.
                    let mut value = vec![0; 4096];
                    let length = fs::File::open(&path).and_then(|mut f| f.read(&mut value));
                    value.truncate(length.unwrap_or(0));
                    found.insert(format!("{} = {:?}", path.display(), String::from_utf8(value)));
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    netns
        .enter(|| {
            for family in ["ipv4", "ipv6"] {
                read(&Path::new("/proc/sys/net").join(family), &mut found);
            }
        })
        .unwrap();
    found
}
