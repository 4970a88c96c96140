//! Changes of single objects, through the same door as whole configurations: the same checks, and
//! nothing half applied, at the cost of what changed.

use std::hash::Hash;
use std::mem::take;
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_policy::rule::{ClusterNetworkPolicy, Namespace, NetworkPolicy};
use podswitch_policy::service::model::{EndpointSlice, Service, ServiceName};

use super::policies::{Difference, Step};
use super::services;
use crate::config::{Config, Endpoint, RemoteNode};
use crate::id::Cookie;

/// One object that is to be as given, in place of the one of its name if there is one; or that is
/// to be no more. What is to go and is not there is gone already.
#[derive(Clone, Debug)]
pub enum Change {
    /// A pod.
    Pod(Arc<Endpoint>),
    /// No pod of this name any more.
    PodGone(Cookie),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// No namespace of this name any more.
    NamespaceGone(Arc<str>),
    /// Another node.
    Node(Arc<RemoteNode>),
    /// No node of this name any more.
    NodeGone(Arc<str>),
    /// A NetworkPolicy.
    Policy(Arc<NetworkPolicy>),
    /// No NetworkPolicy of this name any more.
    PolicyGone(Arc<str>),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(Arc<ClusterNetworkPolicy>),
    /// No ClusterNetworkPolicy of this name any more.
    ClusterPolicyGone(Arc<str>),
    /// A Service.
    Service(Arc<Service>),
    /// No Service of this name any more.
    ServiceGone(ServiceName),
    /// An endpoint slice.
    Slice(Arc<EndpointSlice>),
    /// No slice of this namespace and name any more.
    SliceGone(Arc<str>, Arc<str>),
}

type SliceName = (Arc<str>, Arc<str>);

/// What is wanted of one kind of objects: by name, the last word counts.
#[derive(Debug)]
struct Wanted<K, T>(HashMap<K, Option<Arc<T>>>);

impl<K, T> Default for Wanted<K, T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

/// Where the objects of one kind stand in their list.
#[derive(Debug)]
struct Places<K>(HashMap<K, usize>);

impl<K: Eq + Hash + Clone> Places<K> {
    fn of<T>(list: &[Arc<T>], key: impl Fn(&T) -> K) -> Self {
        Self(list.iter().enumerate().map(|(at, object)| (key(object), at)).collect())
    }

    fn difference<'a, T: PartialEq>(
        &self,
        list: &'a [Arc<T>],
        wanted: &'a Wanted<K, T>,
    ) -> Difference<'a, T> {
        let mut difference = Difference::none();
        for (key, object) in &wanted.0 {
            let before = self.0.get(key).map(|&at| &list[at]);
            match object {
                Some(object) => difference.take(before, object),
                None => difference.removed.extend(before),
            }
        }
        difference
    }

    fn settle<T>(&mut self, list: &mut Vec<Arc<T>>, wanted: Wanted<K, T>, key: impl Fn(&T) -> K) {
        for (name, object) in wanted.0 {
            match (object, self.0.get(&name).copied()) {
                (Some(object), Some(at)) => list[at] = object,
                (Some(object), None) => {
                    self.0.insert(name, list.len());
                    list.push(object);
                }
                (None, Some(at)) => {
                    self.0.remove(&name);
                    list.swap_remove(at);
                    if let Some(moved) = list.get(at) {
                        self.0.insert(key(moved), at);
                    }
                }
                (None, None) => {}
            }
        }
    }
}

/// Changes, sorted by kind.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pods: Wanted<Cookie, Endpoint>,
    namespaces: Wanted<Arc<str>, Namespace>,
    nodes: Wanted<Arc<str>, RemoteNode>,
    policies: Wanted<Arc<str>, NetworkPolicy>,
    cluster_policies: Wanted<Arc<str>, ClusterNetworkPolicy>,
    services: Wanted<ServiceName, Service>,
    slices: Wanted<SliceName, EndpointSlice>,
}

impl FromIterator<Change> for Delta {
    fn from_iter<I: IntoIterator<Item = Change>>(changes: I) -> Self {
        let mut delta = Self::default();
        for change in changes {
            delta.add(change);
        }
        delta
    }
}

impl Delta {
    fn add(&mut self, change: Change) {
        match change {
            Change::Pod(o) => drop(self.pods.0.insert(o.cookie.clone(), Some(o))),
            Change::PodGone(name) => drop(self.pods.0.insert(name, None)),
            Change::Namespace(o) => drop(self.namespaces.0.insert(o.name.clone(), Some(o))),
            Change::NamespaceGone(name) => drop(self.namespaces.0.insert(name, None)),
            Change::Node(o) => drop(self.nodes.0.insert(o.name.clone(), Some(o))),
            Change::NodeGone(name) => drop(self.nodes.0.insert(name, None)),
            Change::Policy(o) => drop(self.policies.0.insert(o.cookie.clone(), Some(o))),
            Change::PolicyGone(name) => drop(self.policies.0.insert(name, None)),
            Change::ClusterPolicy(o) => {
                drop(self.cluster_policies.0.insert(o.cookie.clone(), Some(o)));
            }
            Change::ClusterPolicyGone(name) => drop(self.cluster_policies.0.insert(name, None)),
            Change::Service(o) => drop(self.services.0.insert(o.name.clone(), Some(o))),
            Change::ServiceGone(name) => drop(self.services.0.insert(name, None)),
            Change::Slice(o) => drop(self.slices.0.insert(slice_name(&o), Some(o))),
            Change::SliceGone(namespace, name) => {
                drop(self.slices.0.insert((namespace, name), None));
            }
        }
    }
}

fn slice_name(slice: &EndpointSlice) -> SliceName {
    (slice.namespace.clone(), slice.name.clone())
}

/// Where every object of a configuration stands.
#[derive(Debug)]
pub(super) struct Index {
    pods: Places<Cookie>,
    namespaces: Places<Arc<str>>,
    nodes: Places<Arc<str>>,
    policies: Places<Arc<str>>,
    cluster_policies: Places<Arc<str>>,
    services: Places<ServiceName>,
    slices: Places<SliceName>,
}

impl Index {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            pods: Places::of(&config.endpoints, |o| o.cookie.clone()),
            namespaces: Places::of(&config.namespaces, |o| o.name.clone()),
            nodes: Places::of(&config.nodes, |o| o.name.clone()),
            policies: Places::of(&config.policies, |o| o.cookie.clone()),
            cluster_policies: Places::of(&config.cluster_policies, |o| o.cookie.clone()),
            services: Places::of(&config.services, |o| o.name.clone()),
            slices: Places::of(&config.slices, slice_name),
        }
    }

    /// What a delta changes in `config`, for each compiler.
    pub(super) fn steps<'a>(
        &self,
        config: &'a Config,
        delta: &'a Delta,
    ) -> (Step<'a>, services::Step<'a>) {
        let policies = Step {
            namespaces: self.namespaces.difference(&config.namespaces, &delta.namespaces),
            nodes: self.nodes.difference(&config.nodes, &delta.nodes),
            pods: self.pods.difference(&config.endpoints, &delta.pods),
            policies: self.policies.difference(&config.policies, &delta.policies),
            cluster_policies: self
                .cluster_policies
                .difference(&config.cluster_policies, &delta.cluster_policies),
            local: (&config.node, &config.node),
            ground: delta.nodes.0.is_empty(),
        };
        let services = services::Step {
            services: self.services.difference(&config.services, &delta.services),
            slices: self.slices.difference(&config.slices, &delta.slices),
            closed: Vec::new(),
            opened: Vec::new(),
            new: config,
        };
        (policies, services)
    }

    /// `config` with the nodes that it will have after `delta`, without the objects that only steps
    /// tell of; `None` if the nodes stay as they are.
    pub(super) fn other_nodes(&self, config: &mut Config, delta: &Delta) -> Option<Config> {
        if delta.nodes.0.is_empty() {
            return None;
        }
        let objects = Config {
            endpoints: take(&mut config.endpoints),
            namespaces: take(&mut config.namespaces),
            policies: take(&mut config.policies),
            cluster_policies: take(&mut config.cluster_policies),
            services: take(&mut config.services),
            slices: take(&mut config.slices),
            ..Config::default()
        };
        let mut light = config.clone();
        config.endpoints = objects.endpoints;
        config.namespaces = objects.namespaces;
        config.policies = objects.policies;
        config.cluster_policies = objects.cluster_policies;
        config.services = objects.services;
        config.slices = objects.slices;
        let wanted = Wanted(delta.nodes.0.clone());
        Places(self.nodes.0.clone()).settle(&mut light.nodes, wanted, |o| o.name.clone());
        Some(light)
    }

    /// Writes a delta into `config`.
    pub(super) fn settle(&mut self, config: &mut Config, delta: Delta) {
        self.pods.settle(&mut config.endpoints, delta.pods, |o| o.cookie.clone());
        self.namespaces.settle(&mut config.namespaces, delta.namespaces, |o| o.name.clone());
        self.nodes.settle(&mut config.nodes, delta.nodes, |o| o.name.clone());
        self.policies.settle(&mut config.policies, delta.policies, |o| o.cookie.clone());
        self.cluster_policies
            .settle(&mut config.cluster_policies, delta.cluster_policies, |o| o.cookie.clone());
        self.services.settle(&mut config.services, delta.services, |o| o.name.clone());
        self.slices.settle(&mut config.slices, delta.slices, slice_name);
    }
}
