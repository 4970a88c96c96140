//! The tunnels between two nodes.

use std::net::IpAddr;
use std::ops::Range;

use crate::config::{LocalNode, RemoteNode, TunnelConfig, Underlay};

/// A tunnel to a node.
pub(super) struct VtepPair {
    /// Outer source.
    pub(super) source: IpAddr,
    /// Outer destination.
    pub(super) destination: IpAddr,
    /// The node's address of the other family, if there is no other tunnel to it.
    pub(super) other: Option<IpAddr>,
    /// Family of the inner packets: IPv4 is 0, IPv6 is 1.
    pub(super) carries: Range<usize>,
}

impl VtepPair {
    pub(super) fn is_second(&self) -> bool {
        self.carries.start == 1
    }
}

/// The tunnels between this node and another one: none without a common family, one, or one for
/// each family. The other node computes the same result.
pub(super) fn vtep_pairs(
    node: &RemoteNode,
    tunnel: &TunnelConfig,
    local: &LocalNode,
) -> impl Iterator<Item = VtepPair> + use<> {
    let (own, remote) = (vteps_of(&local.addresses), vteps_of(&node.addresses));
    let [v4, v6] = [0, 1].map(|f| Some((own[f]?, remote[f]?)));
    let two = local.vtep.both_have_second(node.vtep);
    let pair =
        |(source, destination), other, carries| VtepPair { source, destination, other, carries };
    let ways = match (v4, v6) {
        (None, None) => [None, None],
        (Some(ends), None) => [Some(pair(ends, remote[1], 0..2)), None],
        (None, Some(ends)) => [Some(pair(ends, remote[0], 0..2)), None],
        (Some(v4), Some(v6)) => match tunnel.underlay {
            Underlay::Ipv4First if !two => [Some(pair(v4, remote[1], 0..2)), None],
            Underlay::Ipv6First if !two => [Some(pair(v6, remote[0], 0..2)), None],
            _ => [Some(pair(v4, None, 0..1)), Some(pair(v6, None, 1..2))],
        },
    };
    ways.into_iter().flatten()
}

/// The first address of each family: the VTEPs'.
pub(super) fn vteps_of(addresses: &[IpAddr]) -> [Option<IpAddr>; 2] {
    [false, true].map(|v6| addresses.iter().find(|a| a.is_ipv6() == v6).copied())
}
