//! Peers by label (N8, T-L2, T-L4).

use podswitch_policy::rule::Peer;

use super::{Case, case};
use crate::build::*;

/// The policy that isolates x/a and allows ingress from these peers.
fn lets_in(name: &'static str, peer: Peer, who: &'static str) -> Case {
    let network = [policy("x/p", "pod=a").ingress([rule([peer], "")])];
    case(name, network, [("deny", "*", "x/a", "*"), ("allow", who, "x/a", "*")])
}

pub(super) fn cases() -> Vec<Case> {
    let name_label = "kubernetes.io/metadata.name";
    let mut cases = vec![
        lets_in("podSelector alone: own namespace", pods("pod=b"), "x/b"),
        lets_in("podSelector empty: all of the own namespace", pods(""), "x/*"),
        lets_in("namespaceSelector alone: all its pods", namespaces("ns=y"), "y/*"),
        lets_in("namespaceSelector empty: all pods, no other peers", namespaces(""), "pods"),
        lets_in("both in one item: AND", both("ns=y", "pod=b"), "y/b"),
        lets_in("both empty: all pods", both("", ""), "pods"),
        lets_in("empty namespaceSelector and a podSelector", both("", "pod=b"), "x/b|y/b|z/b"),
        lets_in("a namespaceSelector and an empty podSelector", both("ns=z", ""), "z/*"),
        lets_in("namespace In", namespaces("ns in (y z)"), "y/*|z/*"),
        lets_in("namespace NotIn", namespaces("ns notin (x)"), "y/*|z/*"),
        lets_in("namespace Exists", namespaces("ns"), "pods"),
        lets_in("namespace DoesNotExist", namespaces("!ns"), "nobody"),
        lets_in("NotIn matches objects without the key", namespaces("tier notin (db)"), "pods"),
        lets_in("pod In", pods("pod in (b c)"), "x/b|x/c"),
        lets_in("pod NotIn", pods("pod notin (b)"), "x/a|x/c"),
        lets_in("pod Exists", pods("pod"), "x/*"),
        lets_in("pod DoesNotExist", both("", "!pod"), "nobody"),
        lets_in("requirements are ANDed", both("ns,ns notin (x)", "pod=b,pod in (a b)"), "y/b|z/b"),
        lets_in(
            "requirements that contradict each other",
            pods("pod in (b),pod notin (b)"),
            "nobody",
        ),
        lets_in(
            "a namespace has its name as a label",
            namespaces("kubernetes.io/metadata.name=y"),
            "y/*",
        ),
        lets_in(
            "namespaces by name, several",
            namespaces("kubernetes.io/metadata.name in (y z)"),
            "y/*|z/*",
        ),
        lets_in("a namespace label is not a pod label", pods("ns=x"), "nobody"),
        lets_in("a pod label is not a namespace label", namespaces("pod=a"), "nobody"),
        lets_in("labels of no pod", both("ns=w", "pod=b"), "nobody"),
        case(
            "two items are ORed",
            [policy("x/p", "pod=a").ingress([rule([namespaces("ns=y"), pods("pod=b")], "")])],
            [("deny", "*", "x/a", "*"), ("allow", "y/*|x/b", "x/a", "*")],
        ),
        case(
            "two rules are ORed",
            [policy("x/p", "pod=a")
                .ingress([rule([namespaces("ns=y")], ""), rule([pods("pod=b")], "")])],
            [("deny", "*", "x/a", "*"), ("allow", "y/*|x/b", "x/a", "*")],
        ),
        case(
            "the subject by expression",
            [policy("x/p", "pod in (a b)").ingress([])],
            [("deny", "*", "x/a|x/b", "*")],
        ),
        case(
            "the subject by NotIn",
            [policy("x/p", "pod notin (a)").ingress([])],
            [("deny", "*", "x/b|x/c", "*")],
        ),
        case(
            "egress to a podSelector",
            [policy("x/p", "pod=a").egress([rule([pods("pod=b")], "")])],
            [("deny", "x/a", "*", "*"), ("allow", "x/a", "x/b", "*")],
        ),
        case(
            "egress to a namespaceSelector",
            [policy("x/p", "pod=a").egress([rule([namespaces("ns=y")], "")])],
            [("deny", "x/a", "*", "*"), ("allow", "x/a", "y/*", "*")],
        ),
        case(
            "egress to all pods is not egress to every peer",
            [policy("x/p", "pod=a").egress([rule([namespaces("")], "")])],
            [("deny", "x/a", "n2|out*", "*")],
        ),
        case(
            "pods of one namespace allow only each other",
            [policy("x/p", "").ingress([rule([pods("")], "")]).egress([rule([pods("")], "")])],
            [("deny", "*", "x/*", "*"), ("deny", "x/*", "*", "*"), ("allow", "x/*", "x/*", "*")],
        ),
    ];
    // T-L4: a pod that carries a namespace's label is not in that namespace.
    let forged = both(&format!("{name_label}=y"), &format!("{name_label}=y"));
    cases.push(lets_in("a namespace's label in a pod selector", forged, "nobody"));
    cases
}
