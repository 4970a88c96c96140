//! ClusterNetworkPolicy: the validation rules of its definition, and the conversion of valid
//! policies.

use podswitch_policy::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterTier, PortRule, Ports, Protocol,
};

use crate::{bad, fault, good, is_said};

fn text(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
         metadata: {{name: p}}\nspec: {spec}\n"
    )
}

fn with(rest: &str) -> String {
    text(&format!("{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {rest}}}"))
}

#[track_caller]
fn policy(text: &str) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy::clone(&good(text).config.cluster_policies[0])
}

#[test]
fn a_policy_with_everything() {
    let policy = policy(&text(
        "{tier: Baseline, priority: 1000, subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {}}},
          ingress: [{name: first, action: Accept, from: [{namespaces: {}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {c: d}}}}],
            protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 65535}}}},
                        {sctp: {destinationPort: {number: 9}}}, {destinationNamedPort: http}]}],
          egress: [{action: Pass, to: [{nodes: {}}, {networks: [10.0.0.0/8, 'fd00::/8']}]},
                   {action: Deny, to: [{namespaces: {matchExpressions: [{key: a, operator: Exists}]}}]}]}",
    ));
    assert_eq!((&*policy.cookie, &*policy.name), ("ClusterNetworkPolicy/p", "p"));
    assert_eq!((policy.tier, policy.priority), (ClusterTier::Baseline, 1000));
    assert!(policy.subject.pods.is_everything() && !policy.subject.namespaces.is_everything());
    let first = &policy.ingress[0];
    assert_eq!((&*first.name, first.action, first.peers.len()), ("first", Action::Accept, 2));
    assert_eq!(
        first.ports,
        Ports::AnyOf(vec![
            PortRule::port(Protocol::Tcp, 80),
            PortRule::Range { protocol: Protocol::Udp, first: 1, last: 65535 },
            PortRule::port(Protocol::Sctp, 9),
            PortRule::Named { protocol: None, name: "http".into() },
        ])
    );
    assert_eq!(policy.egress[0].action, Action::Pass);
    assert!(matches!(policy.egress[0].peers[0], ClusterPeer::Nodes(_)));
    assert!(matches!(&policy.egress[0].peers[1], ClusterPeer::Networks(n) if n.len() == 2));
    assert_eq!(policy.egress[1].ports, Ports::Any);
}

#[test]
fn peers_and_protocols_of_later_versions_fail_closed() {
    for rule in [
        "ingress: [{action: Accept, from: [{planets: {}}]}]",
        "egress: [{action: Deny, to: [{domainNames: ['*.kubernetes.io']}]}]",
        "ingress: [{action: Accept, from: [{namespaces: {}}], protocols: [{quic: {}}, {tcp: {destinationPort: {number: 1}}}]}]",
    ] {
        let compiled = good(&with(rule));
        let policy = &compiled.config.cluster_policies[0];
        let rule = policy.ingress.first().or(policy.egress.first()).unwrap();
        assert!(rule.has_unknown_peer(), "{rule:?}");
        assert!(is_said(&compiled, &["fails closed"]));
    }
}

#[test]
fn faults() {
    let rules = "{action: Deny, from: [{namespaces: {}}]},".repeat(26);
    let peers = "{namespaces: {}},".repeat(26);
    let long = "n".repeat(101);
    for (text, field) in [
        (text("{}"), "spec.tier spec.priority spec.subject"),
        (text("{tier: NetworkPolicy, priority: 0, subject: {namespaces: {}}}"), "spec.tier"),
        (text("{tier: Admin, priority: 1001, subject: {namespaces: {}}}"), "spec.priority"),
        (text("{tier: Admin, priority: -1, subject: {namespaces: {}}}"), "spec.priority"),
        (text("{tier: Admin, priority: '1', subject: {namespaces: {}}}"), "spec.priority"),
        (text("{tier: Admin, priority: 1, subject: {}}"), "spec.subject"),
        (text("{tier: Admin, priority: 1, subject: {nodes: {}}}"), "spec.subject"),
        (
            text("{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}}"),
            "spec.subject",
        ),
        (
            text("{tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}}}}"),
            "spec.subject.pods.podSelector",
        ),
        (
            text("{tier: Admin, priority: 1, subject: {namespaces: {matchLabels: []}}}"),
            "spec.subject.namespaces.matchLabels",
        ),
        (with("rules: []"), "spec.rules"),
        (with(&format!("ingress: [{rules}]")), "spec.ingress"),
        (with(&format!("ingress: [{{action: Deny, from: [{peers}]}}]")), "spec.ingress[0].from"),
        (
            with(&format!(
                "ingress: [{{name: {long}, action: Deny, from: [{{namespaces: {{}}}}]}}]"
            )),
            "spec.ingress[0].name",
        ),
        (with("ingress: [{action: Allow, from: [{namespaces: {}}]}]"), "spec.ingress[0].action"),
        (with("ingress: [{from: [{namespaces: {}}]}]"), "spec.ingress[0].action"),
        (with("ingress: [{action: Deny}]"), "spec.ingress[0].from"),
        (with("ingress: [{action: Deny, from: []}]"), "spec.ingress[0].from"),
        (with("ingress: [{action: Deny, from: [{}]}]"), "spec.ingress[0].from[0]"),
        (
            with("ingress: [{action: Deny, from: [{namespaces: {}, planets: {}}]}]"),
            "spec.ingress[0].from[0]",
        ),
        (
            with("ingress: [{action: Deny, from: [{networks: [10.0.0.0/8]}]}]"),
            "spec.ingress[0].from[0].networks",
        ),
        (
            with("ingress: [{action: Deny, from: [{namespaces: {matchLabels: {a: 1}}}]}]"),
            "spec.ingress[0].from[0].namespaces.matchLabels.a",
        ),
        (with("egress: [{action: Deny, to: [{networks: []}]}]"), "spec.egress[0].to[0].networks"),
        (
            with("egress: [{action: Deny, to: [{networks: [x]}]}]"),
            "spec.egress[0].to[0].networks[0]",
        ),
        (
            with("egress: [{action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}]"),
            "spec.egress[0].to[0].networks[1]",
        ),
        (
            with(
                "egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]}]",
            ),
            "spec.egress[0]",
        ),
        (
            with("egress: [{action: Deny, to: [{nodes: {}}], protocols: []}]"),
            "spec.egress[0].protocols",
        ),
        (
            with("egress: [{action: Deny, to: [{nodes: {}}], protocols: [{}]}]"),
            "spec.egress[0].protocols[0]",
        ),
        (
            with("egress: [{action: Deny, to: [{nodes: {}}], protocols: [{tcp: {}}]}]"),
            "spec.egress[0].protocols[0].tcp.destinationPort",
        ),
        (
            with(
                "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {}}}]}]",
            ),
            "spec.egress[0].protocols[0].tcp.destinationPort",
        ),
        (
            with(
                "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{udp: {destinationPort: {number: 0}}}]}]",
            ),
            "spec.egress[0].protocols[0].udp.destinationPort.number",
        ),
        (
            with(
                "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{udp: {destinationPort: {range: {start: 5, end: 5}}}}]}]",
            ),
            "spec.egress[0].protocols[0].udp.destinationPort.range",
        ),
        (
            with(
                "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{udp: {destinationPort: {range: {start: 5}}}}]}]",
            ),
            "spec.egress[0].protocols[0].udp.destinationPort.range.end",
        ),
        (
            with(
                "egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: '80'}]}]",
            ),
            "spec.egress[0].protocols[0].destinationNamedPort",
        ),
    ] {
        let expected: Vec<_> =
            field.split(' ').map(|field| fault("ClusterNetworkPolicy/p", field)).collect();
        assert_eq!(bad(&text), expected, "{text}");
    }
}
