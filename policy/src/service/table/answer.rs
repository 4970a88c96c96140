//! Queries of the table and their results.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::flow_key::FlowKey;

use super::front::Port;
use crate::rule::Protocol;
use crate::service::entry::{Backend, BackendFlags, Scope, ServiceEntry};

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
    /// What kind of address it is.
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

/// What a table found for a key when it was [read ahead](super::ServiceTable::read_ahead); valid
/// for the same key and table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked<'a> {
    /// The frontend that the key is addressed to.
    pub(super) front: Option<&'a Port>,
    /// The backend that the hash selects among all.
    pub(super) pick: Option<u16>,
}

impl Looked<'_> {
    /// The backend of the key, if all may be selected and affinity does not prescribe another.
    #[inline]
    pub fn backend(&self) -> Option<SocketAddr> {
        let backend = self.front?.backends.get(usize::from(self.pick?))?;
        Some(backend.socket())
    }
}

/// A connection's Service, before a backend is selected.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a> {
    /// The Service port.
    pub entry: &'a Arc<ServiceEntry>,
    /// Kind of the address that the client used.
    pub kind: FrontendKind,
    /// The set of backends.
    pub scope: Scope,
    pub(super) origin: Origin,
    pub(super) port: &'a Port,
    /// The backend that the connection's hash selects among all, if known.
    pub(super) pick: Option<u16>,
}

/// A connection's backend.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// The Service port.
    pub entry: &'a Arc<ServiceEntry>,
    /// Kind of the address that the client used.
    pub kind: FrontendKind,
    /// The set of backends it was selected from.
    pub scope: Scope,
    /// Index of the backend in the entry.
    pub index: usize,
    /// The source must be translated to an address of this node as well (S8): the backend is the
    /// client itself, or the client is outside under Cluster policy.
    pub needs_snat: bool,
    backend: &'a Backend,
}

impl<'a> Chosen<'a> {
    /// The backend.
    #[inline]
    pub fn backend(&self) -> &'a Backend {
        self.backend
    }
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

/// Step one: whether it is a Service's frontend, and whether the client may use it.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// Not a Service's address.
    NotAService,
    /// A Service with at least one backend for this client.
    Service(Match<'a>),
    /// To be rejected.
    Reject(RejectReason, Subject<'a>),
    /// To be dropped.
    Drop(DropReason, Subject<'a>),
}

/// Both steps, for Services without affinity.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'a> {
    /// Not a Service's address.
    NotAService,
    /// The backend.
    Backend(Chosen<'a>),
    /// To be rejected.
    Reject(RejectReason, Subject<'a>),
    /// To be dropped.
    Drop(DropReason, Subject<'a>),
}

/// The state of a backend that a connection already has (S10, S11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Serves, whether or not it would get new connections.
    Serving,
    /// Known but no longer serving. UDP flows end at once; TCP goes on while the pod exists.
    NotServing,
    /// No longer an endpoint of the Service.
    Gone,
    /// The Service, or this address or port of it, no longer exists.
    NoService,
}

impl<'a> Match<'a> {
    /// Affinity timeout of the Service in seconds. If there is one, look up the pin of (client,
    /// [`ServiceEntry::id`]) and try [`pinned`](Self::pinned) before selecting, and pin the
    /// selected backend (S9).
    #[inline]
    pub fn affinity(&self) -> Option<u32> {
        self.entry.affinity
    }

    /// The backend that the client is pinned to, if it still takes new connections.
    #[inline]
    pub fn pinned(&self, backend: SocketAddr, key: &FlowKey) -> Option<Chosen<'a>> {
        let index = self.entry.find(backend)?;
        let usable = match self.scope {
            Scope::Cluster => BackendFlags::IN_CLUSTER,
            Scope::Local => BackendFlags::IN_LOCAL,
        };
        self.entry.backends[index].flags.has(usable).then(|| self.take(index, key))
    }

    /// The backend of a connection that is known to have it, whether or not it takes new connections.
    pub fn kept(&self, backend: SocketAddr, key: &FlowKey) -> Option<Chosen<'a>> {
        self.entry.find(backend).map(|index| self.take(index, key))
    }

    #[inline]
    pub(super) fn take(&self, index: usize, key: &FlowKey) -> Chosen<'a> {
        let Self { entry, kind, scope, origin, port, .. } = *self;
        let backend = &port.backends[index];
        let hairpin = backend.address == key.src_addr();
        // A host port leads to this node itself, whose reply passes here anyway.
        let hides = origin == Origin::OffCluster
            && scope == Scope::Cluster
            && kind != FrontendKind::HostPort;
        Chosen { entry, kind, scope, index, needs_snat: hairpin || hides, backend }
    }
}
