//! Random clusters: the compiled table agrees with the reference, initially and after any sequence
//! of changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use podswitch_wire::flow_key::{Family, FlowKey};
use proptest::prelude::*;

use super::{ip, settings};
use crate::rule::Protocol;
use crate::service::compile::Compiler;
use crate::service::explain::{Outcome, explain};
use crate::service::model::*;
use crate::service::reference::{Cluster, Verdict, evaluate};
use crate::service::table::{
    Chosen, Found, FrontendKind, Lookup, Origin, Prefetched, ServiceTable,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Addresses that Services and probes use: cluster IPs inside and outside the CIDRs, external
/// addresses, one of the node's own addresses, one that is not allowed.
const VIPS: [&str; 10] = [
    "10.96.0.1",
    "10.96.0.2",
    "10.97.0.1",
    "198.51.100.1",
    "192.0.2.1",
    "203.0.113.1",
    "fd00:96::1",
    "fd00:96::2",
    "2001:db8:5::1",
    "2001:db8::1",
];

fn vip(range: std::ops::Range<usize>) -> impl Strategy<Value = std::net::IpAddr> {
    range.prop_map(|i| ip(VIPS[i]))
}

fn protocol() -> impl Strategy<Value = Protocol> + Clone {
    prop_oneof![4 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn service() -> impl Strategy<Value = Service> {
    let kind = prop_oneof![
        2 => Just(ServiceType::ClusterIp),
        2 => Just(ServiceType::NodePort),
        4 => Just(ServiceType::LoadBalancer),
        1 => Just(ServiceType::ExternalName),
    ];
    let ports =
        prop::collection::vec((protocol(), 80u16..82, prop::option::of(30_000u16..30_002)), 1..3);
    let cluster_ips = (prop::option::weighted(0.8, vip(0..3)), prop::option::of(vip(6..8)));
    let ingress = prop::collection::vec((vip(3..10), any::<bool>()), 0..2);
    let ranges = prop::collection::vec(
        prop_oneof![Just("10.0.0.0/8"), Just("203.0.113.0/24"), Just("2001:db8:9::/48")],
        0..2,
    );
    (
        (0..NAMES.len(), kind, cluster_ips, ports),
        (prop::collection::vec(vip(3..9), 0..2), ingress, ranges),
        (
            policy(),
            policy(),
            prop::option::of(1u32..100),
            prop::bool::weighted(0.15),
            prop::bool::weighted(0.1),
        ),
    )
        .prop_map(
            |(
                (name, kind, ips, ports),
                (external, ingress, ranges),
                (int, ext, affinity, unready, foreign),
            )| {
                let mut service =
                    Service::cluster_ip("ns", NAMES[name], [ips.0, ips.1].into_iter().flatten());
                service.kind = kind;
                for (i, (protocol, port, node_port)) in ports.into_iter().enumerate() {
                    let taken = |p: &ServicePort| {
                        p.protocol == protocol
                            && (p.port == port || node_port.is_some() && p.node_port == node_port)
                    };
                    if !service.ports.iter().any(taken) {
                        service.ports.push(ServicePort {
                            name: ["x", "y"][i].into(),
                            protocol,
                            node_port: node_port.filter(|_| {
                                matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer)
                            }),
                            ..ServicePort::tcp("", port)
                        });
                    }
                }
                service.external_ips = external;
                service.ingress = ingress
                    .into_iter()
                    .map(|(address, proxy)| Ingress {
                        address,
                        mode: if proxy { IpMode::Proxy } else { IpMode::Vip },
                    })
                    .collect();
                if kind == ServiceType::LoadBalancer {
                    service.source_ranges =
                        ranges.into_iter().map(|r| r.parse().unwrap()).collect();
                }
                service.internal_policy = int;
                if service.kind != ServiceType::ClusterIp
                    && service.kind != ServiceType::ExternalName
                {
                    service.external_policy = ext;
                }
                service.affinity = affinity;
                service.publish_not_ready = unready;
                service.foreign_proxy = foreign;
                service
            },
        )
}

fn endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let flag = || prop::option::weighted(0.6, any::<bool>());
    let name = |names: &'static [&'static str]| {
        prop::collection::vec((0..names.len()).prop_map(|i| Arc::from(names[i])), 0..2)
    };
    let node = prop::option::weighted(0.8, prop_oneof![Just("here"), Just("there")]);
    (
        (0u8..6, (flag(), flag(), flag()), node),
        (name(&["here", "there"]), name(&["z1", "z2"]), prop::bool::weighted(0.8)),
        prop_oneof![6 => Just(1u16), 1 => Just(0), 1 => Just(3)],
    )
        .prop_map(
            move |((n, (ready, serving, terminating), node), (nodes, zones, hinted), weight)| {
                let address = match family {
                    Family::V4 => ip(&format!("10.0.0.{n}")),
                    Family::V6 => ip(&format!("fd00:10::{n}")),
                };
                let (nodes, zones) = if hinted { (nodes, zones) } else { Default::default() };
                Endpoint {
                    conditions: Conditions { ready, serving, terminating },
                    node: node.map(Arc::from),
                    hints: Hints { nodes, zones },
                    weight,
                    ..Endpoint::ready(address)
                }
            },
        )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let port = (0usize..2, protocol(), prop::option::weighted(0.9, 8080u16..8082));
    family.prop_flat_map(move |family| {
        (
            (0..NAMES.len(), 0usize..8),
            prop::collection::vec(port.clone(), 1..4),
            prop::collection::vec(endpoint(family), 0..5),
        )
            .prop_map(move |((service, name), ports, endpoints)| EndpointSlice {
                namespace: "ns".into(),
                name: format!("slice-{name}").into(),
                service: NAMES[service].into(),
                family,
                ports: ports
                    .into_iter()
                    .map(|(n, protocol, port)| SlicePort {
                        name: ["x", "y"][n].into(),
                        protocol,
                        port,
                    })
                    .collect(),
                endpoints,
            })
    })
}

fn host_port() -> impl Strategy<Value = (usize, Vec<HostPort>)> {
    let address = prop_oneof![
        Just(None),
        Just(Some(ip("192.0.2.1"))),
        Just(Some(ip("0.0.0.0"))),
        Just(Some(ip("203.0.113.1")))
    ];
    let port = (address, protocol(), 30_000u16..30_002, any::<bool>()).prop_map(
        |(address, protocol, port, v6)| HostPort {
            address,
            protocol,
            port,
            target: if v6 { "[fd00:10::3]:53" } else { "10.0.0.3:53" }.parse().unwrap(),
        },
    );
    (0usize..2, prop::collection::vec(port, 0..3))
}

#[derive(Clone, Debug)]
enum Change {
    Service(Service),
    NoService(usize),
    Slice(EndpointSlice),
    NoSlice(usize),
    HostPorts(usize, Vec<HostPort>),
    /// Another node's view, or other CIDRs.
    Settings(bool, bool),
    Publish,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => service().prop_map(Change::Service),
        1 => (0..NAMES.len()).prop_map(Change::NoService),
        8 => slice().prop_map(Change::Slice),
        2 => (0usize..8).prop_map(Change::NoSlice),
        2 => host_port().prop_map(|(pod, ports)| Change::HostPorts(pod, ports)),
        1 => any::<(bool, bool)>().prop_map(|(a, b)| Change::Settings(a, b)),
        2 => Just(Change::Publish),
    ]
}

/// Applies a change to the compiler and to the plain lists.
fn apply(change: &Change, compiler: &mut Compiler, plain: &mut Cluster) {
    let pod = |i: &usize| Arc::<str>::from(["Pod/ns/p", "Pod/ns/q"][*i]);
    match change {
        Change::Service(service) => {
            let service = Arc::new(service.clone());
            if compiler.set_service(service.clone()).is_ok() {
                plain.services.retain(|s| s.name != service.name);
                plain.services.push(service);
            }
        }
        Change::NoService(i) => {
            let name = ServiceName { namespace: "ns".into(), name: NAMES[*i].into() };
            plain.services.retain(|s| s.name != name);
            compiler.remove_service(&name);
        }
        Change::Slice(slice) => {
            plain.slices.retain(|s| s.name != slice.name);
            plain.slices.push(Arc::new(slice.clone()));
            compiler.set_slice(Arc::new(slice.clone()));
        }
        Change::NoSlice(i) => {
            let name: Arc<str> = format!("slice-{i}").into();
            plain.slices.retain(|s| s.name != name);
            compiler.remove_slice(&"ns".into(), &name);
        }
        Change::HostPorts(i, ports) => {
            plain.host_ports.insert(pod(i), ports.clone().into());
            compiler.set_host_ports(pod(i), ports.clone().into());
        }
        Change::Settings(elsewhere, wide) => {
            let mut settings = settings();
            if *elsewhere {
                settings.view.node = "there".into();
                settings.node_addresses = vec![ip("203.0.113.1")];
                settings.local_addresses = vec![ip("192.0.2.1"), ip("198.51.100.1")];
            }
            if *wide {
                settings.service_cidrs.truncate(1);
                settings.allowed_external_ips =
                    vec!["198.51.100.0/24".parse().unwrap(), "10.96.0.0/12".parse().unwrap()];
            }
            plain.settings = settings.clone();
            compiler.set_settings(settings);
        }
        Change::Publish => {
            compiler.publish();
        }
    }
}

fn probes() -> Vec<FlowKey> {
    let mut keys = Vec::new();
    for to in VIPS.iter().chain(&["10.96.7.7", "10.0.0.3", "fd00:96::77"]) {
        let clients: &[&str] = if to.contains(':') {
            &["fd00:10::1", "2001:db8:9::9"]
        } else {
            &["10.0.0.1", "203.0.113.9"]
        };
        for client in clients {
            for proto in [6, 17, 132, 1] {
                for port in [80, 81, 30_000, 30_001] {
                    keys.push(FlowKey::new(ip(client), ip(to), proto, 40_000, port).unwrap());
                }
            }
        }
    }
    keys
}

/// The table's result for one probe is one that the reference allows.
fn agrees(
    table: &ServiceTable,
    plain: &Cluster,
    key: &FlowKey,
    origin: Origin,
) -> Result<(), TestCaseError> {
    let (got, expected) = (table.lookup(key, origin), evaluate(plain, key, origin));
    match (&got, &expected) {
        (Lookup::NotAService, Verdict::NotAService) => {}
        (Lookup::Reject(a, _), Verdict::Reject(b)) if a == b => {}
        (Lookup::Drop(a, _), Verdict::Drop(b)) if a == b => {}
        (Lookup::Backend(chosen), Verdict::Backends { any_of, source_nat }) => {
            let backend = chosen.backend().socket();
            prop_assert!(any_of.contains(&backend), "{key}: {backend} not of {any_of:?}");
            prop_assert_eq!(chosen.needs_snat, *source_nat || backend.ip() == key.src_addr());
            // The whole set of backends, not only the selected one.
            let entry = chosen.entry;
            let all: BTreeSet<_> = entry
                .table(chosen.scope)
                .slots()
                .map(|i| entry.backends()[usize::from(i)].socket())
                .collect();
            prop_assert_eq!(&all, any_of, "{}", key);
            let found = table.find(key, origin);
            let Found::Service(found) = found else { panic!() };
            for backend in entry.backends() {
                let pinned = found.pinned(backend.socket(), key).is_some();
                prop_assert_eq!(pinned, any_of.contains(&backend.socket()));
            }
        }
        _ => {
            return Err(TestCaseError::fail(format!(
                "{key} {origin:?}: {got:?}\nplain: {expected:?}"
            )));
        }
    }
    let explained = explain(table, key, origin);
    let same = match (&got, &explained.outcome) {
        (Lookup::NotAService, Outcome::NotAService) => true,
        (Lookup::Backend(c), Outcome::Backend { address, source_nat }) => {
            c.backend().socket() == *address && c.needs_snat == *source_nat
        }
        (Lookup::Reject(a, _), Outcome::Reject(b)) => a == b,
        (Lookup::Drop(a, _), Outcome::Drop(b)) => a == b,
        _ => false,
    };
    prop_assert!(same && !explained.to_string().is_empty());
    Ok(())
}

/// The frontends listed for a backend are exactly those that lead to it.
fn leads_back(table: &ServiceTable) -> Result<(), TestCaseError> {
    let mut there: BTreeMap<SocketAddr, BTreeSet<(FrontendKind, SocketAddr)>> = BTreeMap::new();
    for front in table.frontends().filter(|front| front.protocol == Protocol::Tcp) {
        for backend in front.entry.backends() {
            let place = SocketAddr::new(front.address, front.port);
            there.entry(backend.socket()).or_default().insert((front.kind, place));
        }
    }
    for n in 1..10 {
        for (port, address) in
            [(80, "10.0.0."), (8080, "10.0.0."), (80, "fd00:10::"), (8080, "fd00:10::")]
        {
            let backend = SocketAddr::new(ip(&format!("{address}{n}")), port);
            let back: BTreeSet<_> = table.frontends_of(backend).collect();
            prop_assert_eq!(there.remove(&backend).unwrap_or_default(), back, "{}", backend);
        }
    }
    for (backend, fronts) in there {
        prop_assert_eq!(fronts, table.frontends_of(backend).collect(), "{}", backend);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn compiled_agrees_with_reference(changes in prop::collection::vec(change(), 1..30)) {
        let mut compiler = Compiler::new(settings());
        let mut plain = Cluster { settings: settings(), ..Cluster::default() };
        let probes = probes();
        // A published table and the objects it was compiled from: later changes must not affect it.
        let mut kept = (compiler.publish(), plain.clone());
        let half = changes.len() / 2;
        for (i, change) in changes.iter().enumerate() {
            apply(change, &mut compiler, &mut plain);
            if i == half {
                kept = (compiler.publish(), plain.clone());
            }
        }
        let table = compiler.publish();
        for (table, plain) in [(&table, &plain), (&kept.0, &kept.1)] {
            leads_back(table)?;
            let mut prefetched = vec![Prefetched::default(); probes.len()];
            table.prefetch(&probes, &mut prefetched);
            for (key, prefetched) in probes.iter().zip(&prefetched) {
                if let Lookup::Backend(chosen) = table.lookup(key, Origin::InCluster)
                    && chosen.scope == crate::service::entry::Scope::Cluster
                {
                    prop_assert_eq!(prefetched.backend(), Some(chosen.backend().socket()));
                }
                for origin in [Origin::InCluster, Origin::OffCluster] {
                    agrees(table, plain, key, origin)?;
                    let again = match table.find_prefetched(prefetched, key, origin) {
                        Found::Service(found) => table.choose(&found, key),
                        _ => None,
                    };
                    let once = match table.lookup(key, origin) {
                        Lookup::Backend(chosen) => Some(chosen),
                        _ => None,
                    };
                    let of = |c: Option<Chosen<'_>>| c.map(|c| (c.index, c.scope, c.needs_snat));
                    prop_assert_eq!(of(again), of(once), "prefetched");
                }
            }
        }
        // From scratch, in another order: the same results down to the backend.
        let mut anew = Compiler::new(plain.settings.clone());
        plain.slices.iter().rev().for_each(|s| anew.set_slice(s.clone()));
        for (pod, ports) in &plain.host_ports {
            anew.set_host_ports(pod.clone(), ports.clone());
        }
        plain.services.iter().rev().for_each(|s| anew.set_service(s.clone()).unwrap());
        let anew_table = anew.publish();
        prop_assert_eq!(anew.clashes().len(), compiler.clashes().len());
        for key in &probes {
            let (a, b) = (table.lookup(key, Origin::InCluster), anew_table.lookup(key, Origin::InCluster));
            if let (Lookup::Backend(a), Lookup::Backend(b)) = (a, b) {
                prop_assert_eq!(a.backend(), b.backend());
                prop_assert_eq!(&a.entry.cookie, &b.entry.cookie);
            }
        }
    }
}
