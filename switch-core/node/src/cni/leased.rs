//! Converts leases to attachments, and back.

use std::io;
use std::net::SocketAddr;

use podswitch_policy::rule::{Labels, NamedPort, Protocol};
use podswitch_policy::service::model::HostPort;

use super::cluster_view::PodFacts;
use super::config::PortMapping;
use super::error::CniError;
use super::leases::Lease;
use crate::attachment::{InterfaceKind, PodAttachment, PodNetns};
use crate::error::{NodeError, PodError};
use crate::pod_name::PodName;

/// The pod of a lease.
pub(super) fn pod(lease: &Lease) -> Result<PodName, CniError> {
    lease.pod.parse().map_err(damaged)
}

/// The attachment for the pod of a lease.
pub(super) fn attachment(lease: &Lease) -> Result<PodAttachment, CniError> {
    let netns = PodNetns::Pinned(lease.netns.clone().into(), lease.namespace);
    let mac =
        lease.mac.parse().map_err(|_| damaged(format!("{:?} is no MAC address", lease.mac)))?;
    let kind = if lease.port == "veth" { InterfaceKind::Veth } else { InterfaceKind::Tap };
    let labels: Labels = lease.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let ports = lease.named_ports.iter().map(|(name, protocol, port)| NamedPort {
        name: name.as_str().into(),
        protocol: protocol_of(protocol),
        port: *port,
    });
    Ok(PodAttachment::new(pod(lease)?, netns, lease.addresses.iter().copied())
        .interface(&lease.interface)
        .kind(kind)
        .mac(mac)
        .labels(labels)
        .ports(ports.collect())
        .host_ports(host_ports(lease)))
}

fn host_ports(lease: &Lease) -> Vec<HostPort> {
    let mut ports = Vec::new();
    for open in &lease.host_ports {
        for &target in &lease.addresses {
            if open.address.is_none_or(|address| address.is_ipv4() == target.is_ipv4()) {
                ports.push(HostPort {
                    // The unspecified address means all addresses of its family.
                    address: open.address.filter(|address| !address.is_unspecified()),
                    protocol: protocol_of(&open.protocol),
                    port: open.port,
                    target: SocketAddr::new(target, open.target),
                });
            }
        }
    }
    ports
}

/// Updates a lease with the current facts about its pod. Returns whether it changed.
pub(super) fn describe(lease: &mut Lease, facts: &PodFacts) -> bool {
    let labels = facts.labels.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let ports = facts.ports.iter();
    let named_ports =
        ports.map(|p| (p.name.to_string(), protocol_name(p.protocol).to_owned(), p.port)).collect();
    let is_news = (&lease.labels, &lease.named_ports) != (&labels, &named_ports);
    (lease.labels, lease.named_ports) = (labels, named_ports);
    is_news
}

/// A port in the form of a lease.
pub(super) fn leased_port(mapping: &PortMapping) -> super::leases::LeasedPort {
    super::leases::LeasedPort {
        address: mapping.address,
        protocol: protocol_name(mapping.protocol).to_owned(),
        port: mapping.port,
        target: mapping.target,
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

fn protocol_of(name: &str) -> Protocol {
    match name {
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

/// Converts an error of the node.
pub(super) fn node_error(error: NodeError) -> CniError {
    let code = match &error {
        NodeError::Pod { error: PodError::InterfaceExists { .. }, .. } => {
            CniError::INTERFACE_EXISTS
        }
        NodeError::Pod { error: PodError::Invalid { field: "netns", .. }, .. } => {
            CniError::ENVIRONMENT
        }
        _ => CniError::SYSTEM,
    };
    CniError::new(code, error.to_string())
}

/// Converts an error of the file system.
pub(super) fn io_error(what: &'static str) -> impl Fn(io::Error) -> CniError {
    move |error| CniError::new(CniError::IO, format!("{what}: {error}"))
}

fn damaged(reason: impl std::fmt::Display) -> CniError {
    CniError::new(CniError::SYSTEM, format!("the lease is damaged: {reason}"))
}
