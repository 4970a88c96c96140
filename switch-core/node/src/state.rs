//! The desired state of a node, and changes of it.

use std::collections::BTreeMap;

use podswitch_core::config::{Config, LocalNode};
use podswitch_core::control::Change;
use podswitch_kubernetes::Compiled;
use podswitch_policy::rule::Labels;

use crate::attachment::PodAttachment;
use crate::pod_name::PodName;

/// The desired state of a node: the configuration of its switch, and the pods to attach. Pods may
/// also be added individually ([`Node::add_pod`](crate::Node::add_pod)).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct State {
    /// The configuration. Its `ports`, its `neighbours` and the `attachment` of this node's
    /// endpoints are ignored: the node fills them in.
    pub config: Config,
    /// Pods of this node to attach, and where.
    pub pods: Vec<PodAttachment>,
}

impl State {
    /// A state whose pods are attached by [`Node::add_pod`](crate::Node::add_pod) only.
    pub fn new(config: Config) -> Self {
        Self { config, pods: Vec::new() }
    }
}

impl From<Config> for State {
    fn from(config: Config) -> Self {
        Self::new(config)
    }
}

impl From<Compiled> for State {
    /// From Kubernetes objects; pods whose annotations name their interface are attached there.
    fn from(compiled: Compiled) -> Self {
        let pods = compiled.pods.iter().filter_map(PodAttachment::annotated).collect();
        Self { config: compiled.config, pods }
    }
}

/// Changes of a [`State`], object by object.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StateChanges {
    /// Objects of the configuration, and [`Change::Settings`].
    pub objects: Vec<Change>,
    /// Pods of this node to attach, or to attach no longer (`None`).
    pub pods: Vec<(PodName, Option<PodAttachment>)>,
}

impl From<Vec<Change>> for StateChanges {
    fn from(objects: Vec<Change>) -> Self {
        Self { objects, pods: Vec::new() }
    }
}

/// The desired state without its objects, which the control plane has
/// ([`ControlPlane::objects`](podswitch_core::control::ControlPlane::objects)).
#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    /// The settings as given; the lists of objects are empty.
    pub(crate) settings: Config,
    /// Pods that the state attaches.
    pub(crate) pods: BTreeMap<PodName, PodAttachment>,
}

/// Whether two configurations differ only in lists of objects and in the labels of this node, which only policies use.
pub(crate) fn has_same_settings(before: &Config, after: &Config) -> bool {
    let node = |config: &Config| LocalNode { labels: Labels::default(), ..config.node.clone() };
    node(before) == node(after)
        && before.service_cidrs == after.service_cidrs
        && before.allowed_external_ips == after.allowed_external_ips
        && before.cluster_key == after.cluster_key
        && before.masquerade == after.masquerade
        && before.tunnel == after.tunnel
}

/// A configuration without its lists of objects.
pub(crate) fn settings_of(config: &Config) -> Config {
    Config {
        node: config.node.clone(),
        service_cidrs: config.service_cidrs.clone(),
        allowed_external_ips: config.allowed_external_ips.clone(),
        cluster_key: config.cluster_key,
        masquerade: config.masquerade.clone(),
        tunnel: config.tunnel.clone(),
        neighbours: Vec::new(),
        ports: Vec::new(),
        endpoints: Vec::new(),
        namespaces: Vec::new(),
        policies: Vec::new(),
        cluster_policies: Vec::new(),
        refused_policies: Vec::new(),
        services: Vec::new(),
        slices: Vec::new(),
        host_ports: Vec::new(),
        nodes: Vec::new(),
        routes: Vec::new(),
        bridges: Vec::new(),
        zone: None,
    }
}
