//! NetworkPolicy (networking.k8s.io/v1).

use core::fmt;
use std::sync::Arc;

use podswitch_wire::cidr::Cidr;

use super::{Protocol, Selector};

/// The direction in which a connection is opened, seen from the pod that a policy selects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Opened by the pod.
    Egress,
    /// Opened to the pod.
    Ingress,
}

impl Direction {
    /// Both, in order of evaluation.
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

    /// The directions that a policy isolates, `(ingress, egress)`, from its `policyTypes` and
    /// whether it has egress rules (N2). As in the API server, an empty list counts as missing.
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
    /// Namespace; only pods of this namespace are selected.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `podSelector`: the pods it applies to. Never hostNetwork pods (N11).
    pub pods: Selector,
    /// Rules for connections to these pods. `None`: the policy does not apply to ingress. An empty
    /// list isolates the pods and allows nothing (N6).
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

/// One rule: peers and ports must both match (N6).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// The peers of a rule.
///
/// "Any" is a variant of its own rather than an empty list, so that a list that becomes empty in
/// processing (an entry left out, an unknown peer) matches no peer instead of all (threat T-L2).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Peers {
    /// `from`/`to` missing or empty: any peer, inside the cluster and outside (N6).
    Any,
    /// At least one of these must match. An empty list matches no peer.
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
    /// Pods, by selectors (N8). At least one of the two must be present.
    Selectors {
        /// `podSelector`; absent: every pod of the namespaces.
        pods: Option<Selector>,
        /// `namespaceSelector`; absent: the policy's own namespace.
        namespaces: Option<Selector>,
    },
    /// Addresses, including those of pods and nodes (N9).
    IpBlock {
        /// The CIDR.
        cidr: Cidr,
        /// CIDRs within it that this entry does not match.
        except: Vec<Cidr>,
    },
}

/// The protocols and ports of a rule.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ports {
    /// `ports` missing or empty: every protocol and port, ICMP included (N6, N10).
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
    /// The destination pod's container port of this name. Matches nothing if there is none.
    Named {
        /// Protocol that the container port must have. `None`: any, as for ClusterNetworkPolicy's
        /// `destinationNamedPort`.
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
    fn an_empty_list_means_any_only_in_the_api() {
        assert_eq!(Peers::from_list(Vec::new()), Peers::Any);
        assert_eq!(Ports::from_list(Vec::new()), Ports::Any);
        assert_ne!(Peers::AnyOf(Vec::new()), Peers::Any);
    }
}
