//! The desired state of a node, and changes of it.

use std::collections::BTreeMap;

use podswitch_core::config::Config;
use podswitch_core::control::Change;
use podswitch_kubernetes::Compiled;

use crate::attachment::PodAttachment;
use crate::pod_name::PodName;

/// What a node is to be: the configuration of its switch, and pods that it is to attach. Pods may
/// also come and go one by one ([`Node::add_pod`](crate::Node::add_pod)).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct State {
    /// The configuration. Its `ports`, its `neighbours` and the `attachment` of this node's endpoints
    /// are the node's to fill in, and are ignored.
    pub config: Config,
    /// Pods of this node to attach, and where.
    pub pods: Vec<PodAttachment>,
}

impl State {
    /// A state whose pods come by [`Node::add_pod`](crate::Node::add_pod) only.
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
    /// Kubernetes objects; pods whose annotations say where their interface is are attached there.
    fn from(compiled: Compiled) -> Self {
        let pods = compiled.pods.iter().filter_map(PodAttachment::annotated).collect();
        Self { config: compiled.config, pods }
    }
}

/// Changes of a [`State`], object by object.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StateChanges {
    /// Objects of the configuration, and [`Change::Settings`] for what is no object.
    pub objects: Vec<Change>,
    /// Pods of this node that the state attaches from now on, or attaches no more (`None`).
    pub pods: Vec<(PodName, Option<PodAttachment>)>,
}

impl From<Vec<Change>> for StateChanges {
    fn from(objects: Vec<Change>) -> Self {
        Self { objects, pods: Vec::new() }
    }
}

/// What is desired, apart from the objects: those are with the control plane
/// ([`ControlPlane::objects`](podswitch_core::control::ControlPlane::objects)).
#[derive(Clone, Debug, Default)]
pub(crate) struct Desired {
    /// What is no object, as it was given; the lists are empty.
    pub(crate) settings: Config,
    /// Pods that the state attaches.
    pub(crate) pods: BTreeMap<PodName, PodAttachment>,
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
    }
}
