//! EndpointSlices and ServiceCIDRs: the checks of `pkg/apis/discovery/validation` and
//! `pkg/apis/networking/validation` in kubernetes/kubernetes, and conversion to the model.

use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_policy::service::model::{Conditions, Endpoint, EndpointSlice, Hints, SlicePort};
use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::Family;

use super::pod::{port_number, protocol};
use super::service::is_foreign;
use super::{Content, Context, names_of};
use crate::api::meta::ObjectMeta;
use crate::api::service as api;
use crate::report::{Field, Findings, Grade, quote};
use crate::validate::address::{cidr, host_ip};
use crate::validate::meta::{Naming, object_meta};
use crate::validate::name;

const ENDPOINTS: Field<'static> = Field::root("endpoints");
const PORTS: Field<'static> = Field::root("ports");

/// The label that names the slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Limits of the API.
const MOST_ENDPOINTS: usize = 1_000;
const MOST_ADDRESSES: usize = 100;
const MOST_PORTS: usize = 20_000;

/// Reads one slice, including the endpoints of pods that have ended.
pub(super) fn read(
    cx: &mut Context<'_>,
    meta: &ObjectMeta,
    slice: &api::EndpointSlice,
    faults: &mut Findings,
) -> Content {
    let naming = Naming { namespaced: true, name: name::dns_subdomain };
    object_meta(meta, naming, faults);
    let family = match slice.address_type.as_deref().unwrap_or_default() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "" => {
            faults.add(&Field::root("addressType"), "is missing");
            None
        }
        other => {
            let reason = format!("{} is not one of IPv4, IPv6", quote(other));
            faults.say(Grade::LeftOut, &Field::root("addressType"), reason);
            None
        }
    };
    let mut reader = Reader { cx, faults };
    let ports = reader.ports(slice.ports.as_deref().unwrap_or_default());
    let endpoints = slice.endpoints.as_deref().unwrap_or_default();
    let endpoints = reader.endpoints(endpoints, family);
    let Some(family) = family else { return Content::Nothing };
    if is_foreign(meta) {
        // Headless Services are common, so this is not reported.
        return Content::Nothing;
    }
    let owner = meta.labels().find(|(key, _)| *key == SERVICE_NAME);
    let Some((_, service)) = owner.filter(|(_, name)| !name.is_empty()) else {
        faults.say_of_all(Grade::LeftOut, format!("belongs to no Service (label {SERVICE_NAME})"));
        return Content::Nothing;
    };
    let service = cx.names.get(service);
    let (namespace, name) = names_of(cx, meta);
    Content::Slice(Arc::new(EndpointSlice { service, namespace, name, family, ports, endpoints }))
}

/// Reads the parts of one slice.
struct Reader<'c, 'a> {
    cx: &'c mut Context<'a>,
    faults: &'c mut Findings,
}

impl Reader<'_, '_> {
    fn ports(&mut self, list: &[api::EndpointPort]) -> Vec<SlicePort> {
        if list.len() > MOST_PORTS {
            self.faults.add(&PORTS, format!("{} ports, more than {MOST_PORTS}", list.len()));
            return Vec::new();
        }
        let (mut names, mut found) = (HashSet::new(), Vec::with_capacity(list.len()));
        for (at, port) in list.iter().enumerate() {
            let field = PORTS.index(at);
            let text = port.name.as_deref().unwrap_or_default();
            if !text.is_empty() {
                self.faults.take(&field.child("name"), name::dns_label(text));
            }
            if !names.insert(text) {
                self.faults.add(&field.child("name"), format!("{} is listed twice", quote(text)));
            }
            let protocol = match protocol(port.protocol.as_deref().filter(|t| !t.is_empty())) {
                Ok(protocol) => protocol,
                Err(reason) => {
                    self.faults.say(Grade::FieldLeftOut, &field.child("protocol"), reason);
                    continue;
                }
            };
            // The API server accepts any number. 0 means no port, as in kube-proxy.
            let number = match port.port {
                None => None,
                Some(0) => continue,
                Some(number) => match port_number(number) {
                    Ok(number) => Some(number),
                    Err(reason) => {
                        self.faults.say(Grade::FieldLeftOut, &field.child("port"), reason);
                        continue;
                    }
                },
            };
            found.push(SlicePort { name: self.cx.names.get(text), protocol, port: number });
        }
        found
    }

    fn endpoints(&mut self, list: &[api::Endpoint], family: Option<Family>) -> Vec<Endpoint> {
        if list.len() > MOST_ENDPOINTS {
            let reason = format!("{} endpoints, more than {MOST_ENDPOINTS}", list.len());
            self.faults.add(&ENDPOINTS, reason);
            return Vec::new();
        }
        let mut found = Vec::with_capacity(list.len());
        for (at, endpoint) in list.iter().enumerate() {
            found.extend(self.endpoint(endpoint, family, &ENDPOINTS.index(at)));
        }
        found
    }

    /// `None`: its addresses are host names, or of an unknown type.
    fn endpoint(
        &mut self,
        endpoint: &api::Endpoint,
        family: Option<Family>,
        field: &Field<'_>,
    ) -> Option<Endpoint> {
        let list = endpoint.addresses.as_deref().unwrap_or_default();
        let field = field.child("addresses");
        if !(1..=MOST_ADDRESSES).contains(&list.len()) {
            let reason = format!("has {} items; 1 to {MOST_ADDRESSES} are allowed", list.len());
            self.faults.add(&field, reason);
        }
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
        let names = &mut self.cx.names;
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
            target: target.map(|target| self.cx.names.share(target.into())),
            weight: 1,
        })
    }
}

/// The object behind an endpoint.
fn target_cookie(target: &api::ObjectReference) -> Option<String> {
    let (kind, name) = (target.kind.as_deref()?, target.name.as_deref()?);
    Some(match target.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{kind}/{namespace}/{name}"),
        _ => format!("{kind}/{name}"),
    })
}

/// Reads one ServiceCIDR.
pub(super) fn read_cidr(
    meta: &ObjectMeta,
    it: &api::ServiceCidr,
    faults: &mut Findings,
) -> Content {
    let naming = Naming { namespaced: false, name: name::dns_subdomain };
    object_meta(meta, naming, faults);
    let list = it.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let spec = Field::root("spec");
    let field = spec.child("cidrs");
    if list.is_empty() {
        faults.add(&field, "is empty; at least one range is needed");
    }
    let mut ranges: Vec<Cidr> = Vec::new();
    for (at, text) in list.iter().enumerate() {
        let field = field.index(at);
        let Some((range, ambiguous)) = faults.take(&field, cidr(text)) else { continue };
        if ambiguous {
            faults.add(&field, format!("{text} has bits beyond its prefix; did you mean {range}?"));
        }
        if ranges.iter().any(|r| r.address().is_ipv4() == range.address().is_ipv4()) {
            faults.add(&field, "is a second range of the same family");
        }
        ranges.push(range);
    }
    Content::ServiceCidr(ranges)
}
