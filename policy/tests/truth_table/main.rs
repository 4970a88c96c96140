//! Cases after the upstream end-to-end suite, cyclonus and the API's text, each with the
//! reachability that a person expects: among nine pods in three namespaces, their nodes and two
//! addresses outside, over both families, three protocols, two ports and ICMP.

mod build;

mod cases;

use std::net::IpAddr;
use std::sync::Arc;

use cases::Case;
use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::reference::{self, Cluster};
use podswitch_policy::rule::*;
use podswitch_policy::verdict::Traffic;

/// Namespaces x, y, z with pods a, b, c each: the pods of x on n1, all others on n2. Pod labels
/// `pod=a`, namespace labels `ns=x`. Every pod has the port `http` on 80/TCP, `dns` on 81/UDP;
/// z/c has `http` on 81/TCP instead. h is a hostNetwork pod of x on n1.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for (n, namespace) in ["x", "y", "z"].into_iter().enumerate() {
        let labels = [("ns", namespace)].into_iter().collect();
        cluster.namespaces.push(Arc::new(Namespace { name: namespace.into(), labels }));
        for (p, pod) in ["a", "b", "c"].into_iter().enumerate() {
            let addresses = [format!("10.0.{n}.{}", p + 1), format!("fd00:0:0:{n}::{}", p + 1)];
            let node = if namespace == "x" { "n1" } else { "n2" };
            let http = if (namespace, pod) == ("z", "c") { 81 } else { 80 };
            cluster.pods.push(Arc::new(pod_of(namespace, pod, node, &addresses, http)));
        }
    }
    for (n, name) in ["n1", "n2"].into_iter().enumerate() {
        let addresses = vec![address(&format!("172.16.0.{n}")), address(&format!("fd01::{n}"))];
        let labels = [("node", name)].into_iter().collect();
        cluster.nodes.push(Arc::new(Node { name: name.into(), labels, addresses }));
    }
    let mut host = pod_of("x", "h", "n1", &["172.16.0.0".into(), "fd01::0".into()], 80);
    host.workload.host_network = true;
    cluster.pods.push(Arc::new(host));
    cluster
}

fn pod_of(namespace: &str, pod: &str, node: &str, addresses: &[String], http: u16) -> Pod {
    let port = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
    let workload = Workload {
        namespace: namespace.into(),
        name: pod.into(),
        labels: [("pod", pod)].into_iter().collect(),
        addresses: addresses.iter().map(|text| address(text)).collect(),
        ports: vec![port("http", Protocol::Tcp, http), port("dns", Protocol::Udp, 81)],
        host_network: false,
    };
    Pod { cookie: format!("Pod/{namespace}/{pod}").into(), workload, node: node.into() }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Every source and destination, by name, with an address of each family.
fn everybody() -> Vec<(String, [IpAddr; 2])> {
    let cluster = cluster();
    let pods = cluster.pods.iter().filter(|pod| !pod.workload.host_network);
    let pods = pods.map(|pod| {
        let workload = &pod.workload;
        let name = format!("{}/{}", workload.namespace, workload.name);
        (name, [workload.addresses[0], workload.addresses[1]])
    });
    let others = [
        ("n1", "172.16.0.0", "fd01::0"),
        ("n2", "172.16.0.1", "fd01::1"),
        ("out1", "192.0.2.1", "2001:db8:1::1"),
        ("out2", "198.51.100.1", "2001:db8:2::1"),
    ];
    pods.chain(others.map(|(name, v4, v6)| (name.into(), [address(v4), address(v6)]))).collect()
}

/// The traffic of a case, as expectations name it.
fn traffics(ipv6: bool) -> Vec<(String, Traffic)> {
    let both = |p: Protocol| [80, 81].map(|n| (format!("{n}/{p}"), Traffic::to_port(p, n)));
    let mut all: Vec<_> = Protocol::ALL.into_iter().flat_map(both).collect();
    all.push(("echo".into(), Traffic::echo(ipv6)));
    all
}

/// `*` matches anything, `x/*` the pods of x, `pods` every pod; alternatives are separated by `|`.
fn fits(pattern: &str, name: &str) -> bool {
    pattern.split('|').any(|pattern| match pattern.split_once('*') {
        Some((head, tail)) => name.starts_with(head) && name.ends_with(tail),
        None if pattern == "pods" => name.contains('/'),
        None => pattern == name,
    })
}

/// The last expectation that matches applies; if none matches, the connection is allowed.
fn expected(case: &Case, from: &str, to: &str, traffic: &str) -> bool {
    let node = |name: &str| match name {
        "n1" | "n2" => Some(name.to_owned()),
        pod if pod.starts_with("x/") => Some("n1".into()),
        pod if pod.contains('/') => Some("n2".into()),
        _ => None,
    };
    // N12 and N16 hold in every case.
    let is_node = |name: &str| !name.contains('/');
    let own_node = is_node(from) != is_node(to) && node(from).is_some() && node(from) == node(to);
    if from == to || own_node {
        return true;
    }
    let mut allow = true;
    for (word, sender, receiver, what) in &case.expect {
        if fits(sender, from) && fits(receiver, to) && fits(what, traffic) {
            allow = *word == "allow";
        }
    }
    allow
}

/// Every verdict of a case that is not as expected, by the compiled table or by the reference.
fn mistakes(case: &Case) -> (usize, Vec<String>) {
    let mut cluster = cluster();
    cluster.network_policies = case.network.iter().cloned().map(Arc::new).collect();
    cluster.cluster_policies = case.cluster.iter().cloned().map(Arc::new).collect();
    let mut compiler = PolicyCompiler::new();
    cluster.namespaces.iter().for_each(|n| compiler.upsert_namespace(n));
    cluster.nodes.iter().for_each(|n| compiler.upsert_node(n));
    cluster.pods.iter().for_each(|p| compiler.upsert_pod(&p.cookie, &p.workload, &p.node));
    cluster.network_policies.iter().for_each(|p| compiler.upsert_network_policy(p));
    cluster.cluster_policies.iter().for_each(|p| compiler.upsert_cluster_policy(p));
    let table = compiler.publish();
    let (mut count, mut wrong) = (0, Vec::new());
    let everybody = everybody();
    for (family, (from, sources)) in
        [0, 1].into_iter().flat_map(|f| everybody.iter().map(move |e| (f, e)))
    {
        for (to, destinations) in &everybody {
            for (what, traffic) in traffics(family == 1) {
                let (source, destination) = (sources[family], destinations[family]);
                let want = expected(case, from, to, &what);
                let ends = (table.party(source), table.party(destination));
                let compiled = table.verdict(&ends.0, &ends.1, traffic).allow();
                let plain = reference::evaluate(&cluster, source, destination, traffic).allow();
                count += 1;
                if (compiled, plain) != (want, want) {
                    wrong.push(format!(
                        "{}: {from} to {to} {what} ({source}): want {want}, table {compiled}, reference {plain}",
                        case.name
                    ));
                }
            }
        }
    }
    (count, wrong)
}

#[test]
fn every_case_is_as_expected() {
    let cases = cases::all();
    let (mut verdicts, mut wrong) = (0, Vec::new());
    for case in &cases {
        let (count, mut bad) = mistakes(case);
        verdicts += count;
        bad.truncate(5);
        wrong.extend(bad);
    }
    println!("{} cases, {verdicts} verdicts", cases.len());
    assert!(cases.len() >= 90 && verdicts >= 65_000, "{} cases, {verdicts} verdicts", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_of_cases_are_distinct() {
    let mut names: Vec<_> = cases::all().iter().map(|case| case.name).collect();
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before);
}
