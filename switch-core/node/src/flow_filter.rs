//! Selects connections for a query.

use std::net::IpAddr;

use hashbrown::HashSet;
use podswitch_core::config::Endpoint;
use podswitch_core::flow::connection::ConnectionInfo;
use podswitch_core::snapshot::Snapshot;
use podswitch_policy::rule::Selector;
use podswitch_wire::cidr::Cidr;

use crate::flows::{STATES, state};
use crate::names::{self, UnknownName};

/// Conditions on connections. All must hold. A condition on ends holds if it holds for one end: the
/// client, the address that it connects to, or the backend that serves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlowFilter {
    /// One end is this pod, `namespace/name`.
    pub pod: Option<String>,
    /// One end is a pod of this namespace.
    pub namespace: Option<String>,
    /// One end is a pod with these labels ([`label_query`](crate::label_query) reads kubectl's
    /// syntax).
    pub labels: Option<Selector>,
    /// It goes through this Service, `namespace/name`.
    pub service: Option<String>,
    /// One end is in this range.
    pub addresses: Option<Cidr>,
    /// One end has this port.
    pub port: Option<u16>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// State of a TCP connection: `opening`, `established`, `closing`, `closed` or `reset`.
    pub state: Option<String>,
}

/// A filter whose names are resolved to addresses.
#[derive(Debug)]
pub(crate) struct Conditions {
    /// For each condition on pods: the addresses of which one end must have one.
    pods: Vec<HashSet<IpAddr>>,
    /// Addresses, protocols and ports of the Service.
    frontends: Option<HashSet<(IpAddr, u8, u16)>>,
    addresses: Option<Cidr>,
    port: Option<u16>,
    protocol: Option<u8>,
    state: Option<String>,
}

impl FlowFilter {
    /// Resolves the names by `snapshot`. The cost is proportional to the number of pods and
    /// Services.
    /// # Errors
    /// A name stands for nothing.
    pub(crate) fn conditions(&self, snapshot: &Snapshot) -> Result<Conditions, UnknownName> {
        let mut pods = Vec::new();
        if let Some(pod) = &self.pod {
            let found: HashSet<_> =
                names::pods(snapshot).filter(|(name, _)| name == pod).map(|(_, a)| a).collect();
            if found.is_empty() {
                let known = names::pods(snapshot).map(|(name, _)| name);
                return Err(UnknownName::new("pod", pod, known));
            }
            pods.push(found);
        }
        if let Some(namespace) = &self.namespace {
            let found = of_pods(snapshot, |e| *e.workload.namespace == **namespace);
            if found.is_empty() && snapshot.policy.namespace_labels(namespace).is_none() {
                let known = snapshot.endpoints.iter();
                let known = known.map(|(_, facts)| &*facts.endpoint.workload.namespace);
                return Err(UnknownName::new("namespace", namespace, known));
            }
            pods.push(found);
        }
        if let Some(selector) = &self.labels {
            pods.push(of_pods(snapshot, |e| selector.matches(&e.workload.labels)));
        }
        let frontends = match &self.service {
            Some(service) => Some(frontends(snapshot, service)?),
            None => None,
        };
        if let Some(state) = &self.state {
            UnknownName::check("state", state, STATES)?;
        }
        let Self { addresses, port, protocol, state, .. } = self.clone();
        Ok(Conditions { pods, frontends, addresses, port, protocol, state })
    }
}

/// The addresses of the pods that are as wanted. Pods with their node's network have none of their own.
fn of_pods(snapshot: &Snapshot, wanted: impl Fn(&Endpoint) -> bool) -> HashSet<IpAddr> {
    let own = snapshot.endpoints.iter().filter(|(_, facts)| {
        let endpoint = &facts.endpoint;
        !endpoint.workload.host_network && wanted(endpoint)
    });
    own.map(|(address, _)| *address).collect()
}

fn frontends(
    snapshot: &Snapshot,
    service: &str,
) -> Result<HashSet<(IpAddr, u8, u16)>, UnknownName> {
    let named = snapshot
        .services
        .frontends()
        .filter(|frontend| frontend.entry.cookie.strip_prefix("Service/") == Some(service));
    let found: HashSet<_> = named.map(|f| (f.address, f.protocol.number(), f.port)).collect();
    match found.is_empty() {
        false => Ok(found),
        true => {
            let known = names::services(snapshot).map(|(name, _)| name);
            Err(UnknownName::new("Service", service, known))
        }
    }
}

impl Conditions {
    /// Whether all conditions hold.
    pub(crate) fn take(&self, info: &ConnectionInfo) -> bool {
        let (original, reply) = (&info.pinned.original, &info.pinned.reply);
        if self.protocol.is_some_and(|protocol| protocol != original.proto) {
            return false;
        }
        let ports = [original.src_port, original.dst_port, reply.src_port];
        if self.port.is_some_and(|port| !ports.contains(&port)) {
            return false;
        }
        if let Some(wanted) = &self.state
            && info.tcp.map(|[client, server]| state(client, server)) != Some(wanted)
        {
            return false;
        }
        let (client, asked, server) = (original.src_addr(), original.dst_addr(), reply.src_addr());
        if let Some(range) = &self.addresses
            && ![client, asked, server].iter().any(|address| range.contains(*address))
        {
            return false;
        }
        if let Some(frontends) = &self.frontends
            && !(info.pinned.is_via_service()
                && frontends.contains(&(asked, original.proto, original.dst_port)))
        {
            return false;
        }
        self.pods.iter().all(|pods| pods.contains(&client) || pods.contains(&server))
    }
}
