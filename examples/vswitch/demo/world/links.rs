//! The network between the nodes and the outside host: one Ethernet segment, a bridge in the
//! outside host's namespace, to which both nodes have an uplink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_linux::netlink::{InterfaceAddress, LinkSpec, Route};
use podswitch_linux::{HostError, NetNs, Netlink, sysctl};
use podswitch_wire::cidr::Cidr;

use super::pod::Family;

/// A node's interface on the segment, and the bridge that is the segment.
pub(in crate::demo) const UPLINK: &str = "uplink";
pub(in crate::demo) const SEGMENT: &str = "underlay";
/// Largest packet on the segment, in bytes.
const MTU: u32 = 1500;
/// Addresses on the segment, and their prefix lengths.
pub(in crate::demo) const NODE_ADDRESSES: [Family; 2] = [on_segment(1), on_segment(2)];
pub(in crate::demo) const OUTSIDE: Family = on_segment(0xfe);
const PREFIXES: [u8; 2] = [24, 64];
/// An address on the internet.
pub(in crate::demo) const FAR_AWAY: Family = Family {
    v4: Ipv4Addr::new(198, 51, 100, 7),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7),
};

const fn on_segment(number: u8) -> Family {
    Family {
        v4: Ipv4Addr::new(192, 0, 2, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number as u16),
    }
}

/// A bridge in `middle`, with an uplink from each node; without addresses.
pub(in crate::demo) fn segment(middle: &NetNs, nodes: [&NetNs; 2]) -> Result<(), HostError> {
    without_netfilter(middle);
    let mut netlink = Netlink::open(middle)?;
    let bridge = netlink.add_bridge(&LinkSpec::new(SEGMENT).mtu(MTU).up())?;
    for (number, node) in nodes.into_iter().enumerate() {
        let here = LinkSpec::new(bridge_port(number)).mtu(MTU).up();
        let there = LinkSpec::new(UPLINK).mtu(MTU).up();
        let port = netlink.add_veth(&here, &there, node)?;
        netlink.set_master(port, Some(bridge))?;
    }
    Ok(())
}

/// The bridge's port that leads to a node.
pub(in crate::demo) fn bridge_port(node: usize) -> String {
    format!("node{}", node + 1)
}

/// Keeps bridged packets from packet filters. Some kernels do not have the setting.
pub(in crate::demo) fn without_netfilter(namespace: &NetNs) {
    for hook in ["iptables", "ip6tables", "arptables"] {
        let _ = sysctl::set(namespace, &format!("net/bridge/bridge-nf-call-{hook}"), "0");
    }
}

/// The segment with addresses, and the outside host, which has no other routes.
pub(super) fn join(outside: &NetNs, nodes: [&NetNs; 2]) -> Result<(), HostError> {
    segment(outside, nodes)?;
    address(outside, SEGMENT, OUTSIDE)?;
    let mut far = Netlink::open(outside)?;
    let lo = far.link("lo")?.index;
    for (_, address) in FAR_AWAY.each() {
        far.add_address(lo, address.into())?;
    }
    for (node, addresses) in nodes.into_iter().zip(NODE_ADDRESSES) {
        let index = address(node, UPLINK, addresses)?;
        let mut netlink = Netlink::open(node)?;
        for (_, via) in OUTSIDE.each() {
            let any: IpAddr =
                if via.is_ipv4() { [0; 4].into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let everywhere = Cidr::new(any, 0).expect("no bits fit any family");
            netlink.add_route(&Route::to(everywhere).via(via).link(index))?;
        }
    }
    Ok(())
}

/// Gives an interface its addresses on the segment, ready for use. Returns its index.
pub(in crate::demo) fn address(
    namespace: &NetNs,
    interface: &str,
    addresses: Family,
) -> Result<u32, HostError> {
    let mut netlink = Netlink::open(namespace)?;
    let index = netlink.link(interface)?.index;
    for ((_, address), prefix) in addresses.each().into_iter().zip(PREFIXES) {
        let address = InterfaceAddress::new(address, prefix).expect("a prefix of the family");
        netlink.add_address(index, address)?;
    }
    for (_, address) in addresses.each() {
        netlink.wait_until_local(address)?;
    }
    Ok(index)
}
