//! The rules one by one.

use std::sync::Arc;

use podswitch_wire::flow_key::{Family, FlowKey};

use super::*;
use crate::rule::Protocol;
use crate::service::endpoints::{hint_use, merge};
use crate::service::entry::ServicePortId;
use crate::service::model::*;
use crate::service::table::{BackendState, Found};

fn hinted(address: &str, nodes: &[&str], zones: &[&str]) -> Endpoint {
    let names = |list: &[&str]| list.iter().map(|n| Arc::from(*n)).collect();
    let hints = Hints { nodes: names(nodes), zones: names(zones) };
    Endpoint { hints, ..Endpoint::ready(ip(address)) }
}

fn backends(endpoints: impl IntoIterator<Item = Endpoint>) -> Vec<String> {
    spread(&table(&[web()], &[slice("s", 8080, endpoints)]), VIP, Origin::InCluster)
}

#[test]
fn s1_ready_before_terminating() {
    assert_eq!(backends([ready(A), ready(B)]), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let going = state(B, (false, true, true));
    assert_eq!(backends([ready(A), going.clone()]), ["10.0.0.1:8080"]);
    assert_eq!(backends([state(A, (false, false, false)), going.clone()]), ["10.0.0.2:8080"]);
    // An endpoint that serves without terminating, or terminates without serving, is not a last
    // resort.
    let neither = [state(A, (false, true, false)), state(B, (false, false, true))];
    assert_eq!(backends(neither), ["NoEndpoints"]);
    // Missing conditions: ready, serving, not terminating (API text of 1.36).
    let missing = |ready, serving, terminating| Endpoint {
        conditions: Conditions { ready, serving, terminating },
        ..Endpoint::ready(ip(A))
    };
    assert_eq!(backends([missing(None, None, None)]), ["10.0.0.1:8080"]);
    assert_eq!(backends([missing(Some(false), None, Some(true))]), ["10.0.0.1:8080"]);
    assert_eq!(backends([missing(Some(false), None, None)]), ["NoEndpoints"]);
    assert_eq!(backends([missing(Some(false), Some(false), Some(true))]), ["NoEndpoints"]);
    assert_eq!(backends([missing(Some(false), Some(true), Some(true))]), ["10.0.0.1:8080"]);
}

#[test]
fn s1_is_evaluated_for_the_node_separately() {
    let mut service = web();
    service.internal_policy = TrafficPolicy::Local;
    let here = state(A, (false, true, true)).on("here");
    let table = table(&[service], &[slice("s", 8080, [here, ready(B).on("there")])]);
    // Another node has a ready endpoint; this node has only one that is terminating.
    assert_eq!(pod(&table, VIP), "10.0.0.1:8080");
}

#[test]
fn s2_hints() {
    let all = ["10.0.0.1:8080", "10.0.0.2:8080"];
    let zones = |a: &[&str], b: &[&str]| backends([hinted(A, &[], a), hinted(B, &[], b)]);
    assert_eq!(zones(&["z1"], &["z2"]), ["10.0.0.1:8080"]);
    assert_eq!(zones(&["z1", "z2"], &["z2"]), ["10.0.0.1:8080"]);
    assert_eq!(zones(&["z1"], &[]), all);
    assert_eq!(zones(&["z3"], &["z2"]), all);
    let nodes = |a: &[&str], b: &[&str]| backends([hinted(A, a, &["z1"]), hinted(B, b, &["z1"])]);
    assert_eq!(nodes(&["here"], &["there"]), ["10.0.0.1:8080"]);
    assert_eq!(nodes(&["far"], &["there"]), all);
    assert_eq!(nodes(&["here"], &[]), all);
    // Node before zone; an endpoint that is not ready does not matter.
    assert_eq!(backends([hinted(A, &["there"], &["z1"]), hinted(B, &["here"], &["z2"])]), all[1..]);
    let unready = Endpoint { hints: Hints::default(), ..state(C, (false, false, false)) };
    assert_eq!(backends([hinted(A, &[], &["z1"]), hinted(B, &[], &["z2"]), unready]), all[..1]);
    // Hints do not affect the node-local selection.
    let mut service = web();
    service.internal_policy = TrafficPolicy::Local;
    let local = hinted(A, &[], &["z2"]).on("here");
    let table = table(&[service], &[slice("s", 8080, [local, hinted(B, &[], &["z1"])])]);
    assert_eq!(pod(&table, VIP), "10.0.0.1:8080");
}

#[test]
fn s2_use_of_hints_is_explained() {
    let hints = |endpoints: Vec<Endpoint>| {
        let (service, view) = (web(), settings().view);
        let slice = slice("s", 8080, endpoints);
        let all = merge(&service, &service.ports[0], Family::V4, [&slice], &view);
        hint_use(&all, &view).to_string()
    };
    let b = || hinted(B, &[], &["z2"]);
    assert_eq!(hints(vec![ready(A)]), "there are none");
    assert_eq!(hints(vec![hinted(A, &[], &["z1"]), b()]), "followed: same zone");
    assert_eq!(
        hints(vec![hinted(A, &["here"], &[]), hinted(B, &["x"], &[])]),
        "followed: same node"
    );
    assert_eq!(hints(vec![ready(A), b()]), "ignored: 10.0.0.1:8080 has none for zones");
    assert_eq!(hints(vec![hinted(A, &[], &["z3"]), b()]), "ignored: none is for this zone");
    assert_eq!(hints(vec![hinted(A, &["far"], &[])]), "ignored: none is for this node");
    assert_eq!(hints(vec![state(A, (false, false, false))]), "there are none");
}

#[test]
fn s3_external_policy_local() {
    let mut service = balancer();
    service.external_policy = TrafficPolicy::Local;
    let both = [ready(A).on("here"), ready(B).on("there")];
    let with_local = table(&[service.clone()], &[slice("s", 8080, both)]);
    for to in ["198.51.100.1:80", "192.0.2.1:30080"] {
        // From outside: this node's endpoint, and the client's address is kept.
        assert_eq!(spread(&with_local, to, Origin::OffCluster), ["10.0.0.1:8080"]);
        // From inside: Cluster behaviour.
        let all = ["10.0.0.1:8080", "10.0.0.2:8080"];
        assert_eq!(spread(&with_local, to, Origin::InCluster), all);
    }
    let without = table(&[service.clone()], &[slice("s", 8080, [ready(B).on("there")])]);
    assert_eq!(outside(&without, "198.51.100.1:80"), "NoLocalEndpoints");
    assert_eq!(pod(&without, "198.51.100.1:80"), "10.0.0.2:8080");
    // The cluster IP does not follow the external policy.
    assert_eq!(pod(&without, VIP), "10.0.0.2:8080");
    // No endpoint anywhere is rejected, not dropped (S5).
    assert_eq!(outside(&table(&[service], &[]), "198.51.100.1:80"), "NoEndpoints");
}

#[test]
fn s4_internal_policy_local() {
    let mut service = balancer();
    service.internal_policy = TrafficPolicy::Local;
    let table_of =
        |endpoints: Vec<Endpoint>| table(&[service.clone()], &[slice("s", 8080, endpoints)]);
    let both = table_of(vec![ready(A).on("here"), ready(B).on("there")]);
    assert_eq!(spread(&both, VIP, Origin::InCluster), ["10.0.0.1:8080"]);
    let far = table_of(vec![ready(B).on("there")]);
    assert_eq!(pod(&far, VIP), "NoLocalEndpoints");
    // Only the cluster IP follows the internal policy.
    assert_eq!(pod(&far, "192.0.2.1:30080"), "10.0.0.2:8080");
    assert_eq!(outside(&far, "198.51.100.1:80"), "10.0.0.2:8080+snat");
}

#[test]
fn s5_no_endpoints() {
    let table = table(&[balancer()], &[slice("s", 8080, [state(A, (false, false, false))])]);
    for to in [VIP, "198.51.100.1:80", "192.0.2.1:30080"] {
        assert_eq!(pod(&table, to), "NoEndpoints");
        assert_eq!(outside(&table, to), "NoEndpoints");
    }
}

#[test]
fn s6_undefined_ports_and_unallocated_addresses() {
    let table = table(&[balancer()], &[slice("s", 8080, [ready(A)])]);
    assert_eq!(pod(&table, "10.96.0.10:81"), "UndefinedPort");
    assert_eq!(pod(&table, "10.96.0.11:80"), "Unallocated");
    assert_eq!(pod(&table, "[fd00:96::10]:80"), "Unallocated");
    assert_eq!(pod(&table, "10.97.0.10:80"), "-");
    // UDP, SCTP and ICMP to a cluster IP that has only TCP.
    for proto in [17, 132, 1, 47] {
        let key = FlowKey { proto, ..key("10.0.9.9:7", VIP) };
        assert_eq!(answer(&table, &key, Origin::InCluster), "UndefinedPort");
    }
    // The switch must not reject other ports of external addresses.
    assert_eq!(outside(&table, "198.51.100.1:81"), "-");
    assert_eq!(outside(&table, "192.0.2.1:81"), "-");
    assert!(
        table.is_service_address(ip("10.96.0.11")) && !table.is_service_address(ip("192.0.2.1"))
    );
    // The refusal names the Service.
    let Found::Reject(_, subject) =
        table.find(&key("10.0.9.9:7", "10.96.0.10:81"), Origin::InCluster)
    else {
        panic!()
    };
    assert_eq!(subject.cookie.map(|c| &**c), Some("Service/ns/web"));
}

/// Cluster IPs outside the configured CIDRs, or no CIDRs configured.
#[test]
fn s6_without_ranges() {
    let mut stray = web();
    stray.cluster_ips = vec![ip("172.30.0.1")];
    let mut compiler = compiler(&[stray], &[]);
    let table = compiler.publish();
    assert_eq!(pod(&table, "172.30.0.1:81"), "UndefinedPort");
    assert_eq!(pod(&table, "172.30.0.2:81"), "-");
    compiler.set_settings(Settings {
        service_cidrs: vec!["172.30.0.0/16".parse().unwrap()],
        ..settings()
    });
    assert_eq!(pod(&compiler.publish(), "172.30.0.2:81"), "Unallocated");
    compiler.set_settings(Settings { service_cidrs: vec![], ..settings() });
    assert_eq!(pod(&compiler.publish(), "172.30.0.1:81"), "UndefinedPort");
    compiler.remove_service(&ServiceName { namespace: "ns".into(), name: "web".into() });
    assert_eq!(pod(&compiler.publish(), "172.30.0.1:81"), "-");
}

#[test]
fn s7_source_ranges() {
    let mut service = balancer();
    service.source_ranges = vec!["203.0.113.0/28".parse().unwrap(), "10.1.0.0/16".parse().unwrap()];
    let table = table(&[service], &[slice("s", 8080, [ready(A)])]);
    let ask = |from: &str, to: &str| answer(&table, &key(from, to), Origin::OffCluster);
    assert_eq!(ask("203.0.113.9:1", "198.51.100.1:80"), "10.0.0.1:8080+snat");
    assert_eq!(ask("203.0.113.16:1", "198.51.100.1:80"), "SourceRange");
    // The ranges hold for pods, too, and only at the load balancer's address.
    assert_eq!(pod(&table, "198.51.100.1:80"), "SourceRange");
    assert_eq!(
        answer(&table, &key("10.1.2.3:1", "198.51.100.1:80"), Origin::InCluster),
        "10.0.0.1:8080"
    );
    assert_eq!(ask("203.0.113.16:1", "192.0.2.1:30080"), "10.0.0.1:8080+snat");
    assert_eq!(pod(&table, VIP), "10.0.0.1:8080");
}

/// CIDRs of one family close a dual-stack load balancer to all clients of the other family.
#[test]
fn s7_ranges_of_one_family() {
    let mut service = balancer();
    service.cluster_ips.push(ip("fd00:96::10"));
    service.ingress.push(Ingress { address: ip("2001:db8:7::1"), mode: IpMode::Vip });
    service.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    let mut six = slice("s6", 8080, [ready("fd00:10::1")]);
    six.family = Family::V6;
    let table = table(&[service], &[slice("s4", 8080, [ready(A)]), six]);
    assert_eq!(outside(&table, "198.51.100.1:80"), "10.0.0.1:8080+snat");
    assert_eq!(outside(&table, "[2001:db8:7::1]:80"), "SourceRange");
}

#[test]
fn s8_source_nat() {
    let table = table(&[balancer()], &[slice("s", 8080, [ready(A)])]);
    assert_eq!(pod(&table, VIP), "10.0.0.1:8080");
    assert_eq!(pod(&table, "192.0.2.1:30080"), "10.0.0.1:8080");
    assert_eq!(outside(&table, "192.0.2.1:30080"), "10.0.0.1:8080+snat");
    assert_eq!(outside(&table, VIP), "10.0.0.1:8080+snat");
    // Hairpin: the pod is its own backend.
    for to in [VIP, "198.51.100.1:80", "192.0.2.1:30080"] {
        let hairpin = answer(&table, &key("10.0.0.1:5555", to), Origin::InCluster);
        assert_eq!(hairpin, "10.0.0.1:8080+snat");
    }
}

#[test]
fn s9_affinity() {
    let mut service = web();
    service.affinity = Some(DEFAULT_AFFINITY_SECS);
    let all = [ready(A), ready(B), state(C, (false, true, true))];
    let table = table(&[service], &[slice("s", 8080, all)]);
    // The same backend for any source port, and not the same backend for all clients.
    assert_eq!(spread(&table, VIP, Origin::InCluster).len(), 1);
    let clients = (1..60).map(|n| pod_from(&table, &format!("10.0.7.{n}:99")));
    assert_eq!(clients.collect::<std::collections::BTreeSet<_>>().len(), 2);

    let key = key("10.0.9.9:40000", VIP);
    let Found::Service(found) = table.find(&key, Origin::InCluster) else { panic!() };
    assert_eq!(found.affinity(), Some(10_800));
    for pinned in [A, B] {
        let backend = socket(&format!("{pinned}:8080"));
        assert_eq!(found.pinned(backend, &key).unwrap().backend().socket(), backend);
    }
    // Not to a backend that terminates while others are ready, and not to an unknown one.
    assert!(found.pinned(socket("10.0.0.3:8080"), &key).is_none());
    assert!(found.pinned(socket("10.0.0.1:8081"), &key).is_none());
}

#[test]
fn s10_s11_existing_connections() {
    let key = key("10.0.9.9:40000", VIP);
    let mut service = web();
    service.internal_policy = TrafficPolicy::Local;
    let endpoints =
        [ready(A).on("there"), state(B, (false, true, true)), state(C, (false, false, true))];
    let mut compiler = compiler(&[service], &[slice("s", 8080, endpoints)]);
    let table = compiler.publish();
    let stands = |table: &ServiceTable, backend: &str| table.backend_state(&key, socket(backend));
    // Only the policy keeps new connections from A: existing connections continue.
    assert_eq!(stands(&table, "10.0.0.1:8080"), BackendState::Serving);
    assert_eq!(stands(&table, "10.0.0.2:8080"), BackendState::Serving);
    assert_eq!(stands(&table, "10.0.0.3:8080"), BackendState::NotServing);
    assert_eq!(stands(&table, "10.0.0.4:8080"), BackendState::Gone);
    compiler.remove_slice(&"ns".into(), &"s".into());
    assert_eq!(stands(&compiler.publish(), "10.0.0.1:8080"), BackendState::Gone);
    compiler.remove_service(&ServiceName { namespace: "ns".into(), name: "web".into() });
    assert_eq!(stands(&compiler.publish(), "10.0.0.1:8080"), BackendState::NoService);
}

#[test]
fn s12_health_checks() {
    let mut service = balancer();
    service.external_policy = TrafficPolicy::Local;
    service.health_check_node_port = Some(32_000);
    let count = |endpoints: Vec<Endpoint>| {
        let mut compiler = compiler(&[service.clone()], &[slice("s", 8080, endpoints)]);
        compiler.publish();
        let all: Vec<_> = compiler.health_checks().cloned().collect();
        assert_eq!((all.len(), all[0].port), (1, 32_000));
        assert_eq!(all[0].local_endpoints[0], all[0].local_endpoints[1], "of one family");
        all[0].local_endpoints[0]
    };
    assert_eq!(count(vec![ready(A).on("here"), ready(B).on("here"), ready(C).on("there")]), 2);
    assert_eq!(count(vec![ready(A).on("there")]), 0);
    assert_eq!(count(vec![state(A, (false, true, true)).on("here")]), 0);
    assert_eq!(count(vec![state(A, (true, true, true)).on("here")]), 0);
    assert_eq!(count(vec![]), 0);
    // With two families a pod counts once in each. A family without a local endpoint has a count of
    // zero.
    service.cluster_ips.push(ip("fd00:96::10"));
    let ipv6 = |node: &str| EndpointSlice {
        family: Family::V6,
        ..slice("s6", 8080, [ready("fd00:10::1").on(node)])
    };
    let both = |v4: &str, v6: &str| {
        let slices = [slice("s", 8080, [ready(A).on(v4)]), ipv6(v6)];
        let mut compiler = compiler(&[service.clone()], &slices);
        compiler.publish();
        compiler.health_checks().next().unwrap().local_endpoints
    };
    assert_eq!(both("here", "here"), [1, 1]);
    assert_eq!(both("there", "here"), [0, 1]);
    assert_eq!(both("here", "there"), [1, 0]);
}

#[test]
fn s13_proxied_addresses() {
    let mut service = balancer();
    service.ingress[0].mode = IpMode::Proxy;
    let table = table(&[service], &[slice("s", 8080, [ready(A)])]);
    assert_eq!(pod(&table, "198.51.100.1:80"), "-");
    assert_eq!(pod(&table, "192.0.2.1:30080"), "10.0.0.1:8080");
}

#[test]
fn s14_services_that_are_not_balanced() {
    let endpoints = [slice("s", 8080, [ready(A)])];
    let foreign = Service { foreign_proxy: true, ..balancer() };
    let alias = Service { kind: ServiceType::ExternalName, ..web() };
    let headless = Service { cluster_ips: vec![], ..web() };
    for (service, vip) in [(foreign, "-"), (alias, "-"), (headless, "Unallocated")] {
        let table = table(&[service], &endpoints);
        assert_eq!(pod(&table, VIP), vip);
        assert_eq!(pod(&table, "198.51.100.1:80"), "-");
        assert_eq!(pod(&table, "192.0.2.1:30080"), "-");
    }
}

#[test]
fn s16_s17_ports_and_protocols_are_separate() {
    let mut service = web();
    let port = |name: &str, protocol, port| ServicePort {
        protocol,
        ..ServicePort { name: name.into(), ..ServicePort::tcp("", port) }
    };
    service.ports = vec![
        port("http", Protocol::Tcp, 80),
        port("quic", Protocol::Udp, 80),
        port("sig", Protocol::Sctp, 80),
    ];
    let mut endpoints = slice("s", 8080, [ready(A)]);
    let named =
        |name: &str, protocol, port| SlicePort { name: name.into(), protocol, port: Some(port) };
    endpoints.ports = vec![
        named("http", Protocol::Tcp, 1),
        named("quic", Protocol::Udp, 2),
        named("sig", Protocol::Sctp, 3),
        // Same name, other protocol: not an endpoint of this port.
        named("http", Protocol::Sctp, 4),
    ];
    let table = table(&[service], &[endpoints]);
    let mut ids = std::collections::BTreeSet::<ServicePortId>::new();
    for (proto, backend) in [(6, "10.0.0.1:1"), (17, "10.0.0.1:2"), (132, "10.0.0.1:3")] {
        let key = FlowKey { proto, ..key("10.0.9.9:7", VIP) };
        assert_eq!(answer(&table, &key, Origin::InCluster), backend);
        let Found::Service(found) = table.find(&key, Origin::InCluster) else { panic!() };
        ids.insert(found.entry.id);
    }
    assert_eq!(ids.len(), 3);
}

#[test]
fn s18_weights() {
    let weighted = |address: &str, weight| Endpoint { weight, ..ready(address) };
    let table =
        table(&[web()], &[slice("s", 8080, [weighted(A, 1), weighted(B, 3), weighted(C, 0)])]);
    let mut key = key("10.0.9.9:1", VIP);
    let mut to_b = 0;
    for port in 1..=10_000 {
        key.src_port = port;
        match &*answer(&table, &key, Origin::InCluster) {
            "10.0.0.1:8080" => {}
            "10.0.0.2:8080" => to_b += 1,
            other => panic!("{other}"),
        }
    }
    // Binomial with p = 3/4: six standard deviations are 260.
    assert!((7_240..7_760).contains(&to_b), "{to_b}");
    // If all weights are zero, the result is the same as without weights.
    assert_eq!(backends([weighted(A, 0)]), ["NoEndpoints"]);
}

#[test]
fn slices_with_duplicates_and_their_own_target_ports() {
    let gone = state(A, (false, false, true));
    let slices = [
        slice("s-1", 8080, [ready(A), ready(B)]),
        slice("s-2", 9090, [ready(C)]),
        slice("s-3", 8080, [gone]),
    ];
    let table = table(&[web()], &slices);
    let all = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:9090"];
    assert_eq!(spread(&table, VIP, Origin::InCluster), all);
    // Each endpoint counts once, so that duplicates do not get a larger share.
    let Found::Service(found) = table.find(&key("10.0.9.9:7", VIP), Origin::InCluster) else {
        panic!()
    };
    assert_eq!(found.entry.backends().len(), 3);

    // Slices of other names, ports and families are ignored, and so is a port without a number.
    let mut other = slice("s-4", 1, [ready(B)]);
    other.service = "other".into();
    let mut named = slice("s-5", 1, [ready(B)]);
    named.ports[0].name = "https".into();
    let mut numberless = slice("s-6", 1, [ready(B)]);
    numberless.ports[0].port = None;
    let mut empty = slice("s-7", 1, [ready(B), ready("127.0.0.1"), ready("fd00::1")]);
    empty.endpoints[0].addresses.clear();
    assert_eq!(
        pod(&super::table(&[web()], &[other, named, numberless, empty]), VIP),
        "NoEndpoints"
    );
}

#[test]
fn readiness_disregarded() {
    let service = Service { publish_not_ready: true, ..web() };
    let unready = state(A, (false, false, false));
    assert_eq!(pod(&table(&[service], &[slice("s", 8080, [unready])]), VIP), "10.0.0.1:8080");
}

#[test]
fn dual_stack() {
    let mut service = balancer();
    service.cluster_ips.push(ip("fd00:96::10"));
    service.ingress.push(Ingress { address: ip("2001:db8:7::1"), mode: IpMode::Vip });
    let mut six = slice("s6", 8080, [ready("fd00:10::1")]);
    six.family = Family::V6;
    let slices = [slice("s4", 8080, [ready(A)]), six];
    let both = table(&[service.clone()], &slices);
    for (v4, v6) in [
        (VIP, "[fd00:96::10]:80"),
        ("198.51.100.1:80", "[2001:db8:7::1]:80"),
        ("192.0.2.1:30080", "[2001:db8::1]:30080"),
    ] {
        assert_eq!(pod(&both, v4), "10.0.0.1:8080");
        assert_eq!(pod(&both, v6), "[fd00:10::1]:8080");
    }
    // One id for both families, so that affinity and counters are shared.
    let id = |to, from| match both.find(&key(from, to), Origin::InCluster) {
        Found::Service(found) => found.entry.id,
        other => panic!("{other:?}"),
    };
    assert_eq!(id(VIP, "10.0.9.9:1"), id("[fd00:96::10]:80", "[fd00:10::9]:1"));
    // A Service of one family has no frontend of the other.
    service.cluster_ips.pop();
    let four = table(&[service], &slices);
    assert_eq!(pod(&four, "[2001:db8:7::1]:80"), "-");
    assert_eq!(pod(&four, "[2001:db8::1]:30080"), "-");
}

#[test]
fn external_ips_only_where_allowed() {
    let mut service = web();
    service.external_ips = vec![ip("198.51.100.7"), ip("203.0.113.7"), ip("10.96.0.99")];
    let mut compiler = compiler(&[service], &[slice("s", 8080, [ready(A)])]);
    assert_eq!(pod(&compiler.publish(), "198.51.100.7:80"), "-");
    let allowed = vec!["198.51.100.0/24".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
    compiler.set_settings(Settings { allowed_external_ips: allowed, ..settings() });
    let table = compiler.publish();
    assert_eq!(outside(&table, "198.51.100.7:80"), "10.0.0.1:8080+snat");
    assert_eq!(pod(&table, "203.0.113.7:80"), "-");
    // Never in the CIDRs of cluster IPs.
    assert_eq!(pod(&table, "10.96.0.99:80"), "Unallocated");
}
