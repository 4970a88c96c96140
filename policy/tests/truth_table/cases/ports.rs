//! Protocols and ports (N6, N7, N10, N17).

use super::{Case, case};
use crate::build::*;

/// The policy that isolates x/a and allows ingress from every peer on these ports.
fn opens(name: &'static str, ports: &'static str, what: &'static str) -> Case {
    let network = [policy("x/p", "pod=a").ingress([rule([], ports)])];
    case(name, network, [("deny", "*", "x/a", "*"), ("allow", "*", "x/a", what)])
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        opens("no ports: everything, ICMP too", "", "*"),
        opens("one port: only that port, no other protocol, no ICMP", "80/TCP", "80/TCP"),
        opens("an entry without protocol is TCP", "80", "80/TCP|nothing"),
        opens("two ports", "80/TCP,81/TCP", "*/TCP"),
        opens("UDP alone", "81/UDP", "81/UDP"),
        opens("SCTP alone isolates and is not TCP", "80/SCTP", "80/SCTP"),
        opens("the same port of two protocols", "80/TCP,80/UDP", "80/TCP|80/UDP"),
        opens("every port of a protocol", "*/UDP", "*/UDP"),
        opens("every port of every protocol does not include ICMP", "*/TCP,*/UDP,*/SCTP", "8*"),
        opens("a range, both ends included", "80-81/TCP", "*/TCP"),
        opens("a range of one", "81-81/UDP", "81/UDP"),
        opens("a range that does not contain the port", "82-90/TCP", "nothing"),
        opens("a range from below", "1-80/TCP", "80/TCP"),
        opens("the widest range", "1-65535/SCTP", "*/SCTP"),
        opens("overlapping ranges", "1-80/TCP,80-65535/TCP", "*/TCP"),
        opens("a named port", "http/TCP", "80/TCP"),
        opens("a named port of another protocol than the rule", "http/UDP", "nothing"),
        opens("a named UDP port", "dns/UDP", "81/UDP"),
        opens("a name that the pod does not have", "metrics/TCP", "nothing"),
        opens("a name and a number", "http/TCP,81/TCP", "*/TCP"),
        case(
            "a name is resolved for each selected pod",
            [policy("z/p", "").ingress([rule([], "http/TCP")])],
            [
                ("deny", "*", "z/*", "*"),
                ("allow", "*", "z/a|z/b", "80/TCP"),
                ("allow", "*", "z/c", "81/TCP"),
            ],
        ),
        case(
            "a name on egress is resolved for each peer",
            [policy("x/p", "pod=a").egress([rule([namespaces("ns=z")], "http/TCP")])],
            [
                ("deny", "x/a", "*", "*"),
                ("allow", "x/a", "z/a|z/b", "80/TCP"),
                ("allow", "x/a", "z/c", "81/TCP"),
            ],
        ),
        case(
            "a name on egress to any peer matches pods only",
            [policy("x/p", "pod=a").egress([rule([], "http/TCP")])],
            [
                ("deny", "x/a", "*", "*"),
                ("allow", "x/a", "pods", "80/TCP"),
                ("deny", "x/a", "z/c", "80/TCP"),
                ("allow", "x/a", "z/c", "81/TCP"),
            ],
        ),
        case(
            "a name on egress to all pods, and a number in the same rule",
            [policy("x/p", "pod=a").egress([rule([namespaces("")], "http/TCP,81/UDP")])],
            [
                ("deny", "x/a", "*", "*"),
                ("allow", "x/a", "pods", "80/TCP|81/UDP"),
                ("deny", "x/a", "z/c", "80/TCP"),
                ("allow", "x/a", "z/c", "81/TCP"),
            ],
        ),
        case(
            "a name on ingress from an ipBlock is resolved for the selected pod",
            [policy("z/p", "pod=c")
                .ingress([rule([block("10.0.0.0/24"), block("fd00::/64")], "http/TCP")])],
            [("deny", "*", "z/c", "*"), ("allow", "x/*", "z/c", "81/TCP")],
        ),
        case(
            "a name on egress to an ipBlock matches nothing, not even pods in it",
            [policy("x/p", "pod=a")
                .egress([rule([block("0.0.0.0/0"), block("::/0")], "http/TCP")])],
            [("deny", "x/a", "*", "*")],
        ),
        case(
            "peers and ports are ANDed within a rule",
            [policy("x/p", "pod=a").ingress([rule([namespaces("ns=y")], "80/TCP")])],
            [("deny", "*", "x/a", "*"), ("allow", "y/*", "x/a", "80/TCP")],
        ),
        case(
            "peers and ports of different rules are not combined",
            [policy("x/p", "pod=a").ingress([
                rule([namespaces("ns=y")], "80/TCP"),
                rule([namespaces("ns=z")], "81/UDP"),
            ])],
            [
                ("deny", "*", "x/a", "*"),
                ("allow", "y/*", "x/a", "80/TCP"),
                ("allow", "z/*", "x/a", "81/UDP"),
            ],
        ),
        case(
            "policies add ports to one another",
            [
                policy("x/p1", "pod=a").ingress([rule([namespaces("ns=y")], "80/TCP")]),
                policy("x/p2", "pod=a").ingress([rule([namespaces("ns=y")], "81/TCP")]),
            ],
            [("deny", "*", "x/a", "*"), ("allow", "y/*", "x/a", "*/TCP")],
        ),
        case(
            "egress to a port of any peer",
            [policy("x/p", "pod=a").egress([rule([], "81/UDP")])],
            [("deny", "x/a", "*", "*"), ("allow", "x/a", "*", "81/UDP")],
        ),
        case(
            "ICMP is allowed if any rule has no ports",
            [policy("x/p", "pod=a")
                .ingress([rule([namespaces("ns=y")], "80/TCP"), rule([namespaces("ns=z")], "")])],
            [
                ("deny", "*", "x/a", "*"),
                ("allow", "y/*", "x/a", "80/TCP"),
                ("allow", "z/*", "x/a", "*"),
            ],
        ),
        case(
            "ports on egress are the destination's, not the source's",
            [policy("z/p", "pod=c").egress([rule([namespaces("ns=x")], "http/TCP")])],
            [("deny", "z/c", "*", "*"), ("allow", "z/c", "x/*", "80/TCP")],
        ),
    ]
}
