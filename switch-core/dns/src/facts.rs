//! What the zone is compiled from: the parts of Kubernetes objects that names depend on, as plain data.

use std::net::IpAddr;
use std::sync::Arc;

/// Protocol of a port: the second label of SRV names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// `_tcp`.
    Tcp,
    /// `_udp`.
    Udp,
    /// `_sctp`.
    Sctp,
}

impl Protocol {
    /// The label of SRV names.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp => "_tcp",
            Self::Udp => "_udp",
            Self::Sctp => "_sctp",
        }
    }
}

/// A port of a Service or of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFacts {
    /// Name; empty if it has none: then it has no SRV name.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number. Endpoint slices may omit it; then there is no SRV record.
    pub number: Option<u16>,
}

/// What a Service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Its cluster IPs, or the IPs of a ServiceImport.
    ClusterIps(Vec<IpAddr>),
    /// Its ready endpoints (`clusterIP: None`).
    Headless,
    /// Another name (`type: ExternalName`).
    External(Arc<str>),
}

/// A Service, or a ServiceImport of the Multi-Cluster Services API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// What its name stands for.
    pub kind: ServiceKind,
    /// Ports.
    pub ports: Vec<PortFacts>,
    /// `publishNotReadyAddresses`: endpoints count whether they are ready or not.
    pub publish_not_ready: bool,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointFacts {
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// `hostname`.
    pub hostname: Option<Arc<str>>,
    /// `conditions.ready`; missing means ready.
    pub is_ready: bool,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    /// Namespace, also the Service's.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Name of the Service (label `kubernetes.io/service-name`, for imports
    /// `multicluster.kubernetes.io/service-name`).
    pub service: Arc<str>,
    /// For slices of a ServiceImport: the cluster that they are of (label `multicluster.kubernetes.io/source-cluster`).
    pub cluster: Option<Arc<str>>,
    /// Ports that all its endpoints have.
    pub ports: Vec<PortFacts>,
    /// Endpoints.
    pub endpoints: Vec<EndpointFacts>,
}

/// A pod that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// What one object says of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    /// There is a namespace of that name.
    Namespace(Arc<str>),
    /// A Service.
    Service(Arc<ServiceFacts>),
    /// An EndpointSlice.
    Slice(Arc<SliceFacts>),
    /// A pod that has not ended.
    Pod(Arc<PodFacts>),
}
