//! The cluster zone: every name that the cluster answers for, compiled from Services, EndpointSlices, pods and
//! namespaces.
//!
//! A [`Zone`] is a value: a copy costs a few reference counts and is never changed by changes to the original. A change
//! costs what it touches: the Service that it belongs to, and the path to it. Called by the owner of the objects, off the
//! packet path; [`answer`](crate::answer()) reads it there.

mod service;
mod settings;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::bytes::Bytes;
use crate::facts::{Facts, PodFacts, ServiceFacts, ServiceKind, SliceFacts};
use crate::list::List;
use crate::map::Map;
use crate::name::{NameError, push_label};
pub(crate) use service::{Addresses, Host, PortName, Service, Srv, Target};
use service::{compile, key};
pub use settings::{MAX_TTL, PodNames, Settings};

/// A Service with its slices as they came.
#[derive(Clone, Debug, Default)]
struct Entry {
    facts: Option<Arc<ServiceFacts>>,
    slices: BTreeMap<Arc<str>, Arc<SliceFacts>>,
}

/// The Services of a domain: as they came, and compiled, which is all that answers need.
#[derive(Clone, Debug, Default)]
struct Table {
    entries: Map<Arc<Entry>>,
    compiled: Map<Arc<Service>>,
}

/// Namespaces: whether there is an object, and how many others are in it.
#[derive(Clone, Copy, Debug, Default)]
struct NamespaceEntry {
    is_declared: bool,
    members: usize,
}

/// Names of an address, in front of `svc.<domain>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pointers {
    /// Services that it is a cluster IP of.
    pub(crate) services: List<Bytes>,
    /// Endpoints with it.
    pub(crate) hosts: List<Bytes>,
}

impl Pointers {
    /// Those that PTR records are made of: endpoints only where no Service has the address.
    pub(crate) fn names(&self) -> &[Bytes] {
        if self.services.is_empty() { &self.hosts } else { &self.services }
    }
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Zone {
    settings: Arc<Settings>,
    is_synced: bool,
    serial: u32,
    services: Table,
    imports: Table,
    namespaces: Map<NamespaceEntry>,
    pointers: Map<Arc<Pointers>>,
    pods: Map<Arc<PodFacts>>,
    /// Namespaces of the pods with an address, one a pod, as labels.
    pod_addresses: Map<Arc<[Box<[u8]>]>>,
    /// Labels of the name server Service.
    name_server: Arc<[u8]>,
}

/// Bytes of an address as a key.
fn address_key(address: IpAddr) -> ([u8; 16], usize) {
    let mut key = [0; 16];
    match address {
        IpAddr::V4(address) => {
            key[..4].copy_from_slice(&address.octets());
            (key, 4)
        }
        IpAddr::V6(address) => (address.octets(), 16),
    }
}

impl Zone {
    /// An empty zone that answers SERVFAIL until [`set_synced`](Self::set_synced).
    ///
    /// # Errors
    /// The name server is not named by labels.
    pub fn new(mut settings: Settings) -> Result<Self, NameError> {
        settings.ttl = settings.ttl.min(MAX_TTL);
        let name_server = key(&settings.name_server.0, &settings.name_server.1)?;
        Ok(Self {
            settings: Arc::new(settings),
            is_synced: false,
            serial: 1,
            services: Table::default(),
            imports: Table::default(),
            namespaces: Map::default(),
            pointers: Map::default(),
            pods: Map::default(),
            pod_addresses: Map::default(),
            name_server: name_server.into(),
        })
    }

    /// Settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether all objects are known, so that what is not there does not exist.
    pub fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// Says whether all objects are known. Without, every answer is SERVFAIL, never NXDOMAIN.
    pub fn set_synced(&mut self, is_synced: bool) {
        self.is_synced = is_synced;
    }

    /// Serial number of the SOA record.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Sets the serial number of the SOA record; the caller counts what it publishes.
    pub fn set_serial(&mut self, serial: u32) {
        self.serial = serial;
    }

    /// Number of Services.
    pub fn len(&self) -> usize {
        self.services.compiled.len()
    }

    /// Whether no Service is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Upserts what an object says of names.
    ///
    /// # Errors
    /// A name is not a label, or `externalName` is not a name. Nothing changes then.
    pub fn upsert(&mut self, facts: Facts) -> Result<(), NameError> {
        match facts {
            Facts::Namespace(name) => self.set_namespace(&name, true),
            Facts::Service(facts) => self.upsert_service(facts),
            Facts::Slice(facts) => self.upsert_slice(facts),
            Facts::Pod(facts) => self.upsert_pod(facts),
        }
    }

    /// Upserts a Namespace object, or deletes it.
    ///
    /// # Errors
    /// The name is not a label.
    pub fn set_namespace(&mut self, name: &str, exists: bool) -> Result<(), NameError> {
        let mut label = Vec::new();
        push_label(&mut label, name)?;
        self.change_namespace(&label, |entry| entry.is_declared = exists);
        Ok(())
    }

    /// Upserts a Service.
    ///
    /// # Errors
    /// A name is not a label, or `externalName` is not a name. Nothing changes then.
    pub fn upsert_service(&mut self, facts: Arc<ServiceFacts>) -> Result<(), NameError> {
        let (namespace, name) = (facts.namespace.clone(), facts.name.clone());
        self.change(false, &namespace, &name, |entry| entry.facts = Some(facts))
    }

    /// Deletes a Service. Deleting an absent one is a no-op.
    ///
    /// # Errors
    /// A name is not a label.
    pub fn delete_service(&mut self, namespace: &str, name: &str) -> Result<(), NameError> {
        self.change(false, namespace, name, |entry| entry.facts = None)
    }

    /// Upserts a ServiceImport, whose names are below [`Settings::clusterset`].
    ///
    /// # Errors
    /// As [`upsert_service`](Self::upsert_service).
    pub fn upsert_import(&mut self, facts: Arc<ServiceFacts>) -> Result<(), NameError> {
        let (namespace, name) = (facts.namespace.clone(), facts.name.clone());
        self.change(true, &namespace, &name, |entry| entry.facts = Some(facts))
    }

    /// Deletes a ServiceImport. Deleting an absent one is a no-op.
    ///
    /// # Errors
    /// A name is not a label.
    pub fn delete_import(&mut self, namespace: &str, name: &str) -> Result<(), NameError> {
        self.change(true, namespace, name, |entry| entry.facts = None)
    }

    /// Upserts an EndpointSlice: of a ServiceImport if it names a cluster, else of a Service. A slice that moves to
    /// another Service is deleted there first by the caller.
    ///
    /// # Errors
    /// A name is not a label. Nothing changes then.
    pub fn upsert_slice(&mut self, slice: Arc<SliceFacts>) -> Result<(), NameError> {
        let (namespace, service) = (slice.namespace.clone(), slice.service.clone());
        let is_import = slice.cluster.is_some();
        self.change(is_import, &namespace, &service, |entry| {
            entry.slices.insert(slice.name.clone(), slice);
        })
    }

    /// Deletes an EndpointSlice; only its names and its cluster matter. Deleting an absent one is a no-op.
    ///
    /// # Errors
    /// A name is not a label.
    pub fn delete_slice(&mut self, slice: &SliceFacts) -> Result<(), NameError> {
        self.change(slice.cluster.is_some(), &slice.namespace, &slice.service, |entry| {
            entry.slices.remove(&slice.name);
        })
    }

    /// Upserts a pod that has not ended.
    ///
    /// # Errors
    /// Its namespace is not a label. Nothing changes then.
    pub fn upsert_pod(&mut self, pod: Arc<PodFacts>) -> Result<(), NameError> {
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        self.set_pod(&namespace, &name, Some(pod))
    }

    /// Deletes a pod. Deleting an absent one is a no-op.
    ///
    /// # Errors
    /// Its namespace is not a label.
    pub fn delete_pod(&mut self, namespace: &str, name: &str) -> Result<(), NameError> {
        self.set_pod(namespace, name, None)
    }

    fn set_pod(
        &mut self,
        namespace: &str,
        name: &str,
        pod: Option<Arc<PodFacts>>,
    ) -> Result<(), NameError> {
        let mut label = Vec::new();
        push_label(&mut label, namespace)?;
        let key = format!("{namespace}/{name}");
        let is_there = pod.is_some();
        let new = pod.clone();
        let old = self.pods.set(key.as_bytes(), pod);
        let old_addresses = old.iter().flat_map(|pod| pod.addresses.iter());
        let new_addresses = new.iter().flat_map(|pod| pod.addresses.iter());
        for address in old_addresses {
            self.change_pod_address(*address, |labels| {
                if let Some(at) = labels.iter().position(|it| **it == *label) {
                    labels.swap_remove(at);
                }
            });
        }
        for address in new_addresses {
            self.change_pod_address(*address, |labels| labels.push(label.clone().into()));
        }
        self.count_member(&label, old.is_some(), is_there);
        Ok(())
    }

    fn change_pod_address(&mut self, address: IpAddr, change: impl FnOnce(&mut Vec<Box<[u8]>>)) {
        let (key, len) = address_key(address);
        let mut labels = self.pod_addresses.get(&key[..len]).map_or_else(Vec::new, |l| l.to_vec());
        change(&mut labels);
        let labels = (!labels.is_empty()).then(|| labels.into());
        self.pod_addresses.set(&key[..len], labels);
    }

    fn change_namespace(&mut self, label: &[u8], change: impl FnOnce(&mut NamespaceEntry)) {
        let mut entry = self.namespaces.get(label).copied().unwrap_or_default();
        change(&mut entry);
        let exists = entry.is_declared || entry.members > 0;
        self.namespaces.set(label, exists.then_some(entry));
    }

    /// An object was in the namespace of that label or not, and is now or not.
    fn count_member(&mut self, label: &[u8], was: bool, is: bool) {
        if was != is {
            self.change_namespace(label, |entry| {
                entry.members = (entry.members + usize::from(is)).saturating_sub(usize::from(was));
            });
        }
    }

    /// Changes a Service or a ServiceImport, and what follows from it.
    fn change(
        &mut self,
        is_import: bool,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Entry),
    ) -> Result<(), NameError> {
        let key = key(namespace, name)?;
        let table = if is_import { &mut self.imports } else { &mut self.services };
        let mut entry = table.entries.get(&key).map_or_else(Entry::default, |it| Entry::clone(it));
        change(&mut entry);
        let slices = entry.slices.values().map(|slice| &**slice);
        let new = match &entry.facts {
            Some(facts) => Some(Arc::new(compile(facts, slices, is_import)?)),
            None => None,
        };
        let is_there = entry.facts.is_some() || !entry.slices.is_empty();
        table.entries.set(&key, is_there.then(|| Arc::new(entry)));
        let old = table.compiled.set(&key, new.clone());
        let label = &key[1 + usize::from(key[0])..];
        self.count_member(label, old.is_some(), new.is_some());
        if !is_import {
            self.move_pointers(old.as_deref(), new.as_deref());
        }
        Ok(())
    }

    /// Moves the PTR records of a Service from what it was to what it is; those that stay cost nothing.
    fn move_pointers(&mut self, old: Option<&Service>, new: Option<&Service>) {
        let sorted = |service: Option<&Service>| {
            let mut list: Vec<_> = service.into_iter().flat_map(Service::reverse).collect();
            list.sort_unstable();
            list.dedup();
            list
        };
        let (old, new) = (sorted(old), sorted(new));
        for (address, is_service, name) in &old {
            if new.binary_search(&(*address, *is_service, name.clone())).is_err() {
                self.change_pointers(*address, *is_service, |names| names.retain(|it| it != name));
            }
        }
        for (address, is_service, name) in &new {
            if old.binary_search(&(*address, *is_service, name.clone())).is_err() {
                self.change_pointers(*address, *is_service, |names| {
                    if let Err(at) = names.binary_search(name) {
                        names.insert(at, name.clone());
                    }
                });
            }
        }
    }

    fn change_pointers(
        &mut self,
        address: IpAddr,
        is_service: bool,
        change: impl FnOnce(&mut Vec<Bytes>),
    ) {
        let (key, len) = address_key(address);
        let mut pointers =
            self.pointers.get(&key[..len]).map_or_else(Pointers::default, |it| Pointers::clone(it));
        let list = if is_service { &mut pointers.services } else { &mut pointers.hosts };
        let mut names = list.to_vec();
        change(&mut names);
        *list = names.into();
        let is_left = !pointers.services.is_empty() || !pointers.hosts.is_empty();
        self.pointers.set(&key[..len], is_left.then(|| Arc::new(pointers)));
    }

    /// The Service of these labels.
    pub(crate) fn service(&self, key: &[u8], is_import: bool) -> Option<&Service> {
        let table = if is_import { &self.imports } else { &self.services };
        table.compiled.get(key).map(|service| &**service)
    }

    /// Whether there is a namespace of this label, with its length byte.
    pub(crate) fn has_namespace(&self, label: &[u8]) -> bool {
        self.namespaces.get(label).is_some()
    }

    /// The PTR records of an address.
    pub(crate) fn pointers(&self, address: IpAddr) -> Option<&Pointers> {
        let (key, len) = address_key(address);
        self.pointers.get(&key[..len]).map(|it| &**it)
    }

    /// Whether a pod of that namespace has the address.
    pub(crate) fn has_pod(&self, namespace: &[u8], address: IpAddr) -> bool {
        let (key, len) = address_key(address);
        let pods = self.pod_addresses.get(&key[..len]);
        pods.is_some_and(|labels| labels.iter().any(|label| **label == *namespace))
    }

    /// Whether there is any ServiceImport.
    pub(crate) fn has_imports(&self) -> bool {
        self.imports.compiled.len() > 0
    }

    /// Addresses of the name server: the cluster IPs of its Service.
    pub(crate) fn name_server(&self) -> Option<&Service> {
        self.service(&self.name_server, false).filter(|it| matches!(it.target, Target::ClusterIps))
    }
}

impl ServiceFacts {
    /// A Service with cluster IPs and nothing else.
    pub fn cluster_ips(
        namespace: &str,
        name: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            kind: ServiceKind::ClusterIps(addresses.into_iter().collect()),
            ports: Vec::new(),
            publish_not_ready: false,
        }
    }
}
