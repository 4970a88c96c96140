//! Policies in the form that stages are built from: rules whose selectors are numbers.

use std::sync::Arc;

use podswitch_wire::cidr::Cidr;

use super::ports;
use super::selectors::SelectorKey;
use crate::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, Direction, NamespacedPods,
    NetworkPolicy, Peer, Peers, Ports, Rule, Selector,
};
use crate::table::PolicyInfo;

/// A policy in force.
#[derive(Debug)]
pub(super) struct PolicyState {
    pub(super) info: Arc<PolicyInfo>,
    /// Distinguishes this content from earlier content of the same policy.
    pub(super) generation: u64,
    /// Selector of the pods it applies to.
    pub(super) subject: u32,
    /// By direction; `None` if it does not apply to the direction.
    pub(super) rules: [Option<Vec<RuleState>>; 2],
}

impl PolicyState {
    /// Names of ports that the rules of a direction mention.
    pub(super) fn port_names(&self, direction: Direction) -> impl Iterator<Item = &Arc<str>> {
        let rules = self.rules[direction.index()].iter().flatten();
        rules.flat_map(|rule| ports::names(&rule.ports))
    }

    /// All selectors that it references, with repetitions.
    pub(super) fn selectors(&self) -> impl Iterator<Item = u32> {
        let rules = self.rules.iter().flatten().flatten();
        let peers = rules.flat_map(|rule| rule.selectors.iter().copied());
        peers.chain([self.subject])
    }
}

/// A rule; `S` is how it names its selectors.
#[derive(Debug)]
pub(super) struct RuleState<S = u32> {
    /// Matches every peer, inside the cluster and outside.
    pub(super) everyone: bool,
    /// Matches every pod.
    pub(super) every_pod: bool,
    pub(super) selectors: Vec<S>,
    pub(super) blocks: Vec<Block>,
    pub(super) ports: Ports,
    pub(super) action: Action,
}

/// A CIDR and its exceptions.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) cidr: Cidr,
    pub(super) except: Vec<Cidr>,
}

/// A policy before its selectors are numbered.
pub(super) struct Lowered {
    pub(super) subject: SelectorKey,
    pub(super) rules: [Option<Vec<RuleState<SelectorKey>>>; 2],
}

impl RuleState<SelectorKey> {
    fn new(action: Action, ports: &Ports) -> Self {
        Self {
            everyone: false,
            every_pod: false,
            selectors: Vec::new(),
            blocks: Vec::new(),
            ports: ports.clone(),
            action,
        }
    }

    /// Adds a selector of pods by namespace label. The one that selects everything is a flag
    /// instead, so that it costs nothing for each pod.
    fn add_wide(&mut self, namespaces: &Selector, pods: &Selector) {
        if namespaces.is_everything() && pods.is_everything() {
            self.every_pod = true;
        } else {
            let (namespaces, pods) = (namespaces.clone(), pods.clone());
            self.selectors.push(SelectorKey::Wide(NamespacedPods { namespaces, pods }));
        }
    }

    /// The rule with numbered selectors.
    pub(super) fn numbered(self, mut number: impl FnMut(SelectorKey) -> u32) -> RuleState {
        let mut selectors: Vec<_> = self.selectors.into_iter().map(&mut number).collect();
        selectors.sort_unstable();
        RuleState {
            everyone: self.everyone,
            every_pod: self.every_pod,
            selectors,
            blocks: self.blocks,
            ports: self.ports,
            action: self.action,
        }
    }
}

pub(super) fn lower_network(policy: &NetworkPolicy) -> Lowered {
    let lower = |direction| {
        let rules = policy.rules(direction)?;
        Some(rules.iter().map(|rule| network_rule(policy, rule)).collect())
    };
    Lowered {
        subject: SelectorKey::Local(Arc::clone(&policy.namespace), policy.pods.clone()),
        rules: Direction::BOTH.map(lower),
    }
}

fn network_rule(policy: &NetworkPolicy, rule: &Rule) -> RuleState<SelectorKey> {
    let mut state = RuleState::new(Action::Accept, &rule.ports);
    let Peers::AnyOf(peers) = &rule.peers else {
        state.everyone = true;
        return state;
    };
    for peer in peers {
        match peer {
            Peer::IpBlock { cidr, except } => {
                state.blocks.push(Block { cidr: *cidr, except: except.clone() });
            }
            Peer::Selectors { pods, namespaces } => {
                let pods = pods.clone().unwrap_or_default();
                match namespaces {
                    Some(namespaces) => state.add_wide(namespaces, &pods),
                    None => {
                        let own = Arc::clone(&policy.namespace);
                        state.selectors.push(SelectorKey::Local(own, pods));
                    }
                }
            }
        }
    }
    state
}

pub(super) fn lower_cluster(policy: &ClusterNetworkPolicy) -> Lowered {
    let lower = |direction| {
        let rules = policy.rules(direction);
        (!rules.is_empty()).then(|| rules.iter().map(cluster_rule).collect())
    };
    Lowered {
        subject: SelectorKey::Wide(policy.subject.clone()),
        rules: Direction::BOTH.map(lower),
    }
}

fn cluster_rule(rule: &ClusterRule) -> RuleState<SelectorKey> {
    let mut state = RuleState::new(rule.action, &rule.ports);
    if rule.has_unknown_peer() {
        // Fail closed, as the API demands: Accept matches nothing, the others deny everything. A
        // rule that matches nothing keeps its position.
        if rule.action != Action::Accept {
            state.everyone = true;
            state.ports = Ports::Any;
            state.action = Action::Deny;
        }
        return state;
    }
    for peer in &rule.peers {
        match peer {
            ClusterPeer::Pods(pods) => state.add_wide(&pods.namespaces, &pods.pods),
            ClusterPeer::Nodes(nodes) => state.selectors.push(SelectorKey::Nodes(nodes.clone())),
            ClusterPeer::Networks(ranges) => {
                let block = |cidr: &Cidr| Block { cidr: *cidr, except: Vec::new() };
                state.blocks.extend(ranges.iter().map(block));
            }
            ClusterPeer::Unknown => {}
        }
    }
    state
}
