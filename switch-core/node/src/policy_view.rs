//! What each policy rule decided, those that never did included.
//!
//! Read from a snapshot on any thread: counts belong to the state in force.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use podswitch_core::control::{PolicyCount, policy_rules};
use podswitch_core::snapshot::Snapshot;
use serde::Serialize;

/// Which rules, and how many of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyQuery {
    /// Only those whose name has this in it.
    pub containing: Option<String>,
    /// Only rules that never matched. Isolation is no rule: that a policy denied nothing is no fault of it.
    pub never: bool,
    /// Only those after this name: the last one of the page before.
    pub after: Option<String>,
    /// The most that are returned.
    pub limit: usize,
}

impl PolicyQuery {
    /// The first `limit` rules.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PolicyPage {
    /// The state that the rules are of.
    pub epoch: u32,
    /// How many rules the query selects, those of earlier pages included.
    pub total: usize,
    /// How many of them come after those in `policies`.
    pub left_out: usize,
    /// Decisions by rule: `POLICY ingress[0]`, or `POLICY ingress` for packets that the policy denied because none of
    /// its rules matched.
    pub policies: BTreeMap<String, u64>,
}

/// The name of what counted.
pub(crate) fn name(count: &PolicyCount) -> String {
    let (policy, direction) = (&count.policy, count.direction);
    match count.rule {
        Some(rule) => format!("{policy} {direction}[{rule}]"),
        None => format!("{policy} {direction}"),
    }
}

impl PolicyPage {
    /// The rules of every policy that applies to a pod of this node, and what else has counted, that `query` selects, in
    /// the order of their names.
    pub fn read(snapshot: &Snapshot, query: &PolicyQuery) -> Self {
        let is_taken = |name: &str| match &query.containing {
            Some(text) => name.contains(text.as_str()),
            None => true,
        };
        let counts = policy_rules(snapshot).into_iter();
        let counts = counts.filter(|c| !query.never || (c.decided == 0 && c.rule.is_some()));
        let named = counts.map(|count| (name(&count), count.decided));
        let all: BTreeMap<String, u64> = named.filter(|(name, _)| is_taken(name)).collect();
        let first = query.after.as_ref().map_or(Unbounded, Excluded);
        let mut rest = all.range::<String, _>((first, Unbounded));
        let page = rest.by_ref().take(query.limit);
        let policies = page.map(|(name, decided)| (name.clone(), *decided)).collect();
        let left_out = rest.count();
        Self { epoch: snapshot.epoch.0, total: all.len(), left_out, policies }
    }
}
