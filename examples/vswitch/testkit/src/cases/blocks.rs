//! Peers by address: pods, nodes and the world outside (N9, N16, N18).

use super::{Case, case, into_a, lets_in, out_of_a};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = ingress();
    cases.extend(others());
    cases
}

fn ingress() -> Vec<Case> {
    vec![
        into_a(
            "a range of IPv4 does not match IPv6",
            "[{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]",
            [("allow", "*", "x/a", "*@ipv4")],
        ),
        into_a(
            "a range of IPv6 does not match IPv4",
            "[{from: [{ipBlock: {cidr: '::/0'}}]}]",
            [("allow", "*", "x/a", "*@ipv6")],
        ),
        lets_in(
            "everyone by address",
            "[{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]",
            "*",
        ),
        lets_in(
            "pods by address",
            "[{ipBlock: {cidr: 10.0.1.0/24}}, {ipBlock: {cidr: 'fd00:0:0:1::/64'}}]",
            "y/*",
        ),
        lets_in(
            "one pod by address",
            "[{ipBlock: {cidr: 10.0.2.3/32}}, {ipBlock: {cidr: 'fd00:0:0:2::3/128'}}]",
            "z/c",
        ),
        lets_in(
            "nodes by address",
            "[{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 'fd01::/16'}}]",
            "node/*|x/h",
        ),
        lets_in(
            "the world outside by address",
            "[{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: '2001:db8:1::/48'}}]",
            "198.51.100.7|2001:db8:1::7",
        ),
        lets_in(
            "except",
            "[{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}, \
             {ipBlock: {cidr: 'fd00::/16', except: ['fd00:0:0:1::/64']}}]",
            "x/*|z/*",
        ),
        lets_in(
            "several exceptions",
            "[{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24, 10.0.2.1/32]}}, \
             {ipBlock: {cidr: 'fd00::/16', except: ['fd00:0:0:2::1/128', 'fd00:0:0:1::/64']}}]",
            "x/*|z/b|z/c",
        ),
        lets_in(
            "everyone but pods",
            "[{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, \
             {ipBlock: {cidr: '::/0', except: ['fd00::/16']}}]",
            "node/*|x/h|198.51.100.7|203.0.113.9|2001:db8*",
        ),
        lets_in(
            "an exception is allowed by another item",
            "[{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.1.0/24]}}, \
             {ipBlock: {cidr: 'fd00::/16', except: ['fd00:0:0:1::/64']}}, \
             {ipBlock: {cidr: 10.0.1.2/32}}, {ipBlock: {cidr: 'fd00:0:0:1::2/128'}}]",
            "x/*|z/*|y/b",
        ),
        lets_in(
            "an exception is allowed by a selector",
            "[{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.1.0/24]}}, \
             {ipBlock: {cidr: 'fd00::/16', except: ['fd00:0:0:1::/64']}}, \
             {namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: c}}}]",
            "x/*|z/*|y/c",
        ),
        lets_in(
            "exceptions within one another",
            "[{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24, 10.0.1.2/32]}}, \
             {ipBlock: {cidr: 'fd00::/16', except: ['fd00:0:0:1::2/128', 'fd00:0:0:1::/64']}}]",
            "x/*|z/*",
        ),
        lets_in(
            "a range that no one is in",
            "[{ipBlock: {cidr: 172.16.0.0/12}}, {ipBlock: {cidr: 'fd02::/16'}}]",
            "nobody",
        ),
        into_a(
            "an exception of one rule is allowed by another",
            "[{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}], ports: [{port: 80}]}, \
             {from: [{ipBlock: {cidr: 10.0.1.0/24}}], ports: [{port: 81, protocol: UDP}]}]",
            [("allow", "x/*|z/*", "x/a", "80/TCP@ipv4"), ("allow", "y/*", "x/a", "81/UDP@ipv4")],
        ),
    ]
}

fn others() -> Vec<Case> {
    vec![
        case(
            "an exception of one policy is allowed by another",
            [
                (
                    "x",
                    "{podSelector: {}, ingress: [{from: [\
                     {ipBlock: {cidr: 0.0.0.0/0, except: [198.51.100.0/24]}}, \
                     {ipBlock: {cidr: '::/0', except: ['2001:db8:1::/48']}}]}]}",
                ),
                (
                    "x",
                    "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [\
                     {ipBlock: {cidr: 198.51.100.7/32}}, \
                     {ipBlock: {cidr: '2001:db8:1::7/128'}}], ports: [{port: 80}]}]}",
                ),
            ],
            [
                ("deny", "198.51.100.7|2001:db8:1::7", "x/*", "*"),
                ("allow", "198.51.100.7|2001:db8:1::7", "x/b", "80/TCP"),
            ],
        ),
        out_of_a(
            "egress off the cluster alone",
            "[{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.0.2.0/24]}}, \
             {ipBlock: {cidr: '::/0', except: ['fd00::/8']}}]}]",
            [("allow", "x/a", "198.51.100.7|203.0.113.9|2001:db8*", "*")],
        ),
        out_of_a(
            "egress to pods by address",
            "[{to: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.2.0/24]}}], \
             ports: [{port: 80, endPort: 81}]}]",
            [("allow", "x/a", "x/*|y/*", "*/TCP@ipv4")],
        ),
        out_of_a(
            "egress to another node by address",
            "[{to: [{ipBlock: {cidr: 192.0.2.2/32}}, {ipBlock: {cidr: 'fd01::2/128'}}]}]",
            [("allow", "x/a", "node/n2", "*")],
        ),
        case(
            "a pod is never cut off from its own node, however wide the exception",
            [(
                "y",
                "{podSelector: {}, policyTypes: [Ingress, Egress], \
                 ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24]}}]}]}",
            )],
            [
                ("deny", "*", "y/*", "*"),
                ("deny", "y/*", "*", "*"),
                ("allow", "*", "y/*", "*@ipv4"),
                ("deny", "node/*|x/h", "y/*", "*"),
                ("deny", "y/*", "y/*", "*"),
            ],
        ),
    ]
}
