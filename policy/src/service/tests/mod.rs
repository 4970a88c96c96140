//! Tests of the Service table: the rules one by one, and random clusters compared with the
//! reference.

mod agree;
mod changes;
mod counts;
mod rules;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::flow_key::{Family, FlowKey};

use super::compile::{Compiler, Settings};
use super::endpoints::Viewpoint;
use super::model::*;
use super::table::{Lookup, Origin, ServiceTable};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Node "here" in zone "z1" with both families, Service CIDRs set.
pub(super) fn settings() -> Settings {
    Settings {
        view: Viewpoint { node: "here".into(), zone: Some("z1".into()) },
        node_addresses: vec![ip("192.0.2.1"), ip("2001:db8::1")],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        ..Settings::default()
    }
}

pub(super) fn compiler(services: &[Service], slices: &[EndpointSlice]) -> Compiler {
    let mut compiler = Compiler::new(settings());
    services.iter().for_each(|s| compiler.set_service(Arc::new(s.clone())).unwrap());
    slices.iter().for_each(|s| compiler.set_slice(Arc::new(s.clone())));
    compiler
}

pub(super) fn table(services: &[Service], slices: &[EndpointSlice]) -> ServiceTable {
    compiler(services, slices).publish()
}

/// A TCP SYN's key.
pub(super) fn key(from: &str, to: &str) -> FlowKey {
    let (from, to) = (socket(from), socket(to));
    FlowKey::new(from.ip(), to.ip(), 6, from.port(), to.port()).unwrap()
}

/// The result in a word: backend (with "+snat"), reason, or "-" for no Service.
pub(super) fn answer(table: &ServiceTable, key: &FlowKey, origin: Origin) -> String {
    match table.lookup(key, origin) {
        Lookup::NotAService => "-".into(),
        Lookup::Backend(c) if c.needs_snat => format!("{}+snat", c.backend()),
        Lookup::Backend(c) => c.backend().to_string(),
        Lookup::Reject(reason, _) => format!("{reason:?}"),
        Lookup::Drop(reason, _) => format!("{reason:?}"),
    }
}

/// The result for a pod's connection.
pub(super) fn pod(table: &ServiceTable, to: &str) -> String {
    let from = if to.starts_with('[') { "[fd00:10::99]:40000" } else { "10.0.9.9:40000" };
    answer(table, &key(from, to), Origin::InCluster)
}

/// The result for a connection from outside the cluster.
pub(super) fn outside(table: &ServiceTable, to: &str) -> String {
    let from = if to.starts_with('[') { "[2001:db8:9::9]:40000" } else { "203.0.113.9:40000" };
    answer(table, &key(from, to), Origin::OffCluster)
}

/// Every backend that pods' connections get, over many source ports.
pub(super) fn spread(table: &ServiceTable, to: &str, origin: Origin) -> Vec<String> {
    let mut key = key("10.0.9.9:1", to);
    let mut seen: Vec<String> = (1..=2000)
        .map(|port| {
            key.src_port = port;
            answer(table, &key, origin)
        })
        .collect();
    seen.sort();
    seen.dedup();
    seen
}

pub(super) const VIP: &str = "10.96.0.10:80";
pub(super) const A: &str = "10.0.0.1";
pub(super) const B: &str = "10.0.0.2";
pub(super) const C: &str = "10.0.0.3";

pub(super) fn web() -> Service {
    let mut service = Service::cluster_ip("ns", "web", [ip("10.96.0.10")]);
    service.ports = vec![ServicePort::tcp("http", 80)];
    service
}

/// Reachable in every way: cluster IP, NodePort 30080, load balancer 198.51.100.1.
pub(super) fn balancer() -> Service {
    let mut service = web();
    service.kind = ServiceType::LoadBalancer;
    service.ports[0].node_port = Some(30_080);
    service.ingress = vec![Ingress { address: ip("198.51.100.1"), mode: IpMode::Vip }];
    service
}

pub(super) fn slice(
    name: &str,
    port: u16,
    endpoints: impl IntoIterator<Item = Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        namespace: "ns".into(),
        name: name.into(),
        service: "web".into(),
        family: Family::V4,
        ports: vec![SlicePort::tcp("http", port)],
        endpoints: endpoints.into_iter().collect(),
    }
}

pub(super) fn ready(address: &str) -> Endpoint {
    Endpoint::ready(ip(address))
}

/// An endpoint with (ready, serving, terminating).
pub(super) fn state(address: &str, (ready, serving, terminating): (bool, bool, bool)) -> Endpoint {
    let conditions =
        Conditions { ready: Some(ready), serving: Some(serving), terminating: Some(terminating) };
    Endpoint { conditions, ..Endpoint::ready(ip(address)) }
}

pub(super) fn pod_from(table: &ServiceTable, from: &str) -> String {
    answer(table, &key(from, VIP), Origin::InCluster)
}
