//! The Service table: from a connection's first packet to its backend, by one look-up.
//!
//! Workers ask it on the miss path, before any policy is judged (N15). The cost does not depend on
//! the number of Services, ports or endpoints. A clone shares everything; nothing is changed in
//! place.

use core::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use wire::cidr::Cidr;
use wire::flow_key::{Family, FlowKey, HashKey, proto, to_addr, to_octets};

use super::entry::{Backend, BackendFlags, Scope, ServiceEntry};
use super::model::TrafficPolicy;
use crate::cow::CowMap;
use crate::maglev::Maglev;

/// Keys that are warmed together.
const WARM: usize = 32;

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

/// How far a frontend key reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(super) enum Place {
    /// One address and port.
    Exact,
    /// A port of all of this node's addresses; the key's address is zero.
    Node,
    /// A whole address; the key's port and protocol are zero.
    Address,
}

/// What frontends are found by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct FrontKey {
    address: [u8; 16],
    port: u16,
    proto: u8,
    family: Family,
    place: Place,
}

impl Hash for FrontKey {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.address));
        state.write_u64(
            u64::from(self.port)
                | u64::from(self.proto) << 16
                | (self.family as u64) << 24
                | (self.place as u64) << 32,
        );
    }
}

impl FrontKey {
    #[inline]
    fn destination(key: &FlowKey) -> Self {
        let FlowKey { dst, dst_port, proto, family, .. } = *key;
        Self { address: dst, port: dst_port, proto, family, place: Place::Exact }
    }

    pub(super) fn exact(address: IpAddr, proto: u8, port: u16) -> Self {
        let (address, family) = to_octets(address);
        Self { address, port, proto, family, place: Place::Exact }
    }

    pub(super) fn node(family: Family, proto: u8, port: u16) -> Self {
        Self { address: [0; 16], port, proto, family, place: Place::Node }
    }

    pub(super) fn address(address: IpAddr) -> Self {
        Self { port: 0, proto: 0, place: Place::Address, ..Self::exact(address, 0, 0) }
    }

    /// The address, if the key is a whole address.
    pub(super) fn whole_address(&self) -> Option<IpAddr> {
        (self.place == Place::Address).then(|| to_addr(&self.address, self.family))
    }
}

/// What stands at a frontend key.
#[derive(Clone, Debug)]
pub(super) enum Front {
    /// A Service's port.
    Port(Port),
    /// A cluster IP of ours (whole address), with the Service's cookie.
    Allocated(Arc<str>),
    /// A cluster IP of a Service that somebody else balances (whole address, S14).
    Foreign,
}

/// A Service's port at one address. What most look-ups need is copied here from the entry, into
/// the hash table's own memory: with many Services every further step waits for main memory.
#[derive(Clone, Debug)]
pub(super) struct Port {
    kind: FrontendKind,
    /// Some endpoint is usable somewhere.
    any: bool,
    /// The entry's source ranges apply.
    restricted: bool,
    /// The choice is by the client's address.
    sticky: bool,
    /// Policies for clients in the cluster and off it.
    inside: TrafficPolicy,
    outside: TrafficPolicy,
    cluster: Maglev,
    backends: Arc<[Backend]>,
    entry: Arc<ServiceEntry>,
}

impl Port {
    pub(super) fn new(kind: FrontendKind, entry: Arc<ServiceEntry>) -> Self {
        // Clients inside the cluster get Cluster behaviour from the outside addresses (S3).
        let (inside, outside) = match kind {
            FrontendKind::ClusterIp => (entry.internal_policy, entry.internal_policy),
            _ => (TrafficPolicy::Cluster, entry.external_policy),
        };
        Self {
            kind,
            any: entry.any,
            restricted: kind == FrontendKind::LoadBalancer && entry.source_ranges.is_some(),
            sticky: entry.affinity.is_some(),
            inside,
            outside,
            cluster: entry.cluster.clone(),
            backends: entry.backends.clone(),
            entry,
        }
    }

    pub(super) fn entry(&self) -> &Arc<ServiceEntry> {
        &self.entry
    }

    #[inline]
    fn table(&self, scope: Scope) -> &Maglev {
        match scope {
            Scope::Cluster => &self.cluster,
            Scope::Local => &self.entry.local,
        }
    }
}

/// What holds for the whole table; changes rarely.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// This node's addresses: where node ports are.
    pub(super) node_addresses: Box<[IpAddr]>,
    /// Ranges that cluster IPs are allocated from.
    pub(super) service_cidrs: Box<[Cidr]>,
    /// The cluster's key.
    pub(super) cluster_key: HashKey,
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
    origin: Origin,
    port: &'a Port,
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
    fn of(entry: &'a Arc<ServiceEntry>) -> Self {
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

/// All Services of a cluster, as one node sees them.
#[derive(Clone, Debug)]
pub struct ServiceTable {
    pub(super) fronts: CowMap<FrontKey, Front>,
    pub(super) scene: Arc<Scene>,
    /// Some cluster IP lies outside the ranges that are configured.
    pub(super) strays: bool,
}

impl ServiceTable {
    /// The Service that a new connection is for. `key` is the first packet's, as the client sent it.
    #[inline]
    pub fn find(&self, key: &FlowKey, origin: Origin) -> Found<'_> {
        match self.front(key) {
            Some(port) => admit(port, key, origin),
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

    /// The backend that the cluster's hash gives the connection: by its 5-tuple, or where the
    /// Service has affinity by the client's address alone. `None` never follows a [`Match`] of the
    /// same table.
    #[inline]
    pub fn choose<'a>(&self, found: &Match<'a>, key: &FlowKey) -> Option<Chosen<'a>> {
        let hash = self.hash(found.port, key);
        let index = found.port.table(found.scope).pick(hash)?;
        Some(found.take(usize::from(index), key))
    }

    /// The cluster's hash of a connection to a port.
    #[inline]
    fn hash(&self, port: &Port, key: &FlowKey) -> u64 {
        let cluster_key = &self.scene.cluster_key;
        if !port.sticky {
            return key.hash(cluster_key);
        }
        // The same backend through whatever address of the Service, and again after the pin is
        // forgotten or on another node.
        FlowKey { dst: [0; 16], src_port: 0, dst_port: 0, ..*key }.hash(cluster_key)
    }

    /// Reads what [`lookup`](Self::lookup) of these keys will read, and returns a number that means
    /// nothing. With many Services each look-up waits for main memory several times; asked for a batch
    /// step by step, as here, the waits of different keys overlap. Worth its while for two keys or
    /// more, before they are looked up one by one.
    pub fn warm(&self, keys: &[FlowKey]) -> usize {
        let mut read = 0;
        for keys in keys.chunks(WARM) {
            let mut ports = [None; WARM];
            for (port, key) in ports.iter_mut().zip(keys) {
                *port = self.front(key);
            }
            let mut picks = [0; WARM];
            for ((pick, port), key) in picks.iter_mut().zip(&ports).zip(keys) {
                if let Some(port) = port {
                    *pick = usize::from(port.cluster.pick(self.hash(port, key)).unwrap_or(0));
                }
            }
            for (pick, port) in picks.into_iter().zip(ports) {
                let backend = port.and_then(|port| port.backends.get(pick));
                read += backend.map_or(0, |backend| usize::from(backend.port));
            }
        }
        core::hint::black_box(read)
    }

    /// Whether Service traffic to this address reaches the switch at all: a Service's address, or
    /// one of the range that Services are given theirs from.
    pub fn is_service_address(&self, address: IpAddr) -> bool {
        self.in_service_range(address) || self.fronts.contains_key(&FrontKey::address(address))
    }

    /// How a backend stands that was chosen for a connection whose first packet had `key`.
    pub fn standing(&self, key: &FlowKey, backend: SocketAddr) -> Standing {
        let Some(Port { entry, .. }) = self.front(key) else { return Standing::NoService };
        match entry.find(backend).map(|index| entry.backends[index].flags) {
            Some(flags) if flags.has(BackendFlags::SERVING) => Standing::Serving,
            Some(flags) if flags.has(BackendFlags::READY) => Standing::Serving,
            Some(_) => Standing::NotServing,
            None => Standing::Gone,
        }
    }

    /// Every Service port with a kind of address that leads to it, in no order; several addresses
    /// of one kind show several times.
    pub fn iter(&self) -> impl Iterator<Item = (FrontendKind, &Arc<ServiceEntry>)> {
        self.fronts.iter().filter_map(|(_, front)| match front {
            Front::Port(port) => Some((port.kind, &port.entry)),
            Front::Allocated(_) | Front::Foreign => None,
        })
    }

    /// Octets of the look-up structure, entries not counted.
    pub fn heap_bytes(&self) -> usize {
        self.fronts.heap_bytes()
    }

    /// By what kind of address a packet is for a Service, if it is.
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
        match front? {
            Front::Port(port) => Some(port),
            Front::Allocated(_) | Front::Foreign => None,
        }
    }

    #[inline]
    fn is_node_address(&self, key: &FlowKey) -> bool {
        let destination = key.dst_addr();
        self.scene.node_addresses.contains(&destination)
    }

    fn in_service_range(&self, address: IpAddr) -> bool {
        self.scene.service_cidrs.iter().any(|cidr| cidr.contains(address))
    }

    /// No such address and port: nothing of ours, or an address of ours without that port (S6).
    /// Only cluster IPs are ours whole; a load balancer's or external address may be anybody's on
    /// its other ports.
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

/// What a frontend offers this client.
#[inline]
fn admit<'a>(port: &'a Port, key: &FlowKey, origin: Origin) -> Found<'a> {
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
    Found::Service(Match { entry, kind: *kind, scope, origin, port })
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

    #[inline]
    fn take(&self, index: usize, key: &FlowKey) -> Chosen<'a> {
        let Self { entry, kind, scope, origin, port } = *self;
        let backend = &port.backends[index];
        let hairpin = backend.address == key.src_addr();
        // A host port leads to this very node, whose reply passes here anyhow.
        let hides = origin == Origin::OffCluster
            && scope == Scope::Cluster
            && kind != FrontendKind::HostPort;
        Chosen { entry, kind, scope, index, needs_snat: hairpin || hides, backend }
    }
}
