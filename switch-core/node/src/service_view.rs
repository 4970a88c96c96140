//! Service ports with their addresses, backends, states and connections, those without a connection included.
//!
//! Read from a snapshot on any thread: counts belong to the state in force.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::snapshot::Snapshot;
use podswitch_policy::service::entry::{Backend, BackendFlags, ServiceEntry, ServicePortId};
use podswitch_policy::service::table::{Frontend, FrontendKind};
use podswitch_wire::flow_key::Family;
use serde::Serialize;

/// The most backends on one page, if it has more than one port.
const MAX_BACKENDS: usize = 10_000;

/// Which Service ports, and how many of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServiceQuery {
    /// Only those whose name contains this text.
    pub containing: Option<String>,
    /// Only those that no connection was opened to or refused by.
    pub never: bool,
    /// Only those after this name: the last one of the page before.
    pub after: Option<String>,
    /// Maximum number of ports on a page. A page with 10,000 backends has no further port.
    pub limit: usize,
}

impl ServiceQuery {
    /// The first `limit` ports.
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }
}

/// A page of Service ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServicePage {
    /// The state that the Services are of.
    pub epoch: u32,
    /// Number of ports that the query selects, those of earlier pages included.
    pub total: usize,
    /// Number of them that come after those in `ports`.
    pub left_out: usize,
    /// The ports, in the order of their names.
    pub ports: Vec<ServicePortInfo>,
    /// Their connections: `SERVICE PORT/PROTOCOL BACKEND` opened to that backend, or `departed` for backends that are
    /// gone, `rejected`, `dropped`.
    pub services: BTreeMap<String, u64>,
}

/// A port of a Service, or a host port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServicePortInfo {
    /// `Service/NAMESPACE/NAME PORT/PROTOCOL`.
    pub name: String,
    /// Name of the port; empty where a Service has only one.
    pub port_name: String,
    /// Where clients reach it.
    pub addresses: Vec<ServiceAddress>,
    /// Timeout of the session affinity, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// All its backends, by address.
    pub backends: Vec<BackendInfo>,
    /// Connections opened, to current and former backends.
    pub opened: u64,
    /// Connections that were opened to backends that are gone.
    pub departed: u64,
    /// Connections that were rejected, because there was no endpoint (S5).
    pub rejected: u64,
    /// Connections that were dropped: source range, no endpoint on this node (S3, S4, S7).
    pub dropped: u64,
}

/// An address of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct ServiceAddress {
    /// `ClusterIP`, `LoadBalancer`, `ExternalIP`, `NodePort` or `HostPort`.
    pub kind: &'static str,
    /// Address and port. NodePorts and host ports are listed for each address of this node.
    pub address: SocketAddr,
}

/// A backend of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackendInfo {
    /// Address and port.
    pub address: SocketAddr,
    /// `ready`, `serving` (terminating, but still serves), `terminating` or `not_ready`.
    pub state: &'static str,
    /// Whether new connections go to it.
    pub in_use: bool,
    /// What serves there: `Pod/NAMESPACE/NAME`.
    pub target: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Connections opened to it since it belongs to this port.
    pub opened: u64,
}

impl BackendInfo {
    fn of(entry: &ServiceEntry, index: usize, backend: &Backend) -> Self {
        let has = |flag| backend.flags.has(flag);
        let state = match () {
            () if has(BackendFlags::READY) => "ready",
            () if has(BackendFlags::SERVING) => "serving",
            () if has(BackendFlags::TERMINATING) => "terminating",
            () => "not_ready",
        };
        let detail = entry.detail(index);
        Self {
            address: backend.socket(),
            state,
            in_use: has(BackendFlags::IN_CLUSTER) || has(BackendFlags::IN_LOCAL),
            target: detail.and_then(|detail| detail.target.as_deref()).map(str::to_owned),
            node: detail.and_then(|detail| detail.node.as_deref()).map(str::to_owned),
            opened: entry.opened(index),
        }
    }
}

/// The entries of one port: one for each family; several for host ports of one number of a pod.
type Entries<'a> = Vec<&'a Arc<ServiceEntry>>;

fn is_unused(entries: &Entries<'_>) -> bool {
    let opened = |entry: &ServiceEntry| (0..entry.backends().len()).any(|at| entry.opened(at) > 0);
    let refused = |entry: &ServiceEntry| entry.departed() + entry.rejected() + entry.dropped() > 0;
    !entries.iter().any(|entry| opened(entry) || refused(entry))
}

impl ServicePortInfo {
    fn new(name: &str, entries: &Entries<'_>) -> Self {
        let first = entries.first();
        let mut info = Self {
            name: name.to_owned(),
            port_name: first.map_or_else(String::new, |entry| entry.port_name.to_string()),
            addresses: Vec::new(),
            affinity_seconds: first.and_then(|entry| entry.affinity),
            backends: Vec::new(),
            opened: 0,
            departed: 0,
            rejected: 0,
            dropped: 0,
        };
        for entry in entries {
            let backends = entry.backends().iter().enumerate();
            info.backends.extend(backends.map(|(at, backend)| BackendInfo::of(entry, at, backend)));
            info.departed += entry.departed();
            info.rejected += entry.rejected();
            info.dropped += entry.dropped();
        }
        info.opened = info.departed + info.backends.iter().map(|b| b.opened).sum::<u64>();
        info
    }

    /// Its rows in [`ServicePage::services`]. Every backend has one; what is not a backend has one if it counted.
    fn rows(&self) -> impl Iterator<Item = (String, u64)> {
        let backends = self.backends.iter().map(|b| (b.address.to_string(), b.opened));
        let is_empty = self.backends.is_empty();
        let others = [
            ("departed", self.departed, false),
            ("rejected", self.rejected, is_empty),
            ("dropped", self.dropped, false),
        ];
        let others = others.into_iter().filter(|(_, count, always)| *always || *count > 0);
        let others = others.map(|(what, count, _)| (what.to_owned(), count));
        backends.chain(others).map(|(what, count)| (format!("{} {what}", self.name), count))
    }
}

impl ServicePage {
    /// The Service ports that `query` selects, in the order of their names.
    pub fn read(snapshot: &Snapshot, query: &ServiceQuery) -> Self {
        let all = selected(snapshot, query);
        let first = query.after.as_ref().map_or(Unbounded, Excluded);
        let mut rest = all.range::<String, _>((first, Unbounded));
        let (mut ports, mut on_page, mut backends) = (Vec::new(), HashMap::new(), 0);
        while ports.len() < query.limit && (ports.is_empty() || backends < MAX_BACKENDS) {
            let Some((name, entries)) = rest.next() else { break };
            on_page.extend(entries.iter().map(|entry| (id(entry), ports.len())));
            let info = ServicePortInfo::new(name, entries);
            backends += info.backends.len();
            ports.push(info);
        }
        let left_out = rest.count();
        add_addresses(snapshot, &on_page, &mut ports);
        let mut services = BTreeMap::new();
        for (name, count) in ports.iter().flat_map(ServicePortInfo::rows) {
            // Host ports of one number of a pod have the same backend.
            *services.entry(name).or_default() += count;
        }
        Self { epoch: snapshot.epoch.0, total: all.len(), left_out, ports, services }
    }
}

type Id = (ServicePortId, Family);

fn id(entry: &ServiceEntry) -> Id {
    (entry.id, entry.family)
}

/// The selected ports by name.
fn selected<'a>(snapshot: &'a Snapshot, query: &ServiceQuery) -> BTreeMap<String, Entries<'a>> {
    let mut seen: HashSet<Id> = HashSet::new();
    let mut all: BTreeMap<String, Entries<'a>> = BTreeMap::new();
    for (_, entry) in snapshot.services.iter() {
        // It is reached by several addresses.
        if seen.insert(id(entry)) {
            let name = format!("{} {}/{}", entry.cookie, entry.port, entry.protocol);
            all.entry(name).or_default().push(entry);
        }
    }
    all.retain(|name, entries| {
        entries.sort_unstable_by_key(|entry| (entry.id, entry.family == Family::V6));
        query.containing.as_ref().is_none_or(|text| name.contains(text.as_str()))
            && (!query.never || is_unused(entries))
    });
    all
}

fn add_addresses(snapshot: &Snapshot, on_page: &HashMap<Id, usize>, ports: &mut [ServicePortInfo]) {
    for Frontend { kind, address, port, entry, .. } in snapshot.services.frontends() {
        if let Some(info) = on_page.get(&id(entry)).and_then(|at| ports.get_mut(*at)) {
            let address = SocketAddr::new(address, port);
            info.addresses.push(ServiceAddress { kind: FrontendKind::name(kind), address });
        }
    }
    for info in ports {
        info.addresses.sort_unstable();
        info.addresses.dedup();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use podswitch_core::config::{Config, LocalNode};
    use podswitch_core::control::{ControlPlane, Options};
    use podswitch_policy::service::model::{
        Endpoint, EndpointSlice, Service, ServicePort, SlicePort,
    };

    use super::*;

    /// Services `s0` to `s4` of two ports, `s0` without endpoints; `s1` of both families.
    fn world() -> ControlPlane {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let service = |number: u8| {
            let mut vips = vec![IpAddr::from([10, 96, 0, number])];
            if number == 1 {
                vips.push(address("fd00:96::1"));
            }
            let mut service = Service::cluster_ip("shop", &format!("s{number}"), vips);
            service.ports = vec![ServicePort::tcp("http", 80), ServicePort::tcp("admin", 8080)];
            service
        };
        let slice = |number: u8, endpoints: Vec<Endpoint>| EndpointSlice {
            namespace: "shop".into(),
            name: format!("s{number}-{}", endpoints.len()).into(),
            service: format!("s{number}").into(),
            family: podswitch_policy::service::model::family_of(endpoints[0].addresses[0]),
            ports: vec![SlicePort::tcp("http", 8000), SlicePort::tcp("admin", 9000)],
            endpoints,
        };
        let four = |number: u8| {
            let ends = [1, 2].map(|n| Endpoint::ready([10, 1, number, n].into()).on("n2"));
            slice(number, ends.to_vec())
        };
        let mut slices: Vec<_> = (1..5).map(four).collect();
        slices.push(slice(1, vec![Endpoint::ready(address("fd00:1::1")).on("n1")]));
        slices[1].endpoints[0].conditions.ready = Some(false);
        slices[1].endpoints[0].conditions.terminating = Some(true);
        slices[1].endpoints[0].conditions.serving = Some(true);
        let config = Config {
            node: LocalNode { name: "n1".into(), ..LocalNode::default() },
            services: (0..5).map(|number| Arc::new(service(number))).collect(),
            slices: slices.into_iter().map(Arc::new).collect(),
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
            ..Config::default()
        };
        let mut control = ControlPlane::new(Options::default());
        control.apply(&config).expect("a good state");
        control
    }

    #[test]
    fn ports_without_connections_are_listed_with_their_backends() {
        let control = world();
        let snapshot = control.snapshot();
        let page = ServicePage::read(&snapshot, &ServiceQuery::new(100));
        assert_eq!((page.total, page.left_out, page.ports.len()), (10, 0, 10));
        let empty = &page.ports[0];
        assert_eq!((&*empty.name, empty.backends.len()), ("Service/shop/s0 80/TCP", 0));
        assert_eq!(page.services["Service/shop/s0 80/TCP rejected"], 0);
        let both = &page.ports[2];
        let addresses: Vec<_> =
            both.addresses.iter().map(|a| format!("{} {}", a.kind, a.address)).collect();
        assert_eq!(addresses, ["ClusterIP 10.96.0.1:80", "ClusterIP [fd00:96::1]:80"]);
        let backends: Vec<_> = both.backends.iter().map(|b| b.address.to_string()).collect();
        assert_eq!(backends, ["10.1.1.1:8000", "10.1.1.2:8000", "[fd00:1::1]:8000"]);
        assert_eq!(both.backends[0].node.as_deref(), Some("n2"));
        assert_eq!(page.services["Service/shop/s1 80/TCP [fd00:1::1]:8000"], 0);
        let ending = &page.ports[4].backends;
        assert_eq!((ending[0].state, ending[0].in_use), ("serving", false));
        assert_eq!((ending[1].state, ending[1].in_use), ("ready", true));
    }

    #[test]
    fn ports_are_selected_by_name_and_by_count() {
        let control = world();
        let snapshot = control.snapshot();
        let entry = |name: &str| {
            let mut entries = snapshot.services.iter().map(|(_, entry)| entry);
            entries.find(|e| &*e.cookie == name && e.port == 80).expect("an entry").clone()
        };
        entry("Service/shop/s3").count_opened(1);
        entry("Service/shop/s0").count_rejected();
        let read = |query: &ServiceQuery| ServicePage::read(&snapshot, query);
        let mut query = ServiceQuery::new(100);
        query.containing = Some("s3 80/".to_owned());
        let page = read(&query);
        assert_eq!((page.total, page.ports[0].opened), (1, 1));
        assert_eq!(page.services["Service/shop/s3 80/TCP 10.1.3.2:8000"], 1);
        assert_eq!(page.services["Service/shop/s3 80/TCP 10.1.3.1:8000"], 0);
        query.containing = None;
        query.never = true;
        let page = read(&query);
        assert_eq!(page.total, 8);
        assert!(page.ports.iter().all(|port| port.opened + port.rejected == 0), "{page:?}");
    }

    #[test]
    fn pages_follow_each_other() {
        let control = world();
        let snapshot = control.snapshot();
        let all = ServicePage::read(&snapshot, &ServiceQuery::new(100));
        let (mut names, mut query, mut left) = (Vec::new(), ServiceQuery::new(3), Vec::new());
        loop {
            let page = ServicePage::read(&snapshot, &query);
            assert_eq!(page.total, 10);
            let Some(last) = page.ports.last() else { break };
            query.after = Some(last.name.clone());
            left.push(page.left_out);
            names.extend(page.ports.into_iter().map(|port| port.name));
        }
        assert_eq!(left, [7, 4, 1, 0]);
        assert_eq!(names, all.ports.into_iter().map(|port| port.name).collect::<Vec<_>>());
        query.after = Some("T".to_owned());
        assert!(ServicePage::read(&snapshot, &query).ports.is_empty());
        query = ServiceQuery::new(0);
        let page = ServicePage::read(&snapshot, &query);
        assert_eq!((page.ports.len(), page.left_out), (0, 10));
    }
}
