//! The settings: the part of a configuration that is not a list of objects.

use std::net::IpAddr;

use hashbrown::HashMap;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use crate::config::{ClusterKey, Config, LocalNode, Masquerade, Routing, TunnelConfig};

/// See the module's description. The fields are those of [`Config`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) node: LocalNode,
    pub(crate) service_cidrs: Vec<Cidr>,
    pub(crate) allowed_external_ips: Vec<Cidr>,
    pub(crate) cluster_key: ClusterKey,
    pub(crate) masquerade: Option<Masquerade>,
    pub(crate) tunnel: Option<TunnelConfig>,
    pub(crate) neighbours: HashMap<IpAddr, Mac>,
}

impl Settings {
    pub(crate) fn of(config: &Config) -> Self {
        // All fields by name, so that a new one cannot be forgotten here.
        let Config {
            node,
            service_cidrs,
            allowed_external_ips,
            cluster_key,
            masquerade,
            tunnel,
            neighbours,
            ports: _,
            endpoints: _,
            namespaces: _,
            policies: _,
            cluster_policies: _,
            refused_policies: _,
            services: _,
            slices: _,
            host_ports: _,
            nodes: _,
            routes: _,
            bridges: _,
            zone: _,
        } = config;
        Self {
            node: node.clone(),
            service_cidrs: service_cidrs.clone(),
            allowed_external_ips: allowed_external_ips.clone(),
            cluster_key: *cluster_key,
            masquerade: masquerade.clone(),
            tunnel: tunnel.clone(),
            neighbours: neighbours.iter().copied().collect(),
        }
    }

    /// The tunnel, if other nodes are reached through one.
    pub(crate) fn vxlan(&self) -> Option<&TunnelConfig> {
        self.tunnel.as_ref().filter(|tunnel| tunnel.routing == Routing::Vxlan)
    }

    /// Whether both have the same local VTEP.
    pub(crate) fn has_same_vtep(&self, other: &Self) -> bool {
        self.tunnel == other.tunnel
            && self.node.addresses == other.node.addresses
            && self.node.vtep == other.node.vtep
    }
}
