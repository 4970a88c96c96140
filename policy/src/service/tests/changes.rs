//! Host ports, contested addresses, changes, refused objects, explanations.

use std::sync::Arc;

use super::*;
use crate::rule::Protocol;
use crate::service::explain::explain;
use crate::service::model::*;
use crate::service::table::{Found, FrontendKind};

#[test]
fn p4_host_ports() {
    let mut compiler = compiler(&[balancer()], &[slice("s", 8080, [ready(A)])]);
    let port = |address: Option<&str>, port, target: &str| HostPort {
        address: address.map(ip),
        protocol: Protocol::Tcp,
        port,
        target: socket(target),
    };
    let ports = [
        port(None, 8443, "10.0.0.7:443"),
        port(None, 30_080, "10.0.0.7:443"),
        port(Some("127.0.0.1"), 9000, "10.0.0.7:443"),
        port(Some("192.0.2.1"), 9001, "10.0.0.7:443"),
        port(None, 8443, "[fd00:10::7]:443"),
    ];
    compiler.set_host_ports("Pod/ns/p".into(), ports.into());
    let table = compiler.publish();
    assert_eq!(outside(&table, "192.0.2.1:8443"), "10.0.0.7:443");
    assert_eq!(outside(&table, "[2001:db8::1]:8443"), "[fd00:10::7]:443");
    assert_eq!(outside(&table, "192.0.2.1:9001"), "10.0.0.7:443");
    assert_eq!(outside(&table, "192.0.2.1:9000"), "-");
    let hairpin = key("10.0.0.7:1", "192.0.2.1:8443");
    assert_eq!(answer(&table, &hairpin, Origin::InCluster), "10.0.0.7:443+snat");
    // A Service's NodePort has precedence; the conflict is reported.
    assert_eq!(outside(&table, "192.0.2.1:30080"), "10.0.0.1:8080+snat");
    let clashes = compiler.clashes();
    assert_eq!(clashes.len(), 1);
    assert_eq!((&*clashes[0].loser, &*clashes[0].winner), ("Pod/ns/p", "Service/ns/web"));
    compiler.set_host_ports("Pod/ns/p".into(), [].into());
    assert_eq!(outside(&compiler.publish(), "192.0.2.1:8443"), "-");
}

/// Two Services claim one address: the cluster IP wins, otherwise the first by name. When the
/// winner is removed, the other takes its place.
#[test]
fn contested_addresses() {
    let mut thief = balancer();
    thief.name.name = "thief".into();
    thief.cookie = "Service/ns/thief".into();
    thief.cluster_ips = vec![ip("10.97.0.2")];
    thief.ports[0].node_port = None;
    thief.ingress[0].address = ip("10.97.0.1");
    let mut victim = web();
    victim.cluster_ips = vec![ip("10.97.0.1")];
    let mut other = slice("t", 6666, [ready(B)]);
    other.service = "thief".into();
    let mut compiler = compiler(&[thief, victim], &[slice("s", 8080, [ready(A)]), other]);
    assert_eq!(pod(&compiler.publish(), "10.97.0.1:80"), "10.0.0.1:8080");
    assert_eq!(compiler.clashes()[0].kind, FrontendKind::LoadBalancer);
    compiler.remove_service(&ServiceName { namespace: "ns".into(), name: "web".into() });
    assert_eq!(pod(&compiler.publish(), "10.97.0.1:80"), "10.0.0.2:6666");
    assert!(compiler.clashes().is_empty());
}

#[test]
fn a_change_recompiles_one_service() {
    let mut second = web();
    second.name.name = "second".into();
    second.cluster_ips = vec![ip("10.96.0.20")];
    let mut compiler = compiler(&[web(), second], &[slice("s", 8080, [ready(A)])]);
    let before = compiler.publish();
    compiler.set_slice(Arc::new(slice("s", 8080, [ready(A), ready(B)])));
    let after = compiler.publish();
    let entry = |table: &ServiceTable, to| {
        let key = key("10.0.9.9:1", to);
        Arc::clone(table.front(&key).unwrap().entry())
    };
    let (old, new) = (entry(&before, VIP), entry(&after, VIP));
    assert_eq!((old.backends().len(), new.backends().len()), (1, 2));
    assert_eq!(old.id, new.id);
    let other = "10.96.0.20:80";
    assert!(Arc::ptr_eq(&entry(&before, other), &entry(&after, other)));
    // Setting the same object again changes nothing.
    compiler.set_slice(Arc::new(slice("s", 8080, [ready(A), ready(B)])));
    assert!(Arc::ptr_eq(&entry(&compiler.publish(), VIP), &new));
    // A slice that changes its owner leaves its old Service.
    let mut moved = slice("s", 8080, [ready(C)]);
    moved.service = "second".into();
    compiler.set_slice(Arc::new(moved));
    let table = compiler.publish();
    assert_eq!((&*pod(&table, VIP), &*pod(&table, other)), ("NoEndpoints", "10.0.0.3:8080"));
}

#[test]
fn settings_recompile_what_depends_on_them() {
    let mut compiler = compiler(&[balancer()], &[slice("s", 8080, [ready(A), ready(B), ready(C)])]);
    let entry =
        |table: &ServiceTable| Arc::clone(table.front(&key("10.0.9.9:1", VIP)).unwrap().entry());
    let before = compiler.publish();
    compiler.set_settings(settings());
    assert!(Arc::ptr_eq(&entry(&compiler.publish()), &entry(&before)));
    // The node has another address: NodePorts are reachable there at once, and nothing is compiled.
    compiler.set_settings(Settings { node_addresses: vec![ip("192.0.2.7")], ..settings() });
    let moved = compiler.publish();
    assert!(Arc::ptr_eq(&entry(&moved), &entry(&before)));
    let node_port = |table: &ServiceTable| pod(table, "192.0.2.7:30080");
    assert_eq!(node_port(&before), "-");
    assert!(node_port(&moved).ends_with(":8080"));
    // Another key gives another selection.
    let cluster_key = podswitch_wire::flow_key::HashKey::new(99);
    compiler.set_settings(Settings { cluster_key, ..settings() });
    assert_ne!(entry(&compiler.publish()), entry(&before));
}

#[test]
fn whole_states() {
    let state = |names: &[&str]| -> (Vec<_>, Vec<_>) {
        let service = |name: &&str| {
            let mut service = web();
            service.name.name = (*name).into();
            service.cookie = format!("Service/ns/{name}").into();
            service.cluster_ips = vec![ip(&format!("10.96.0.{name}"))];
            Arc::new(service)
        };
        let slice = |name: &&str| {
            let mut slice = slice(name, 8080, [ready(&format!("10.0.0.{name}"))]);
            slice.service = (*name).into();
            Arc::new(slice)
        };
        (names.iter().map(service).collect(), names.iter().map(slice).collect())
    };
    let mut compiler = Compiler::new(settings());
    let (services, slices) = state(&["1", "2", "3"]);
    compiler.set_state(&services, &slices).unwrap();
    let before = compiler.publish();
    assert_eq!(pod(&before, "10.96.0.2:80"), "10.0.0.2:8080");
    // Equal objects, except one Service and one slice less, and one Service more.
    let (services, mut slices) = state(&["1", "2", "4"]);
    slices.remove(1);
    compiler.set_state(&services, &slices).unwrap();
    let after = compiler.publish();
    let answers = ["1", "2", "3", "4"].map(|n| pod(&after, &format!("10.96.0.{n}:80")));
    assert_eq!(answers, ["10.0.0.1:8080", "NoEndpoints", "Unallocated", "10.0.0.4:8080"]);
    let entry = |table: &ServiceTable| {
        Arc::clone(table.front(&key("10.0.9.9:1", "10.96.0.1:80")).unwrap().entry())
    };
    assert!(Arc::ptr_eq(&entry(&before), &entry(&after)));
    // One invalid object makes the whole state invalid.
    let (mut services, slices) = state(&["5", "6"]);
    Arc::make_mut(&mut services[1]).ports[0].port = 0;
    let (cookie, error) = compiler.set_state(&services, &slices).unwrap_err();
    assert_eq!((&*cookie, &*error.field), ("Service/ns/6", "spec.ports[0].port"));
    assert_eq!(pod(&compiler.publish(), "10.96.0.1:80"), "10.0.0.1:8080");
}

#[test]
fn same_selection_on_every_node() {
    let endpoints: Vec<_> = (1..=25).map(|n| ready(&format!("10.0.1.{n}"))).collect();
    let here = table(&[web()], &[slice("s", 8080, endpoints.clone())]);
    let mut elsewhere = Compiler::new(Settings {
        view: Viewpoint { node: "there".into(), zone: None },
        ..settings()
    });
    let half = endpoints.len() / 2;
    let slices = [
        slice("b", 8080, endpoints[half..].iter().rev().cloned()),
        slice("a", 8080, endpoints[..half].to_vec()),
    ];
    slices.into_iter().for_each(|s| elsewhere.set_slice(Arc::new(s)));
    elsewhere.set_service(Arc::new(web())).unwrap();
    let there = elsewhere.publish();
    for port in 1..500 {
        let from = format!("10.0.9.9:{port}");
        assert_eq!(pod_from(&here, &from), pod_from(&there, &from));
    }
}

#[test]
fn table_size_by_annotation() {
    let mut service = web();
    service.maglev_size = Some(65_537);
    let table = table(&[service], &[slice("s", 8080, [ready(A), ready(B)])]);
    let Found::Service(found) = table.find(&key("10.0.9.9:7", VIP), Origin::InCluster) else {
        panic!()
    };
    assert_eq!(found.entry.table(found.scope).size(), 65_537);
}

#[test]
fn refused_objects() {
    type Change = fn(&mut Service);
    let refused = |change: Change| {
        let mut service = balancer();
        change(&mut service);
        let mut compiler = compiler(&[balancer()], &[slice("s", 8080, [ready(A)])]);
        let error = compiler.set_service(Arc::new(service)).unwrap_err();
        // Nothing changed.
        assert_eq!(pod(&compiler.publish(), VIP), "10.0.0.1:8080");
        error.field
    };
    let cases: [(&str, Change); 17] = [
        ("spec.clusterIPs[0]", |s| s.cluster_ips = vec!["127.0.0.1".parse().unwrap()]),
        ("spec.clusterIPs[1]", |s| s.cluster_ips.push("10.96.0.11".parse().unwrap())),
        ("spec.externalIPs[0]", |s| s.external_ips = vec!["169.254.1.1".parse().unwrap()]),
        ("status.loadBalancer.ingress[0].ip", |s| {
            s.ingress[0].address = "ff02::1".parse().unwrap()
        }),
        ("spec.ports", |s| s.ports.clear()),
        ("spec.ports[0].name", |s| {
            s.ports[0].name = "".into();
            s.ports.push(ServicePort::tcp("b", 81));
        }),
        ("spec.ports[1].name", |s| s.ports.push(ServicePort::tcp("http", 81))),
        ("spec.ports[0].port", |s| s.ports[0].port = 0),
        ("spec.ports[1].port", |s| s.ports.push(ServicePort::tcp("b", 80))),
        ("spec.ports[0].nodePort", |s| s.ports[0].node_port = Some(0)),
        ("spec.ports[1].nodePort", |s| {
            s.ports.push(ServicePort { node_port: Some(30_080), ..ServicePort::tcp("b", 81) });
        }),
        ("spec.ports[0].nodePort", |s| s.kind = ServiceType::ClusterIp),
        ("spec.loadBalancerSourceRanges", |s| {
            s.kind = ServiceType::NodePort;
            s.source_ranges = vec!["10.0.0.0/8".parse().unwrap()];
        }),
        ("spec.healthCheckNodePort", |s| s.health_check_node_port = Some(32_000)),
        ("spec.sessionAffinityConfig.clientIP.timeoutSeconds", |s| s.affinity = Some(0)),
        ("spec.sessionAffinityConfig.clientIP.timeoutSeconds", |s| s.affinity = Some(86_401)),
        ("metadata.annotations[podswitch.io/maglev-size]", |s| s.maglev_size = Some(1000)),
    ];
    for (field, change) in cases {
        assert_eq!(refused(change), field);
    }
    let mut plain = web();
    plain.external_policy = TrafficPolicy::Local;
    let error = Compiler::new(settings()).set_service(Arc::new(plain)).unwrap_err();
    assert_eq!(error.field, "spec.externalTrafficPolicy");
}

#[test]
fn explanations() {
    let mut service = balancer();
    service.affinity = Some(60);
    service.external_policy = TrafficPolicy::Local;
    let mut a = ready(A).on("here");
    a.target = Some("Pod/ns/a".into());
    let endpoints = [a, state(B, (false, true, true)).on("there"), state(C, (false, false, false))];
    let table = table(&[service], &[slice("s", 8080, endpoints)]);
    let text = |from, to, origin| explain(&table, &key(from, to), origin).to_string();
    let said = text("10.0.9.9:7", VIP, Origin::InCluster);
    let (before, rest) =
        said.split_once("\n  chosen by the hash of the client's address: slot ").unwrap();
    let (slot, after) = rest.split_once(|c: char| !c.is_ascii_digit()).unwrap();
    assert!(slot.parse::<usize>().is_ok_and(|slot| slot < 251), "{said}");
    assert_eq!(
        format!("{before}\n{}", after.split_once('\n').unwrap().1),
        "Service/ns/web port 80 (http) by ClusterIP: to 10.0.0.1:8080\n  \
         clients stay with their backend for 60 s\n \
         * 10.0.0.1:8080 ready, node here, Pod/ns/a, 100.0 %\n   \
         10.0.0.2:8080 terminating, serving, node there\n   \
         10.0.0.3:8080 not ready"
    );
    let nat = text("10.0.0.1:7", "192.0.2.1:30080", Origin::InCluster);
    assert!(
        nat.contains("by NodePort: to 10.0.0.1:8080, with source address translation"),
        "{nat}"
    );
    assert_eq!(
        text("10.0.9.9:7", "10.96.0.10:81", Origin::InCluster),
        "Service/ns/web: rejected: the Service's address has no such port"
    );
    assert_eq!(
        text("10.0.9.9:7", "10.96.0.11:80", Origin::InCluster),
        "dropped: no Service has this address of the Service range"
    );
    assert_eq!(text("10.0.9.9:7", "10.0.9.1:80", Origin::InCluster), "not a Service's address");
}
