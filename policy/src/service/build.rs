//! Builds one Service port's entry and frontends from the model, for the
//! [compiler](super::compile).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::flow_key::{Family, HashKey};

use super::counts::Slot;
use super::endpoints::{Candidate, Selection, Topology, merge, select};
use super::entry::{Backend, BackendDetail, BackendFlags, Ranges, ServiceEntry, ServicePortId};
use super::model::{
    EndpointSlice, HostPort, IpMode, Service, ServicePort, ServiceType, TrafficPolicy, family_of,
};
use super::settings::Settings;
use super::table::{Front, FrontKey, FrontendKind, Port};
use crate::maglev::{MAX_BACKENDS, Maglev, default_size};

/// A frontend, and the key under which it is entered.
pub(super) type FrontendEntry = (FrontKey, FrontendKind, Front);

/// The cluster IPs of a Service that another proxy balances: the switch ignores them.
pub(super) fn foreign(service: &Service) -> Vec<FrontendEntry> {
    whole_addresses(service, &Front::Foreign)
}

/// The cluster IPs of a Service that is balanced here: other ports of them are rejected (S6).
pub(super) fn allocated(service: &Service) -> Vec<FrontendEntry> {
    whole_addresses(service, &Front::Allocated(service.cookie.clone()))
}

fn whole_addresses(service: &Service, front: &Front) -> Vec<FrontendEntry> {
    let ips = service.cluster_ips.iter();
    ips.map(|ip| (FrontKey::address(*ip), FrontendKind::ClusterIp, front.clone())).collect()
}

/// Compiles one port in one family; `before` is its previous entry.
pub(super) fn entry<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    settings: &Settings,
    (id, before): (ServicePortId, Option<&ServiceEntry>),
) -> ServiceEntry {
    let mut candidates = merge(service, port, family, slices, &settings.view);
    // Far more than the API server accepts; the table's indices have 16 bits.
    candidates.truncate(MAX_BACKENDS);
    let selection = select(&candidates, &settings.view);
    let choice = |chosen: &[usize], wanted: bool| match wanted {
        true => maglev(&candidates, chosen, service.maglev_size, &settings.cluster_key),
        false => Maglev::default(),
    };
    let (cluster, local) = scopes(service);
    let ranges = &service.source_ranges;
    let addresses: Vec<SocketAddr> = candidates.iter().map(|c| c.address).collect();
    let (counts, slots) = ServiceEntry::counts_for(before, &addresses);
    ServiceEntry {
        id,
        cookie: service.cookie.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
        port: port.port,
        family,
        internal_policy: service.internal_policy,
        external_policy: service.external_policy,
        affinity: service.affinity,
        source_ranges: (!ranges.is_empty()).then(|| Ranges::new(ranges, family)),
        topology: selection.topology,
        any: selection.any,
        cluster: choice(&selection.cluster, cluster),
        local: choice(&selection.local, local),
        backends: backends(&candidates, &selection, &slots),
        details: candidates.iter().map(detail).collect(),
        counts,
    }
}

/// The tables that the Service's policies need: cluster-wide, node-local.
fn scopes(service: &Service) -> (bool, bool) {
    let internal = service.internal_policy == TrafficPolicy::Local;
    let external = service.external_policy == TrafficPolicy::Local;
    // Clients inside the cluster get Cluster behaviour from external addresses, whatever the policy
    // is.
    let outside = service.kind != ServiceType::ClusterIp || !service.external_ips.is_empty();
    (!internal || outside, internal || external)
}

fn maglev(
    candidates: &[Candidate<'_>],
    chosen: &[usize],
    size: Option<u32>,
    key: &HashKey,
) -> Maglev {
    let mut list: Vec<(SocketAddr, u16)> = candidates.iter().map(|c| (c.address, 0)).collect();
    for index in chosen {
        list[*index].1 = candidates[*index].endpoint.weight;
    }
    let size = size.unwrap_or_else(|| default_size(chosen.len()));
    // Size and number are validated; the remaining error is an empty set of backends.
    Maglev::new(&list, size, key).unwrap_or_default()
}

fn backends(candidates: &[Candidate<'_>], selection: &Selection, slots: &[Slot]) -> Arc<[Backend]> {
    let mut list: Vec<Backend> = candidates
        .iter()
        .zip(slots)
        .map(|(c, &slot)| Backend {
            slot,
            address: c.address.ip(),
            port: c.address.port(),
            weight: c.endpoint.weight,
            flags: BackendFlags::default()
                .with(BackendFlags::READY, c.ready)
                .with(BackendFlags::SERVING, c.serving)
                .with(BackendFlags::TERMINATING, c.terminating)
                .with(BackendFlags::LOCAL, c.local),
        })
        .collect();
    let sets = [
        (&selection.cluster, BackendFlags::IN_CLUSTER),
        (&selection.local, BackendFlags::IN_LOCAL),
    ];
    for (chosen, flag) in sets {
        for index in chosen {
            list[*index].flags = list[*index].flags.with(flag, true);
        }
    }
    list.into()
}

fn detail(candidate: &Candidate<'_>) -> BackendDetail {
    let endpoint = candidate.endpoint;
    BackendDetail {
        node: endpoint.node.clone(),
        zone: endpoint.zone.clone(),
        target: endpoint.target.clone(),
    }
}

/// The endpoints of an entry that the health check counts (S12).
pub(super) fn healthy(entry: &ServiceEntry) -> impl Iterator<Item = IpAddr> {
    let counts = |b: &&Backend| {
        b.flags.has(BackendFlags::LOCAL)
            && b.flags.has(BackendFlags::READY)
            && !b.flags.has(BackendFlags::TERMINATING)
    };
    entry.backends.iter().filter(counts).map(|b| b.address)
}

/// Every frontend of a Service's port in the entry's family.
pub(super) fn fronts(
    service: &Service,
    port: &ServicePort,
    entry: &Arc<ServiceEntry>,
    settings: &Settings,
    out: &mut Vec<FrontendEntry>,
) {
    let proto = port.protocol.number();
    let mut add = |key, kind| out.push((key, kind, Front::Port(Port::new(kind, entry.clone()))));
    let ours = |ip: &&IpAddr| family_of(**ip) == entry.family;
    for ip in service.cluster_ips.iter().filter(ours) {
        add(FrontKey::exact(*ip, proto, port.port), FrontendKind::ClusterIp);
    }
    // An external address must not lie in the Service CIDRs: it would capture a cluster IP.
    let outside = |ip: &&IpAddr| ours(ip) && !within(**ip, &settings.service_cidrs);
    for ip in service.external_ips.iter().filter(outside) {
        if within(*ip, &settings.allowed_external_ips) {
            add(FrontKey::exact(*ip, proto, port.port), FrontendKind::ExternalIp);
        }
    }
    if service.kind == ServiceType::LoadBalancer {
        let vips = service.ingress.iter().filter(|i| i.mode == IpMode::Vip).map(|i| &i.address);
        for ip in vips.filter(outside) {
            add(FrontKey::exact(*ip, proto, port.port), FrontendKind::LoadBalancer);
        }
    }
    if let Some(node_port) = port.node_port {
        add(FrontKey::node(entry.family, proto, node_port), FrontendKind::NodePort);
    }
}

fn within(ip: IpAddr, ranges: &[podswitch_wire::cidr::Cidr]) -> bool {
    ranges.iter().any(|range| range.contains(ip))
}

/// A host port: a Service with one backend at the node's own address. `None` if it is bound to an
/// address that the node does not have.
pub(super) fn host_port(
    cookie: &Arc<str>,
    port: &HostPort,
    settings: &Settings,
    (id, before): (ServicePortId, Option<&ServiceEntry>),
) -> Option<FrontendEntry> {
    let (proto, family) = (port.protocol.number(), family_of(port.target.ip()));
    let key = match port.address.filter(|ip| !ip.is_unspecified()) {
        None => FrontKey::node(family, proto, port.port),
        Some(ip) if settings.is_local(ip) && family_of(ip) == family => {
            FrontKey::exact(ip, proto, port.port)
        }
        Some(_) => return None,
    };
    let flags = [
        BackendFlags::READY,
        BackendFlags::SERVING,
        BackendFlags::LOCAL,
        BackendFlags::IN_CLUSTER,
        BackendFlags::IN_LOCAL,
    ];
    let flags = flags.into_iter().fold(BackendFlags::default(), |all, f| all.with(f, true));
    let (address, number) = (port.target.ip(), port.target.port());
    let (counts, slots) = ServiceEntry::counts_for(before, &[port.target]);
    let backends = slots
        .into_iter()
        .map(|slot| Backend { address, port: number, weight: 1, flags, slot })
        .collect();
    let one = Maglev::new(&[(port.target, 1)], default_size(1), &settings.cluster_key);
    let entry = ServiceEntry {
        id,
        cookie: cookie.clone(),
        port_name: "".into(),
        protocol: port.protocol,
        port: port.port,
        family,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        source_ranges: None,
        topology: Topology::Anywhere,
        any: true,
        backends,
        details: [BackendDetail { target: Some(cookie.clone()), ..BackendDetail::default() }]
            .into(),
        cluster: one.unwrap_or_default(),
        local: Maglev::default(),
        counts,
    };
    let kind = FrontendKind::HostPort;
    Some((key, kind, Front::Port(Port::new(kind, Arc::new(entry)))))
}
