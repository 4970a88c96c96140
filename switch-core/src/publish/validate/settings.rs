//! The settings. An error here refuses the whole publish, because no object could be left out
//! instead.

use std::net::IpAddr;

use podswitch_vxlan::template::Dscp;

use super::is_unicast;
use crate::config::{ConfigError, LocalNode, Masquerade, TunnelConfig};
use crate::id::Cookie;
use crate::publish::fault::Faults;
use crate::publish::settings::Settings;
use crate::publish::vtep_pairs::vteps_of;

/// All errors of the settings, given the number of other nodes.
pub(in crate::publish) fn settings(settings: &Settings, nodes: usize) -> Vec<ConfigError> {
    let (mut node, mut tunnel, mut masquerade) =
        (Faults::default(), Faults::default(), Faults::default());
    local(&settings.node, &mut node);
    if let Some(config) = settings.vxlan() {
        vtep(&settings.node, &mut node);
        check_tunnel(config, nodes, &mut tunnel);
    }
    if let Some(config) = &settings.masquerade {
        check_masquerade(config, &mut masquerade);
    }
    let mut errors = node.into_errors(&Cookie::new(format!("Node/{}", settings.node.name)));
    errors.extend(masquerade.into_errors(&Cookie::new("Masquerade")));
    errors.extend(tunnel.into_errors(&Cookie::new("Tunnel")));
    errors
}

fn local(node: &LocalNode, faults: &mut Faults) {
    if !node.gateway.mac.is_unicast() {
        faults.add("gateway.mac", "is not a unicast MAC address");
    }
    if node.nat_ports.is_empty() || *node.nat_ports.start() < 1024 {
        faults.add("nat_ports", "is empty, or has ports below 1024");
    }
    for (i, address) in node.addresses.iter().enumerate() {
        if !is_unicast(*address) {
            faults.add(format!("addresses[{i}]"), "is not a unicast address");
        }
        if node.addresses[..i].contains(address) {
            faults.add(format!("addresses[{i}]"), "is listed twice");
        }
    }
}

fn vtep(node: &LocalNode, faults: &mut Faults) {
    let ends = vteps_of(&node.addresses);
    for v6 in [false, true] {
        if ends[usize::from(v6)].is_some() && !node.vtep.of(v6).is_unicast() {
            faults.add("vtep", "is not a unicast MAC address");
        }
    }
}

fn check_tunnel(tunnel: &TunnelConfig, nodes: usize, faults: &mut Faults) {
    /// Plans hold the number of a tunnel in 16 bits; a node has up to two.
    const MAX_NODES: usize = u16::MAX as usize / 2;
    if tunnel.port == 0 {
        faults.add("port", "is 0");
    }
    if let Dscp::Fixed(dscp) = tunnel.dscp
        && dscp > 63
    {
        faults.add("dscp", format!("{dscp} has more than six bits"));
    }
    if nodes > MAX_NODES {
        faults.add("nodes", format!("more than {MAX_NODES} nodes"));
    }
}

fn check_masquerade(masquerade: &Masquerade, faults: &mut Faults) {
    let fields =
        [("ipv4", masquerade.ipv4.map(IpAddr::V4)), ("ipv6", masquerade.ipv6.map(IpAddr::V6))];
    for (field, address) in fields {
        if address.is_some_and(|a| !is_unicast(a)) {
            faults.add(field, "is not a unicast address");
        }
    }
}
