//! The model: the objects as users wrote them, as plain data with valid syntax.
//!
//! Built from the objects (for Kubernetes by the `kubernetes` crate); read by the compiler, the
//! reference evaluator and explanations; never on the packet path.

mod cluster;
mod network;
mod selector;

use core::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub use cluster::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, ClusterTier, NamespacedPods, Tier,
};
pub use network::{Direction, NetworkPolicy, Peer, Peers, PortRule, Ports, Rule};
pub use selector::{Operator, Requirement, Selector};

/// Labels of an object: key and value, sorted by key, without duplicate keys. Copies share their memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// Labels from pairs in any order; the last of a repeated key counts.
    pub fn new(pairs: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let mut list: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for (key, value) in pairs {
            match list.binary_search_by(|(k, _)| k.cmp(&key)) {
                Ok(at) => list[at].1 = value,
                Err(at) => list.insert(at, (key, value)),
            }
        }
        Self(list.into())
    }

    /// Whether a copy shares the memory of these labels.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// The pairs, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These labels with one added or replaced.
    pub fn with(&self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        Self::new(self.0.iter().cloned().chain([(key.into(), value.into())]))
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self::new(pairs.into_iter().map(|(k, v)| (k.into(), v.into())))
    }
}

/// Layer-4 protocols that policies and Services can name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub enum Protocol {
    /// The API's default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, never treated as TCP (N17).
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => podswitch_wire::flow_key::proto::TCP,
            Self::Udp => podswitch_wire::flow_key::proto::UDP,
            Self::Sctp => podswitch_wire::flow_key::proto::SCTP,
        }
    }

    /// All three.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// From an IP protocol number; `None` for a protocol that policies cannot name.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            podswitch_wire::flow_key::proto::TCP => Some(Self::Tcp),
            podswitch_wire::flow_key::proto::UDP => Some(Self::Udp),
            podswitch_wire::flow_key::proto::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }

    /// Name as the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A named container port of a pod (N7).
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name used in policies and Services.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// A pod as policy sees it, on any node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// The pod's labels.
    pub labels: Labels,
    /// The pod's addresses, both families; for a hostNetwork pod its node's.
    pub addresses: Vec<IpAddr>,
    /// Named container ports.
    pub ports: Vec<NamedPort>,
    /// Shares its node's network: not selected by policies; its traffic is the node's (N11).
    pub host_network: bool,
}

/// The label of a namespace that always holds its name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels; Kubernetes adds `kubernetes.io/metadata.name`.
    pub labels: Labels,
}

impl Namespace {
    /// The labels that selectors see: `kubernetes.io/metadata.name` is the namespace's name,
    /// whatever the object says, as the API server ensures.
    pub fn effective_labels(&self) -> Labels {
        self.labels.with(NAMESPACE_NAME_LABEL, Arc::clone(&self.name))
    }
}

/// A node as policy sees it: the "own node" of its pods (N16), and what `nodes` peers of
/// ClusterNetworkPolicy select.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// The node's addresses, both families.
    pub addresses: Vec<IpAddr>,
}

/// A pod and the node it runs on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// `Pod/namespace/name`.
    pub cookie: Arc<str>,
    /// The pod.
    pub workload: Workload,
    /// Name of its node, empty if it has none yet.
    pub node: Arc<str>,
}
