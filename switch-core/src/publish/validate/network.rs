//! Ports, bridge domains, pods, nodes and routes.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_vxlan::template::{Outer, Template, inner_mtu};

use super::is_unicast;
use crate::config::{
    BridgeDomain, Endpoint, NextHop, PortConfig, PortRole, RemoteNode, Route, Vlans,
};
use crate::id::PortId;
use crate::publish::ecmp;
use crate::publish::fault::Faults;
use crate::publish::fdb_ids::FdbIds;
use crate::publish::objects::Kind;
use crate::publish::settings::Settings;
use crate::publish::vtep_pairs::{vtep_pairs, vteps_of};

/// Smallest MTU that IPv4 allows (RFC 791) and IPv6 allows (RFC 8200 §5), in bytes.
const MIN_MTU_V4: u16 = 68;
const MIN_MTU_V6: u16 = 1280;

/// Every IPv4 host accepts packets of this many bytes (RFC 791 §3.1), so a tunnel must carry them.
const MIN_INNER_MTU: usize = 576;

/// The state on which a port's validity depends.
#[derive(Clone, Copy)]
pub(crate) struct PortContext<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) bridges: &'a Kind<Arc<BridgeDomain>>,
    pub(crate) fdb_ids: &'a FdbIds,
}

/// The state on which a pod's validity depends.
#[derive(Clone, Copy)]
pub(crate) struct EndpointContext<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) ports: &'a Kind<PortConfig>,
}

pub(in crate::publish) fn bridge(bridge: &BridgeDomain, faults: &mut Faults) {
    if bridge.ageing_secs == 0 {
        faults.add("ageing_secs", "must be at least 1 second");
    }
}

pub(in crate::publish) fn port(port: &PortConfig, context: PortContext<'_>, faults: &mut Faults) {
    if port.port.index() >= PortId::MAX_PORTS {
        faults.add("port", format!("is not below {}", PortId::MAX_PORTS));
        return;
    }
    match &port.role {
        PortRole::Pod => {}
        PortRole::Host { mac, .. } => {
            if !mac.is_unicast() {
                faults.add("mac", "is not a unicast MAC address");
            }
        }
        PortRole::Uplink { mac, mtu, tunnel, direct } => {
            if !mac.is_unicast() {
                faults.add("mac", "is not a unicast MAC address");
            }
            if !tunnel && !direct {
                faults.add("role", "is an uplink that carries nothing");
            }
            let v6 = vteps_of(&context.settings.node.addresses)[1].is_some();
            let inner = inner_mtu((*mtu).into(), v6);
            if *tunnel && context.settings.vxlan().is_some() && inner < MIN_INNER_MTU {
                faults.add("mtu", format!("leaves {inner} bytes for packets inside the tunnel"));
            }
        }
        PortRole::Bridge { domain, vlans: ids } => {
            vlans(ids, faults);
            if context.bridges.get(domain).is_none() {
                faults.missing("domain", format!("no bridge domain is named {domain}"));
            } else if ids.ids().any(|vid| context.fdb_ids.of(domain, vid).is_none()) {
                faults.add("vlans", "all domains together have more than 65,535 VLANs");
            }
        }
    }
}

fn vlans(vlans: &Vlans, faults: &mut Faults) {
    for vid in vlans.ids().filter(|vid| !(1..=4094).contains(vid)) {
        faults.add("vlans", format!("{vid} is not a VLAN ID (1 to 4094)"));
    }
    if vlans.untagged.is_some_and(|v| vlans.tagged.contains(&v)) {
        faults.add("vlans", "a VLAN is both tagged and untagged");
    }
}

pub(in crate::publish) fn endpoint(
    endpoint: &Endpoint,
    context: EndpointContext<'_>,
    faults: &mut Faults,
) {
    let node = &context.settings.node;
    let (addresses, host_network) = (&endpoint.workload.addresses, endpoint.workload.host_network);
    for (i, address) in addresses.iter().enumerate() {
        let mut add = |reason: String| faults.add(format!("addresses[{i}]"), reason);
        if !is_unicast(*address) {
            add("is not a unicast address".into());
        } else if host_network {
            // Its node's addresses.
        } else if node.gateway.has(*address) {
            add(format!("{address} is the gateway's"));
        } else if node.addresses.contains(address) {
            add(format!("{address} is the node's own"));
        } else if addresses[..i].contains(address) {
            add("is listed twice".into());
        }
    }
    let Some(at) = endpoint.attachment.filter(|_| !host_network) else { return };
    let v6 = addresses.iter().any(IpAddr::is_ipv6);
    let least = if v6 { MIN_MTU_V6 } else { MIN_MTU_V4 };
    if at.mtu < least {
        faults.add("attachment.mtu", format!("is below {least}"));
    }
    if !at.mac.is_unicast() {
        faults.add("attachment.mac", "is not a unicast MAC address");
    }
    if context.ports.get(&at.port).is_none_or(|port| port.role != PortRole::Pod) {
        let reason = format!("port {} is not configured for a pod", at.port);
        faults.missing("attachment.port", reason);
    }
}

pub(in crate::publish) fn node(node: &RemoteNode, settings: &Settings, faults: &mut Faults) {
    let local = &settings.node;
    if node.name == local.name {
        faults.add("name", "another object has this name");
    }
    for (i, address) in node.addresses.iter().enumerate() {
        if !is_unicast(*address) {
            faults.add(format!("addresses[{i}]"), "is not a unicast address");
        } else if local.addresses.contains(address) {
            faults.add(format!("addresses[{i}]"), format!("{address} is this node's own"));
        }
    }
    for (i, range) in node.pod_cidrs.iter().enumerate() {
        if local.pod_cidrs.contains(range) {
            faults.add(format!("pod_cidrs[{i}]"), format!("{range} is this node's own"));
        }
    }
    if !faults.0.is_empty() {
        return;
    }
    let Some(tunnel) = settings.vxlan() else { return };
    for pair in vtep_pairs(node, tunnel, local) {
        if !node.vtep.of(pair.destination.is_ipv6()).is_unicast() {
            faults.add("vtep", "is not a unicast MAC address");
        } else if let Err(error) =
            Template::new(&Outer::new(pair.source, pair.destination, tunnel.vni))
        {
            faults.add("addresses", error.to_string());
        }
    }
}

pub(in crate::publish) fn route(route: &Route, settings: &Settings, faults: &mut Faults) {
    if route.next_hops.is_empty() {
        faults.add("next_hops", "must name at least one");
    }
    for (i, hop) in route.next_hops.iter().enumerate() {
        if matches!(hop, NextHop::Via(address) if !is_unicast(*address)) {
            faults.add(format!("next_hops[{i}]"), "is not a unicast address");
        }
    }
    let hops: Vec<&NextHop> = route.next_hops.iter().collect();
    if let Err(error) = ecmp::choice(&hops, hops.len(), settings) {
        faults.add("next_hops", error.to_string());
    }
}
