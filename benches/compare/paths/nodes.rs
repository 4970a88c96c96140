//! Two nodes and the network between them: a veth pair, one end in each.

use std::net::{IpAddr, Ipv4Addr};

use podswitch_linux::netlink::{InterfaceAddress, LinkSpec};
use podswitch_linux::port::underlay_mac;
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_wire::addr::Mac;

use super::pod::MTU;
use super::{Missing, namespace, tools};

/// A node's interface on the network.
pub(super) const INTERFACE: &str = "underlay";

/// The offloads of the interfaces on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// All offloads of a veth pair: tunnelled GSO packets pass unsegmented.
    Offloads,
    /// No segmentation inside tunnels and none of UDP, as on many network cards: only packets up to
    /// the MTU are on the wire.
    Packets,
}

/// The nodes, without addresses yet.
pub(super) fn pair(wire: Wire) -> Result<[NetNs; 2], Missing> {
    let nodes = [namespace()?, namespace()?];
    let end = |number| LinkSpec::new(INTERFACE).mac(mac(number)).mtu(MTU).up();
    Netlink::open(&nodes[0])?.add_veth(&end(0), &end(1), &nodes[1])?;
    if wire == Wire::Packets {
        let ethtool = tools::find("ethtool")?;
        for node in &nodes {
            let mut command = node.command(&ethtool);
            command.args(["-K", INTERFACE]);
            for feature in
                ["tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-udp-segmentation"]
            {
                command.args([feature, "off"]);
            }
            tools::run(&mut command, "")?;
        }
    }
    Ok(nodes)
}

/// Gives a node its address.
pub(super) fn address(node: &NetNs, number: usize) -> Result<(), HostError> {
    let mut netlink = Netlink::open(node)?;
    let index = netlink.link(INTERFACE)?.index;
    let address = InterfaceAddress::new(underlay(number), 24).expect("a prefix of IPv4");
    netlink.add_address(index, address)
}

/// A node's address on the network.
pub(super) fn underlay(number: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number as u8 + 1).into()
}

/// A node's MAC address.
pub(super) fn mac(number: usize) -> Mac {
    underlay_mac(underlay(number))
}
