//! The node's own side: `podswitch0`, rules, tables, settings.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use podswitch_core::control::Change;
use podswitch_linux::netlink::{LinkSpec, Route, Rule};
use podswitch_linux::nft::IngressDrop;
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_node::{Node, NodeOptions, PodInterfaces, UnderlayKind, UnderlayOptions};
use podswitch_policy::service::model::{Service, ServicePort};
use podswitch_testkit::privilege::is_there;
use podswitch_wire::addr::Mac;

use crate::world::*;

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
    // Elements of its sets, too: what was flushed matches nothing.
    let nft = |command: &str| {
        let run = || Command::new("nft").args(command.split(' ')).output();
        netns.enter(run).unwrap().ok()
    };
    let listed = || nft("list table netdev podswitch-uplink");
    if is_there("a flushed set", "nft (Debian: nftables)", listed().is_some()) {
        let mut service = Service::cluster_ip("default", "web", ["10.96.0.1".parse().unwrap()]);
        service.ports = vec![ServicePort::tcp("http", 80)];
        world.node.update([Change::Service(Arc::new(service))]).unwrap();
        let text = || String::from_utf8(listed().unwrap().stdout).unwrap();
        world.poll_until("a Service", |_| text().contains("10.96.0.1"));
        world.events.try_iter().for_each(drop);
        let listed = || String::from_utf8(listed().unwrap().stdout).unwrap();
        let before = listed();
        assert!(before.contains("elements = {"), "{before}");
        let sets = before.lines().filter_map(|line| line.trim().strip_prefix("set "));
        for set in sets.filter_map(|set| set.split(' ').next()) {
            let flushed = nft(&format!("flush set netdev podswitch-uplink {set}")).unwrap();
            assert!(flushed.status.success(), "{flushed:?}");
        }
        assert!(!listed().contains("elements = {"));
        world.poll_until("flushed sets", |world| {
            world.repaired().contains(&("node".into(), "nftables table podswitch-uplink".into()))
        });
        let elements = |text: &str| text.matches("elements = {").count();
        assert_eq!(elements(&listed()), elements(&before));
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
