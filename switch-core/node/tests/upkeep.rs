//! What the switch set up and somebody takes away is put back: in pods, on the node, in the tunnel.

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
use podswitch_linux::netlink::{LinkSpec, Route, Rule};
use podswitch_linux::nft::IngressDrop;
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_node::{
    Event, Failure, InterfaceKind, Node, NodeOptions, PodAttachment, PodInterfaces, PodName,
    UnderlayKind, UnderlayOptions,
};
use podswitch_policy::rule::Labels;
use podswitch_wire::addr::Mac;

const NODE: &str = "192.0.2.1";
const OTHER: &str = "192.0.2.2";

/// A node with an address that an interface of it has, pods of both families, and another node.
fn config(address: &str) -> Config {
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

fn vtep(number: u8) -> VtepMac {
    VtepMac { ipv4: Mac([2, 0, 0, 0, 0, number]), ipv6: None }
}

fn pod_addresses(number: u8) -> [IpAddr; 2] {
    let v6 = IpAddr::from([0xfd08, 0, 0, 0, 0, 0, 0, u16::from(number)]);
    [[10, 8, 0, number].into(), v6]
}

/// A node's namespace with an interface and an address; a node with two pods, of either kind.
struct World {
    netns: NetNs,
    /// Where the other end of its interface is.
    beyond: NetNs,
    pods: [NetNs; 2],
    node: Node,
    events: Receiver<Event>,
}

impl World {
    fn start() -> Self {
        Self::with(UnderlayOptions::default())
    }

    fn with(underlay: UnderlayOptions) -> Self {
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
    fn poll_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
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
    fn repaired(&self) -> Vec<(String, String)> {
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
    fn is_put_back(&mut self, netns: &NetNs, object: &str, what: &str, take: impl FnOnce(&NetNs)) {
        let before = found(netns);
        take(netns);
        assert_ne!(found(netns), before, "{what} takes nothing away");
        self.poll_until(what, |_| before.is_subset(&found(netns)));
        let repaired = self.repaired();
        assert!(repaired.iter().any(|(of, _)| of == object), "{what}: {repaired:?}");
    }

    /// By IPv4: the node has no IPv6 address to send from.
    fn node_reaches_pods(&self) -> bool {
        let all = self.pods.iter().zip([2, 3]);
        all.into_iter().all(|(pod, number)| reaches(&self.netns, pod, pod_addresses(number)[0]))
    }

    fn pods_reach_each_other(&self) -> bool {
        pod_addresses(3).into_iter().all(|a| reaches(&self.pods[0], &self.pods[1], a))
    }
}

/// One of its own for each node of a test.
fn switch_namespace() -> NetNs {
    let netns = NetNs::anonymous().unwrap();
    podswitch_linux::attach::silence(&netns).unwrap();
    netns
}

/// An interface to `beyond`.
fn add_uplink(netlink: &mut Netlink, beyond: &NetNs) -> u32 {
    netlink.add_veth(&LinkSpec::new("u0").up(), &LinkSpec::new("u0").up(), beyond).unwrap()
}

/// Whether a datagram arrives; the first may be lost while neighbours are asked for.
fn reaches(from: &NetNs, to: &NetNs, address: IpAddr) -> bool {
    let Ok(server) = to.enter(|| UdpSocket::bind((address, 0))).unwrap() else { return false };
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = from.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
    let target: SocketAddr = server.local_addr().unwrap();
    (0..10).any(|_| client.send_to(b"?", target).is_ok() && server.recv_from(&mut [0; 16]).is_ok())
}

/// Interfaces, addresses, routes, rules and permanent neighbours, as words.
fn found(netns: &NetNs) -> BTreeSet<String> {
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
fn rename(netns: &NetNs, from: &str, to: &str) {
    let mut netlink = Netlink::open(netns).unwrap();
    let index = netlink.link(from).unwrap().index;
    netlink.set_down(index).unwrap();
    netlink.rename(index, to).unwrap();
    netlink.set_up(index).unwrap();
}

fn set_link(netns: &NetNs, name: &str, up: bool) {
    let mut netlink = Netlink::open(netns).unwrap();
    let index = netlink.link(name).unwrap().index;
    if up { netlink.set_up(index) } else { netlink.set_down(index) }.unwrap();
}

fn flush_addresses(netns: &NetNs, name: &str) {
    let mut netlink = Netlink::open(netns).unwrap();
    let index = netlink.link(name).unwrap().index;
    for address in netlink.addresses().unwrap().into_iter().filter(|a| a.link == index) {
        netlink.delete_address(index, address.address).unwrap();
    }
}

fn flush_routes(netns: &NetNs, name: &str) {
    let mut netlink = Netlink::open(netns).unwrap();
    let index = netlink.link(name).unwrap().index;
    let ours = |r: &Route| r.link == Some(index) && r.gateway.is_some();
    for route in netlink.routes().unwrap().into_iter().filter(ours) {
        netlink.delete_route(&route).unwrap();
    }
}

#[test]
fn a_deleted_host_interface_is_made_again_and_pods_keep_theirs() {
    podswitch_testkit::require_tap!();
    let mut world = World::start();
    let index = |netns: &NetNs, name: &str| {
        Netlink::open(netns).unwrap().find_link(name).unwrap().map(|link| link.index)
    };
    let pods = world.pods.clone();
    let before = pods.each_ref().map(|netns| index(netns, "eth0").unwrap());
    let netns = world.netns.clone();
    let first = index(&netns, "podswitch0").unwrap();
    // Twice: the ports that were replaced are free again.
    for _ in 0..2 {
        let at = index(&netns, "podswitch0").unwrap();
        let take = |netns: &NetNs| Netlink::open(netns).unwrap().delete_link(at).unwrap();
        take(&netns);
        world.poll_until("deletion", |_| index(&netns, "podswitch0").is_some());
        assert_ne!(index(&netns, "podswitch0"), Some(first));
        let repaired = world.repaired();
        assert!(repaired.iter().any(|(of, _)| of == "podswitch0"), "{repaired:?}");
        world.poll_until("deletion", |world| world.node_reaches_pods());
        assert!(world.pods_reach_each_other());
        assert_eq!(pods.each_ref().map(|netns| index(netns, "eth0").unwrap()), before);
    }
    world.node.stop(PodInterfaces::Remove).unwrap();
    assert_eq!(index(&netns, "podswitch0"), None);
}

#[test]
fn what_is_taken_from_a_pod_is_put_back() {
    podswitch_testkit::require_tap!();
    let mut world = World::start();
    for (netns, pod) in world.pods.clone().iter().zip(["default/p2", "default/p3"]) {
        world.is_put_back(netns, pod, "down", |ns| set_link(ns, "eth0", false));
        world.is_put_back(netns, pod, "down and up", |ns| {
            set_link(ns, "eth0", false);
            set_link(ns, "eth0", true);
        });
        world.is_put_back(netns, pod, "flushed addresses", |ns| flush_addresses(ns, "eth0"));
        world.is_put_back(netns, pod, "flushed routes", |ns| flush_routes(ns, "eth0"));
        world.is_put_back(netns, pod, "IPv6 off and on", |ns| {
            sysctl::set(ns, "net/ipv6/conf/eth0/disable_ipv6", "1").unwrap();
            sysctl::set(ns, "net/ipv6/conf/eth0/disable_ipv6", "0").unwrap();
        });
        world.is_put_back(netns, pod, "another MTU", |ns| {
            let mut netlink = Netlink::open(ns).unwrap();
            let index = netlink.link("eth0").unwrap().index;
            netlink.set_mtu(index, 1200).unwrap();
        });
        world.is_put_back(netns, pod, "another MAC address", |ns| {
            let mut netlink = Netlink::open(ns).unwrap();
            let index = netlink.link("eth0").unwrap().index;
            netlink.set_mac(index, Mac([2, 0, 0, 9, 9, 9])).unwrap();
        });
        world.is_put_back(netns, pod, "another name", |ns| rename(ns, "eth0", "x0"));
        world.is_put_back(netns, pod, "another name and no addresses", |ns| {
            rename(ns, "eth0", "x0");
            flush_addresses(ns, "x0");
        });
        world.is_put_back(netns, pod, "a forgotten gateway", |ns| {
            let mut netlink = Netlink::open(ns).unwrap();
            let index = netlink.link("eth0").unwrap().index;
            netlink.delete_neighbour(index, "169.254.1.1".parse().unwrap()).unwrap();
        });
    }
    // The pods reach each other all the same, and nothing more is found to put back.
    assert!(world.pods_reach_each_other());
    for _ in 0..12 {
        thread::sleep(world.node.poll().unwrap());
    }
    assert_eq!(world.repaired(), []);
    // While a pod has IPv6 off, that is how it wants it.
    let [red, _] = world.pods.clone();
    sysctl::set(&red, "net/ipv6/conf/eth0/disable_ipv6", "1").unwrap();
    for _ in 0..8 {
        thread::sleep(world.node.poll().unwrap());
    }
    assert_eq!(world.repaired(), []);
}

/// Nothing is sent meanwhile: a packet socket would learn of it only then.
#[test]
fn a_deleted_pod_interface_is_made_again() {
    podswitch_testkit::require_tap!();
    let mut world = World::start();
    for (netns, pod) in world.pods.clone().iter().zip(["default/p2", "default/p3"]) {
        let before = found(netns);
        let mut netlink = Netlink::open(netns).unwrap();
        let index = netlink.link("eth0").unwrap().index;
        netlink.delete_link(index).unwrap();
        world.poll_until("deletion", |_| before.is_subset(&found(netns)));
        let told: Vec<String> = world.events.try_iter().map(|event| event.to_string()).collect();
        assert!(told.iter().any(|t| t.contains(pod) && t.contains("gone")), "{told:#?}");
    }
    assert!(world.pods_reach_each_other());
}

/// Somebody else's interface under the name of the pod's stays as it is, and is said to be in the way.
#[test]
fn a_name_that_another_interface_took_is_not_taken_from_it() {
    podswitch_testkit::require_tap!();
    let mut world = World::start();
    for (netns, pod) in world.pods.clone().iter().zip(["default/p2", "default/p3"]) {
        let before = found(netns);
        rename(netns, "eth0", "x0");
        let index = Netlink::open(netns).unwrap().add_bridge(&LinkSpec::new("eth0")).unwrap();
        let mut told = Vec::new();
        for _ in 0..12 {
            thread::sleep(world.node.poll().unwrap());
            told.extend(world.events.try_iter().map(|event| event.to_string()));
        }
        assert_eq!(told.len(), 1, "once: {told:#?}");
        assert!(told[0].contains(pod) && told[0].contains("eth0"), "{told:#?}");
        let mut netlink = Netlink::open(netns).unwrap();
        let other = netlink.link("eth0").unwrap();
        assert!((other.index, other.is_up) == (index, false));
        assert!(netlink.addresses().unwrap().iter().all(|a| a.link != index));
        assert!(netlink.link("x0").unwrap().is_up, "it serves on under that name");
        netlink.delete_link(index).unwrap();
        world.poll_until("the name is free", |_| before.is_subset(&found(netns)));
        world.repaired();
    }
    assert!(world.pods_reach_each_other());
}

/// The tables that no process owns, so that anybody may change them: on the uplink, and where the kernel is given
/// GSO packets.
#[test]
fn tables_that_belong_to_nobody_are_put_back() {
    podswitch_testkit::require_tap!();
    let mut underlay = UnderlayOptions::default();
    (underlay.kind, underlay.uplink) = (Some(UnderlayKind::Packet), Some("u0".into()));
    let mut world = World::with(underlay);
    let (netns, beyond) = (world.netns.clone(), world.beyond.clone());
    let mut netlink = Netlink::open(&beyond).unwrap();
    let index = netlink.link("u0").unwrap().index;
    netlink.add_address(index, "192.0.2.9/24".parse().unwrap()).unwrap();
    // What comes for the tunnel's port is the switch's, and kept from the node's own sockets.
    let own = netns.enter(|| UdpSocket::bind((NODE, 4789))).unwrap().unwrap();
    own.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let client = beyond.enter(|| UdpSocket::bind("192.0.2.9:0")).unwrap().unwrap();
    let gets_through = || {
        (0..5).any(|_| {
            client.send_to(b"?", (NODE, 4789)).unwrap();
            own.recv(&mut [0; 8]).is_ok()
        })
    };
    assert!(!gets_through());
    for _ in 0..2 {
        IngressDrop::remove(&netns, "podswitch-uplink").unwrap();
        assert!(gets_through());
        world.poll_until("a removed table", |world| {
            world.repaired().contains(&("node".into(), "nftables table podswitch-uplink".into()))
        });
        assert!(!gets_through());
    }
    world.node.stop(PodInterfaces::Remove).unwrap();

    let mut world = World::start();
    let netns = world.netns.clone();
    if Netlink::open(&netns).unwrap().find_link("psu4789").unwrap().is_none() {
        return eprintln!("SKIPPED: the kernel takes no GSO packets for tunnels");
    }
    for _ in 0..2 {
        IngressDrop::remove(&netns, "podswitch-psu4789").unwrap();
        world.poll_until("a removed table", |world| {
            let told = "nftables table podswitch-psu4789";
            world.repaired().contains(&("udp:4789".into(), told.into()))
        });
    }
}

#[test]
fn what_is_taken_from_the_node_is_put_back() {
    podswitch_testkit::require_tap!();
    let mut world = World::start();
    let netns = world.netns.clone();
    world.is_put_back(&netns, "podswitch0", "down", |ns| set_link(ns, "podswitch0", false));
    world.is_put_back(&netns, "podswitch0", "down and up", |ns| {
        set_link(ns, "podswitch0", false);
        set_link(ns, "podswitch0", true);
    });
    world.is_put_back(&netns, "podswitch0", "flushed routes", |ns| flush_routes(ns, "podswitch0"));
    world
        .is_put_back(&netns, "podswitch0", "another name", |ns| rename(ns, "podswitch0", "other0"));
    world.is_put_back(&netns, "podswitch0", "another MAC address", |ns| {
        let mut netlink = Netlink::open(ns).unwrap();
        let index = netlink.link("podswitch0").unwrap().index;
        netlink.set_mac(index, Mac([2, 0, 0, 9, 9, 9])).unwrap();
    });
    world.is_put_back(&netns, "podswitch0", "forgotten gateways", |ns| {
        let mut netlink = Netlink::open(ns).unwrap();
        let index = netlink.link("podswitch0").unwrap().index;
        for gateway in ["169.254.1.1", "fe80::1"] {
            netlink.delete_neighbour(index, gateway.parse().unwrap()).unwrap();
        }
    });
    // In a bridge its packets would enter the node's stack by that, which has none of its settings.
    let mut netlink = Netlink::open(&netns).unwrap();
    let bridge = netlink.add_bridge(&LinkSpec::new("br0").up()).unwrap();
    let index = netlink.link("podswitch0").unwrap().index;
    netlink.set_master(index, Some(bridge)).unwrap();
    let is_free = || {
        let link = Netlink::open(&netns).unwrap().link("podswitch0").unwrap();
        link.master.is_none()
    };
    assert!(!is_free());
    world.poll_until("a bridge", |_| is_free());
    let repaired = world.repaired();
    assert!(repaired.iter().any(|(of, _)| of == "podswitch0"), "{repaired:?}");
    netlink.delete_link(bridge).unwrap();
    world.is_put_back(&netns, "node", "a flushed table of steered packets", |ns| {
        let mut netlink = Netlink::open(ns).unwrap();
        let steered: Vec<Route> =
            netlink.routes().unwrap().into_iter().filter(|r| r.table == 28_787).collect();
        assert!(!steered.is_empty());
        steered.iter().for_each(|route| netlink.delete_route(route).unwrap());
    });
    world.is_put_back(&netns, "node", "deleted rules", |ns| {
        let mut netlink = Netlink::open(ns).unwrap();
        for rule in netlink.rules().unwrap().into_iter().filter(|r| r.priority < 100) {
            netlink.delete_rule(&rule).unwrap();
        }
    });
    // The kernel's own rule in front of ours again: packets to Services at the node's addresses never got to ours.
    let early = Rule { priority: 0, table: 255, ..Rule::default() };
    Netlink::open(&netns).unwrap().add_rule(&early).unwrap();
    world.poll_until("a rule in front", |_| {
        !Netlink::open(&netns).unwrap().rules().unwrap().contains(&early)
    });
    for (setting, value) in [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv4/conf/podswitch0/accept_local", "0"),
        ("net/ipv4/ip_local_reserved_ports", "8080"),
    ] {
        let before = sysctl::get(&netns, setting).unwrap();
        sysctl::set(&netns, setting, value).unwrap();
        world.poll_until(setting, |_| {
            let now = sysctl::get(&netns, setting).unwrap();
            now.strip_prefix("8080,").unwrap_or(&now) == before
        });
    }
    assert!(world.node_reaches_pods());
    world.node.stop(PodInterfaces::Remove).unwrap();
    // What somebody reserved meanwhile stays so.
    assert_eq!(sysctl::get(&netns, "net/ipv4/ip_local_reserved_ports").unwrap(), "8080");
}

#[test]
fn the_nodes_address_may_go_come_back_and_change() {
    podswitch_testkit::require_tap!();
    let mut world = World::start();
    let netns = world.netns.clone();
    let uplink = Netlink::open(&netns).unwrap().link("u0").unwrap().index;
    let give = |address: &str| {
        let address = format!("{address}/24").parse().unwrap();
        Netlink::open(&netns).unwrap().add_address(uplink, address).unwrap();
    };
    let source = || {
        let routes = Netlink::open(&netns).unwrap().routes().unwrap();
        let range = "10.8.0.0/24".parse().unwrap();
        routes.into_iter().find(|r| r.destination == range).map(|r| r.source)
    };
    let has_tunnel = |world: &World| {
        let snapshot = world.node.snapshot();
        let config = format!("{:?}", snapshot.ports);
        config.contains("Uplink")
    };
    assert_eq!(source(), Some(Some(NODE.parse().unwrap())));
    assert!(has_tunnel(&world));
    Netlink::open(&netns)
        .unwrap()
        .delete_address(uplink, format!("{NODE}/24").parse().unwrap())
        .unwrap();
    world.poll_until("its address went", |world| source() == Some(None) && !has_tunnel(world));
    // A state that comes meanwhile goes in.
    world.node.apply(config(NODE)).unwrap();
    give(NODE);
    world.poll_until("its address came back", |world| {
        source() == Some(Some(NODE.parse().unwrap())) && has_tunnel(world)
    });
    world.poll_until("its address came back", |world| world.node_reaches_pods());

    let next = "192.0.2.77";
    Netlink::open(&netns)
        .unwrap()
        .delete_address(uplink, format!("{NODE}/24").parse().unwrap())
        .unwrap();
    give(next);
    world.poll_until("it has another address", |_| source() == Some(None));
    world.node.apply(config(next)).unwrap();
    world.poll_until("the state says so", |world| {
        source() == Some(Some(next.parse().unwrap())) && has_tunnel(world)
    });
    assert_eq!(*world.node.snapshot().node_addresses, [next.parse::<IpAddr>().unwrap()]);
    assert!(world.node_reaches_pods());
    world.node.apply(config(next)).unwrap();
}

#[test]
fn the_mtu_of_the_underlay_is_followed_both_ways() {
    podswitch_testkit::require_tap!();
    let mut world = World::start();
    let netns = world.netns.clone();
    let mtu = |netns: &NetNs, name: &str| Netlink::open(netns).unwrap().link(name).unwrap().mtu;
    let set = |mtu: u32| {
        let mut netlink = Netlink::open(&netns).unwrap();
        let index = netlink.link("u0").unwrap().index;
        netlink.set_mtu(index, mtu).unwrap();
    };
    let uplink = |world: &World| {
        let snapshot = world.node.snapshot();
        snapshot.ports.iter().find_map(|port| match format!("{port:?}") {
            text if text.contains("Uplink") => Some(text),
            _ => None,
        })
    };
    let [red, blue] = world.pods.clone();
    let is = |of_pods: u32| {
        let (red, blue, netns) = (red.clone(), blue.clone(), netns.clone());
        move |world: &World| {
            mtu(&red, "eth0") == of_pods
                && mtu(&blue, "eth0") == of_pods
                && mtu(&netns, "podswitch0") == of_pods
                && uplink(world).is_some()
                && world.pods_reach_each_other()
        }
    };
    world.poll_until("the start", is(1450));
    // 1300 leaves 1250 inside the tunnel, which IPv6 does not have: pods keep 1280.
    for (of_underlay, of_pods) in
        [(1300, 1280), (1500, 1450), (1400, 1350), (1300, 1280), (9000, 8950)]
    {
        set(of_underlay);
        world.poll_until("another MTU", is(of_pods));
    }
    for event in world.events.try_iter() {
        match event {
            Event::Refused(errors) => panic!("{errors:?}"),
            Event::Failure(Failure::TunnelOffload(error)) => panic!("{error}"),
            Event::Failure(other) => panic!("{other}"),
            _ => {}
        }
    }
}

/// Every setting of a namespace's network, by path.
fn settings(netns: &NetNs) -> BTreeSet<String> {
    fn read(folder: &Path, found: &mut BTreeSet<String>) {
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

#[test]
fn a_stop_leaves_every_setting_as_it_was() {
    podswitch_testkit::require_privilege!();
    let [netns] = [NetNs::anonymous().unwrap()];
    let mut netlink = Netlink::open(&netns).unwrap();
    let beyond = NetNs::anonymous().unwrap();
    let uplink = add_uplink(&mut netlink, &beyond);
    netlink.add_address(uplink, format!("{NODE}/24").parse().unwrap()).unwrap();
    for reserved in ["", "8080,9000-9010"] {
        sysctl::set(&netns, "net/ipv4/ip_local_reserved_ports", reserved).unwrap();
        let (before, rules) = (settings(&netns), found(&netns));
        let options = NodeOptions::new("n1").namespace(netns.clone());
        let mut node = Node::start(options, config(NODE)).unwrap();
        node.poll().unwrap();
        assert_ne!(settings(&netns), before);
        node.stop(PodInterfaces::Remove).unwrap();
        let after = settings(&netns);
        let changed: Vec<_> = after.symmetric_difference(&before).collect();
        assert!(changed.is_empty(), "{changed:#?}");
        assert_eq!(found(&netns), rules);
    }
}
