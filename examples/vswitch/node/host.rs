//! The node's side: its own port, the routes to its pods, and the masquerading of what leaves the
//! cluster.

use std::collections::HashSet;
use std::net::IpAddr;

use kubernetes::Compiled;
use switch_core::config::{PortConfig, PortRole};
use switch_core::control::ControlPlane;
use switch_core::host::nft::{Masquerade, MasqueradeConfig};
use switch_core::host::pod::{HostPort, HostPortConfig};
use switch_core::host::{HostError, NetNs, Netlink};
use switch_core::id::PortId;
use switch_core::port::{Device, tap};
use wire::cidr::Cidr;

use super::NodeOptions;
use super::services::{self, ServiceSide};
use super::veth::VethHost;
use crate::cluster::Masquerading;
use crate::failure::Failure;
use crate::state::MTU;

/// See the module's description.
#[derive(Debug)]
pub(super) struct HostSide {
    port: PortId,
    masquerade: Option<Masquerade>,
    services: ServiceSide,
    /// Last, so that nothing is steered to an interface that is gone.
    side: Side,
}

#[derive(Debug)]
enum Side {
    Tap(HostPort),
    Veth(VethHost),
}

impl HostSide {
    /// Makes the node's port and attaches it. Routes and masquerading are those of `state`.
    /// Without TAP it is a veth pair with an end in the switch's namespace.
    pub(super) fn open(
        options: &NodeOptions,
        state: &Compiled,
        control: &mut ControlPlane,
        own_namespace: impl FnOnce() -> Result<NetNs, HostError>,
    ) -> Result<Self, Failure> {
        let config = HostPortConfig {
            mac: Some(state.config.node.underlay_mac).filter(|mac| mac.is_unicast()),
            mtu: u32::from(MTU),
            multi_queue: options.workers > 1,
            node_addresses: present(options, state)?,
            gateway: state.config.node.gateway,
            destinations: local_ranges(state),
            ..HostPortConfig::default()
        };
        let (side, device): (_, Box<dyn Device>) = if tap::is_available().is_ok() {
            let (side, device) = HostPort::open(&options.namespace, config)?;
            (Side::Tap(side), Box::new(device))
        } else {
            let (side, device) = VethHost::open(&options.namespace, &own_namespace()?, config)?;
            (Side::Veth(side), Box::new(device))
        };
        let port = control.attach(device)?;
        let masquerade = match options.masquerade {
            Masquerading::Off | Masquerading::Switch { .. } => None,
            Masquerading::Kernel => {
                Some(Masquerade::install(&options.namespace, &rules(options, state))?)
            }
        };
        let services = ServiceSide::open(&options.namespace, state.config.node.gateway);
        Ok(Self { port, masquerade, services, side })
    }

    /// The port's number.
    pub(super) fn port(&self) -> PortId {
        self.port
    }

    /// What the switch is told of the port.
    pub(super) fn config(&self) -> PortConfig {
        let mac = match &self.side {
            Side::Tap(side) => side.mac(),
            Side::Veth(side) => side.mac(),
        };
        let role = PortRole::Host { mac, mtu: MTU };
        PortConfig { port: self.port, role }
    }

    /// Follows a new state, which is in force.
    pub(super) fn update(
        &mut self,
        options: &NodeOptions,
        state: &Compiled,
        control: &ControlPlane,
    ) -> Result<(), HostError> {
        let snapshot = control.snapshot();
        let mut destinations = local_ranges(state);
        extend_ranges(&mut destinations, services::ranges(&state.config, &snapshot));
        match &mut self.side {
            Side::Tap(side) => side.set_destinations(destinations)?,
            Side::Veth(side) => side.set_destinations(destinations)?,
        }
        self.services.update(&snapshot)?;
        self.tend(control);
        match &mut self.masquerade {
            Some(masquerade) => masquerade.update(&rules(options, state)),
            None => Ok(()),
        }
    }

    /// Looks after what may be missing still.
    pub(super) fn tend(&mut self, control: &ControlPlane) {
        self.services.tend(control);
    }
}

/// The node's addresses that its interfaces have: only those can be the source of what it sends.
fn present(options: &NodeOptions, state: &Compiled) -> Result<Vec<IpAddr>, HostError> {
    let there = Netlink::open(&options.namespace)?.addresses()?;
    let is_there = |address: &&IpAddr| there.iter().any(|a| a.address.address() == **address);
    Ok(state.config.node.addresses.iter().filter(is_there).copied().collect())
}

/// Where this node's pods are: its ranges, and pods outside them.
fn local_ranges(state: &Compiled) -> Vec<Cidr> {
    let mut ranges = state.config.node.pod_cidrs.clone();
    let addresses = state.pods.iter().flat_map(|pod| &pod.addresses);
    extend(&mut ranges, addresses.copied());
    ranges
}

/// The whole cluster: pods and nodes, and what was said to belong to it.
fn cluster_ranges(options: &NodeOptions, state: &Compiled) -> Vec<Cidr> {
    let mut ranges = options.cluster.clone();
    let (local, nodes) = (&state.config.node, &state.config.nodes);
    ranges.extend(local.pod_cidrs.iter().chain(nodes.iter().flat_map(|node| &node.pod_cidrs)));
    let addresses = local.addresses.iter().chain(nodes.iter().flat_map(|node| &node.addresses));
    extend(&mut ranges, addresses.copied());
    let pods = state.config.endpoints.iter().flat_map(|pod| &pod.workload.addresses);
    extend(&mut ranges, pods.copied());
    ranges
}

/// Adds the ranges that are not there yet.
fn extend_ranges(ranges: &mut Vec<Cidr>, more: Vec<Cidr>) {
    let known: HashSet<Cidr> = ranges.iter().copied().collect();
    ranges.extend(more.into_iter().filter(|range| !known.contains(range)));
}

/// Adds the addresses that no range holds yet.
fn extend(ranges: &mut Vec<Cidr>, addresses: impl Iterator<Item = IpAddr>) {
    let mut more: Vec<IpAddr> =
        addresses.filter(|address| !ranges.iter().any(|r| r.contains(*address))).collect();
    more.sort_unstable();
    more.dedup();
    ranges.extend(more.into_iter().map(Cidr::host));
}

fn rules(options: &NodeOptions, state: &Compiled) -> MasqueradeConfig {
    MasqueradeConfig {
        pods: local_ranges(state),
        cluster: cluster_ranges(options, state),
        ..MasqueradeConfig::default()
    }
}
