//! From nodes to tunnel ends. Control plane only.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_vxlan::decap::DecapRules;
use podswitch_vxlan::template::{Outer, inner_mtu};
use podswitch_vxlan::vtep::{EndIndex, RemoteEnd, VtepTable};
use podswitch_wire::addr::Mac;

use super::{Owner, Place, Reach, Tunnel, Tunnels, Uplinks};
use crate::config::{
    Config, ConfigError, Gateway, LocalNode, RemoteNode, Routing, TunnelConfig, Underlay,
};
use crate::id::{Cookie, PortId};
use crate::snapshot::UplinkPort;

/// Every IPv4 host takes packets of so many bytes (RFC 791 §3.1), so that a tunnel must.
const LEAST_INNER_MTU: usize = 576;

/// What a table was made of: the same again makes the same table.
#[derive(Clone, Debug, Default)]
pub(super) struct Inputs {
    tunnel: Option<TunnelConfig>,
    local: LocalNode,
    uplink: Option<UplinkPort>,
    direct: bool,
    neighbours: Vec<(IpAddr, Mac)>,
    nodes: Vec<Arc<RemoteNode>>,
}

impl Inputs {
    fn is_same(&self, other: &Self) -> bool {
        self.is_same_ground(other)
            && self.local == other.local
            && self.direct == other.direct
            && self.neighbours == other.neighbours
            && self.nodes.len() == other.nodes.len()
            && self.nodes.iter().zip(&other.nodes).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// Whether what every tunnel shares is the same.
    fn is_same_ground(&self, other: &Self) -> bool {
        self.tunnel == other.tunnel
            && self.uplink == other.uplink
            && self.local.addresses == other.local.addresses
            && self.local.vtep == other.local.vtep
    }
}

/// See the module's description.
pub(in crate::snapshot) struct Compiler<'a> {
    config: &'a Config,
    uplinks: Uplinks,
    errors: &'a mut Vec<ConfigError>,
    neighbours: HashMap<IpAddr, Mac>,
}

impl<'a> Compiler<'a> {
    pub(in crate::snapshot) fn new(
        config: &'a Config,
        uplinks: Uplinks,
        errors: &'a mut Vec<ConfigError>,
    ) -> Self {
        let neighbours = config.neighbours.iter().copied().collect();
        Self { config, uplinks, errors, neighbours }
    }

    /// The table that follows `before`.
    pub(in crate::snapshot) fn compile(mut self, before: &Arc<Tunnels>) -> Arc<Tunnels> {
        let config = self.config;
        let inputs = Inputs {
            tunnel: config.tunnel.clone(),
            local: config.node.clone(),
            uplink: self.uplinks.tunnel,
            direct: self.uplinks.direct.is_some(),
            neighbours: config.neighbours.clone(),
            nodes: config.nodes.clone(),
        };
        if inputs.is_same(&before.made_of) {
            return before.clone();
        }
        let addresses = config.nodes.iter().flat_map(|node| &node.addresses);
        let addresses = addresses.chain(&config.node.addresses).copied().collect();
        let Some(tunnel) = &config.tunnel else {
            return Arc::new(Tunnels { addresses, made_of: inputs, ..Tunnels::default() });
        };
        let mut table = Tunnels {
            enabled: true,
            rules: DecapRules {
                port: tunnel.port,
                ipv6_zero_checksum: tunnel.ipv6_zero_checksum,
                inner_vlan: false,
            },
            addresses,
            own: config.node.pod_cidrs.iter().map(|range| range.address()).collect(),
            gateways: [false, true].map(|v6| gateway(&config.node, v6)),
            ..Tunnels::default()
        };
        match tunnel.routing {
            Routing::HostGw => self.beside(&mut table),
            Routing::Vxlan => {
                let uplink = self.uplinks.tunnel.unwrap_or(NOWHERE);
                table.port = uplink.port;
                let ground = inputs.is_same_ground(&before.made_of);
                self.through(&mut table, tunnel, &uplink, ground.then_some(&**before));
                if self.uplinks.tunnel.is_none() {
                    table.cut_off();
                }
            }
        }
        table.made_of = inputs;
        Arc::new(table)
    }

    fn error(&mut self, object: &Cookie, field: &str, reason: impl Into<String>) {
        let (object, field, reason) = (object.clone(), field.to_owned(), reason.into());
        self.errors.push(ConfigError { object, field, reason });
    }

    /// Without a tunnel.
    fn beside(&mut self, table: &mut Tunnels) {
        for node in &self.config.nodes {
            let reach = match self.uplinks.direct {
                None => Reach::Host,
                Some(_) => match self.link_address(node, node.addresses.first().copied()) {
                    Some(mac) => Reach::Neighbour(mac),
                    None => Reach::NoNeighbour,
                },
            };
            let place = Place { node: node.clone(), reach: [reach; 2] };
            table.places.insert(node.name.clone(), place);
        }
    }

    /// The link-layer address that packets to a node's address go to on the underlay.
    fn link_address(&self, node: &RemoteNode, address: Option<IpAddr>) -> Option<Mac> {
        let known = address.and_then(|address| self.neighbours.get(&address)).copied();
        Some(known.unwrap_or(node.underlay_mac)).filter(|mac| mac.is_unicast())
    }

    /// Through the tunnel. `before` is a table of the same local end.
    fn through(
        &mut self,
        table: &mut Tunnels,
        tunnel: &TunnelConfig,
        uplink: &UplinkPort,
        before: Option<&Tunnels>,
    ) {
        let local = &self.config.node;
        let [v4, v6] = ends_of(&local.addresses);
        self.check_local(local, tunnel, uplink, [v4, v6]);
        table.ends = match before {
            Some(before) => before.ends.clone(),
            None => VtepTable::new(v4.into_iter().chain(v6), [(tunnel.vni, 0)]),
        };
        let indices: HashMap<(&str, bool), EndIndex> = before
            .iter()
            .flat_map(|before| before.owners.iter())
            .map(|(index, owner)| ((&*owner.node, owner.second), *index))
            .collect();
        let mut wanted = Vec::new();
        for node in &self.config.nodes {
            let mut reach = [Reach::NoSource; 2];
            for way in ways(node, tunnel, local) {
                match self.end(node, tunnel, uplink, &way) {
                    Ok(Some(end)) => wanted.push((node, way, end)),
                    Ok(None) => {}
                    Err(why) => reach[way.carries].fill(why),
                }
            }
            table.places.insert(node.name.clone(), Place { node: node.clone(), reach });
        }
        let staying: HashSet<(&str, bool)> =
            wanted.iter().map(|(node, way, _)| (&*node.name, way.is_second())).collect();
        for (owner, index) in &indices {
            if !staying.contains(owner) {
                // It is there: the index came from this very table.
                let _ = table.ends.remove(*index);
            }
        }
        let (mut changed, mut fresh) = (Vec::new(), Vec::new());
        for (node, way, end) in wanted {
            match indices.get(&(&*node.name, way.is_second())) {
                Some(index) => {
                    if table.ends.get(*index) != Some(&end) {
                        changed.push((*index, end));
                    }
                    put(table, node, way, *index);
                }
                None => fresh.push((node, way, end)),
            }
        }
        if let Err((index, error)) = table.ends.replace_all(changed) {
            let object = table.node(index).and_then(|name| table.places.get(name));
            let object = object.map_or_else(|| Cookie::new("Tunnel"), |p| p.node.cookie.clone());
            self.error(&object, "vtep", error.to_string());
        }
        for (node, way, end) in fresh {
            match table.ends.insert(end) {
                Ok(index) if index.0 < u32::from(u16::MAX) => put(table, node, way, index),
                Ok(_) => self.error(&node.cookie, "vtep", "more than 65,535 tunnel ends"),
                Err(error) => self.error(&node.cookie, "vtep", error.to_string()),
            }
        }
        table.tunnels = tunnels(table, uplink, before);
    }

    fn check_local(
        &mut self,
        local: &LocalNode,
        tunnel: &TunnelConfig,
        uplink: &UplinkPort,
        ends: [Option<IpAddr>; 2],
    ) {
        let node = Cookie::new(format!("Node/{}", local.name));
        for v6 in [false, true] {
            if ends[usize::from(v6)].is_some() && !local.vtep.of(v6).is_unicast() {
                self.error(&node, "vtep", "is not a unicast MAC address");
            }
        }
        if tunnel.port == 0 {
            self.error(&Cookie::new("Tunnel"), "port", "is 0");
        }
        let inner = inner_mtu(uplink.mtu.into(), ends[1].is_some());
        if inner < LEAST_INNER_MTU {
            let object = Cookie::new(format!("Port/{}", uplink.port));
            let reason = format!("leaves {inner} bytes for what is inside the tunnel");
            self.error(&object, "mtu", reason);
        }
    }

    /// The tunnel end of a node by one of the ways to it; `None` where there was an error.
    fn end(
        &mut self,
        node: &RemoteNode,
        tunnel: &TunnelConfig,
        uplink: &UplinkPort,
        way: &Way,
    ) -> Result<Option<RemoteEnd>, Reach> {
        let [source, destination] = way.ends;
        let mac = self.link_address(node, Some(destination)).ok_or(Reach::NoNeighbour)?;
        let vtep = node.vtep.of(destination.is_ipv6());
        if !vtep.is_unicast() {
            self.error(&node.cookie, "vtep", "is not a unicast MAC address");
            return Ok(None);
        }
        let outer = Outer {
            ethernet: Some((uplink.mac, mac)),
            port: tunnel.port,
            dscp: tunnel.dscp,
            ..Outer::new(source, destination, tunnel.vni)
        };
        match RemoteEnd::new(outer, vtep) {
            Ok(end) => Ok(Some(match way.other {
                Some(other) => end.also_from(other),
                None => end,
            })),
            Err(error) => {
                self.error(&node.cookie, "addresses", error.to_string());
                Ok(None)
            }
        }
    }
}

/// In the place of an uplink that is not there, so that all else can be checked.
const NOWHERE: UplinkPort =
    UplinkPort { port: PortId(0), mac: Mac::ZERO, mtu: 1500, tunnel: true, direct: false };

impl Tunnels {
    /// Without an uplink there is no way to other nodes.
    fn cut_off(&mut self) {
        self.tunnels.clear();
        for place in self.places.values_mut() {
            place.reach = [Reach::NoUplink; 2];
        }
    }
}

/// Enters an end of a node that has its place already.
fn put(table: &mut Tunnels, node: &Arc<RemoteNode>, way: Way, index: EndIndex) {
    table.owners.insert(index, Owner { node: node.name.clone(), second: way.is_second() });
    if let Some(place) = table.places.get_mut(&node.name) {
        place.reach[way.carries].fill(Reach::Tunnel(index));
    }
}

/// A tunnel to a node.
struct Way {
    /// Outer source and destination.
    ends: [IpAddr; 2],
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

/// The tunnels between this node and another, which finds the same: none without a family that both
/// have, one, or one for each family.
fn ways(
    node: &RemoteNode,
    tunnel: &TunnelConfig,
    local: &LocalNode,
) -> impl Iterator<Item = Way> + use<> {
    let (own, remote) = (ends_of(&local.addresses), ends_of(&node.addresses));
    let [v4, v6] = [0, 1].map(|f| Some([own[f]?, remote[f]?]));
    let two = local.vtep.both_have_second(node.vtep);
    let for_all = |ends, other| Some(Way { ends, other, carries: 0..2 });
    let ways = match (v4, v6) {
        (None, None) => [None, None],
        (Some(ends), None) => [for_all(ends, remote[1]), None],
        (None, Some(ends)) => [for_all(ends, remote[0]), None],
        (Some(v4), Some(v6)) => match tunnel.underlay {
            Underlay::Ipv4First if !two => [for_all(v4, remote[1]), None],
            Underlay::Ipv6First if !two => [for_all(v6, remote[0]), None],
            _ => [(v4, 0..1), (v6, 1..2)]
                .map(|(ends, carries)| Some(Way { ends, other: None, carries })),
        },
    };
    ways.into_iter().flatten()
}

/// The packet path's part: what is as before stays, with what was learnt of it.
fn tunnels(
    table: &Tunnels,
    uplink: &UplinkPort,
    before: Option<&Tunnels>,
) -> Vec<Option<Arc<Tunnel>>> {
    let mut tunnels = Vec::new();
    for (index, end) in table.ends.iter() {
        if tunnels.len() <= index.index() {
            tunnels.resize(index.index() + 1, None);
        }
        let kept = before
            .filter(|before| before.ends.get(index) == Some(end))
            .and_then(|before| before.tunnels.get(index.index()).cloned().flatten());
        tunnels[index.index()] = Some(kept.unwrap_or_else(|| {
            let template = *end.template();
            let mtu = inner_mtu(uplink.mtu.into(), template.is_ipv6()) as u16;
            Arc::new(Tunnel { template, mtu, path: Default::default() })
        }));
    }
    tunnels
}

/// The first address of each family: the tunnel's ends.
fn ends_of(addresses: &[IpAddr]) -> [Option<IpAddr>; 2] {
    [false, true].map(|v6| addresses.iter().find(|a| a.is_ipv6() == v6).copied())
}

/// What a node is to the others inside the tunnel.
fn gateway(node: &LocalNode, v6_underlay: bool) -> Gateway {
    let mut gateway = Gateway {
        ipv4: std::net::Ipv4Addr::UNSPECIFIED,
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
