//! Paths of the kernel alone, without Services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_linux::netlink::{InterfaceAddress, LinkSpec, Route, Vxlan};
use podswitch_linux::{HostError, NetNs, Netlink, sysctl};
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::nodes::{self, Wire, underlay};
use super::pod::{MTU, Pod, TUNNEL_MTU};
use super::{Between, Missing, World, namespace};

/// UDP port of Flannel's VXLAN devices.
const FLANNEL_PORT: u16 = 8472;
const VXLAN_PORT: u16 = 4789;

/// One veth pair, one end in each pod: no switch.
pub(super) fn veth() -> Result<World, Missing> {
    let [client, server] = Pod::pair(None)?;
    let mut netlink = Netlink::open(&client.namespace)?;
    netlink.add_veth(&client.interface(), &server.interface(), &server.namespace)?;
    client.configure(&[])?;
    server.configure(&[])?;
    Ok(World::new(client, server, Between::default()))
}

/// One veth pair for each pod, and a kernel bridge in a namespace between them.
pub(super) fn bridge() -> Result<World, Missing> {
    let [client, server] = Pod::pair(None)?;
    let middle = namespace()?;
    without_netfilter(&middle);
    let bridge = add_bridge(&middle, MTU)?;
    for (name, pod) in ["pod0", "pod1"].into_iter().zip([&client, &server]) {
        plug(&middle, bridge, name, pod)?;
        pod.configure(&[])?;
    }
    let between = Between { _namespaces: vec![middle], ..Between::default() };
    Ok(World::new(client, server, between))
}

/// Two nodes, each with a bridge and a VXLAN device as its port: one learning Ethernet segment over
/// both nodes.
pub(super) fn bridge_vxlan(wire: Wire) -> Result<World, Missing> {
    let mut client = Pod::new(0, 0, None)?;
    let mut server = Pod::new(0, 1, None)?;
    let nodes = nodes::pair(wire)?;
    for (number, pod) in [&mut client, &mut server].into_iter().enumerate() {
        pod.mtu = TUNNEL_MTU;
        let (node, other) = (&nodes[number], underlay(1 - number));
        nodes::address(node, number)?;
        without_netfilter(node);
        let bridge = add_bridge(node, TUNNEL_MTU)?;
        plug(node, bridge, "pod", pod)?;
        let mut netlink = Netlink::open(node)?;
        let tunnel = Vxlan {
            vni: 1,
            local: Some(underlay(number)),
            remote: Some(other),
            port: VXLAN_PORT,
            learning: true,
            link: Some(netlink.link(nodes::INTERFACE)?.index),
        };
        let device = netlink.add_vxlan(&LinkSpec::new("vxlan0").mtu(TUNNEL_MTU).up(), &tunnel)?;
        netlink.set_master(device, Some(bridge))?;
        pod.configure(&[])?;
    }
    let between = Between { _namespaces: nodes.into(), ..Between::default() };
    Ok(World::new(client, server, between))
}

/// Two nodes as Flannel configures them: pods on a bridge that is their gateway, and a VXLAN device
/// as route to the other node, with static neighbours and VTEPs.
pub(super) fn flannel() -> Result<World, Missing> {
    let gateway = |node: u8| Mac([0x0a, 0x58, 10, 78, node, 1]);
    let mut client = Pod::new(0, 0, Some(gateway(0)))?;
    let mut server = Pod::new(1, 1, Some(gateway(1)))?;
    let nodes = nodes::pair(Wire::Offloads)?;
    for (number, pod) in [&mut client, &mut server].into_iter().enumerate() {
        pod.mtu = TUNNEL_MTU;
        flannel_node(&nodes[number], number as u8, gateway(number as u8), pod)?;
    }
    let between = Between { _namespaces: nodes.into(), ..Between::default() };
    Ok(World::new(client, server, between))
}

fn flannel_node(node: &NetNs, number: u8, mac: Mac, pod: &Pod) -> Result<(), HostError> {
    nodes::address(node, number.into())?;
    without_netfilter(node);
    forwarding(node)?;
    let mut netlink = Netlink::open(node)?;
    let bridge = LinkSpec::new("cni0").mac(mac).mtu(TUNNEL_MTU).up();
    let bridge = netlink.add_bridge(&bridge)?;
    let gateways = gateways(number);
    for (gateway, prefix) in gateways.into_iter().zip([24, 64]) {
        let address = InterfaceAddress::new(gateway, prefix).expect("a prefix of the family");
        netlink.add_address(bridge, address)?;
    }
    plug(node, bridge, "pod", pod)?;
    let tunnel = Vxlan {
        vni: 1,
        local: Some(underlay(number.into())),
        remote: None,
        port: FLANNEL_PORT,
        learning: false,
        link: Some(netlink.link(nodes::INTERFACE)?.index),
    };
    let vtep = |node| Mac([0x0e, 0x58, 192, 0, 2, node + 1]);
    let device = LinkSpec::new("flannel.1").mac(vtep(number)).mtu(TUNNEL_MTU).up();
    let device = netlink.add_vxlan(&device, &tunnel)?;
    let other = 1 - number;
    let remote = underlay(other.into());
    netlink.add_tunnel_entry(device, vtep(other), remote)?;
    for (address, prefix) in self::gateways(other).into_iter().zip([24, 64]) {
        // As in Flannel: the route to the other node's network goes through its first address, on
        // the tunnel.
        netlink.add_neighbour(device, address, vtep(other))?;
        let there = Cidr::new(network(address), prefix).expect("a prefix of the family");
        netlink.add_route(&Route::to(there).via(address).link(device).onlink())?;
    }
    pod.configure(&gateways)
}

/// Address of a node's bridge, of each family.
fn gateways(node: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 78, node, 1).into(),
        Ipv6Addr::new(0xfd78, 0, 0, node.into(), 0, 0, 0, 1).into(),
    ]
}

/// The network of a node's bridge.
fn network(gateway: IpAddr) -> IpAddr {
    match gateway {
        IpAddr::V4(a) => Ipv4Addr::from_bits(a.to_bits() - 1).into(),
        IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() - 1).into(),
    }
}

fn add_bridge(ns: &NetNs, mtu: u32) -> Result<u32, HostError> {
    Netlink::open(ns)?.add_bridge(&LinkSpec::new("br0").mtu(mtu).up())
}

/// A veth pair from a pod to a bridge.
pub(super) fn plug(ns: &NetNs, bridge: u32, name: &str, pod: &Pod) -> Result<(), HostError> {
    let mut netlink = Netlink::open(ns)?;
    let here = LinkSpec::new(name).mtu(pod.mtu).up();
    let member = netlink.add_veth(&here, &pod.interface(), &pod.namespace)?;
    netlink.set_master(member, Some(bridge))
}

/// Enables forwarding in the stack of a node.
pub(super) fn forwarding(ns: &NetNs) -> Result<(), HostError> {
    sysctl::set_all(ns, &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])
}

/// A bridge that does not call packet filters, for the highest speed. Some kernels do not have this
/// setting.
fn without_netfilter(ns: &NetNs) {
    for hook in ["iptables", "ip6tables", "arptables"] {
        let _ = sysctl::set(ns, &format!("net/bridge/bridge-nf-call-{hook}"), "0");
    }
}
