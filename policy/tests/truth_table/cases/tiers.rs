//! ClusterNetworkPolicy: Admin, NetworkPolicy, Baseline.

use podswitch_policy::rule::{Action, ClusterNetworkPolicy, ClusterPeer};

use super::{Case, case, tiered};
use crate::build::*;

use Action::{Accept, Deny, Pass};

const X: (&str, &str) = ("ns=x", "");

/// Admin policy on the pods of x with this action for all traffic from the pods of y.
fn from_y(action: Action) -> ClusterNetworkPolicy {
    admin("p", 10, X).ingress([cluster_rule(action, [cluster_pods("ns=y", "")], "")])
}

fn everyone() -> [ClusterPeer; 1] {
    [networks("0.0.0.0/0,::/0")]
}

pub(super) fn cases() -> Vec<Case> {
    [admin_cases(), order_cases(), peer_cases(), baseline_cases()].into_iter().flatten().collect()
}

fn admin_cases() -> Vec<Case> {
    let isolate = || policy("x/p", "").ingress([rule([namespaces("ns=z")], "")]);
    vec![
        tiered("Admin Deny denies", [], [from_y(Deny)], [("deny", "y/*", "x/*", "*")]),
        tiered("Admin Accept of allowed traffic changes nothing", [], [from_y(Accept)], []),
        tiered("Admin rules do not isolate", [], [admin("p", 1, X).ingress([])], []),
        tiered(
            "Admin Accept precedes NetworkPolicy's isolation",
            [isolate()],
            [from_y(Accept)],
            [("deny", "*", "x/*", "*"), ("allow", "y/*|z/*", "x/*", "*")],
        ),
        tiered(
            "Admin Deny precedes NetworkPolicy's rules",
            [policy("x/p", "").ingress([rule([], "")])],
            [from_y(Deny)],
            [("deny", "y/*", "x/*", "*")],
        ),
        tiered(
            "Admin Pass leaves the decision to NetworkPolicy",
            [isolate()],
            [admin("p", 1, X).ingress([
                cluster_rule(Pass, [cluster_pods("ns=y", "")], ""),
                cluster_rule(Accept, [cluster_pods("", "")], ""),
            ])],
            [("deny", "*", "x/*", "*"), ("allow", "x/*|z/*", "x/*", "*")],
        ),
        tiered(
            "Admin Pass skips the rest of the tier",
            [],
            [
                admin("a", 1, X).ingress([cluster_rule(Pass, [cluster_pods("ns=y", "")], "")]),
                admin("b", 2, X).ingress([cluster_rule(Deny, [cluster_pods("", "")], "")]),
            ],
            [("deny", "x/*|z/*", "x/*", "*")],
        ),
        tiered(
            "Admin Pass leaves the decision to Baseline if no NetworkPolicy isolates",
            [],
            [
                from_y(Pass),
                baseline("b", 0, X).ingress([cluster_rule(Deny, [cluster_pods("ns=y", "")], "")]),
            ],
            [("deny", "y/*", "x/*", "*")],
        ),
        tiered(
            "Accept on egress does not open ingress",
            [policy("y/p", "").ingress([])],
            [admin("p", 1, X).egress([cluster_rule(Accept, [cluster_pods("", "")], "")])],
            [("deny", "*", "y/*", "*")],
        ),
        tiered(
            "Deny on egress",
            [],
            [admin("p", 1, X).egress([cluster_rule(Deny, [cluster_pods("ns=y", "")], "81/UDP")])],
            [("deny", "x/*", "y/*", "81/UDP")],
        ),
        tiered(
            "both directions in one policy",
            [],
            [admin("p", 1, X)
                .ingress([cluster_rule(Deny, [cluster_pods("ns=y", "")], "80/TCP")])
                .egress([cluster_rule(Deny, [cluster_pods("ns=z", "")], "80/TCP")])],
            [("deny", "y/*", "x/*", "80/TCP"), ("deny", "x/*", "z/*", "80/TCP")],
        ),
        case(
            "NetworkPolicy alone is unchanged",
            [isolate()],
            [("deny", "*", "x/*", "*"), ("allow", "z/*", "x/*", "*")],
        ),
    ]
}

fn order_cases() -> Vec<Case> {
    let deny_y = |name, priority| {
        admin(name, priority, X).ingress([cluster_rule(Deny, [cluster_pods("ns=y", "")], "")])
    };
    let accept_all = |name, priority| {
        admin(name, priority, X).ingress([cluster_rule(Accept, [cluster_pods("", "")], "")])
    };
    vec![
        tiered(
            "the lower priority number is evaluated first",
            [],
            [deny_y("z", 1), accept_all("a", 2)],
            [("deny", "y/*", "x/*", "*")],
        ),
        tiered(
            "the same with the priorities exchanged",
            [],
            [deny_y("a", 2), accept_all("z", 1)],
            [],
        ),
        tiered(
            "rules of one policy are evaluated from top to bottom",
            [],
            [admin("p", 1, X).ingress([
                cluster_rule(Accept, [cluster_pods("ns=y", "pod=a")], ""),
                cluster_rule(Deny, [cluster_pods("ns=y", "")], ""),
                cluster_rule(Accept, [cluster_pods("ns=y", "pod=b")], ""),
            ])],
            [("deny", "y/b|y/c", "x/*", "*")],
        ),
        tiered(
            "a narrower port first",
            [],
            [admin("p", 1, X).ingress([
                cluster_rule(Accept, [cluster_pods("ns=y", "")], "80/TCP"),
                cluster_rule(Deny, [cluster_pods("ns=y", "")], "*/TCP"),
            ])],
            [("deny", "y/*", "x/*", "81/TCP")],
        ),
        tiered(
            "a range before an ipBlock-like peer of everyone",
            [],
            [admin("p", 1, X).egress([
                cluster_rule(Pass, [cluster_pods("", "")], ""),
                cluster_rule(Deny, everyone(), ""),
            ])],
            [("deny", "x/*", "n2|out*", "*")],
        ),
    ]
}

fn peer_cases() -> Vec<Case> {
    let egress =
        |action, peer, ports| admin("p", 1, X).egress([cluster_rule(action, [peer], ports)]);
    vec![
        tiered(
            "networks match pods and nodes too",
            [],
            [egress(Deny, networks("10.0.1.0/24,fd00:0:0:1::/64"), "")],
            [("deny", "x/*", "y/*", "*")],
        ),
        tiered(
            "networks match ICMP where no protocol is named",
            [],
            [egress(Deny, networks("0.0.0.0/0,::/0"), "*/TCP")],
            [("deny", "x/*", "*", "*/TCP")],
        ),
        tiered(
            "nodes by label",
            [],
            [egress(Deny, ClusterPeer::Nodes(sel("node=n2")), "")],
            [("deny", "x/*", "n2", "*")],
        ),
        tiered(
            "all nodes, one's own apart",
            [],
            [egress(Deny, ClusterPeer::Nodes(sel("")), "")],
            [("deny", "x/*", "n2", "*")],
        ),
        tiered("labels of no node", [], [egress(Deny, ClusterPeer::Nodes(sel("node=n9")), "")], []),
        tiered(
            "an unknown kind of peer: Accept matches nothing",
            [policy("x/p", "").egress([])],
            [egress(Accept, ClusterPeer::Unknown, "")],
            [("deny", "x/*", "*", "*")],
        ),
        tiered(
            "an unknown kind of peer: Deny denies everything",
            [],
            [egress(Deny, ClusterPeer::Unknown, "80/TCP")],
            [("deny", "x/*", "*", "*")],
        ),
        tiered(
            "an unknown kind of peer: Pass denies everything",
            [],
            [egress(Pass, ClusterPeer::Unknown, "")],
            [("deny", "x/*", "*", "*")],
        ),
        tiered(
            "one unknown peer among known ones makes the rule fail closed",
            [policy("x/p", "").egress([])],
            [admin("p", 1, X).egress([cluster_rule(
                Accept,
                [cluster_pods("", ""), ClusterPeer::Unknown],
                "",
            )])],
            [("deny", "x/*", "*", "*")],
        ),
        tiered(
            "a named port of any protocol",
            [],
            [egress(Deny, cluster_pods("", ""), "http,dns")],
            [
                ("deny", "x/*", "pods", "80/TCP|81/UDP"),
                ("allow", "x/*", "z/c", "80/TCP"),
                ("deny", "x/*", "z/c", "81/TCP"),
            ],
        ),
        tiered(
            "the subject by namespace and pod labels",
            [],
            [admin("p", 1, ("ns in (x y)", "pod=a")).ingress([cluster_rule(
                Deny,
                [cluster_pods("ns=z", "")],
                "",
            )])],
            [("deny", "z/*", "x/a|y/a", "*")],
        ),
        tiered(
            "hostNetwork pods are neither subject nor peer",
            [],
            [admin("p", 1, ("", ""))
                .ingress([cluster_rule(Deny, [cluster_pods("", "pod=h")], "")])
                .egress([cluster_rule(Deny, [cluster_pods("", "pod=h")], "")])],
            [],
        ),
        tiered(
            "a subject of all namespaces",
            [],
            [admin("p", 1, ("", "")).ingress([cluster_rule(
                Deny,
                [cluster_pods("ns=x", "")],
                "80/TCP",
            )])],
            [("deny", "x/*", "pods", "80/TCP")],
        ),
    ]
}

fn baseline_cases() -> Vec<Case> {
    let deny_all = || baseline("b", 5, X).ingress([cluster_rule(Deny, [cluster_pods("", "")], "")]);
    vec![
        tiered("Baseline Deny", [], [deny_all()], [("deny", "pods", "x/*", "*")]),
        tiered(
            "NetworkPolicy precedes Baseline",
            [policy("x/p", "pod=a").ingress([rule([namespaces("ns=y")], "")])],
            [deny_all()],
            [("deny", "pods", "x/*", "*"), ("deny", "*", "x/a", "*"), ("allow", "y/*", "x/a", "*")],
        ),
        tiered(
            "NetworkPolicy that isolates the other direction leaves Baseline in force",
            [policy("x/p", "").egress([rule([], "")])],
            [deny_all()],
            [("deny", "pods", "x/*", "*")],
        ),
        tiered(
            "Admin Accept precedes Baseline",
            [],
            [from_y(Accept), deny_all()],
            [("deny", "x/*|z/*", "x/*", "*")],
        ),
        tiered(
            "Baseline by priority",
            [],
            [
                deny_all(),
                baseline("first", 1, X).ingress([cluster_rule(
                    Accept,
                    [cluster_pods("ns=y", "")],
                    "80/TCP",
                )]),
            ],
            [("deny", "pods", "x/*", "*"), ("allow", "y/*", "x/*", "80/TCP")],
        ),
        tiered(
            "Baseline Pass is the last decision: allowed",
            [],
            [
                deny_all(),
                baseline("first", 1, X).ingress([cluster_rule(
                    Pass,
                    [cluster_pods("ns=y", "")],
                    "",
                )]),
            ],
            [("deny", "x/*|z/*", "x/*", "*")],
        ),
        tiered(
            "Baseline Accept does not isolate",
            [],
            [baseline("b", 1, X).ingress([cluster_rule(
                Accept,
                [cluster_pods("ns=y", "")],
                "80/TCP",
            )])],
            [],
        ),
    ]
}
