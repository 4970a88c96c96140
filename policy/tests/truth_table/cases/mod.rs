//! The cases, by subject.

mod blocks;
mod isolation;
mod ports;
mod selectors;
mod tiers;

use podswitch_policy::rule::{ClusterNetworkPolicy, NetworkPolicy};

/// One case: policies, and the expected verdicts. `expect` is read from top to bottom, and the last
/// line that matches a connection applies. If none matches, the connection is allowed. A pod's
/// calls to itself and between a pod and its own node are allowed in every case and not mentioned.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) network: Vec<NetworkPolicy>,
    pub(crate) cluster: Vec<ClusterNetworkPolicy>,
    pub(crate) expect: Vec<Line>,
}

/// `allow` or `deny`, source, destination, traffic.
pub(crate) type Line = (&'static str, &'static str, &'static str, &'static str);

/// A case of NetworkPolicies alone.
fn case<const N: usize, const M: usize>(
    name: &'static str,
    network: [NetworkPolicy; N],
    expect: [Line; M],
) -> Case {
    Case { name, network: network.to_vec(), cluster: Vec::new(), expect: expect.to_vec() }
}

/// A case of both kinds.
fn tiered<const N: usize, const C: usize, const M: usize>(
    name: &'static str,
    network: [NetworkPolicy; N],
    cluster: [ClusterNetworkPolicy; C],
    expect: [Line; M],
) -> Case {
    Case { cluster: cluster.to_vec(), ..case(name, network, expect) }
}

pub(crate) fn all() -> Vec<Case> {
    [isolation::cases(), selectors::cases(), ports::cases(), blocks::cases(), tiers::cases()]
        .into_iter()
        .flatten()
        .collect()
}
