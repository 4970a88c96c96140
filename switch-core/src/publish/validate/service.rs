//! Services, endpoint slices and host ports.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_policy::service::compile::Compiler;
use podswitch_policy::service::model::{EndpointSlice, HostPort, Service, family_of};

use crate::config::Endpoint;
use crate::publish::kinds::PodPorts;
use crate::publish::objects::{Faults, Kind};

pub(in crate::publish) fn service(service: &Service, faults: &mut Faults) {
    if let Err(invalid) = Compiler::check(service) {
        faults.add(invalid.field, invalid.reason);
    }
}

pub(in crate::publish) fn slice(slice: &EndpointSlice, faults: &mut Faults) {
    for (i, port) in slice.ports.iter().enumerate() {
        if port.port == Some(0) {
            faults.add(format!("ports[{i}].port"), "must be between 1 and 65535");
        }
    }
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        for (n, &address) in endpoint.addresses.iter().enumerate() {
            let mut add = |reason| faults.add(format!("endpoints[{i}].addresses[{n}]"), reason);
            if family_of(address) != slice.family {
                add(format!("{address} is not of the slice's family"));
            } else if !is_target(address) {
                add(format!("{address} cannot be an endpoint"));
            }
        }
    }
}

pub(in crate::publish) fn host_ports(
    (pod, ports): &PodPorts,
    pods: &Kind<Arc<Endpoint>>,
    faults: &mut Faults,
) {
    if pods.is_wanted(pod) && pods.get(pod).is_none() {
        faults.missing("host_ports", "the pod is left out");
    }
    for (i, port) in ports.iter().enumerate() {
        host_port(&format!("host_ports[{i}]"), port, faults);
    }
}

fn host_port(path: &str, port: &HostPort, faults: &mut Faults) {
    if port.port == 0 {
        faults.add(format!("{path}.port"), "must be between 1 and 65535");
    } else if port.target.port() == 0 || !is_target(port.target.ip()) {
        faults.add(format!("{path}.target"), "is not a pod's address and port");
    } else if port.address.is_some_and(|a| a.is_ipv4() != port.target.is_ipv4()) {
        faults.add(format!("{path}.address"), "is not of the target's family");
    }
}

fn is_target(address: IpAddr) -> bool {
    !(address.is_loopback() || address.is_multicast() || address.is_unspecified())
}
