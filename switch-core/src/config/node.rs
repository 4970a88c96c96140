//! Nodes: this one and the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use podswitch_policy::rule::Labels;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::Precedence;
use crate::id::Cookie;

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its own addresses (InternalIP). The first of each family is its VTEP's.
    pub addresses: Vec<IpAddr>,
    /// Further addresses of the node itself: ExternalIPs, addresses of its interfaces. Host ports
    /// are reachable there, too, and for the node's own processes also at 127.0.0.1.
    pub local_addresses: Vec<IpAddr>,
    /// Ranges from which its pods' addresses are allocated.
    pub pod_cidrs: Vec<Cidr>,
    /// MAC addresses of its VTEPs.
    pub vtep: VtepMac,
    /// MAC address of its underlay interface. Used in captures only.
    pub underlay_mac: Mac,
    /// The gateway that pods see.
    pub gateway: Gateway,
    /// Source ports on the node's addresses for masqueraded clients (S8). The caller keeps them
    /// from the node's own sockets (T-N1). The same on all nodes.
    pub nat_ports: RangeInclusive<u16>,
}

/// Default of [`LocalNode::nat_ports`]: above the NodePort range, and the upper half of the range
/// that Linux takes ephemeral ports from. Linux keeps the lower half.
pub const NAT_PORTS: RangeInclusive<u16> = 44_000..=65_535;

impl LocalNode {
    /// Its zone, if it has one (label `topology.kubernetes.io/zone`).
    pub fn zone(&self) -> Option<&str> {
        self.labels.get("topology.kubernetes.io/zone")
    }
}

impl Default for LocalNode {
    fn default() -> Self {
        Self {
            name: "".into(),
            labels: Labels::default(),
            addresses: Vec::new(),
            local_addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            vtep: VtepMac::default(),
            underlay_mac: Mac::ZERO,
            gateway: Gateway::default(),
            nat_ports: NAT_PORTS,
        }
    }
}

/// The gateway that every pod sees. The switch answers for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    pub ipv6: Ipv6Addr,
    /// MAC address.
    pub mac: Mac,
}

impl Gateway {
    /// Whether `address` is one of its addresses.
    pub fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a == self.ipv4,
            IpAddr::V6(a) => a == self.ipv6,
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            ipv4: Ipv4Addr::new(169, 254, 1, 1),
            ipv6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            mac: Mac([0xee; 6]),
        }
    }
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNode {
    /// Name in drops, flows and explanations.
    pub cookie: Cookie,
    /// The node's name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses (InternalIP). The first of each family is its VTEP's, and no other node has
    /// that address.
    pub addresses: Vec<IpAddr>,
    /// Ranges from which its pods' addresses are allocated. No other node has the same range.
    pub pod_cidrs: Vec<Cidr>,
    /// MAC addresses of its VTEPs.
    pub vtep: VtepMac,
    /// MAC address of its underlay interface. Used in captures only.
    pub underlay_mac: Mac,
    /// Decides which node gets an address, range or VTEP MAC address that several claim.
    pub precedence: Precedence,
}

/// MAC addresses of a node's VTEPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VtepMac {
    /// Over an IPv4 underlay; also over IPv6 if there is no second address.
    pub ipv4: Mac,
    /// Over an IPv6 underlay, if there is a second VTEP: Flannel has a second device, which carries
    /// the IPv6 packets.
    pub ipv6: Option<Mac>,
}

impl VtepMac {
    /// The MAC address over an underlay of this family.
    pub fn of(self, ipv6: bool) -> Mac {
        if ipv6 { self.ipv6.unwrap_or(self.ipv4) } else { self.ipv4 }
    }

    /// Whether two nodes with these both have a second VTEP, for IPv6.
    pub fn both_have_second(self, other: Self) -> bool {
        self.ipv6.is_some() && other.ipv6.is_some()
    }
}
