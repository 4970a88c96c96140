//! Which pods are isolated, and by what: directions, defaults, empty and missing lists, unions
//! (N1–N6, N11, N12, N16).

use super::{Case, case, into_a, out_of_a};

const A: &str = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = directions();
    cases.extend(lists());
    cases.extend(unions());
    cases
}

fn directions() -> Vec<Case> {
    vec![
        case("nothing is isolated", [], []),
        case(
            "default deny of ingress",
            [("x", "{podSelector: {}, policyTypes: [Ingress]}")],
            [("deny", "*", "x/*", "*")],
        ),
        case(
            "default deny of egress",
            [("x", "{podSelector: {}, policyTypes: [Egress]}")],
            [("deny", "x/*", "*", "*")],
        ),
        case(
            "default deny of both",
            [("x", "{podSelector: {}, policyTypes: [Ingress, Egress]}")],
            [("deny", "*", "x/*", "*"), ("deny", "x/*", "*", "*")],
        ),
        case(
            "default deny of everything in every namespace",
            [
                ("x", "{podSelector: {}, policyTypes: [Egress, Ingress]}"),
                ("y", "{podSelector: {}, policyTypes: [Egress, Ingress]}"),
                ("z", "{podSelector: {}, policyTypes: [Egress, Ingress]}"),
            ],
            [("deny", "*", "pods", "*"), ("deny", "pods", "*", "*")],
        ),
        case("allow all of ingress", [("x", "{podSelector: {}, ingress: [{}]}")], []),
        case(
            "allow all of egress",
            [("x", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}")],
            [],
        ),
        case("one pod of a namespace", [("x", A)], [("deny", "*", "x/a", "*")]),
        case("the same selector in another namespace", [("z", A)], [("deny", "*", "z/a", "*")]),
        case(
            "a selector that no pod has",
            [("x", "{podSelector: {matchLabels: {pod: d}}, policyTypes: [Ingress, Egress]}")],
            [],
        ),
        case(
            "a policy without a podSelector is for the whole namespace",
            [("y", "{policyTypes: [Ingress]}")],
            [("deny", "*", "y/*", "*")],
        ),
        case(
            "the pod in its node's network is not selected",
            [("x", "{podSelector: {matchLabels: {pod: h}}, policyTypes: [Ingress, Egress]}")],
            [],
        ),
        case(
            "policyTypes missing, no egress: ingress",
            [("x", "{podSelector: {matchLabels: {pod: a}}}")],
            [("deny", "*", "x/a", "*")],
        ),
        case(
            "policyTypes missing, egress empty: ingress",
            [("x", "{podSelector: {matchLabels: {pod: a}}, egress: []}")],
            [("deny", "*", "x/a", "*")],
        ),
        case(
            "policyTypes missing, an egress rule: both",
            [(
                "x",
                "{podSelector: {matchLabels: {pod: a}}, \
                 egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]}",
            )],
            [("deny", "*", "x/a", "*"), ("deny", "x/a", "*", "*"), ("allow", "x/a", "x/b", "*")],
        ),
        case(
            "policyTypes Ingress, with egress rules that say nothing",
            [(
                "x",
                "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress], ingress: [{}], \
                 egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]}",
            )],
            [],
        ),
        case(
            "policyTypes Egress, with ingress rules that say nothing",
            [(
                "x",
                "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], \
                 ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}",
            )],
            [("deny", "x/a", "*", "*")],
        ),
    ]
}

fn lists() -> Vec<Case> {
    vec![
        into_a("ingress empty: nobody", "[]", []),
        into_a("ingress null: nobody", "null", []),
        into_a("an empty rule: everybody", "[{}]", [("allow", "*", "x/a", "*")]),
        into_a("from empty: everybody", "[{from: []}]", [("allow", "*", "x/a", "*")]),
        into_a("from null: everybody", "[{from: null}]", [("allow", "*", "x/a", "*")]),
        into_a("ports empty: every port", "[{ports: []}]", [("allow", "*", "x/a", "*")]),
        into_a("both empty", "[{from: [], ports: []}]", [("allow", "*", "x/a", "*")]),
        into_a(
            "from empty, ports not",
            "[{from: [], ports: [{port: 80}]}]",
            [("allow", "*", "x/a", "80/TCP")],
        ),
        into_a(
            "ports empty, from not",
            "[{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: []}]",
            [("allow", "y/*", "x/a", "*")],
        ),
        into_a(
            "an empty rule among others opens everything",
            "[{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}, {}]",
            [("allow", "*", "x/a", "*")],
        ),
        out_of_a("egress empty: nobody", "[]", []),
        out_of_a("egress null: nobody", "null", []),
        out_of_a("an empty egress rule: everybody", "[{}]", [("allow", "x/a", "*", "*")]),
        out_of_a("to empty: everybody", "[{to: []}]", [("allow", "x/a", "*", "*")]),
        out_of_a("to and ports null", "[{to: null, ports: null}]", [("allow", "x/a", "*", "*")]),
        out_of_a(
            "to empty, ports not",
            "[{to: [], ports: [{port: 81, protocol: UDP}]}]",
            [("allow", "x/a", "*", "81/UDP")],
        ),
    ]
}

fn unions() -> Vec<Case> {
    vec![
        case(
            "deny all and allow all: all",
            [("x", "{podSelector: {}}"), ("x", "{podSelector: {}, ingress: [{}]}")],
            [],
        ),
        case(
            "allow all and deny all: all",
            [("x", "{podSelector: {}, ingress: [{}]}"), ("x", "{podSelector: {}}")],
            [],
        ),
        case(
            "policies of one pod add up",
            [
                ("x", A),
                (
                    "x",
                    "{podSelector: {matchLabels: {pod: a}}, \
                     ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}",
                ),
                (
                    "x",
                    "{podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}, \
                     ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}], \
                     ports: [{port: 80}]}]}",
                ),
            ],
            [
                ("deny", "*", "x/a|x/b", "*"),
                ("allow", "x/b", "x/a", "*"),
                ("allow", "z/*", "x/a|x/b", "80/TCP"),
            ],
        ),
        case(
            "what one policy denies another does not take away",
            [
                ("y", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"),
                ("y", "{podSelector: {}, ingress: [{ports: [{port: 81, protocol: UDP}]}]}"),
            ],
            [("deny", "*", "y/*", "*"), ("allow", "*", "y/*", "80/TCP|81/UDP")],
        ),
        case(
            "both ends must allow",
            [
                (
                    "x",
                    "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], \
                     egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}",
                ),
                (
                    "y",
                    "{podSelector: {matchLabels: {pod: b}}, \
                     ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}",
                ),
            ],
            [
                ("deny", "x/a", "*", "*"),
                ("allow", "x/a", "y/*", "*"),
                ("deny", "*", "y/b", "*"),
                ("allow", "z/*", "y/b", "*"),
            ],
        ),
        case(
            "both ends allow each other, by ports that only partly agree",
            [
                (
                    "x",
                    "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], \
                     egress: [{ports: [{port: 80}, {port: 81}]}]}",
                ),
                (
                    "y",
                    "{podSelector: {}, ingress: [{ports: [{port: 81}, {port: 81, protocol: UDP}]}]}",
                ),
            ],
            [
                ("deny", "x/a", "*", "*"),
                ("allow", "x/a", "*", "*/TCP"),
                ("deny", "*", "y/*", "*"),
                ("allow", "*", "y/*", "81/TCP|81/UDP"),
                ("deny", "x/a", "y/*", "81/UDP"),
            ],
        ),
        case(
            "a chain: each pod lets in the one before",
            [
                (
                    "x",
                    "{podSelector: {matchLabels: {pod: b}}, \
                     ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}",
                ),
                (
                    "x",
                    "{podSelector: {matchLabels: {pod: c}}, \
                     ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}",
                ),
            ],
            [
                ("deny", "*", "x/b|x/c", "*"),
                ("allow", "x/a", "x/b", "*"),
                ("allow", "x/b", "x/c", "*"),
            ],
        ),
        case(
            "one policy, both directions, different peers",
            [(
                "z",
                "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress, Egress], \
                 ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}], \
                 ports: [{port: 80}]}], \
                 egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}], \
                 ports: [{port: 81, protocol: SCTP}]}]}",
            )],
            [
                ("deny", "*", "z/a", "*"),
                ("deny", "z/a", "*", "*"),
                ("allow", "x/*", "z/a", "80/TCP"),
                ("allow", "z/a", "y/*", "81/SCTP"),
            ],
        ),
    ]
}
