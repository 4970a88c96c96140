//! Parts of an object that programs following an API server read before a [`Store`](crate::Store)
//! has it, and the object's thin form.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use podswitch_policy::rule::NamedPort;
use serde::Serialize;

use crate::api::meta::{LabelSelector, ObjectMeta};
use crate::object::{Body, Object, Typed};
use crate::options::Options;
use crate::read::names::Names;
use crate::read::pod::container_ports;
use crate::read::{Context, annotations};
use crate::report::Findings;
use crate::validate::address::ip;

/// An endpoint of a Service, from an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// Address and port.
    pub address: SocketAddr,
    /// Name of the port, or empty.
    pub port_name: String,
}

/// An object together with its metadata.
#[derive(Serialize)]
struct Thin<'a, T: Serialize> {
    metadata: Cow<'a, ObjectMeta>,
    #[serde(flatten)]
    rest: &'a T,
}

impl Object {
    fn meta(&self) -> Option<&ObjectMeta> {
        match &self.0.body {
            Body::Good(meta, _) | Body::Again(_, meta, _) => Some(meta),
            Body::Bad(..) => None,
        }
    }

    fn typed(&self) -> Option<&Typed> {
        match &self.0.body {
            Body::Good(_, typed) | Body::Again(_, _, typed) => Some(typed),
            Body::Bad(..) => None,
        }
    }

    /// Whether all fields have the right types. Their values may still be invalid.
    pub fn is_well_formed(&self) -> bool {
        matches!(self.0.body, Body::Good(..))
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> Option<&str> {
        self.meta()?.uid.as_deref()
    }

    /// The annotation `key`.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.meta()?.annotation(key)
    }

    /// Annotations, keys and values.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.meta().and_then(|meta| meta.annotations.as_ref()).into_iter().flatten();
        pairs.map(|(key, value)| (&**key, value.as_deref().unwrap_or_default()))
    }

    /// Labels, keys and values.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.meta().into_iter().flat_map(ObjectMeta::labels)
    }

    /// The node of a pod.
    pub fn node_name(&self) -> Option<&str> {
        match self.typed()? {
            Typed::Pod(pod) => pod.spec.as_ref()?.node_name.as_deref(),
            _ => None,
        }
    }

    /// The named ports of a pod's containers, as policies and Services see them.
    pub fn named_ports(&self) -> Vec<NamedPort> {
        let Some(Typed::Pod(pod)) = self.typed() else { return Vec::new() };
        let (mut names, options) = (Names::default(), Options::default());
        let mut cx = Context { names: &mut names, options: &options };
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        container_ports(&mut cx, pod, host_network, &mut Findings::default()).0
    }

    /// The status of a node's condition of this type: `True`, `False` or `Unknown`.
    pub fn node_condition(&self, kind: &str) -> Option<&str> {
        let Typed::Node(node) = self.typed()? else { return None };
        let mut conditions = node.status.as_ref()?.conditions.iter().flatten();
        conditions.find(|c| c.kind.as_deref() == Some(kind))?.status.as_deref()
    }

    /// Whether a policy names pods or namespaces as peers, so that all pods of the cluster are
    /// relevant. False for a policy that cannot be read, because it only isolates.
    pub fn has_pod_peers(&self) -> bool {
        match self.typed() {
            Some(Typed::NetworkPolicy(policy)) => policy.spec.as_ref().is_some_and(|spec| {
                let from =
                    spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
                let to = spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten());
                let is_pod = |selector: &Option<LabelSelector>| selector.is_some();
                from.chain(to).any(|p| is_pod(&p.pod_selector) || is_pod(&p.namespace_selector))
            }),
            Some(Typed::ClusterNetworkPolicy(policy)) => policy.spec.as_ref().is_some_and(|spec| {
                let from =
                    spec.ingress.iter().flatten().flat_map(|rule| rule.from.iter().flatten());
                let to = spec.egress.iter().flatten().flat_map(|rule| rule.to.iter().flatten());
                from.chain(to)
                    .any(|peer| peer.contains_key("pods") || peer.contains_key("namespaces"))
            }),
            _ => false,
        }
    }

    /// Addresses and ports of an EndpointSlice's ready endpoints. Empty for other kinds.
    pub fn ready_endpoints(&self) -> Vec<ServiceEndpoint> {
        let Some(Typed::EndpointSlice(slice)) = self.typed() else { return Vec::new() };
        let is_ready = |e: &&crate::api::service::Endpoint| {
            e.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        };
        let addresses: Vec<IpAddr> = slice
            .endpoints
            .iter()
            .flatten()
            .filter(is_ready)
            .flat_map(|endpoint| endpoint.addresses.iter().flatten())
            .filter_map(|text| ip(text).ok())
            .collect();
        let mut found = Vec::new();
        for port in slice.ports.iter().flatten() {
            let Some(number) = port.port.and_then(|number| u16::try_from(number).ok()) else {
                continue;
            };
            found.extend(addresses.iter().map(|address| ServiceEndpoint {
                address: SocketAddr::new(*address, number),
                port_name: port.name.clone().unwrap_or_default(),
            }));
        }
        found
    }

    /// Its thin form in JSON, which [`decode`](Self::decode) reads: the fields that podswitch
    /// reads, and only those annotations that podswitch or Flannel uses. `None`: it cannot be read
    /// and is not a policy.
    pub fn to_json(&self) -> Option<String> {
        let (meta, typed) = match &self.0.body {
            Body::Good(meta, typed) | Body::Again(_, meta, typed) => (meta, typed),
            Body::Bad(_, value) if self.0.kind.is_policy() => return Some(value.to_string()),
            Body::Bad(..) => return None,
        };
        let mut metadata = meta.clone();
        if let Some(annotations) = &mut metadata.annotations {
            annotations.retain(|key, _| annotations::has_meaning(key));
        }
        let metadata = Cow::Owned(metadata);
        fn text<T: Serialize>(metadata: Cow<'_, ObjectMeta>, rest: &T) -> Option<String> {
            serde_json::to_string(&Thin { metadata, rest }).ok()
        }
        match typed {
            Typed::Namespace => text(metadata, &serde_json::Map::new()),
            Typed::Node(it) => text(metadata, it),
            Typed::Pod(it) => text(metadata, it),
            Typed::NetworkPolicy(it) => text(metadata, it),
            Typed::ClusterNetworkPolicy(it) => text(metadata, it),
            Typed::Service(it) => text(metadata, it),
            Typed::EndpointSlice(it) => text(metadata, it),
            Typed::ServiceCidr(it) => text(metadata, it),
        }
    }
}
