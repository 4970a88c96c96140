//! The model: Services, slices and host ports as users and controllers wrote them, as plain data.
//! Syntax has been validated by the caller. Contradictions are found when the object is given to
//! the [compiler](super::compile).

use core::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::Family;

use crate::rule::Protocol;

/// Session affinity's default timeout in seconds (S9).
pub const DEFAULT_AFFINITY_SECS: u32 = 10_800;

/// A Service's name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ServiceType {
    /// Reachable by its cluster IPs; headless without them.
    #[default]
    ClusterIp,
    /// Also by a port of every node.
    NodePort,
    /// Also by the addresses of a load balancer.
    LoadBalancer,
    /// A DNS alias: never balanced (S14).
    ExternalName,
}

/// `internalTrafficPolicy`, `externalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TrafficPolicy {
    /// Endpoints on all nodes.
    #[default]
    Cluster,
    /// Endpoints on this node only (S3, S4).
    Local,
}

/// How a Service refers to the port of its pods. Slices contain the resolved number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name of a container port.
    Name(Arc<str>),
}

/// One of `spec.ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Name; empty if the Service has only one port. Slices refer to it.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the cluster IPs, load-balancer IPs and external IPs.
    pub port: u16,
    /// The pods' port. Not used here, because slices contain the resolved number.
    pub target: TargetPort,
    /// Port of every node.
    pub node_port: Option<u16>,
}

impl ServicePort {
    /// A TCP port whose target is the same number (S14).
    pub fn tcp(name: &str, port: u16) -> Self {
        Self {
            name: name.into(),
            protocol: Protocol::Tcp,
            port,
            target: TargetPort::Number(port),
            node_port: None,
        }
    }
}

/// `ipMode` of a load balancer's address (S13).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IpMode {
    /// Packets arrive with the address as destination: it is translated here, also for clients
    /// inside the cluster.
    #[default]
    Vip,
    /// The load balancer is a proxy: the switch ignores the address.
    Proxy,
}

/// An address of `status.loadBalancer.ingress`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ingress {
    /// The address.
    pub address: IpAddr,
    /// How it is delivered.
    pub mode: IpMode,
}

/// `spec.trafficDistribution`. Controllers turn it into hints, which the switch follows (S2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrafficDistribution {
    /// PreferSameZone (formerly PreferClose).
    SameZone,
    /// PreferSameNode.
    SameNode,
}

/// A Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Name in drops, flows and explanations.
    pub cookie: Arc<str>,
    /// Namespace and name.
    pub name: ServiceName,
    /// Type.
    pub kind: ServiceType,
    /// Cluster IPs, at most one of each family; empty for headless Services. Their families are the
    /// Service's.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`; honoured only where the configuration allows them (CVE-2020-8554).
    pub external_ips: Vec<IpAddr>,
    /// Load-balancer addresses.
    pub ingress: Vec<Ingress>,
    /// `loadBalancerSourceRanges`; empty means no restriction (S7).
    pub source_ranges: Vec<Cidr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Traffic policy for clients of the cluster IPs.
    pub internal_policy: TrafficPolicy,
    /// Traffic policy for outside clients of the other addresses.
    pub external_policy: TrafficPolicy,
    /// Session affinity by client address: timeout in seconds (S9).
    pub affinity: Option<u32>,
    /// Port of the health check responder (S12).
    pub health_check_node_port: Option<u16>,
    /// Readiness is disregarded (`publishNotReadyAddresses`).
    pub publish_not_ready: bool,
    /// Preference for near endpoints; shown in explanations.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Labelled `service.kubernetes.io/service-proxy-name`: another proxy balances it (S14).
    pub foreign_proxy: bool,
    /// Configured table size (annotation `podswitch.io/maglev-size`); a prime.
    pub maglev_size: Option<u32>,
}

impl Service {
    /// A ClusterIP Service without ports; everything else has the API's defaults.
    pub fn cluster_ip(
        namespace: &str,
        name: &str,
        cluster_ips: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        Self {
            cookie: format!("Service/{namespace}/{name}").into(),
            name: ServiceName { namespace: namespace.into(), name: name.into() },
            kind: ServiceType::ClusterIp,
            cluster_ips: cluster_ips.into_iter().collect(),
            external_ips: Vec::new(),
            ingress: Vec::new(),
            source_ranges: Vec::new(),
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
            publish_not_ready: false,
            traffic_distribution: None,
            foreign_proxy: false,
            maglev_size: None,
        }
    }

    /// Whether it is balanced here (S14).
    pub fn is_balanced(&self) -> bool {
        self.kind != ServiceType::ExternalName
            && !self.foreign_proxy
            && !self.cluster_ips.is_empty()
    }

    /// Whether it has a cluster IP of that family.
    pub fn has_family(&self, family: Family) -> bool {
        self.cluster_ips.iter().any(|ip| family_of(*ip) == family)
    }
}

/// Family of an address.
pub fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Conditions of an endpoint as in the slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Conditions {
    /// `ready`.
    pub ready: Option<bool>,
    /// `serving`.
    pub serving: Option<bool>,
    /// `terminating`.
    pub terminating: Option<bool>,
}

impl Conditions {
    /// Missing means ready (S1).
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Missing means serving (S1).
    pub fn is_serving(&self) -> bool {
        self.serving.unwrap_or(true)
    }

    /// Missing means not terminating (S1).
    pub fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }
}

/// Topology hints of an endpoint: which clients should use it (S2).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hints {
    /// `forNodes`.
    pub nodes: Vec<Arc<str>>,
    /// `forZones`.
    pub zones: Vec<Arc<str>>,
}

/// One endpoint of a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Addresses of one endpoint; consumers use the first, as the API demands.
    pub addresses: Vec<IpAddr>,
    /// Conditions.
    pub conditions: Conditions,
    /// Node that it runs on.
    pub node: Option<Arc<str>>,
    /// Zone that it is in.
    pub zone: Option<Arc<str>>,
    /// Hints.
    pub hints: Hints,
    /// Cookie of the object behind it.
    pub target: Option<Arc<str>>,
    /// Weight for new connections, 1 by default; 0: none.
    pub weight: u16,
}

impl Endpoint {
    /// A ready endpoint with nothing else known.
    pub fn ready(address: IpAddr) -> Self {
        Self {
            addresses: vec![address],
            conditions: Conditions::default(),
            node: None,
            zone: None,
            hints: Hints::default(),
            target: None,
            weight: 1,
        }
    }

    /// The same on a node.
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.into());
        self
    }
}

/// One of a slice's ports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Name of the Service's port that it implements; empty if that has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number; a slice may omit it, then a Service cannot use it.
    pub port: Option<u16>,
}

impl SlicePort {
    /// A TCP port.
    pub fn tcp(name: &str, port: u16) -> Self {
        Self { name: name.into(), protocol: Protocol::Tcp, port: Some(port) }
    }
}

/// An EndpointSlice of IP addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace, also the Service's.
    pub namespace: Arc<str>,
    /// Name of the slice.
    pub name: Arc<str>,
    /// Name of the Service (label `kubernetes.io/service-name`).
    pub service: Arc<str>,
    /// `addressType`.
    pub family: Family,
    /// Ports that all its endpoints have.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

impl EndpointSlice {
    /// The Service that it belongs to.
    pub fn owner(&self) -> ServiceName {
        ServiceName { namespace: self.namespace.clone(), name: self.service.clone() }
    }
}

/// A container's `hostPort` on this node (P4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// Address of the node that it is bound to; `None`: all of the target's family.
    pub address: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the node.
    pub port: u16,
    /// The pod's address and port.
    pub target: SocketAddr,
}
