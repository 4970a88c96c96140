//! Gateways and their listeners.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::super::records::{Records, Subject};
use super::super::rules::valid_host;
use super::super::tls::certificate;
use super::common::{Fault, by_age, condition};
use super::grants::{Grants, Reference, selects};
use crate::annotations::quote;
use crate::gateway_api::{GROUP, GatewaySpec, ListenerSpec, ObjectRef};
use crate::objects::{Name, Objects, Stored};
use crate::options::Options;
use crate::routes::{Certificate, Routes};
use crate::status::{ListenerStatus, OneGatewayStatus};

/// A Gateway of ours.
pub(super) struct Gateway<'o> {
    pub(super) name: &'o Name,
    stored: &'o Stored<GatewaySpec>,
    /// None: those that no other Gateway asks for.
    addresses: Vec<IpAddr>,
    /// Why nothing of it is served.
    fault: Option<Fault>,
    pub(super) listeners: Vec<Listener<'o>>,
}

/// A listener.
pub(super) struct Listener<'o> {
    pub(super) spec: &'o ListenerSpec,
    pub(super) is_tls: bool,
    /// Why it is not served.
    fault: Option<Fault>,
    is_conflicted: bool,
    /// What is wrong with its references.
    unresolved: Option<Fault>,
    /// Whether HTTPRoutes are among the kinds of routes.
    is_http_route: bool,
    certificate: Option<Arc<Certificate>>,
    /// Routes that are attached.
    pub(super) attached: usize,
}

impl Listener<'_> {
    /// Empty: every host.
    pub(super) fn host(&self) -> &str {
        self.spec.hostname.as_deref().unwrap_or_default()
    }

    /// Whether it is served. One for TLS needs a certificate.
    fn is_open(&self) -> bool {
        self.fault.is_none() && (!self.is_tls || self.certificate.is_some())
    }

    /// Whether HTTPRoutes of a namespace may be attached.
    pub(super) fn allows(&self, objects: &Objects, gateway: &str, namespace: &str) -> bool {
        let allowed = self.spec.allowed_routes.as_ref().and_then(|it| it.namespaces.as_ref());
        let selector = allowed.and_then(|it| it.selector.as_ref());
        self.is_http_route
            && match allowed.and_then(|it| it.from.as_deref()).unwrap_or("Same") {
                "All" => true,
                "Same" => gateway == namespace,
                "Selector" => selector.is_some_and(|it| selects(it, objects, namespace)),
                _ => false,
            }
    }

    fn status(&self, gateway: Option<&Fault>) -> ListenerStatus {
        let conflicted = match &self.fault {
            Some((reason, message)) if self.is_conflicted => crate::status::Condition {
                kind: "Conflicted",
                holds: true,
                reason,
                message: message.clone(),
            },
            _ => condition("Conflicted", "", Some(&("NoConflicts", String::new()))),
        };
        let invalid = |(_, message): &Fault| ("Invalid", message.clone());
        let down = self
            .fault
            .as_ref()
            .or(gateway)
            .or(self.unresolved.as_ref().filter(|_| !self.is_open()));
        let down = down.map(invalid);
        ListenerStatus {
            name: self.spec.name.clone(),
            is_http_route: self.is_http_route,
            attached: self.attached,
            conditions: vec![
                condition("Accepted", "Accepted", self.fault.as_ref()),
                conflicted,
                condition("ResolvedRefs", "ResolvedRefs", self.unresolved.as_ref()),
                condition("Programmed", "Programmed", down.as_ref()),
            ],
        }
    }
}

impl Gateway<'_> {
    /// The addresses whose listeners are meant.
    pub(super) fn places(&self) -> Vec<Option<IpAddr>> {
        match self.addresses.as_slice() {
            [] => vec![None],
            addresses => addresses.iter().copied().map(Some).collect(),
        }
    }

    /// The listeners that are served, by number.
    pub(super) fn is_open(&self, listener: usize) -> bool {
        self.fault.is_none() && self.listeners[listener].is_open()
    }

    /// Opens the listeners, without routes.
    pub(super) fn open(&self, routes: &mut Routes) {
        for (number, listener) in self.listeners.iter().enumerate() {
            if !self.is_open(number) {
                continue;
            }
            for place in self.places() {
                let doors = routes.gateways.doors(place);
                if listener.is_tls {
                    *doors.certificates.entry(listener.host()) = listener.certificate.clone();
                    doors.https.entry(listener.host());
                } else {
                    doors.http.entry(listener.host());
                }
            }
        }
    }

    pub(super) fn status(&self) -> OneGatewayStatus {
        let bad: Vec<_> = self.listeners.iter().filter(|it| it.fault.is_some()).collect();
        let names = || bad.iter().map(|it| &*it.spec.name).collect::<Vec<_>>().join(", ");
        let mut accepted = condition("Accepted", "Accepted", self.fault.as_ref());
        if self.fault.is_none() && !bad.is_empty() {
            accepted.holds = bad.len() < self.listeners.len();
            accepted.reason = "ListenersNotValid";
            accepted.message = format!("listeners that are not served: {}", names());
        }
        let is_up = (0..self.listeners.len()).any(|number| self.is_open(number));
        let down = (!is_up).then(|| ("Invalid", "no listener is served".to_owned()));
        let down = self.fault.as_ref().map(|(_, message)| ("Invalid", message.clone())).or(down);
        let listeners = self.listeners.iter().map(|it| it.status(self.fault.as_ref()));
        OneGatewayStatus {
            namespace: self.name.0.clone(),
            name: self.name.1.clone(),
            generation: self.stored.meta.generation.unwrap_or_default(),
            addresses: self.addresses.clone(),
            conditions: vec![accepted, condition("Programmed", "Programmed", down.as_ref())],
            listeners: listeners.collect(),
        }
    }
}

/// Reads the Gateways of our classes, the oldest first: it keeps a listener that a later one has,
/// too, at the same addresses.
pub(super) fn read<'o>(
    objects: &'o Objects,
    options: &Options,
    grants: &Grants<'_>,
    is_ours: &dyn Fn(&str) -> bool,
    records: &mut Records,
) -> Vec<Gateway<'o>> {
    let mut claims = HashMap::new();
    let mut all = Vec::new();
    for (name, stored) in by_age(&objects.gateways) {
        let class = stored.it.gateway_class_name.as_deref().unwrap_or_default();
        if !is_ours(class) || options.gateway.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let of = Subject::new("Gateway", name, stored);
        let (addresses, fault) = match whole(&stored.it) {
            Ok(addresses) => (addresses, None),
            Err((field, fault)) => {
                records.left_out(&of, field, fault.1.clone(), true);
                (Vec::new(), Some(fault))
            }
        };
        let mut gateway = Gateway { name, stored, addresses, fault, listeners: Vec::new() };
        for (number, spec) in stored.it.listeners.iter().flatten().enumerate() {
            let field = format!("spec.listeners[{number}]");
            let listener = listener(objects, options, grants, name, spec, &of, &field, records);
            gateway.listeners.push(listener);
        }
        conflicts(&mut gateway, &mut claims, &of, records);
        all.push(gateway);
    }
    all
}

/// What concerns all listeners: the addresses, or why none is served.
fn whole(spec: &GatewaySpec) -> Result<Vec<IpAddr>, (&'static str, Fault)> {
    if spec.infrastructure.as_ref().is_some_and(|it| it.parameters_ref.is_some()) {
        let fault = ("InvalidParameters", "parameters are not supported".to_owned());
        return Err(("spec.infrastructure.parametersRef", fault));
    }
    if spec
        .tls
        .as_ref()
        .is_some_and(|tls| !tls.is_null() && tls.as_object().is_none_or(|it| !it.is_empty()))
    {
        // It would restrict who is served, or which endpoints are believed.
        let text = "certificates of clients, and those of endpoints, are not supported";
        return Err(("spec.tls", ("UnsupportedValue", text.to_owned())));
    }
    if spec.listeners.as_ref().is_none_or(Vec::is_empty) {
        return Err(("spec.listeners", ("ListenersNotValid", "there are none".to_owned())));
    }
    let wanted = spec.addresses.iter().flatten();
    let wanted = wanted.filter(|it| it.value.as_deref().is_some_and(|it| !it.is_empty()));
    let addresses = wanted.map(|it| {
        let text = it.value.as_deref().unwrap_or_default();
        let is_address = it.kind.as_deref().unwrap_or("IPAddress") == "IPAddress";
        text.parse::<IpAddr>().ok().filter(|_| is_address).map(|it| it.to_canonical()).ok_or_else(
            || {
                let text = format!("{} is not an address; names are not supported", quote(text));
                ("spec.addresses", ("UnsupportedAddress", text))
            },
        )
    });
    addresses.collect()
}

#[expect(
    clippy::too_many_arguments,
    reason = "what a listener is read from, and where it is reported"
)]
fn listener<'o>(
    objects: &Objects,
    options: &Options,
    grants: &Grants<'_>,
    gateway: &Name,
    spec: &'o ListenerSpec,
    of: &Subject,
    field: &str,
    records: &mut Records,
) -> Listener<'o> {
    let is_tls = spec.protocol == "HTTPS";
    let is_known = is_tls || spec.protocol == "HTTP";
    let fault = match served(spec, options) {
        Ok(()) => None,
        Err((part, fault)) => {
            records.field(of, &format!("{field}.{part}"), fault.1.clone());
            Some(fault)
        }
    };
    let mut unresolved = None;
    let kinds = spec.allowed_routes.as_ref().and_then(|it| it.kinds.as_deref()).unwrap_or_default();
    let is_route =
        |group: Option<&str>, kind: &str| group.unwrap_or(GROUP) == GROUP && kind == "HTTPRoute";
    let mut is_http_route = is_known && kinds.is_empty();
    for (number, it) in kinds.iter().enumerate() {
        if is_known && is_route(it.group.as_deref(), &it.kind) {
            is_http_route = true;
        } else {
            let text = format!("{} is not HTTPRoute", quote(&it.kind));
            records.field(of, &format!("{field}.allowedRoutes.kinds[{number}]"), text.clone());
            unresolved = Some(("InvalidRouteKinds", text));
        }
    }
    let mut found = None;
    if is_tls && fault.is_none() {
        match certificates(objects, grants, gateway, spec, of, field, records) {
            Ok(certificate) => found = Some(certificate),
            Err(fault) => unresolved = unresolved.or(Some(fault)),
        }
    }
    Listener {
        spec,
        is_tls,
        fault,
        is_conflicted: false,
        unresolved,
        is_http_route,
        certificate: found,
        attached: 0,
    }
}

/// Whether the listener can be served; else the field, and why.
fn served(spec: &ListenerSpec, options: &Options) -> Result<(), (&'static str, Fault)> {
    let (http, https) = options.gateway_ports;
    let port = match &*spec.protocol {
        "HTTP" => http,
        "HTTPS" => https,
        other => {
            let text = format!("{} is not HTTP or HTTPS", quote(other));
            return Err(("protocol", ("UnsupportedProtocol", text)));
        }
    };
    if spec.port != i64::from(port) {
        let text = format!("{} is not {port}, the port of {}", spec.port, spec.protocol);
        return Err(("port", ("PortUnavailable", text)));
    }
    if let Err(reason) = valid_host(spec.hostname.as_deref().unwrap_or_default()) {
        return Err(("hostname", ("UnsupportedValue", reason)));
    }
    let Some(tls) = spec.tls.as_ref().filter(|_| spec.protocol == "HTTPS") else { return Ok(()) };
    if !matches!(tls.mode.as_deref(), None | Some("Terminate")) {
        let text = "only Terminate is supported for HTTPS".to_owned();
        return Err(("tls.mode", ("UnsupportedValue", text)));
    }
    if tls.frontend_validation.is_some() {
        let text = "certificates of clients are not supported".to_owned();
        return Err(("tls.frontendValidation", ("UnsupportedValue", text)));
    }
    Ok(())
}

/// The first certificate that can be used, or what is wrong with the first reference.
fn certificates(
    objects: &Objects,
    grants: &Grants<'_>,
    gateway: &Name,
    spec: &ListenerSpec,
    of: &Subject,
    field: &str,
    records: &mut Records,
) -> Result<Arc<Certificate>, Fault> {
    let refs =
        spec.tls.as_ref().and_then(|tls| tls.certificate_refs.as_deref()).unwrap_or_default();
    if spec.tls.as_ref().and_then(|tls| tls.options.as_ref()).is_some_and(|it| !it.is_empty()) {
        records.without_effect(of, &format!("{field}.tls.options"), "none is known".to_owned());
    }
    let mut result = Err(("InvalidCertificateRef", "there is none".to_owned()));
    if refs.is_empty() {
        records.field(of, &format!("{field}.tls.certificateRefs"), "there is none".to_owned());
    }
    for (number, it) in refs.iter().enumerate() {
        let field = format!("{field}.tls.certificateRefs[{number}]");
        match one_certificate(objects, grants, gateway, it) {
            Ok(certificate) if result.is_err() => result = Ok(Arc::new(certificate)),
            Ok(_) => {
                let text = "has no effect: a listener has one certificate".to_owned();
                records.without_effect(of, &field, text);
            }
            Err(fault) => {
                records.field(of, &field, fault.1.clone());
                if number == 0 {
                    result = Err(fault);
                }
            }
        }
    }
    result
}

fn one_certificate(
    objects: &Objects,
    grants: &Grants<'_>,
    gateway: &Name,
    it: &ObjectRef,
) -> Result<Certificate, Fault> {
    let invalid = |reason: String| ("InvalidCertificateRef", reason);
    let (group, kind) = (it.group.as_deref().unwrap_or_default(), it.kind.as_deref());
    if !group.is_empty() || kind.unwrap_or("Secret") != "Secret" {
        return Err(invalid("is not a Secret".to_owned()));
    }
    let namespace = it.namespace.as_deref().unwrap_or(&gateway.0);
    let reference = Reference {
        from_kind: "Gateway",
        from: &gateway.0,
        kind: "Secret",
        namespace,
        name: &it.name,
    };
    if !grants.permit(&reference) {
        let text =
            format!("no ReferenceGrant permits the Secret of namespace {}", quote(namespace));
        return Err(("RefNotPermitted", text));
    }
    let name = (namespace.to_owned(), it.name.clone());
    let secret = objects.secrets.get(&name);
    let secret =
        secret.ok_or_else(|| invalid(format!("there is no Secret {}", quote(&it.name))))?;
    let certificate = certificate(&name, &secret.it).map_err(invalid)?;
    // Whether the key fits is known when the proxy reads it.
    let has = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
    if !has(&certificate.chain, b"-----BEGIN CERTIFICATE-----") {
        return Err(invalid("tls.crt has no certificate in PEM".to_owned()));
    }
    if !has(&certificate.key, b"PRIVATE KEY-----") {
        return Err(invalid("tls.key has no private key in PEM".to_owned()));
    }
    Ok(certificate)
}

/// Who has a host at an address.
type Claims = HashMap<(Option<IpAddr>, bool, String), String>;

/// Listeners of a Gateway with the same host are not served at all; a host that an older Gateway has
/// at the same address stays there.
fn conflicts(gateway: &mut Gateway<'_>, claims: &mut Claims, of: &Subject, records: &mut Records) {
    let key = |it: &Listener<'_>| (it.is_tls, it.host().to_owned());
    let mut counts: HashMap<_, usize> = HashMap::new();
    for listener in gateway.listeners.iter().filter(|it| it.fault.is_none()) {
        *counts.entry(key(listener)).or_default() += 1;
    }
    let places = gateway.places();
    for (number, listener) in gateway.listeners.iter_mut().enumerate() {
        if listener.fault.is_some() {
            continue;
        }
        let (is_tls, host) = key(listener);
        let claim = |place: &Option<IpAddr>| (*place, is_tls, host.clone());
        let older = places.iter().find_map(|place| claims.get(&claim(place)));
        let text = if counts[&key(listener)] > 1 {
            "another listener has the same port and hostname".to_owned()
        } else if let Some(older) = older {
            format!("{older} has the same port and hostname, and is older")
        } else {
            if gateway.fault.is_none() {
                let name = of.object.as_str();
                claims.extend(places.iter().map(|place| (claim(place), name.to_owned())));
            }
            continue;
        };
        records.field(of, &format!("spec.listeners[{number}].hostname"), text.clone());
        listener.fault = Some(("HostnameConflict", text));
        listener.is_conflicted = true;
    }
}
