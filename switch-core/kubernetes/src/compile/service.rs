//! Services: the checks of `ValidateService` in kubernetes/kubernetes, and the model's form.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::id::Cookie;
use podswitch_policy::maglev::{MAX_SIZE, is_prime};
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::model::{
    DEFAULT_AFFINITY_SECS, Ingress, IpMode, Service, ServiceName, ServicePort, ServiceType,
    TargetPort, TrafficDistribution, TrafficPolicy,
};
use podswitch_wire::cidr::Cidr;

use super::pod::{port_number, protocol};
use super::{Compiler, Loaded, namespace};
use crate::api::service as api;
use crate::api::{IntOrString, meta::ObjectMeta};
use crate::refusal::{Faults, Field, quote};
use crate::validate::address::{cidr, host_ip};
use crate::validate::meta::{Naming, labels, object_meta};
use crate::validate::name;

const SPEC: Field<'static> = Field::root("spec");
const STATUS: Field<'static> = Field::root("status");
const METADATA: Field<'static> = Field::root("metadata");
const ANNOTATIONS: Field<'static> = METADATA.child("annotations");

/// Annotation with the size of a Service's tables.
const MAGLEV_SIZE: &str = "podswitch.io/maglev-size";
/// Labels whose presence says that a Service is not for kube-proxy, nor for its stand-ins (S14).
const NOT_OURS: [&str; 2] =
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
/// kubelet's port, which a load balancer would expose.
const KUBELET: u16 = 10_250;

/// All Services, as far as they were read.
#[derive(Default)]
pub(super) struct Services {
    pub(super) list: Vec<Arc<Service>>,
    /// Whose a cluster IP is.
    owners: HashMap<IpAddr, Cookie>,
    /// Whose a port of the nodes is.
    node_ports: HashMap<(Protocol, u16), Cookie>,
}

/// Reads one Service.
pub(super) fn compile(compiler: &mut Compiler<'_>, object: &Loaded, service: &api::Service) {
    let mut faults = Faults::default();
    let naming = Naming { namespaced: true, name: name::dns_label };
    object_meta(&object.meta, naming, &mut faults);
    let empty = api::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&empty);
    let mut reader = Reader { compiler, object, spec, faults };
    let kind = reader.kind();
    let (cluster_ips, headless) = reader.cluster_ips(kind);
    let ports = reader.ports(kind, headless);
    labels(spec.selector.as_ref(), &SPEC.child("selector"), &mut reader.faults);
    let external_ips = reader.external_ips();
    let ingress = reader.ingress(kind, service.status.as_ref());
    let source_ranges = reader.source_ranges(kind);
    let affinity = reader.affinity();
    let (internal_policy, external_policy) = reader.policies(kind, !external_ips.is_empty());
    let health_check_node_port = reader.health_check(kind, external_policy);
    let traffic_distribution = reader.distribution();
    let maglev_size = reader.maglev_size(&object.meta);
    let faults = reader.faults;
    if !faults.is_empty() {
        return compiler.refuse(object, faults);
    }
    if kind != ServiceType::ExternalName && cluster_ips.is_empty() && !headless {
        compiler.note(object, "has no cluster IP yet");
    }
    let namespace = namespace::of(compiler, object);
    let name = compiler.names.get(object.meta.name.as_deref().unwrap_or_default());
    let service = Service {
        cookie: object.cookie.as_str().into(),
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
        foreign_proxy: object.meta.labels().any(|(key, _)| NOT_OURS.contains(&key)),
        maglev_size,
    };
    compiler.services.list.push(Arc::new(service));
}

/// A text that is there and not empty, which for the API is the same as not there.
fn text(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// Whether Services of this type are reached from outside by ports of the nodes.
fn has_node_ports(kind: ServiceType) -> bool {
    matches!(kind, ServiceType::NodePort | ServiceType::LoadBalancer)
}

/// Reads the parts of one Service.
struct Reader<'c, 'a> {
    compiler: &'c mut Compiler<'a>,
    object: &'c Loaded,
    spec: &'c api::ServiceSpec,
    faults: Faults,
}

impl Reader<'_, '_> {
    /// One of several words, the first if there is none.
    fn word<T: Copy>(&mut self, text: Option<&str>, name: &str, words: &[(&str, T)]) -> T {
        let Some(text) = text else { return words[0].1 };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let words_list: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let reason = format!("{} is not one of {}", quote(text), words_list.join(", "));
        self.faults.add(&SPEC.child(name), reason);
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
            self.faults.add(&SPEC.child("clusterIP"), "not the same as the first of clusterIPs");
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
                self.faults.add(&field, "more than one address of a family");
                continue;
            }
            self.own(address, &field);
            found.push(address);
        }
        (found, false)
    }

    /// Makes a cluster IP this Service's, unless it is somebody's.
    fn own(&mut self, address: IpAddr, field: &Field<'_>) {
        let compiler = &mut *self.compiler;
        let others = compiler.nodes.owners.get(&address);
        let owner = match others.or_else(|| compiler.pods.owners.get(&address)) {
            Some(owner) => owner,
            None => {
                let entry = compiler.services.owners.entry(address);
                entry.or_insert_with(|| self.object.cookie.clone())
            }
        };
        if *owner != self.object.cookie {
            self.faults.add(field, format!("{address} is also {owner}'s address"));
        }
    }

    fn ports(&mut self, kind: ServiceType, headless: bool) -> Vec<ServicePort> {
        let list = self.spec.ports.as_deref().unwrap_or_default();
        let field = SPEC.child("ports");
        if list.is_empty() && !headless && kind != ServiceType::ExternalName {
            self.faults.add(&field, "is missing; only headless Services can do without");
        }
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        let mut found = Vec::with_capacity(list.len());
        for (at, port) in list.iter().enumerate() {
            let field = field.index(at);
            let name = text(&port.name).unwrap_or_default();
            if !name.is_empty() {
                self.faults.take(&field.child("name"), name::dns_label(name));
                if !names.insert(name) {
                    self.faults.add(&field.child("name"), format!("{name} stands twice"));
                }
            } else if list.len() > 1 {
                self.faults.add(&field.child("name"), "is missing; of several ports each has one");
            }
            let Some(port) = self.port(port, kind, &field) else { continue };
            if !numbers.insert((port.protocol, port.port)) {
                let reason = format!("{}/{} stands twice", port.port, port.protocol);
                self.faults.add(&field, reason);
            }
            found.push(port);
        }
        found
    }

    fn port(
        &mut self,
        port: &api::ServicePort,
        kind: ServiceType,
        field: &Field<'_>,
    ) -> Option<ServicePort> {
        let faults = &mut self.faults;
        let protocol = protocol(text(&port.protocol));
        let protocol = faults.take(&field.child("protocol"), protocol);
        let number = faults.take(&field.child("port"), port_number(port.port.unwrap_or(0)));
        if kind == ServiceType::LoadBalancer && number == Some(KUBELET) {
            let reason = format!("{KUBELET} is kubelet's, and not for a load balancer");
            faults.add(&field.child("port"), reason);
        }
        let target_field = field.child("targetPort");
        // 0 and the empty text are what the API server sees where there is none (S14).
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => number.map(TargetPort::Number),
            Some(IntOrString::String(name)) if name.is_empty() => number.map(TargetPort::Number),
            Some(IntOrString::Int(number)) => {
                faults.take(&target_field, port_number(*number)).map(TargetPort::Number)
            }
            Some(IntOrString::String(name)) => {
                let valid = faults.take(&target_field, name::port_name(name));
                valid.map(|()| TargetPort::Name(self.compiler.names.get(name)))
            }
        };
        let node_port = self.node_port(port, protocol, kind, &field.child("nodePort"));
        let name = self.compiler.names.get(text(&port.name).unwrap_or_default());
        Some(ServicePort { name, protocol: protocol?, port: number?, target: target?, node_port })
    }

    fn node_port(
        &mut self,
        port: &api::ServicePort,
        protocol: Option<Protocol>,
        kind: ServiceType,
        field: &Field<'_>,
    ) -> Option<u16> {
        let number = port.node_port.filter(|&number| number != 0)?;
        let number = self.faults.take(field, port_number(number))?;
        if !has_node_ports(kind) {
            self.faults.add(field, "only for types NodePort and LoadBalancer");
            return None;
        }
        self.take_node_port(protocol?, number, field);
        Some(number)
    }

    /// Makes a port of the nodes this Service's, unless it is another's.
    fn take_node_port(&mut self, protocol: Protocol, number: u16, field: &Field<'_>) {
        let taken = &mut self.compiler.services.node_ports;
        if let Some(owner) = taken.get(&(protocol, number)) {
            self.faults.add(field, format!("{number}/{protocol} is also a port of {owner}"));
        } else {
            taken.insert((protocol, number), self.object.cookie.clone());
        }
    }

    fn external_ips(&mut self) -> Vec<IpAddr> {
        let (spec, field) = (self.spec, SPEC.child("externalIPs"));
        let mut found = Vec::new();
        for (at, text) in spec.external_ips.iter().flatten().enumerate() {
            let Some(address) = self.faults.take(&field.index(at), host_ip(text)) else { continue };
            let allowed = &self.compiler.options.allowed_external_ips;
            if !allowed.iter().any(|range| range.contains(address)) {
                let text = format!("{address} of its externalIPs is not allowed, and left out");
                self.compiler.note(self.object, text);
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
        if !list.is_empty() && kind != ServiceType::LoadBalancer {
            self.faults.add(&field, "only for type LoadBalancer");
            return Vec::new();
        }
        let mut found = Vec::new();
        for (at, entry) in list.iter().enumerate() {
            let field = field.index(at);
            let mode = match text(&entry.ip_mode) {
                None | Some("VIP") => IpMode::Vip,
                Some("Proxy") => IpMode::Proxy,
                Some(other) => {
                    let reason = format!("{} is not one of VIP, Proxy", quote(other));
                    self.faults.add(&field.child("ipMode"), reason);
                    continue;
                }
            };
            // A load balancer with a host name alone is not our business.
            let Some(ip) = text(&entry.ip) else { continue };
            if let Some(address) = self.faults.take(&field.child("ip"), host_ip(ip)) {
                found.push(Ingress { address, mode });
            }
        }
        found
    }

    fn source_ranges(&mut self, kind: ServiceType) -> Vec<Cidr> {
        let (spec, field) = (self.spec, SPEC.child("loadBalancerSourceRanges"));
        let list = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
        if !list.is_empty() && kind != ServiceType::LoadBalancer {
            self.faults.add(&field, "only for type LoadBalancer");
        }
        let mut found = Vec::new();
        for (at, text) in list.iter().enumerate() {
            // The API server takes white space off here, and nowhere else.
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
            if config.is_some() {
                self.faults.add(&field, "only with sessionAffinity ClientIP");
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
            let reason = "only for Services that are reached from outside";
            self.faults.add(&SPEC.child("externalTrafficPolicy"), reason);
        }
        (internal, self.word(external, "externalTrafficPolicy", &words))
    }

    fn health_check(&mut self, kind: ServiceType, external: TrafficPolicy) -> Option<u16> {
        let field = SPEC.child("healthCheckNodePort");
        let number = self.spec.health_check_node_port.filter(|&number| number != 0)?;
        let number = self.faults.take(&field, port_number(number))?;
        if kind != ServiceType::LoadBalancer || external != TrafficPolicy::Local {
            let reason = "only for type LoadBalancer with externalTrafficPolicy Local";
            self.faults.add(&field, reason);
            return None;
        }
        self.take_node_port(Protocol::Tcp, number, &field);
        Some(number)
    }

    fn distribution(&mut self) -> Option<TrafficDistribution> {
        let same_zone = Some(TrafficDistribution::SameZone);
        let text = text(&self.spec.traffic_distribution)?;
        self.word(
            Some(text),
            "trafficDistribution",
            &[
                ("PreferSameZone", same_zone),
                ("PreferClose", same_zone),
                ("PreferSameNode", Some(TrafficDistribution::SameNode)),
            ],
        )
    }

    fn maglev_size(&mut self, meta: &ObjectMeta) -> Option<u32> {
        let text = meta.annotation(MAGLEV_SIZE)?;
        let size = text.parse().ok().filter(|&size| size <= MAX_SIZE && is_prime(size));
        if size.is_none() {
            let reason = format!("{} is not a prime number of at most {MAX_SIZE}", quote(text));
            self.faults.add(&ANNOTATIONS.key(MAGLEV_SIZE), reason);
        }
        size
    }
}
