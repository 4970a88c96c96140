//! All objects of a cluster, as one node's switch needs them, kept up to date object by object.
//!
//! Each object is read by itself ([`crate::read`]). What it has then depends on others only through
//! claims: an address, a port of the nodes, a range. The object whose claim is best has it, by an
//! order that does not depend on who came first, so that any order of upserts and deletes leads to
//! the same state. (Three things do depend on the past: a policy that cannot be used stays as it
//! last could, a network namespace stays with the pod that named it first, and of two objects written
//! by hand, without creationTimestamp, the first to come has the address.) A change marks the
//! objects whose claims it decides anew; [`Store::take_changes`] looks at those and nothing else.
//!
//! Used by one thread, off the packet path.

mod changes;
mod claims;
mod derive;
mod journal;
mod local;
mod records;
mod slices;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::config::Config;
use podswitch_core::id::Cookie;
use podswitch_policy::rule::{Namespace, Protocol};
use podswitch_wire::cidr::Cidr;

pub use changes::{Base, Changes, PodChange};
pub use local::PodIdentity;

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

/// See the module's description.
#[derive(Debug)]
pub struct Store {
    node: Option<Arc<str>>,
    options: Options,
    names: Names,
    objects: HashMap<Cookie, Entry>,
    /// Place of the next new object in the order in which they came.
    next: u64,
    /// How many undated objects laid claims.
    arrivals: u64,
    /// Whose an address is: a node's, a pod's or a Service's.
    addresses: Claims<IpAddr>,
    node_ports: Claims<(Protocol, u16)>,
    /// Whose a network namespace is, by node and path.
    netns: Claims<(Arc<str>, PathBuf)>,
    ranges: Ranges,
    namespaces: HashMap<Arc<str>, NamespaceState>,
    /// Nodes by the VNI in their Flannel annotations.
    vnis: BTreeMap<u32, HashSet<Cookie>>,
    /// Nodes with annotations of Flannel.
    flannel_nodes: usize,
    /// Pods with their node's network that do not say their address, by node.
    host_pods: HashMap<Arc<str>, HashSet<Cookie>>,
    slices: SliceIndex,
    /// Pods of this node.
    local: HashMap<Cookie, Arc<PodIdentity>>,
    /// Services that are balanced: how many.
    services: usize,
    /// Ranges of ServiceCIDR objects.
    cidrs: BTreeMap<Cookie, Vec<Cidr>>,
    dirty: Dirty,
    /// Objects of which there is something to say.
    noted: HashSet<Cookie>,
    changes: Changes,
    /// The base of the last changes taken.
    base: Option<Base>,
    journal: Option<Journal>,
}

/// One object.
#[derive(Clone, Debug)]
struct Entry {
    facts: Facts,
    output: Output,
    /// Another object has something that this one claims.
    conflict: bool,
    dirty: bool,
}

/// What is known of an object from the object alone.
#[derive(Clone, Debug)]
struct Facts {
    kind: Kind,
    origin: Option<Source>,
    /// Place in the order in which objects came.
    place: u64,
    content: Content,
    namespace: Option<Arc<str>>,
    rank: Rank,
    findings: Vec<Finding>,
    action: Action,
    identity: Option<Arc<PodIdentity>>,
}

/// A namespace that has an object or is named by objects.
#[derive(Debug, Default)]
struct NamespaceState {
    /// Objects in it.
    members: usize,
    /// Pods and policies among them.
    pods: usize,
    policies: usize,
    place: u64,
    object: Option<Arc<Namespace>>,
    output: Option<Arc<Namespace>>,
}

/// What is to be looked at again.
#[derive(Debug, Default)]
struct Dirty {
    /// Nodes come first: pods with their node's network have its addresses.
    nodes: Vec<Cookie>,
    others: Vec<Cookie>,
    namespaces: Vec<Arc<str>>,
    base: bool,
}

impl Store {
    /// An empty store of the node `node`; without one, from nobody's point of view: no pod is
    /// local.
    pub fn new(node: Option<&str>, options: Options) -> Self {
        Self {
            node: node.map(Arc::from),
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
        }
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Whether there is a Node object for this node that can be used, or no node was named.
    pub fn has_node(&mut self) -> bool {
        self.settle();
        self.node.is_none() || self.local_facts().is_some()
    }

    /// Adds an object, in place of the one of its name if there is one.
    pub fn upsert(&mut self, object: &Object) {
        self.upsert_loaded(&object.0);
    }

    /// As [`upsert`](Self::upsert), of an object that was read from a file.
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
        let place = previous.map_or(self.next, |facts| facts.place);
        let facts = Facts {
            kind: object.kind,
            origin: object.origin.clone(),
            place,
            content,
            namespace,
            rank,
            findings,
            action,
            identity,
        };
        self.next = self.next.max(place + 1);
        let name = match object.kind {
            Kind::Pod => Cookie::new(self.names.share(object.cookie.text())),
            _ => object.cookie.clone(),
        };
        self.put(&name, Some(facts));
    }

    /// The name of an object that is there, as the store has it: a copy of it costs no memory.
    pub fn name(&self, object: &Cookie) -> Option<&Cookie> {
        self.objects.get_key_value(object).map(|(name, _)| name)
    }

    /// Deletes the object of that name (`Kind/namespace/name` or `Kind/name`). It is no error if
    /// there is none.
    pub fn delete(&mut self, object: &Cookie) {
        self.put(object, None);
    }

    /// Deletes every object that `keep` does not want.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Cookie) -> bool) {
        let gone: Vec<_> = self.objects.keys().filter(|name| !keep(name)).cloned().collect();
        gone.iter().for_each(|name| self.delete(name));
    }

    /// Notes where an object is found now that did not change otherwise.
    pub(crate) fn moved(&mut self, object: &Cookie, origin: Source) {
        if let Some(entry) = self.objects.get_mut(object) {
            entry.facts.origin = Some(origin);
        }
    }

    /// Where an object was read, if there is one of that name and it was read from a file.
    pub(crate) fn origin(&self, object: &Cookie) -> Option<&Source> {
        self.objects.get(object)?.facts.origin.as_ref()
    }

    /// Makes an object what `facts` say.
    fn put(&mut self, object: &Cookie, facts: Option<Facts>) {
        let old = self.objects.get(object).map(|entry| &entry.facts);
        if let Some(journal) = &mut self.journal {
            journal.keep(object, old);
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
        if let Some(old) = old.cloned() {
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

    /// Takes over what is said of an object whose content did not change.
    fn refresh_findings(&mut self, object: &Cookie, facts: Option<Facts>) {
        let (Some(entry), Some(facts)) = (self.objects.get_mut(object), facts) else { return };
        entry.facts = facts;
        if entry.facts.findings.is_empty() && !entry.conflict {
            self.noted.remove(object);
        } else {
            self.noted.insert(object.clone());
        }
    }

    /// Has an object looked at again.
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

    /// Enters what an object claims and is counted by.
    fn assert(&mut self, object: &Cookie, facts: &Facts) {
        if let Some(name) = &facts.namespace {
            self.count(name, facts, 1);
        }
        let rank = facts.rank;
        match &facts.content {
            Content::Nothing | Content::Policy(_) | Content::ClusterPolicy(_) => {}
            Content::Namespace(namespace) => {
                let state = self.namespaces.entry(namespace.name.clone()).or_default();
                state.object = Some(namespace.clone());
                state.place = facts.place;
                self.dirty.namespaces.push(namespace.name.clone());
            }
            Content::Node(node) => {
                for (address, _) in &node.addresses {
                    let loser = self.addresses.add(*address, rank, object);
                    self.mark_all(loser);
                }
                for (range, _) in &node.ranges {
                    self.ranges.add(*range, rank, object);
                    self.mark_all(self.ranges.others(*range, object));
                }
                self.flannel_nodes += usize::from(node.flannel.found);
                if let Some(vni) = node.flannel.vni {
                    self.vnis.entry(vni).or_default().insert(object.clone());
                }
                self.dirty.base = true;
            }
            Content::Pod(pod) => {
                let endpoint = &pod.endpoint;
                if endpoint.workload.host_network {
                    if endpoint.workload.addresses.is_empty() {
                        let pods = self.host_pods.entry(endpoint.node.clone()).or_default();
                        pods.insert(object.clone());
                    }
                    return;
                }
                for address in &endpoint.workload.addresses {
                    let loser = self.addresses.add(*address, rank, object);
                    self.mark_all(loser);
                    self.mark_all(self.slices.at(*address));
                }
                if let Some(interface) = pod.interface() {
                    let key = (endpoint.node.clone(), interface.netns.clone());
                    self.netns.add_last(key, object);
                }
            }
            Content::EndedPod(addresses) => {
                self.slices.ended(addresses, 1);
                self.mark_slices(object, addresses);
            }
            Content::Service(service) => {
                for address in &service.service.cluster_ips {
                    let loser = self.addresses.add(*address, rank, object);
                    self.mark_all(loser);
                }
                for (_, protocol, port) in service.node_ports() {
                    let loser = self.node_ports.add((protocol, port), rank, object);
                    self.mark_all(loser);
                }
                self.services += usize::from(service.service.is_balanced());
            }
            Content::Slice(slice) => self.slices.add(object, slice),
            Content::ServiceCidr(ranges) => {
                self.cidrs.insert(object.clone(), ranges.clone());
                self.dirty.base = true;
            }
        }
    }

    /// Takes back what [`assert`](Self::assert) entered.
    fn retract(&mut self, object: &Cookie, facts: &Facts) {
        if let Some(name) = &facts.namespace {
            self.count(name, facts, -1);
        }
        match &facts.content {
            Content::Nothing | Content::Policy(_) | Content::ClusterPolicy(_) => {}
            Content::Namespace(namespace) => {
                if let Some(state) = self.namespaces.get_mut(&namespace.name) {
                    state.object = None;
                }
                self.dirty.namespaces.push(namespace.name.clone());
            }
            Content::Node(node) => {
                for (address, _) in &node.addresses {
                    let winner = self.addresses.remove(address, object);
                    self.mark_all(winner);
                }
                for (range, _) in &node.ranges {
                    self.ranges.remove(*range, object);
                    self.mark_all(self.ranges.others(*range, object));
                }
                self.flannel_nodes -= usize::from(node.flannel.found);
                if let Some(nodes) = node.flannel.vni.and_then(|vni| self.vnis.get_mut(&vni)) {
                    nodes.remove(object);
                }
                self.vnis.retain(|_, nodes| !nodes.is_empty());
                self.dirty.base = true;
            }
            Content::Pod(pod) => {
                let endpoint = &pod.endpoint;
                if endpoint.workload.host_network {
                    if let Some(pods) = self.host_pods.get_mut(&endpoint.node) {
                        pods.remove(object);
                        if pods.is_empty() {
                            self.host_pods.remove(&endpoint.node);
                        }
                    }
                    return;
                }
                for address in &endpoint.workload.addresses {
                    let winner = self.addresses.remove(address, object);
                    self.mark_all(winner);
                    self.mark_all(self.slices.at(*address));
                }
                if let Some(interface) = pod.interface() {
                    let key = (endpoint.node.clone(), interface.netns.clone());
                    let winner = self.netns.remove(&key, object);
                    self.mark_all(winner);
                }
            }
            Content::EndedPod(addresses) => {
                self.slices.ended(addresses, -1);
                self.mark_slices(object, addresses);
            }
            Content::Service(service) => {
                for address in &service.service.cluster_ips {
                    let winner = self.addresses.remove(address, object);
                    self.mark_all(winner);
                }
                for (_, protocol, port) in service.node_ports() {
                    let winner = self.node_ports.remove(&(protocol, port), object);
                    self.mark_all(winner);
                }
                self.services -= usize::from(service.service.is_balanced());
            }
            Content::Slice(slice) => self.slices.remove(object, slice),
            Content::ServiceCidr(_) => {
                self.cidrs.remove(object);
                self.dirty.base = true;
            }
        }
    }

    /// Counts an object in its namespace, or takes it out.
    fn count(&mut self, name: &Arc<str>, facts: &Facts, by: isize) {
        let place = self.next;
        let state = self
            .namespaces
            .entry(name.clone())
            .or_insert_with(|| NamespaceState { place, ..NamespaceState::default() });
        let add = |count: &mut usize| *count = count.saturating_add_signed(by);
        let before = state.members;
        add(&mut state.members);
        if (before == 0) != (state.members == 0) {
            self.dirty.namespaces.push(name.clone());
        }
        match facts.kind {
            Kind::Pod => add(&mut state.pods),
            Kind::NetworkPolicy => add(&mut state.policies),
            _ => {}
        }
    }

    /// Has the slices looked at again that name a pod that has ended, or no more.
    fn mark_slices(&mut self, pod: &Cookie, addresses: &[IpAddr]) {
        self.mark_all(self.slices.of(pod));
        for address in addresses {
            self.mark_all(self.slices.at(*address));
        }
    }

    /// Looks at everything that is marked.
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

    /// What Flannel's annotations say of the overlay, if any node has them: the VNI of this node,
    /// else that of most nodes.
    fn overlay(&self) -> Option<Overlay> {
        if self.flannel_nodes == 0 {
            return None;
        }
        let own = self.local_facts().and_then(|node| node.flannel.vni);
        let most =
            || self.vnis.iter().max_by_key(|(vni, nodes)| (nodes.len(), std::cmp::Reverse(*vni)));
        Some(Overlay { vni: own.or_else(|| most().map(|(vni, _)| *vni)) })
    }

    /// The whole state. Costs what exists; for changes see [`take_changes`](Self::take_changes).
    pub fn compiled(&mut self) -> Compiled {
        self.settle();
        let mut entries: Vec<&Entry> =
            self.objects.values().filter(|entry| entry.output != Output::Nothing).collect();
        entries.sort_unstable_by_key(|entry| entry.facts.place);
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
        namespaces.sort_unstable_by_key(|state| (state.object.is_none(), state.place));
        config.namespaces = namespaces.iter().filter_map(|state| state.output.clone()).collect();
        Compiled {
            config,
            pods,
            flannel: self.overlay(),
            has_node: self.node.is_none() || self.local_facts().is_some(),
            records: self.records(),
        }
    }
}
