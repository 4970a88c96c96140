//! Peers by label: namespaces and pods, AND and OR, all four operators (N8).

use super::{Case, case, into_a, lets_in, out_of_a};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = items();
    cases.extend(operators());
    cases.extend(others());
    cases
}

fn items() -> Vec<Case> {
    vec![
        lets_in(
            "podSelector: of the same namespace",
            "[{podSelector: {matchLabels: {pod: b}}}]",
            "x/b",
        ),
        lets_in("podSelector empty: the namespace's pods", "[{podSelector: {}}]", "x/*"),
        lets_in(
            "namespaceSelector: all its pods",
            "[{namespaceSelector: {matchLabels: {ns: y}}}]",
            "y/*",
        ),
        lets_in(
            "namespaceSelector empty: every pod, no node and no address",
            "[{namespaceSelector: {}}]",
            "pods",
        ),
        lets_in(
            "both in one item: AND",
            "[{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]",
            "y/b",
        ),
        lets_in(
            "the same in two items: OR",
            "[{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}]",
            "y/*|x/b",
        ),
        lets_in(
            "all namespaces, some pods",
            "[{namespaceSelector: {}, podSelector: {matchLabels: {pod: c}}}]",
            "x/c|y/c|z/c",
        ),
        lets_in(
            "some namespaces, all pods",
            "[{namespaceSelector: {matchLabels: {ns: z}}, podSelector: {}}]",
            "z/*",
        ),
        lets_in(
            "an absent selector is not an empty one",
            "[{namespaceSelector: null, podSelector: {}}]",
            "x/*",
        ),
        lets_in(
            "a namespace by its name",
            "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]",
            "z/*",
        ),
        lets_in(
            "a namespace's labels do not apply to its pods",
            "[{podSelector: {matchLabels: {ns: x}}}]",
            "nobody",
        ),
        lets_in(
            "a pod's labels do not apply to its namespace",
            "[{namespaceSelector: {matchLabels: {pod: a}}}]",
            "nobody",
        ),
        lets_in(
            "a pod in its node's network is no pod peer",
            "[{podSelector: {matchLabels: {pod: h}}}]",
            "nobody",
        ),
        lets_in(
            "two labels that no pod has together",
            "[{podSelector: {matchLabels: {pod: b, ns: x}}}]",
            "nobody",
        ),
    ]
}

fn operators() -> Vec<Case> {
    vec![
        lets_in(
            "In",
            "[{podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c, d]}]}}]",
            "x/b|x/c",
        ),
        lets_in(
            "NotIn",
            "[{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}}]",
            "x/c",
        ),
        lets_in(
            "NotIn matches pods without the key",
            "[{podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [db]}]}}]",
            "x/*",
        ),
        lets_in(
            "Exists",
            "[{namespaceSelector: {matchExpressions: [{key: ns, operator: Exists}]}}]",
            "pods",
        ),
        lets_in(
            "Exists of a key that no pod has",
            "[{podSelector: {matchExpressions: [{key: tier, operator: Exists}]}}]",
            "nobody",
        ),
        lets_in(
            "DoesNotExist",
            "[{podSelector: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}]",
            "x/*",
        ),
        lets_in(
            "DoesNotExist of a key that every pod has",
            "[{podSelector: {matchExpressions: [{key: pod, operator: DoesNotExist}]}}]",
            "nobody",
        ),
        lets_in(
            "namespaces NotIn",
            "[{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x, z]}]}}]",
            "y/*",
        ),
        lets_in(
            "requirements are ANDed, of labels and of expressions",
            "[{namespaceSelector: {matchExpressions: [\
             {key: ns, operator: Exists}, {key: ns, operator: NotIn, values: [x]}]}, \
             podSelector: {matchLabels: {pod: a}, matchExpressions: [\
             {key: pod, operator: In, values: [a, b]}]}}]",
            "y/a|z/a",
        ),
        lets_in(
            "requirements that contradict each other",
            "[{podSelector: {matchLabels: {pod: b}, matchExpressions: [\
             {key: pod, operator: NotIn, values: [b]}]}}]",
            "nobody",
        ),
        lets_in(
            "a namespace by its name, In",
            "[{namespaceSelector: {matchExpressions: [\
             {key: kubernetes.io/metadata.name, operator: In, values: [y, z]}]}}]",
            "y/*|z/*",
        ),
        case(
            "the subject by expression",
            [(
                "x",
                "{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [a]}]}}",
            )],
            [("deny", "*", "x/b|x/c", "*")],
        ),
    ]
}

fn others() -> Vec<Case> {
    vec![
        into_a(
            "two rules are ORed",
            "[{from: [{podSelector: {matchLabels: {pod: b}}}]}, \
             {from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]",
            [("allow", "x/b|z/*", "x/a", "*")],
        ),
        out_of_a(
            "egress to a namespace",
            "[{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]",
            [("allow", "x/a", "y/*", "*")],
        ),
        out_of_a(
            "egress to some pods of a namespace",
            "[{to: [{namespaceSelector: {matchLabels: {ns: y}}, \
             podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}]}]",
            [("allow", "x/a", "y/b|y/c", "*")],
        ),
        out_of_a(
            "egress to every pod is not egress to everybody",
            "[{to: [{namespaceSelector: {}}]}]",
            [("allow", "x/a", "pods", "*")],
        ),
        case(
            "a namespace keeps to itself",
            [(
                "y",
                "{podSelector: {}, policyTypes: [Ingress, Egress], \
                 ingress: [{from: [{podSelector: {}}]}], egress: [{to: [{podSelector: {}}]}]}",
            )],
            [("deny", "*", "y/*", "*"), ("deny", "y/*", "*", "*"), ("allow", "y/*", "y/*", "*")],
        ),
        case(
            "everyone but one namespace",
            [(
                "y",
                "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [\
                 {key: ns, operator: NotIn, values: [x]}]}}]}]}",
            )],
            [("deny", "*", "y/*", "*"), ("allow", "y/*|z/*", "y/*", "*")],
        ),
    ]
}
