//! Services: the checks of `ValidateService` in kubernetes/kubernetes, and conversion to the model.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_core::id::Cookie;
use podswitch_policy::maglev::{MAX_SIZE, is_prime};
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::model::{
    DEFAULT_AFFINITY_SECS, Ingress, IpMode, Service, ServiceName, ServicePort, ServiceType,
    TargetPort, TrafficDistribution, TrafficPolicy,
};
use podswitch_wire::cidr::Cidr;

use super::annotations::MAGLEV_SIZE;
use super::pod::{port_number, protocol};
use super::{Content, Context, names_of, text_of};
use crate::api::service as api;
use crate::api::{IntOrString, meta::ObjectMeta};
use crate::report::{Field, Findings, Grade, quote};
use crate::validate::address::{cidr, host_ip, ip};
use crate::validate::meta::{Naming, labels, object_meta};
use crate::validate::name;

const SPEC: Field<'static> = Field::root("spec");
const STATUS: Field<'static> = Field::root("status");
const METADATA: Field<'static> = Field::root("metadata");
const ANNOTATIONS: Field<'static> = METADATA.child("annotations");

/// Labels whose presence means that a Service is not for kube-proxy or its replacements (S14).
const NOT_OURS: [&str; 2] =
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
/// kubelet's port, which a load balancer must not expose.
const KUBELET: u16 = 10_250;

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServiceFacts {
    /// The Service with all addresses and ports that it requests.
    pub(crate) service: Arc<Service>,
    /// Its cluster IP is in `spec.clusterIP` alone.
    single_ip: bool,
    /// Indices of its ports in `spec.ports`, if some of those are left out.
    places: Option<Box<[usize]>>,
}

impl ServiceFacts {
    /// The field of the cluster IP with index `at`.
    pub(crate) fn address_field(&self, at: usize) -> String {
        if self.single_ip { "spec.clusterIP".to_owned() } else { format!("spec.clusterIPs[{at}]") }
    }

    /// The field of the node port of the port with index `at`.
    pub(crate) fn node_port_field(&self, at: usize) -> String {
        let at = self.places.as_ref().map_or(at, |places| places[at]);
        format!("spec.ports[{at}].nodePort")
    }

    /// Node ports that it requests: those of its ports by index, and finally that for health
    /// checks.
    pub(crate) fn node_ports(&self) -> impl Iterator<Item = (Option<usize>, Protocol, u16)> {
        let ports = self.service.ports.iter().enumerate();
        let ports = ports.filter_map(|(at, port)| Some((Some(at), port.protocol, port.node_port?)));
        ports.chain(self.service.health_check_node_port.map(|port| (None, Protocol::Tcp, port)))
    }
}

/// Reads one Service.
pub(super) fn read(
    cx: &mut Context<'_>,
    cookie: &Cookie,
    meta: &ObjectMeta,
    service: &api::Service,
    faults: &mut Findings,
) -> Content {
    let naming = Naming { namespaced: true, name: name::dns_label };
    object_meta(meta, naming, faults);
    let empty = api::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let mut reader = Reader { cx, spec, faults };
    let kind = reader.kind();
    let (cluster_ips, headless) = reader.cluster_ips(kind);
    let (ports, places) = reader.ports(kind, headless);
    labels(spec.selector.as_ref(), &SPEC.child("selector"), reader.faults);
    let external_ips = reader.external_ips();
    let ingress = reader.ingress(kind, service.status.as_ref());
    let source_ranges = reader.source_ranges(kind);
    let affinity = reader.affinity();
    let (internal_policy, external_policy) = reader.policies(kind, !external_ips.is_empty());
    let health_check_node_port = reader.health_check(kind, external_policy);
    let traffic_distribution = reader.distribution();
    let maglev_size = reader.maglev_size(meta);
    let pending = cluster_ips.is_empty() && !headless && !faults.is_refused();
    if kind != ServiceType::ExternalName && pending {
        faults.say_of_all(Grade::Note, "has no cluster IP yet");
    }
    let (namespace, name) = names_of(cx, meta);
    let service = Service {
        cookie: text_of(cookie),
        name: ServiceName { namespace, name },
        kind,
        cluster_ips,
        external_ips,
        ingress,
        source_ranges,
        ports,
        internal_policy,
        external_policy,
        affinity,
        health_check_node_port,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        traffic_distribution,
        foreign_proxy: is_foreign(meta),
        maglev_size,
    };
    let single_ip = spec.cluster_ips.as_ref().is_none_or(Vec::is_empty);
    let whole = places.iter().enumerate().all(|(at, place)| at == *place);
    let places = (!whole).then(|| places.into_boxed_slice());
    Content::Service(ServiceFacts { service: Arc::new(service), single_ip, places })
}

/// Whether an object's labels exclude it from kube-proxy and its replacements (S14).
pub(super) fn is_foreign(meta: &ObjectMeta) -> bool {
    meta.labels().any(|(key, _)| NOT_OURS.contains(&key))
}

/// A non-empty string. In the API, an empty one means none.
fn text(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// Whether Services of this type are reachable from outside at ports of the nodes.
fn has_node_ports(kind: ServiceType) -> bool {
    matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer)
}

/// Reads the parts of one Service.
struct Reader<'c, 'a> {
    cx: &'c mut Context<'a>,
    spec: &'c api::ServiceSpec,
    faults: &'c mut Findings,
}

impl Reader<'_, '_> {
    /// One of several keywords. If there is none, or an unknown one, the first: an old node
    /// continues to work with a newer API server.
    fn word<T: Copy>(&mut self, text: Option<&str>, name: &str, words: &[(&str, T)]) -> T {
        let Some(text) = text else { return words[0].1 };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let list: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let reason = format!(
            "{} is not one of {}; the Service is treated as if it were {}",
            quote(text),
            list.join(", "),
            list[0]
        );
        self.faults.say(Grade::FieldLeftOut, &SPEC.child(name), reason);
        words[0].1
    }

    fn kind(&mut self) -> ServiceType {
        let kind = self.word(
            text(&self.spec.kind),
            "type",
            &[
                ("ClusterIP", ServiceType::ClusterIp),
                ("NodePort", ServiceType::NodePort),
                ("LoadBalancer", ServiceType::LoadBalancer),
                ("ExternalName", ServiceType::ExternalName),
            ],
        );
        if kind == ServiceType::ExternalName {
            let field = SPEC.child("externalName");
            match text(&self.spec.external_name) {
                None => self.faults.add(&field, "is missing; type ExternalName needs it"),
                Some(name) => {
                    let name = name.strip_suffix('.').unwrap_or(name);
                    self.faults.take(&field, name::dns_subdomain(name));
                }
            }
        }
        kind
    }

    /// The cluster IPs, and whether the Service is headless.
    fn cluster_ips(&mut self, kind: ServiceType) -> (Vec<IpAddr>, bool) {
        let single = text(&self.spec.cluster_ip);
        let many = self.spec.cluster_ips.as_deref().unwrap_or_default();
        let field = SPEC.child("clusterIPs");
        if let (Some(single), Some(first)) = (single, many.first())
            && single != first
        {
            let reason = "is not the same as the first of clusterIPs";
            self.faults.add(&SPEC.child("clusterIP"), reason);
        }
        let texts: Vec<&str> = match many {
            [] => single.into_iter().collect(),
            many => many.iter().map(String::as_str).collect(),
        };
        let at = |at| if many.is_empty() { SPEC.child("clusterIP") } else { field.index(at) };
        if kind == ServiceType::ExternalName && !texts.is_empty() {
            self.faults.add(&at(0), "a Service of type ExternalName has no cluster IP");
            return (Vec::new(), false);
        }
        if texts.first() == Some(&"None") {
            if has_node_ports(kind) {
                self.faults.add(&at(0), "a headless Service is of type ClusterIP");
            }
            if texts.len() > 1 {
                self.faults.add(&at(1), "a headless Service has no cluster IP");
            }
            return (Vec::new(), true);
        }
        let mut found: Vec<IpAddr> = Vec::new();
        for (index, text) in texts.into_iter().enumerate() {
            let field = at(index);
            let Some(address) = self.faults.take(&field, host_ip(text)) else { continue };
            if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                self.faults.add(&field, "is a second address of the same family");
                continue;
            }
            found.push(address);
        }
        (found, false)
    }

    /// The ports, and the index of each in the list.
    fn ports(&mut self, kind: ServiceType, headless: bool) -> (Vec<ServicePort>, Vec<usize>) {
        let list = self.spec.ports.as_deref().unwrap_or_default();
        let field = SPEC.child("ports");
        if list.is_empty() && !headless && kind != ServiceType::ExternalName {
            self.faults.add(&field, "is missing; only headless Services need none");
        }
        let (mut names, mut numbers, mut node_ports) =
            (HashSet::new(), HashSet::new(), HashSet::new());
        let (mut found, mut places) = (Vec::with_capacity(list.len()), Vec::new());
        for (at, port) in list.iter().enumerate() {
            let field = field.index(at);
            let name = text(&port.name).unwrap_or_default();
            if !name.is_empty() {
                self.faults.take(&field.child("name"), name::dns_label(name));
                if !names.insert(name) {
                    self.faults.add(&field.child("name"), format!("{name} is listed twice"));
                }
            } else if list.len() > 1 {
                self.faults.add(
                    &field.child("name"),
                    "is missing; where there are several ports each needs one",
                );
            }
            let Some(port) = self.port(port, kind, &field) else { continue };
            if !numbers.insert((port.protocol, port.port)) {
                let reason = format!("{}/{} is listed twice", port.port, port.protocol);
                self.faults.add(&field, reason);
            }
            if let Some(number) = port.node_port
                && !node_ports.insert((port.protocol, number))
            {
                let reason = format!("{number}/{} is listed twice", port.protocol);
                self.faults.add(&field.child("nodePort"), reason);
            }
            found.push(port);
            places.push(at);
        }
        (found, places)
    }

    fn port(
        &mut self,
        port: &api::ServicePort,
        kind: ServiceType,
        field: &Field<'_>,
    ) -> Option<ServicePort> {
        let faults = &mut *self.faults;
        let protocol = match protocol(text(&port.protocol)) {
            Ok(protocol) => Some(protocol),
            Err(reason) => {
                let reason = format!("{reason}; the port is left out");
                faults.say(Grade::FieldLeftOut, &field.child("protocol"), reason);
                None
            }
        };
        let number = faults.take(&field.child("port"), port_number(port.port.unwrap_or(0)));
        if kind == ServiceType::LoadBalancer && number == Some(KUBELET) {
            let reason = format!("{KUBELET} is kubelet's port; a load balancer must not expose it");
            faults.add(&field.child("port"), reason);
        }
        let target_field = field.child("targetPort");
        // 0 and the empty string mean none in the API server (S14).
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => number.map(TargetPort::Number),
            Some(IntOrString::String(name)) if name.is_empty() => number.map(TargetPort::Number),
            Some(IntOrString::Int(number)) => {
                faults.take(&target_field, port_number(*number)).map(TargetPort::Number)
            }
            Some(IntOrString::String(name)) => {
                let valid = faults.take(&target_field, name::port_name(name));
                valid.map(|()| TargetPort::Name(self.cx.names.get(name)))
            }
        };
        let node_port = self.node_port(port, kind, &field.child("nodePort"));
        let name = self.cx.names.get(text(&port.name).unwrap_or_default());
        Some(ServicePort { name, protocol: protocol?, port: number?, target: target?, node_port })
    }

    fn node_port(
        &mut self,
        port: &api::ServicePort,
        kind: ServiceType,
        field: &Field<'_>,
    ) -> Option<u16> {
        let number = port.node_port.filter(|&number| number != 0)?;
        let number = self.faults.take(field, port_number(number))?;
        if !has_node_ports(kind) {
            self.faults.add(field, "is only for types NodePort and LoadBalancer");
            return None;
        }
        Some(number)
    }

    fn external_ips(&mut self) -> Vec<IpAddr> {
        let (spec, field) = (self.spec, SPEC.child("externalIPs"));
        let mut found = Vec::new();
        for (at, text) in spec.external_ips.iter().flatten().enumerate() {
            let Some(address) = self.faults.take(&field.index(at), host_ip(text)) else { continue };
            let allowed = &self.cx.options.allowed_external_ips;
            if !allowed.iter().any(|range| range.contains(address)) {
                let reason = format!("{address} is in no range that allows external IPs");
                self.faults.say(Grade::FieldLeftOut, &field.index(at), reason);
            }
            found.push(address);
        }
        found
    }

    fn ingress(&mut self, kind: ServiceType, status: Option<&api::ServiceStatus>) -> Vec<Ingress> {
        let balancer = status.and_then(|status| status.load_balancer.as_ref());
        let list = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
        let field = STATUS.child("loadBalancer");
        let field = field.child("ingress");
        // Controllers write it, and the API server only checks the syntax of addresses.
        if !list.is_empty() && kind != ServiceType::LoadBalancer {
            let reason = "is only for type LoadBalancer; a status of an earlier type";
            self.faults.say(Grade::FieldLeftOut, &field, reason);
            return Vec::new();
        }
        let mut found: Vec<Ingress> = Vec::new();
        for (at, entry) in list.iter().enumerate() {
            let field = field.index(at);
            let mode = match text(&entry.ip_mode) {
                None | Some("VIP") => IpMode::Vip,
                Some("Proxy") => IpMode::Proxy,
                Some(other) => {
                    let reason = format!("{} is not one of VIP, Proxy", quote(other));
                    self.faults.say(Grade::FieldLeftOut, &field.child("ipMode"), reason);
                    continue;
                }
            };
            // A load balancer with only a host name needs no address here.
            let Some(address) = text(&entry.ip) else { continue };
            let field = field.child("ip");
            if self.faults.take_field(&field, ip(address)).is_none() {
                continue;
            }
            match host_ip(address) {
                Err(reason) => self.faults.say(Grade::FieldLeftOut, &field, reason),
                Ok(address) if found.iter().any(|other| other.address == address) => {}
                Ok(address) => found.push(Ingress { address, mode }),
            }
        }
        found
    }

    fn source_ranges(&mut self, kind: ServiceType) -> Vec<Cidr> {
        let (spec, field) = (self.spec, SPEC.child("loadBalancerSourceRanges"));
        let list = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
        if !list.is_empty() && kind != ServiceType::LoadBalancer {
            self.faults.add(&field, "is only for type LoadBalancer");
            return Vec::new();
        }
        let mut found = Vec::new();
        for (at, text) in list.iter().enumerate() {
            // The API server trims white space only here.
            let range = self.faults.take(&field.index(at), cidr(text.trim()));
            found.extend(range.map(|(range, _)| range));
        }
        found
    }

    fn affinity(&mut self) -> Option<u32> {
        let client_ip = self.word(
            text(&self.spec.session_affinity),
            "sessionAffinity",
            &[("None", false), ("ClientIP", true)],
        );
        let config = self.spec.session_affinity_config.as_ref();
        let field = SPEC.child("sessionAffinityConfig");
        if !client_ip {
            // It may have a meaning for a newer affinity type.
            let none = matches!(text(&self.spec.session_affinity), None | Some("None"));
            if config.is_some() && none {
                self.faults.add(&field, "is only for sessionAffinity ClientIP");
            }
            return None;
        }
        let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        let seconds = seconds.unwrap_or(i64::from(DEFAULT_AFFINITY_SECS));
        match u32::try_from(seconds) {
            Ok(seconds @ 1..=86_400) => Some(seconds),
            _ => {
                let field = field.child("clientIP");
                let reason = format!("{seconds} is not a number of seconds from 1 to 86400");
                self.faults.add(&field.child("timeoutSeconds"), reason);
                None
            }
        }
    }

    /// Internal and external traffic policy.
    fn policies(
        &mut self,
        kind: ServiceType,
        external_ips: bool,
    ) -> (TrafficPolicy, TrafficPolicy) {
        let words = [("Cluster", TrafficPolicy::Cluster), ("Local", TrafficPolicy::Local)];
        let internal = text(&self.spec.internal_traffic_policy);
        let internal = self.word(internal, "internalTrafficPolicy", &words);
        let external = text(&self.spec.external_traffic_policy);
        let outside = has_node_ports(kind) || (kind == ServiceType::ClusterIp && external_ips);
        if external.is_some() && !outside {
            let reason = "is only for Services that are reached from outside";
            self.faults.add(&SPEC.child("externalTrafficPolicy"), reason);
        }
        (internal, self.word(external, "externalTrafficPolicy", &words))
    }

    fn health_check(&mut self, kind: ServiceType, external: TrafficPolicy) -> Option<u16> {
        let field = SPEC.child("healthCheckNodePort");
        let number = self.spec.health_check_node_port.filter(|&number| number != 0)?;
        let number = self.faults.take(&field, port_number(number))?;
        if kind != ServiceType::LoadBalancer || external != TrafficPolicy::Local {
            let reason = "is only for type LoadBalancer with externalTrafficPolicy Local";
            self.faults.add(&field, reason);
            return None;
        }
        Some(number)
    }

    /// Affects explanations only: controllers turn it into hints, and only those are used. So an
    /// unknown value does not matter (KEP-2433, version skew).
    fn distribution(&mut self) -> Option<TrafficDistribution> {
        match text(&self.spec.traffic_distribution)? {
            "PreferSameZone" | "PreferClose" => Some(TrafficDistribution::SameZone),
            "PreferSameNode" => Some(TrafficDistribution::SameNode),
            other => {
                let reason = format!("{} is unknown; only hints are used", quote(other));
                self.faults.say(Grade::Note, &SPEC.child("trafficDistribution"), reason);
                None
            }
        }
    }

    fn maglev_size(&mut self, meta: &ObjectMeta) -> Option<u32> {
        let text = meta.annotation(MAGLEV_SIZE)?;
        let size = text.parse().ok().filter(|&size| size <= MAX_SIZE && is_prime(size));
        if size.is_none() {
            let reason = format!("{} is not a prime number of at most {MAX_SIZE}", quote(text));
            self.faults.say(Grade::FieldRefused, &ANNOTATIONS.key(MAGLEV_SIZE), reason);
        }
        size
    }
}
