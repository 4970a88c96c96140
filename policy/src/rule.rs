//! The model: what users wrote, as plain data, already validated for syntax.

use std::net::IpAddr;
use std::sync::Arc;

/// Labels of an object: key and value, sorted by key, no key twice.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Labels(Vec<(Arc<str>, Arc<str>)>);

impl Labels {
    /// Labels from pairs in any order; of a repeated key the last one counts.
    pub fn new(pairs: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let mut list: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for (key, value) in pairs {
            match list.binary_search_by(|(k, _)| k.cmp(&key)) {
                Ok(at) => list[at].1 = value,
                Err(at) => list.insert(at, (key, value)),
            }
        }
        Self(list)
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
}

/// Layer-4 protocols that policies and Services name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Default)]
pub enum Protocol {
    /// The default of the API.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, never taken for TCP (N17).
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => wire::flow_key::proto::TCP,
            Self::Udp => wire::flow_key::proto::UDP,
            Self::Sctp => wire::flow_key::proto::SCTP,
        }
    }
}

/// A named container port of a pod (N7).
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct NamedPort {
    /// The name, as policies and Services call it.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// A pod as policy sees it, on whatever node it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// The pod's labels.
    pub labels: Labels,
    /// The pod's addresses, both families; of a hostNetwork pod its node's.
    pub addresses: Vec<IpAddr>,
    /// Named container ports.
    pub ports: Vec<NamedPort>,
    /// Shares its node's network: not selected by policies, its traffic is its node's (N11).
    pub host_network: bool,
}

/// A namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels; Kubernetes adds `kubernetes.io/metadata.name`.
    pub labels: Labels,
}
