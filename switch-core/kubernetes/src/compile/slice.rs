//! EndpointSlices and ServiceCIDRs: the checks of `pkg/apis/discovery/validation` and
//! `pkg/apis/networking/validation` in kubernetes/kubernetes, and the model's form.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_policy::service::model::{Conditions, Endpoint, EndpointSlice, Hints, SlicePort};
use podswitch_wire::flow_key::Family;

use super::pod::{port_number, protocol};
use super::{Compiler, Loaded, namespace};
use crate::api::service as api;
use crate::refusal::{Faults, Field, quote};
use crate::validate::address::{cidr, host_ip};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const ENDPOINTS: Field<'static> = Field::root("endpoints");
const PORTS: Field<'static> = Field::root("ports");

/// The label that says whose the slice is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Bounds of the API.
const MOST_ENDPOINTS: usize = 1_000;
const MOST_ADDRESSES: usize = 100;
const MOST_PORTS: usize = 100;

/// Reads one slice.
pub(super) fn compile(compiler: &mut Compiler<'_>, object: &Loaded, slice: &api::EndpointSlice) {
    let mut faults = Faults::default();
    let naming = Naming { namespaced: true, name: name::dns_subdomain };
    object_meta(&object.meta, naming, &mut faults);
    let family = match slice.address_type.as_deref().unwrap_or_default() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            let reason = format!("{} is not one of IPv4, IPv6, FQDN", quote(other));
            faults.add(&Field::root("addressType"), reason);
            None
        }
    };
    let mut reader = Reader { compiler, faults };
    let ports = reader.ports(slice.ports.as_deref().unwrap_or_default());
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    let endpoints = reader.endpoints(endpoints, family);
    let faults = reader.faults;
    if !faults.is_empty() {
        return compiler.refuse(object, faults);
    }
    let Some(family) = family else {
        return compiler.note(object, "has names of hosts for addresses, and is left out");
    };
    let owner = object.meta.labels().find(|(key, _)| *key == SERVICE_NAME);
    let Some((_, service)) = owner.filter(|(_, name)| !name.is_empty()) else {
        let text = format!("is no Service's (label {SERVICE_NAME}), and is left out");
        return compiler.note(object, text);
    };
    let slice = EndpointSlice {
        service: compiler.names.get(service),
        namespace: namespace::of(compiler, object),
        name: compiler.names.get(object.meta.name.as_deref().unwrap_or_default()),
        family,
        ports,
        endpoints,
    };
    compiler.slices.push(Arc::new(slice));
}

/// Reads the parts of one slice.
struct Reader<'c, 'a> {
    compiler: &'c mut Compiler<'a>,
    faults: Faults,
}

impl Reader<'_, '_> {
    fn ports(&mut self, list: &[api::EndpointPort]) -> Vec<SlicePort> {
        if list.len() > MOST_PORTS {
            self.faults.add(&PORTS, format!("{} ports, more than {MOST_PORTS}", list.len()));
            return Vec::new();
        }
        let (mut names, mut found) = (HashSet::new(), Vec::new());
        for (at, port) in list.iter().enumerate() {
            let field = PORTS.index(at);
            let text = port.name.as_deref().unwrap_or_default();
            if !text.is_empty() {
                self.faults.take(&field.child("name"), name::dns_label(text));
            }
            if !names.insert(text) {
                self.faults.add(&field.child("name"), format!("{} stands twice", quote(text)));
            }
            let protocol = protocol(port.protocol.as_deref());
            let protocol = self.faults.take(&field.child("protocol"), protocol);
            let number = port.port.map(port_number).transpose();
            let number = self.faults.take(&field.child("port"), number);
            if let (Some(protocol), Some(port)) = (protocol, number) {
                found.push(SlicePort { name: self.compiler.names.get(text), protocol, port });
            }
        }
        found
    }

    fn endpoints(&mut self, list: &[api::Endpoint], family: Option<Family>) -> Vec<Endpoint> {
        if list.len() > MOST_ENDPOINTS {
            let reason = format!("{} endpoints, more than {MOST_ENDPOINTS}", list.len());
            self.faults.add(&ENDPOINTS, reason);
            return Vec::new();
        }
        let mut found = Vec::new();
        for (at, endpoint) in list.iter().enumerate() {
            found.extend(self.endpoint(endpoint, family, &ENDPOINTS.index(at)));
        }
        found
    }

    /// `None`: it has faults, or is nobody's backend.
    fn endpoint(
        &mut self,
        endpoint: &api::Endpoint,
        family: Option<Family>,
        field: &Field<'_>,
    ) -> Option<Endpoint> {
        let list = endpoint.addresses.as_deref().unwrap_or_default();
        let field = field.child("addresses");
        if !(1..=MOST_ADDRESSES).contains(&list.len()) {
            let reason = format!("has {} items; it must have 1 to {MOST_ADDRESSES}", list.len());
            self.faults.add(&field, reason);
        }
        // Names of hosts, or faulty anyway.
        let family = family?;
        let mut addresses = Vec::with_capacity(list.len());
        for (at, text) in list.iter().enumerate() {
            let field = field.index(at);
            let Some(address) = self.faults.take(&field, host_ip(text)) else { continue };
            if address.is_ipv4() != (family == Family::V4) {
                self.faults.add(&field, format!("{address} is not of the slice's addressType"));
            }
            addresses.push(address);
        }
        let target = endpoint.target_ref.as_ref().and_then(target_cookie);
        if self.has_ended(target.as_deref(), addresses.first()) {
            return None;
        }
        let names = &mut self.compiler.names;
        let mut name = |text: &Option<String>| {
            text.as_deref().filter(|text| !text.is_empty()).map(|text| names.get(text))
        };
        let hints = endpoint.hints.as_ref();
        let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        Some(Endpoint {
            addresses,
            conditions: Conditions {
                ready: conditions.ready,
                serving: conditions.serving,
                terminating: conditions.terminating,
            },
            node: name(&endpoint.node_name),
            zone: name(&endpoint.zone),
            hints: Hints {
                nodes: nodes.iter().filter_map(|hint| name(&hint.name)).collect(),
                zones: zones.iter().filter_map(|hint| name(&hint.name)).collect(),
            },
            target: target.map(Arc::from),
            weight: 1,
        })
    }

    /// Whether the pod behind an endpoint has ended: it is nobody's backend, however late the
    /// slice is.
    fn has_ended(&self, target: Option<&str>, address: Option<&IpAddr>) -> bool {
        let pods = &self.compiler.pods;
        match (target, address) {
            (Some(target), _) if target.starts_with("Pod/") => pods.ended.contains(target),
            (_, Some(address)) => {
                pods.ended_addresses.contains(address) && !pods.owners.contains_key(address)
            }
            _ => false,
        }
    }
}

/// What an endpoint says that it is.
fn target_cookie(target: &api::ObjectReference) -> Option<String> {
    let (kind, name) = (target.kind.as_deref()?, target.name.as_deref()?);
    Some(match target.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{kind}/{namespace}/{name}"),
        _ => format!("{kind}/{name}"),
    })
}

/// Reads one ServiceCIDR.
pub(super) fn compile_cidr(compiler: &mut Compiler<'_>, object: &Loaded, it: &api::ServiceCidr) {
    let mut faults = Faults::default();
    let naming = Naming { namespaced: false, name: name::dns_subdomain };
    object_meta(&object.meta, naming, &mut faults);
    let list = it.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let spec = Field::root("spec");
    let field = spec.child("cidrs");
    if list.is_empty() {
        faults.add(&field, "at least one range is needed");
    }
    let mut ranges: Vec<podswitch_wire::cidr::Cidr> = Vec::new();
    for (at, text) in list.iter().enumerate() {
        let field = field.index(at);
        let Some((range, ambiguous)) = faults.take(&field, cidr(text)) else { continue };
        if ambiguous {
            faults.add(&field, format!("{text} has bits beyond its prefix; is {range} meant?"));
        }
        if ranges.iter().any(|r| r.address().is_ipv4() == range.address().is_ipv4()) {
            faults.add(&field, "more than one range of a family");
        }
        ranges.push(range);
    }
    if !faults.is_empty() {
        return compiler.refuse(object, faults);
    }
    compiler.service_cidrs.extend(ranges);
}
