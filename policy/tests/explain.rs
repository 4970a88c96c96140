//! Explanations: that they say what the table does, and how they read.

mod common;

use common::*;
use policy::explain::Side;
use policy::table::PolicyTable;
use policy::verdict::{Traffic, Why};
use proptest::prelude::*;

use std::net::IpAddr;

/// Whether what an explanation says is borne out by the policies as they were written.
fn bears_out(
    table: &PolicyTable,
    side: &Side,
    ends: [IpAddr; 2],
    traffic: Traffic,
) -> Result<(), TestCaseError> {
    let id = |cookie: &str| {
        let mut all = table.policies();
        all.find(|(_, p)| **p.object.cookie() == *cookie).map(|(id, _)| id).unwrap()
    };
    let weigh = |cookie: &str, rule| {
        table.weigh(id(cookie), side.direction, rule, ends, traffic).unwrap().is_whole()
    };
    match side.why {
        Why::Rule(_) => {
            let (policy, rule) = (side.policy.as_ref().unwrap(), side.rule.unwrap());
            prop_assert!(weigh(policy, rule), "{side}");
            for earlier in 0..rule {
                prop_assert!(!weigh(policy, earlier), "an earlier rule matches too: {side}");
            }
        }
        Why::Isolated => {
            prop_assert!(!side.isolated_by.is_empty());
            prop_assert_eq!(side.policy.as_ref(), side.isolated_by.first());
            for cookie in &side.isolated_by {
                let info = table.policy(id(cookie)).unwrap();
                let rules = info.object.rule_count(side.direction) as u32;
                prop_assert!((0..rules).all(|rule| !weigh(cookie, rule)), "{side}");
                prop_assert!(rules == 0 || side.nearest.is_some());
            }
            if let Some(nearest) = &side.nearest {
                prop_assert!(!nearest.differs().is_empty(), "{side}");
            }
        }
        Why::NotIsolated => prop_assert!(side.isolated_by.is_empty() && side.policy.is_none()),
        Why::NoPod => prop_assert!(side.pod.is_none()),
        Why::OwnAddress | Why::OwnNode => prop_assert!(side.allow),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn explanation_and_verdict_agree(cluster in cluster(8, 5, 3)) {
        let table = compile(&cluster).publish();
        let all = addresses(&cluster);
        for from in &all {
            for to in all.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
                let ends = (table.party(*from), table.party(*to));
                for traffic in traffics(from.is_ipv6()) {
                    let verdict = table.verdict(&ends.0, &ends.1, traffic);
                    let explanation = table.explain(*from, *to, traffic);
                    prop_assert_eq!(verdict.allow(), explanation.allow());
                    for (decision, side) in
                        [(verdict.egress, &explanation.egress), (verdict.ingress, &explanation.ingress)]
                    {
                        prop_assert_eq!(decision.allow, side.allow);
                        prop_assert_eq!((decision.why, decision.rule), (side.why, side.rule));
                        bears_out(&table, side, [*from, *to], traffic)?;
                    }
                    prop_assert!(!explanation.to_string().is_empty());
                }
            }
        }
        let asked = traffics(false);
        for cell in table.matrix(&all, &asked) {
            let (from, to) = (table.party(all[cell.from]), table.party(all[cell.to]));
            prop_assert_eq!(cell.allow, table.verdict(&from, &to, asked[cell.traffic]).allow());
        }
    }
}
