//! Changes of single objects through the control plane: the resulting state equals that of the
//! whole configuration, and an invalid change has no effect.
#![allow(clippy::disallowed_types, reason = "tests store what an observer reports")]

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{Config, Endpoint, RemoteNode, VtepMac};
use podswitch_core::control::Change;
use podswitch_core::id::Cookie;
use podswitch_core::snapshot::Snapshot;
use podswitch_policy::rule::{Labels, Namespace, NetworkPolicy, Selector, Workload};
use podswitch_policy::service::model::{
    Endpoint as Backend, EndpointSlice, Service, ServicePort, SlicePort,
};
use podswitch_policy::service::table::{Lookup, Origin};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{Family, FlowKey};
use rig::Switch;
use rig::random::Rng;

fn pod(n: u32, last: u8) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        cookie: Cookie::new(format!("Pod/ns/{n}")),
        workload: Workload {
            namespace: "ns".into(),
            name: n.to_string().into(),
            labels: Labels::default(),
            addresses: vec![IpAddr::from([10, 2, n as u8, last])],
            ports: Vec::new(),
            host_network: false,
        },
        node: "n2".into(),
        attachment: None,
        precedence: Default::default(),
    })
}

fn node(n: u32) -> Arc<RemoteNode> {
    Arc::new(RemoteNode {
        cookie: Cookie::new(format!("Node/r{n}")),
        name: format!("r{n}").into(),
        labels: Labels::default(),
        addresses: vec![IpAddr::from([192, 168, 1, n as u8])],
        pod_cidrs: vec![format!("10.9.{n}.0/24").parse().unwrap()],
        vtep: VtepMac { ipv4: Mac([2, 0, 0, 0, 1, n as u8]), ipv6: None },
        underlay_mac: Mac([2, 0, 0, 0, 2, n as u8]),
        precedence: Default::default(),
    })
}

fn policy(n: u32, open: bool) -> Arc<NetworkPolicy> {
    Arc::new(NetworkPolicy {
        cookie: format!("NetworkPolicy/ns/{n}").into(),
        namespace: "ns".into(),
        name: n.to_string().into(),
        pods: Selector::everything(),
        ingress: if open { None } else { Some(Vec::new()) },
        egress: None,
    })
}

fn service(n: u32) -> Arc<Service> {
    let vip = IpAddr::from([10, 96, 1, n as u8]);
    let mut service = Service::cluster_ip("ns", &format!("s{n}"), [vip]);
    service.ports = vec![ServicePort::tcp("", 80)];
    Arc::new(service)
}

fn slice(n: u32, last: u8) -> Arc<EndpointSlice> {
    Arc::new(EndpointSlice {
        namespace: "ns".into(),
        name: format!("s{n}-x").into(),
        service: format!("s{n}").into(),
        family: Family::V4,
        ports: vec![SlicePort::tcp("", 8080)],
        endpoints: vec![Backend::ready(IpAddr::from([10, 2, n as u8, last]))],
    })
}

/// The decisions for some packets.
fn look(snapshot: &Snapshot) -> Vec<String> {
    let mut seen: Vec<String> = snapshot
        .endpoints
        .iter()
        .map(|(address, facts)| format!("{address} {} {:?}", facts.endpoint.cookie, facts.location))
        .chain(snapshot.fib.iter().map(|(range, entry)| format!("{range} {entry:?}")))
        .collect();
    seen.sort();
    for n in 0..8u8 {
        let vip = IpAddr::from([10, 96, 1, n]);
        let from = IpAddr::from([10, 1, 0, 10]);
        let key = FlowKey::new(from, vip, 6, 4000, 80).unwrap();
        seen.push(match snapshot.services.lookup(&key, Origin::InCluster) {
            Lookup::Backend(chosen) => format!("{vip} {}", chosen.backend()),
            Lookup::Reject(reason, _) => format!("{vip} {reason:?}"),
            Lookup::Drop(..) | Lookup::NotAService => format!("{vip} -"),
        });
        for last in 1..4 {
            let to = IpAddr::from([10, 2, n, last]);
            let (a, b) = (snapshot.policy.party(from), snapshot.policy.party(to));
            let key = FlowKey::new(from, to, 6, 4000, 80).unwrap();
            let traffic = podswitch_policy::verdict::Traffic::of_flow(&key, false);
            seen.push(format!("{to} {}", snapshot.policy.evaluate_ingress(&a, &b, traffic).allow));
        }
    }
    seen
}

fn replace<T>(list: &mut Vec<Arc<T>>, same: impl Fn(&T) -> bool, object: Option<Arc<T>>) {
    list.retain(|o| !same(o));
    list.extend(object);
}

#[test]
fn a_thousand_changes_give_the_state_of_the_whole_configuration() {
    let mut whole = Config {
        namespaces: vec![Arc::new(Namespace { name: "ns".into(), labels: Labels::default() })],
        ..rig::config()
    };
    let mut switch = Switch::new(&whole);
    let mut random = Rng::new(11);
    for round in 0..400 {
        let mut changes = Vec::new();
        for _ in 0..random.below(4) {
            let (n, last) = (random.below(8) as u32, 1 + random.below(3) as u8);
            let keep = random.below(3) > 0;
            changes.push(match random.below(5) {
                0 => {
                    let pod = pod(n, last);
                    let object = keep.then(|| pod.clone());
                    replace(&mut whole.endpoints, |o| o.cookie == pod.cookie, object);
                    if keep { Change::Pod(pod) } else { Change::PodDeleted(pod.cookie.clone()) }
                }
                1 => {
                    let node = node(n);
                    replace(&mut whole.nodes, |o| o.name == node.name, keep.then(|| node.clone()));
                    if keep { Change::Node(node) } else { Change::NodeDeleted(node.name.clone()) }
                }
                2 => {
                    let policy = policy(n, last == 1);
                    let object = keep.then(|| policy.clone());
                    replace(&mut whole.policies, |o| o.cookie == policy.cookie, object);
                    let name = policy.cookie.clone();
                    if keep { Change::Policy(policy) } else { Change::PolicyDeleted(name) }
                }
                3 => {
                    let service = service(n);
                    let object = keep.then(|| service.clone());
                    replace(&mut whole.services, |o| o.name == service.name, object);
                    let name = service.name.clone();
                    if keep { Change::Service(service) } else { Change::ServiceDeleted(name) }
                }
                _ => {
                    let slice = slice(n, last);
                    let object = keep.then(|| slice.clone());
                    replace(&mut whole.slices, |o| o.name == slice.name, object);
                    let (namespace, name) = (slice.namespace.clone(), slice.name.clone());
                    if keep { Change::Slice(slice) } else { Change::SliceDeleted(namespace, name) }
                }
            });
        }
        switch.control.update(changes).unwrap();
        if round % 10 == 0 {
            let fresh = Switch::new(&whole);
            assert_eq!(look(&switch.control.snapshot()), look(&fresh.control.snapshot()));
        }
        if round % 100 == 50 {
            // A whole configuration in between: later changes start from it.
            switch.control.apply(&whole).unwrap();
        }
    }
}

#[test]
fn an_invalid_change_changes_nothing() {
    let mut switch = Switch::new(&rig::config());
    switch.control.update([Change::Pod(pod(1, 1)), Change::Node(node(1))]).unwrap();
    let before = (switch.control.snapshot().epoch, look(&switch.control.snapshot()));
    let mut thief = (*pod(2, 2)).clone();
    thief.workload.addresses = vec![IpAddr::from([10, 2, 1, 1])];
    let mut broken = (*service(3)).clone();
    broken.ports.push(ServicePort::tcp("", 80));
    for (change, object) in [
        (Change::Pod(Arc::new(thief)), "Pod/ns/2"),
        (Change::Service(Arc::new(broken)), "Service/ns/s3"),
    ] {
        let refused =
            switch.control.update([Change::NodeDeleted("r1".into()), change]).unwrap_err();
        assert!(refused.0.iter().any(|e| e.object.as_str() == object), "{refused:?}");
        assert_eq!((switch.control.snapshot().epoch, look(&switch.control.snapshot())), before);
    }
    // A pod may take the address that another one releases in the same update.
    let mut heir = (*pod(2, 2)).clone();
    heir.workload.addresses = vec![IpAddr::from([10, 2, 1, 1])];
    let gone = Change::PodDeleted(Cookie::new("Pod/ns/1"));
    switch.control.update([gone, Change::Pod(Arc::new(heir))]).unwrap();
    let snapshot = switch.control.snapshot();
    let facts = snapshot.endpoints.get(&IpAddr::from([10, 2, 1, 1])).unwrap();
    assert_eq!(facts.endpoint.cookie.as_str(), "Pod/ns/2");
}
