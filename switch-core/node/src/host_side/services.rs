//! The node's side of Services, unless kube-proxy implements them. Service traffic in the node's
//! stack is steered to the switch, ports that the switch uses are reserved, and load balancers
//! learn from health checks whether this node has an endpoint.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use podswitch_core::config::{Config, Gateway, NAT_PORTS};
use podswitch_core::control::ControlPlane;
use podswitch_core::port::DeviceFiles;
use podswitch_core::snapshot::Snapshot;
use podswitch_linux::handover::Inherited;
use podswitch_linux::health::{HealthCheck, HealthResponder};
use podswitch_linux::nft::L4Address;
use podswitch_linux::reserve::ReservedPorts;
use podswitch_linux::steer::{self, Steering, SteeringConfig};
use podswitch_linux::{HostError, NetNs};
use podswitch_policy::service::entry::Backend;
use podswitch_policy::service::model::{Service, ServiceType, TrafficPolicy};
use podswitch_policy::service::table::FrontendKind;
use podswitch_wire::cidr::Cidr;

use crate::DEFAULT_MTU;
use crate::events::{Failure, Reporter};
use crate::handover::shared_key;
use crate::view::View;

/// The name of the sockets for health checks among the files that are handed over.
const HEALTH_CHECKS: &str = "health checks";
/// The range of node ports (S14).
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// See the module's description. Failures are reported; the rest of the switch works without the
/// failed part.
#[derive(Debug)]
pub(super) struct ServiceSide {
    namespace: NetNs,
    steering: Option<Steering>,
    /// What steering is to begin with, until there is a state. Until then what an earlier run left is in force.
    planned: Option<SteeringConfig>,
    /// `None`: kube-proxy serves health checks.
    health: Option<HealthResponder>,
    /// Failures of health check ports, each reported once.
    reported: BTreeSet<String>,
    reporter: Reporter,
    reserved: Option<ReservedPorts>,
}

impl ServiceSide {
    /// For a node with a port. Steering begins with the first state.
    pub(super) fn open(namespace: &NetNs, gateway: Gateway, reporter: &Reporter) -> Self {
        let reserved = ReservedPorts::reserve(namespace, &[NODE_PORTS, NAT_PORTS]);
        let report = |failure| reporter.failure(failure);
        Self {
            namespace: namespace.clone(),
            steering: None,
            planned: Some(SteeringConfig { gateway, ..SteeringConfig::default() }),
            health: Some(HealthResponder::new(namespace)),
            reported: BTreeSet::new(),
            reporter: reporter.clone(),
            reserved: reserved.map_err(|error| report(Failure::ReservedPorts(error))).ok(),
        }
    }

    /// With the sockets of a predecessor for health checks.
    pub(super) fn with_sockets(mut self, sockets: Vec<OwnedFd>) -> Self {
        if let Some(health) = &mut self.health {
            health.inherit(sockets);
        }
        self
    }

    /// The sockets for health checks, for a successor.
    pub(super) fn socket_files(&self) -> Vec<DeviceFiles> {
        let files = self.health.iter().flat_map(HealthResponder::sockets).map(Arc::new).collect();
        vec![DeviceFiles { key: shared_key(HEALTH_CHECKS), files }]
    }

    /// For a node that is being taken over: all of this is still the predecessor's.
    pub(super) fn of_predecessor(namespace: &NetNs, reporter: &Reporter) -> Self {
        Self {
            namespace: namespace.clone(),
            steering: None,
            planned: None,
            health: None,
            reported: BTreeSet::new(),
            reporter: reporter.clone(),
            reserved: None,
        }
    }

    /// For a node where kube-proxy implements Services: only the ports of source NAT are reserved.
    pub(super) fn beside_kube_proxy(namespace: &NetNs, reporter: &Reporter) -> Self {
        // What an earlier run steered is kube-proxy's now. Usually there is nothing, and without nf_tables never.
        let _ = steer::forget(namespace);
        let reserved = ReservedPorts::reserve(namespace, &[NAT_PORTS]);
        let report = |error| reporter.failure(Failure::ReservedPorts(error));
        Self {
            namespace: namespace.clone(),
            steering: None,
            planned: None,
            health: None,
            reported: BTreeSet::new(),
            reporter: reporter.clone(),
            reserved: reserved.map_err(report).ok(),
        }
    }

    /// Applies the state in force.
    pub(super) fn follow(&mut self, snapshot: &Snapshot) -> Result<(), HostError> {
        if self.steering.is_none() && self.planned.is_none() {
            return Ok(());
        }
        let mut service_addresses: Vec<L4Address> = snapshot
            .services
            .frontends()
            // Cluster IPs need no steering: they are routed to the switch.
            .filter(|front| front.kind != FrontendKind::ClusterIp)
            .map(|front| L4Address {
                address: front.address,
                protocol: front.protocol.number(),
                port: front.port,
            })
            .collect();
        service_addresses.sort_unstable();
        let mut servers: Vec<L4Address> = snapshot
            .services
            .frontends()
            .filter(|front| front.entry.external_policy == TrafficPolicy::Local)
            .flat_map(|front| {
                let own = |b: &&Backend| snapshot.node_addresses.contains(&b.address);
                let protocol = front.protocol.number();
                let server =
                    move |b: &Backend| L4Address { address: b.address, protocol, port: b.port };
                front.entry.backends().iter().filter(own).map(server)
            })
            .collect();
        servers.sort_unstable();
        servers.dedup();
        let mtu = snapshot.host.map_or(DEFAULT_MTU, |host| host.mtu);
        let sources = sources(snapshot).collect();
        if let Some(steering) = &mut self.steering {
            steering.update(mtu, sources, (service_addresses, servers))?;
        } else if let Some(planned) = self.planned.take() {
            let config = SteeringConfig { mtu, sources, service_addresses, servers, ..planned };
            match Steering::install(&self.namespace, config) {
                Ok(steering) => self.steering = Some(steering),
                Err(error) => self.reporter.failure(Failure::Steering(error)),
            }
        }
        let failure = self.steering.as_mut().and_then(Steering::take_loopback_failure);
        if let Some(error) = failure {
            self.reporter.failure(Failure::HostPortsAtLoopback(error));
        }
        Ok(())
    }

    /// Leaves everything in force when this is dropped, for the next run.
    pub(super) fn leave_in_force(&mut self) {
        if let Some(steering) = &mut self.steering {
            steering.leave_in_force();
        }
        if let Some(reserved) = &mut self.reserved {
            reserved.leave_in_force();
        }
    }

    /// Restores removed settings. Returns a description of each.
    pub(super) fn repair(&mut self) -> Result<Vec<String>, HostError> {
        let mut done = Vec::new();
        if let Some(steering) = &mut self.steering {
            done = steering.reconcile()?;
        }
        if let Some(reserved) = &mut self.reserved {
            done.extend(reserved.reconcile()?);
        }
        Ok(done)
    }

    /// Updates health checks; retries sockets that could not be opened.
    pub(super) fn reconcile(&mut self, control: &ControlPlane) {
        let Some(health) = &mut self.health else { return };
        let addresses = control.snapshot().node_addresses.clone();
        let checks = control.health_checks().into_iter().map(|check| HealthCheck {
            port: check.port,
            namespace: check.service.namespace,
            name: check.service.name,
            local_endpoints: check.local_endpoints,
        });
        let failed = match health.update(&addresses, checks) {
            Ok(failed) => failed,
            Err(error) => vec![error],
        };
        for error in failed {
            if self.reported.insert(error.to_string()) {
                self.reporter.failure(Failure::HealthCheck(error));
            }
        }
    }
}

/// A predecessor's sockets for health checks.
pub(super) fn health_sockets(inherited: &Inherited) -> Vec<OwnedFd> {
    inherited.take(&shared_key(HEALTH_CHECKS))
}

/// Source addresses that the switch uses: the node's, and those of its own masquerading.
pub(crate) fn sources(snapshot: &Snapshot) -> impl Iterator<Item = IpAddr> {
    let masquerade = snapshot.masquerade.as_ref();
    let ipv4 = masquerade.and_then(|m| m.ipv4).map(IpAddr::V4);
    let ipv6 = masquerade.and_then(|m| m.ipv6).map(IpAddr::V6);
    snapshot.node_addresses.iter().copied().chain(ipv4).chain(ipv6)
}

/// Service destinations for the node's own processes, except its own addresses: the Service ranges,
/// and addresses of Services outside them that no node or pod has.
pub(super) fn ranges(view: View<'_>, snapshot: &Snapshot) -> BTreeSet<Cidr> {
    let ranges = &view.settings().service_cidrs;
    let mut outside: BTreeSet<IpAddr> = snapshot
        .services
        .frontends()
        // Host ports are at addresses of the node.
        .filter(|front| front.kind != FrontendKind::HostPort)
        .map(|front| front.address)
        .filter(|address| {
            !ranges.iter().any(|range| range.contains(*address))
                && !snapshot.endpoints.contains_key(address)
        })
        .collect();
    if !outside.is_empty() {
        let nodes = view.nodes().flat_map(|node| &node.addresses);
        for address in nodes.chain(&view.settings().node.addresses) {
            outside.remove(address);
        }
    }
    ranges.iter().copied().chain(outside.into_iter().map(Cidr::host)).collect()
}

/// Whether a Service affects the node's kernel: it has addresses other than cluster IPs in the
/// Service ranges.
pub(super) fn concerns_kernel(service: &Service, settings: &Config) -> bool {
    let in_ranges = |a: &IpAddr| settings.service_cidrs.iter().any(|range| range.contains(*a));
    service.kind != ServiceType::ClusterIp
        || !service.external_ips.is_empty()
        || !service.ingress.is_empty()
        || service.health_check_node_port.is_some()
        || service.ports.iter().any(|port| port.node_port.is_some())
        || !service.cluster_ips.iter().all(in_ranges)
}
