//! Peers by address (N9, N11, N18, T-L3).

use podswitch_policy::rule::Peer;

use super::{Case, case};
use crate::build::*;

/// The policy that isolates x/a and allows ingress from these peers.
fn lets_in<const N: usize>(name: &'static str, peers: [Peer; N], who: &'static str) -> Case {
    let network = [policy("x/p", "pod=a").ingress([rule(peers, "")])];
    case(name, network, [("deny", "*", "x/a", "*"), ("allow", who, "x/a", "*")])
}

/// The same with a range of each family.
fn blocks<const N: usize>(name: &'static str, texts: [&str; N], who: &'static str) -> Case {
    lets_in(name, texts.map(block), who)
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        blocks("an ipBlock of all addresses matches every peer", ["0.0.0.0/0", "::/0"], "*"),
        blocks("an ipBlock matches pods in it", ["10.0.1.0/24", "fd00:0:0:1::/64"], "y/*"),
        blocks("an ipBlock matches one pod", ["10.0.1.2/32", "fd00:0:0:1::2/128"], "y/b"),
        blocks("an ipBlock matches nodes in it", ["172.16.0.0/16", "fd01::/16"], "n*"),
        blocks("an ipBlock outside", ["192.0.2.0/24", "2001:db8:1::/48"], "out1"),
        blocks(
            "addresses in `except` do not match",
            ["10.0.0.0/16 except 10.0.1.0/24", "fd00::/16 except fd00:0:0:1::/64"],
            "x/*|z/*",
        ),
        blocks(
            "several exceptions",
            [
                "10.0.0.0/16 except 10.0.1.0/24,10.0.2.1/32",
                "fd00::/16 except fd00:0:0:1::/64,fd00:0:0:2::1/128",
            ],
            "x/*|z/b|z/c",
        ),
        blocks(
            "every peer but the pods",
            ["0.0.0.0/0 except 10.0.0.0/8", "::/0 except fd00::/16"],
            "n*|out*",
        ),
        blocks(
            "an exception of one item is allowed by another",
            [
                "10.0.0.0/16 except 10.0.1.0/24",
                "10.0.1.2/32",
                "fd00::/16 except fd00:0:0:1::/64",
                "fd00:0:0:1::2/128",
            ],
            "x/*|z/*|y/b",
        ),
        blocks(
            "nested ranges, the wide one last",
            [
                "10.0.1.2/32",
                "10.0.0.0/16 except 10.0.1.0/24",
                "fd00:0:0:1::2/128",
                "fd00::/16 except fd00:0:0:1::/64",
            ],
            "x/*|z/*|y/b",
        ),
        blocks(
            "nested exceptions",
            [
                "10.0.0.0/16 except 10.0.1.0/24,10.0.1.2/32",
                "fd00::/16 except fd00:0:0:1::/64,fd00:0:0:1::2/128",
            ],
            "x/*|z/*",
        ),
        blocks(
            "overlapping ranges with exceptions that differ",
            [
                "10.0.0.0/16 except 10.0.1.0/24",
                "10.0.0.0/23 except 10.0.0.0/24",
                "fd00::/16 except fd00:0:0:1::/64",
                "fd00::/63 except fd00::/64",
            ],
            "x/*|y/*|z/*",
        ),
        blocks("the same range twice", ["10.0.1.0/24", "10.0.1.0/24", "fd00:0:0:1::/64"], "y/*"),
        blocks("a range without any peer", ["203.0.113.0/24", "2001:db8:ffff::/48"], "nobody"),
        lets_in(
            "an ipBlock or a selector",
            [block("192.0.2.0/24"), block("2001:db8:1::/48"), namespaces("ns=z")],
            "out1|z/*",
        ),
        lets_in(
            "an exception does not restrict a selector",
            [block("0.0.0.0/0 except 10.0.0.0/8"), block("::/0 except fd00::/16"), pods("pod=b")],
            "n*|out*|x/b",
        ),
        case(
            "an exception of one rule is allowed by another",
            [policy("x/p", "pod=a").ingress([
                rule([block("10.0.0.0/16 except 10.0.1.0/24")], "80/TCP"),
                rule([block("fd00::/16 except fd00:0:0:1::/64")], "80/TCP"),
                rule([namespaces("ns=y")], "81/UDP"),
            ])],
            [
                ("deny", "*", "x/a", "*"),
                ("allow", "x/*|z/*", "x/a", "80/TCP"),
                ("allow", "y/*", "x/a", "81/UDP"),
            ],
        ),
        case(
            "an exception of one policy is allowed by another",
            [
                policy("x/p1", "pod=a").ingress([
                    rule([block("0.0.0.0/0 except 192.0.2.0/24")], ""),
                    rule([block("::/0 except 2001:db8:1::/48")], ""),
                ]),
                policy("x/p2", "pod=a")
                    .ingress([rule([block("192.0.2.1/32"), block("2001:db8:1::1/128")], "80/TCP")]),
            ],
            [("deny", "out1", "x/a", "*"), ("allow", "out1", "x/a", "80/TCP")],
        ),
        case(
            "egress to a range outside",
            [policy("x/p", "pod=a")
                .egress([rule([block("192.0.2.0/24"), block("2001:db8:1::/48")], "")])],
            [("deny", "x/a", "*", "*"), ("allow", "x/a", "out1", "*")],
        ),
        case(
            "egress to everything outside the cluster",
            [policy("x/p", "").egress([rule(
                [
                    block("0.0.0.0/0 except 10.0.0.0/8,172.16.0.0/12"),
                    block("::/0 except fd00::/15"),
                ],
                "",
            )])],
            [("deny", "x/*", "*", "*"), ("allow", "x/*", "out*", "*")],
        ),
        case(
            "egress to a range of pods, by port",
            [policy("x/p", "pod=a")
                .egress([rule([block("10.0.1.0/24"), block("fd00:0:0:1::/64")], "80-81/TCP")])],
            [("deny", "x/a", "*", "*"), ("allow", "x/a", "y/*", "*/TCP")],
        ),
        case(
            "an ipBlock allows ICMP if the rule has no ports",
            [policy("x/p", "pod=a").ingress([
                rule([block("192.0.2.0/24"), block("2001:db8:1::/48")], "80/TCP"),
                rule([block("198.51.100.0/24"), block("2001:db8:2::/48")], ""),
            ])],
            [
                ("deny", "*", "x/a", "*"),
                ("allow", "out1", "x/a", "80/TCP"),
                ("allow", "out2", "x/a", "*"),
            ],
        ),
    ]
}
