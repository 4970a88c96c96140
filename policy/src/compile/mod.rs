//! Compiles objects to the [`PolicyTable`], change by change.
//!
//! Used by the control plane on its own thread, never on a packet core. Objects are upserted and
//! deleted one by one, in any order, and [`PolicyCompiler::publish`] makes a table of the objects
//! known at that time. Unchanged parts are shared with earlier tables. Only the parts that an
//! object affects are compiled again:
//!
//! * a pod that appears, disappears or gets labels that other pods have: its addresses;
//! * labels that no pod had: one identity, the partitions whose selectors select it, its stages;
//! * a policy: its selectors, and the stages of the identities that it selects;
//! * a namespace's labels: the selectors by namespace label, for the identities in it.
//!
//! ```
//! use std::sync::Arc;
//!
//! use podswitch_policy::compile::PolicyCompiler;
//! use podswitch_policy::rule::{NetworkPolicy, Protocol, Selector, Workload};
//! use podswitch_policy::verdict::Traffic;
//!
//! let mut compiler = PolicyCompiler::new();
//! let pod = Workload {
//!     namespace: "shop".into(),
//!     name: "db".into(),
//!     labels: [("app", "db")].into_iter().collect(),
//!     addresses: vec!["10.0.0.1".parse()?],
//!     ports: vec![],
//!     host_network: false,
//! };
//! compiler.upsert_pod(&"Pod/shop/db".into(), &pod, &"node-1".into());
//! compiler.upsert_network_policy(&Arc::new(NetworkPolicy {
//!     cookie: "NetworkPolicy/shop/closed".into(),
//!     namespace: "shop".into(),
//!     name: "closed".into(),
//!     pods: Selector::everything(),
//!     ingress: Some(vec![]),
//!     egress: None,
//! }));
//! let table = compiler.publish();
//!
//! let (client, db) = (table.party("192.0.2.1".parse()?), table.party("10.0.0.1".parse()?));
//! let verdict = table.verdict(&client, &db, Traffic::to_port(Protocol::Tcp, 5432));
//! assert!(!verdict.allow());
//! # Ok::<(), std::net::AddrParseError>(())
//! ```
//!
//! The numbers of identities, selectors, partitions and stages are reused only when no compiled
//! part refers to them any more (threat T-L5).

mod identities;
mod partitions;
mod policies;
mod ports;
mod publish;
mod selectors;
mod slab;
mod stages;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::affected::AffectedAddresses;
use crate::rule::{ClusterNetworkPolicy, NetworkPolicy};
use crate::table::{IdentityInfo, PolicyInfo, PolicyObject, PolicyTable, StageSet};
use partitions::{Identities, Partitions};
use policies::{Lowered, PolicyState};
use selectors::{Scope, Selectors};
use slab::Slab;
use stages::{StageKey, StageState};
use state::{Claims, NamespaceState, NodeState, PodState};

pub use publish::Footprint;

/// Keeps the desired objects and compiles them to tables.
#[derive(Debug, Default)]
pub struct PolicyCompiler {
    /// The next table to be published.
    table: PolicyTable,
    namespaces: HashMap<Arc<str>, NamespaceState>,
    pods: HashMap<Arc<str>, PodState>,
    pod_numbers: Slab<()>,
    nodes: HashMap<Arc<str>, NodeState>,
    node_numbers: Slab<()>,
    claims: HashMap<IpAddr, Claims>,
    identities: Identities,
    identity_ids: HashMap<Arc<IdentityInfo>, u32>,
    selectors: Selectors,
    policies: Slab<PolicyState>,
    policy_ids: HashMap<Arc<str>, u32>,
    generation: u64,
    counters: CounterBlocks,
    partitions: Partitions,
    stages: Slab<StageState>,
    stage_ids: HashMap<Arc<StageKey>, u32>,
    /// Identities, and the addresses that have them.
    holders: BTreeSet<(u32, IpAddr)>,
    dirty: Dirty,
    affected: AffectedAddresses,
}

/// Changes since the last publication.
#[derive(Debug, Default)]
struct Dirty {
    /// Identities to which other policies may apply now.
    identities: BTreeSet<u32>,
    /// Identities that appeared, disappeared, or are selected by other selectors now.
    changed: BTreeSet<u32>,
    /// Partitions by selectors whose members changed.
    partitions: HashSet<u32>,
    /// Some identity appeared or disappeared.
    population: bool,
    /// Identities that published stages now distinguish by other selectors.
    peers: BTreeSet<u32>,
    /// Identities that disappeared, with the stages that applied to them.
    gone: Vec<(u32, StageSet)>,
}

impl PolicyCompiler {
    /// A compiler without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a NetworkPolicy.
    pub fn upsert_network_policy(&mut self, policy: &Arc<NetworkPolicy>) {
        let lowered = || policies::lower_network(policy);
        self.upsert(PolicyObject::Network(Arc::clone(policy)), lowered);
    }

    /// Adds or replaces a ClusterNetworkPolicy.
    pub fn upsert_cluster_policy(&mut self, policy: &Arc<ClusterNetworkPolicy>) {
        let lowered = || policies::lower_cluster(policy);
        self.upsert(PolicyObject::Cluster(Arc::clone(policy)), lowered);
    }

    /// Removes a policy of either kind.
    pub fn remove_policy(&mut self, cookie: &str) {
        let Some(id) = self.policy_ids.remove(cookie) else { return };
        self.forget_subject(id);
        if let Some(state) = self.policies.remove(id) {
            self.release_selectors(&state);
            let count = PolicyInfo::counter_count(&state.info.object);
            self.counters.release(state.info.first_counter, count);
        }
        self.table.policies.set(id, None);
    }

    fn upsert(&mut self, object: PolicyObject, lower: impl FnOnce() -> Lowered) {
        let known = self.policy_ids.get(object.cookie()).copied();
        if let Some(id) = known
            && self.policies[id].info.object == object
        {
            return;
        }
        let lowered = lower();
        let subject = self.acquire_selector(lowered.subject);
        let rules = lowered.rules.map(|rules| {
            let rules = rules?.into_iter();
            Some(rules.map(|rule| rule.numbered(|key| self.acquire_selector(key))).collect())
        });
        self.generation += 1;
        let first_counter = self.counter_block(known, &object);
        let cookie = Arc::clone(object.cookie());
        let info = Arc::new(PolicyInfo { object, first_counter });
        let generation = self.generation;
        let state = PolicyState { info: Arc::clone(&info), generation, subject, rules };
        let id = match known {
            Some(id) => {
                self.forget_subject(id);
                let old = core::mem::replace(&mut self.policies[id], state);
                self.release_selectors(&old);
                id
            }
            None => self.policies.insert(state),
        };
        self.policy_ids.insert(cookie, id);
        self.table.policies.set(id, Some(info));
        self.selectors.set_subject(subject, id, true);
        self.dirty.identities.extend(self.selectors.get(subject).members.iter());
    }

    /// The counters of a policy: its previous block, if the size is the same.
    fn counter_block(&mut self, known: Option<u32>, object: &PolicyObject) -> u32 {
        let count = PolicyInfo::counter_count(object);
        if let Some(id) = known {
            let info = &self.policies[id].info;
            let had = PolicyInfo::counter_count(&info.object);
            if had == count {
                return info.first_counter;
            }
            self.counters.release(info.first_counter, had);
        }
        let first = self.counters.acquire(count);
        self.table.counters = self.counters.end;
        first
    }

    fn forget_subject(&mut self, id: u32) {
        let subject = self.policies[id].subject;
        self.selectors.set_subject(subject, id, false);
        self.dirty.identities.extend(self.selectors.get(subject).members.iter());
    }

    fn release_selectors(&mut self, state: &PolicyState) {
        state.selectors().for_each(|selector| self.selectors.release(selector));
    }

    fn acquire_selector(&mut self, key: selectors::SelectorKey) -> u32 {
        let (id, is_new) = self.selectors.acquire(key);
        if is_new {
            for identity in self.in_scope(&self.selectors.scope(id)) {
                self.update_members(identity, &[id]);
            }
        }
        id
    }

    /// The identities for which a selector must be evaluated.
    fn in_scope(&self, scope: &Scope) -> Vec<u32> {
        let of_kind = |nodes: bool| {
            let all = self.identities.iter();
            all.filter(move |(_, s)| matches!(*s.info, IdentityInfo::Nodes { .. }) == nodes)
        };
        match scope {
            Scope::Namespace(name) => {
                let state = self.namespaces.get(name);
                state.map_or_else(Vec::new, |s| s.identities.iter().copied().collect())
            }
            Scope::Pods => of_kind(false).map(|(id, _)| id).collect(),
            Scope::Nodes => of_kind(true).map(|(id, _)| id).collect(),
        }
    }
}

/// Numbers of counters, allocated in blocks; a freed block is reused for one of the same size.
/// Number 0 counts connections that no policy decided.
#[derive(Debug)]
struct CounterBlocks {
    end: u32,
    free: BTreeMap<u32, Vec<u32>>,
}

impl Default for CounterBlocks {
    fn default() -> Self {
        Self { end: 1, free: BTreeMap::new() }
    }
}

impl CounterBlocks {
    fn acquire(&mut self, count: u32) -> u32 {
        if let Some(first) = self.free.get_mut(&count).and_then(Vec::pop) {
            return first;
        }
        let first = self.end;
        self.end += count;
        first
    }

    fn release(&mut self, first: u32, count: u32) {
        self.free.entry(count).or_default().push(first);
    }
}
