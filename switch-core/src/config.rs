//! The desired state of the switch: plain data, built by the caller (for Kubernetes by the
//! `kubernetes` crate) and passed to the control plane, whole or object by object.

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

/// The whole desired state. Objects are behind `Arc`, so that the cost of publishing a state
/// depends on the objects that changed.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// This node.
    pub node: LocalNode,
    /// The role of each attached port. A port without a role forwards nothing.
    pub ports: Vec<PortConfig>,
    /// Every pod of the cluster that has an address, including this node's pods.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Every namespace.
    pub namespaces: Vec<Arc<Namespace>>,
    /// Every NetworkPolicy.
    pub policies: Vec<Arc<NetworkPolicy>>,
    /// Every ClusterNetworkPolicy.
    pub cluster_policies: Vec<Arc<ClusterNetworkPolicy>>,
    /// Policies that the caller could not accept as written. They never allow anything.
    pub refused_policies: Vec<Arc<RefusedPolicy>>,
    /// Every Service.
    pub services: Vec<Arc<Service>>,
    /// Every endpoint slice.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Ports of this node that lead to its pods, by pod.
    pub host_ports: Vec<(Cookie, Arc<[HostPort]>)>,
    /// Ranges from which Service addresses are allocated. Packets to an address in them that no
    /// Service has are dropped (S6).
    pub service_cidrs: Vec<Cidr>,
    /// Ranges in which Services' `externalIPs` are honoured (CVE-2020-8554, T-N6).
    pub allowed_external_ips: Vec<Cidr>,
    /// Key of the hashes on which all nodes of the cluster must agree.
    pub cluster_key: ClusterKey,
    /// Source addresses for packets that pods send outside the cluster, translated by the switch
    /// itself. `None`: such packets leave with the pod's address.
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

/// Key of the Maglev tables and of the hashes that select backends, equal-cost next hops (ECMP) and
/// tunnel source ports. It is equal on all nodes of a cluster, so that each makes the same choice,
/// also after a restart. It is not a secret like the key of the flow table, which each process
/// generates for itself. But a person who knows it can direct connections to one backend; a cluster
/// with such users sets its own key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterKey(pub HashKey);

impl Default for ClusterKey {
    /// The default key, the same everywhere, for clusters that set none.
    fn default() -> Self {
        Self(HashKey::new(0x706f_6473_7769_7463_6820_636c_7573_7465))
    }
}

/// Masquerading by the switch: packets that pods send outside the cluster leave with one of these
/// addresses. A family without an address is not translated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// For IPv4. The node's, or one that the network routes to the node.
    pub ipv4: Option<Ipv4Addr>,
    /// For IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Ranges that are part of the cluster, in addition to pods, nodes, their ranges and Services.
    pub cluster: Vec<Cidr>,
}

impl Masquerade {
    /// The source address for packets to `destination`, unless the destination is in one of these
    /// ranges. The caller checks whether it is a pod's, node's or Service's.
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
