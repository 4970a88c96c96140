//! Validation of a Service before it is compiled, as in the API server.

use std::collections::HashSet;

use super::model::{Service, ServiceType, TrafficPolicy, family_of};
use crate::maglev::{MAX_SIZE, is_prime};

/// A problem with an object. The object is not applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Path of the field within the object.
    pub field: String,
    /// The problem.
    pub reason: String,
}

fn invalid<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { field: field.into(), reason: reason.into() })
}

/// Validates a Service.
pub(super) fn service(service: &Service) -> Result<(), Invalid> {
    addresses(service)?;
    ports(service)?;
    policies(service)?;
    match service.maglev_size {
        Some(size) if size > MAX_SIZE || !is_prime(size) => invalid(
            "metadata.annotations[podswitch.io/maglev-size]",
            format!("{size} is not a prime of at most {MAX_SIZE}"),
        ),
        _ => Ok(()),
    }
}

fn addresses(service: &Service) -> Result<(), Invalid> {
    let mut families = HashSet::new();
    for (i, ip) in service.cluster_ips.iter().enumerate() {
        let field = format!("spec.clusterIPs[{i}]");
        if !is_virtual(*ip) {
            return invalid(field, format!("{ip} cannot be a Service's address"));
        }
        if !families.insert(family_of(*ip)) {
            return invalid(field, "a second address of the same family");
        }
    }
    for (i, ip) in service.external_ips.iter().enumerate() {
        if !is_virtual(*ip) {
            return invalid(format!("spec.externalIPs[{i}]"), format!("{ip} cannot be used"));
        }
    }
    for (i, ingress) in service.ingress.iter().enumerate() {
        if !is_virtual(ingress.address) {
            let field = format!("status.loadBalancer.ingress[{i}].ip");
            return invalid(field, format!("{} cannot be used", ingress.address));
        }
    }
    Ok(())
}

/// Neither loopback, link-local, multicast nor unspecified. The API server demands the same of
/// externalIPs.
fn is_virtual(ip: std::net::IpAddr) -> bool {
    let link_local = match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

fn ports(service: &Service) -> Result<(), Invalid> {
    if service.ports.is_empty() && service.is_balanced() {
        return invalid("spec.ports", "a Service with an address needs a port");
    }
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, port) in service.ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{i}].{field}");
        if port.name.is_empty() && service.ports.len() > 1 {
            return invalid(at("name"), "required where there are several ports");
        }
        if !names.insert(&port.name) {
            return invalid(at("name"), format!("duplicate {:?}", port.name));
        }
        if port.port == 0 {
            return invalid(at("port"), "must be between 1 and 65535");
        }
        if !numbers.insert((port.protocol, port.port)) {
            return invalid(at("port"), format!("duplicate {} {:?}", port.port, port.protocol));
        }
        match port.node_port {
            Some(0) => return invalid(at("nodePort"), "must be between 1 and 65535"),
            Some(_) if !is_external(service) => {
                return invalid(at("nodePort"), "only for type NodePort and LoadBalancer");
            }
            Some(number) if !node_ports.insert((port.protocol, number)) => {
                return invalid(at("nodePort"), format!("duplicate {number} {:?}", port.protocol));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_external(service: &Service) -> bool {
    matches!(service.kind, ServiceType::NodePort | ServiceType::LoadBalancer)
}

fn policies(service: &Service) -> Result<(), Invalid> {
    let local = service.external_policy == TrafficPolicy::Local;
    if local && !is_external(service) && service.external_ips.is_empty() {
        return invalid(
            "spec.externalTrafficPolicy",
            "only for Services that are reachable from outside",
        );
    }
    if !service.source_ranges.is_empty() && service.kind != ServiceType::LoadBalancer {
        return invalid("spec.loadBalancerSourceRanges", "only for type LoadBalancer");
    }
    if service.health_check_node_port.is_some()
        && !(local && service.kind == ServiceType::LoadBalancer)
    {
        return invalid(
            "spec.healthCheckNodePort",
            "only for type LoadBalancer with externalTrafficPolicy Local",
        );
    }
    match service.affinity {
        Some(seconds) if !(1..=86_400).contains(&seconds) => invalid(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{seconds} is not between 1 and 86400"),
        ),
        _ => Ok(()),
    }
}
