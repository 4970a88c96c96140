//! From nodes to VTEPs. What holds for all tunnels alike (the tunnel's configuration, this node's
//! VTEPs, the uplink) is the base: while it stays, a table is made from the one before and the nodes
//! that changed, a node keeps its index, and what was learnt of the path to it stays.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;

use podswitch_vxlan::decap::DecapRules;
use podswitch_vxlan::template::{Outer, inner_mtu};
use podswitch_vxlan::vtep::{EndIndex, RemoteEnd, VtepTable};
use podswitch_wire::addr::Mac;

use super::diff::{Desired, Diff};
use super::settings::Settings;
use crate::config::{Gateway, LocalNode, RemoteNode, Routing, TunnelConfig, Underlay};
use crate::snapshot::{NodePlace, Reach, Snapshot, Tunnel, Tunnels, UplinkPort, Uplinks};

/// The overlay after the publish.
pub(super) fn compile(
    desired: &Desired,
    diff: &Diff,
    was: &Settings,
    before: &Snapshot,
    uplinks: &Uplinks,
) -> Arc<Tunnels> {
    let now = &desired.settings;
    let same_base = was.has_same_vtep(now) && before.uplinks.tunnel == uplinks.tunnel;
    let same_reach = was.neighbours == now.neighbours
        && before.uplinks.direct.is_some() == uplinks.direct.is_some();
    let same_node = was.node.addresses == now.node.addresses
        && was.node.pod_cidrs == now.node.pod_cidrs
        && was.node.gateway == now.node.gateway;
    if same_base && same_reach && same_node && diff.nodes.is_empty() {
        return before.tunnels.clone();
    }
    let mut table = match same_base {
        true => before.tunnels.successor(same_reach),
        false => empty(now, uplinks),
    };
    own(&mut table, &now.node, now.tunnel.is_some());
    let mut builder = Builder { settings: now, uplinks, table };
    if same_base {
        diff.nodes.before().for_each(|node| builder.forget_addresses(node, desired));
    }
    let all: Vec<&Arc<RemoteNode>> = match same_base && same_reach {
        true => diff.nodes.after().collect(),
        false => desired.nodes.iter().collect(),
    };
    builder.table.addresses.extend(all.iter().flat_map(|node| &node.addresses));
    let gone: Vec<&Arc<RemoteNode>> = match same_base {
        true => diff.nodes.removed.iter().collect(),
        false => Vec::new(),
    };
    match &now.tunnel {
        None => {}
        Some(tunnel) if tunnel.routing == Routing::HostGw => builder.direct(&gone, &all),
        Some(tunnel) => builder.vxlan(tunnel, &gone, &all),
    }
    Arc::new(builder.table)
}

/// A table without other nodes.
fn empty(settings: &Settings, uplinks: &Uplinks) -> Tunnels {
    let mut table = Tunnels::default();
    if let Some(tunnel) = &settings.tunnel {
        table.enabled = true;
        table.rules = DecapRules {
            port: tunnel.port,
            ipv6_zero_checksum: tunnel.ipv6_zero_checksum,
            inner_vlan: false,
        };
    }
    if let (Some(tunnel), Some(uplink)) = (settings.vxlan(), uplinks.tunnel) {
        table.port = uplink.port;
        let local = ends_of(&settings.node.addresses).into_iter().flatten();
        table.ends = VtepTable::new(local, [(tunnel.vni, 0)]);
    }
    table.addresses.extend(&settings.node.addresses);
    table
}

/// What this node is to others.
fn own(table: &mut Tunnels, node: &LocalNode, enabled: bool) {
    if enabled {
        table.own = node.pod_cidrs.iter().map(|range| range.address()).collect();
        table.gateways = [false, true].map(|v6| gateway(node, v6));
    }
}

struct Builder<'a> {
    settings: &'a Settings,
    uplinks: &'a Uplinks,
    table: Tunnels,
}

/// A VTEP to be: its node's name, the way to it, and what it is.
type Wanted<'a> = (&'a Arc<str>, Way, RemoteEnd);

impl Builder<'_> {
    /// The addresses of a node as it was, but for those that another one has now.
    fn forget_addresses(&mut self, node: &RemoteNode, desired: &Desired) {
        for address in &node.addresses {
            let local = &self.settings.node.addresses;
            if desired.nodes.at(*address).is_none() && !local.contains(address) {
                self.table.addresses.remove(address);
            }
        }
    }

    /// Without a tunnel.
    fn direct(&mut self, gone: &[&Arc<RemoteNode>], nodes: &[&Arc<RemoteNode>]) {
        for node in gone {
            self.table.places.remove(&node.name);
        }
        for node in nodes {
            let reach = match self.uplinks.direct {
                None => Reach::Host,
                Some(_) => match self.underlay_mac(node, node.addresses.first().copied()) {
                    Some(mac) => Reach::Neighbour(mac),
                    None => Reach::NoNeighbour,
                },
            };
            let place = NodePlace { reach: [reach; 2], ends: [None; 2] };
            self.table.places.insert(node.name.clone(), place);
        }
    }

    /// The MAC address that packets to a node's address go to on the underlay.
    fn underlay_mac(&self, node: &RemoteNode, address: Option<IpAddr>) -> Option<Mac> {
        let known = address.and_then(|address| self.settings.neighbours.get(&address)).copied();
        Some(known.unwrap_or(node.underlay_mac)).filter(|mac| mac.is_unicast())
    }

    /// Through the tunnel.
    fn vxlan(
        &mut self,
        tunnel: &TunnelConfig,
        gone: &[&Arc<RemoteNode>],
        nodes: &[&Arc<RemoteNode>],
    ) {
        gone.iter().for_each(|node| self.forget(&node.name));
        let Some(uplink) = self.uplinks.tunnel else {
            // Without an uplink there is no way to other nodes.
            for node in nodes {
                let place = NodePlace { reach: [Reach::NoUplink; 2], ends: [None; 2] };
                self.table.places.insert(node.name.clone(), place);
            }
            return;
        };
        let (mut changed, mut fresh) = (Vec::new(), Vec::new());
        for node in nodes {
            let mut place = NodePlace { reach: [Reach::NoSource; 2], ends: [None; 2] };
            let had = self.table.places.get(&node.name).map_or([None; 2], |place| place.ends);
            for way in ways(node, tunnel, &self.settings.node) {
                let second = usize::from(way.is_second());
                match self.end(node, tunnel, &uplink, &way) {
                    Err(why) => place.reach[way.carries].fill(why),
                    Ok(end) => match had[second] {
                        Some(index) => {
                            place.ends[second] = Some(index);
                            place.reach[way.carries.clone()].fill(Reach::Tunnel(index));
                            if self.table.ends.get(index) != Some(&end) {
                                changed.push((index, (&node.name, way, end)));
                            }
                        }
                        None => fresh.push((&node.name, way, end)),
                    },
                }
            }
            for index in
                had.into_iter().flatten().filter(|index| !place.ends.contains(&Some(*index)))
            {
                self.remove(index);
            }
            self.table.places.insert(node.name.clone(), place);
        }
        self.replace(&uplink, changed, &mut fresh);
        for wanted in fresh {
            self.insert(&uplink, wanted);
        }
    }

    /// The VTEP of a node, by one of the ways to it.
    fn end(
        &self,
        node: &RemoteNode,
        tunnel: &TunnelConfig,
        uplink: &UplinkPort,
        way: &Way,
    ) -> Result<RemoteEnd, Reach> {
        let destination = way.destination;
        let mac = self.underlay_mac(node, Some(destination)).ok_or(Reach::NoNeighbour)?;
        let outer = Outer {
            ethernet: Some((uplink.mac, mac)),
            port: tunnel.port,
            dscp: tunnel.dscp,
            ..Outer::new(way.source, destination, tunnel.vni)
        };
        // Checked before: the headers can be built.
        let vtep = node.vtep.of(destination.is_ipv6());
        let end = RemoteEnd::new(outer, vtep).map_err(|_| Reach::NoSource)?;
        Ok(match way.other {
            Some(other) => end.also_from(other),
            None => end,
        })
    }

    /// Replaces VTEPs, which may take over each other's addresses.
    fn replace<'n>(
        &mut self,
        uplink: &UplinkPort,
        changed: Vec<(EndIndex, Wanted<'n>)>,
        fresh: &mut Vec<Wanted<'n>>,
    ) {
        let ends = changed.iter().map(|(index, (_, _, end))| (*index, end.clone())).collect();
        match self.table.ends.replace_all(ends) {
            Ok(()) => changed.into_iter().for_each(|(index, _)| self.set_tunnel(index, uplink)),
            // Cannot be: no two nodes in force claim the same. If it were, those that fit go in.
            Err(_) => {
                for (index, wanted) in changed {
                    self.remove(index);
                    fresh.push(wanted);
                }
            }
        }
    }

    fn insert(&mut self, uplink: &UplinkPort, (name, way, end): Wanted<'_>) {
        let index = self.table.ends.insert(end).ok();
        let Some(place) = self.table.places.get_mut(name) else { return };
        let Some(index) = index.filter(|index| index.0 < u32::from(u16::MAX)) else {
            place.ends[usize::from(way.is_second())] = None;
            place.reach[way.carries].fill(Reach::NoSource);
            return;
        };
        place.ends[usize::from(way.is_second())] = Some(index);
        place.reach[way.carries.clone()].fill(Reach::Tunnel(index));
        self.table.owners.insert(index, name.clone());
        self.set_tunnel(index, uplink);
    }

    /// What the packet path needs of a VTEP.
    fn set_tunnel(&mut self, index: EndIndex, uplink: &UplinkPort) {
        let Some(end) = self.table.ends.get(index) else { return };
        let template = *end.template();
        let mtu = inner_mtu(uplink.mtu.into(), template.is_ipv6()) as u16;
        let tunnels = &mut self.table.tunnels;
        if tunnels.len() <= index.index() {
            tunnels.resize(index.index() + 1, None);
        }
        tunnels[index.index()] = Some(Arc::new(Tunnel { template, mtu, path: Default::default() }));
    }

    /// A node that is gone.
    fn forget(&mut self, name: &Arc<str>) {
        if let Some(place) = self.table.places.remove(name) {
            place.ends.into_iter().flatten().for_each(|index| self.remove(index));
        }
    }

    fn remove(&mut self, index: EndIndex) {
        // It is there: the index came from this very table.
        let _ = self.table.ends.remove(index);
        self.table.owners.remove(&index);
        if let Some(tunnel) = self.table.tunnels.get_mut(index.index()) {
            *tunnel = None;
        }
    }
}

/// A tunnel to a node.
pub(super) struct Way {
    /// Outer source.
    pub(super) source: IpAddr,
    /// Outer destination.
    pub(super) destination: IpAddr,
    /// The node's address of the other family, if there is no other tunnel to it.
    other: Option<IpAddr>,
    /// What travels by it: IPv4 is 0, IPv6 is 1.
    carries: Range<usize>,
}

impl Way {
    fn is_second(&self) -> bool {
        self.carries.start == 1
    }
}

/// The tunnels between this node and another one, which finds the same: none without a family that
/// both have, one, or one for each family.
pub(super) fn ways(
    node: &RemoteNode,
    tunnel: &TunnelConfig,
    local: &LocalNode,
) -> impl Iterator<Item = Way> + use<> {
    let (own, remote) = (ends_of(&local.addresses), ends_of(&node.addresses));
    let [v4, v6] = [0, 1].map(|f| Some((own[f]?, remote[f]?)));
    let two = local.vtep.both_have_second(node.vtep);
    let way = |(source, destination), other, carries| Way { source, destination, other, carries };
    let ways = match (v4, v6) {
        (None, None) => [None, None],
        (Some(ends), None) => [Some(way(ends, remote[1], 0..2)), None],
        (None, Some(ends)) => [Some(way(ends, remote[0], 0..2)), None],
        (Some(v4), Some(v6)) => match tunnel.underlay {
            Underlay::Ipv4First if !two => [Some(way(v4, remote[1], 0..2)), None],
            Underlay::Ipv6First if !two => [Some(way(v6, remote[0], 0..2)), None],
            _ => [Some(way(v4, None, 0..1)), Some(way(v6, None, 1..2))],
        },
    };
    ways.into_iter().flatten()
}

/// The first address of each family: the VTEPs'.
pub(super) fn ends_of(addresses: &[IpAddr]) -> [Option<IpAddr>; 2] {
    [false, true].map(|v6| addresses.iter().find(|a| a.is_ipv6() == v6).copied())
}

/// What a node is to the others inside the tunnel.
fn gateway(node: &LocalNode, v6_underlay: bool) -> Gateway {
    let mut gateway = Gateway {
        ipv4: Ipv4Addr::UNSPECIFIED,
        ipv6: node.gateway.ipv6,
        mac: node.vtep.of(v6_underlay),
    };
    for range in &node.pod_cidrs {
        match range.address() {
            IpAddr::V4(first) => gateway.ipv4 = first,
            IpAddr::V6(first) => gateway.ipv6 = first,
        }
    }
    gateway
}
