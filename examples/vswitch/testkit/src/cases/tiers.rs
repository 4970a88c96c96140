//! ClusterNetworkPolicy: tiers that are evaluated before and after NetworkPolicy.

use super::{Case, case};

const X: &str = "subject: {namespaces: {matchLabels: {ns: x}}}";

/// A ClusterNetworkPolicy for the pods of x.
fn on_x<const M: usize>(
    name: &'static str,
    network: &[(&'static str, &str)],
    cluster: &[&str],
    expect: [super::Line; M],
) -> Case {
    let network = network.iter().map(|(namespace, spec)| (*namespace, (*spec).to_owned()));
    let cluster = cluster.iter().map(|rest| ("", format!("{{{X}, {rest}}}")));
    Case { name, objects: network.chain(cluster).collect(), expect: expect.to_vec() }
}

const FROM_Y: &str = "from: [{namespaces: {matchLabels: {ns: y}}}]";
const Z_ONLY: &str =
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = admin();
    cases.extend(order());
    cases.extend(peers());
    cases.extend(baseline());
    cases
}

fn admin() -> Vec<Case> {
    let rule =
        |action| format!("tier: Admin, priority: 10, ingress: [{{action: {action}, {FROM_Y}}}]");
    let [accept, deny, pass] = ["Accept", "Deny", "Pass"].map(rule);
    let open = [("x", "{podSelector: {}, ingress: [{}]}")];
    vec![
        on_x("Admin denies", &[], &[&deny], [("deny", "y/*", "x/*", "*")]),
        on_x("Admin accepts what is open, and isolates nobody", &[], &[&accept], []),
        on_x(
            "Admin accepts before NetworkPolicy isolates",
            &[("x", Z_ONLY)],
            &[&accept],
            [("deny", "*", "x/*", "*"), ("allow", "y/*|z/*", "x/*", "*")],
        ),
        on_x(
            "Admin denies before NetworkPolicy allows",
            &open,
            &[&deny],
            [("deny", "y/*", "x/*", "*")],
        ),
        on_x(
            "Admin passes to NetworkPolicy",
            &[("x", Z_ONLY)],
            &[&pass],
            [("deny", "*", "x/*", "*"), ("allow", "z/*", "x/*", "*")],
        ),
        on_x(
            "Admin accepts one end, the other is isolated",
            &[("y", "{podSelector: {}, policyTypes: [Egress]}")],
            &[&accept],
            [("deny", "y/*", "*", "*")],
        ),
        case(
            "Admin of one pod by both labels",
            [(
                "",
                "{tier: Admin, priority: 0, subject: {pods: {\
                 namespaceSelector: {matchLabels: {ns: x}}, \
                 podSelector: {matchLabels: {pod: b}}}}, \
                 ingress: [{action: Deny, from: [{namespaces: {}}]}]}",
            )],
            [("deny", "pods", "x/b", "*")],
        ),
    ]
}

fn order() -> Vec<Case> {
    let deny_y = |priority: u16| {
        format!("tier: Admin, priority: {priority}, ingress: [{{action: Deny, {FROM_Y}}}]")
    };
    let accept = "tier: Admin, priority: 500, \
                  ingress: [{action: Accept, from: [{namespaces: {}}]}]";
    vec![
        on_x(
            "the lower priority number is evaluated first",
            &[],
            &[accept, &deny_y(499)],
            [("deny", "y/*", "x/*", "*")],
        ),
        on_x("and a higher one later", &[], &[&deny_y(501), accept], []),
        on_x(
            "rules from top to bottom, narrow before wide",
            &[],
            &["tier: Admin, priority: 1, ingress: [\
               {action: Accept, from: [{pods: {namespaceSelector: {matchLabels: {ns: y}}, \
               podSelector: {matchLabels: {pod: a}}}}], \
               protocols: [{tcp: {destinationPort: {number: 80}}}]}, \
               {action: Deny, from: [{namespaces: {matchLabels: {ns: y}}}]}, \
               {action: Accept, from: [{namespaces: {}}]}]"],
            [("deny", "y/*", "x/*", "*"), ("allow", "y/a", "x/*", "80/TCP")],
        ),
        on_x(
            "Pass skips the rest of the tier",
            &[],
            &[
                "tier: Admin, priority: 1, ingress: [{action: Pass, \
                 from: [{namespaces: {matchLabels: {ns: z}}}]}]",
                "tier: Admin, priority: 2, ingress: [{action: Deny, from: [{namespaces: {}}]}]",
            ],
            [("deny", "x/*|y/*", "x/*", "*")],
        ),
    ]
}

fn peers() -> Vec<Case> {
    let egress = |rule: &str| format!("tier: Admin, priority: 1, egress: [{rule}]");
    vec![
        on_x(
            "networks: pods, nodes and the world outside",
            &[],
            &[&egress(
                "{action: Deny, to: [{networks: [10.0.1.0/24, 192.0.2.0/24, '2001:db8:1::/48']}]}",
            )],
            [("deny", "x/*", "y/*|node/n2", "*@ipv4"), ("deny", "x/*", "2001:db8:1::7", "*")],
        ),
        on_x(
            "nodes by label, never one's own",
            &[],
            &[&egress("{action: Deny, to: [{nodes: {}}]}")],
            [("deny", "x/*", "node/n2", "*")],
        ),
        on_x(
            "protocols and ranges of ports",
            &[],
            &[&egress(
                "{action: Deny, to: [{namespaces: {}}], protocols: [\
                 {udp: {destinationPort: {range: {start: 80, end: 81}}}}, \
                 {sctp: {destinationPort: {number: 81}}}]}",
            )],
            [("deny", "x/*", "pods", "*/UDP|81/SCTP")],
        ),
        on_x(
            "a name, of whatever protocol the pod has it",
            &[],
            &[&egress(
                "{action: Deny, to: [{namespaces: {}}], protocols: [\
                 {destinationNamedPort: web}, {destinationNamedPort: dns}]}",
            )],
            [
                ("deny", "x/*", "pods", "80/TCP|81/UDP"),
                ("allow", "x/*", "z/c", "80/TCP"),
                ("deny", "x/*", "z/c", "81/TCP"),
            ],
        ),
        on_x(
            "a peer of a later version: Accept accepts nobody",
            &[("x", "{podSelector: {}, policyTypes: [Egress]}")],
            &[&egress("{action: Accept, to: [{planets: {}}, {namespaces: {}}]}")],
            [("deny", "x/*", "*", "*")],
        ),
        on_x(
            "a peer of a later version: Deny denies everybody",
            &[],
            &[&egress("{action: Deny, to: [{domainNames: ['*.example.com']}]}")],
            [("deny", "x/*", "*", "*")],
        ),
        on_x(
            "pods in their nodes' network are no peers",
            &[],
            &[&egress(
                "{action: Deny, to: [{pods: {namespaceSelector: {}, \
                 podSelector: {matchLabels: {pod: h}}}}]}",
            )],
            [],
        ),
    ]
}

fn baseline() -> Vec<Case> {
    let deny = "tier: Baseline, priority: 5, ingress: [{action: Deny, from: [{namespaces: {}}]}]";
    let z_to_a = "{podSelector: {matchLabels: {pod: a}}, \
                  ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}";
    vec![
        on_x("Baseline denies", &[], &[deny], [("deny", "pods", "x/*", "*")]),
        on_x(
            "NetworkPolicy goes before it, for the pods it isolates",
            &[("x", z_to_a)],
            &[deny],
            [("deny", "pods", "x/*", "*"), ("deny", "*", "x/a", "*"), ("allow", "z/*", "x/a", "*")],
        ),
        on_x(
            "NetworkPolicy of the other direction does not",
            &[("x", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}")],
            &[deny],
            [("deny", "pods", "x/*", "*")],
        ),
        on_x(
            "Admin goes before it, and Pass leads to it",
            &[],
            &[
                deny,
                "tier: Admin, priority: 1, ingress: [\
                 {action: Accept, from: [{namespaces: {matchLabels: {ns: y}}}]}, \
                 {action: Pass, from: [{namespaces: {matchLabels: {ns: z}}}]}]",
            ],
            [("deny", "x/*|z/*", "x/*", "*")],
        ),
        on_x(
            "of Baseline, too, the first that matches decides",
            &[],
            &[
                deny,
                "tier: Baseline, priority: 4, ingress: [{action: Accept, \
                 from: [{namespaces: {matchLabels: {ns: y}}}], \
                 protocols: [{tcp: {destinationPort: {number: 80}}}]}]",
            ],
            [("deny", "pods", "x/*", "*"), ("allow", "y/*", "x/*", "80/TCP")],
        ),
    ]
}
