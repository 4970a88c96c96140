//! The known namespaces, pods, nodes, identities and addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::rule::{Labels, Node};
use crate::table::{IdentityInfo, Owner, StageSet};

/// An identity: pods that no selector can distinguish.
#[derive(Debug)]
pub(crate) struct IdentityState {
    pub(super) info: Arc<IdentityInfo>,
    /// Pods or nodes with this identity.
    pub(super) refs: u32,
    /// Stages that apply to it.
    pub(super) stages: StageSet,
}

/// A namespace that exists or has pods.
#[derive(Debug, Default)]
pub(super) struct NamespaceState {
    /// Whether the Namespace object is known.
    pub(super) known: bool,
    pub(super) labels: Labels,
    pub(super) identities: BTreeSet<u32>,
}

/// A pod.
#[derive(Debug)]
pub(super) struct PodState {
    pub(super) identity: u32,
    /// The pod's identity; 0 for a hostNetwork pod.
    pub(super) number: u32,
    pub(super) node: Arc<str>,
    pub(super) addresses: Box<[IpAddr]>,
}

/// A node that exists or has pods.
#[derive(Debug, Default)]
pub(super) struct NodeState {
    pub(super) number: u32,
    pub(super) pods: u32,
    /// The Node object, if known.
    pub(super) object: Option<Node>,
    pub(super) identity: u32,
    /// hostNetwork pods by cookie: their addresses are the node's.
    pub(super) host_pods: BTreeSet<Arc<str>>,
}

/// A claim to an address. The lowest wins, so that the result does not depend on the order in which
/// objects arrive.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claim {
    pub(super) by: Claimant,
    pub(super) name: Arc<str>,
}

/// Kinds of claimants, strongest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Claimant {
    Pod,
    Node,
    HostPod,
}

/// All claims to one address; nearly always there is only one.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) first: (Claim, Owner),
    pub(super) others: Vec<(Claim, Owner)>,
}
