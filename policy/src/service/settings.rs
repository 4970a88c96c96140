//! Settings of a node that hold for all of its Services.

use std::net::IpAddr;

use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::HashKey;

use super::endpoints::Viewpoint;

/// Settings for all Services on this node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name and zone.
    pub view: Viewpoint,
    /// This node's addresses at which NodePorts and host ports are reachable.
    pub node_addresses: Vec<IpAddr>,
    /// Further addresses of the node itself: ExternalIPs, addresses of its interfaces, 127.0.0.1 and ::1. Host ports are
    /// reachable there, too.
    pub local_addresses: Vec<IpAddr>,
    /// CIDRs from which cluster IPs are allocated. An address in them that no Service has is
    /// dropped.
    pub service_cidrs: Vec<Cidr>,
    /// CIDRs in which `externalIPs` are honoured; none by default (CVE-2020-8554, T-N6).
    pub allowed_external_ips: Vec<Cidr>,
    /// The cluster's hash key, equal on all nodes.
    pub cluster_key: HashKey,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            view: Viewpoint::default(),
            node_addresses: Vec::new(),
            local_addresses: Vec::new(),
            service_cidrs: Vec::new(),
            allowed_external_ips: Vec::new(),
            cluster_key: HashKey::new(0),
        }
    }
}

impl Settings {
    /// Whether an address is one of the node itself.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        self.node_addresses.contains(&address) || self.local_addresses.contains(&address)
    }
}
