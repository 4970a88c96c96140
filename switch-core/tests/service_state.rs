//! Services in the control plane: errors are refused with object, field and reason and change
//! nothing. The table of a state does not depend on the changes that led to the state.

use podswitch_testkit::rig;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_core::config::{ClusterKey, Config, Masquerade};
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::id::Cookie;
use podswitch_policy::rule::{Labels, Protocol};
use podswitch_policy::service::model::{
    Endpoint, EndpointSlice, Hints, HostPort, Service, ServicePort, ServiceType, SlicePort,
    TrafficPolicy,
};
use podswitch_policy::service::table::{Lookup, Origin, ServiceTable};
use podswitch_wire::flow_key::{Family, FlowKey, HashKey};
use proptest::prelude::*;
use rig::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(n: u8) -> Service {
    let mut service = Service::cluster_ip("ns", &format!("s{n}"), [IpAddr::from([10, 96, 0, n])]);
    service.ports = vec![ServicePort::tcp("http", 80)];
    service
}

fn slice(n: u8, name: &str, endpoints: impl IntoIterator<Item = u8>) -> EndpointSlice {
    let endpoint = |o: u8| Endpoint::ready(IpAddr::from([10, 1, n, o]));
    EndpointSlice {
        namespace: "ns".into(),
        name: name.into(),
        service: format!("s{n}").into(),
        family: Family::V4,
        ports: vec![SlicePort::tcp("http", 8080)],
        endpoints: endpoints.into_iter().map(endpoint).collect(),
    }
}

fn host_port(port: u16, target: &str) -> HostPort {
    let target: SocketAddr = target.parse().unwrap();
    HostPort { address: None, protocol: Protocol::Tcp, port, target }
}

fn state() -> Config {
    Config {
        services: vec![Arc::new(service(1)), Arc::new(service(2))],
        slices: vec![Arc::new(slice(1, "s1-a", [5, 6])), Arc::new(slice(2, "s2-a", [7]))],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        host_ports: vec![(
            Cookie::new("Pod/default/p0"),
            Arc::new([host_port(8443, "10.1.0.10:443")]),
        )],
        ..config()
    }
}

/// The errors that `spoil` causes, as "object: field".
fn refused(spoil: impl FnOnce(&mut Config)) -> Vec<String> {
    let mut switch = Switch::new(&state());
    let before = switch.control.snapshot();
    let mut config = state();
    // An additional valid object, which must not be put in force by itself.
    config.services.push(Arc::new(service(77)));
    spoil(&mut config);
    let errors = switch.control.apply(&config).expect_err("is wrong").0;
    assert!(Arc::ptr_eq(&before, &switch.control.snapshot()), "nothing changed");
    assert!(errors.iter().all(|e| !e.reason.is_empty()));
    switch.control.apply(&state()).expect("the right state still is");
    assert_eq!(ask(&switch.control.snapshot().services, "10.96.0.77:80"), "Unallocated");
    errors.iter().map(|e| format!("{}: {}", e.object, e.field)).collect()
}

fn with(config: &mut Config, change: impl FnOnce(&mut Service)) {
    change(Arc::make_mut(&mut config.services[0]));
}

#[test]
fn errors_of_services_are_named() {
    let s1 = |field: &str| vec![format!("Service/ns/s1: {field}")];
    assert_eq!(refused(|c| with(c, |s| s.ports[0].port = 0)), s1("spec.ports[0].port"));
    assert_eq!(refused(|c| with(c, |s| s.ports.clear())), s1("spec.ports"));
    assert_eq!(
        refused(|c| with(c, |s| s.affinity = Some(0))),
        s1("spec.sessionAffinityConfig.clientIP.timeoutSeconds")
    );
    assert_eq!(refused(|c| with(c, |s| s.cluster_ips[0] = ip("127.0.0.1"))).len(), 1);
    assert_eq!(refused(|c| c.services.push(c.services[0].clone())), s1("name"));
    assert_eq!(
        refused(|c| {
            with(c, |s| s.ports[0].port = 0);
            c.services.push(Arc::new(service(2)));
        }),
        ["Service/ns/s2: name", "Service/ns/s1: spec.ports[0].port"],
        "all at once"
    );
}

#[test]
fn errors_of_slices_and_host_ports_are_named() {
    let slice = |field: &str| vec![format!("EndpointSlice/ns/s1-a: {field}")];
    let change = |change: fn(&mut EndpointSlice)| {
        move |c: &mut Config| change(Arc::make_mut(&mut c.slices[0]))
    };
    assert_eq!(
        refused(change(|s| s.endpoints[1].addresses[0] = ip("fd00::1"))),
        slice("endpoints[1].addresses[0]")
    );
    assert_eq!(
        refused(change(|s| s.endpoints[0].addresses.push(ip("127.0.0.1")))),
        slice("endpoints[0].addresses[1]")
    );
    assert_eq!(refused(change(|s| s.ports[0].port = Some(0))), slice("ports[0].port"));
    assert_eq!(refused(change(|s| s.name = "s2-a".into())), ["EndpointSlice/ns/s2-a: name"]);
    let pod = |field: &str| vec![format!("Pod/default/p0: {field}")];
    let ports = |ports: &[HostPort]| {
        let ports: Arc<[HostPort]> = ports.into();
        move |c: &mut Config| c.host_ports[0].1 = ports
    };
    let good = host_port(1, "10.1.0.10:1");
    assert_eq!(
        refused(ports(&[good.clone(), host_port(0, "10.1.0.10:1")])),
        pod("host_ports[1].port")
    );
    assert_eq!(refused(ports(&[host_port(1, "10.1.0.10:0")])), pod("host_ports[0].target"));
    let six = HostPort { address: Some(ip("::1")), ..good };
    assert_eq!(refused(ports(&[six])), pod("host_ports[0].address"));
    assert_eq!(refused(|c| c.host_ports.push(c.host_ports[0].clone())), pod("host_ports"));
    let group = Masquerade { ipv4: Some([224, 0, 0, 1].into()), ..Masquerade::default() };
    assert_eq!(refused(|c| c.masquerade = Some(group)), ["Masquerade: ipv4"]);
}

/// The result for a client in the cluster, in a word.
fn ask(table: &ServiceTable, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let key = FlowKey::new(ip("10.1.0.10"), to.ip(), 6, 40_000, to.port()).unwrap();
    match table.lookup(&key, Origin::InCluster) {
        Lookup::NotAService => "-".into(),
        Lookup::Backend(chosen) => chosen.backend().to_string(),
        Lookup::Reject(reason, _) => format!("{reason:?}"),
        Lookup::Drop(reason, _) => format!("{reason:?}"),
    }
}

#[test]
fn changes_of_all_dependencies_are_followed() {
    let mut config = state();
    let mut control = ControlPlane::new(Options::default());
    let mut after = |config: &Config| {
        control.apply(config).unwrap();
        control.snapshot().services.clone()
    };
    assert_eq!(ask(&after(&config), "10.96.0.2:80"), "10.1.2.7:8080");
    assert_eq!(ask(&after(&config), "192.168.0.1:8443"), "10.1.0.10:443");
    assert_eq!(ask(&after(&config), "10.96.0.9:80"), "Unallocated");
    // The node's address, name and zone.
    config.node.addresses = vec![ip("192.168.0.9")];
    assert_eq!(ask(&after(&config), "192.168.0.1:8443"), "-");
    assert_eq!(ask(&after(&config), "192.168.0.9:8443"), "10.1.0.10:443");
    let slice = Arc::make_mut(&mut config.slices[0]);
    let zones = |zone: &str| Hints { nodes: Vec::new(), zones: vec![zone.into()] };
    (slice.endpoints[0].hints, slice.endpoints[1].hints) = (zones("a"), zones("b"));
    slice.endpoints[0].node = Some("n1".into());
    slice.endpoints[1].node = Some("n2".into());
    for (zone, wanted) in [("a", "10.1.1.5:8080"), ("b", "10.1.1.6:8080")] {
        let label = ("topology.kubernetes.io/zone".into(), zone.into());
        config.node.labels = Labels::new([label]);
        assert_eq!(ask(&after(&config), "10.96.0.1:80"), wanted);
    }
    with(&mut config, |s| s.internal_policy = TrafficPolicy::Local);
    for (name, wanted) in [("n1", "10.1.1.5:8080"), ("n2", "10.1.1.6:8080")] {
        config.node.name = name.into();
        assert_eq!(ask(&after(&config), "10.96.0.1:80"), wanted);
    }
    // Ranges.
    config.service_cidrs.clear();
    assert_eq!(ask(&after(&config), "10.96.0.9:80"), "-");
    with(&mut config, |s| s.external_ips = vec![ip("198.51.100.1")]);
    assert_eq!(ask(&after(&config), "198.51.100.1:80"), "-");
    config.allowed_external_ips = vec!["198.51.100.0/24".parse().unwrap()];
    assert!(ask(&after(&config), "198.51.100.1:80").starts_with("10.1.1."));
    // Slices that move to another Service.
    Arc::make_mut(&mut config.slices[1]).service = "s1".into();
    assert_eq!(ask(&after(&config), "10.96.0.2:80"), "NoEndpoints");
    config.services.clear();
    assert_eq!(ask(&after(&config), "10.96.0.2:80"), "-");
}

/// The key belongs to the cluster: every node and every run of a switch selects the same backend,
/// and another key selects others.
#[test]
fn the_cluster_key_selects_backends() {
    let mut config = state();
    config.slices = vec![Arc::new(slice(1, "s1-a", 1..30))];
    let choices = |config: &Config| -> Vec<String> {
        let mut control = ControlPlane::new(Options::default());
        control.apply(config).unwrap();
        let table = &control.snapshot().services;
        (1..100u16)
            .map(|port| {
                let key = FlowKey::new(ip("10.1.0.10"), ip("10.96.0.1"), 6, port, 80).unwrap();
                let Lookup::Backend(chosen) = table.lookup(&key, Origin::InCluster) else {
                    panic!("no backend")
                };
                chosen.backend().to_string()
            })
            .collect()
    };
    let first = choices(&config);
    assert_eq!(first, choices(&config));
    config.cluster_key = ClusterKey(HashKey::new(0x706f_6473_7769_7463_6820_636c_7573_7465));
    assert_eq!(first, choices(&config), "the default never changes");
    config.cluster_key = ClusterKey(HashKey::new(5));
    assert_ne!(first, choices(&config));
}

#[test]
fn counts_are_read_by_name() {
    let mut config = state();
    config.services.push(Arc::new(service(3)));
    let mut control = ControlPlane::new(Options::default());
    control.apply(&config).unwrap();
    assert!(control.service_counts().is_empty());
    let snapshot = control.snapshot();
    let entries: Vec<_> = snapshot.services.iter().map(|(_, entry)| entry).collect();
    let of = |cookie: &str| entries.iter().find(|e| &*e.cookie == cookie).unwrap();
    of("Service/ns/s1").count_opened(1);
    of("Service/ns/s3").count_rejected();
    of("Pod/default/p0").count_opened(0);
    config.slices[0] = Arc::new(slice(1, "s1-a", [6, 7]));
    control.apply(&config).unwrap();
    of("Service/ns/s1").count_opened(0);
    of("Service/ns/s3").count_dropped();
    let counts = control.service_counts();
    let text: Vec<String> = counts
        .iter()
        .map(|c| {
            let (a, b, d) = (c.departed, c.rejected, c.dropped);
            format!("{} {}/{} {:?} {a} {b} {d}", c.service, c.port, c.protocol, c.opened)
        })
        .collect();
    assert_eq!(
        text,
        [
            "Pod/default/p0 8443/TCP [(10.1.0.10:443, 1)] 0 0 0",
            // The count that a worker with the previous table made for a removed backend is
            // reported when its slot is reused.
            "Service/ns/s1 80/TCP [(10.1.1.6:8080, 1)] 0 0 0",
            "Service/ns/s3 80/TCP [] 0 1 1",
        ]
    );
}

#[derive(Clone, Debug)]
struct Picks {
    services: Vec<(u8, bool, bool)>,
    slices: Vec<(u8, u8, Vec<u8>)>,
    host_ports: Vec<(u8, u16)>,
    address: u8,
    ranges: bool,
}

fn picks() -> impl Strategy<Value = Picks> {
    let services = prop::collection::btree_map(1u8..6, any::<(bool, bool)>(), 0..5);
    let slices =
        prop::collection::btree_map(0u8..6, (1u8..6, prop::collection::vec(1u8..9, 0..5)), 0..6);
    let host_ports = prop::collection::btree_map(0u8..3, 8000u16..8003, 0..3);
    (services, slices, host_ports, 1u8..3, any::<bool>()).prop_map(
        |(services, slices, host_ports, address, ranges)| Picks {
            services: services.into_iter().map(|(n, (a, b))| (n, a, b)).collect(),
            slices: slices.into_iter().map(|(name, (n, e))| (name, n, e)).collect(),
            host_ports: host_ports.into_iter().collect(),
            address,
            ranges,
        },
    )
}

fn build(picks: &Picks) -> Config {
    let mut config = config();
    config.services = picks
        .services
        .iter()
        .map(|&(n, node_port, local)| {
            let mut service = service(n);
            if node_port {
                service.kind = ServiceType::NodePort;
                service.ports[0].node_port = Some(30_000 + u16::from(n));
            }
            if local {
                service.internal_policy = TrafficPolicy::Local;
            }
            Arc::new(service)
        })
        .collect();
    config.slices = picks
        .slices
        .iter()
        .map(|(name, n, list)| Arc::new(slice(*n, &format!("sl{name}"), list.iter().copied())))
        .collect();
    let pod = |(n, port): &(u8, u16)| {
        let ports = Arc::new([host_port(*port, &format!("10.1.0.{}:80", 10 + n))]);
        (Cookie::new(format!("Pod/default/p{n}")), ports as Arc<[HostPort]>)
    };
    config.host_ports = picks.host_ports.iter().map(pod).collect();
    config.node.addresses = vec![IpAddr::from([192, 168, 0, picks.address])];
    if picks.ranges {
        config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    }
    config
}

/// Every result of a table that the states above can lead to.
fn answers(table: &ServiceTable) -> Vec<String> {
    let clusters = (0..7).flat_map(|n| [80, 81].map(|p| format!("10.96.0.{n}:{p}")));
    let nodes = [1, 2].into_iter().flat_map(|a| {
        let ports = (8000..8003).chain(30_001..30_006);
        ports.map(move |port| format!("192.168.0.{a}:{port}"))
    });
    clusters.chain(nodes).map(|to| format!("{to} {}", ask(table, &to))).collect()
}

proptest! {
    #[test]
    fn the_table_of_a_state_does_not_depend_on_its_history(
        steps in prop::collection::vec(picks(), 1..6),
    ) {
        let mut control = ControlPlane::new(Options::default());
        for step in &steps {
            let config = build(step);
            control.apply(&config).unwrap();
            let mut fresh = ControlPlane::new(Options::default());
            fresh.apply(&config).unwrap();
            prop_assert_eq!(
                answers(&control.snapshot().services),
                answers(&fresh.snapshot().services)
            );
        }
    }
}

#[test]
fn counts_and_affinity_are_restored_by_name() {
    let mut config = state();
    let sticky = Service { affinity: Some(600), ..service(3) };
    config.services.push(Arc::new(sticky));
    let mut was = ControlPlane::new(Options::default());
    was.apply(&config).unwrap();
    let snapshot = was.snapshot();
    let entries: Vec<_> = snapshot.services.iter().map(|(_, entry)| entry).collect();
    let of = |cookie: &str| entries.iter().find(|e| &*e.cookie == cookie).unwrap();
    (0..3).for_each(|_| of("Service/ns/s1").count_opened(0));
    of("Service/ns/s1").count_opened(1);
    of("Service/ns/s2").count_opened(0);
    of("Service/ns/s3").count_rejected();
    of("Service/ns/s3").count_dropped();
    of("Pod/default/p0").count_opened(0);
    let (client, backend) = (ip("192.0.2.9"), "10.1.3.4:8080".parse().unwrap());
    was.shared().affinity.pin(of("Service/ns/s3").id, client, backend, 0, 600);
    let (counts, pins) = (was.service_counts(), was.affinity(9));
    assert_eq!(counts.len(), 4);
    assert_eq!((pins.len(), was.affinity(0).len()), (1, 0));

    // One backend and one Service were removed, another one is first now.
    let mut next = ControlPlane::new(Options::default());
    config.slices[0] = Arc::new(slice(1, "s1-a", [6, 7]));
    config.services.remove(1);
    config.services.insert(0, Arc::new(service(9)));
    next.apply(&config).unwrap();
    next.restore_counts(&[], &counts);
    next.restore_affinity(&pins);
    let text: Vec<String> = next
        .service_counts()
        .iter()
        .map(|c| {
            format!("{} {:?} {} {} {}", c.service, c.opened, c.departed, c.rejected, c.dropped)
        })
        .collect();
    assert_eq!(
        text,
        [
            "Pod/default/p0 [(10.1.0.10:443, 1)] 0 0 0",
            "Service/ns/s1 [(10.1.1.6:8080, 1)] 3 0 0",
            "Service/ns/s3 [] 0 1 1",
        ]
    );
    let snapshot = next.snapshot();
    let id =
        |cookie: &str| snapshot.services.iter().find(|(_, e)| &*e.cookie == cookie).unwrap().1.id;
    let now = next.clock().now().as_secs() as u32;
    assert_eq!(next.shared().affinity.get(id("Service/ns/s3"), client, now), Some(backend));
    assert_eq!(next.shared().affinity.len(), 1);
    // A Service without affinity any more has no pinned clients.
    config.services.pop();
    config.services.push(Arc::new(service(3)));
    let mut last = ControlPlane::new(Options::default());
    last.apply(&config).unwrap();
    last.restore_affinity(&pins);
    assert!(last.shared().affinity.is_empty());
}
