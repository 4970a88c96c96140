//! Which pods are isolated, by which policies, in which direction (N1–N6, N8, N11, N12, N16, N18).

use podswitch_policy::rule::{Direction, NetworkPolicy, Peers, Ports, Rule};

use super::{Case, case};
use crate::build::*;

/// A policy with the given `policyTypes` and rules (N2).
fn typed(base: NetworkPolicy, types: &[Direction], egress_rules: bool) -> NetworkPolicy {
    let (ingress, egress) = Direction::isolated_by(types, egress_rules);
    let rules = base.egress.clone().unwrap_or_default();
    NetworkPolicy {
        ingress: ingress.then(|| base.ingress.clone().unwrap_or_default()),
        egress: egress.then_some(rules),
        ..base
    }
}

pub(super) fn cases() -> Vec<Case> {
    use Direction::{Egress, Ingress};
    let any = || rule([], "");
    let mut cases = vec![
        case("no policy: everything is allowed", [], []),
        case(
            "an empty podSelector isolates the whole namespace",
            [policy("x/p", "").ingress([])],
            [("deny", "*", "x/*", "*")],
        ),
        case(
            "ingress isolation of one pod does not affect other pods or its own egress",
            [policy("x/p", "pod=a").ingress([])],
            [("deny", "*", "x/a", "*")],
        ),
        case(
            "egress isolation does not affect ingress",
            [policy("x/p", "pod=a").egress([])],
            [("deny", "x/a", "*", "*")],
        ),
        case(
            "deny all: both directions",
            [policy("x/p", "").ingress([]).egress([])],
            [("deny", "*", "x/*", "*"), ("deny", "x/*", "*", "*")],
        ),
        case("ingress [{}] allows everything", [policy("x/p", "").ingress([any()])], []),
        case("egress [{}] allows everything", [policy("x/p", "").egress([any()])], []),
        case(
            "a selector that selects nothing isolates nothing",
            [policy("x/p", "pod=nobody").ingress([]).egress([])],
            [],
        ),
        case(
            "a policy applies to its own namespace only",
            [policy("y/p", "pod=a").ingress([])],
            [("deny", "*", "y/a", "*")],
        ),
        case("a policy without directions isolates nothing", [policy("x/p", "")], []),
        case(
            "deny all and allow all together allow all: a union without order",
            [policy("x/a-deny", "").ingress([]), policy("x/z-allow", "").ingress([any()])],
            [],
        ),
        case(
            "the same with the policies in reverse order",
            [policy("x/a-allow", "").ingress([any()]), policy("x/z-deny", "").ingress([])],
            [],
        ),
        case(
            "several policies: the union of what they allow",
            [
                policy("x/p1", "pod=a").ingress([rule([pods("pod=b")], "")]),
                policy("x/p2", "").ingress([rule([namespaces("ns=y")], "")]),
            ],
            [("deny", "*", "x/*", "*"), ("allow", "x/b", "x/a", "*"), ("allow", "y/*", "x/*", "*")],
        ),
        case(
            "both ends must allow: egress alone does not open ingress",
            [
                policy("x/out", "pod=a").egress([rule([namespaces("ns=y")], "")]),
                policy("y/in", "pod=b").ingress([rule([namespaces("ns=z")], "")]),
            ],
            [
                ("deny", "x/a", "*", "*"),
                ("allow", "x/a", "y/*", "*"),
                ("deny", "*", "y/b", "*"),
                ("allow", "z/*", "y/b", "*"),
            ],
        ),
        case(
            "both ends allow each other",
            [
                policy("x/out", "pod=a").egress([rule([both("ns=y", "pod=b")], "")]),
                policy("y/in", "pod=b").ingress([rule([both("ns=x", "pod=a")], "")]),
            ],
            [("deny", "x/a", "*", "*"), ("deny", "*", "y/b", "*"), ("allow", "x/a", "y/b", "*")],
        ),
        case(
            "ingress and egress in one policy",
            [policy("x/p", "pod=a")
                .ingress([rule([pods("pod=b")], "")])
                .egress([rule([pods("pod=c")], "")])],
            [
                ("deny", "*", "x/a", "*"),
                ("deny", "x/a", "*", "*"),
                ("allow", "x/b", "x/a", "*"),
                ("allow", "x/a", "x/c", "*"),
            ],
        ),
        case(
            "hostNetwork pods are not selected",
            [policy("x/p", "pod=h").ingress([]).egress([])],
            [],
        ),
        case(
            "nodes are not pods: a selector of all pods does not match them",
            [policy("x/p", "pod=a").ingress([rule([namespaces("")], "")])],
            [("deny", "n2|out*", "x/a", "*")],
        ),
        case(
            "hostNetwork pods are not pod peers, even if their labels match",
            [policy("y/p", "pod=a").ingress([rule([both("ns=x", "pod=h")], "")])],
            [("deny", "*", "y/a", "*")],
        ),
        case(
            "two equal policies have the effect of one",
            [
                policy("x/p1", "pod=a").ingress([rule([pods("pod=b")], "80/TCP")]),
                policy("x/p2", "pod=a").ingress([rule([pods("pod=b")], "80/TCP")]),
            ],
            [("deny", "*", "x/a", "*"), ("allow", "x/b", "x/a", "80/TCP")],
        ),
    ];
    let both_lists = || policy("x/p", "pod=a").ingress([rule([pods("pod=b")], "")]).egress([]);
    cases.extend([
        case(
            "policyTypes missing without egress rules: ingress alone",
            [typed(both_lists(), &[], false)],
            [("deny", "*", "x/a", "*"), ("allow", "x/b", "x/a", "*")],
        ),
        case(
            "policyTypes missing with egress rules: both",
            [typed(both_lists().egress([rule([pods("pod=c")], "")]), &[], true)],
            [
                ("deny", "*", "x/a", "*"),
                ("deny", "x/a", "*", "*"),
                ("allow", "x/b", "x/a", "*"),
                ("allow", "x/a", "x/c", "*"),
            ],
        ),
        case(
            "policyTypes Egress alone: ingress rules are ignored",
            [typed(both_lists(), &[Egress], false)],
            [("deny", "x/a", "*", "*")],
        ),
        case(
            "policyTypes Ingress alone: egress rules are ignored",
            [typed(both_lists().egress([rule([pods("pod=c")], "")]), &[Ingress], true)],
            [("deny", "*", "x/a", "*"), ("allow", "x/b", "x/a", "*")],
        ),
        case(
            "policyTypes of both with nothing allowed",
            [typed(policy("x/p", "pod=a"), &[Ingress, Egress], false)],
            [("deny", "*", "x/a", "*"), ("deny", "x/a", "*", "*")],
        ),
        case(
            "a peer list whose entries were all removed matches no peer",
            [policy("x/p", "pod=a")
                .ingress([Rule { peers: Peers::AnyOf(vec![]), ports: Ports::Any }])],
            [("deny", "*", "x/a", "*")],
        ),
        case(
            "a port list whose entries were all removed matches nothing",
            [policy("x/p", "pod=a")
                .ingress([Rule { peers: Peers::Any, ports: Ports::AnyOf(vec![]) }])],
            [("deny", "*", "x/a", "*")],
        ),
    ]);
    cases
}
