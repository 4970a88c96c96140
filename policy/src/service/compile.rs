//! Compiles Services and slices to a [`ServiceTable`]. The cost depends on what changed.
//!
//! The control plane keeps one [`Compiler`]. Changes are recorded object by object.
//! [`Compiler::publish`] recompiles each affected Service once, and returns a table that shares
//! everything else with the previous one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_wire::flow_key::{Family, FlowKey, HashKey};

use super::build::{self, FrontendEntry};
use super::entry::{ServiceEntry, ServicePortId};
use super::model::{EndpointSlice, HostPort, Service, ServiceName, family_of};
pub use super::settings::Settings;
use super::table::{Front, FrontKey, FrontendKind, ServiceTable, Setup};
use super::validate;
pub use super::validate::Invalid;
use crate::affected::AffectedAddresses;
use crate::rule::Protocol;

/// The owner of a frontend. Sorts by kind, then by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Owner {
    /// Sorts before all others: the lower bound of searches.
    Lowest,
    Service(ServiceName),
    Pod(Arc<str>),
}

/// Decides who gets an address and port that several objects claim. Cluster IPs precede addresses
/// that users may set freely, so that nobody captures another's address (T-N6). Among equals the
/// first by name wins.
type Claim = (FrontKey, FrontendKind, Owner);

/// A Service for the health check responder (S12).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// Port of this node on which the health check is served.
    pub port: u16,
    /// The Service.
    pub service: ServiceName,
    /// Endpoints on this node that are ready and not terminating, by the family in which the health
    /// check is requested (IPv4, IPv6): the answer is 200 if there are any, otherwise 503. For a
    /// family that the Service does not have, the endpoints of the other family count.
    pub local_endpoints: [usize; 2],
}

/// A frontend that another object already has.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Clash {
    /// Cookie of the object that does not get it.
    pub loser: Arc<str>,
    /// Cookie of the object that has it.
    pub winner: Arc<str>,
    /// Kind of the frontend that it does not get.
    pub kind: FrontendKind,
    /// The address at which the object does not get the frontend; `None`: every address of the
    /// node.
    pub address: Option<IpAddr>,
    /// The loser's port.
    pub port: u16,
}

/// Namespace and name of a slice.
type SliceName = (Arc<str>, Arc<str>);

/// The ids of one owner's ports.
type PortIds = Vec<((Arc<str>, Protocol), ServicePortId)>;

/// The parts compiled from one owner's objects.
#[derive(Debug, Default)]
struct Compiled {
    claims: Vec<Claim>,
    ids: PortIds,
    /// The compiled entries, from which counters are carried over.
    entries: Vec<Arc<ServiceEntry>>,
    health: Option<HealthCheck>,
}

impl Compiled {
    /// The previous entry of a port.
    fn entry(&self, id: ServicePortId, family: Family) -> Option<&ServiceEntry> {
        self.entries.iter().map(|e| &**e).find(|e| e.id == id && e.family == family)
    }
}

impl Default for ServiceTable {
    /// The object is not a known Service.
    fn default() -> Self {
        let setup = Arc::new(setup(&Settings::default()));
        let (fronts, backends, reached) = Default::default();
        Self { fronts, setup, strays: false, has_host_ports: false, backends, reached }
    }
}

/// Keeps the objects and compiles what changes.
#[derive(Debug)]
pub struct Compiler {
    settings: Settings,
    services: HashMap<ServiceName, Arc<Service>>,
    slices: HashMap<ServiceName, BTreeMap<Arc<str>, Arc<EndpointSlice>>>,
    /// The Service of a slice, by the slice's namespace and name.
    slice_owner: HashMap<SliceName, ServiceName>,
    host_ports: HashMap<Arc<str>, Arc<[HostPort]>>,
    compiled: HashMap<Owner, Compiled>,
    /// Every claim, in order; the first for a key is in force.
    claims: BTreeMap<Claim, Front>,
    /// Keys with several claims.
    contested: BTreeSet<FrontKey>,
    dirty: BTreeSet<Owner>,
    /// Cluster IPs outside the configured CIDRs.
    strays: usize,
    next_id: u32,
    table: ServiceTable,
    affected: AffectedAddresses,
}

impl Compiler {
    /// A compiler without Services.
    pub fn new(settings: Settings) -> Self {
        let setup = Arc::new(setup(&settings));
        Self {
            settings,
            services: HashMap::new(),
            slices: HashMap::new(),
            slice_owner: HashMap::new(),
            host_ports: HashMap::new(),
            compiled: HashMap::new(),
            claims: BTreeMap::new(),
            contested: BTreeSet::new(),
            dirty: BTreeSet::new(),
            strays: 0,
            next_id: 0,
            table: ServiceTable { setup, ..ServiceTable::default() },
            affected: AffectedAddresses::default(),
        }
    }

    /// Changes the settings. The next [`publish`](Self::publish) recompiles the Services that
    /// depend on the changed settings. This node's addresses are not compiled in, so changing them
    /// costs little.
    pub fn set_settings(&mut self, settings: Settings) {
        let same_for_services = self.settings.view == settings.view
            && self.settings.service_cidrs == settings.service_cidrs
            && self.settings.allowed_external_ips == settings.allowed_external_ips
            && same_key(&self.settings.cluster_key, &settings.cluster_key);
        let same_addresses = self.settings.node_addresses == settings.node_addresses
            && self.settings.local_addresses == settings.local_addresses;
        if same_for_services && same_addresses {
            return;
        }
        self.table.setup = Arc::new(setup(&settings));
        self.settings = settings;
        self.affected = AffectedAddresses::All;
        self.dirty.extend(self.host_ports.keys().cloned().map(Owner::Pod));
        if !same_for_services {
            self.strays = self.claims.keys().filter(|claim| self.is_stray(&claim.0)).count();
            self.dirty.extend(self.services.keys().cloned().map(Owner::Service));
        }
    }

    /// Validates a Service, as [`set_service`](Self::set_service) does.
    ///
    /// # Errors
    /// The Service is invalid.
    pub fn check(service: &Service) -> Result<(), Invalid> {
        validate::service(service)
    }

    /// Adds a Service, or replaces the one with its name.
    ///
    /// # Errors
    /// [`Invalid`]; nothing changes then.
    pub fn set_service(&mut self, service: Arc<Service>) -> Result<(), Invalid> {
        validate::service(&service)?;
        self.take_service(service);
        Ok(())
    }

    /// Removes a Service. Its slices are kept.
    pub fn remove_service(&mut self, name: &ServiceName) {
        if self.services.remove(name).is_some() {
            self.dirty.insert(Owner::Service(name.clone()));
        }
    }

    /// Adds a slice, or replaces the one with its name.
    pub fn set_slice(&mut self, slice: Arc<EndpointSlice>) {
        let (key, owner) = ((slice.namespace.clone(), slice.name.clone()), slice.owner());
        if let Some(old) = self.slice_owner.insert(key, owner.clone())
            && old != owner
        {
            self.take_slice(&old, &slice.name);
        }
        let of_owner = self.slices.entry(owner.clone()).or_default();
        if of_owner.get(&slice.name).is_none_or(|old| *old != slice) {
            of_owner.insert(slice.name.clone(), slice);
            self.mark_dirty(owner);
        }
    }

    /// Removes a slice.
    pub fn remove_slice(&mut self, namespace: &Arc<str>, name: &Arc<str>) {
        let key = (namespace.clone(), name.clone());
        if let Some(owner) = self.slice_owner.remove(&key) {
            self.take_slice(&owner, name);
        }
    }

    /// Replaces all Services and slices. Costs one comparison for each, and compilation of those
    /// that differ. If two objects have the same name, the later one is used.
    ///
    /// # Errors
    /// The first invalid Service, by its cookie; nothing changes then.
    pub fn set_state(
        &mut self,
        services: &[Arc<Service>],
        slices: &[Arc<EndpointSlice>],
    ) -> Result<(), (Arc<str>, Invalid)> {
        let known = |s: &Service| self.services.get(&s.name).is_some_and(|old| ptr::eq(&**old, s));
        for service in services.iter().filter(|s| !known(s)) {
            validate::service(service).map_err(|error| (service.cookie.clone(), error))?;
        }
        let names: HashSet<&ServiceName> = services.iter().map(|s| &s.name).collect();
        let gone: Vec<_> =
            self.services.keys().filter(|name| !names.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_service(name));
        let names: HashSet<_> = slices.iter().map(|s| (&s.namespace, &s.name)).collect();
        let gone = |(namespace, name): &&SliceName| !names.contains(&(namespace, name));
        let gone: Vec<_> = self.slice_owner.keys().filter(gone).cloned().collect();
        gone.iter().for_each(|(namespace, name)| self.remove_slice(namespace, name));
        services.iter().for_each(|service| self.take_service(service.clone()));
        slices.iter().for_each(|slice| self.set_slice(slice.clone()));
        Ok(())
    }

    /// Sets the host ports of a pod of this node; an empty list removes them.
    pub fn set_host_ports(&mut self, pod: Arc<str>, ports: Arc<[HostPort]>) {
        let changed = match self.host_ports.get(&pod) {
            Some(old) => *old != ports,
            None => !ports.is_empty(),
        };
        if changed {
            self.dirty.insert(Owner::Pod(pod.clone()));
            if ports.is_empty() {
                self.host_ports.remove(&pod);
            } else {
                self.host_ports.insert(pod, ports);
            }
        }
    }

    /// Compiles the changes since the last call. Costs the affected Services plus a few shards of
    /// the look-up structure.
    pub fn publish(&mut self) -> ServiceTable {
        for owner in std::mem::take(&mut self.dirty) {
            self.recompile(owner);
        }
        self.table.strays = self.strays > 0;
        self.table.has_host_ports = !self.host_ports.is_empty();
        self.table.clone()
    }

    /// The addresses of Services that appeared, disappeared or have other backends than at the last
    /// call. For connections to any other address the result is unchanged.
    pub fn take_affected(&mut self) -> AffectedAddresses {
        std::mem::take(&mut self.affected)
    }

    /// The Services with a health check, as last published.
    pub fn health_checks(&self) -> impl Iterator<Item = &HealthCheck> {
        self.compiled.values().filter_map(|c| c.health.as_ref())
    }

    /// Frontends that two objects claim, as last published. The cost depends on the number of
    /// contested frontends.
    pub fn clashes(&self) -> Vec<Clash> {
        let mut clashes = Vec::new();
        for key in &self.contested {
            let claims = self.claims_to(key).filter_map(|((_, kind, _), front)| match front {
                Front::Port(port) => Some((*kind, port.entry())),
                _ => None,
            });
            let mut winner: Option<&Arc<ServiceEntry>> = None;
            for (kind, entry) in claims {
                match winner {
                    Some(winner) => clashes.push(Clash {
                        loser: entry.cookie.clone(),
                        winner: winner.cookie.clone(),
                        kind,
                        address: key.addresses(&[]).next(),
                        port: entry.port,
                    }),
                    None => winner = Some(entry),
                }
            }
        }
        clashes
    }

    /// Every claim to a key; the first one is in force.
    fn claims_to(&self, key: &FrontKey) -> impl Iterator<Item = (&Claim, &Front)> {
        let least = (*key, FrontendKind::ClusterIp, Owner::Lowest);
        let key = *key;
        self.claims.range(least..).take_while(move |((k, ..), _)| *k == key)
    }

    fn take_service(&mut self, service: Arc<Service>) {
        // Comparing two `Arc`s of one object costs nothing: they compare by pointer first.
        let name = &service.name;
        if self.services.get(name).is_none_or(|old| *old != service) {
            self.dirty.insert(Owner::Service(name.clone()));
            self.services.insert(name.clone(), service);
        }
    }

    fn take_slice(&mut self, owner: &ServiceName, name: &Arc<str>) {
        if let Some(of_owner) = self.slices.get_mut(owner) {
            of_owner.remove(name);
            if of_owner.is_empty() {
                self.slices.remove(owner);
            }
            self.mark_dirty(owner.clone());
        }
    }

    fn mark_dirty(&mut self, owner: ServiceName) {
        if self.services.contains_key(&owner) {
            self.dirty.insert(Owner::Service(owner));
        }
    }

    fn recompile(&mut self, owner: Owner) {
        let old = self.compiled.remove(&owner).unwrap_or_default();
        let mut new = Compiled::default();
        let fronts = match &owner {
            Owner::Lowest => Vec::new(),
            Owner::Service(name) => match self.services.get(name).cloned() {
                Some(service) => self.service_fronts(&service, &old, &mut new),
                None => Vec::new(),
            },
            Owner::Pod(cookie) => match self.host_ports.get(cookie).cloned() {
                Some(ports) => self.host_port_fronts(cookie, &ports, &old, &mut new),
                None => Vec::new(),
            },
        };
        let mut fresh: BTreeMap<Claim, Front> = BTreeMap::new();
        for (key, kind, front) in fronts {
            fresh.entry((key, kind, owner.clone())).or_insert(front);
        }
        self.list_backends(&old.entries, &new.entries);
        self.list_reached(&old.entries, &fresh);
        new.claims = fresh.keys().cloned().collect();
        for claim in old.claims.iter().filter(|claim| !fresh.contains_key(*claim)) {
            self.claims.remove(claim);
            self.count_stray(claim, false);
            self.settle(&claim.0);
        }
        for (claim, front) in fresh {
            let key = claim.0;
            if self.claims.insert(claim.clone(), front).is_none() {
                self.count_stray(&claim, true);
            }
            self.settle(&key);
        }
        if !(new.claims.is_empty() && new.entries.is_empty() && new.health.is_none()) {
            self.compiled.insert(owner, new);
        }
    }

    /// Enters the first claim for a key into the table.
    fn settle(&mut self, key: &FrontKey) {
        self.affected.extend(key.addresses(&self.settings.node_addresses));
        self.affected.extend(key.addresses(&self.settings.local_addresses));
        let mut claims = self.claims_to(key).map(|(_, front)| front);
        let (first, is_contested) = (claims.next().cloned(), claims.next().is_some());
        drop(claims);
        match is_contested {
            true => self.contested.insert(*key),
            false => self.contested.remove(key),
        };
        match first {
            Some(front) => self.table.fronts.insert(*key, front),
            None => self.table.fronts.remove(key),
        };
    }

    /// Updates the table's list of backends, only where it differs.
    fn list_backends(&mut self, old: &[Arc<ServiceEntry>], new: &[Arc<ServiceEntry>]) {
        let mut change: HashMap<(SocketAddr, ServicePortId), i32> = HashMap::new();
        for (entries, step) in [(old, -1), (new, 1)] {
            for entry in entries.iter().filter(|entry| entry.protocol == Protocol::Tcp) {
                for backend in entry.backends() {
                    *change.entry((backend.socket(), entry.id)).or_default() += step;
                }
            }
        }
        for ((backend, id), change) in change.into_iter().filter(|(_, change)| *change != 0) {
            let backends = &mut self.table.backends;
            let before = backends.get(&backend).map(|ids| &**ids).unwrap_or_default();
            let others = before.iter().copied().filter(|other| *other != id);
            let ids: Arc<[ServicePortId]> = match change {
                ..0 => others.collect(),
                _ => others.chain([id]).collect(),
            };
            match ids.is_empty() {
                true => backends.remove(&backend),
                false => backends.insert(backend, ids),
            };
        }
    }

    /// Updates the frontends of a Service's TCP ports.
    fn list_reached(&mut self, old: &[Arc<ServiceEntry>], fresh: &BTreeMap<Claim, Front>) {
        let mut reached: HashMap<(ServicePortId, Family), Vec<FrontKey>> = HashMap::new();
        for entry in old {
            reached.insert((entry.id, entry.family), Vec::new());
        }
        for ((key, ..), front) in fresh {
            if let Front::Port(port) = front
                && port.entry().protocol == Protocol::Tcp
            {
                reached.entry((port.entry().id, port.entry().family)).or_default().push(*key);
            }
        }
        for (port, keys) in reached {
            match keys.is_empty() {
                true => drop(self.table.reached.remove(&port)),
                false if self.table.reached.get(&port).is_some_and(|old| **old == *keys) => {}
                false => drop(self.table.reached.insert(port, keys.into())),
            }
        }
    }

    fn count_stray(&mut self, claim: &Claim, there: bool) {
        if self.is_stray(&claim.0) {
            self.strays = if there { self.strays + 1 } else { self.strays - 1 };
        }
    }

    /// A cluster IP outside the configured CIDRs.
    fn is_stray(&self, key: &FrontKey) -> bool {
        let ranges = &self.table.setup.service_cidrs;
        key.whole_address().is_some_and(|ip| !ranges.iter().any(|cidr| cidr.contains(ip)))
    }

    /// The entries and frontends of a Service.
    fn service_fronts(
        &mut self,
        service: &Arc<Service>,
        old: &Compiled,
        new: &mut Compiled,
    ) -> Vec<FrontendEntry> {
        if !service.is_balanced() {
            return build::foreign(service);
        }
        let slices = self.slices.get(&service.name).cloned().unwrap_or_default();
        let mut fronts = build::allocated(service);
        let mut local: [BTreeSet<IpAddr>; 2] = Default::default();
        for port in &service.ports {
            let id = self.id(&old.ids, &port.name, port.protocol);
            new.ids.push(((port.name.clone(), port.protocol), id));
            for family in [Family::V4, Family::V6] {
                if service.has_family(family) {
                    let slices = slices.values().map(|slice| &**slice);
                    let identity = (id, old.entry(id, family));
                    let settings = &self.settings;
                    let entry = build::entry(service, port, family, slices, settings, identity);
                    let entry = Arc::new(entry);
                    local[usize::from(family == Family::V6)].extend(build::healthy(&entry));
                    build::fronts(service, port, &entry, settings, &mut fronts);
                    new.entries.push(entry);
                }
            }
        }
        let [ipv4, ipv6] = local.map(|addresses| addresses.len());
        let local_endpoints = match (service.has_family(Family::V4), service.has_family(Family::V6))
        {
            (true, false) => [ipv4; 2],
            (false, true) => [ipv6; 2],
            _ => [ipv4, ipv6],
        };
        new.health = service.health_check_node_port.map(|port| HealthCheck {
            port,
            service: service.name.clone(),
            local_endpoints,
        });
        fronts
    }

    /// The entries and frontends of a pod's host ports.
    fn host_port_fronts(
        &mut self,
        cookie: &Arc<str>,
        ports: &[HostPort],
        old: &Compiled,
        new: &mut Compiled,
    ) -> Vec<FrontendEntry> {
        let mut fronts = Vec::new();
        for port in ports {
            let name: Arc<str> = format!("{}-{}", port.port, port.target).into();
            let id = self.id(&old.ids, &name, port.protocol);
            new.ids.push(((name, port.protocol), id));
            let identity = (id, old.entry(id, family_of(port.target.ip())));
            let entry = build::host_port(cookie, port, &self.settings, identity);
            if let Some((_, _, Front::Port(front))) = &entry {
                new.entries.push(front.entry().clone());
            }
            fronts.extend(entry);
        }
        fronts
    }

    /// The id that a port had, or a new one.
    fn id(&mut self, known: &PortIds, name: &Arc<str>, protocol: Protocol) -> ServicePortId {
        let same = known.iter().find(|((n, p), _)| n == name && *p == protocol);
        same.map_or_else(
            || {
                self.next_id = self.next_id.wrapping_add(1);
                ServicePortId(self.next_id)
            },
            |(_, id)| *id,
        )
    }
}

/// Whether two keys are equal, compared by hashes: keys do not expose their content.
fn same_key(a: &HashKey, b: &HashKey) -> bool {
    let probe = FlowKey { src: [1; 16], dst: [2; 16], family: Family::V6, ..FlowKey::default() };
    probe.hash(a) == probe.hash(b)
}

fn setup(settings: &Settings) -> Setup {
    Setup {
        node_addresses: settings.node_addresses.clone().into(),
        local_addresses: settings.local_addresses.clone().into(),
        service_cidrs: settings.service_cidrs.clone().into(),
        cluster_key: settings.cluster_key,
    }
}
