//! Where pods are, as ranges of addresses.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use podswitch_core::config::Config;
use podswitch_policy::prefix::PrefixMap;
use podswitch_wire::cidr::Cidr;

/// Where this node's pods are: its ranges, and pods outside them.
pub(crate) fn local_ranges(config: &Config) -> Vec<Cidr> {
    let mut ranges = config.node.pod_cidrs.clone();
    let is_local = |pod: &podswitch_core::config::Endpoint| {
        pod.node == config.node.name && !pod.workload.host_network
    };
    let pods = config.endpoints.iter().filter(|pod| is_local(pod));
    let addresses: Vec<IpAddr> = pods.flat_map(|pod| &pod.workload.addresses).copied().collect();
    extend(&mut ranges, addresses);
    ranges
}

/// Where other nodes' pods are: those nodes' ranges, and pods outside them.
pub(crate) fn remote_ranges(config: &Config) -> Vec<Cidr> {
    let by_name: HashMap<&str, &[Cidr]> =
        config.nodes.iter().map(|node| (&*node.name, &node.pod_cidrs[..])).collect();
    let of_nodes: HashSet<&IpAddr> =
        config.nodes.iter().flat_map(|n| &n.addresses).chain(&config.node.addresses).collect();
    let mut ranges: Vec<Cidr> = by_name.values().copied().flatten().copied().collect();
    for pod in &config.endpoints {
        let Some(of_node) = by_name.get(&*pod.node) else { continue };
        // A pod with its node's network is reached as the node is.
        let outside =
            |a: &&IpAddr| !of_nodes.contains(a) && !of_node.iter().any(|r| r.contains(**a));
        ranges.extend(pod.workload.addresses.iter().filter(outside).map(|a| Cidr::host(*a)));
    }
    ranges.sort_unstable_by_key(|range| (range.address(), range.prefix()));
    ranges.dedup();
    ranges
}

/// The whole cluster: pods and nodes, and what is configured to belong to it.
pub(super) fn cluster_ranges(configured: &[Cidr], config: &Config) -> Vec<Cidr> {
    let mut ranges = configured.to_vec();
    let (local, nodes) = (&config.node, &config.nodes);
    ranges.extend(local.pod_cidrs.iter().chain(nodes.iter().flat_map(|node| &node.pod_cidrs)));
    let of_nodes = local.addresses.iter().chain(nodes.iter().flat_map(|node| &node.addresses));
    let of_pods = config.endpoints.iter().flat_map(|pod| &pod.workload.addresses);
    extend(&mut ranges, of_nodes.chain(of_pods).copied().collect());
    ranges
}

/// Adds the ranges that are not there yet.
pub(super) fn extend_ranges(ranges: &mut Vec<Cidr>, more: Vec<Cidr>) {
    let known: HashSet<Cidr> = ranges.iter().copied().collect();
    ranges.extend(more.into_iter().filter(|range| !known.contains(range)));
}

/// Adds the addresses that no range holds yet.
fn extend(ranges: &mut Vec<Cidr>, mut addresses: Vec<IpAddr>) {
    let mut held = PrefixMap::new();
    for range in ranges.iter() {
        held.insert(*range, ());
    }
    addresses.retain(|address| held.get(*address).is_none());
    addresses.sort_unstable();
    addresses.dedup();
    ranges.extend(addresses.into_iter().map(Cidr::host));
}
