//! Pods' interfaces.

use std::thread;

use podswitch_linux::netlink::LinkSpec;
use podswitch_linux::{Netlink, sysctl};
use podswitch_wire::addr::Mac;

use crate::world::*;

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
