//! ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2): tiers before and after NetworkPolicy,
//! with an order and with denials.

use core::fmt;
use std::sync::Arc;

use podswitch_wire::cidr::Cidr;

use super::{Direction, Ports, Selector};

/// A policy's place in the order of evaluation: Admin, then every NetworkPolicy, then Baseline.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tier {
    /// Before NetworkPolicy; cannot be overridden by it.
    Admin,
    /// The tier of networking/v1 NetworkPolicy, which always decides for a pod that it isolates.
    NetworkPolicy,
    /// After NetworkPolicy, for pods that no NetworkPolicy isolates.
    Baseline,
}

impl Tier {
    /// All three, in order.
    pub const ALL: [Self; 3] = [Self::Admin, Self::NetworkPolicy, Self::Baseline];

    /// As a table index.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name as the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::Baseline => "Baseline",
        }
    }
}

/// The action of a rule of a ClusterNetworkPolicy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Action {
    /// Allowed; no further rule of this direction is evaluated.
    Accept,
    /// Denied; no further rule is evaluated.
    Deny,
    /// The rest of this tier is skipped; evaluation continues with the next tier.
    Pass,
}

impl Action {
    /// Name as the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        }
    }
}

/// Tier of a ClusterNetworkPolicy: the two that the API has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum ClusterTier {
    /// See [`Tier::Admin`].
    Admin,
    /// See [`Tier::Baseline`].
    Baseline,
}

impl From<ClusterTier> for Tier {
    fn from(tier: ClusterTier) -> Self {
        match tier {
            ClusterTier::Admin => Self::Admin,
            ClusterTier::Baseline => Self::Baseline,
        }
    }
}

/// A ClusterNetworkPolicy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterNetworkPolicy {
    /// `ClusterNetworkPolicy/name`.
    pub cookie: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Tier.
    pub tier: ClusterTier,
    /// 0 to 1000, lower first. Among equals, whose order the API leaves open, the name decides.
    pub priority: u16,
    /// The pods it applies to. Never hostNetwork pods.
    pub subject: NamespacedPods,
    /// Rules for connections to these pods; the first that matches decides. Empty: no effect on
    /// ingress.
    pub ingress: Vec<ClusterRule>,
    /// Rules for connections from these pods; as `ingress`.
    pub egress: Vec<ClusterRule>,
}

impl ClusterNetworkPolicy {
    /// The largest number of rules of one direction (API: `MaxItems`).
    pub const MAX_RULES: usize = 25;
    /// The largest number of peers, CIDRs of a peer, and protocol entries of a rule (API:
    /// `MaxItems`).
    pub const MAX_ITEMS: usize = 25;
    /// The highest `priority`.
    pub const MAX_PRIORITY: u16 = 1000;

    /// The rules of a direction.
    pub fn rules(&self, direction: Direction) -> &[ClusterRule] {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }
}

/// Pods by the labels of namespace and pod (API: `namespaces` alone, or `pods`).
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct NamespacedPods {
    /// Namespaces.
    pub namespaces: Selector,
    /// Pods in them; [`Selector::everything`] where the API names only namespaces.
    pub pods: Selector,
}

/// One rule of a ClusterNetworkPolicy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterRule {
    /// `name`, empty if it has none.
    pub name: Arc<str>,
    /// Its action.
    pub action: Action,
    /// `from` or `to`: at least one must match. Unlike in NetworkPolicy an empty list matches no
    /// peer; the API refuses it.
    pub peers: Vec<ClusterPeer>,
    /// `protocols`; missing: [`Ports::Any`]. An entry of an unknown kind makes the rule's peers
    /// [`ClusterPeer::Unknown`].
    pub ports: Ports,
}

impl ClusterRule {
    /// Whether some peer is of an unknown kind: the whole rule then fails closed.
    pub fn has_unknown_peer(&self) -> bool {
        self.peers.iter().any(|p| matches!(p, ClusterPeer::Unknown))
    }
}

/// One peer of a rule of a ClusterNetworkPolicy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ClusterPeer {
    /// `namespaces` or `pods`. Never hostNetwork pods.
    Pods(NamespacedPods),
    /// `nodes`: the addresses of nodes with these labels. In `to` only.
    Nodes(Selector),
    /// `networks`: CIDRs, including addresses of pods and nodes. In `to` only.
    Networks(Vec<Cidr>),
    /// A peer of an unknown kind (`domainNames`, or one of a later version). The API demands that
    /// the rule fail closed: an Accept rule matches nothing, a Deny or Pass rule denies everything.
    Unknown,
}

impl fmt::Display for NamespacedPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pods {} of namespaces {}", self.pods, self.namespaces)
    }
}

impl fmt::Display for ClusterPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(pods) => fmt::Display::fmt(pods, f),
            Self::Nodes(selector) => write!(f, "nodes {selector}"),
            Self::Networks(ranges) => {
                f.write_str("addresses ")?;
                for (i, range) in ranges.iter().enumerate() {
                    write!(f, "{}{range}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Self::Unknown => f.write_str("a peer of an unknown kind"),
        }
    }
}
