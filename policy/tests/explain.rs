//! Explanations: they agree with the table, and their text.

mod common;

use common::*;
use podswitch_policy::explain::Side;
use podswitch_policy::table::PolicyTable;
use podswitch_policy::verdict::{Traffic, Why};
use proptest::prelude::*;

use std::net::IpAddr;

/// Whether an explanation agrees with the policies as written.
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
        let probes = traffics(false);
        for cell in table.matrix(&all, &probes) {
            let (from, to) = (table.party(all[cell.from]), table.party(all[cell.to]));
            prop_assert_eq!(cell.allow, table.verdict(&from, &to, probes[cell.traffic]).allow());
        }
    }
}

mod wording {
    use std::sync::Arc;

    use podswitch_policy::compile::PolicyCompiler;
    use podswitch_policy::rule::*;
    use podswitch_policy::table::PolicyTable;
    use podswitch_policy::verdict::Traffic;

    const WEB: &str = "10.0.0.1";
    const DB: &str = "10.0.0.2";

    fn labels(key: &str, value: &str) -> Labels {
        [(key, value)].into_iter().collect()
    }

    fn table() -> Arc<PolicyTable> {
        let mut compiler = PolicyCompiler::new();
        for (name, address) in [("web", WEB), ("db", DB)] {
            let workload = Workload {
                namespace: "shop".into(),
                name: name.into(),
                labels: labels("app", name),
                addresses: vec![address.parse().unwrap()],
                ports: Vec::new(),
                host_network: false,
            };
            let cookie = format!("Pod/shop/{name}").into();
            compiler.upsert_pod(&cookie, &workload, &"n1".into());
        }
        let peer = Peer::Selectors {
            pods: Some(Selector::of_labels(labels("app", "web"))),
            namespaces: None,
        };
        let rule = Rule {
            peers: Peers::AnyOf(vec![peer]),
            ports: Ports::AnyOf(vec![PortRule::port(Protocol::Tcp, 5432)]),
        };
        compiler.upsert_network_policy(&Arc::new(NetworkPolicy {
            cookie: "NetworkPolicy/shop/db".into(),
            namespace: "shop".into(),
            name: "db".into(),
            pods: Selector::of_labels(labels("app", "db")),
            ingress: Some(vec![rule]),
            egress: None,
        }));
        compiler.publish()
    }

    fn explained(from: &str, to: &str, traffic: Traffic) -> String {
        table().explain(from.parse().unwrap(), to.parse().unwrap(), traffic).to_string()
    }

    fn tcp(port: u16) -> Traffic {
        Traffic::to_port(Protocol::Tcp, port)
    }

    #[test]
    fn an_allowed_connection_names_the_rule() {
        assert_eq!(
            explained(WEB, DB, tcp(5432)),
            "egress of Pod/shop/web: allow, no policy isolates it\n\
             ingress of Pod/shop/db: allow, by NetworkPolicy/shop/db ingress[0] \
             (from pods app=web of its own namespace, 5432/TCP)"
        );
    }

    #[test]
    fn a_denial_names_the_differences() {
        let isolated = "ingress of Pod/shop/db: deny, isolated by NetworkPolicy/shop/db, \
                        none of whose rules matches; nearest is NetworkPolicy/shop/db ingress[0]";
        let last = |text: String| text.lines().last().unwrap().to_owned();
        assert_eq!(
            last(explained(WEB, DB, tcp(80))),
            format!("{isolated}, which names 5432/TCP and not 80/TCP")
        );
        assert_eq!(
            last(explained("192.0.2.1", DB, tcp(5432))),
            format!(
                "{isolated}, which is about pods app=web of its own namespace and not 192.0.2.1"
            )
        );
        let both = explained("192.0.2.1", DB, Traffic::echo(false));
        assert!(both.contains("and names 5432/TCP and not ICMP"), "{both}");
    }

    #[test]
    fn differences_are_machine_readable() {
        let differs = |from: &str, traffic| {
            let explanation = table().explain(from.parse().unwrap(), DB.parse().unwrap(), traffic);
            assert_eq!(explanation.denied_by(), Some(&explanation.ingress));
            explanation.ingress.nearest.unwrap().differs()
        };
        assert_eq!(differs(WEB, tcp(80)), ["port"]);
        assert_eq!(differs(WEB, Traffic::to_port(Protocol::Udp, 5432)), ["protocol"]);
        assert_eq!(differs("192.0.2.1", tcp(5432)), ["peer"]);
        assert_eq!(differs("192.0.2.1", tcp(1)), ["peer", "port"]);
    }

    #[test]
    fn ends_without_policies_say_so() {
        let text = explained("192.0.2.1", WEB, tcp(80));
        assert!(text.starts_with("egress: allow, policies apply to pods only"), "{text}");
        let own = explained(DB, DB, tcp(80));
        assert!(own.contains("a pod may always call its own address"), "{own}");
    }
}
