//! Reads single objects: each is validated as by the API server, and converted to the model.
//! Whatever depends on other objects (the owner of an address, whether a pod has ended) is decided
//! in [`crate::store`].

pub(crate) mod annotations;
pub(crate) mod cluster_policy;
pub(crate) mod names;
pub(crate) mod namespace;
pub(crate) mod network_policy;
pub(crate) mod node;
pub(crate) mod pod;
mod rank;
mod selector;
pub(crate) mod service;
pub(crate) mod slice;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::id::Cookie;
use podswitch_policy::rule::{ClusterNetworkPolicy, Namespace, NetworkPolicy};
use podswitch_policy::service::model::EndpointSlice;
use podswitch_wire::cidr::Cidr;

use crate::api::meta::ObjectMeta;
use crate::object::{Body, Kind, Loaded, Typed};
use crate::options::Options;
use crate::report::{Action, Finding, Findings};
use names::Names;
use node::NodeFacts;
use pod::PodFacts;
pub(crate) use rank::Rank;
use service::ServiceFacts;

/// The input besides the object.
pub(crate) struct Context<'a> {
    pub(crate) names: &'a mut Names,
    pub(crate) options: &'a Options,
}

/// The content of one object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// Nothing that the switch uses.
    Nothing,
    Namespace(Arc<Namespace>),
    Node(Box<NodeFacts>),
    Pod(PodFacts),
    /// A pod that has ended, with the addresses that it had.
    EndedPod(Vec<IpAddr>),
    Policy(Arc<NetworkPolicy>),
    ClusterPolicy(Arc<ClusterNetworkPolicy>),
    Service(ServiceFacts),
    Slice(Arc<EndpointSlice>),
    ServiceCidr(Vec<Cidr>),
}

impl Content {
    /// Whether two objects make the same claims.
    pub(crate) fn claims_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Node(a), Self::Node(b)) => {
                (&a.addresses, &a.ranges) == (&b.addresses, &b.ranges)
            }
            (Self::Pod(a), Self::Pod(b)) => {
                a.endpoint.workload.addresses == b.endpoint.workload.addresses
            }
            (Self::Service(a), Self::Service(b)) => {
                a.service.cluster_ips == b.service.cluster_ips && a.node_ports().eq(b.node_ports())
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// The result of reading an object.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) content: Content,
    /// The namespace of the object, if it counts as existing there.
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) rank: Rank,
    pub(crate) findings: Vec<Finding>,
    /// How the object was handled if it cannot be used.
    pub(crate) action: Action,
}

/// Reads an object. `last_good`: its last valid version, if that is in force.
pub(crate) fn read(cx: &mut Context<'_>, object: &Loaded, last_good: Option<&Content>) -> Reading {
    let mut faults = Findings::default();
    let (content, rank, namespaced) = match &object.body {
        Body::Good(meta, it) | Body::Again(_, meta, it) => {
            if let Body::Again(fault, ..) = &object.body {
                faults.add_at(fault.field.clone(), fault.reason.clone());
            }
            annotations::check(object.kind, meta, cx.options, &mut faults);
            let rank = Rank::of(meta, it);
            (content(cx, object, meta, it, &mut faults), rank, meta.namespace.as_deref())
        }
        Body::Bad(fault, spec) => {
            faults.add_at(fault.field.clone(), fault.reason.clone());
            let closed = match object.kind {
                Kind::NetworkPolicy => network_policy::close_unreadable(cx, object, spec),
                Kind::ClusterNetworkPolicy => cluster_policy::close_unreadable(cx, object, spec),
                _ => Content::Nothing,
            };
            (closed, Rank::default(), None)
        }
    };
    let (content, action) = match content {
        content if !faults.is_refused() => (content, Action::None),
        Content::Policy(_) | Content::ClusterPolicy(_) if last_good.is_some() => {
            (last_good.cloned().unwrap_or(content), Action::KeptLastGood)
        }
        closed @ (Content::Policy(_) | Content::ClusterPolicy(_)) => (closed, Action::Closed),
        _ => (Content::Nothing, Action::LeftOut),
    };
    let namespace = match &content {
        Content::EndedPod(_) => None,
        Content::Policy(policy) => Some(policy.namespace.clone()),
        Content::Nothing if faults.is_refused() => None,
        _ if object.kind.is_namespaced() => Some(cx.names.get(namespace_name(namespaced))),
        _ => None,
    };
    Reading { content, namespace, rank, findings: faults.into_list(), action }
}

/// Reads an object with fields of the right types. If a policy is refused, the result isolates what
/// it selects; for other kinds the result is then meaningless.
fn content(
    cx: &mut Context<'_>,
    object: &Loaded,
    meta: &ObjectMeta,
    it: &Typed,
    faults: &mut Findings,
) -> Content {
    let cookie = &object.cookie;
    match it {
        Typed::Namespace => namespace::read(cx, meta, faults),
        Typed::Node(node) => node::read(cx, cookie, meta, node, faults),
        Typed::Pod(pod) => {
            // EndpointSlices may refer to it as well.
            let cookie = Cookie::new(cx.names.share(cookie.text()));
            pod::read(cx, &cookie, meta, pod, faults)
        }
        Typed::NetworkPolicy(policy) => network_policy::read(cx, cookie, meta, policy, faults),
        Typed::ClusterNetworkPolicy(policy) => {
            cluster_policy::read(cx, cookie, meta, policy, faults)
        }
        Typed::Service(service) => service::read(cx, cookie, meta, service, faults),
        Typed::EndpointSlice(slice) => slice::read(cx, meta, slice, faults),
        Typed::ServiceCidr(cidr) => slice::read_cidr(meta, cidr, faults),
    }
}

/// The namespace of a namespaced object.
pub(crate) fn namespace_name(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("default")
}

/// The names of a namespaced object, shared.
fn names_of(cx: &mut Context<'_>, meta: &ObjectMeta) -> (Arc<str>, Arc<str>) {
    let namespace = cx.names.get(namespace_name(meta.namespace.as_deref()));
    (namespace, cx.names.get(meta.name.as_deref().unwrap_or_default()))
}

/// The text of a cookie, shared with it.
fn text_of(cookie: &Cookie) -> Arc<str> {
    cookie.text()
}
