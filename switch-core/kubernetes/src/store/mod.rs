//! All objects of a cluster that one node's switch needs, updated object by object.
//!
//! Each object is read independently ([`crate::read`]). It depends on other objects only through
//! claims: an address, a node port, a range. The claimant of the highest rank wins. Rank does not
//! depend on the order of arrival, so any order of upserts and deletes leads to the same state,
//! with three exceptions: an unusable policy keeps its last valid version, a network namespace
//! stays with the pod that named it first, and of two objects without creationTimestamp the first
//! to arrive keeps an address. A change marks the objects whose claims it affects;
//! [`Store::take_changes`] re-evaluates only those.
//!
//! Used by one thread, off the packet path.

mod assertions;
mod changes;
mod claims;
mod derive;
mod journal;
mod local;
mod records;
mod slices;
mod tally;
mod zone;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::config::Config;
use podswitch_core::id::Cookie;
use podswitch_dns::facts::Facts as NameFacts;
use podswitch_policy::rule::{Namespace, Protocol};
use podswitch_wire::cidr::Cidr;

pub use changes::{Base, Changes, PodChange};
pub use local::PodIdentity;
pub use tally::{KindChanges, ObjectChanges};

use crate::object::{Kind, Loaded, Object};
use crate::options::Options;
use crate::read::names::Names;
use crate::read::{self, Content, Context, Rank, Reading, namespace};
use crate::report::{Action, Finding, Source};
use crate::state::{Compiled, Overlay};
use claims::{Claims, Ranges};
use derive::Output;
use journal::Journal;
use slices::SliceIndex;
use tally::Touched;
use zone::NameZone;

/// See the module's description.
#[derive(Debug)]
pub struct Store {
    node: Option<Arc<str>>,
    options: Options,
    names: Names,
    objects: HashMap<Cookie, Entry>,
    /// Sequence number of the next new object.
    next: u64,
    /// Number of claims of objects without creationTimestamp.
    arrivals: u64,
    /// Owners of addresses: nodes, pods and Services.
    addresses: Claims<IpAddr>,
    node_ports: Claims<(Protocol, u16)>,
    /// Owners of network namespaces, by node and path.
    netns: Claims<(Arc<str>, PathBuf)>,
    ranges: Ranges,
    namespaces: HashMap<Arc<str>, NamespaceState>,
    /// Nodes by the VNI in their Flannel annotations.
    vnis: BTreeMap<u32, HashSet<Cookie>>,
    /// Number of nodes with Flannel annotations.
    flannel_nodes: usize,
    /// Pods with hostNetwork and without addresses of their own, by node.
    host_pods: HashMap<Arc<str>, HashSet<Cookie>>,
    slices: SliceIndex,
    /// Pods of this node.
    local: HashMap<Cookie, Arc<PodIdentity>>,
    /// Number of load-balanced Services.
    services: usize,
    /// Ranges of ServiceCIDR objects.
    cidrs: BTreeMap<Cookie, Vec<Cidr>>,
    dirty: Dirty,
    /// Objects with findings.
    noted: HashSet<Cookie>,
    changes: Changes,
    /// The settings at the last call of [`take_changes`](Self::take_changes).
    base: Option<Base>,
    journal: Option<Journal>,
    /// Objects that changed since [`take_object_changes`](Self::take_object_changes). `None`: that
    /// was never called.
    touched: Option<Touched>,
    /// The names of the cluster, if the switch answers for them.
    zone: Option<NameZone>,
}

/// One object.
#[derive(Clone, Debug)]
struct Entry {
    facts: Facts,
    output: Output,
    /// Another object won something that this one claims.
    conflict: bool,
    dirty: bool,
}

/// The content of an object.
#[derive(Clone, Debug)]
struct Facts {
    kind: Kind,
    origin: Option<Source>,
    /// Sequence number of arrival.
    sequence: u64,
    content: Content,
    namespace: Option<Arc<str>>,
    rank: Rank,
    findings: Vec<Finding>,
    action: Action,
    identity: Option<Arc<PodIdentity>>,
    /// What it says of names, if the switch answers for them.
    names: Option<NameFacts>,
}

/// A namespace that has an object or contains objects.
#[derive(Debug, Default)]
struct NamespaceState {
    /// Number of objects in it.
    members: usize,
    /// Number of pods and policies among them.
    pods: usize,
    policies: usize,
    sequence: u64,
    object: Option<Arc<Namespace>>,
    output: Option<Arc<Namespace>>,
}

/// Objects to be re-evaluated.
#[derive(Debug, Default)]
struct Dirty {
    /// Nodes come first, because pods with hostNetwork have their addresses.
    nodes: Vec<Cookie>,
    others: Vec<Cookie>,
    namespaces: Vec<Arc<str>>,
    base: bool,
}

impl Store {
    /// An empty store of the node `node`; without a node no pod is local.
    pub fn new(node: Option<&str>, options: Options) -> Self {
        Self {
            node: node.map(Arc::from),
            zone: options.names.as_ref().and_then(NameZone::new),
            options,
            names: Names::default(),
            objects: HashMap::new(),
            next: 0,
            arrivals: 0,
            addresses: Claims::default(),
            node_ports: Claims::default(),
            netns: Claims::default(),
            ranges: Ranges::default(),
            namespaces: HashMap::new(),
            vnis: BTreeMap::new(),
            flannel_nodes: 0,
            host_pods: HashMap::new(),
            slices: SliceIndex::default(),
            local: HashMap::new(),
            services: 0,
            cidrs: BTreeMap::new(),
            dirty: Dirty { base: true, ..Dirty::default() },
            noted: HashSet::new(),
            changes: Changes::default(),
            base: None,
            journal: None,
            touched: None,
        }
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Whether there is a usable Node object for this node, or no node was named.
    pub fn has_node(&mut self) -> bool {
        self.settle();
        self.node.is_none() || self.local_facts().is_some()
    }

    /// Upserts an object.
    pub fn upsert(&mut self, object: &Object) {
        self.upsert_loaded(&object.0);
    }

    /// As [`upsert`](Self::upsert), for an object read from a file.
    pub(crate) fn upsert_loaded(&mut self, object: &Loaded) {
        let previous = self.objects.get(&object.cookie).map(|entry| &entry.facts);
        let last_good = previous.filter(|facts| facts.action != Action::Closed);
        let last_good = last_good
            .map(|facts| &facts.content)
            .filter(|content| matches!(content, Content::Policy(_) | Content::ClusterPolicy(_)));
        let mut cx = Context { names: &mut self.names, options: &self.options };
        let Reading { content, namespace, mut rank, findings, action } =
            read::read(&mut cx, object, last_good);
        let identity = PodIdentity::of(&mut cx, object, self.node.as_deref(), &content);
        if let Content::Node(node) = &content {
            rank.this_node = self.node.as_ref() == Some(&node.name);
        }
        if rank.is_undated() {
            let same = previous
                .filter(|facts| facts.rank.is_undated() && facts.content.claims_same(&content));
            self.arrivals += u64::from(same.is_none());
            rank.set_arrival(same.map_or(self.arrivals, |facts| facts.rank.arrival()));
        }
        let zone = self.zone.as_ref();
        let names = zone.and_then(|zone| {
            crate::dns::of_content(object, &content).filter(|facts| zone.wants(facts))
        });
        let sequence = previous.map_or(self.next, |facts| facts.sequence);
        let facts = Facts {
            kind: object.kind,
            origin: object.origin.clone(),
            sequence,
            content,
            namespace,
            rank,
            findings,
            action,
            identity,
            names,
        };
        self.next = self.next.max(sequence + 1);
        let name = match object.kind {
            Kind::Pod => Cookie::new(self.names.share(object.cookie.text())),
            _ => object.cookie.clone(),
        };
        self.put(&name, Some(facts));
    }

    /// Names of the objects of a kind. The cost is proportional to the number of all objects.
    pub fn names(&self, kind: Kind) -> impl Iterator<Item = &Cookie> {
        let of_kind = move |(_, entry): &(&Cookie, &Entry)| entry.facts.kind == kind;
        self.objects.iter().filter(of_kind).map(|(name, _)| name)
    }

    /// Deletes the object of that name (`Kind/namespace/name` or `Kind/name`). Deleting an absent
    /// object is a no-op.
    pub fn delete(&mut self, object: &Cookie) {
        self.put(object, None);
    }

    /// Deletes every object for which `keep` returns false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Cookie) -> bool) {
        let gone: Vec<_> = self.objects.keys().filter(|name| !keep(name)).cloned().collect();
        gone.iter().for_each(|name| self.delete(name));
    }

    /// Updates the source of an object that is otherwise unchanged.
    pub(crate) fn moved(&mut self, object: &Cookie, origin: Source) {
        if let Some(entry) = self.objects.get_mut(object) {
            entry.facts.origin = Some(origin);
        }
    }

    /// The source of an object, if it exists and was read from a file.
    pub(crate) fn origin(&self, object: &Cookie) -> Option<&Source> {
        self.objects.get(object)?.facts.origin.as_ref()
    }

    /// Sets the facts of an object.
    fn put(&mut self, object: &Cookie, facts: Option<Facts>) {
        let old = self.objects.get(object).map(|entry| &entry.facts);
        if let Some(journal) = &mut self.journal {
            journal.keep(object, old);
        }
        if let Some(zone) = &mut self.zone {
            let names = |facts: Option<&Facts>| facts.and_then(|facts| facts.names.clone());
            zone.change(names(old).as_ref(), names(facts.as_ref()).as_ref());
        }
        match facts.as_ref().and_then(|facts| facts.identity.clone()) {
            Some(identity) => drop(self.local.insert(object.clone(), identity)),
            None => drop(self.local.remove(object)),
        }
        if let (Some(old), Some(new)) = (old, &facts)
            && (&old.content, &old.namespace, old.rank) == (&new.content, &new.namespace, new.rank)
        {
            self.refresh_findings(object, facts);
            return;
        }
        let old = old.cloned();
        if let Some(kind) = old.as_ref().or(facts.as_ref()).map(|facts| facts.kind) {
            self.touch(object, kind, old.is_some());
        }
        if let Some(old) = old {
            self.retract(object, &old);
        }
        match facts {
            Some(facts) => {
                self.assert(object, &facts);
                match self.objects.get_mut(object) {
                    Some(entry) => entry.facts = facts,
                    None => {
                        let entry =
                            Entry { facts, output: Output::Nothing, conflict: false, dirty: false };
                        self.objects.insert(object.clone(), entry);
                    }
                }
                self.mark(object);
            }
            None => {
                if let Some(entry) = self.objects.remove(object) {
                    self.noted.remove(object);
                    self.emit(object, entry.output, Output::Nothing);
                }
            }
        }
    }

    /// Updates the findings of an object whose content did not change.
    fn refresh_findings(&mut self, object: &Cookie, facts: Option<Facts>) {
        let (Some(entry), Some(facts)) = (self.objects.get_mut(object), facts) else { return };
        entry.facts = facts;
        if entry.facts.findings.is_empty() && !entry.conflict {
            self.noted.remove(object);
        } else {
            self.noted.insert(object.clone());
        }
    }

    /// Marks an object for evaluation.
    fn mark(&mut self, object: &Cookie) {
        let Some(entry) = self.objects.get_mut(object) else { return };
        if std::mem::replace(&mut entry.dirty, true) {
            return;
        }
        let list = match entry.facts.kind {
            Kind::Node => &mut self.dirty.nodes,
            _ => &mut self.dirty.others,
        };
        list.push(object.clone());
    }

    fn mark_all(&mut self, objects: impl IntoIterator<Item = Cookie>) {
        objects.into_iter().for_each(|object| self.mark(&object));
    }

    /// Evaluates all marked objects.
    fn settle(&mut self) {
        for object in std::mem::take(&mut self.dirty.nodes) {
            self.refresh(&object);
        }
        for object in std::mem::take(&mut self.dirty.others) {
            self.refresh(&object);
        }
        for name in std::mem::take(&mut self.dirty.namespaces) {
            self.refresh_namespace(&name);
        }
    }

    fn refresh(&mut self, object: &Cookie) {
        let Some(entry) = self.objects.get(object).filter(|entry| entry.dirty) else { return };
        let (output, conflicts) = self.derive(object, &entry.facts);
        let Some(entry) = self.objects.get_mut(object) else { return };
        entry.dirty = false;
        entry.conflict = !conflicts.is_empty();
        if entry.facts.findings.is_empty() && !entry.conflict {
            self.noted.remove(object);
        } else {
            self.noted.insert(object.clone());
        }
        if entry.output != output {
            let old = std::mem::replace(&mut entry.output, output.clone());
            self.emit(object, old, output);
        }
    }

    fn refresh_namespace(&mut self, name: &Arc<str>) {
        let Some(state) = self.namespaces.get_mut(name) else { return };
        let output = match &state.object {
            Some(object) => Some(object.clone()),
            None if state.members > 0 => Some(namespace::without_object(&mut self.names, name)),
            None => None,
        };
        let changed = state.output != output;
        state.output.clone_from(&output);
        if output.is_none() {
            self.namespaces.remove(name);
        }
        if changed {
            self.changes.namespace(name, output);
        }
    }

    /// The overlay according to Flannel's annotations, if any node has them: the VNI of this node,
    /// otherwise that of most nodes.
    fn overlay(&self) -> Option<Overlay> {
        if self.flannel_nodes == 0 {
            return None;
        }
        let own = self.local_facts().and_then(|node| node.flannel.vni);
        let most =
            || self.vnis.iter().max_by_key(|(vni, nodes)| (nodes.len(), std::cmp::Reverse(*vni)));
        Some(Overlay { vni: own.or_else(|| most().map(|(vni, _)| *vni)) })
    }

    /// The complete state, at a cost proportional to its size; for changes see
    /// [`take_changes`](Self::take_changes).
    pub fn compiled(&mut self) -> Compiled {
        self.settle();
        let mut entries: Vec<&Entry> =
            self.objects.values().filter(|entry| entry.output != Output::Nothing).collect();
        entries.sort_unstable_by_key(|entry| entry.facts.sequence);
        let mut config = Config {
            service_cidrs: self.service_cidrs(),
            allowed_external_ips: self.options.allowed_external_ips.clone(),
            node: self.local_node().unwrap_or_else(|| self.nameless_node()),
            ..Config::default()
        };
        let mut pods = Vec::new();
        for entry in entries {
            match &entry.output {
                Output::Nothing => {}
                Output::Node(node) if Some(&node.name) == self.node.as_ref() => {}
                Output::Node(node) => config.nodes.push(node.clone()),
                Output::Pod(pod) => {
                    if let Some(local) = &pod.local {
                        let endpoint = config.endpoints.len();
                        pods.push(crate::state::LocalPod { endpoint, ..(**local).clone() });
                    }
                    if let Some(ports) = &pod.host_ports {
                        config.host_ports.push((pod.endpoint.cookie.clone(), ports.clone()));
                    }
                    config.endpoints.push(pod.endpoint.clone());
                }
                Output::Policy(policy) => config.policies.push(policy.clone()),
                Output::ClusterPolicy(policy) => config.cluster_policies.push(policy.clone()),
                Output::Service(service) => config.services.push(service.clone()),
                Output::Slice(slice) => config.slices.push(slice.clone()),
            }
        }
        let mut namespaces: Vec<_> =
            self.namespaces.values().filter(|state| state.output.is_some()).collect();
        namespaces.sort_unstable_by_key(|state| (state.object.is_none(), state.sequence));
        config.slices.extend(self.resolver_slices());
        config.namespaces = namespaces.iter().filter_map(|state| state.output.clone()).collect();
        config.zone = self.zone();
        Compiled {
            config,
            pods,
            flannel: self.overlay(),
            has_node: self.node.is_none() || self.local_facts().is_some(),
            records: self.records(),
        }
    }
}
