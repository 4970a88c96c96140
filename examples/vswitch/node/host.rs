//! The node's side: its own port, the routes to its pods, and the masquerading of what leaves the
//! cluster.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use podswitch_core::config::{PortConfig, PortRole};
use podswitch_core::control::ControlPlane;
use podswitch_core::id::PortId;
use podswitch_core::port::Device;
use podswitch_kubernetes::Compiled;
use podswitch_linux::attach::{HostPort, HostPortConfig};
use podswitch_linux::nft::{Masquerade, MasqueradeConfig};
use podswitch_linux::port::tap;
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_wire::cidr::Cidr;

use super::NodeOptions;
use super::pods::set_mtu;
use super::routes::KernelRoutes;
use super::services::{self, ServiceSide};
use super::underlay::Remote;
use super::veth::VethHost;
use crate::cluster::Masquerading;
use crate::failure::Failure;
use crate::print;
use crate::state::MTU;

/// See the module's description.
#[derive(Debug)]
pub(super) struct HostSide {
    port: PortId,
    mtu: u16,
    masquerade: Option<Masquerade>,
    services: ServiceSide,
    by_kernel: KernelRoutes,
    /// The node's addresses as its interfaces have them, where host ports are.
    local: Vec<IpAddr>,
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
        Ok(Self {
            port,
            mtu: MTU,
            masquerade,
            services,
            by_kernel: KernelRoutes::new(&options.namespace),
            local: Vec::new(),
            side,
        })
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
        let role = PortRole::Host { mac, mtu: self.mtu };
        PortConfig { port: self.port, role }
    }

    /// Looks up the addresses at which the node itself is reached, if there are host ports. Says whether
    /// they are others than before.
    pub(super) fn find_addresses(&mut self, options: &NodeOptions, state: &Compiled) -> bool {
        let mut found = Vec::new();
        if !state.config.host_ports.is_empty() {
            // What cannot be read now is read the next time.
            let Ok(there) = Netlink::open(&options.namespace).and_then(|mut n| n.addresses())
            else {
                return false;
            };
            found.extend(there.iter().map(|a| a.address.address()).filter(|a| is_global(*a)));
        }
        found.sort_unstable();
        found.dedup();
        let is_new = found != self.local;
        self.local = found;
        is_new
    }

    /// The addresses found last.
    pub(super) fn local_addresses(&self) -> &[IpAddr] {
        &self.local
    }

    /// Steers to the switch what is for it by a state that is in force.
    pub(super) fn steer(&mut self, control: &ControlPlane) -> Result<(), HostError> {
        self.services.update(&control.snapshot())
    }

    /// Follows a new state, which is in force.
    pub(super) fn update(
        &mut self,
        options: &NodeOptions,
        state: &Compiled,
        remote: Remote,
        control: &ControlPlane,
    ) -> Result<(), HostError> {
        let snapshot = control.snapshot();
        let mut destinations = local_ranges(state);
        if remote == Remote::BySwitch {
            extend_ranges(&mut destinations, remote_ranges(state));
        }
        self.by_kernel.follow(state, remote);
        extend_ranges(&mut destinations, services::ranges(&state.config, &snapshot));
        // The node that calls itself by a Service sees the gateway as its client.
        destinations.push(Cidr::host(state.config.node.gateway.ipv4.into()));
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

    /// Sets the MTU of the node's interface to the switch. Says whether it is another than before.
    pub(super) fn set_mtu(&mut self, options: &NodeOptions, mtu: u16) -> bool {
        if mtu == self.mtu {
            return false;
        }
        self.mtu = mtu;
        let name = HostPortConfig::default().name;
        let of_ours = match &self.side {
            Side::Tap(_) => Ok(()),
            Side::Veth(side) => side.set_mtu(mtu.into()),
        };
        let of_nodes = of_ours.and_then(|()| set_mtu(&options.namespace, &name, mtu.into()));
        if let Err(error) = of_nodes {
            // The switch answers what is too long all the same.
            print::note(error);
        }
        true
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

/// Whether others than the node's own processes and neighbours reach an address.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// Where this node's pods are: its ranges, and pods outside them.
pub(super) fn local_ranges(state: &Compiled) -> Vec<Cidr> {
    let mut ranges = state.config.node.pod_cidrs.clone();
    let addresses = state.pods.iter().flat_map(|pod| &pod.addresses);
    extend(&mut ranges, addresses.copied());
    ranges
}

/// Where other nodes' pods are: those nodes' ranges, and pods outside them.
pub(super) fn remote_ranges(state: &Compiled) -> Vec<Cidr> {
    let config = &state.config;
    let by_name: HashMap<&str, &[Cidr]> =
        config.nodes.iter().map(|node| (&*node.name, &node.pod_cidrs[..])).collect();
    let of_nodes: HashSet<&IpAddr> =
        config.nodes.iter().flat_map(|n| &n.addresses).chain(&config.node.addresses).collect();
    let mut ranges: Vec<Cidr> = by_name.values().copied().flatten().copied().collect();
    for pod in &config.endpoints {
        let Some(of_node) = by_name.get(&*pod.node) else { continue };
        // A pod with its node's network is reached as the node is.
        let outside =
            |a: &&IpAddr| !of_nodes.contains(a) && !of_node.iter().any(|r| r.contains(**a));
        ranges.extend(pod.workload.addresses.iter().filter(outside).map(|a| Cidr::host(*a)));
    }
    ranges.sort_unstable_by_key(|range| (range.address(), range.prefix()));
    ranges.dedup();
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
