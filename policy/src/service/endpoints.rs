//! Selects the endpoints of a Service's port that take new connections (S1–S4): pure functions from
//! slices to a selection. Called by the [compiler](super::compile), never on the packet path.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_wire::flow_key::Family;

use super::model::{Endpoint, EndpointSlice, Service, ServicePort};

/// The node for which the selection is made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Viewpoint {
    /// Name of this node.
    pub node: Arc<str>,
    /// Its zone (label `topology.kubernetes.io/zone`), if it has one.
    pub zone: Option<Arc<str>>,
}

/// An endpoint of one Service port, merged from all slices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate<'a> {
    /// Address and resolved target port.
    pub address: SocketAddr,
    /// The slice's endpoint.
    pub endpoint: &'a Endpoint,
    /// Ready, or readiness is disregarded.
    pub ready: bool,
    /// Serving, possibly terminating.
    pub serving: bool,
    /// Terminating.
    pub terminating: bool,
    /// On this node.
    pub local: bool,
}

impl Candidate<'_> {
    /// Takes new connections (S1).
    pub fn is_usable(&self) -> bool {
        self.ready && self.endpoint.weight > 0
    }

    /// Takes new connections if no endpoint is usable (S1).
    pub fn is_last_resort(&self) -> bool {
        self.serving && self.terminating && self.endpoint.weight > 0
    }

    /// If one endpoint is described several times, the description with the best state is used.
    fn merit(&self) -> (bool, bool, bool, bool) {
        (self.ready, self.serving, !self.terminating, self.local)
    }
}

/// All endpoints of `port` in one family, sorted by address and without duplicates.
///
/// A slice is used if it has a port of the same name and protocol; the number may differ from slice
/// to slice, because of named target ports. An endpoint may be in several slices while controllers
/// move it. It counts once, in its best state; if the states are equal, as described by the first
/// slice by name.
pub fn merge<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    view: &Viewpoint,
) -> Vec<Candidate<'a>> {
    let mut found: Vec<Candidate<'a>> = Vec::new();
    for slice in slices.into_iter().filter(|slice| slice.family == family) {
        let same =
            |p: &&super::model::SlicePort| p.name == port.name && p.protocol == port.protocol;
        for number in slice.ports.iter().filter(same).filter_map(|p| p.port) {
            let fits = slice.endpoints.iter().filter_map(|endpoint| {
                let address = *endpoint.addresses.first()?;
                is_target(address, family).then(|| {
                    let address = SocketAddr::new(address, number);
                    candidate(service, endpoint, address, view)
                })
            });
            found.extend(fits);
        }
    }
    // Stable: among equals the one from the first slice remains.
    found.sort_by(|a, b| a.address.cmp(&b.address).then(b.merit().cmp(&a.merit())));
    found.dedup_by_key(|c| c.address);
    found
}

/// The API server refuses loopback, link-local and multicast addresses; the switch does not send
/// there either.
fn is_target(address: IpAddr, family: Family) -> bool {
    super::model::family_of(address) == family
        && !(address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

fn candidate<'a>(
    service: &Service,
    endpoint: &'a Endpoint,
    address: SocketAddr,
    view: &Viewpoint,
) -> Candidate<'a> {
    let conditions = &endpoint.conditions;
    Candidate {
        address,
        endpoint,
        ready: conditions.is_ready() || service.publish_not_ready,
        serving: conditions.is_serving() || service.publish_not_ready,
        terminating: conditions.is_terminating(),
        local: endpoint.node.as_ref() == Some(&view.node),
    }
}

/// Which hints are honoured (S2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Topology {
    /// No hints: all endpoints are equal.
    #[default]
    Anywhere,
    /// Those for this zone.
    SameZone,
    /// Those for this node.
    SameNode,
}

/// The result of [`select`]; indices into the candidates.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Selection {
    /// Endpoints for traffic under Cluster policy.
    pub cluster: Vec<usize>,
    /// Endpoints for traffic under Local policy.
    pub local: Vec<usize>,
    /// Hints that were honoured for `cluster`.
    pub topology: Topology,
    /// Some endpoint exists, so if this node has none, the policy is the reason (S5).
    pub any: bool,
}

/// Selects the endpoints that take new connections.
pub fn select(candidates: &[Candidate<'_>], view: &Viewpoint) -> Selection {
    let pick = |accept: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<usize> {
        (0..candidates.len()).filter(|i| accept(&candidates[*i])).collect()
    };
    // Ready endpoints; if there are none, those that still serve while terminating.
    let or_last_resort = |ready: Vec<usize>, last: &dyn Fn(&Candidate<'_>) -> bool| {
        if ready.is_empty() { pick(last) } else { ready }
    };
    let topology = topology(candidates, view);
    let near = |c: &Candidate<'_>| match topology {
        Topology::Anywhere => true,
        Topology::SameZone => for_zone(c, view),
        Topology::SameNode => for_node(c, view),
    };
    let cluster = or_last_resort(pick(&|c| c.is_usable() && near(c)), &|c| c.is_last_resort());
    let local =
        or_last_resort(pick(&|c| c.is_usable() && c.local), &|c| c.is_last_resort() && c.local);
    let any = !cluster.is_empty();
    Selection { cluster, local, topology, any }
}

fn for_node(c: &Candidate<'_>, view: &Viewpoint) -> bool {
    c.endpoint.hints.nodes.contains(&view.node)
}

fn for_zone(c: &Candidate<'_>, view: &Viewpoint) -> bool {
    view.zone.as_ref().is_some_and(|zone| c.endpoint.hints.zones.contains(zone))
}

/// Hints count only if every ready endpoint has one of that kind, and one matches this node or
/// zone.
fn topology(candidates: &[Candidate<'_>], view: &Viewpoint) -> Topology {
    let ready = || candidates.iter().filter(|c| c.is_usable());
    if ready().all(|c| !c.endpoint.hints.nodes.is_empty()) && ready().any(|c| for_node(c, view)) {
        return Topology::SameNode;
    }
    if ready().all(|c| !c.endpoint.hints.zones.is_empty()) && ready().any(|c| for_zone(c, view)) {
        return Topology::SameZone;
    }
    Topology::Anywhere
}

/// How the hints of a Service port's endpoints were used, for explanations (S2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HintUse {
    /// No endpoint that takes connections has a hint.
    None,
    /// They are honoured.
    Followed(Topology),
    /// They are ignored, because this endpoint has no hint of that kind.
    Lacking(Topology, SocketAddr),
    /// They are ignored, because no hint matches this node or zone.
    ForOthers(Topology),
}

/// How hints are used: the decision of [`select`], with the reason.
pub fn hint_use(candidates: &[Candidate<'_>], view: &Viewpoint) -> HintUse {
    let followed = topology(candidates, view);
    let ready = || candidates.iter().filter(|c| c.is_usable());
    if followed != Topology::Anywhere {
        return HintUse::Followed(followed);
    }
    let kinds = [
        (
            Topology::SameZone,
            (|c| !c.endpoint.hints.zones.is_empty()) as fn(&Candidate<'_>) -> bool,
        ),
        (Topology::SameNode, |c| !c.endpoint.hints.nodes.is_empty()),
    ];
    for (kind, has) in kinds {
        if ready().any(|c| has(c)) {
            return match ready().find(|c| !has(c)) {
                Some(lacking) => HintUse::Lacking(kind, lacking.address),
                None => HintUse::ForOthers(kind),
            };
        }
    }
    HintUse::None
}

impl core::fmt::Display for HintUse {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let word = |kind: Topology| match kind {
            Topology::SameZone => "zone",
            Topology::SameNode | Topology::Anywhere => "node",
        };
        match *self {
            Self::None => f.write_str("there are none"),
            Self::Followed(kind) => write!(f, "followed: same {}", word(kind)),
            Self::Lacking(kind, address) => {
                write!(f, "ignored: {address} has none for {}s", word(kind))
            }
            Self::ForOthers(kind) => write!(f, "ignored: none is for this {}", word(kind)),
        }
    }
}
