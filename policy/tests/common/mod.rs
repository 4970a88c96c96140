//! Small random clusters in which everything collides: few labels, nested CIDRs, shared names,
//! addresses claimed twice.

#![allow(dead_code, reason = "each test binary uses only a part")]

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::reference::{self, Cluster};
use podswitch_policy::rule::*;
use podswitch_policy::table::{Decision, PolicyTable};
use podswitch_policy::verdict::Traffic;
use podswitch_wire::cidr::Cidr;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

pub(crate) const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];
pub(crate) const NODES: [&str; 3] = ["n0", "n1", "n2"];

fn pair(text: &str) -> (Arc<str>, Arc<str>) {
    let (key, value) = text.split_once('=').unwrap();
    (key.into(), value.into())
}

/// Labels, including one with the key of a namespace's own label (threat T-L4).
pub(crate) fn labels() -> impl Strategy<Value = Labels> {
    let pool = ["app=x", "app=y", "app=z", "tier=p", "tier=q", "kubernetes.io/metadata.name=b"];
    subsequence(pool.to_vec(), 0..=3).prop_map(|list| Labels::new(list.into_iter().map(pair)))
}

pub(crate) fn selector() -> impl Strategy<Value = Selector> {
    let values = || subsequence(vec!["x", "y", "p", "b"], 1..=3);
    let arcs = |list: Vec<&str>| list.into_iter().map(Arc::from).collect::<Vec<Arc<str>>>();
    let operator = prop_oneof![
        values().prop_map(move |v| Operator::In(arcs(v))),
        values().prop_map(move |v| Operator::NotIn(arcs(v))),
        Just(Operator::Exists),
        Just(Operator::DoesNotExist),
    ];
    let keys = select(vec!["app", "tier", "kubernetes.io/metadata.name"]);
    let requirement =
        (keys, operator).prop_map(|(key, operator)| Requirement { key: key.into(), operator });
    let expressions = prop::collection::vec(requirement, 0..=1);
    let few = subsequence(vec!["app=x", "tier=p", "kubernetes.io/metadata.name=b"], 0..=1)
        .prop_map(|list| Labels::new(list.into_iter().map(pair)));
    prop_oneof![
        2 => Just(Selector::everything()),
        5 => (few, expressions).prop_map(|(labels, expressions)| Selector { labels, expressions }),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn port_rule() -> impl Strategy<Value = PortRule> {
    let number = || select(vec![1u16, 53, 79, 80, 81, 255, 256, 8080, 65534, 65535]);
    let name = select(vec!["http", "dns", "none"]);
    prop_oneof![
        1 => protocol().prop_map(PortRule::Every),
        4 => (protocol(), number()).prop_map(|(p, n)| PortRule::port(p, n)),
        2 => (protocol(), number(), number()).prop_map(|(protocol, a, b)| {
            PortRule::Range { protocol, first: a.min(b), last: a.max(b) }
        }),
        3 => (prop::option::weighted(0.8, protocol()), name)
            .prop_map(|(protocol, name)| PortRule::Named { protocol, name: name.into() }),
    ]
}

fn ports() -> impl Strategy<Value = Ports> {
    prop_oneof![
        2 => Just(Ports::Any),
        5 => prop::collection::vec(port_rule(), 0..=3).prop_map(Ports::AnyOf),
    ]
}

fn ranges() -> Vec<Cidr> {
    let texts = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.1.0/24",
        "10.0.0.0/30",
        "10.0.0.4/30",
        "10.0.0.1/32",
        "10.0.1.2/32",
        "192.0.2.0/24",
        "192.0.2.7/32",
        "172.16.0.0/12",
        "::/0",
        "fd00::/8",
        "fd00::/64",
        "fd00:0:0:1::/64",
        "fd00::1/128",
        "fd00::4/126",
        "2001:db8::/32",
    ];
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A CIDR with exceptions, as the API allows them: smaller and within.
fn block() -> impl Strategy<Value = (Cidr, Vec<Cidr>)> {
    select(ranges()).prop_flat_map(|cidr| {
        let within = |r: &Cidr| r.prefix() > cidr.prefix() && cidr.contains(r.address());
        let inside: Vec<Cidr> = ranges().into_iter().filter(within).collect();
        let most = inside.len().min(3);
        (Just(cidr), subsequence(inside, 0..=most))
    })
}

fn peer() -> impl Strategy<Value = Peer> {
    let some = || prop::option::of(selector());
    prop_oneof![
        3 => (some(), some()).prop_map(|(pods, namespaces)| {
            let pods = if namespaces.is_none() { pods.or(Some(Selector::everything())) } else { pods };
            Peer::Selectors { pods, namespaces }
        }),
        2 => block().prop_map(|(cidr, except)| Peer::IpBlock { cidr, except }),
    ]
}

fn rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let peers = prop_oneof![
        1 => Just(Peers::Any),
        4 => prop::collection::vec(peer(), 0..=3).prop_map(Peers::AnyOf),
    ];
    let rule = (peers, ports()).prop_map(|(peers, ports)| Rule { peers, ports });
    prop::option::weighted(0.7, prop::collection::vec(rule, 0..=3))
}

pub(crate) fn network_policy(number: usize) -> impl Strategy<Value = Arc<NetworkPolicy>> {
    (select(NAMESPACES.to_vec()), selector(), rules(), rules()).prop_map(
        move |(namespace, pods, ingress, egress)| {
            let name = format!("p{number}");
            let cookie = format!("NetworkPolicy/{namespace}/{name}");
            Arc::new(NetworkPolicy {
                cookie: cookie.into(),
                namespace: namespace.into(),
                name: name.into(),
                pods,
                ingress,
                egress,
            })
        },
    )
}

fn namespaced() -> impl Strategy<Value = NamespacedPods> {
    (selector(), selector()).prop_map(|(namespaces, pods)| NamespacedPods { namespaces, pods })
}

fn cluster_rules() -> impl Strategy<Value = Vec<ClusterRule>> {
    let peer = prop_oneof![
        6 => namespaced().prop_map(ClusterPeer::Pods),
        2 => selector().prop_map(ClusterPeer::Nodes),
        3 => prop::collection::vec(select(ranges()), 1..=3).prop_map(ClusterPeer::Networks),
        1 => Just(ClusterPeer::Unknown),
    ];
    let action = select(vec![Action::Accept, Action::Deny, Action::Pass]);
    let rule = (action, prop::collection::vec(peer, 0..=2), ports())
        .prop_map(|(action, peers, ports)| ClusterRule { name: "".into(), action, peers, ports });
    prop::collection::vec(rule, 0..=3)
}

pub(crate) fn cluster_policy(number: usize) -> impl Strategy<Value = Arc<ClusterNetworkPolicy>> {
    let tier = select(vec![ClusterTier::Admin, ClusterTier::Baseline]);
    (tier, 0u16..3, namespaced(), cluster_rules(), cluster_rules()).prop_map(
        move |(tier, priority, subject, ingress, egress)| {
            let name = format!("c{number}");
            let cookie = format!("ClusterNetworkPolicy/{name}").into();
            let name = name.into();
            Arc::new(ClusterNetworkPolicy {
                cookie,
                name,
                tier,
                priority,
                subject,
                ingress,
                egress,
            })
        },
    )
}

/// Pod number `number`, nearly always with addresses that no other pod has.
pub(crate) fn pod(number: usize) -> impl Strategy<Value = Arc<Pod>> {
    let named = (select(vec!["http", "dns"]), protocol(), select(vec![80u16, 53, 8080, 256]))
        .prop_map(|(name, protocol, port)| NamedPort { name: name.into(), protocol, port });
    let place = (select(NAMESPACES.to_vec()), select(vec!["n0", "n1", "n2", ""]));
    let kind = (prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (place, labels(), prop::collection::vec(named, 0..=2), kind).prop_map(
        move |((namespace, node), labels, ports, (host_network, shares))| {
            let name = format!("pod{number}");
            let low = if shares { 1 } else { number + 1 };
            let mut addresses = vec![
                format!("10.0.{}.{low}", number % 2).parse().unwrap(),
                format!("fd00:0:0:{}::{low:x}", number % 2).parse().unwrap(),
            ];
            if host_network {
                addresses = node_addresses(NODES.iter().position(|n| *n == node).unwrap_or(0));
            }
            let cookie = format!("Pod/{namespace}/{name}").into();
            let (namespace, name) = (namespace.into(), name.into());
            let workload = Workload { namespace, name, labels, addresses, ports, host_network };
            Arc::new(Pod { cookie, workload, node: node.into() })
        },
    )
}

pub(crate) fn node_addresses(number: usize) -> Vec<IpAddr> {
    let texts = [format!("172.16.0.{}", number + 1), format!("2001:db8::{}", number + 1)];
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub(crate) fn node(number: usize) -> impl Strategy<Value = Arc<Node>> {
    labels().prop_map(move |labels| {
        let addresses = node_addresses(number);
        Arc::new(Node { name: NODES[number].into(), labels, addresses })
    })
}

pub(crate) fn namespace(number: usize) -> impl Strategy<Value = Arc<Namespace>> {
    labels().prop_map(move |labels| Arc::new(Namespace { name: NAMESPACES[number].into(), labels }))
}

/// Objects with the numbers below `most`, some omitted.
fn some_of<S: Strategy>(
    most: usize,
    make: impl Fn(usize) -> S,
) -> impl Strategy<Value = Vec<S::Value>>
where
    S::Value: Clone,
{
    let each: Vec<_> = (0..most).map(|n| prop::option::weighted(0.8, make(n))).collect();
    each.prop_map(|list| list.into_iter().flatten().collect())
}

pub(crate) fn cluster(
    pods: usize,
    policies: usize,
    cluster_policies: usize,
) -> impl Strategy<Value = Cluster> {
    (
        some_of(pods, pod),
        some_of(NAMESPACES.len(), namespace),
        some_of(NODES.len(), node),
        some_of(policies, network_policy),
        some_of(cluster_policies, cluster_policy),
    )
        .prop_map(|(pods, namespaces, nodes, network_policies, cluster_policies)| Cluster {
            pods,
            namespaces,
            nodes,
            network_policies,
            cluster_policies,
        })
}

/// Addresses to probe: those of pods and nodes, and a few outside.
pub(crate) fn addresses(cluster: &Cluster) -> Vec<IpAddr> {
    let pods = cluster.pods.iter().flat_map(|p| p.workload.addresses.iter().copied());
    let nodes = (0..NODES.len()).flat_map(node_addresses);
    let outside = [
        "192.0.2.7",
        "192.0.2.8",
        "10.0.0.3",
        "10.9.9.9",
        "8.8.8.8",
        "2001:db8::7",
        "fd00::77",
        "2600::1",
    ];
    let outside = outside.iter().map(|text| text.parse().unwrap());
    let mut all: Vec<IpAddr> = pods.chain(nodes).chain(outside).collect();
    all.sort();
    all.dedup();
    all
}

/// Traffic to probe.
pub(crate) fn traffics(ipv6: bool) -> Vec<Traffic> {
    use Protocol::{Sctp, Tcp, Udp};
    let ports =
        [(Tcp, 80), (Tcp, 53), (Tcp, 8080), (Tcp, 65535), (Udp, 53), (Udp, 256), (Sctp, 80)];
    let mut all: Vec<_> = ports.map(|(p, n)| Traffic::to_port(p, n)).to_vec();
    all.push(Traffic::echo(ipv6));
    all.push(Traffic { via_service: true, ..Traffic::to_port(Tcp, 80) });
    all
}

pub(crate) fn compile(cluster: &Cluster) -> PolicyCompiler {
    let mut compiler = PolicyCompiler::new();
    cluster.network_policies.iter().for_each(|p| compiler.upsert_network_policy(p));
    cluster.pods.iter().for_each(|p| compiler.upsert_pod(&p.cookie, &p.workload, &p.node));
    cluster.nodes.iter().for_each(|n| compiler.upsert_node(n));
    cluster.cluster_policies.iter().for_each(|p| compiler.upsert_cluster_policy(p));
    cluster.namespaces.iter().for_each(|n| compiler.upsert_namespace(n));
    compiler
}

/// A decision of the table in the reference's form.
pub(crate) fn in_words(
    table: &PolicyTable,
    direction: Direction,
    decision: &Decision,
    subject: IpAddr,
) -> reference::Side {
    let cookie = |id| Arc::clone(table.policy(id).expect("a policy in force").object.cookie());
    let evaluated = !matches!(
        decision.why,
        podswitch_policy::verdict::Why::NoPod
            | podswitch_policy::verdict::Why::OwnAddress
            | podswitch_policy::verdict::Why::OwnNode
    );
    let isolating = if evaluated {
        table.isolating(direction, &table.party(subject)).into_iter().map(cookie).collect()
    } else {
        Vec::new()
    };
    reference::Side {
        allow: decision.allow,
        why: decision.why,
        rule: decision.rule.map(|rule| (cookie(decision.policy), rule as usize)),
        isolated_by: isolating,
    }
}

/// Evaluates every ordered pair of addresses and all traffic by both. Returns the number of
/// verdicts, or the first difference.
pub(crate) fn disagreement(cluster: &Cluster, table: &PolicyTable) -> Result<u64, String> {
    let all = addresses(cluster);
    let mut verdicts = 0;
    for from in &all {
        for to in all.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
            let (source, destination) = (table.party(*from), table.party(*to));
            for traffic in traffics(from.is_ipv6()) {
                let want = reference::evaluate(cluster, *from, *to, traffic);
                let got = table.verdict(&source, &destination, traffic);
                verdicts += 1;
                let egress = in_words(table, Direction::Egress, &got.egress, *from);
                let ingress = in_words(table, Direction::Ingress, &got.ingress, *to);
                if (&egress, &ingress) != (&want.egress, &want.ingress) {
                    return Err(format!(
                        "{from} to {to}, {traffic:?}:\n reference {want:?}\n compiled  {egress:?} {ingress:?}"
                    ));
                }
            }
        }
    }
    Ok(verdicts)
}
