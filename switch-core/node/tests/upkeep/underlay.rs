//! The way to other nodes: addresses and MTU.

use std::net::IpAddr;

use podswitch_linux::{NetNs, Netlink};
use podswitch_node::{Event, Failure};

use crate::world::*;

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
