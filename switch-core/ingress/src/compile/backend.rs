//! Backends: from a Service's port to the addresses of its endpoints.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;

use super::records::{Records, Subject};
use crate::annotations::quote;
use crate::objects::{BackendRef, Name, Objects, PortRef, ServicePort, SliceData, Stored};
use crate::options::Options;
use crate::routes::Backend;

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(super) struct Backends<'o> {
    objects: &'o Objects,
    options: &'o Options,
    slices: HashMap<(&'o str, &'o str), Vec<Slice<'o>>>,
    made: HashMap<String, Arc<Backend>>,
    /// What is wrong with slices, by the number of the endpoint, if it is one: several backends may
    /// read a slice.
    faults: RefCell<BTreeMap<&'o Name, BTreeMap<Option<usize>, String>>>,
}

type Slice<'o> = (&'o Name, &'o Stored<SliceData>);

/// A field of the backend, and what is wrong with it.
pub(super) type Fault = (&'static str, String);

impl<'o> Backends<'o> {
    pub(super) fn new(objects: &'o Objects, options: &'o Options) -> Self {
        let mut slices: HashMap<_, Vec<_>> = HashMap::new();
        for (name, slice) in &objects.slices {
            if let Some(service) = slice.meta.label(SERVICE_NAME) {
                slices.entry((name.0.as_str(), service)).or_default().push((name, slice));
            }
        }
        Self { objects, options, slices, made: HashMap::new(), faults: RefCell::default() }
    }

    /// Reports what is not used of slices: one record for each, as a slice has up to 1,000 endpoints.
    pub(super) fn report(self, records: &mut Records) {
        for (name, faults) in self.faults.into_inner() {
            let (Some(slice), Some((number, reason))) =
                (self.objects.slices.get(name), faults.first_key_value())
            else {
                continue;
            };
            let field = match number {
                Some(number) => format!("endpoints[{number}].addresses[0]"),
                None => "addressType".to_owned(),
            };
            let reason = match faults.len() - 1 {
                0 => reason.clone(),
                more => format!("{reason}; {more} more of its endpoints are not used"),
            };
            records.field(&Subject::new("EndpointSlice", name, slice), &field, reason);
        }
    }

    fn fault(&self, slice: &'o Name, endpoint: Option<usize>, reason: String) {
        self.faults.borrow_mut().entry(slice).or_default().insert(endpoint, reason);
    }

    /// The backend of a rule in `namespace`.
    pub(super) fn get(&mut self, namespace: &str, it: &BackendRef) -> Result<Arc<Backend>, Fault> {
        let Some(service) = &it.service else {
            return Err(match it.resource {
                Some(_) => ("resource", "resource backends are not supported".to_owned()),
                None => ("service", "is missing".to_owned()),
            });
        };
        let name = service.name.as_deref().filter(|name| !name.is_empty());
        let name = name.ok_or(("service.name", "is missing".to_owned()))?;
        let port = match service.port.as_ref().map(|port| (port.name.as_deref(), port.number)) {
            Some((Some(name), None)) if !name.is_empty() => name.to_owned(),
            Some((None | Some(""), Some(number @ 1..=65_535))) => number.to_string(),
            Some((None | Some(""), Some(number))) => {
                return Err(("service.port.number", format!("{number} is not from 1 to 65535")));
            }
            Some((Some(_), Some(_))) => {
                return Err(("service.port", "has both name and number".to_owned()));
            }
            _ => return Err(("service.port", "has neither name nor number".to_owned())),
        };
        let key = format!("{namespace}/{name}:{port}");
        if let Some(made) = self.made.get(&key) {
            return Ok(made.clone());
        }
        let (endpoints, missing) = match self.endpoints(namespace, name, service.port.as_ref()) {
            Ok(endpoints) if endpoints.is_empty() => {
                (Vec::new(), Some("the Service has no ready endpoints".to_owned()))
            }
            Ok(endpoints) => (endpoints, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
        let backend = Arc::new(Backend {
            namespace: namespace.into(),
            name: key.as_str().into(),
            endpoints,
            missing: missing.map(Into::into),
        });
        self.made.insert(key, backend.clone());
        Ok(backend)
    }

    fn endpoints(
        &self,
        namespace: &str,
        name: &str,
        port: Option<&PortRef>,
    ) -> Result<Vec<SocketAddr>, String> {
        let service = self.objects.services.get(&(namespace.to_owned(), name.to_owned()));
        let service = service.ok_or_else(|| format!("there is no Service {}", quote(name)))?;
        if service.it.kind.as_deref() == Some("ExternalName") {
            return Err("Services of type ExternalName are not supported".to_owned());
        }
        let ports = service.it.ports.as_deref().unwrap_or_default();
        let is_meant = |it: &&ServicePort| match port {
            Some(PortRef { name: Some(name), .. }) if !name.is_empty() => {
                it.name.as_deref() == Some(name)
            }
            Some(PortRef { number, .. }) => it.port == *number,
            None => false,
        };
        let is_tcp = |it: &&ServicePort| it.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let port = ports.iter().find(|it| is_meant(it) && is_tcp(it));
        let port = port.ok_or("the Service has no such TCP port")?;
        let port_name = port.name.as_deref().unwrap_or_default();
        let slices = self.slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        // A pod with addresses of both families is one endpoint: one family is used.
        let families = service.it.ip_families.as_deref().unwrap_or_default();
        let first = families.first().map_or("IPv4", String::as_str);
        let second = if first == "IPv6" { "IPv4" } else { "IPv6" };
        for (name, slice) in slices {
            let kind = slice.it.address_type.as_deref().unwrap_or_default();
            if kind != "IPv4" && kind != "IPv6" {
                let reason = format!("{} is not IPv4 or IPv6", quote(kind));
                self.fault(name, None, reason);
            }
        }
        for family in [first, second] {
            let mut ready = BTreeSet::new();
            let mut leaving = BTreeSet::new();
            let of_family = |it: &&Slice<'_>| it.1.it.address_type.as_deref() == Some(family);
            for slice in slices.iter().filter(of_family) {
                self.add(*slice, port_name, &mut ready, &mut leaving);
            }
            // As for every proxy of Services: terminating ones if there are no others.
            let endpoints = if ready.is_empty() { leaving } else { ready };
            if !endpoints.is_empty() {
                return Ok(endpoints.into_iter().collect());
            }
        }
        Ok(Vec::new())
    }

    /// The endpoints of a slice: ready ones, and those that still serve while they terminate.
    fn add(
        &self,
        (name, slice): Slice<'o>,
        port_name: &str,
        ready: &mut BTreeSet<SocketAddr>,
        leaving: &mut BTreeSet<SocketAddr>,
    ) {
        let is_meant = |name: &Option<String>, protocol: &Option<String>| {
            name.as_deref().unwrap_or_default() == port_name
                && protocol.as_deref().unwrap_or("TCP") == "TCP"
        };
        let slice = &slice.it;
        let ports = slice.ports.iter().flatten();
        let port = ports.filter(|port| is_meant(&port.name, &port.protocol));
        let Some(port) = port.filter_map(|port| u16::try_from(port.port?).ok()).find(|p| *p > 0)
        else {
            return;
        };
        for (number, endpoint) in slice.endpoints.iter().flatten().enumerate() {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let terminating = conditions.terminating == Some(true);
            let list = match conditions.ready {
                None | Some(true) => &mut *ready,
                Some(false) if conditions.serving == Some(true) && terminating => &mut *leaving,
                Some(false) => continue,
            };
            // The first address is the endpoint's; others are not used, as in kube-proxy.
            let first = endpoint.addresses.iter().flatten().next();
            match self.address(first.map(String::as_str)) {
                Ok(address) => _ = list.insert(SocketAddr::new(address, port)),
                Err(reason) => self.fault(name, Some(number), reason),
            }
        }
    }

    fn address(&self, text: Option<&str>) -> Result<IpAddr, String> {
        let text = text.ok_or("is missing")?;
        let address = text.parse().map_err(|_| format!("{} is not an address", quote(text)))?;
        match local(address).filter(|_| !self.options.allow_local_endpoints) {
            Some(kind) => Err(format!("{address} is {kind}: requests would not go to a pod")),
            None => Ok(address),
        }
    }
}

/// What kind of address of the own host or link this is.
fn local(address: IpAddr) -> Option<&'static str> {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    Some(match address {
        _ if address.is_loopback() => "a loopback address",
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        _ if is_link_local => "a link-local address",
        _ if is_broadcast => "the broadcast address",
        _ if is_mapped => "an IPv4-mapped address",
        _ => return None,
    })
}
