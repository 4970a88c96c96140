//! The Service's part of an explanation: the called Service, the selected backend and why, or why
//! there is none.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use podswitch_core::config::Config;
use podswitch_core::snapshot::Snapshot;
use podswitch_policy::service::endpoints::{HintUse, Topology, Viewpoint, hint_use, merge};
use podswitch_policy::service::entry::{BackendFlags, Scope};
use podswitch_policy::service::explain::{Explanation, Outcome, ServiceLines, explain};
use podswitch_policy::service::model::{ServicePort, TrafficPolicy, family_of};
use podswitch_policy::service::table::Origin;
use podswitch_wire::flow_key::FlowKey;
use serde::Serialize;

use super::ends::{End, Ends, owner};
use super::reference::Wanted;

/// The result for a connection to a Service's address.
pub(super) struct Served {
    said: Explanation,
    hints: Option<HintUse>,
    /// The Service's traffic policies: for cluster IPs, and for other addresses.
    policies: Option<(TrafficPolicy, TrafficPolicy)>,
    origin: Origin,
}

impl Served {
    /// Queries the node's Service table; `None` if the address is not a Service's.
    pub(super) fn find(
        config: &Config,
        snapshot: &Snapshot,
        key: &FlowKey,
        is_pod: bool,
    ) -> Option<Self> {
        let in_cluster = is_pod || snapshot.is_cluster_address(key.src_addr());
        let origin = if in_cluster { Origin::InCluster } else { Origin::OffCluster };
        let said = explain(&snapshot.services, key, origin);
        if said.outcome == Outcome::NotAService {
            return None;
        }
        let hints = said.service.as_ref().and_then(|lines| hints(config, key, lines));
        let service = said
            .cookie
            .as_ref()
            .and_then(|cookie| config.services.iter().find(|service| service.cookie == *cookie));
        let policies = service.map(|service| (service.internal_policy, service.external_policy));
        Some(Self { said, hints, policies, origin })
    }

    /// Whether no backend was selected.
    pub(super) fn is_refused(&self) -> bool {
        !matches!(self.said.outcome, Outcome::Backend { .. })
    }

    /// The backend as an end, and the port at it.
    pub(super) fn backend(&self, config: &Config) -> Option<(End, Wanted)> {
        let Outcome::Backend { address, .. } = self.said.outcome else { return None };
        // Backends exist only for protocols with ports.
        let protocol = self.said.service.as_ref()?.protocol;
        let end = End { party: owner(config, address.ip()), address: address.ip() };
        Some((end, Wanted::Port(address.port(), protocol)))
    }

    pub(super) fn report(&self) -> ServiceReport<'_> {
        let (backend, source_nat) = match self.said.outcome {
            Outcome::Backend { address, source_nat } => (Some(address.to_string()), source_nat),
            _ => (None, false),
        };
        ServiceReport {
            name: self.said.cookie.as_deref(),
            backend,
            source_nat,
            text: self.to_string(),
            port: self.said.service.as_ref().map(|lines| PortReport::new(lines, self)),
        }
    }
}

/// How topology hints were used for the called port.
fn hints(config: &Config, key: &FlowKey, lines: &ServiceLines) -> Option<HintUse> {
    let service = config.services.iter().find(|service| service.cookie == lines.cookie)?;
    let is_it =
        |port: &&ServicePort| port.name == lines.port_name && port.protocol.number() == key.proto;
    let port = service.ports.iter().find(is_it)?;
    let node = &config.node;
    let view = Viewpoint { node: node.name.clone(), zone: node.zone().map(Arc::from) };
    let slices = config.slices.iter().map(|slice| &**slice).filter(|slice| {
        slice.namespace == service.name.namespace && slice.service == service.name.name
    });
    let candidates = merge(service, port, family_of(key.dst_addr()), slices, &view);
    Some(hint_use(&candidates, &view))
}

/// The node at which a client outside the cluster enters when it calls a Service by an address that
/// is not a node's: one with an endpoint of the Service, otherwise any.
pub(super) fn entry_node<'a>(config: &'a Config, ends: &Ends) -> Option<&'a Arc<str>> {
    let service = config.services.iter().find(|service| *service.cookie == *ends.to.party.name)?;
    let slices = config.slices.iter().filter(|slice| {
        slice.namespace == service.name.namespace && slice.service == service.name.name
    });
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let mut nodes = endpoints.filter(|e| e.conditions.is_ready()).filter_map(|e| e.node.as_ref());
    let known = |name: &&Arc<str>| config.nodes.iter().any(|node| node.name == **name);
    nodes.find(known).or_else(|| config.nodes.first().map(|node| &node.name))
}

/// The Service for programs.
#[derive(Serialize)]
pub(super) struct ServiceReport<'a> {
    /// `Service/namespace/name`; null for an address in the Service CIDRs that no Service has. For
    /// host ports `Pod/namespace/name`.
    name: Option<&'a str>,
    /// `address:port`; null if none was selected.
    backend: Option<String>,
    /// The client's address is translated as well (S8).
    source_nat: bool,
    /// All of it as text.
    text: String,
    /// The port that was called, if the Service has it.
    #[serde(flatten)]
    port: Option<PortReport<'a>>,
}

#[derive(Serialize)]
struct PortReport<'a> {
    port: u16,
    port_name: &'a str,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalIP`, `HostPort`.
    kind: Option<&'static str>,
    /// `Cluster` or `Local`: which backends are eligible.
    scope: Option<&'static str>,
    /// Seconds.
    affinity: Option<u32>,
    hints: Option<String>,
    /// Slot and size of the table that selected the backend.
    slot: Option<usize>,
    slots: Option<usize>,
    backends: Vec<BackendReport<'a>>,
}

#[derive(Serialize)]
struct BackendReport<'a> {
    address: SocketAddr,
    node: Option<&'a str>,
    zone: Option<&'a str>,
    target: Option<&'a str>,
    state: &'static str,
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    usable: bool,
    weight: u16,
    share_permille: u32,
    chosen: bool,
}

impl<'a> PortReport<'a> {
    fn new(lines: &'a ServiceLines, served: &Served) -> Self {
        let usable = match lines.scope {
            Some(Scope::Local) => BackendFlags::IN_LOCAL,
            Some(Scope::Cluster) | None => BackendFlags::IN_CLUSTER,
        };
        let backends = lines.backends.iter().map(|line| BackendReport {
            address: line.address,
            node: line.node.as_deref(),
            zone: line.zone.as_deref(),
            target: line.target.as_deref(),
            state: line.state(lines.scope),
            ready: line.flags.has(BackendFlags::READY),
            serving: line.flags.has(BackendFlags::SERVING),
            terminating: line.flags.has(BackendFlags::TERMINATING),
            local: line.flags.has(BackendFlags::LOCAL),
            usable: line.flags.has(usable),
            weight: line.weight,
            share_permille: line.share_permille,
            chosen: line.chosen,
        });
        Self {
            port: lines.port,
            port_name: &lines.port_name,
            kind: lines.kind.map(|kind| kind.name()),
            scope: lines.scope.map(scope),
            affinity: lines.affinity,
            hints: served.hints.map(|hints| hints.to_string()),
            slot: lines.choice.map(|choice| choice.slot),
            slots: lines.choice.map(|choice| choice.slots),
            backends: backends.collect(),
        }
    }
}

const fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Cluster => "Cluster",
        Scope::Local => "Local",
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.said.fmt(f)?;
        let Some(lines) = &self.said.service else { return Ok(()) };
        if let Some((internal, external)) = self.policies {
            let name = |policy| match policy {
                TrafficPolicy::Cluster => "Cluster",
                TrafficPolicy::Local => "Local",
            };
            let client = match self.origin {
                Origin::InCluster => "in the cluster",
                Origin::OffCluster => "off the cluster",
            };
            write!(
                f,
                "\n  traffic policy: internal {}, external {}; the client is {client}",
                name(internal),
                name(external)
            )?;
        }
        if let Some(which) = lines.scope {
            write!(
                f,
                "\n  backends in question: {}",
                match which {
                    Scope::Cluster => "those of all nodes",
                    Scope::Local => "those of this node",
                }
            )?;
        }
        match self.hints {
            // Said already, or not relevant.
            None
            | Some(HintUse::None | HintUse::Followed(Topology::SameNode | Topology::SameZone)) => {
                Ok(())
            }
            Some(hints) => write!(f, "\n  topology hints {hints}"),
        }
    }
}
