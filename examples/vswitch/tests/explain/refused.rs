//! Policies that the API server would refuse, through `check`: object, field and reason.

use serde_json::Value;

use podswitch_vswitch_testkit::{Folder, run};

/// Specs of a NetworkPolicy with one fault each, its field, and what is told of it.
const NETWORK: &[(&str, &str, &str)] = &[
    (
        "{ingress: [{ports: [{endPort: 90}]}]}",
        "spec.ingress[0].ports[0].endPort",
        "no port for the range",
    ),
    (
        "{ingress: [{ports: [{port: 80, endPort: 79}]}]}",
        "spec.ingress[0].ports[0].endPort",
        "below the port, 80",
    ),
    (
        "{ingress: [{ports: [{port: web, endPort: 90}]}]}",
        "spec.ingress[0].ports[0].endPort",
        "not at a name",
    ),
    (
        "{ingress: [{ports: [{port: 80, endPort: 65536}]}]}",
        "spec.ingress[0].ports[0].endPort",
        "1 to 65535",
    ),
    (
        "{ingress: [{ports: [{port: 0}]}]}",
        "spec.ingress[0].ports[0].port",
        "0 is not a port number",
    ),
    (
        "{ingress: [{}, {ports: [{}, {port: 65536}]}]}",
        "spec.ingress[1].ports[1].port",
        "1 to 65535",
    ),
    ("{ingress: [{ports: [{port: Web_1}]}]}", "spec.ingress[0].ports[0].port", "not a port name"),
    ("{ingress: [{ports: [{port: '8080'}]}]}", "spec.ingress[0].ports[0].port", "without quotes"),
    (
        "{ingress: [{ports: [{port: 80, protocol: ICMP}]}]}",
        "spec.ingress[0].ports[0].protocol",
        "not one of TCP, UDP, SCTP",
    ),
    (
        "{ingress: [{ports: [{protocol: udp}]}]}",
        "spec.ingress[0].ports[0].protocol",
        "not one of TCP, UDP, SCTP",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0}}]}]}",
        "spec.egress[0].to[0].ipBlock.cidr",
        "no prefix length",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}",
        "spec.egress[0].to[0].ipBlock.cidr",
        "the prefix length",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 'fd00::/129'}}]}]}",
        "spec.egress[0].to[0].ipBlock.cidr",
        "the prefix length",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.300/8}}]}]}",
        "spec.egress[0].to[0].ipBlock.cidr",
        "not an IP address",
    ),
    (
        "{egress: [{to: [{ipBlock: {except: [10.0.0.0/8]}}]}]}",
        "spec.egress[0].to[0].ipBlock.cidr",
        "no prefix length",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.2.0.0/24]}}]}]}",
        "spec.egress[0].to[0].ipBlock.except[0]",
        "not a part of 10.1.0.0/16",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.0.0.0/8]}}]}]}",
        "spec.egress[0].to[0].ipBlock.except[0]",
        "not a part of",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.0.0/16]}}]}]}",
        "spec.egress[0].to[0].ipBlock.except[0]",
        "not a part of",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16, except: ['fd00::/64']}}]}]}",
        "spec.egress[0].to[0].ipBlock.except[0]",
        "not a part of",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.1.0/24, x]}}]}]}",
        "spec.egress[0].to[0].ipBlock.except[1]",
        "no prefix length",
    ),
    (
        "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
        "spec.ingress[0].from[0]",
        "exclude each other",
    ),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, namespaceSelector: {}}]}]}",
        "spec.egress[0].to[0]",
        "exclude each other",
    ),
    ("{ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]", "no peer"),
    ("{ingress: [{from: [{podSelector: null}]}]}", "spec.ingress[0].from[0]", "no peer"),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}",
        "spec.podSelector.matchExpressions[0].operator",
        "In, NotIn, Exists, DoesNotExist",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "spec.podSelector.matchExpressions[0].values",
        "In needs values",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}",
        "spec.podSelector.matchExpressions[0].values",
        "NotIn needs values",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
        "spec.podSelector.matchExpressions[0].values",
        "Exists takes no values",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}}",
        "spec.podSelector.matchExpressions[0].values",
        "DoesNotExist takes no values",
    ),
    (
        "{podSelector: {matchExpressions: [{key: 'a b', operator: Exists}]}}",
        "spec.podSelector.matchExpressions[0].key",
        "not a key",
    ),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: In, values: [-b]}]}}",
        "spec.podSelector.matchExpressions[0].values[0]",
        "not a label value",
    ),
    ("{podSelector: {matchLabels: {'a b': c}}}", "spec.podSelector.matchLabels", "not a key"),
    (
        "{podSelector: {matchLabels: {a: 'b c'}}}",
        "spec.podSelector.matchLabels",
        "not a label value",
    ),
    ("{podSelector: {matchLabels: {a/b/c: d}}}", "spec.podSelector.matchLabels", "not a key"),
    (
        "{ingress: [{from: [{namespaceSelector: {matchLabels: {_a: b}}}]}]}",
        "spec.ingress[0].from[0].namespaceSelector.matchLabels",
        "not a key",
    ),
    ("{policyTypes: [Both]}", "spec.policyTypes[0]", "not one of Ingress, Egress"),
    ("{policyTypes: [Ingress, Egress, Ingress]}", "spec.policyTypes", "more than two"),
    ("{podSelector: {app: web}}", "spec.podSelector.app", "unknown field"),
    ("{ingress: [{form: []}]}", "spec.ingress[0].form", "unknown field"),
    ("{ingres: [{}]}", "spec.ingres", "unknown field"),
    ("{ingress: {}}", "spec.ingress", "expected a list"),
];

/// The same of a ClusterNetworkPolicy.
const CLUSTER: &[(&str, &str)] = &[
    ("{tier: NetworkPolicy, priority: 0, subject: {namespaces: {}}}", "spec.tier"),
    ("{tier: Admin, priority: 1001, subject: {namespaces: {}}}", "spec.priority"),
    ("{tier: Admin, priority: 1, subject: {}}", "spec.subject"),
    (
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {}}]}]}",
        "spec.ingress[0].action",
    ),
    (
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: []}]}",
        "spec.ingress[0].from",
    ),
    (
        "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.0]}]}]}",
        "spec.egress[0].to[0].networks[0]",
    ),
];

fn manifests() -> String {
    let mut text = String::new();
    for (number, (spec, ..)) in NETWORK.iter().enumerate() {
        text += &format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: p{number}, namespace: a}}\nspec: {spec}\n"
        );
    }
    for (number, (spec, _)) in CLUSTER.iter().enumerate() {
        text += &format!(
            "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
             metadata: {{name: c{number}}}\nspec: {spec}\n"
        );
    }
    text
}

#[test]
fn each_is_told_with_object_field_and_reason() {
    let folder = Folder::new();
    let state = folder.manifest("state", &manifests());
    let output = run(&["check", "--json", "--manifests", &state]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let refused = report["refused"].as_array().expect("a list");
    let network = NETWORK.iter().enumerate().map(|(number, (_, field, reason))| {
        (format!("NetworkPolicy/a/p{number}"), *field, *reason)
    });
    let cluster = CLUSTER
        .iter()
        .enumerate()
        .map(|(number, (_, field))| (format!("ClusterNetworkPolicy/c{number}"), *field, ""));
    let expected: Vec<_> = network.chain(cluster).collect();
    assert_eq!(refused.len(), expected.len(), "one each: {refused:#?}");
    for (told, (object, field, reason)) in refused.iter().zip(expected) {
        assert_eq!((&told["object"], &told["field"]), (&object.into(), &field.into()), "{told}");
        assert!(told["reason"].as_str().expect("text").contains(reason), "{told}");
        assert!(told["file"].as_str().expect("text").ends_with("state.yaml"), "{told}");
    }
    for told in refused {
        assert_eq!(told["action"], "closed", "{told}");
    }
    // `explain` says what the switch would do: these policies close what they select.
    let pods = "---\n{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: a, labels: {app: web}}, status: {podIP: 10.0.0.1}}\n\
                ---\n{apiVersion: v1, kind: Pod, metadata: {name: y, namespace: b}, status: {podIP: 10.0.0.2}}\n";
    let state = folder.manifest("pods", &[pods, &manifests()].concat());
    let explained = run(&["explain", "--manifests", &state, "--matrix", "80/TCP"]);
    assert_eq!(explained.status.code(), Some(0));
    let told = String::from_utf8_lossy(&explained.stderr);
    assert!(told.contains("warning: ") && told.contains("isolated"), "{told}");
    let matrix = String::from_utf8_lossy(&explained.stdout);
    // A pod's traffic to its own address is always allowed (N12).
    let others = |row: &&str| row.contains("a/x\tb/y") || row.contains("b/y\ta/x");
    let rows: Vec<_> = matrix.lines().filter(others).collect();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.ends_with("deny")), "{matrix}");
}
