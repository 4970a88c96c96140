//! The kinds of clients, addresses and refusals that the table distinguishes.

use std::net::IpAddr;
use std::sync::Arc;

use crate::rule::Protocol;
use crate::service::entry::ServiceEntry;

/// Where a client is, as far as Services distinguish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A pod or a node of the cluster.
    InCluster,
    /// Outside the cluster.
    OffCluster,
}

/// The kind of address that a client used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// A cluster IP.
    ClusterIp,
    /// An address of a load balancer.
    LoadBalancer,
    /// One of the Service's external IPs.
    ExternalIp,
    /// A node's address and the Service's node port.
    NodePort,
    /// A node's address and a container's host port.
    HostPort,
}

impl FrontendKind {
    /// Name for users.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
            Self::NodePort => "NodePort",
            Self::HostPort => "HostPort",
        }
    }
}

/// One frontend of a Service's port.
#[derive(Clone, Copy, Debug)]
pub struct Frontend<'a> {
    /// The kind of address.
    pub kind: FrontendKind,
    /// The address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port at that address.
    pub port: u16,
    /// The Service port.
    pub entry: &'a Arc<ServiceEntry>,
}

/// Rejected with an answer: TCP RST, ICMP port unreachable (S5, S6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum RejectReason {
    /// No endpoint is usable anywhere.
    NoEndpoints,
    /// The cluster IP has no such port.
    UndefinedPort,
}

/// Dropped without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The policy is Local, and this node has no endpoint (S3, S4).
    NoLocalEndpoints,
    /// The client is outside `loadBalancerSourceRanges` (S7).
    SourceRange,
    /// An address in the Service CIDRs that no Service has (S6).
    Unallocated,
}

/// The subject of a refusal, for drops, counters and explanations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// Cookie of the Service, if there is one.
    pub cookie: Option<&'a Arc<str>>,
    /// Its port, if it has that port.
    pub entry: Option<&'a Arc<ServiceEntry>>,
}

impl<'a> Subject<'a> {
    #[inline]
    pub(super) fn of(entry: &'a Arc<ServiceEntry>) -> Self {
        Self { cookie: Some(&entry.cookie), entry: Some(entry) }
    }
}

/// The state of a backend that a connection already uses (S10, S11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendState {
    /// Serves, whether or not it would get new connections.
    Serving,
    /// Known but no longer serving. UDP flows end at once; TCP continues while the pod exists.
    NotServing,
    /// No longer an endpoint of the Service.
    Gone,
    /// The Service, or this address or port of it, no longer exists.
    NoService,
}
