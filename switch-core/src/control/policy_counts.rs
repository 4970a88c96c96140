//! How often each rule of each policy decided, by name.

use std::sync::Arc;

use podswitch_policy::rule::Direction;
use podswitch_policy::table::{PolicyInfo, PolicyTable};

use crate::snapshot::{PolicyCounters, Snapshot};

/// How often one rule decided: a new connection let in or out, a packet denied, a connection
/// judged again after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyCount {
    /// The policy's cookie.
    pub policy: Arc<str>,
    /// Whose rules these are.
    pub direction: Direction,
    /// Index of the rule in the policy's list for the direction; `None` counts what the policy
    /// denied because none of its rules matched.
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

/// Zeroes the counters that stand for something else in `new` than they did in `old`: their
/// numbers are used again.
pub(super) fn renew(counters: &PolicyCounters, old: &PolicyTable, new: &PolicyTable) {
    for (id, info) in new.policies() {
        let is_known = old.policy(id).is_some_and(|before| {
            Arc::ptr_eq(before, info)
                || before.first_counter == info.first_counter
                    && before.object.cookie() == info.object.cookie()
                    && Direction::BOTH
                        .iter()
                        .all(|&d| before.object.rule_count(d) == info.object.rule_count(d))
        });
        if !is_known {
            counted(info).for_each(|(d, rule)| counters.reset(info.counter(d, rule)));
        }
    }
}

fn counted(info: &PolicyInfo) -> impl Iterator<Item = (Direction, Option<usize>)> {
    Direction::BOTH.into_iter().flat_map(|direction| {
        let rules = info.object.rule_count(direction);
        std::iter::once((direction, None)).chain((0..rules).map(move |r| (direction, Some(r))))
    })
}
