//! Keeps the Service compiler in step with the configuration: tells it what changed, object by
//! object, and nothing else. Everything is checked before the compiler hears of anything.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_policy::service::compile::{Clash, Compiler, HealthCheck, Settings};
use podswitch_policy::service::endpoints::Viewpoint;
use podswitch_policy::service::model::{EndpointSlice, HostPort, Service, ServiceName, family_of};
use podswitch_policy::service::table::ServiceTable;
use podswitch_policy::touched::Touched;

use super::policies::{Difference, Names, difference};
use crate::config::{Config, ConfigError};
use crate::id::Cookie;

/// Namespace and name of a slice.
type SliceName = (Arc<str>, Arc<str>);

/// The host ports of one pod.
type PodPorts = (Cookie, Arc<[HostPort]>);

/// What a new configuration changes of what Services depend on.
pub(super) struct Step<'a> {
    pub(super) services: Difference<'a, Service>,
    pub(super) slices: Difference<'a, EndpointSlice>,
    /// Pods whose host ports go, and pods whose host ports are others than before.
    pub(super) closed: Vec<&'a Cookie>,
    pub(super) opened: Vec<&'a PodPorts>,
    pub(super) new: &'a Config,
}

impl<'a> Step<'a> {
    /// From `old`, which is in force, to `new`.
    pub(super) fn between(old: &'a Config, new: &'a Config) -> Self {
        // Few: the host ports of this node's pods.
        let mut before: HashMap<&Cookie, &Arc<[HostPort]>> =
            old.host_ports.iter().map(|(pod, ports)| (pod, ports)).collect();
        let is_new = |(pod, ports): &&PodPorts| {
            !before.remove(pod).is_some_and(|known| Arc::ptr_eq(known, ports) || *known == *ports)
        };
        let opened = new.host_ports.iter().filter(is_new).collect();
        Self {
            services: difference(&old.services, &new.services, |s| &s.name),
            slices: difference(&old.slices, &new.slices, |s| (&s.namespace, &s.name)),
            closed: before.into_keys().collect(),
            opened,
            new,
        }
    }

    fn service_names(&self) -> (Vec<ServiceName>, Vec<ServiceName>) {
        self.services.names(|s| s.name.clone())
    }

    fn slice_names(&self) -> (Vec<SliceName>, Vec<SliceName>) {
        self.slices.names(|s| (s.namespace.clone(), s.name.clone()))
    }
}

/// The compiler and the names that it knows.
#[derive(Debug)]
pub(super) struct Services {
    compiler: Compiler,
    services: Names<ServiceName>,
    slices: Names<SliceName>,
}

impl Default for Services {
    fn default() -> Self {
        Self {
            compiler: Compiler::new(settings(&Config::default())),
            services: Names::default(),
            slices: Names::default(),
        }
    }
}

impl Services {
    /// What is wrong with a step: objects that contradict themselves, and names that two objects
    /// would have.
    pub(super) fn check(&self, step: &Step<'_>) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let mut error = |object: Cookie, field: String, reason: String| {
            errors.push(ConfigError { object, field, reason });
        };
        let taken = || "another object has this name".to_owned();
        for name in self.services.taken(&step.service_names()) {
            error(Cookie::new(format!("Service/{name}")), "name".into(), taken());
        }
        for (namespace, name) in self.slices.taken(&step.slice_names()) {
            error(slice_cookie(&namespace, &name), "name".into(), taken());
        }
        for service in &step.services.changed {
            if let Err(invalid) = Compiler::check(service) {
                error(Cookie::new(service.cookie.clone()), invalid.field, invalid.reason);
            }
        }
        for slice in &step.slices.changed {
            if let Err((field, reason)) = check_slice(slice) {
                error(slice_cookie(&slice.namespace, &slice.name), field, reason);
            }
        }
        let mut pods: Vec<&Cookie> = step.new.host_ports.iter().map(|(pod, _)| pod).collect();
        pods.sort_unstable();
        for pair in pods.windows(2).filter(|pair| pair[0] == pair[1]) {
            error(pair[0].clone(), "host_ports".into(), "are listed twice".into());
        }
        for (pod, ports) in &step.opened {
            for (i, port) in ports.iter().enumerate() {
                if let Err((field, reason)) = check_host_port(port) {
                    error(pod.clone(), format!("host_ports[{i}].{field}"), reason);
                }
            }
        }
        errors
    }

    /// Takes a step that was found right, and returns the table after it.
    pub(super) fn advance(&mut self, step: &Step<'_>) -> ServiceTable {
        self.services.take(step.service_names());
        self.slices.take(step.slice_names());
        let compiler = &mut self.compiler;
        compiler.set_settings(settings(step.new));
        for service in &step.services.removed {
            compiler.remove_service(&service.name);
        }
        for slice in &step.slices.removed {
            compiler.remove_slice(&slice.namespace, &slice.name);
        }
        for service in &step.services.changed {
            let taken = compiler.set_service(Arc::clone(service));
            debug_assert!(taken.is_ok(), "checked before");
        }
        for slice in &step.slices.changed {
            compiler.set_slice(Arc::clone(slice));
        }
        for &pod in &step.closed {
            compiler.set_host_ports(pod.text(), Arc::new([]));
        }
        for (pod, ports) in &step.opened {
            compiler.set_host_ports(pod.text(), ports.clone());
        }
        compiler.publish()
    }

    /// What steps changed since the last call, as far as Services go.
    pub(super) fn take_touched(&mut self) -> Touched {
        self.compiler.take_touched()
    }

    /// Frontends that two objects claim, as last published.
    pub(super) fn clashes(&self) -> Vec<Clash> {
        self.compiler.clashes()
    }

    /// What the health check responder answers (S12), as last published.
    pub(super) fn health_checks(&self) -> Vec<HealthCheck> {
        let mut list: Vec<HealthCheck> = self.compiler.health_checks().cloned().collect();
        list.sort_by(|a, b| a.port.cmp(&b.port).then_with(|| a.service.cmp(&b.service)));
        list
    }
}

fn settings(config: &Config) -> Settings {
    let node = &config.node;
    Settings {
        view: Viewpoint { node: node.name.clone(), zone: node.zone().map(Into::into) },
        node_addresses: node.addresses.clone(),
        local_addresses: local_addresses(config),
        service_cidrs: config.service_cidrs.clone(),
        allowed_external_ips: config.allowed_external_ips.clone(),
        cluster_key: config.cluster_key.0,
    }
}

/// Where host ports are beside the node's first addresses; none if there are no host ports.
fn local_addresses(config: &Config) -> Vec<IpAddr> {
    if config.host_ports.iter().all(|(_, ports)| ports.is_empty()) {
        return Vec::new();
    }
    let node = &config.node;
    let mut addresses: Vec<IpAddr> = node.local_addresses.clone();
    addresses.push(Ipv4Addr::LOCALHOST.into());
    addresses.retain(|address| !node.addresses.contains(address));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn slice_cookie(namespace: &str, name: &str) -> Cookie {
    Cookie::new(format!("EndpointSlice/{namespace}/{name}"))
}

/// Field and reason.
type Fault = (String, String);

fn check_slice(slice: &EndpointSlice) -> Result<(), Fault> {
    for (i, port) in slice.ports.iter().enumerate() {
        if port.port == Some(0) {
            return Err((format!("ports[{i}].port"), "must be between 1 and 65535".into()));
        }
    }
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        let field = |n: usize| format!("endpoints[{i}].addresses[{n}]");
        for (n, &address) in endpoint.addresses.iter().enumerate() {
            if family_of(address) != slice.family {
                return Err((field(n), format!("{address} is not of the slice's family")));
            }
            if !is_target(address) {
                return Err((field(n), format!("{address} cannot be an endpoint")));
            }
        }
    }
    Ok(())
}

fn check_host_port(port: &HostPort) -> Result<(), Fault> {
    let fault = |field: &str, reason: &str| Err((field.into(), reason.into()));
    if port.port == 0 {
        return fault("port", "must be between 1 and 65535");
    }
    if port.target.port() == 0 || !is_target(port.target.ip()) {
        return fault("target", "is not a pod's address and port");
    }
    if port.address.is_some_and(|a| a.is_ipv4() != port.target.is_ipv4()) {
        return fault("address", "is not of the target's family");
    }
    Ok(())
}

fn is_target(address: IpAddr) -> bool {
    !(address.is_loopback() || address.is_multicast() || address.is_unspecified())
}
