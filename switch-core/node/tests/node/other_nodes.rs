//! Two nodes on a link, which learn of each other by single changes.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use podswitch_core::config::{Config, LocalNode, Precedence, RemoteNode, TunnelConfig, VtepMac};
use podswitch_core::control::Change;
use podswitch_core::id::Cookie;
use podswitch_linux::netlink::LinkSpec;
use podswitch_linux::{NetNs, Netlink};
use podswitch_node::{Node, NodeOptions, PodInterfaces, node_addresses};
use podswitch_policy::rule::Labels;
use podswitch_wire::addr::Mac;

use super::{endpoint, is_cut_off, namespaces, pod, reaches, socket, start};

/// One of two nodes on a link: its switch, and a pod of it.
struct Joined {
    node: Node,
    pod: NetNs,
}

/// The nodes' numbers: n has the address 192.0.2.n, pods of 10.8.0.0/16 and the VTEP's MAC address 02::n.
fn remote(number: u8) -> Arc<RemoteNode> {
    Arc::new(RemoteNode {
        cookie: Cookie::new(format!("Node/n{number}")),
        name: format!("n{number}").into(),
        labels: Labels::default(),
        addresses: vec![[192, 0, 2, number].into()],
        pod_cidrs: Vec::new(),
        vtep: VtepMac { ipv4: Mac([2, 0, 0, 0, 0, number]), ipv6: None },
        underlay_mac: Mac::ZERO,
        precedence: Precedence::default(),
    })
}

impl Joined {
    fn start(number: u8, namespace: NetNs) -> Self {
        let this = remote(number);
        let config = Config {
            node: LocalNode {
                name: this.name.clone(),
                addresses: this.addresses.clone(),
                vtep: this.vtep,
                ..LocalNode::default()
            },
            tunnel: Some(TunnelConfig::default()),
            ..Config::default()
        };
        let options = NodeOptions::new(&*this.name).namespace(namespace);
        let (mut node, _) = start(options, config);
        let [netns] = namespaces();
        node.add_pod(pod(&format!("p{number}"), &netns, number)).unwrap();
        let own = endpoint(&format!("p{number}"), number, &this.name);
        node.update([Change::Pod(own)]).unwrap();
        Self { node, pod: netns }
    }

    /// Learns of another node and its pod.
    fn meet(&mut self, number: u8) {
        let pod = endpoint(&format!("p{number}"), number, &format!("n{number}"));
        self.node.update([Change::Node(remote(number)), Change::Pod(pod)]).unwrap();
    }

    fn mtu(&self) -> u32 {
        Netlink::open(&self.pod).unwrap().link("eth0").unwrap().mtu
    }
}

#[test]
fn other_nodes_come_and_go_as_single_changes() {
    podswitch_testkit::require_privilege!();
    let [left, right] = namespaces();
    let eth0 = LinkSpec::new("eth0").up();
    Netlink::open(&left).unwrap().add_veth(&eth0, &eth0, &right).unwrap();
    for (ns, number) in [(&left, 1), (&right, 2)] {
        let mut netlink = Netlink::open(ns).unwrap();
        let index = netlink.link("eth0").unwrap().index;
        netlink.add_address(index, format!("192.0.2.{number}/24").parse().unwrap()).unwrap();
    }
    assert_eq!(node_addresses(&left).unwrap(), [IpAddr::from([192, 0, 2, 1])]);
    let (mut one, mut two) = (Joined::start(1, left.clone()), Joined::start(2, right.clone()));
    assert_eq!(one.mtu(), 1500, "there is no other node yet");
    assert!(is_cut_off(&socket(&one.pod, 1, 1), &socket(&two.pod, 2, 1)));
    one.meet(2);
    two.meet(1);
    assert_eq!((one.mtu(), two.mtu()), (1450, 1450), "the tunnel takes 50 bytes");
    assert!(reaches(&socket(&one.pod, 1, 2), &socket(&two.pod, 2, 2)));
    assert!(reaches(&socket(&two.pod, 2, 3), &socket(&one.pod, 1, 3)));
    // The node's own processes reach the other node's pod by the switch.
    let here = left.enter(|| UdpSocket::bind("192.0.2.1:4")).unwrap().unwrap();
    assert!(reaches(&here, &socket(&two.pod, 2, 4)));

    // A third one: the tunnel is there, and no port changes.
    let ports = one.node.ports().clone();
    one.meet(3);
    assert_eq!(one.node.ports(), &ports);
    assert!(reaches(&socket(&one.pod, 1, 5), &socket(&two.pod, 2, 5)));
    one.node.update([Change::NodeDeleted("n3".into())]).unwrap();
    assert!(reaches(&socket(&one.pod, 1, 6), &socket(&two.pod, 2, 6)));
    // Without the last one there is no tunnel.
    one.node.update([Change::NodeDeleted("n2".into())]).unwrap();
    assert_eq!(one.mtu(), 1500);
    assert!(is_cut_off(&socket(&one.pod, 1, 7), &socket(&two.pod, 2, 7)));
    one.meet(2);
    assert!(reaches(&socket(&one.pod, 1, 8), &socket(&two.pod, 2, 8)));
    one.node.stop(PodInterfaces::Remove).unwrap();
    two.node.stop(PodInterfaces::Remove).unwrap();
}
