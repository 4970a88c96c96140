//! The compiled NetworkPolicy table: what a snapshot holds and the miss path asks.
//!
//! Made by [`crate::compile::PolicyCompiler`] off the packet cores, read by workers when a
//! connection is new or its verdict is of an older epoch. Reading allocates nothing, and takes a
//! number of look-ups that does not depend on how many policies, rules, pods, ranges or ports
//! there are:
//!
//! 1. address → identity, one hash ([`PolicyTable::party`]);
//! 2. identity and direction → a stage for each tier that has a say, one load;
//! 3. peer's identity → port table, one hash; peer's address → port table, where the stage has
//!    ipBlocks, a walk of its own short tree, whose depth the address's bits bound;
//! 4. protocol and port → rank, one line of memory (six at most, the number of ports bounds it) in
//!    each port table; the lowest rank is the rule that decides.
//!
//! Pods with the same namespace, labels and named ports share an identity. Ranges are not part of
//! it: each stage keeps its own, so that a policy with a new ipBlock concerns the pods that it
//! selects and not every pod in the range.

mod blocks;
mod partition;
mod ports;
mod stage;

use core::net::IpAddr;
use std::sync::Arc;

pub(crate) use partition::Partition;
pub(crate) use ports::{NO_RULE, PortKey};
pub(crate) use stage::{Parts, RuleRef, Stage};

use crate::cow::{CowMap, CowVec};
use crate::rule::{
    Action, ClusterNetworkPolicy, Direction, Labels, NamedPort, NetworkPolicy, Tier,
};
use crate::verdict::{Traffic, Why};

/// A number by which a table knows a policy. 0 is none. A policy keeps its number while it is
/// there, also when it changes; a later policy may get it again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct PolicyId(pub u32);

impl PolicyId {
    /// No policy.
    pub const NONE: Self = Self(0);
}

/// One end of a connection, as policy sees it: found once by address, judged often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Party {
    address: IpAddr,
    owner: Owner,
}

impl Party {
    /// The address.
    #[inline]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether a pod that policies can select has it; hostNetwork pods are their node (N11).
    #[inline]
    pub fn is_pod(&self) -> bool {
        self.owner.pod != 0
    }

    /// Whether a node has it.
    #[inline]
    pub fn is_node(&self) -> bool {
        self.owner.pod == 0 && self.owner.node != 0
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// The identity that this address shares with others that no policy can tell from it by
    /// selector; 0 if it has none.
    #[inline]
    pub fn identity(&self) -> u32 {
        self.owner.identity
    }
}

/// Who has an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Owner {
    /// Identity, 0 for none.
    pub(crate) identity: u32,
    /// The pod, 0 if none.
    pub(crate) pod: u32,
    /// The node, or the node that the pod is on; 0 if none.
    pub(crate) node: u32,
}

/// What one end's policies say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Whether this end allows the connection.
    pub allow: bool,
    /// Why.
    pub why: Why,
    /// The policy whose rule decided, or the first of those that isolate the pod where none of
    /// their rules matched.
    pub policy: PolicyId,
    /// Index of the rule in the policy's list for the direction; `None` if no rule decided.
    pub rule: Option<u32>,
    /// Dense number of the rule, or of the policy's isolation, for counters: below
    /// [`PolicyTable::counters`]. 0 if no policy decided.
    pub counter: u32,
}

impl Decision {
    const fn without_rule(allow: bool, why: Why) -> Self {
        Self { allow, why, policy: PolicyId::NONE, rule: None, counter: 0 }
    }
}

/// What both ends say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Policies of the source.
    pub egress: Decision,
    /// Policies of the destination.
    pub ingress: Decision,
}

impl Verdict {
    /// Whether both ends allow the connection (N4).
    #[inline]
    pub const fn allow(&self) -> bool {
        self.egress.allow && self.ingress.allow
    }
}

/// A policy as the table knows it, for explanations and counters.
#[derive(Clone, Debug)]
pub struct PolicyInfo {
    /// What was written.
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

    /// How many rules it has in a direction.
    pub fn rule_count(&self, direction: Direction) -> usize {
        match self {
            Self::Network(policy) => policy.rules(direction).map_or(0, <[_]>::len),
            Self::Cluster(policy) => policy.rules(direction).len(),
        }
    }
}

impl PolicyInfo {
    /// The counter of a rule, or with `None` that of the policy's isolation.
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

    /// How many counters it has.
    pub(crate) fn counter_count(object: &PolicyObject) -> u32 {
        let rules: usize = Direction::BOTH.map(|d| object.rule_count(d)).iter().sum();
        rules as u32 + 2
    }
}

/// What the pods or nodes of one identity have in common, for explanations.
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

/// The stages that judge one identity: by direction, then by tier; 0 for none.
pub(crate) type StageSet = [[u32; 3]; 2];

/// The compiled table. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct PolicyTable {
    pub(crate) v4: CowMap<u32, Owner>,
    pub(crate) v6: CowMap<u128, Owner>,
    pub(crate) stage_sets: CowVec<StageSet>,
    pub(crate) stages: CowVec<Stage>,
    /// The policies of each stage, in order.
    pub(crate) stage_policies: CowVec<Arc<[PolicyId]>>,
    pub(crate) policies: CowVec<Option<Arc<PolicyInfo>>>,
    pub(crate) identities: CowVec<Option<Arc<IdentityInfo>>>,
    pub(crate) pods: CowVec<Option<Arc<str>>, 256>,
    pub(crate) namespaces: CowMap<Arc<str>, Labels>,
    pub(crate) counters: u32,
}

impl PolicyTable {
    /// Who has `address`. One hash.
    #[inline]
    pub fn party(&self, address: IpAddr) -> Party {
        let owner = match address {
            IpAddr::V4(a) => self.v4.get(&u32::from(a)),
            IpAddr::V6(a) => self.v6.get(&u128::from(a)),
        };
        Party { address, owner: owner.copied().unwrap_or_default() }
    }

    /// Reads what judging a connection to `destination` begins with, and returns a number that means
    /// nothing: asked for a batch, the waits of several connections for main memory overlap.
    #[inline]
    pub fn read_ahead(&self, destination: &Party) -> u32 {
        let stages = self.stage_sets.get(destination.identity());
        let stage =
            stages.map_or(0, |set| set[Direction::Ingress.index()][Tier::NetworkPolicy.index()]);
        self.stages.get(stage).map_or(0, Stage::read_ahead)
    }

    /// Judges a new connection at both ends (N4).
    #[inline]
    pub fn verdict(&self, source: &Party, destination: &Party, traffic: Traffic) -> Verdict {
        Verdict {
            egress: self.judge(Direction::Egress, source, destination, traffic),
            ingress: self.judge(Direction::Ingress, destination, source, traffic),
        }
    }

    /// Judges a new connection by the policies of its source.
    #[inline]
    pub fn judge_egress(&self, source: &Party, destination: &Party, traffic: Traffic) -> Decision {
        self.judge(Direction::Egress, source, destination, traffic)
    }

    /// Judges a new connection by the policies of its destination.
    #[inline]
    pub fn judge_ingress(&self, source: &Party, destination: &Party, traffic: Traffic) -> Decision {
        self.judge(Direction::Ingress, destination, source, traffic)
    }

    /// Judges by the policies of `subject`, which opens the connection (egress) or is opened to
    /// (ingress).
    pub fn judge(
        &self,
        direction: Direction,
        subject: &Party,
        peer: &Party,
        traffic: Traffic,
    ) -> Decision {
        if let Some(why) = self.beyond_policy(subject, peer, traffic) {
            return Decision::without_rule(true, why);
        }
        let key = PortKey::new(traffic.protocol, traffic.port);
        let stages = self.stage_sets.get(subject.owner.identity).map(|set| &set[direction.index()]);
        let Some(&[admin, network, baseline]) = stages else {
            // Not reached: every pod in the table has an identity. Closed, should it ever be.
            return Decision::without_rule(false, Why::Isolated);
        };
        if admin != 0
            && let Some(decision) = self.ordered(Tier::Admin, admin, peer, key)
        {
            return decision;
        }
        if network != 0 {
            return self.isolated(network, peer, key);
        }
        if baseline != 0
            && let Some(decision) = self.ordered(Tier::Baseline, baseline, peer, key)
        {
            return decision;
        }
        Decision::without_rule(true, Why::NotIsolated)
    }

    /// What no policy can forbid (N11, N12, N16).
    #[inline]
    fn beyond_policy(&self, subject: &Party, peer: &Party, traffic: Traffic) -> Option<Why> {
        let (subject, peer) = (&subject.owner, &peer.owner);
        if subject.pod == 0 {
            Some(Why::NoPod)
        } else if subject.pod == peer.pod && !traffic.via_service {
            Some(Why::OwnAddress)
        } else if peer.pod == 0 && peer.node != 0 && peer.node == subject.node {
            Some(Why::OwnNode)
        } else {
            None
        }
    }

    /// The NetworkPolicy tier: any rule that matches allows, else the pod is isolated (N3).
    #[inline]
    fn isolated(&self, stage: u32, peer: &Party, key: PortKey) -> Decision {
        let Some(stage) = self.stages.get(stage) else {
            return Decision::without_rule(false, Why::Isolated);
        };
        match stage.rule(stage.first_match(peer, key)) {
            Some(rule) => rule.decision(true, Why::Rule(Tier::NetworkPolicy)),
            None => stage.isolation(),
        }
    }

    /// A tier of ordered rules: the first that matches decides, unless it passes.
    #[inline]
    fn ordered(&self, tier: Tier, stage: u32, peer: &Party, key: PortKey) -> Option<Decision> {
        let stage = self.stages.get(stage)?;
        let rule = stage.rule(stage.first_match(peer, key))?;
        match rule.action {
            Action::Accept => Some(rule.decision(true, Why::Rule(tier))),
            Action::Deny => Some(rule.decision(false, Why::Rule(tier))),
            Action::Pass => None,
        }
    }

    /// The policy of a number, to name it in drops and flows.
    pub fn policy(&self, id: PolicyId) -> Option<&Arc<PolicyInfo>> {
        self.policies.get(id.0)?.as_ref()
    }

    /// All policies with their numbers.
    pub fn policies(&self) -> impl Iterator<Item = (PolicyId, &Arc<PolicyInfo>)> {
        let all = self.policies.iter().zip(0..);
        all.filter_map(|(policy, id)| Some((PolicyId(id), policy.as_ref()?)))
    }

    /// One more than the highest counter that a [`Decision`] can name.
    pub fn counters(&self) -> usize {
        self.counters as usize
    }

    /// The NetworkPolicies that isolate a pod in a direction, by cookie.
    pub fn isolating(&self, direction: Direction, party: &Party) -> Vec<PolicyId> {
        if !party.is_pod() {
            return Vec::new();
        }
        self.policies_of(direction, party, Tier::NetworkPolicy).to_vec()
    }

    /// The policies of a tier that have a say about a pod in a direction, in their order.
    pub(crate) fn policies_of(
        &self,
        direction: Direction,
        party: &Party,
        tier: Tier,
    ) -> &[PolicyId] {
        let set = self.stage_sets.get(party.owner.identity);
        let stage = set.map_or(0, |set| set[direction.index()][tier.index()]);
        self.stage_policies.get(stage).map_or(&[], |policies| policies)
    }

    /// What an address's owner has in common with others of its identity.
    pub fn identity(&self, party: &Party) -> Option<&Arc<IdentityInfo>> {
        self.identities.get(party.owner.identity)?.as_ref()
    }

    /// The cookie of the pod that has the address.
    pub fn pod(&self, party: &Party) -> Option<&Arc<str>> {
        self.pods.get(party.owner.pod)?.as_ref()
    }

    /// Labels of a namespace as selectors see them.
    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }
}
