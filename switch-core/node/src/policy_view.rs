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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use podswitch_core::config::{Config, LocalNode};
    use podswitch_core::control::{ControlPlane, Options};
    use podswitch_policy::rule::{Direction, NetworkPolicy, Peers, Ports, Rule, Selector};

    use super::*;

    /// Policies `p0` to `p4` with two ingress rules each, the first of which has counted.
    fn world() -> ControlPlane {
        let rule = || Rule { peers: Peers::Any, ports: Ports::Any };
        let policy = |number: u8| NetworkPolicy {
            cookie: format!("NetworkPolicy/shop/p{number}").into(),
            namespace: "shop".into(),
            name: format!("p{number}").into(),
            pods: Selector::everything(),
            ingress: Some(vec![rule(), rule()]),
            egress: None,
        };
        let config = Config {
            node: LocalNode { name: "n1".into(), ..LocalNode::default() },
            policies: (0..5).map(|number| Arc::new(policy(number))).collect(),
            ..Config::default()
        };
        let mut control = ControlPlane::new(Options::default());
        control.apply(&config).expect("a good state");
        let snapshot = control.snapshot();
        for (_, info) in snapshot.policy.policies() {
            snapshot.policy_counters.add(info.counter(Direction::Ingress, Some(0)));
        }
        control
    }

    #[test]
    fn pages_follow_each_other() {
        let control = world();
        let snapshot = control.snapshot();
        let all = PolicyPage::read(&snapshot, &PolicyQuery::new(100));
        assert_eq!((all.total, all.left_out, all.policies.len()), (5, 0, 5));
        let (mut names, mut left, mut query) = (Vec::new(), Vec::new(), PolicyQuery::new(2));
        loop {
            let page = PolicyPage::read(&snapshot, &query);
            assert_eq!(page.total, 5);
            let Some((last, _)) = page.policies.last_key_value() else { break };
            query.after = Some(last.clone());
            left.push(page.left_out);
            names.extend(page.policies.into_keys());
        }
        assert_eq!(left, [3, 1, 0]);
        assert_eq!(names, all.policies.into_keys().collect::<Vec<_>>());
        // After a name that is not there (any more), and after the last one.
        query.after = Some("NetworkPolicy/shop/p2 ingress[7]".to_owned());
        assert_eq!(PolicyPage::read(&snapshot, &query).policies.len(), 2);
        query.after = Some("Z".to_owned());
        assert!(PolicyPage::read(&snapshot, &query).policies.is_empty());
    }
}
