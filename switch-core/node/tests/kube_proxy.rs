//! Beside kube-proxy the node's side of Services is left to it.

use std::sync::mpsc::channel;

use podswitch_core::config::{Config, LocalNode, NAT_PORTS};
use podswitch_linux::netlink::LinkSpec;
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_node::{Event, KubeProxyMode, Node, NodeOptions, PodInterfaces};

/// What the node has of the switch's Services: marks' routing rule, routes to Service addresses, reserved node ports.
fn start(mode: KubeProxyMode, kube_proxy: bool) -> (bool, bool, bool, Vec<String>) {
    let ns = NetNs::anonymous().unwrap();
    let mut netlink = Netlink::open(&ns).unwrap();
    if kube_proxy {
        netlink.add_bridge(&LinkSpec::new("kube-ipvs0")).unwrap();
    }
    let node = LocalNode { name: "n1".into(), ..LocalNode::default() };
    let service_cidr = "10.96.0.0/16".parse().unwrap();
    let config = Config { node, service_cidrs: vec![service_cidr], ..Config::default() };
    let (sender, events) = channel();
    let options = NodeOptions::new("n1")
        .namespace(ns.clone())
        .kube_proxy(mode)
        .on_event(move |event| drop(sender.send(event)));
    let mut node = Node::start(options, config).unwrap();
    node.poll().unwrap();
    let rule = netlink.rules().unwrap().iter().any(|rule| rule.mark.is_some());
    let route = netlink.routes().unwrap().iter().any(|r| r.destination == service_cidr);
    let reserved = sysctl::get(&ns, "net/ipv4/ip_local_reserved_ports").unwrap();
    assert!(reserved.contains(&NAT_PORTS.start().to_string()), "{reserved}");
    node.stop(PodInterfaces::Remove).unwrap();
    let told = events.try_iter().filter(|e| matches!(e, Event::BesideKubeProxy { .. }));
    (rule, route, reserved.contains("30000"), told.map(|event| event.to_string()).collect())
}

#[test]
fn the_nodes_services_are_left_to_kube_proxy() {
    podswitch_testkit::require_privilege!();
    for (mode, kube_proxy, ours) in [
        (KubeProxyMode::Auto, false, true),
        (KubeProxyMode::Auto, true, false),
        (KubeProxyMode::Absent, true, true),
        (KubeProxyMode::Present, false, false),
    ] {
        let (rule, route, reserved, told) = start(mode, kube_proxy);
        assert_eq!((rule, route, reserved), (ours, ours, ours), "{mode:?}, {kube_proxy}");
        assert_eq!(told.len(), usize::from(!ours), "{mode:?}, {kube_proxy}: {told:?}");
        assert!(told.iter().all(|note| note.contains("kube-proxy --cleanup")), "{told:?}");
    }
}
