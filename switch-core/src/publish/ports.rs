//! Roles of ports, as the packet path needs them.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::diff::{Desired, Diff};
use super::kinds::{EndpointClaim, PortClaim};
use crate::config::{Attachment, Endpoint, PortConfig, PortRole};
use crate::id::PortId;
use crate::snapshot::{BridgePort, HostPort, PodPort, PortFacts, Snapshot, UplinkPort, Uplinks};

/// The table of ports, shared with the one of `before` if unchanged. `bridged`: the bridge ports,
/// if they were compiled again.
pub(super) fn compile(
    desired: &Desired,
    diff: &Diff,
    bridged: Option<&HashMap<PortId, Arc<BridgePort>>>,
    before: &Snapshot,
) -> Arc<[PortFacts]> {
    let attached = |pod: &Arc<Endpoint>| pod.attachment.is_some();
    if diff.ports.is_empty() && bridged.is_none() && !diff.endpoints.all().any(attached) {
        return before.ports.clone();
    }
    let mut table = Vec::new();
    for port in desired.ports.iter() {
        let facts = match &port.role {
            PortRole::Pod => pod(desired, port.port, before.port(port.port)),
            PortRole::Host { mac, mtu } => {
                PortFacts::Host(HostPort { port: port.port, mac: *mac, mtu: *mtu })
            }
            PortRole::Uplink { .. } => uplink(port).map_or(PortFacts::Unused, PortFacts::Uplink),
            PortRole::Bridge { .. } => match bridged {
                Some(ports) => {
                    ports.get(&port.port).cloned().map_or(PortFacts::Unused, PortFacts::Bridge)
                }
                None => before.port(port.port).clone(),
            },
        };
        let number = port.port.index();
        if table.len() <= number {
            table.resize(number + 1, PortFacts::Unused);
        }
        table[number] = facts;
    }
    table.into()
}

/// The pod that is attached to a port.
fn pod(desired: &Desired, port: PortId, before: &PortFacts) -> PortFacts {
    let Some(endpoint) = desired.endpoints.holder(&EndpointClaim::Port(port)) else {
        return PortFacts::Unused;
    };
    let Some(Attachment { mac, mtu, .. }) = endpoint.attachment else { return PortFacts::Unused };
    if let PortFacts::Pod(known) = before
        && Arc::ptr_eq(&known.endpoint, endpoint)
    {
        return before.clone();
    }
    let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
    for address in &endpoint.workload.addresses {
        match address {
            IpAddr::V4(a) => ipv4.push(*a),
            IpAddr::V6(a) => ipv6.push(*a),
        }
    }
    PortFacts::Pod(Arc::new(PodPort { endpoint: endpoint.clone(), mac, ipv4, ipv6, mtu }))
}

fn uplink(port: &PortConfig) -> Option<UplinkPort> {
    match port.role {
        PortRole::Uplink { mac, mtu, tunnel, direct } => {
            Some(UplinkPort { port: port.port, mac, mtu, tunnel, direct })
        }
        _ => None,
    }
}

/// The node's own port.
pub(super) fn host(desired: &Desired) -> Option<HostPort> {
    let port = desired.ports.holder(&PortClaim::Host)?;
    match port.role {
        PortRole::Host { mac, mtu } => Some(HostPort { port: port.port, mac, mtu }),
        _ => None,
    }
}

/// The underlay's ports.
pub(super) fn uplinks(desired: &Desired) -> Uplinks {
    let of = |claim| desired.ports.holder(&claim).and_then(uplink);
    Uplinks { tunnel: of(PortClaim::Tunnel), direct: of(PortClaim::Direct) }
}
