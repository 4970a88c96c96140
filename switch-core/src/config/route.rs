//! Routes beyond pods and nodes.

use std::net::IpAddr;

use podswitch_wire::cidr::Cidr;

/// A route beyond pods and nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination. No two routes have the same destination.
    pub destination: Cidr,
    /// Equal-cost next hops.
    pub next_hops: Vec<NextHop>,
}

/// One next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// The node's own stack.
    Host,
    /// A router on the direct uplink, whose MAC address is known; the node's own stack where there
    /// is no such uplink.
    Via(IpAddr),
    /// Packets are dropped with this reason.
    Blackhole,
}
