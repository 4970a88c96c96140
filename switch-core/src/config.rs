//! What the switch is told: plain data, built by whoever embeds the crate (for Kubernetes by
//! the `kubernetes` crate) and handed to the control plane, whole or object by object.

mod tunnel;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use podswitch_policy::rule::{ClusterNetworkPolicy, Labels, Namespace, NetworkPolicy, Workload};
use podswitch_policy::service::model::{EndpointSlice, HostPort, Service};
pub use podswitch_wire::cidr::Cidr;
pub use tunnel::{Routing, TunnelConfig, Underlay};

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{Family, FlowKey, HashKey};

use crate::id::{Cookie, PortId};

/// The whole desired state. Objects are behind `Arc`, so that a state that differs in one object
/// from the one in force costs what changed.
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
    /// Link-layer addresses on the uplinks: of other nodes, or of the routers towards them, by the
    /// other node's address; and of next hops. They go before what a [`RemoteNode`] says of itself.
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// Routes beyond pods and nodes.
    pub routes: Vec<Arc<Route>>,
    /// Layer-2 bridge domains.
    pub bridges: Vec<Arc<BridgeDomain>>,
}

/// Key of Maglev's tables and choices, of ECMP and of the tunnel's source ports: equal on all nodes
/// of a cluster, so that each makes the same choice, and after a restart again. No secret of the
/// flow table's kind (that one every process draws for itself), yet whoever knows it can aim
/// connections at one backend; a cluster with such users sets its own.
#[derive(Clone, Copy, Debug)]
pub struct ClusterKey(pub HashKey);

impl ClusterKey {
    /// Whether two keys hash alike; keys do not show what they are.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let probe =
            FlowKey { src: [1; 16], dst: [2; 16], family: Family::V6, ..FlowKey::default() };
        probe.hash(&self.0) == probe.hash(&other.0)
    }
}

impl Default for ClusterKey {
    /// The same everywhere, for clusters that set none.
    fn default() -> Self {
        Self(HashKey::new(0x706f_6473_7769_7463_6820_636c_7573_7465))
    }
}

/// Masquerading by the switch: what pods send off the cluster leaves with one of these addresses.
/// A family without an address is left as it is.
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
    /// count as the cluster. Whether it is a pod's, node's or Service's, the caller knows.
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

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// The name it goes by.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its own addresses (InternalIP). The first of each family is a tunnel end.
    pub addresses: Vec<IpAddr>,
    /// Further addresses at which the node itself is reached: ExternalIPs, those of its interfaces.
    /// Host ports are there too, and at 127.0.0.1 for the node's own processes.
    pub local_addresses: Vec<IpAddr>,
    /// Ranges that its pods' addresses come from.
    pub pod_cidrs: Vec<Cidr>,
    /// Link-layer addresses of its tunnel ends.
    pub vtep: VtepMac,
    /// Link-layer address of its underlay interface, as far as captures go.
    pub underlay_mac: Mac,
    /// What pods see as their gateway.
    pub gateway: Gateway,
    /// Ports of the node's addresses that stand in place of hidden clients' (S8): kept from the
    /// node's own sockets by whoever runs the switch (T-N1), the same on all nodes.
    pub nat_ports: RangeInclusive<u16>,
}

/// Where no port of the node listens by default, and none of a NodePort lies: the upper half of what
/// Linux takes ports of its own from, which is left the lower half.
pub const NAT_PORTS: RangeInclusive<u16> = 44_000..=65_535;

impl LocalNode {
    /// Its zone, if it says so (label `topology.kubernetes.io/zone`).
    pub fn zone(&self) -> Option<&str> {
        self.labels.get("topology.kubernetes.io/zone")
    }
}

impl Default for LocalNode {
    fn default() -> Self {
        Self {
            name: "".into(),
            labels: Labels::default(),
            addresses: Vec::new(),
            local_addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            vtep: VtepMac::default(),
            underlay_mac: Mac::ZERO,
            gateway: Gateway::default(),
            nat_ports: NAT_PORTS,
        }
    }
}

/// The gateway that every pod sees, answered by the switch itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
    /// IPv6 address.
    pub ipv6: Ipv6Addr,
    /// MAC address.
    pub mac: Mac,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            ipv4: Ipv4Addr::new(169, 254, 1, 1),
            ipv6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            mac: Mac([0xee; 6]),
        }
    }
}

/// What a port is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The port.
    pub port: PortId,
    /// Its part.
    pub role: PortRole,
}

/// The part that a port plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// One pod stands behind it: the endpoint that names this port in its `attachment`.
    Pod,
    /// The node's own stack stands behind it. Off-cluster traffic leaves by it.
    Host {
        /// Link-layer address of the node's end.
        mac: Mac,
        /// Largest network-layer packet that the node takes, in bytes.
        mtu: u16,
    },
    /// The underlay stands behind it: frames are raw Ethernet, with the tunnel's outer headers. At
    /// most one port carries the tunnel, and at most one the traffic without; one may do both.
    Uplink {
        /// Link-layer address of the node on the underlay.
        mac: Mac,
        /// Largest network-layer packet of the underlay, in bytes. The tunnel takes 50 of them
        /// over IPv4, 70 over IPv6.
        mtu: u16,
        /// Tunnel packets come and go by it.
        tunnel: bool,
        /// Off-cluster clients of Services come in by it; next hops and, without a tunnel, other
        /// nodes are behind it.
        direct: bool,
    },
    /// Member of a bridge domain.
    Bridge {
        /// Name of the domain.
        domain: Arc<str>,
        /// VLAN membership.
        vlans: Vlans,
    },
}

/// VLAN membership of a bridge port (IEEE 802.1Q).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlans {
    /// VLAN of untagged frames, which leave untagged again. `None`: untagged frames are dropped.
    pub untagged: Option<u16>,
    /// VLANs whose frames come and go tagged.
    pub tagged: Vec<u16>,
}

impl Default for Vlans {
    fn default() -> Self {
        Self { untagged: Some(1), tagged: Vec::new() }
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name in drops, flows and explanations.
    pub cookie: Cookie,
    /// The pod as policy sees it, its addresses among it.
    pub workload: Workload,
    /// The node that it is on.
    pub node: Arc<str>,
    /// How it is attached, if it is on this node and attached here.
    pub attachment: Option<Attachment>,
}

/// Where a pod of this node is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The port.
    pub port: PortId,
    /// The pod's MAC address.
    pub mac: Mac,
    /// Largest network-layer packet that the pod takes, in bytes.
    pub mtu: u16,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNode {
    /// Name in drops, flows and explanations.
    pub cookie: Cookie,
    /// The node's name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses (InternalIP). The first of each family is a tunnel end.
    pub addresses: Vec<IpAddr>,
    /// Ranges that its pods' addresses come from.
    pub pod_cidrs: Vec<Cidr>,
    /// Link-layer addresses of its tunnel ends.
    pub vtep: VtepMac,
    /// Link-layer address of its underlay interface, as far as captures go.
    pub underlay_mac: Mac,
}

/// Link-layer addresses of a node's tunnel ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VtepMac {
    /// Where the underlay is IPv4; also where it is IPv6 if there is no second address.
    pub ipv4: Mac,
    /// Where the underlay is IPv6, if there is a second tunnel end: Flannel has a device of its own
    /// there, by which IPv6 packets travel.
    pub ipv6: Option<Mac>,
}

impl VtepMac {
    /// The address where the underlay is of this family.
    pub fn of(self, ipv6: bool) -> Mac {
        if ipv6 { self.ipv6.unwrap_or(self.ipv4) } else { self.ipv4 }
    }

    /// Whether two nodes with these both have a second tunnel end, for IPv6.
    pub fn both_have_second(self, other: Self) -> bool {
        self.ipv6.is_some() && other.ipv6.is_some()
    }
}

/// A route beyond pods and nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub destination: Cidr,
    /// Equal-cost next hops.
    pub next_hops: Vec<NextHop>,
}

/// One way of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Through the node's own stack.
    Host,
    /// A router on the direct uplink, whose link-layer address is known; by the node's own stack
    /// where there is no such uplink.
    Via(IpAddr),
    /// Dropped, with its reason.
    Blackhole,
}

/// A layer-2 broadcast domain among ports with [`PortRole::Bridge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeDomain {
    /// The name ports refer to it by.
    pub name: Arc<str>,
    /// Seconds after which a learnt address is forgotten when it was not seen again.
    pub ageing_secs: u32,
    /// The most addresses learnt from one port.
    pub learn_limit: u32,
}

/// One thing that is wrong with a configuration. Nothing of a configuration with errors is
/// applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field}: {reason}")]
pub struct ConfigError {
    /// The object, by its cookie.
    pub object: Cookie,
    /// Path of the field within it.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}
