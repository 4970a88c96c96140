//! The FIB: everything except pods, by longest prefix. Updated by range when nodes or routes
//! change, and rebuilt if the node itself changes.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_policy::prefix::PrefixMap;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::diff::{Desired, Diff};
use super::ecmp::choice;
use super::settings::Settings;
use crate::config::{NextHop, RemoteNode, Route};
use crate::snapshot::{FibEntry, NextHops, Reach, Snapshot, Tunnels, Uplinks};

/// The FIB after the publish.
pub(super) fn compile(
    desired: &Desired,
    diff: &Diff,
    was: &Settings,
    before: &Snapshot,
    uplinks: &Uplinks,
    tunnels: &Arc<Tunnels>,
) -> Arc<PrefixMap<FibEntry>> {
    let builder = Builder { desired, uplinks, tunnels };
    let now = &desired.settings;
    let whole = was.node.pod_cidrs != now.node.pod_cidrs
        || was.node.addresses != now.node.addresses
        || was.cluster_key != now.cluster_key
        || was.neighbours != now.neighbours
        || before.uplinks.direct.is_some() != uplinks.direct.is_some()
        || !tunnels.has_same_reach(&before.tunnels);
    if whole {
        return Arc::new(builder.whole());
    }
    let mut ranges: HashSet<Cidr> = HashSet::new();
    for node in diff.nodes.all() {
        ranges.extend(ranges_of(node));
    }
    ranges.extend(diff.routes.all().map(|route| route.destination));
    if !diff.nodes.is_empty() && uplinks.direct.is_some() {
        // Next hops may be nodes.
        ranges.extend(desired.routes.iter().map(|route| route.destination));
    }
    if ranges.is_empty() {
        return before.fib.clone();
    }
    let mut fib = (*before.fib).clone();
    for range in ranges {
        match builder.entry(range) {
            Some(entry) => fib.insert(range, entry),
            None => fib.remove(&range),
        };
    }
    Arc::new(fib)
}

/// The ranges and the own addresses of a node.
fn ranges_of(node: &RemoteNode) -> impl Iterator<Item = Cidr> {
    node.pod_cidrs.iter().copied().chain(node.addresses.iter().map(|a| Cidr::host(*a)))
}

struct Builder<'a> {
    desired: &'a Desired,
    uplinks: &'a Uplinks,
    tunnels: &'a Tunnels,
}

impl Builder<'_> {
    fn whole(&self) -> PrefixMap<FibEntry> {
        let node = &self.desired.settings.node;
        let mut ranges: HashSet<Cidr> = node.pod_cidrs.iter().copied().collect();
        ranges.extend(node.addresses.iter().map(|a| Cidr::host(*a)));
        ranges.extend(self.desired.nodes.iter().flat_map(|node| ranges_of(node)));
        ranges.extend(self.desired.routes.iter().map(|route| route.destination));
        ranges.into_iter().filter_map(|range| Some((range, self.entry(range)?))).collect()
    }

    /// The target of a range. No range or route overrides nodes' own addresses.
    fn entry(&self, range: Cidr) -> Option<FibEntry> {
        let Desired { settings, nodes, routes, .. } = self.desired;
        let (node, address) = (&settings.node, range.address());
        let v6 = address.is_ipv6();
        let is_host = range == Cidr::host(address);
        if is_host && node.addresses.contains(&address) {
            return Some(FibEntry::Local);
        }
        if is_host
            && self.tunnels.enabled
            && let Some(node) = nodes.at(address)
            && let Some(reach) = self.tunnels.reach(&node.name, v6)
        {
            return Some(FibEntry::Node(reach));
        }
        if let Some(route) = routes.get(&range) {
            return Some(FibEntry::NextHops(Arc::new(self.next_hops(route))));
        }
        if let Some(node) = nodes.of_range(range) {
            let reach = self.tunnels.reach(&node.name, v6).unwrap_or(Reach::Host);
            return Some(FibEntry::Node(reach));
        }
        node.pod_cidrs.contains(&range).then_some(FibEntry::LocalPods)
    }

    fn next_hops(&self, route: &Route) -> NextHops {
        let direct = self.uplinks.direct.is_some();
        let reach = |hop: &NextHop| match hop {
            NextHop::Blackhole => None,
            NextHop::Via(address) if direct => {
                Some(self.mac_of(*address).map_or(Reach::NoNeighbour, Reach::Neighbour))
            }
            NextHop::Host | NextHop::Via(_) => Some(Reach::Host),
        };
        // Next hops with unknown MAC addresses are skipped while others are known.
        let is_known = |hop: &&NextHop| reach(hop) != Some(Reach::NoNeighbour);
        let all = &route.next_hops;
        let known: Vec<&NextHop> = match all.iter().any(|hop| is_known(&hop)) {
            true => all.iter().filter(is_known).collect(),
            false => all.iter().collect(),
        };
        // Validated: there are not too many.
        let choice = choice(&known, all.len(), &self.desired.settings).unwrap_or_default();
        NextHops { hops: known.into_iter().map(reach).collect(), choice }
    }

    /// The MAC address of a neighbour on the direct uplink.
    fn mac_of(&self, address: IpAddr) -> Option<Mac> {
        let Desired { settings, nodes, .. } = self.desired;
        let given = settings.neighbours.get(&address).copied().filter(|mac| mac.is_unicast());
        let own = || nodes.at(address).map(|node| node.underlay_mac).filter(|mac| mac.is_unicast());
        given.or_else(own)
    }
}
