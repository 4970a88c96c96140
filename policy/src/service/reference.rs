//! The rules in their simplest form: every Service, slice and endpoint is examined for every
//! connection. The reference of the property tests; it shares only the model with the compiled
//! table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::flow_key::FlowKey;

use super::model::{
    Endpoint, EndpointSlice, HostPort, IpMode, Service, ServicePort, ServiceType, TrafficPolicy,
};
use super::settings::Settings;
use super::table::{DropReason, FrontendKind, Origin, RejectReason};

/// All inputs of the result.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The settings of this node.
    pub settings: Settings,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// Endpoint slices.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Host ports of this node's pods, by the pod's cookie.
    pub host_ports: BTreeMap<Arc<str>, Arc<[HostPort]>>,
}

/// The result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not a Service address.
    NotAService,
    /// Forwarded to one of these.
    Backends {
        /// Backends that may be selected.
        any_of: BTreeSet<SocketAddr>,
        /// The source is translated for any of them; for a client that is its own backend it always
        /// is (S8).
        source_nat: bool,
    },
    /// Rejected, with an answer.
    Reject(RejectReason),
    /// Dropped, without an answer.
    Drop(DropReason),
}

/// The owner of an address and port.
enum Answerer<'a> {
    Service(&'a Service, &'a ServicePort),
    Pod(&'a HostPort),
}

/// Evaluates a new connection.
pub fn evaluate(cluster: &Cluster, key: &FlowKey, origin: Origin) -> Verdict {
    match answerer(cluster, key) {
        Some((kind, Answerer::Service(service, port))) => {
            evaluate_service(cluster, service, port, kind, key.src_addr(), origin)
        }
        Some((_, Answerer::Pod(port))) => {
            Verdict::Backends { any_of: [port.target].into(), source_nat: false }
        }
        None => evaluate_address(cluster, key.dst_addr()),
    }
}

/// The winner among all claims to the destination: the first by kind of address, then by name.
fn answerer<'a>(cluster: &'a Cluster, key: &FlowKey) -> Option<(FrontendKind, Answerer<'a>)> {
    let mut found = Vec::new();
    for service in cluster.services.iter().filter(|s| balanced(s)) {
        for port in service.ports.iter().filter(|p| p.protocol.number() == key.proto) {
            for (kind, on_node) in kinds(cluster, service, port, key) {
                let name = (0, service.name.namespace.clone(), service.name.name.clone());
                found.push((on_node, kind, name, Answerer::Service(service, port)));
            }
        }
    }
    let node = cluster.settings.is_local(key.dst_addr());
    for (pod, ports) in &cluster.host_ports {
        for port in ports.iter().filter(|p| p.protocol.number() == key.proto) {
            let anywhere = port.address.is_none_or(|ip| ip.is_unspecified());
            let here = anywhere || port.address == Some(key.dst_addr());
            let family = port.target.is_ipv4() == key.dst_addr().is_ipv4();
            if node && here && family && port.port == key.dst_port {
                let name = (1, pod.clone(), "".into());
                found.push((anywhere, FrontendKind::HostPort, name, Answerer::Pod(port)));
            }
        }
    }
    // Stable sort: if one object has several claims, the first one counts. A claim to the exact
    // address precedes one to all addresses of the node.
    found.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
    let (_, kind, _, answerer) = found.into_iter().next()?;
    // A NodePort takes the port from host ports at every address, but is itself reachable at the
    // first addresses only.
    let is_there =
        kind != FrontendKind::NodePort || cluster.settings.node_addresses.contains(&key.dst_addr());
    is_there.then_some((kind, answerer))
}

fn balanced(service: &Service) -> bool {
    service.kind != ServiceType::ExternalName
        && !service.foreign_proxy
        && !service.cluster_ips.is_empty()
}

/// The kinds of address by which the destination is this Service's port, and whether by a claim to
/// all addresses of the node.
fn kinds(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    key: &FlowKey,
) -> Vec<(FrontendKind, bool)> {
    let destination = key.dst_addr();
    let settings = &cluster.settings;
    let mut kinds = Vec::new();
    if !service.cluster_ips.iter().any(|ip| ip.is_ipv4() == destination.is_ipv4()) {
        return kinds;
    }
    if key.dst_port == port.port {
        let reserved = settings.service_cidrs.iter().any(|c| c.contains(destination));
        if service.cluster_ips.contains(&destination) {
            kinds.push((FrontendKind::ClusterIp, false));
        }
        let vip = |i: &super::model::Ingress| i.address == destination && i.mode == IpMode::Vip;
        let balancer = service.kind == ServiceType::LoadBalancer;
        if !reserved && balancer && service.ingress.iter().any(vip) {
            kinds.push((FrontendKind::LoadBalancer, false));
        }
        let allowed = settings.allowed_external_ips.iter().any(|c| c.contains(destination));
        if !reserved && allowed && service.external_ips.contains(&destination) {
            kinds.push((FrontendKind::ExternalIp, false));
        }
    }
    if port.node_port == Some(key.dst_port) && settings.is_local(destination) {
        kinds.push((FrontendKind::NodePort, true));
    }
    kinds
}

/// S6, S14: an address without that port.
fn evaluate_address(cluster: &Cluster, destination: IpAddr) -> Verdict {
    let owners = || cluster.services.iter().filter(|s| s.cluster_ips.contains(&destination));
    // If several Services have the same address, which the API forbids, the first by name is used.
    if let Some(owner) = owners().min_by_key(|s| &s.name) {
        return match balanced(owner) {
            true => Verdict::Reject(RejectReason::UndefinedPort),
            false => Verdict::NotAService,
        };
    }
    if cluster.settings.service_cidrs.iter().any(|c| c.contains(destination)) {
        return Verdict::Drop(DropReason::Unallocated);
    }
    Verdict::NotAService
}

fn evaluate_service(
    cluster: &Cluster,
    service: &Service,
    port: &ServicePort,
    kind: FrontendKind,
    client: IpAddr,
    origin: Origin,
) -> Verdict {
    let ranges = &service.source_ranges;
    if kind == FrontendKind::LoadBalancer
        && !ranges.is_empty()
        && !ranges.iter().any(|r| r.contains(client))
    {
        return Verdict::Drop(DropReason::SourceRange);
    }
    let local = match kind {
        FrontendKind::ClusterIp => service.internal_policy == TrafficPolicy::Local,
        _ => origin == Origin::OffCluster && service.external_policy == TrafficPolicy::Local,
    };
    let endpoints = endpoints(cluster, service, port, client.is_ipv4());
    let (everywhere, here) = (usable_everywhere(cluster, &endpoints), usable_here(&endpoints));
    match (local, everywhere.is_empty(), here.is_empty()) {
        (_, true, _) => Verdict::Reject(RejectReason::NoEndpoints),
        (true, false, true) => Verdict::Drop(DropReason::NoLocalEndpoints),
        (true, false, false) => Verdict::Backends { any_of: here, source_nat: false },
        (false, false, _) => {
            Verdict::Backends { any_of: everywhere, source_nat: origin == Origin::OffCluster }
        }
    }
}

/// An endpoint with its effective conditions.
struct Seen<'a> {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    endpoint: &'a Endpoint,
}

/// Every endpoint of the port once, in its best state.
fn endpoints<'a>(
    cluster: &'a Cluster,
    service: &Service,
    port: &ServicePort,
    ipv4: bool,
) -> BTreeMap<SocketAddr, Seen<'a>> {
    let mut slices: Vec<&'a Arc<EndpointSlice>> = cluster
        .slices
        .iter()
        .filter(|s| s.namespace == service.name.namespace && s.service == service.name.name)
        .collect();
    slices.sort_by_key(|s| &s.name);
    let mut seen: BTreeMap<SocketAddr, Seen<'a>> = BTreeMap::new();
    for slice in slices {
        for p in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in &slice.endpoints {
                let (Some(number), Some(ip)) = (p.port, endpoint.addresses.first()) else {
                    continue;
                };
                let family = (slice.family as u8 == 4, ip.is_ipv4()) == (ipv4, ipv4);
                if !family || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
                    continue;
                }
                let c = &endpoint.conditions;
                let ready = c.ready != Some(false) || service.publish_not_ready;
                let new = Seen {
                    ready,
                    serving: c.serving != Some(false) || service.publish_not_ready,
                    terminating: c.terminating == Some(true),
                    local: endpoint.node.as_deref() == Some(&*cluster.settings.view.node),
                    endpoint,
                };
                let rank = |s: &Seen<'_>| (s.ready, s.serving, !s.terminating, s.local);
                let address = SocketAddr::new(*ip, number);
                if seen.get(&address).is_none_or(|old| rank(&new) > rank(old)) {
                    seen.insert(address, new);
                }
            }
        }
    }
    seen
}

/// S1, S2 for the whole cluster.
fn usable_everywhere(
    cluster: &Cluster,
    all: &BTreeMap<SocketAddr, Seen<'_>>,
) -> BTreeSet<SocketAddr> {
    let view = &cluster.settings.view;
    let ready: Vec<_> = all.iter().filter(|(_, s)| s.ready && s.endpoint.weight > 0).collect();
    if ready.is_empty() {
        return last_resort(all, |_| true);
    }
    let hinted = |s: &Seen<'_>| s.endpoint.hints.nodes.contains(&view.node);
    if ready.iter().all(|(_, s)| !s.endpoint.hints.nodes.is_empty())
        && ready.iter().any(|(_, s)| hinted(s))
    {
        return ready.iter().filter(|(_, s)| hinted(s)).map(|(a, _)| **a).collect();
    }
    let hinted =
        |s: &Seen<'_>| s.endpoint.hints.zones.iter().any(|z| Some(z) == view.zone.as_ref());
    if ready.iter().all(|(_, s)| !s.endpoint.hints.zones.is_empty())
        && ready.iter().any(|(_, s)| hinted(s))
    {
        return ready.iter().filter(|(_, s)| hinted(s)).map(|(a, _)| **a).collect();
    }
    ready.iter().map(|(a, _)| **a).collect()
}

/// S1 for this node.
fn usable_here(all: &BTreeMap<SocketAddr, Seen<'_>>) -> BTreeSet<SocketAddr> {
    let ready = all.iter().filter(|(_, s)| s.ready && s.local && s.endpoint.weight > 0);
    let ready: BTreeSet<_> = ready.map(|(a, _)| *a).collect();
    if ready.is_empty() { last_resort(all, |s| s.local) } else { ready }
}

fn last_resort(
    all: &BTreeMap<SocketAddr, Seen<'_>>,
    here: impl Fn(&Seen<'_>) -> bool,
) -> BTreeSet<SocketAddr> {
    all.iter()
        .filter(|(_, s)| s.serving && s.terminating && s.endpoint.weight > 0 && here(s))
        .map(|(a, _)| *a)
        .collect()
}
