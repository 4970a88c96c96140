//! A policy that cannot be used never opens anything.

use podswitch_kubernetes::{Action, Compiled};
use podswitch_policy::rule::{Action as Verdict, ClusterTier, Labels, NetworkPolicy, Selector};

use crate::compile;

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: p, namespace: a}}\nspec: {spec}\n"
    )
}

/// The only policy, which must isolate.
#[track_caller]
fn closed(compiled: &Compiled) -> &NetworkPolicy {
    let records = crate::refused(compiled);
    assert!(!records.is_empty());
    assert!(records.iter().all(|record| record.action == Action::Closed), "{records:#?}");
    assert_eq!(records[0].object.as_str(), "NetworkPolicy/a/p");
    assert_eq!((compiled.counts().closed, compiled.counts().left_out), (1, 0));
    let [policy] = &compiled.config.policies[..] else { panic!("{:?}", compiled.config.policies) };
    assert_eq!(
        (&*policy.cookie, &*policy.namespace, &*policy.name),
        ("NetworkPolicy/a/p", "a", "p")
    );
    for rules in [&policy.ingress, &policy.egress].into_iter().flatten() {
        assert!(rules.is_empty(), "it allows nothing");
    }
    policy
}

#[test]
fn it_isolates_the_selected_pods_in_the_named_directions() {
    let web =
        Selector { labels: Labels::new([("app".into(), "web".into())]), expressions: Vec::new() };
    let all = Selector::everything();
    let (yes, no) = (true, false);
    for (spec, pods, ingress, egress) in [
        // A rule that cannot be used: selector and directions can be read.
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 0}]}]}",
            &web,
            yes,
            no,
        ),
        ("{podSelector: {matchLabels: {app: web}}, egress: [{to: [{}]}]}", &web, yes, yes),
        (
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{protocol: QUIC}]}]}",
            &web,
            no,
            yes,
        ),
        // Wrong types.
        ("{podSelector: {matchLabels: {app: web}}, ingress: {}}", &web, yes, no),
        ("{podSelector: {matchLabels: {app: web}}, egress: {}}", &web, yes, yes),
        (
            "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: 7}",
            &web,
            no,
            yes,
        ),
        ("{podSelector: {matchLabels: {app: web}}, later: {}}", &web, yes, no),
        // The directions cannot be read.
        ("{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingres]}", &web, yes, yes),
        ("{podSelector: {matchLabels: {app: web}}, policyTypes: Ingress}", &web, yes, yes),
        ("{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, 7]}", &web, yes, yes),
        // The selector cannot be read.
        ("{podSelector: {matchExpressions: [{key: a, operator: Near}]}}", &all, yes, no),
        ("{podSelector: {matchLabels: [app]}, policyTypes: [Egress]}", &all, no, yes),
        ("{podSelector: {app: web}}", &all, yes, no),
        ("{podSelector: web, policyTypes: [Egress, Ingress]}", &all, yes, yes),
        // Nothing can be read.
        ("[]", &all, yes, yes),
        ("text", &all, yes, yes),
    ] {
        let compiled = compile(&policy(spec));
        let policy = closed(&compiled);
        assert_eq!(&policy.pods, pods, "{spec}");
        assert_eq!(
            (policy.ingress.is_some(), policy.egress.is_some()),
            (ingress, egress),
            "{spec}"
        );
    }
    // Errors in its metadata do not prevent it from isolating.
    let text = policy("{}").replace("name: p", "name: p, labels: {a b: c}");
    assert!(closed(&compile(&text)).pods.is_everything());
    let text = policy("{}").replace("name: p", "name: p, labels: [x]");
    assert!(closed(&compile(&text)).pods.is_everything());
    // No namespace can have that name, so it selects nothing.
    let compiled = compile(&policy("{}").replace("namespace: a", "namespace: A"));
    assert!(compiled.config.policies.is_empty());
    assert_eq!(compiled.counts().left_out, 1);
}

#[test]
fn a_misspelled_version_or_kind_isolates_too() {
    let spec = "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}";
    for (right, wrong) in [
        ("networking.k8s.io/v1", "networking.k8s.io/v1beta1"),
        ("networking.k8s.io/v1", "extensions/v1beta1"),
        ("networking.k8s.io/v1", "networking.k8s.io"),
        ("networking.k8s.io/v1", "network.k8s.io/v1"),
        ("kind: NetworkPolicy", "kind: NetworkPolicies"),
        ("kind: NetworkPolicy", "kind: Networkpolicy"),
    ] {
        let compiled = compile(&policy(spec).replace(right, wrong));
        let policy = closed(&compiled);
        assert!(!policy.pods.is_everything());
        assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), (false, true), "{wrong}");
    }
    let compiled =
        compile("{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: p}}");
    assert!(compiled.config.policies.is_empty() && crate::refused(&compiled).is_empty());
}

#[test]
fn a_second_definition_isolates_the_selected_pods() {
    let open = policy("{podSelector: {}, ingress: [{}]}");
    let shut = policy("{podSelector: {}, policyTypes: [Egress]}");
    let compiled = compile(&format!("{open}---\n{shut}"));
    let [first, second] = &compiled.config.policies[..] else { panic!() };
    assert_eq!(first.ingress.as_ref().unwrap().len(), 1);
    assert_eq!((second.ingress.is_some(), second.egress.as_deref()), (false, Some(&[][..])));
    assert_ne!(first.cookie, second.cookie);
    let records = crate::refused(&compiled);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].object.as_str(), "NetworkPolicy/a/p");
    assert_eq!((&*records[0].field, records[0].action), ("metadata.name", Action::Closed));
    assert!(records[0].reason.contains("test.yaml:1"), "{}", records[0].reason);
}

fn cluster(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
         metadata: {{name: p}}\nspec: {spec}\n"
    )
}

#[test]
fn a_cluster_policy_denies_all_to_and_from_its_subject() {
    const RULE: &str = "{action: Deny, from: [{namespaces: {}}]}";
    let web = "subject: {pods: {podSelector: {matchLabels: {app: web}}, namespaceSelector: {}}}";
    for (spec, all, tier, priority, ingress, egress) in [
        (
            format!(
                "tier: Baseline, priority: 7, {web}, ingress: [{RULE}, {{action: Allow, from: [{{namespaces: {{}}}}]}}]"
            ),
            false,
            ClusterTier::Baseline,
            7,
            1,
            0,
        ),
        (
            format!("tier: Baseline, priority: 7, {web}, egress: {{}}"),
            false,
            ClusterTier::Baseline,
            7,
            0,
            1,
        ),
        (
            format!(
                "tier: Later, priority: 7, {web}, ingress: [{RULE}], egress: [{{action: Deny}}]"
            ),
            false,
            ClusterTier::Admin,
            7,
            1,
            1,
        ),
        (format!("tier: Admin, priority: 1001, {web}"), false, ClusterTier::Admin, 0, 1, 1),
        (
            format!("tier: Admin, priority: 5, subject: {{planets: {{}}}}, ingress: [{RULE}]"),
            true,
            ClusterTier::Admin,
            5,
            1,
            0,
        ),
        ("tier: Admin, priority: 5, subject: 7".to_owned(), true, ClusterTier::Admin, 5, 1, 1),
    ] {
        let compiled = compile(&cluster(&format!("{{{spec}}}")));
        let [policy] = &compiled.config.cluster_policies[..] else { panic!("{spec}") };
        assert_eq!(policy.subject.pods.is_everything(), all, "{spec}");
        assert_eq!((policy.tier, policy.priority), (tier, priority), "{spec}");
        assert_eq!((policy.ingress.len(), policy.egress.len()), (ingress, egress), "{spec}");
        for rule in policy.ingress.iter().chain(&policy.egress) {
            assert!(rule.action == Verdict::Deny && rule.has_unknown_peer());
        }
        assert_eq!(compiled.counts().closed, 1);
    }
    let compiled = compile(&cluster("[]").replace("v1alpha2", "v1alpha3"));
    assert_eq!(compiled.config.cluster_policies.len(), 1);
}
