//! Queries of the table and their results.

use std::net::SocketAddr;
use std::sync::Arc;

use podswitch_wire::flow_key::FlowKey;

use super::front::Port;
use super::kinds::{DropReason, FrontendKind, Origin, RejectReason, Subject};
use crate::service::entry::{Backend, BackendFlags, Scope, ServiceEntry};
use crate::service::model::TrafficPolicy;

/// The result of [prefetching](super::ServiceTable::prefetch) a key; valid
/// for the same key and table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prefetched<'a> {
    /// The frontend at the key's destination.
    pub(super) front: Option<&'a Port>,
    /// The backend that the hash selects among all.
    pub(super) pick: Option<u16>,
}

impl Prefetched<'_> {
    /// The key's backend, if all backends may be selected and affinity does not prescribe another.
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

/// Step one: whether the destination is a Service's frontend, and whether the client may use it.
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

    /// The backend that an existing connection already has, whether or not it takes new
    /// connections.
    pub fn kept(&self, backend: SocketAddr, key: &FlowKey) -> Option<Chosen<'a>> {
        self.entry.find(backend).map(|index| self.take(index, key))
    }

    #[inline]
    pub(super) fn take(&self, index: usize, key: &FlowKey) -> Chosen<'a> {
        let Self { entry, kind, scope, origin, port, .. } = *self;
        let backend = &port.backends[index];
        let hairpin = backend.address == key.src_addr();
        // A host port leads to this node itself, so the reply passes through this switch anyway.
        let hides = origin == Origin::OffCluster
            && scope == Scope::Cluster
            && kind != FrontendKind::HostPort;
        Chosen { entry, kind, scope, index, needs_snat: hairpin || hides, backend }
    }
}

/// The part of a frontend that this client may use.
#[inline]
pub(super) fn admit<'a>(
    port: &'a Port,
    pick: Option<u16>,
    key: &FlowKey,
    origin: Origin,
) -> Found<'a> {
    let Port { kind, entry, .. } = port;
    if port.restricted
        && let Some(ranges) = &entry.source_ranges
        && !ranges.contains(key.src_addr())
    {
        return Found::Drop(DropReason::SourceRange, Subject::of(entry));
    }
    let policy = match origin {
        Origin::InCluster => port.inside,
        Origin::OffCluster => port.outside,
    };
    let scope = match policy {
        TrafficPolicy::Cluster => Scope::Cluster,
        TrafficPolicy::Local => Scope::Local,
    };
    if !port.any {
        return Found::Reject(RejectReason::NoEndpoints, Subject::of(entry));
    }
    if port.table(scope).is_empty() {
        return match scope {
            Scope::Local => Found::Drop(DropReason::NoLocalEndpoints, Subject::of(entry)),
            Scope::Cluster => Found::Reject(RejectReason::NoEndpoints, Subject::of(entry)),
        };
    }
    Found::Service(Match { entry, kind: *kind, scope, origin, port, pick })
}
