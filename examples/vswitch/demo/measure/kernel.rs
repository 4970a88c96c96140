//! The kernel's own data path, for comparison: its bridge on one node, and its bridge and VXLAN
//! device across two, in namespaces of their own.

use std::net::{IpAddr, Ipv4Addr};

use podswitch_linux::netlink::{InterfaceAddress, LinkSpec, Vxlan};
use podswitch_linux::{HostError, NetNs, Netlink};

use super::loads::Ends;
use crate::demo::world::{NODE_ADDRESSES, UPLINK, address, segment, without_netfilter};

/// MTU of pods: within a node, and reduced by a tunnel's headers.
const MTU: u32 = 1500;
const TUNNEL_MTU: u32 = 1450;

/// Two pods and what connects them.
pub(super) struct Bridged {
    pods: [Pod; 2],
    _between: Vec<NetNs>,
}

struct Pod {
    namespace: NetNs,
    address: IpAddr,
}

impl Bridged {
    /// A veth pair for each pod, and a bridge between them.
    pub(super) fn one_node() -> Result<Self, HostError> {
        let (pods, node) = ([Pod::new(1)?, Pod::new(2)?], NetNs::anonymous()?);
        let bridge = add_bridge(&node, MTU)?;
        for (pod, name) in pods.iter().zip(["pod1", "pod2"]) {
            pod.plug(&node, bridge, name, MTU)?;
        }
        Ok(Self { pods, _between: vec![node] })
    }

    /// A pod on each of two nodes, whose bridges have a VXLAN device as a port. The nodes are
    /// connected as the demo's are.
    pub(super) fn two_nodes() -> Result<Self, HostError> {
        let pods = [Pod::new(1)?, Pod::new(2)?];
        let nodes = [NetNs::anonymous()?, NetNs::anonymous()?];
        let middle = NetNs::anonymous()?;
        segment(&middle, nodes.each_ref())?;
        for (number, (pod, node)) in pods.iter().zip(&nodes).enumerate() {
            let uplink = address(node, UPLINK, NODE_ADDRESSES[number])?;
            let bridge = add_bridge(node, TUNNEL_MTU)?;
            pod.plug(node, bridge, "pod", TUNNEL_MTU)?;
            let tunnel = Vxlan {
                vni: 1,
                local: Some(NODE_ADDRESSES[number].v4.into()),
                remote: Some(NODE_ADDRESSES[1 - number].v4.into()),
                port: 4789,
                learning: true,
                link: Some(uplink),
            };
            let device = LinkSpec::new("vxlan0").mtu(TUNNEL_MTU).up();
            let mut netlink = Netlink::open(node)?;
            let device = netlink.add_vxlan(&device, &tunnel)?;
            netlink.set_master(device, Some(bridge))?;
        }
        let [one, two] = nodes;
        Ok(Self { pods, _between: vec![one, two, middle] })
    }

    pub(super) fn ends(&self) -> Ends<'_> {
        let [from, to] = &self.pods;
        Ends { from: &from.namespace, to: &to.namespace, address: to.address }
    }
}

impl Pod {
    fn new(number: u8) -> Result<Self, HostError> {
        let address = Ipv4Addr::new(10, 78, 0, number).into();
        Ok(Self { namespace: NetNs::anonymous()?, address })
    }

    /// A veth pair from the pod to a bridge.
    fn plug(&self, node: &NetNs, bridge: u32, name: &str, mtu: u32) -> Result<(), HostError> {
        let mut netlink = Netlink::open(node)?;
        let (here, there) =
            (LinkSpec::new(name).mtu(mtu).up(), LinkSpec::new("eth0").mtu(mtu).up());
        let port = netlink.add_veth(&here, &there, &self.namespace)?;
        netlink.set_master(port, Some(bridge))?;
        let mut netlink = Netlink::open(&self.namespace)?;
        let index = netlink.link("eth0")?.index;
        let address = InterfaceAddress::new(self.address, 24).expect("a prefix of IPv4");
        netlink.add_address(index, address)
    }
}

fn add_bridge(node: &NetNs, mtu: u32) -> Result<u32, HostError> {
    without_netfilter(node);
    Netlink::open(node)?.add_bridge(&LinkSpec::new("br0").mtu(mtu).up())
}
