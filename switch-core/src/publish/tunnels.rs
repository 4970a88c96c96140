//! Maps nodes to VTEPs. While the common part of all tunnels (tunnel configuration, this node's
//! VTEPs, uplink) is unchanged, a table is made from the previous one and the nodes that changed; a
//! node keeps its index and its learned path MTU.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use podswitch_vxlan::decap::DecapRules;
use podswitch_vxlan::template::{Outer, inner_mtu};
use podswitch_vxlan::vtep::{RemoteVtep, VtepIndex, VtepTable};
use podswitch_wire::addr::Mac;

use super::diff::{Desired, Diff};
use super::settings::Settings;
use super::vtep_pairs::{VtepPair, vtep_pairs, vteps_of};
use crate::config::{Gateway, LocalNode, RemoteNode, Routing, TunnelConfig};
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
        let local = vteps_of(&settings.node.addresses).into_iter().flatten();
        table.ends = VtepTable::new(local, [(tunnel.vni, 0)]);
    }
    table.addresses.extend(&settings.node.addresses);
    table
}

/// This node's identity, as other nodes see it.
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

/// A new VTEP: its node's name, the tunnel to it, and its properties.
type Wanted<'a> = (&'a Arc<str>, VtepPair, RemoteVtep);

impl Builder<'_> {
    /// The previous addresses of a node, without those that another node has now.
    fn forget_addresses(&mut self, node: &RemoteNode, desired: &Desired) {
        for address in &node.addresses {
            let local = &self.settings.node.addresses;
            if desired.nodes.at(*address).is_none() && !local.contains(address) {
                self.table.addresses.remove(address);
            }
        }
    }

    /// The reach of a node without a tunnel.
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

    /// The reach of a node through the tunnel.
    fn vxlan(
        &mut self,
        tunnel: &TunnelConfig,
        gone: &[&Arc<RemoteNode>],
        nodes: &[&Arc<RemoteNode>],
    ) {
        gone.iter().for_each(|node| self.forget(&node.name));
        let Some(uplink) = self.uplinks.tunnel else {
            // Without an uplink there is no path to other nodes.
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
            for pair in vtep_pairs(node, tunnel, &self.settings.node) {
                let second = usize::from(pair.is_second());
                match self.end(node, tunnel, &uplink, &pair) {
                    Err(why) => place.reach[pair.carries].fill(why),
                    Ok(end) => match had[second] {
                        Some(index) => {
                            place.ends[second] = Some(index);
                            place.reach[pair.carries.clone()].fill(Reach::Tunnel(index));
                            if self.table.ends.get(index) != Some(&end) {
                                changed.push((index, (&node.name, pair, end)));
                            }
                        }
                        None => fresh.push((&node.name, pair, end)),
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

    /// The VTEP of a node for one of its tunnels.
    fn end(
        &self,
        node: &RemoteNode,
        tunnel: &TunnelConfig,
        uplink: &UplinkPort,
        pair: &VtepPair,
    ) -> Result<RemoteVtep, Reach> {
        let destination = pair.destination;
        let mac = self.underlay_mac(node, Some(destination)).ok_or(Reach::NoNeighbour)?;
        let outer = Outer {
            ethernet: Some((uplink.mac, mac)),
            port: tunnel.port,
            dscp: tunnel.dscp,
            ..Outer::new(pair.source, destination, tunnel.vni)
        };
        // Validated: the headers can be built.
        let vtep = node.vtep.of(destination.is_ipv6());
        let end = RemoteVtep::new(outer, vtep).map_err(|_| Reach::NoSource)?;
        Ok(match pair.other {
            Some(other) => end.also_from(other),
            None => end,
        })
    }

    /// Replaces VTEPs, which may take over each other's addresses.
    fn replace<'n>(
        &mut self,
        uplink: &UplinkPort,
        changed: Vec<(VtepIndex, Wanted<'n>)>,
        fresh: &mut Vec<Wanted<'n>>,
    ) {
        let ends = changed.iter().map(|(index, (_, _, end))| (*index, end.clone())).collect();
        match self.table.ends.replace_all(ends) {
            Ok(()) => changed.into_iter().for_each(|(index, _)| self.set_tunnel(index, uplink)),
            // Cannot happen: no two nodes in force claim the same address. Otherwise the first ones
            // are inserted.
            Err(_) => {
                for (index, wanted) in changed {
                    self.remove(index);
                    fresh.push(wanted);
                }
            }
        }
    }

    fn insert(&mut self, uplink: &UplinkPort, (name, pair, end): Wanted<'_>) {
        let index = self.table.ends.insert(end).ok();
        let Some(place) = self.table.places.get_mut(name) else { return };
        let Some(index) = index.filter(|index| index.0 < u32::from(u16::MAX)) else {
            place.ends[usize::from(pair.is_second())] = None;
            place.reach[pair.carries].fill(Reach::NoSource);
            return;
        };
        place.ends[usize::from(pair.is_second())] = Some(index);
        place.reach[pair.carries.clone()].fill(Reach::Tunnel(index));
        self.table.owners.insert(index, name.clone());
        self.set_tunnel(index, uplink);
    }

    /// A VTEP as the packet path needs it.
    fn set_tunnel(&mut self, index: VtepIndex, uplink: &UplinkPort) {
        let Some(end) = self.table.ends.get(index) else { return };
        let template = *end.template();
        let mtu = inner_mtu(uplink.mtu.into(), template.is_ipv6()) as u16;
        let tunnels = &mut self.table.tunnels;
        if tunnels.len() <= index.index() {
            tunnels.resize(index.index() + 1, None);
        }
        tunnels[index.index()] = Some(Arc::new(Tunnel { template, mtu, path: Default::default() }));
    }

    /// A deleted node.
    fn forget(&mut self, name: &Arc<str>) {
        if let Some(place) = self.table.places.remove(name) {
            place.ends.into_iter().flatten().for_each(|index| self.remove(index));
        }
    }

    fn remove(&mut self, index: VtepIndex) {
        // It exists: the index is from this table.
        let _ = self.table.ends.remove(index);
        self.table.owners.remove(&index);
        if let Some(tunnel) = self.table.tunnels.get_mut(index.index()) {
            *tunnel = None;
        }
    }
}

/// A node's identity inside the tunnel.
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
