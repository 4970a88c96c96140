//! What the table is asked and what it answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::flow_key::FlowKey;

use super::front::Port;
use crate::rule::Protocol;
use crate::service::entry::{Backend, BackendFlags, Scope, ServiceEntry};

/// Where a client is, as far as Services treat it differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A pod or a node of the cluster.
    InCluster,
    /// Anybody else.
    OffCluster,
}

/// What kind of address a client used.
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
    /// Name as users know it.
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

/// One way to a Service's port.
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

/// What a table knew of a key when it was [read ahead](super::ServiceTable::read_ahead): good for the
/// same key and the same table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked<'a> {
    /// What the key is addressed to.
    pub(super) front: Option<&'a Port>,
    /// What the hash picks of all backends.
    pub(super) pick: Option<u16>,
}

impl Looked<'_> {
    /// The backend that the key leads to, if all may be chosen and no client is pinned to another.
    #[inline]
    pub fn backend(&self) -> Option<SocketAddr> {
        let backend = self.front?.backends.get(usize::from(self.pick?))?;
        Some(backend.socket())
    }
}

/// A connection's Service, before a backend is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a> {
    /// The Service port.
    pub entry: &'a Arc<ServiceEntry>,
    /// How the client addressed it.
    pub kind: FrontendKind,
    /// Which backends it may take.
    pub scope: Scope,
    pub(super) origin: Origin,
    pub(super) port: &'a Port,
    /// What the connection's hash picks of all backends, if that is known.
    pub(super) pick: Option<u16>,
}

/// A connection's backend.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// The Service port.
    pub entry: &'a Arc<ServiceEntry>,
    /// How the client addressed it.
    pub kind: FrontendKind,
    /// Which backends it could take.
    pub scope: Scope,
    /// Place of the backend among the entry's.
    pub index: usize,
    /// The source must be translated too, to an address of this node (S8): the backend is the
    /// client itself, or the client is outside and the backend anywhere.
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

/// Refused in a way that the client is told of at once: TCP RST, ICMP port unreachable (S5, S6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum RejectReason {
    /// No endpoint is usable anywhere.
    NoEndpoints,
    /// The cluster IP has no such port.
    UndefinedPort,
}

/// Dropped in silence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The policy is Local and no endpoint is on this node (S3, S4).
    NoLocalEndpoints,
    /// The client is outside `loadBalancerSourceRanges` (S7).
    SourceRange,
    /// An address of the Service range that no Service has (S6).
    Unallocated,
}

/// What a refusal is about, for drops, counters and explanations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// Cookie of the Service, if there is one.
    pub cookie: Option<&'a Arc<str>>,
    /// Its port, if it has it.
    pub entry: Option<&'a Arc<ServiceEntry>>,
}

impl<'a> Subject<'a> {
    #[inline]
    pub(super) fn of(entry: &'a Arc<ServiceEntry>) -> Self {
        Self { cookie: Some(&entry.cookie), entry: Some(entry) }
    }
}

/// Step one: is it a Service's, and may the client have it.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// Not a Service's address.
    NotAService,
    /// A Service with at least one backend for this client.
    Service(Match<'a>),
    /// To be refused aloud.
    Reject(RejectReason, Subject<'a>),
    /// To be dropped.
    Drop(DropReason, Subject<'a>),
}

/// Both steps in one, for Services whose affinity the caller need not ask for first.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'a> {
    /// Not a Service's address.
    NotAService,
    /// The backend.
    Backend(Chosen<'a>),
    /// To be refused aloud.
    Reject(RejectReason, Subject<'a>),
    /// To be dropped.
    Drop(DropReason, Subject<'a>),
}

/// How a backend that a connection was given earlier stands now (S10, S11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Serves, whether or not a new connection would be given to it.
    Serving,
    /// Known and no longer serving. UDP flows go at once; TCP runs on while the pod is there.
    NotServing,
    /// No longer an endpoint of the Service.
    Gone,
    /// The Service, or this address or port of it, is no more.
    NoService,
}

impl<'a> Match<'a> {
    /// Timeout of the Service's affinity in seconds. Where there is one, ask for a pin of
    /// (client, [`ServiceEntry::id`]) and try [`pinned`](Self::pinned) before choosing, and pin
    /// what was chosen (S9).
    #[inline]
    pub fn affinity(&self) -> Option<u32> {
        self.entry.affinity
    }

    /// The backend that the client is pinned to, if new connections may still be given to it.
    #[inline]
    pub fn pinned(&self, backend: SocketAddr, key: &FlowKey) -> Option<Chosen<'a>> {
        let index = self.entry.find(backend)?;
        let usable = match self.scope {
            Scope::Cluster => BackendFlags::IN_CLUSTER,
            Scope::Local => BackendFlags::IN_LOCAL,
        };
        self.entry.backends[index].flags.has(usable).then(|| self.take(index, key))
    }

    /// The backend of a connection that is known to have it, though new ones may get others.
    pub fn kept(&self, backend: SocketAddr, key: &FlowKey) -> Option<Chosen<'a>> {
        self.entry.find(backend).map(|index| self.take(index, key))
    }

    #[inline]
    pub(super) fn take(&self, index: usize, key: &FlowKey) -> Chosen<'a> {
        let Self { entry, kind, scope, origin, port, .. } = *self;
        let backend = &port.backends[index];
        let hairpin = backend.address == key.src_addr();
        // A host port leads to this very node, whose reply passes here anyhow.
        let hides = origin == Origin::OffCluster
            && scope == Scope::Cluster
            && kind != FrontendKind::HostPort;
        Chosen { entry, kind, scope, index, needs_snat: hairpin || hides, backend }
    }
}
