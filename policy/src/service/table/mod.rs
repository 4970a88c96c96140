//! The Service table: from a connection's first packet to its backend, by one look-up.
//!
//! Workers query it on the slow path, before policy is evaluated (N15). The cost does not depend on
//! the number of Services, ports or endpoints. A clone shares everything; nothing is modified in
//! place.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::{Family, FlowKey, HashKey, proto};

use super::entry::{BackendFlags, Scope, ServiceEntry, ServicePortId};
use super::model::family_of;
use crate::cow::CowMap;

mod answer;
mod front;
mod kinds;

use answer::admit;
pub use answer::{Chosen, Found, Lookup, Match, Prefetched};
pub(super) use front::{Front, FrontKey, Port};
pub use kinds::{BackendState, DropReason, Frontend, FrontendKind, Origin, RejectReason, Subject};

/// Keys that are prefetched together.
const PREFETCH_BATCH: usize = 32;

/// Settings of the whole table, which change rarely.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// This node's addresses at which NodePorts are reachable.
    pub(super) node_addresses: Box<[IpAddr]>,
    /// Further addresses of this node, for host ports only.
    pub(super) local_addresses: Box<[IpAddr]>,
    /// CIDRs from which cluster IPs are allocated.
    pub(super) service_cidrs: Box<[Cidr]>,
    /// The cluster key.
    pub(super) cluster_key: HashKey,
}

/// All Services of a cluster, as one node sees them.
#[derive(Clone, Debug)]
pub struct ServiceTable {
    pub(super) fronts: CowMap<FrontKey, Front>,
    pub(super) setup: Arc<Setup>,
    /// Some cluster IP lies outside the configured CIDRs.
    pub(super) strays: bool,
    /// Whether some pod of this node has host ports.
    pub(super) has_host_ports: bool,
    /// TCP backends of any Service, with the ports they serve.
    pub(super) backends: CowMap<SocketAddr, Arc<[ServicePortId]>>,
    /// The frontends of those ports.
    pub(super) reached: CowMap<(ServicePortId, Family), Arc<[FrontKey]>>,
}

impl ServiceTable {
    /// The Service of a new connection. `key` is that of the first packet as the client sent it.
    #[inline]
    pub fn find(&self, key: &FlowKey, origin: Origin) -> Found<'_> {
        self.find_prefetched(&Prefetched { front: self.front(key), pick: None }, key, origin)
    }

    /// As [`find`](Self::find), for a key that was [prefetched](Self::prefetch).
    #[inline]
    pub fn find_prefetched<'a>(
        &'a self,
        prefetched: &Prefetched<'a>,
        key: &FlowKey,
        origin: Origin,
    ) -> Found<'a> {
        match prefetched.front {
            Some(port) => admit(port, prefetched.pick, key, origin),
            None => self.no_front(key),
        }
    }

    /// The backend of a new connection.
    #[inline]
    pub fn lookup(&self, key: &FlowKey, origin: Origin) -> Lookup<'_> {
        match self.find(key, origin) {
            Found::NotAService => Lookup::NotAService,
            Found::Service(found) => match self.choose(&found, key) {
                Some(chosen) => Lookup::Backend(chosen),
                None => Lookup::Reject(RejectReason::NoEndpoints, Subject::of(found.entry)),
            },
            Found::Reject(reason, entry) => Lookup::Reject(reason, entry),
            Found::Drop(reason, entry) => Lookup::Drop(reason, entry),
        }
    }

    /// The backend that the cluster's hash selects for the connection: by its 5-tuple, or by the
    /// client's address alone if the Service has affinity. Never `None` for a [`Match`] of the same
    /// table.
    #[inline]
    pub fn choose<'a>(&self, found: &Match<'a>, key: &FlowKey) -> Option<Chosen<'a>> {
        let index = match (found.pick, found.scope) {
            (Some(index), Scope::Cluster) => index,
            _ => found.port.table(found.scope).pick(self.hash(found.port, key))?,
        };
        Some(found.take(usize::from(index), key))
    }

    /// The cluster's hash of a connection to a port.
    #[inline]
    fn hash(&self, port: &Port, key: &FlowKey) -> u64 {
        let cluster_key = &self.setup.cluster_key;
        if !port.sticky {
            return key.hash(cluster_key);
        }
        // The same backend through any address of the Service, also after the pin has expired or on
        // another node.
        FlowKey { dst: [0; 16], src_port: 0, dst_port: 0, ..*key }.hash(cluster_key)
    }

    /// Reads the data that [`lookup`](Self::lookup) of these keys will need, and keeps the results,
    /// so that they are not looked up again. With many Services each look-up waits for main memory
    /// several times. Done step by step for a batch, as here, the waits of different keys overlap.
    /// Worthwhile for two keys or more.
    pub fn prefetch<'a>(&'a self, keys: &[FlowKey], prefetched: &mut [Prefetched<'a>]) {
        for (keys, prefetched) in
            keys.chunks(PREFETCH_BATCH).zip(prefetched.chunks_mut(PREFETCH_BATCH))
        {
            for (prefetched, key) in prefetched.iter_mut().zip(keys) {
                *prefetched = Prefetched { front: self.front(key), pick: None };
            }
            for (prefetched, key) in prefetched.iter_mut().zip(keys) {
                if let Some(port) = prefetched.front {
                    prefetched.pick = port.cluster.pick(self.hash(port, key));
                }
            }
            for prefetched in prefetched.iter() {
                if let (Some(port), Some(pick)) = (prefetched.front, prefetched.pick) {
                    core::hint::black_box(port.entry.opened(usize::from(pick)));
                }
            }
        }
    }

    /// Whether traffic to this address is Service traffic: a Service's address, or one in the
    /// Service CIDRs.
    pub fn is_service_address(&self, address: IpAddr) -> bool {
        self.in_service_range(address) || self.fronts.contains_key(&FrontKey::address(address))
    }

    /// Whether the key's destination is an address and port of some Service, whatever the Service
    /// does with the packet.
    #[inline]
    pub fn is_frontend(&self, key: &FlowKey) -> bool {
        self.front(key).is_some()
    }

    /// The cookie of the Service or host port that is at the destination of `key`.
    pub fn name(&self, key: &FlowKey) -> Option<Arc<str>> {
        self.front(key).map(|port| port.entry.cookie.clone())
    }

    /// Whether the sender of a TCP segment is a backend of some Service, so that the segment may
    /// belong to a connection of that Service (S15).
    #[inline]
    pub fn is_backend(&self, key: &FlowKey) -> bool {
        key.proto == proto::TCP
            && self.backends.contains_key(&SocketAddr::new(key.src_addr(), key.src_port))
    }

    /// The frontends through which a TCP client may have reached this backend, in no order.
    /// Frontends that no longer lead to it are left out.
    pub fn frontends_of(
        &self,
        backend: SocketAddr,
    ) -> impl Iterator<Item = (FrontendKind, SocketAddr)> {
        let family = family_of(backend.ip());
        let ids = self.backends.get(&backend).map(|ids| &**ids).unwrap_or_default();
        let keys = ids.iter().filter_map(move |id| self.reached.get(&(*id, family)));
        keys.flat_map(|keys| &**keys).flat_map(move |key| {
            let port = match self.fronts.get(key) {
                Some(Front::Port(port)) if port.entry.find(backend).is_some() => Some(port),
                _ => None,
            };
            port.into_iter().flat_map(move |port| {
                self.addresses(key, port.kind)
                    .map(move |address| (port.kind, SocketAddr::new(address, key.port())))
            })
        })
    }

    /// The state of a backend that was selected for a connection whose first packet had `key`.
    pub fn backend_state(&self, key: &FlowKey, backend: SocketAddr) -> BackendState {
        let Some(Port { entry, .. }) = self.front(key) else { return BackendState::NoService };
        match entry.find(backend).map(|index| entry.backends[index].flags) {
            Some(flags) if flags.has(BackendFlags::SERVING) => BackendState::Serving,
            Some(flags) if flags.has(BackendFlags::READY) => BackendState::Serving,
            Some(_) => BackendState::NotServing,
            None => BackendState::Gone,
        }
    }

    /// Every Service port with a kind of address that leads to it, unordered; several addresses of
    /// one kind appear several times.
    pub fn iter(&self) -> impl Iterator<Item = (FrontendKind, &Arc<ServiceEntry>)> {
        self.fronts.iter().filter_map(|(_, front)| match front {
            Front::Port(port) => Some((port.kind, &port.entry)),
            Front::Allocated(_) | Front::Foreign => None,
        })
    }

    /// Every address, protocol and port of a Service or host port, unordered; NodePorts and host
    /// ports at each of this node's addresses.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend<'_>> {
        self.fronts.iter().flat_map(move |(key, front)| {
            let port = match front {
                Front::Port(port) => Some(port),
                Front::Allocated(_) | Front::Foreign => None,
            };
            port.into_iter().flat_map(move |port| {
                self.addresses(key, port.kind).map(move |address| Frontend {
                    kind: port.kind,
                    address,
                    protocol: port.entry.protocol,
                    port: key.port(),
                    entry: &port.entry,
                })
            })
        })
    }

    /// The addresses of a frontend on this node.
    fn addresses(&self, key: &FrontKey, kind: FrontendKind) -> impl Iterator<Item = IpAddr> {
        let is_everywhere = kind == FrontendKind::HostPort && key.is_of_node();
        let local = is_everywhere.then(|| key.addresses(&self.setup.local_addresses));
        key.addresses(&self.setup.node_addresses).chain(local.into_iter().flatten())
    }

    /// Bytes of the look-up structure, without entries.
    pub fn heap_bytes(&self) -> usize {
        self.fronts.heap_bytes() + self.backends.heap_bytes() + self.reached.heap_bytes()
    }

    /// The slot of a Service's table for a connection.
    pub(super) fn slot(&self, found: &Match<'_>, key: &FlowKey) -> usize {
        found.port.table(found.scope).slot(self.hash(found.port, key))
    }

    /// The kind of Service address that a packet is sent to, if any.
    pub(super) fn kind(&self, key: &FlowKey) -> Option<FrontendKind> {
        self.front(key).map(|port| port.kind)
    }

    /// The frontend that a packet is addressed to.
    #[inline]
    pub(super) fn front(&self, key: &FlowKey) -> Option<&Port> {
        if !matches!(key.proto, proto::TCP | proto::UDP | proto::SCTP) {
            return None;
        }
        let mut front = self.fronts.get(&FrontKey::destination(key));
        if front.is_none() && self.is_node_address(key) {
            front = self.fronts.get(&FrontKey::node(key.family, key.proto, key.dst_port));
        }
        if front.is_none() && self.has_host_ports {
            return self.local_front(key);
        }
        match front? {
            Front::Port(port) => Some(port),
            Front::Allocated(_) | Front::Foreign => None,
        }
    }

    /// The host port that a packet to one of the node's further addresses is for.
    #[inline(never)]
    fn local_front(&self, key: &FlowKey) -> Option<&Port> {
        if !self.setup.local_addresses.contains(&key.dst_addr()) {
            return None;
        }
        match self.fronts.get(&FrontKey::node(key.family, key.proto, key.dst_port))? {
            Front::Port(port) if port.kind == FrontendKind::HostPort => Some(port),
            _ => None,
        }
    }

    #[inline]
    fn is_node_address(&self, key: &FlowKey) -> bool {
        let destination = key.dst_addr();
        self.setup.node_addresses.contains(&destination)
    }

    fn in_service_range(&self, address: IpAddr) -> bool {
        self.setup.service_cidrs.iter().any(|cidr| cidr.contains(address))
    }

    /// There is no such frontend: either the address is not a Service's, or it is a cluster IP
    /// without that port (S6). Only cluster IPs belong to the Service as a whole; other ports of a
    /// load balancer's or external address may have other uses.
    #[inline]
    fn no_front(&self, key: &FlowKey) -> Found<'_> {
        let destination = key.dst_addr();
        let in_range = self.in_service_range(destination);
        if !in_range && !self.strays {
            return Found::NotAService;
        }
        match self.fronts.get(&FrontKey::address(destination)) {
            Some(Front::Foreign) => Found::NotAService,
            Some(Front::Allocated(cookie)) => {
                let subject = Subject { cookie: Some(cookie), entry: None };
                Found::Reject(RejectReason::UndefinedPort, subject)
            }
            None if in_range => Found::Drop(DropReason::Unallocated, Subject::default()),
            Some(Front::Port(..)) | None => Found::NotAService,
        }
    }
}
