//! Decision counts of policy rules, by name.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_policy::rule::Direction;
use podswitch_policy::table::{PolicyId, PolicyInfo, PolicyObject};

use crate::snapshot::{PortFacts, Snapshot};

/// Decisions of one rule: connections that it allowed, counted once when they were opened, or
/// packets that it denied (decision record 0017).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyCount {
    /// The policy's cookie.
    pub policy: Arc<str>,
    /// The direction of the rule.
    pub direction: Direction,
    /// Index of the rule in the policy's list for the direction; `None`: packets that the policy denied because none of
    /// its rules matched.
    pub rule: Option<usize>,
    /// Decisions.
    pub decided: u64,
}

/// Every count that is not zero.
pub(super) fn read(snapshot: &Snapshot) -> Vec<PolicyCount> {
    let mut list = Vec::new();
    for (_, info) in snapshot.policy.policies() {
        for (direction, rule) in counted(info) {
            let decided = snapshot.policy_counters.get(info.counter(direction, rule));
            if decided > 0 {
                let policy = info.object.cookie().clone();
                list.push(PolicyCount { policy, direction, rule, decided });
            }
        }
    }
    list
}

/// The counts of every rule of the policies that apply to a pod of this node, including zeros. Further counts that are
/// not zero are included too, such as those of policies whose pods no longer exist. Isolation is listed for the
/// directions that a policy isolates. The counts of one policy follow each other.
pub fn policy_rules(snapshot: &Snapshot) -> Vec<PolicyCount> {
    let local = applying_here(snapshot);
    let mut list = Vec::new();
    for (id, info) in snapshot.policy.policies() {
        for (direction, rule) in counted(info) {
            let decided = snapshot.policy_counters.get(info.counter(direction, rule));
            let is_listed = local.contains(&(id, direction))
                && (rule.is_some() || isolates(&info.object, direction));
            if is_listed || decided > 0 {
                let policy = info.object.cookie().clone();
                list.push(PolicyCount { policy, direction, rule, decided });
            }
        }
    }
    list
}

/// The policies that apply to pods of this node, by direction.
fn applying_here(snapshot: &Snapshot) -> HashSet<(PolicyId, Direction)> {
    let mut found = HashSet::new();
    for facts in snapshot.ports.iter() {
        let PortFacts::Pod(pod) = facts else { continue };
        let addresses = pod.ipv4.iter().copied().map(IpAddr::from);
        for address in addresses.chain(pod.ipv6.iter().copied().map(IpAddr::from)) {
            let party = snapshot.policy.party(address);
            for direction in Direction::BOTH {
                let ids = snapshot.policy.applying(direction, &party);
                found.extend(ids.map(|id| (id, direction)));
            }
        }
    }
    found
}

/// Whether a policy denies connections that none of its rules matches.
fn isolates(policy: &PolicyObject, direction: Direction) -> bool {
    match policy {
        PolicyObject::Network(policy) => policy.rules(direction).is_some(),
        PolicyObject::Cluster(_) => false,
    }
}

/// Adds the counts of an earlier process to those of the existing policies. Rules that no longer exist are left out.
pub(super) fn restore(snapshot: &Snapshot, counts: &[PolicyCount]) {
    let mut by_policy: HashMap<&str, Vec<&PolicyCount>> = HashMap::new();
    for count in counts {
        by_policy.entry(&*count.policy).or_default().push(count);
    }
    for (_, info) in snapshot.policy.policies() {
        let Some(counts) = by_policy.get(&**info.object.cookie()) else { continue };
        for count in counts {
            let rules = info.object.rule_count(count.direction);
            if count.rule.is_none_or(|rule| rule < rules) {
                let number = info.counter(count.direction, count.rule);
                snapshot.policy_counters.add_many(number, count.decided);
            }
        }
    }
}

fn counted(info: &PolicyInfo) -> impl Iterator<Item = (Direction, Option<usize>)> {
    Direction::BOTH.into_iter().flat_map(|direction| {
        let rules = info.object.rule_count(direction);
        std::iter::once((direction, None)).chain((0..rules).map(move |r| (direction, Some(r))))
    })
}
