//! Facts that the table keeps about policies and identities, for explanations and counters.

use std::sync::Arc;

use crate::rule::{ClusterNetworkPolicy, Direction, Labels, NamedPort, NetworkPolicy, Tier};

/// A policy as the table knows it, for explanations and counters.
#[derive(Clone, Debug)]
pub struct PolicyInfo {
    /// The policy as written.
    pub object: PolicyObject,
    /// Number of the policy's first counter. In order: isolation of ingress, isolation of egress,
    /// then one for each ingress rule, then one for each egress rule.
    pub first_counter: u32,
}

/// Either kind of policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyObject {
    /// networking.k8s.io/v1 NetworkPolicy.
    Network(Arc<NetworkPolicy>),
    /// policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.
    Cluster(Arc<ClusterNetworkPolicy>),
}

impl PolicyObject {
    /// The policy's cookie.
    pub fn cookie(&self) -> &Arc<str> {
        match self {
            Self::Network(policy) => &policy.cookie,
            Self::Cluster(policy) => &policy.cookie,
        }
    }

    /// The policy's tier.
    pub fn tier(&self) -> Tier {
        match self {
            Self::Network(_) => Tier::NetworkPolicy,
            Self::Cluster(policy) => policy.tier.into(),
        }
    }

    /// The number of its rules in a direction.
    pub fn rule_count(&self, direction: Direction) -> usize {
        match self {
            Self::Network(policy) => policy.rules(direction).map_or(0, <[_]>::len),
            Self::Cluster(policy) => policy.rules(direction).len(),
        }
    }
}

impl PolicyInfo {
    /// The counter of a rule; with `None` that of the policy's isolation.
    pub fn counter(&self, direction: Direction, rule: Option<usize>) -> u32 {
        let ingress_rules = self.object.rule_count(Direction::Ingress);
        let offset = match (rule, direction) {
            (None, Direction::Ingress) => 0,
            (None, Direction::Egress) => 1,
            (Some(index), Direction::Ingress) => 2 + index,
            (Some(index), Direction::Egress) => 2 + ingress_rules + index,
        };
        self.first_counter + offset as u32
    }

    /// The number of its counters.
    pub(crate) fn counter_count(object: &PolicyObject) -> u32 {
        let rules: usize = Direction::BOTH.map(|d| object.rule_count(d)).iter().sum();
        rules as u32 + 2
    }
}

/// The properties that the pods or nodes of one identity share, for explanations.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum IdentityInfo {
    /// Pods.
    Pods {
        /// Namespace.
        namespace: Arc<str>,
        /// Labels.
        labels: Labels,
        /// Named ports, sorted.
        ports: Vec<NamedPort>,
    },
    /// Nodes.
    Nodes {
        /// Labels.
        labels: Labels,
    },
}
