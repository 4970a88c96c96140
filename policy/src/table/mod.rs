//! The compiled NetworkPolicy table, part of a snapshot, queried on the slow path.
//!
//! Built by [`crate::compile::PolicyCompiler`] off the packet cores, read by workers when a
//! connection is new or its verdict is of an older epoch. Reading allocates nothing. The number of
//! look-ups does not depend on the number of policies, rules, pods, CIDRs or ports:
//!
//! 1. address → identity, one hash ([`PolicyTable::party`]);
//! 2. identity and direction → one stage for each tier that applies, one load;
//! 3. peer's identity → port table, one hash; peer's address → port table, if the stage has
//!    ipBlocks, through a short tree whose depth is bounded by the address's bits;
//! 4. protocol and port → rank, one cache line (at most six, depending on the number of ports) in
//!    each port table; the lowest rank is the rule that decides.
//!
//! Pods with the same namespace, labels and named ports share an identity. CIDRs do not matter to
//! it: each stage has its own, so that a policy with a new ipBlock affects the pods that it
//! selects, not every pod in the CIDR.

mod blocks;
mod decision;
mod info;
mod line;
mod partition;
mod party;
mod ports;
mod stage;

use core::net::IpAddr;
use std::sync::Arc;

pub use decision::{Decision, PolicyId, Verdict};
pub use info::{IdentityInfo, PolicyInfo, PolicyObject};
pub(crate) use partition::Partition;
pub(crate) use party::Owner;
pub use party::Party;
pub(crate) use ports::{NO_RULE, PortKey};
pub(crate) use stage::{Parts, RuleRef, Stage};

use crate::cow::{CowMap, CowVec};
use crate::rule::{Action, Direction, Labels, Tier};
use crate::verdict::{Traffic, Why};

/// The stages of one identity: by direction, then by tier; 0 for none.
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
    /// The party with `address`. One hash look-up.
    #[inline]
    pub fn party(&self, address: IpAddr) -> Party {
        let owner = match address {
            IpAddr::V4(a) => self.v4.get(&u32::from(a)),
            IpAddr::V6(a) => self.v6.get(&u128::from(a)),
        };
        Party { address, owner: owner.copied().unwrap_or_default() }
    }

    /// Prefetches the data that evaluating a connection to `destination` reads first. Returns an
    /// arbitrary number, so that the loads are not optimized away. If it is called for a batch, the
    /// waits of several connections for main memory overlap.
    #[inline]
    pub fn prefetch(&self, destination: &Party) -> u32 {
        let stages = self.stage_sets.get(destination.identity());
        let stage =
            stages.map_or(0, |set| set[Direction::Ingress.index()][Tier::NetworkPolicy.index()]);
        self.stages.get(stage).map_or(0, Stage::prefetch)
    }

    /// Evaluates a new connection at both ends (N4).
    #[inline]
    pub fn verdict(&self, source: &Party, destination: &Party, traffic: Traffic) -> Verdict {
        Verdict {
            egress: self.evaluate(Direction::Egress, source, destination, traffic),
            ingress: self.evaluate(Direction::Ingress, destination, source, traffic),
        }
    }

    /// Evaluates a new connection by the policies of its source.
    #[inline]
    pub fn evaluate_egress(
        &self,
        source: &Party,
        destination: &Party,
        traffic: Traffic,
    ) -> Decision {
        self.evaluate(Direction::Egress, source, destination, traffic)
    }

    /// Evaluates a new connection by the policies of its destination.
    #[inline]
    pub fn evaluate_ingress(
        &self,
        source: &Party,
        destination: &Party,
        traffic: Traffic,
    ) -> Decision {
        self.evaluate(Direction::Ingress, destination, source, traffic)
    }

    /// Evaluates the policies of `subject`, which opens the connection (egress) or accepts it
    /// (ingress).
    pub fn evaluate(
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
            // Unreachable: every pod in the table has an identity. Fails closed.
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

    /// The traffic that no policy can forbid (N11, N12, N16).
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

    /// The NetworkPolicy tier: any matching rule allows, otherwise the pod is isolated (N3).
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

    /// A tier of ordered rules: the first rule that matches decides, unless its action is Pass.
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

    /// The policy with a number. Used to name it in drops and flows.
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

    /// The policies of all tiers that apply to a pod in a direction; none if the address is not a
    /// pod's.
    pub fn applying(
        &self,
        direction: Direction,
        party: &Party,
    ) -> impl Iterator<Item = PolicyId> + '_ {
        let tiers = if party.is_pod() { &Tier::ALL[..] } else { &[] };
        let party = *party;
        tiers.iter().flat_map(move |tier| self.policies_of(direction, &party, *tier)).copied()
    }

    /// The policies of a tier that apply to a pod in a direction, in order.
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

    /// The properties that the addresses of one identity share.
    pub fn identity(&self, party: &Party) -> Option<&Arc<IdentityInfo>> {
        self.identities.get(party.owner.identity)?.as_ref()
    }

    /// The cookie of the pod with the address.
    pub fn pod(&self, party: &Party) -> Option<&Arc<str>> {
        self.pods.get(party.owner.pod)?.as_ref()
    }

    /// Labels of a namespace as selectors see them.
    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }
}
