//! What the switch is to do: plain data, built by the caller (for Kubernetes by the `kubernetes`
//! crate) and handed to the control plane, whole or object by object.

mod endpoint;
mod error;
mod node;
mod policy;
mod port;
mod route;
mod tunnel;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use podswitch_dns::Zone;
use podswitch_policy::rule::{ClusterNetworkPolicy, Namespace, NetworkPolicy};
use podswitch_policy::service::model::{EndpointSlice, HostPort, Service};
use podswitch_wire::addr::Mac;
pub use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::HashKey;

pub use endpoint::{Attachment, Endpoint, Precedence};
pub use error::ConfigError;
pub use node::{Gateway, LocalNode, NAT_PORTS, RemoteNode, VtepMac};
pub use policy::RefusedPolicy;
pub use port::{BridgeDomain, PortConfig, PortRole, Vlans};
pub use route::{NextHop, Route};
pub use tunnel::{Routing, TunnelConfig, Underlay};

use crate::id::Cookie;

/// The whole desired state. Objects are behind `Arc`, so that a state that differs from the last one
/// in a single object costs what changed.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// This node.
    pub node: LocalNode,
    /// What each attached port is for. A port that is not named here passes nothing.
    pub ports: Vec<PortConfig>,
    /// Every pod of the cluster that has an address, this node's among them.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Every namespace.
    pub namespaces: Vec<Arc<Namespace>>,
    /// Every NetworkPolicy.
    pub policies: Vec<Arc<NetworkPolicy>>,
    /// Every ClusterNetworkPolicy.
    pub cluster_policies: Vec<Arc<ClusterNetworkPolicy>>,
    /// Policies that the caller could not take as they were written. They never open anything.
    pub refused_policies: Vec<Arc<RefusedPolicy>>,
    /// Every Service.
    pub services: Vec<Arc<Service>>,
    /// Every endpoint slice.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Ports of this node that lead to its pods, pod by pod.
    pub host_ports: Vec<(Cookie, Arc<[HostPort]>)>,
    /// Ranges that the addresses of Services come from. Those in them that no Service has are
    /// dropped (S6).
    pub service_cidrs: Vec<Cidr>,
    /// Ranges in which Services' `externalIPs` are honoured (CVE-2020-8554, T-N6).
    pub allowed_external_ips: Vec<Cidr>,
    /// Key of the hashes on which all nodes of the cluster must agree.
    pub cluster_key: ClusterKey,
    /// Source addresses for what pods send off the cluster, translated by the switch itself.
    /// `None`: such packets leave with the pod's address.
    pub masquerade: Option<Masquerade>,
    /// Every other node.
    pub nodes: Vec<Arc<RemoteNode>>,
    /// How other nodes' pods are reached. `None`: by the node's own routes.
    pub tunnel: Option<TunnelConfig>,
    /// MAC addresses on the uplinks, by IP address: of other nodes or the routers towards them (by
    /// the node's address), and of next hops. They override [`RemoteNode::underlay_mac`].
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// Routes beyond pods and nodes.
    pub routes: Vec<Arc<Route>>,
    /// Layer-2 bridge domains.
    pub bridges: Vec<Arc<BridgeDomain>>,
    /// The names of the cluster, which the switch answers for. `None`: their Service's backends do.
    pub zone: Option<Arc<Zone>>,
}

/// Key of Maglev's tables and choices, of ECMP and of the tunnel's source ports: equal on all nodes
/// of a cluster, so that each makes the same choice, also after a restart. It is not a secret as the
/// flow table's key is (each process draws that one), but a person who knows it can aim connections
/// at one backend; a cluster with such users sets its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterKey(pub HashKey);

impl Default for ClusterKey {
    /// The same everywhere, for clusters that set none.
    fn default() -> Self {
        Self(HashKey::new(0x706f_6473_7769_7463_6820_636c_7573_7465))
    }
}

/// Masquerading by the switch: what pods send off the cluster leaves with one of these addresses.
/// A family without an address is not translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// For IPv4. The node's, or one that the network routes to the node.
    pub ipv4: Option<Ipv4Addr>,
    /// For IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Ranges that count as the cluster, beside pods, nodes, their ranges and Services.
    pub cluster: Vec<Cidr>,
}

impl Masquerade {
    /// The source address for packets to `destination`, if that is in none of the ranges that
    /// count as the cluster. The caller knows whether it is a pod's, node's or Service's.
    pub fn source(&self, destination: IpAddr) -> Option<IpAddr> {
        if self.cluster.iter().any(|range| range.contains(destination)) {
            return None;
        }
        match destination {
            IpAddr::V4(_) => self.ipv4.map(IpAddr::V4),
            IpAddr::V6(_) => self.ipv6.map(IpAddr::V6),
        }
    }
}
