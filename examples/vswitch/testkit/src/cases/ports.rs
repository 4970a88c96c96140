//! Ports and protocols (N6, N7, N10, N17).

use super::{Case, case, into_a, opens, out_of_a};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = numbers();
    cases.extend(names());
    cases.extend(rules());
    cases
}

fn numbers() -> Vec<Case> {
    vec![
        opens("a port: TCP where nothing is said", "[{port: 80}]", "80/TCP"),
        opens("a port of TCP", "[{port: 81, protocol: TCP}]", "81/TCP"),
        opens("a port of UDP", "[{port: 80, protocol: UDP}]", "80/UDP"),
        opens("a port of SCTP, which is not TCP", "[{port: 80, protocol: SCTP}]", "80/SCTP"),
        opens("a protocol: every port of it", "[{protocol: UDP}]", "*/UDP"),
        opens("nothing at all: every port of TCP", "[{}]", "*/TCP"),
        opens(
            "all three protocols are still no ICMP",
            "[{protocol: TCP}, {protocol: UDP}, {protocol: SCTP}]",
            "80/*|81/*",
        ),
        opens(
            "ports of several protocols",
            "[{port: 80}, {port: 81, protocol: UDP}, {port: 81, protocol: SCTP}]",
            "80/TCP|81/UDP|81/SCTP",
        ),
        opens("a range, both ends among it", "[{port: 80, endPort: 81}]", "*/TCP"),
        opens("a range that ends at a port", "[{port: 1, endPort: 80, protocol: UDP}]", "80/UDP"),
        opens("a range that begins at a port", "[{port: 81, endPort: 65535}]", "81/TCP"),
        opens("a range of one", "[{port: 81, endPort: 81, protocol: SCTP}]", "81/SCTP"),
        opens("a range beside", "[{port: 82, endPort: 90}]", "nothing"),
        opens("the whole range", "[{port: 1, endPort: 65535, protocol: UDP}]", "*/UDP"),
        opens("ranges that overlap", "[{port: 1, endPort: 80}, {port: 70, endPort: 81}]", "*/TCP"),
    ]
}

fn names() -> Vec<Case> {
    vec![
        opens("a name", "[{port: web}]", "80/TCP"),
        opens("a name of UDP", "[{port: dns, protocol: UDP}]", "81/UDP"),
        opens("a name of another protocol", "[{port: dns}]", "nothing"),
        opens("a name that the pod does not have", "[{port: metrics}]", "nothing"),
        opens("a name and a number", "[{port: web}, {port: 81}]", "*/TCP"),
        case(
            "a name on ingress is each selected pod's own",
            [("z", "{podSelector: {}, ingress: [{ports: [{port: web}]}]}")],
            [
                ("deny", "*", "z/*", "*"),
                ("allow", "*", "z/a|z/b", "80/TCP"),
                ("allow", "*", "z/c", "81/TCP"),
            ],
        ),
        out_of_a(
            "a name on egress is each peer's own",
            "[{to: [{namespaceSelector: {matchLabels: {ns: z}}}], ports: [{port: web}]}]",
            [("allow", "x/a", "z/a|z/b", "80/TCP"), ("allow", "x/a", "z/c", "81/TCP")],
        ),
        out_of_a(
            "a name on egress to anybody: of pods alone",
            "[{ports: [{port: web}]}]",
            [
                ("allow", "x/a", "pods", "80/TCP"),
                ("deny", "x/a", "z/c", "80/TCP"),
                ("allow", "x/a", "z/c", "81/TCP"),
            ],
        ),
        out_of_a(
            "a name on egress never fits an ipBlock",
            "[{to: [{ipBlock: {cidr: 10.0.0.0/8}}, {ipBlock: {cidr: 'fd00::/16'}}], \
             ports: [{port: web}]}]",
            [],
        ),
        into_a(
            "a name on ingress from an ipBlock is the selected pod's",
            "[{from: [{ipBlock: {cidr: 10.0.1.0/24}}], ports: [{port: web}]}]",
            [("allow", "y/*", "x/a", "80/TCP@ipv4")],
        ),
    ]
}

fn rules() -> Vec<Case> {
    vec![
        into_a(
            "peers and ports are ANDed",
            "[{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}]",
            [("allow", "y/*", "x/a", "80/TCP")],
        ),
        into_a(
            "rules lend each other nothing",
            "[{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}, \
             {from: [{namespaceSelector: {matchLabels: {ns: z}}}], \
             ports: [{port: 81, protocol: UDP}]}]",
            [("allow", "y/*", "x/a", "80/TCP"), ("allow", "z/*", "x/a", "81/UDP")],
        ),
        into_a(
            "ICMP passes by a rule without ports alone",
            "[{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{protocol: TCP}]}, \
             {from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]",
            [("allow", "y/*", "x/a", "*/TCP"), ("allow", "z/*", "x/a", "*")],
        ),
        out_of_a(
            "egress to a port of anybody",
            "[{ports: [{port: 81, protocol: UDP}]}]",
            [("allow", "x/a", "*", "81/UDP")],
        ),
        out_of_a(
            "egress to a port of some",
            "[{to: [{podSelector: {}}], ports: [{port: 80, protocol: SCTP}]}]",
            [("allow", "x/a", "x/*", "80/SCTP")],
        ),
        case(
            "SCTP alone isolates",
            [(
                "x",
                "{podSelector: {}, policyTypes: [Ingress], \
                 ingress: [{ports: [{port: 80, protocol: SCTP}]}]}",
            )],
            [("deny", "*", "x/*", "*"), ("allow", "*", "x/*", "80/SCTP")],
        ),
    ]
}
