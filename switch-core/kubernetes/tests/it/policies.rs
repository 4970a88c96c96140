//! NetworkPolicy: every rule of the API server's validation, and the conversion of valid policies.

use podswitch_policy::rule::{
    NetworkPolicy, Operator, Peer, Peers, PortRule, Ports, Protocol, Rule,
};

use crate::{bad, fault, good, is_said};

fn text(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: p, namespace: a}}\nspec: {spec}\n"
    )
}

#[track_caller]
fn policy(spec: &str) -> NetworkPolicy {
    let compiled = good(&text(spec));
    assert_eq!(compiled.config.policies.len(), 1);
    NetworkPolicy::clone(&compiled.config.policies[0])
}

/// The only ingress rule.
#[track_caller]
fn rule(rule: &str) -> Rule {
    policy(&format!("{{ingress: [{rule}]}}")).ingress.expect("isolates").remove(0)
}

#[test]
fn names() {
    let policy = policy("{}");
    assert_eq!(&*policy.cookie, "NetworkPolicy/a/p");
    assert_eq!((&*policy.namespace, &*policy.name), ("a", "p"));
    let unnamed = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    let compiled = good(unnamed);
    assert_eq!(&*compiled.config.policies[0].namespace, "default");
    assert!(compiled.config.namespaces.iter().any(|n| &*n.name == "default"));
}

#[test]
fn which_directions_are_isolated() {
    let (some, none) = (true, false);
    for (spec, ingress, egress) in [
        // N2.
        ("", some, none),
        ("{}", some, none),
        ("{podSelector: {}}", some, none),
        ("{ingress: []}", some, none),
        ("{egress: []}", some, none),
        ("{egress: null}", some, none),
        ("{egress: [{}]}", some, some),
        ("{policyTypes: [], egress: [{}]}", some, some),
        ("{policyTypes: null}", some, none),
        ("{policyTypes: [Ingress]}", some, none),
        ("{policyTypes: [Ingress], egress: [{}]}", some, none),
        ("{policyTypes: [Egress]}", none, some),
        ("{policyTypes: [Egress], ingress: [{}]}", none, some),
        ("{policyTypes: [Egress, Ingress]}", some, some),
        ("{policyTypes: [Ingress, Ingress]}", some, none),
    ] {
        let policy = policy(spec);
        assert_eq!(
            (policy.ingress.is_some(), policy.egress.is_some()),
            (ingress, egress),
            "{spec}"
        );
    }
}

#[test]
fn empty_is_not_missing() {
    // An empty list allows nothing; an empty rule allows everything (N6).
    assert_eq!(policy("{ingress: []}").ingress.unwrap(), []);
    assert_eq!(policy("{ingress: null}").ingress.unwrap(), []);
    let any = Rule { peers: Peers::Any, ports: Ports::Any };
    for text in ["{}", "{from: [], ports: []}", "{from: null, ports: null}", "{from: , ports: }"] {
        assert_eq!(rule(text), any, "{text}");
    }
    // Present but empty selects all; absent is not part of the item (N8).
    let selectors = |peer: &str| match rule(&format!("{{from: [{peer}]}}")).peers {
        Peers::AnyOf(list) => match &list[..] {
            [Peer::Selectors { pods, namespaces }] => {
                let all = |s: &podswitch_policy::rule::Selector| s.is_everything();
                (pods.as_ref().map(all), namespaces.as_ref().map(all))
            }
            other => panic!("{other:?}"),
        },
        Peers::Any => panic!("{peer}"),
    };
    assert_eq!(selectors("{podSelector: {}}"), (Some(true), None));
    assert_eq!(selectors("{podSelector: {}, namespaceSelector: null}"), (Some(true), None));
    assert_eq!(selectors("{namespaceSelector: {}}"), (None, Some(true)));
    assert_eq!(selectors("{namespaceSelector: {matchLabels: {}}}"), (None, Some(true)));
    assert_eq!(
        selectors("{namespaceSelector: {matchLabels: null, matchExpressions: []}}"),
        (None, Some(true))
    );
    assert_eq!(selectors("{podSelector: {}, namespaceSelector: {}}"), (Some(true), Some(true)));
    assert_eq!(selectors("{podSelector: {matchLabels: {a: }}}"), (Some(false), None));
    // A missing selector of the policy itself is an empty one.
    assert!(policy("{ingress: []}").pods.is_everything());
    assert!(policy("{podSelector: null}").pods.is_everything());
}

#[test]
fn selectors() {
    let policy = policy(
        "{podSelector: {matchLabels: {b: x, a: ''}, matchExpressions: [
            {key: c, operator: In, values: [x, y]}, {key: d, operator: NotIn, values: ['']},
            {key: e, operator: Exists}, {key: f, operator: DoesNotExist, values: []}]}}",
    );
    assert_eq!(policy.pods.labels.iter().collect::<Vec<_>>(), [("a", ""), ("b", "x")]);
    let operators: Vec<_> = policy.pods.expressions.iter().map(|e| e.operator.clone()).collect();
    assert_eq!(
        operators,
        [
            Operator::In(vec!["x".into(), "y".into()]),
            Operator::NotIn(vec!["".into()]),
            Operator::Exists,
            Operator::DoesNotExist,
        ]
    );
}

#[test]
fn ip_blocks() {
    let peers = rule(
        "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.3.4/32]}},
                 {ipBlock: {cidr: '::/0', except: ['fd00::/8']}}, {ipBlock: {cidr: 0.0.0.0/0, except: null}}]}",
    )
    .peers;
    let cidr = |text: &str| text.parse().unwrap();
    assert_eq!(
        peers,
        Peers::AnyOf(vec![
            Peer::IpBlock {
                cidr: cidr("10.0.0.0/8"),
                except: vec![cidr("10.1.0.0/16"), cidr("10.2.3.4/32")]
            },
            Peer::IpBlock { cidr: cidr("::/0"), except: vec![cidr("fd00::/8")] },
            Peer::IpBlock { cidr: cidr("0.0.0.0/0"), except: vec![] },
        ])
    );
    // The API server accepts these with a warning.
    let compiled = good(&text("{ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}]}"));
    assert!(is_said(&compiled, &["taken as 10.0.0.0/8"]));
}

#[test]
fn ports() {
    let ports = rule(
        "{ports: [{}, {protocol: UDP}, {port: 80}, {port: 1, endPort: 65535, protocol: SCTP},
                  {port: 53, endPort: 53, protocol: UDP}, {port: http}, {port: dns, protocol: UDP}]}",
    )
    .ports;
    let named =
        |name: &str, protocol| PortRule::Named { protocol: Some(protocol), name: name.into() };
    assert_eq!(
        ports,
        Ports::AnyOf(vec![
            PortRule::Every(Protocol::Tcp),
            PortRule::Every(Protocol::Udp),
            PortRule::port(Protocol::Tcp, 80),
            PortRule::Range { protocol: Protocol::Sctp, first: 1, last: 65535 },
            PortRule::port(Protocol::Udp, 53),
            named("http", Protocol::Tcp),
            named("dns", Protocol::Udp),
        ])
    );
}

/// Specs with one error, and its field.
const FAULTS: &[(&str, &str)] = &[
    // Ports.
    ("{ingress: [{ports: [{endPort: 90}]}]}", "spec.ingress[0].ports[0].endPort"),
    ("{ingress: [{ports: [{port: 80, endPort: 79}]}]}", "spec.ingress[0].ports[0].endPort"),
    ("{ingress: [{ports: [{port: 80, endPort: 65536}]}]}", "spec.ingress[0].ports[0].endPort"),
    ("{ingress: [{ports: [{port: http, endPort: 90}]}]}", "spec.ingress[0].ports[0].endPort"),
    ("{ingress: [{ports: [{port: 80, endPort: '90'}]}]}", "spec.ingress[0].ports[0].endPort"),
    ("{ingress: [{ports: [{port: 80, endPort: 90.5}]}]}", "spec.ingress[0].ports[0].endPort"),
    ("{ingress: [{ports: [{port: 0}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: -1}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: 65536}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: 99999999999999999999}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: '80'}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: ''}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: HTTP}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: a-name-too-long-for-a-port}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: a--b}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: true}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{port: [80]}]}]}", "spec.ingress[0].ports[0].port"),
    ("{ingress: [{ports: [{protocol: ICMP}]}]}", "spec.ingress[0].ports[0].protocol"),
    ("{ingress: [{ports: [{protocol: tcp}]}]}", "spec.ingress[0].ports[0].protocol"),
    ("{ingress: [{ports: [{protocol: ''}]}]}", "spec.ingress[0].ports[0].protocol"),
    ("{egress: [{}, {ports: [{}, {endPort: 1}]}]}", "spec.egress[1].ports[1].endPort"),
    // Peers.
    ("{ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]"),
    ("{ingress: [{from: [{podSelector: }]}]}", "spec.ingress[0].from[0]"),
    (
        "{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
        "spec.ingress[0].from[0]",
    ),
    (
        "{egress: [{to: [{namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}",
        "spec.egress[0].to[0]",
    ),
    ("{ingress: [{from: [{ipBlock: {}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr"),
    ("{ingress: [{from: [{ipBlock: {cidr: ''}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr"),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}", "spec.ingress[0].from[0].ipBlock.cidr"),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}",
        "spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}]}",
        "spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 'fd00::/129'}}]}]}",
        "spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]}",
        "spec.ingress[0].from[0].ipBlock.cidr",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
        "spec.ingress[0].from[0].ipBlock.except[0]",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
        "spec.ingress[0].from[0].ipBlock.except[0]",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.0.0.0/8]}}]}]}",
        "spec.ingress[0].from[0].ipBlock.except[0]",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: ['fd00::/8']}}]}]}",
        "spec.ingress[0].from[0].ipBlock.except[0]",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, x]}}]}]}",
        "spec.ingress[0].from[0].ipBlock.except[1]",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['']}}]}]}",
        "spec.ingress[0].from[0].ipBlock.except[0]",
    ),
    // Selectors.
    ("{podSelector: {matchLabels: {'a b': c}}}", "spec.podSelector.matchLabels"),
    ("{podSelector: {matchLabels: {a: 'b c'}}}", "spec.podSelector.matchLabels"),
    ("{podSelector: {matchLabels: {a: 1}}}", "spec.podSelector.matchLabels.a"),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}",
        "spec.podSelector.matchExpressions[0].operator",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}",
        "spec.podSelector.matchExpressions[0].operator",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a}]}}",
        "spec.podSelector.matchExpressions[0].operator",
    ),
    (
        "{podSelector: {matchExpressions: [{operator: Exists}]}}",
        "spec.podSelector.matchExpressions[0].key",
    ),
    (
        "{podSelector: {matchExpressions: [{key: '-', operator: Exists}]}}",
        "spec.podSelector.matchExpressions[0].key",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}",
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}}",
        "spec.podSelector.matchExpressions[0].values",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: In, values: [b, 'c d']}]}}",
        "spec.podSelector.matchExpressions[0].values[1]",
    ),
    (
        "{ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}]}",
        "spec.ingress[0].from[0].podSelector.matchExpressions[0].values",
    ),
    (
        "{egress: [{to: [{namespaceSelector: {matchLabels: {a/b/c: d}}}]}]}",
        "spec.egress[0].to[0].namespaceSelector.matchLabels",
    ),
    // Types.
    ("{policyTypes: [Both]}", "spec.policyTypes[0]"),
    ("{policyTypes: [Ingress, egress]}", "spec.policyTypes[1]"),
    ("{policyTypes: [Ingress, Egress, Ingress]}", "spec.policyTypes"),
    ("{policyTypes: Ingress}", "spec.policyTypes"),
    // An unknown field allows nothing.
    ("{ingres: []}", "spec.ingres"),
    ("{ingress: [{form: []}]}", "spec.ingress[0].form"),
    ("{ingress: [{to: []}]}", "spec.ingress[0].to"),
    ("{ingress: [{from: [{podselector: {}}]}]}", "spec.ingress[0].from[0].podselector"),
    ("{podSelector: {app: web}}", "spec.podSelector.app"),
    ("{ingress: [null]}", "spec.ingress[0]"),
    ("{ingress: {}}", "spec.ingress"),
    ("[]", "spec"),
];

#[test]
fn faults() {
    for (spec, field) in FAULTS {
        assert_eq!(bad(&text(spec)), [fault("NetworkPolicy/a/p", field)], "{spec}");
    }
}

#[test]
fn all_faults_are_reported_at_once() {
    let found = bad(&text(
        "{podSelector: {matchLabels: {'a b': c}}, policyTypes: [Both],
          ingress: [{from: [{}], ports: [{port: 0, protocol: x}]}], egress: [{to: [{ipBlock: {cidr: x}}]}]}",
    ));
    assert_eq!(found.len(), 6, "{found:#?}");
}

#[test]
fn a_thousand_faults_of_one_object_are_not_all_reported() {
    let ports = "{port: 0},".repeat(100_000);
    let found = bad(&text(&format!("{{ingress: [{{ports: [{ports}]}}]}}")));
    assert_eq!(found.len(), 100);
}

#[test]
fn rules_left_out_by_policy_types_are_noted() {
    let compiled = good(&text("{policyTypes: [Egress], ingress: [{}]}"));
    assert!(is_said(&compiled, &["spec.ingress", "policyTypes does not name ingress"]));
}
