//! NetworkPolicy (networking.k8s.io/v1).

use core::fmt;
use std::sync::Arc;

use podswitch_wire::cidr::Cidr;

use super::{Protocol, Selector};

/// Which way a connection is opened, seen from the pod that a policy selects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Opened by the pod.
    Egress,
    /// Opened to the pod.
    Ingress,
}

impl Direction {
    /// Both, in the order in which they are judged.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// As a table index.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The field of a policy that holds the rules of this direction.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    /// The directions a policy isolates, `(ingress, egress)`, from its `policyTypes` and whether
    /// it has egress rules (N2). As the API server does it, an empty list is a missing one.
    pub fn isolated_by(policy_types: &[Self], has_egress_rules: bool) -> (bool, bool) {
        if policy_types.is_empty() {
            return (true, has_egress_rules);
        }
        (policy_types.contains(&Self::Ingress), policy_types.contains(&Self::Egress))
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A NetworkPolicy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NetworkPolicy {
    /// `NetworkPolicy/namespace/name`.
    pub cookie: Arc<str>,
    /// Namespace, the only one whose pods it selects.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `podSelector`: the pods it applies to. Never hostNetwork pods (N11).
    pub pods: Selector,
    /// Rules for connections to these pods. `None`: it says nothing about ingress. An empty list
    /// isolates the pods and allows nothing (N6).
    pub ingress: Option<Vec<Rule>>,
    /// Rules for connections from these pods; `None` and empty as in `ingress`.
    pub egress: Option<Vec<Rule>>,
}

impl NetworkPolicy {
    /// The rules of a direction; `None` if the policy does not isolate it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Egress => self.egress.as_deref(),
            Direction::Ingress => self.ingress.as_deref(),
        }
    }
}

/// One rule: peers AND ports must match (N6).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// Whom a rule is about.
///
/// "Any" is a case of its own rather than an empty list, so that a list that becomes empty on
/// its way (an entry left out, a peer not understood) matches nobody instead of everybody
/// (threat T-L2).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Peers {
    /// `from`/`to` missing or empty: everybody, inside the cluster and outside (N6).
    Any,
    /// At least one of these must match. An empty list matches nobody.
    AnyOf(Vec<Peer>),
}

impl Peers {
    /// From the API's list, where missing and empty both mean "any" (N6).
    pub fn from_list(list: Vec<Peer>) -> Self {
        if list.is_empty() { Self::Any } else { Self::AnyOf(list) }
    }
}

/// One entry of `from` or `to`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Peer {
    /// Pods, by selectors (N8). At least one of the two must be there.
    Selectors {
        /// `podSelector`; absent: every pod of the namespaces.
        pods: Option<Selector>,
        /// `namespaceSelector`; absent: the policy's own namespace.
        namespaces: Option<Selector>,
    },
    /// Addresses, those of pods and nodes among them (N9).
    IpBlock {
        /// The range.
        cidr: Cidr,
        /// Ranges within it that this entry does not match.
        except: Vec<Cidr>,
    },
}

/// Which protocols and ports a rule is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ports {
    /// `ports` missing or empty: every protocol and port, ICMP among them (N6, N10).
    Any,
    /// At least one of these must match. An empty list matches nothing.
    AnyOf(Vec<PortRule>),
}

impl Ports {
    /// From the API's list, where missing and empty both mean "any" (N6).
    pub fn from_list(list: Vec<PortRule>) -> Self {
        if list.is_empty() { Self::Any } else { Self::AnyOf(list) }
    }
}

/// One entry of `ports` (N7).
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum PortRule {
    /// Every port of the protocol.
    Every(Protocol),
    /// The ports `first` to `last`, both included.
    Range {
        /// Protocol.
        protocol: Protocol,
        /// First port.
        first: u16,
        /// Last port, not below the first.
        last: u16,
    },
    /// The destination pod's container port of this name. Matches nothing where there is none.
    Named {
        /// Protocol that the container port must have. `None`: whatever it has, as
        /// ClusterNetworkPolicy's `destinationNamedPort` says.
        protocol: Option<Protocol>,
        /// Name of the port.
        name: Arc<str>,
    },
}

impl PortRule {
    /// One port.
    pub fn port(protocol: Protocol, port: u16) -> Self {
        Self::Range { protocol, first: port, last: port }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Selectors { pods, namespaces } => {
                match pods {
                    Some(pods) => write!(f, "pods {pods}")?,
                    None => f.write_str("pods <all>")?,
                }
                match namespaces {
                    Some(namespaces) => write!(f, " of namespaces {namespaces}"),
                    None => f.write_str(" of its own namespace"),
                }
            }
            Self::IpBlock { cidr, except } => {
                write!(f, "addresses {cidr}")?;
                for (i, range) in except.iter().enumerate() {
                    write!(f, "{}{range}", if i == 0 { " except " } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for PortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(protocol) => write!(f, "*/{protocol}"),
            Self::Range { protocol, first, last } if first == last => {
                write!(f, "{first}/{protocol}")
            }
            Self::Range { protocol, first, last } => write!(f, "{first}-{last}/{protocol}"),
            Self::Named { protocol: Some(protocol), name } => write!(f, "{name}/{protocol}"),
            Self::Named { protocol: None, name } => write!(f, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_types_default_as_the_api_server_does() {
        use Direction::{Egress, Ingress};
        assert_eq!(Direction::isolated_by(&[], false), (true, false));
        assert_eq!(Direction::isolated_by(&[], true), (true, true));
        assert_eq!(Direction::isolated_by(&[Egress], true), (false, true));
        assert_eq!(Direction::isolated_by(&[Ingress], true), (true, false));
        assert_eq!(Direction::isolated_by(&[Ingress, Egress], false), (true, true));
    }

    #[test]
    fn only_the_api_turns_an_empty_list_into_any() {
        assert_eq!(Peers::from_list(Vec::new()), Peers::Any);
        assert_eq!(Ports::from_list(Vec::new()), Ports::Any);
        assert_ne!(Peers::AnyOf(Vec::new()), Peers::Any);
    }
}
