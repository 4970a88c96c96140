//! The pods, their attachment, and their addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_linux::NetNs;
use podswitch_wire::addr::Mac;

/// The nodes' names.
pub(in crate::demo) const NODE_NAMES: [&str; 2] = ["demo-one", "demo-two"];

/// An address of each family.
#[derive(Clone, Copy, Debug)]
pub(in crate::demo) struct Family {
    pub(in crate::demo) v4: Ipv4Addr,
    pub(in crate::demo) v6: Ipv6Addr,
}

impl Family {
    /// Both, with their families' names.
    pub(in crate::demo) fn each(self) -> [(&'static str, IpAddr); 2] {
        [("IPv4", self.v4.into()), ("IPv6", self.v6.into())]
    }

    /// The address of the same family.
    pub(in crate::demo) fn like(self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}

/// A pod.
#[derive(Clone, Debug)]
pub(in crate::demo) struct DemoPod {
    pub(in crate::demo) name: &'static str,
    /// Number of its node.
    pub(in crate::demo) node: usize,
    pub(in crate::demo) namespace: NetNs,
    pub(in crate::demo) addresses: Family,
    pub(in crate::demo) mac: Mac,
    /// Attached by a TAP, otherwise by a veth pair and AF_PACKET.
    pub(in crate::demo) tap: bool,
}

impl DemoPod {
    /// What it is attached by.
    pub(in crate::demo) fn kind(&self) -> &'static str {
        if self.tap { "TAP" } else { "AF_PACKET" }
    }
}
