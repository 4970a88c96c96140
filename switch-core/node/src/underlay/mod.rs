//! The connection to other nodes: the tunnel's sockets or interface, and the interface on which
//! off-cluster clients of Services arrive.
//!
//! With [`UnderlayKind::Udp`](crate::UnderlayKind::Udp) the tunnel goes through sockets of the
//! node's own stack. With [`UnderlayKind::Packet`](crate::UnderlayKind::Packet) it uses frames on
//! the uplink, which bypass the node's stack; the kernel only resolves neighbours. Other traffic of
//! the switch on the uplink is dropped in the node's stack as well, and nothing else is.

mod claimed;
mod neighbours;
mod plan;

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;

use podswitch_core::config::{Config, NextHop, PortConfig, PortRole, RemoteNode, Routing};
use podswitch_core::control::{ControlError, ControlPlane};
use podswitch_core::id::PortId;
use podswitch_core::port::Device;
use podswitch_core::snapshot::Snapshot;
use podswitch_linux::handover::Inherited;
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::port::udp_tunnel::{UdpTunnelConfig, UdpTunnelDevice};
use podswitch_linux::port::underlay_mac;
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_vxlan::template::inner_mtu;
use podswitch_wire::addr::Mac;

use self::claimed::Claimed;
use self::neighbours::Neighbours;
use self::plan::{InterfacePlan, Plan, SocketsPlan, clamped, needs_ipv6};
use crate::DEFAULT_MTU;
use crate::error::UnderlayError;
use crate::events::{Failure, Reporter};
use crate::host_side::RemotePods;
use crate::options::{Settings, UnderlayOptions};
use crate::pods::{BUSY_PAUSE, BUSY_RETRIES, EBUSY};
use crate::ranges::Ranges;
use crate::view::View;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Underlay {
    options: UnderlayOptions,
    namespace: NetNs,
    inherited: Inherited,
    plan: Plan,
    sockets: Option<Open<SocketsPlan>>,
    interface: Option<Open<InterfacePlan>>,
    /// Ports to leave out of the next configuration, and to detach then.
    outdated: Vec<PortId>,
    /// Whether the configuration of an open port changed.
    renewed: bool,
    /// Whether workers may still hold a detached port.
    is_busy: bool,
    neighbours: Neighbours,
    claimed: Claimed,
    /// Why the underlay is incomplete; reported already.
    error: Option<UnderlayError>,
    reporter: Reporter,
}

/// A port, and the plan that it was opened for.
#[derive(Debug)]
struct Open<P> {
    port: PortId,
    plan: P,
    mac: Mac,
    /// The interface through which the kernel gets unsegmented GSO packets, if any.
    offload: Option<String>,
}

/// What other nodes' MAC addresses on the underlay depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeContext {
    by_sockets: bool,
    /// The version of the known neighbours, if frames carry the tunnel.
    neighbours: Option<u64>,
}

/// Removes the drops on the uplink that an earlier run left.
pub(crate) fn forget(namespace: &NetNs) {
    claimed::forget(namespace);
}

impl Underlay {
    /// Nothing is opened yet.
    pub(crate) fn new(settings: &Settings, reporter: &Reporter) -> Result<Self, HostError> {
        if settings.underlay.uplink.is_none() && !settings.inherited.has_predecessor() {
            // Left by a killed run with an uplink.
            claimed::forget(&settings.namespace);
        }
        Ok(Self {
            options: settings.underlay.clone(),
            namespace: settings.namespace.clone(),
            inherited: settings.inherited.clone(),
            plan: Plan::default(),
            sockets: None,
            interface: None,
            outdated: Vec::new(),
            renewed: false,
            is_busy: false,
            neighbours: Neighbours::open(&settings.namespace)?,
            claimed: Claimed::default(),
            error: None,
            reporter: reporter.clone(),
        })
    }

    /// Why the underlay that the options require is missing, for which the start fails.
    pub(crate) fn required_but_missing(&self) -> Option<&UnderlayError> {
        self.error.as_ref().filter(|_| self.options.is_required())
    }

    /// There is no predecessor any more. The drops on an uplink that this run does not have were its.
    pub(crate) fn forget_inherited(&mut self) {
        self.inherited = Inherited::default();
        if self.options.uplink.is_none() {
            claimed::forget(&self.namespace);
        }
    }

    /// Computes the wanted underlay for a configuration and the node's present interfaces. Ports that do not
    /// fit are left out of the next configuration; returns whether there are any.
    pub(crate) fn plan(&mut self, view: View<'_>) -> bool {
        self.plan = Plan::find(&self.options, view, || Netlink::open(&self.namespace));
        if let Some(open) = self.sockets.take_if(|open| {
            self.plan.sockets.as_ref() != Some(&open.plan) || offload_is_gone(&self.namespace, open)
        }) {
            self.outdated.push(open.port);
        }
        let fits = |wanted: &Option<InterfacePlan>, open: &InterfacePlan| {
            wanted.as_ref().is_some_and(|wanted| wanted.fits(open))
        };
        if let Some(open) = self.interface.take_if(|open| !fits(&self.plan.interface, &open.plan)) {
            self.outdated.push(open.port);
        }
        if let (Some(open), Some(wanted)) = (&mut self.interface, &self.plan.interface) {
            let mac = wanted.link.mac.unwrap_or_default();
            self.renewed |= (mac, wanted.tunnel) != (open.mac, open.plan.tunnel);
            (open.mac, open.plan) = (mac, wanted.clone());
        }
        !self.outdated.is_empty()
    }

    /// Whether other nodes may come and go without a new configuration of the underlay: the
    /// tunnel's sockets are open, and no neighbours are looked up.
    pub(crate) fn is_independent_of_nodes(&self) -> bool {
        self.sockets.is_some() && self.plan.interface.is_none()
    }

    /// Whether MAC addresses on the uplink are looked up.
    pub(crate) fn needs_neighbours(&self) -> bool {
        self.interface.is_some()
    }

    /// Detaches the ports that [`plan`](Self::plan) found outdated.
    pub(crate) fn detach(&mut self, control: &mut ControlPlane) {
        for port in self.outdated.drain(..) {
            self.is_busy = true;
            // It is attached, since it is in the list.
            let _ = control.detach(port);
        }
    }

    /// Records that a port failed, if it is one of the underlay's; [`attach`](Self::attach) opens another.
    pub(crate) fn has_failed(&mut self, port: PortId, error: &std::io::Error) -> bool {
        let of_sockets = self.sockets.take_if(|open| open.port == port).is_some();
        if of_sockets || self.interface.take_if(|open| open.port == port).is_some() {
            let error = std::io::Error::new(error.kind(), error.to_string());
            self.reporter.failure(match of_sockets {
                true => Failure::TunnelSockets(error),
                false => Failure::Uplink(error),
            });
            self.outdated.push(port);
            return true;
        }
        false
    }

    /// Opens missing ports. Returns whether any was opened; failures are reported.
    pub(crate) fn attach(&mut self, control: &mut ControlPlane) -> bool {
        let mut changed = std::mem::take(&mut self.renewed);
        let mut failed = self.plan.error.clone();
        if let (None, Some(plan)) = (&self.sockets, self.plan.sockets.clone()) {
            match self.open_sockets(control, plan) {
                Ok(open) => (self.sockets, changed) = (Some(open), true),
                Err(reason) => failed = Some(UnderlayError::Sockets(reason)),
            }
        }
        if let (None, Some(plan)) = (&self.interface, self.plan.interface.clone()) {
            let interface = plan.link.name.clone();
            match self.open_interface(control, plan) {
                Ok(open) => (self.interface, changed) = (Some(open), true),
                Err(reason) => failed = Some(UnderlayError::Uplink { interface, reason }),
            }
        }
        self.is_busy = false;
        if let Some(error) = failed.as_ref().filter(|error| self.error.as_ref() != Some(error)) {
            self.reporter.failure(Failure::Underlay(error.clone()));
        }
        self.error = failed;
        changed
    }

    fn open_sockets(
        &self,
        control: &mut ControlPlane,
        plan: SocketsPlan,
    ) -> Result<Open<SocketsPlan>, String> {
        let config = UdpTunnelConfig {
            port: plan.port,
            mtu: Some(plan.mtu),
            inner_mtu: Some(plan.inner_mtu),
            inherited: self.inherited.clone(),
            ..UdpTunnelConfig::new(&plan.addresses)
        };
        // Workers close a port some time after the command; until then its UDP port and its TAP are
        // in use.
        let mut tries = if self.is_busy { BUSY_RETRIES } else { 0 };
        loop {
            let device = UdpTunnelDevice::new(&self.namespace, config.clone());
            let device = device.map_err(|e| e.to_string())?;
            let is_busy =
                device.offload_error().is_some_and(|error| error.raw_os_error() == Some(EBUSY));
            if is_busy && tries > 0 {
                tries -= 1;
                thread::sleep(BUSY_PAUSE);
                continue;
            }
            let offload_error = device.offload_error().map(ToString::to_string);
            let offload = device.offload_interface();
            let mac = device.info().mac.unwrap_or_default();
            match control.attach(Box::new(device)) {
                Ok(port) => {
                    control.name_port(port, "tunnel");
                    if let Some(reason) = offload_error {
                        self.reporter.failure(Failure::TunnelOffload(reason));
                    }
                    return Ok(Open { port, plan, mac, offload });
                }
                Err(ControlError::Open { source, .. })
                    if source.kind() == ErrorKind::AddrInUse && tries > 0 =>
                {
                    tries -= 1;
                    thread::sleep(BUSY_PAUSE);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn open_interface(
        &mut self,
        control: &mut ControlPlane,
        plan: InterfacePlan,
    ) -> Result<Open<InterfacePlan>, String> {
        let tunnel = self.plan.tunnel.as_ref().filter(|_| plan.tunnel).map(|tunnel| tunnel.port);
        let without = plan.without;
        let inherited = self.inherited.clone();
        let config = PacketConfig {
            promiscuous: false,
            tunnel,
            without,
            inherited,
            ..PacketConfig::default()
        };
        let name = &plan.link.name;
        let device = PacketDevice::new(&self.namespace, name, config).map_err(|e| e.to_string())?;
        let mac = plan.link.mac.unwrap_or_default();
        let port = control.attach(Box::new(device)).map_err(|e| e.to_string())?;
        control.name_port(port, &format!("uplink {name}"));
        Ok(Open { port, plan, mac, offload: None })
    }

    /// MTU of pods and of the node's own port, in bytes.
    pub(crate) fn mtu(&self, view: View<'_>) -> u16 {
        if let Some(mtu) = self.options.mtu {
            return mtu;
        }
        let by_interface = self.interface.as_ref().filter(|open| open.plan.tunnel);
        let tunnel = match (&self.sockets, by_interface) {
            (Some(open), _) => Some(open.plan.mtu),
            (None, Some(open)) => Some(open.plan.link.mtu),
            (None, None) => None,
        };
        match (tunnel, &self.interface) {
            (Some(mtu), _) => inner_mtu(clamped(mtu).into(), needs_ipv6(view)) as u16,
            // Packets without encapsulation use the whole MTU.
            (None, Some(open)) => clamped(open.plan.link.mtu),
            (None, None) => DEFAULT_MTU,
        }
    }

    /// Reads the MAC addresses of other nodes and next hops from the kernel, and starts resolution
    /// of those that it does not know. Returns whether any changed.
    pub(crate) fn find_neighbours(&mut self, view: View<'_>) -> bool {
        let Some(open) = &self.interface else { return self.neighbours.forget() };
        let is_direct = self.plan.tunnel.as_ref().is_some_and(|t| t.routing == Routing::HostGw);
        let nodes = (open.plan.tunnel || is_direct).then(|| view.nodes()).into_iter().flatten();
        let of_nodes = nodes.flat_map(|node| node.addresses.iter().copied());
        let of_routes = view.routes().flat_map(|r| &r.next_hops);
        let hops = of_routes.filter_map(|hop| match hop {
            NextHop::Via(address) => Some(*address),
            _ => None,
        });
        self.neighbours.follow(open.plan.link.index, of_nodes.chain(hops))
    }

    /// Whether the node's interfaces, routes or neighbours changed since the last call.
    pub(crate) fn has_changed(&mut self) -> bool {
        self.neighbours.has_changed()
    }

    /// The roles of its ports.
    pub(crate) fn ports(&self) -> impl Iterator<Item = PortConfig> {
        let sockets = self.sockets.as_ref().map(|Open { port, plan, mac, .. }| {
            let (mac, mtu) = (*mac, clamped(plan.mtu));
            let role = PortRole::Uplink { mac, mtu, tunnel: true, direct: false };
            PortConfig { port: *port, role }
        });
        let interface = self.interface.as_ref().map(|Open { port, plan, mac, .. }| {
            let (mac, mtu) = (*mac, clamped(plan.link.mtu));
            let role = PortRole::Uplink { mac, mtu, tunnel: plan.tunnel, direct: true };
            PortConfig { port: *port, role }
        });
        sockets.into_iter().chain(interface)
    }

    /// Writes tunnel and neighbours into a configuration.
    pub(crate) fn complete(&self, settings: &mut Config) {
        settings.tunnel.clone_from(&self.plan.tunnel);
        settings.neighbours.clear();
        if self.interface.is_some() {
            settings.neighbours.extend(self.neighbours.known());
        }
    }

    /// What [`complete_node`](Self::complete_node) depends on besides the node.
    pub(crate) fn node_context(&self) -> NodeContext {
        let by_interface = self.interface.as_ref().is_some_and(|open| open.plan.tunnel);
        NodeContext {
            by_sockets: self.sockets.is_some(),
            neighbours: by_interface.then(|| self.neighbours.version()),
        }
    }

    /// Sets the MAC address of another node on the underlay, unless its object has one.
    ///
    /// Over UDP sockets the port ignores the address, but a packet to a node without one has no
    /// neighbour. Over an interface the address that is derived from the IP address exists on no
    /// real network: without a known neighbour a drop reason is better than silence.
    pub(crate) fn complete_node(&self, node: &mut Arc<RemoteNode>) {
        let Some(address) = node.addresses.first().copied() else { return };
        let is_derived =
            node.underlay_mac == Mac::ZERO || has_derived_mac(node.underlay_mac, &node.addresses);
        if !is_derived {
            return;
        }
        let by_interface = self.interface.as_ref().is_some_and(|open| open.plan.tunnel);
        let mac = if self.sockets.is_some() {
            underlay_mac(address)
        // Both families: there may be a tunnel over each.
        } else if by_interface && !node.addresses.iter().all(|a| self.neighbours.has(*a)) {
            Mac::ZERO
        } else {
            return;
        };
        if node.underlay_mac != mac {
            Arc::make_mut(node).underlay_mac = mac;
        }
    }

    /// Drops in the node's stack what the switch handles on the uplink.
    pub(crate) fn claim(&mut self, view: View<'_>, ranges: &Ranges, snapshot: &Snapshot) {
        let (namespace, reporter) = (&self.namespace, &self.reporter);
        let Some(open) = &self.interface else { return self.claimed.remove(namespace, reporter) };
        let tunnel = self.plan.tunnel.as_ref();
        let drops = claimed::of(view, &ranges.lists(), snapshot, tunnel, open.plan.tunnel);
        self.claimed.follow(namespace, &open.plan.link, drops, reporter);
    }

    /// Puts back what keeps it away, if somebody took it.
    ///
    /// # Errors
    /// Missing privilege; the uplink is gone.
    pub(crate) fn repair(&mut self) -> Result<(), HostError> {
        self.claimed.repair(&self.namespace, &self.reporter)
    }

    /// Removes the drops: the node's stack gets all packets again.
    pub(crate) fn stop(mut self) {
        self.claimed.remove(&self.namespace, &self.reporter);
    }

    /// How other nodes' pods are reached by the node's own processes.
    pub(crate) fn remote_pods(&self) -> RemotePods {
        match &self.plan.tunnel {
            None => RemotePods::NotOurs,
            Some(tunnel) if tunnel.routing == Routing::HostGw && self.interface.is_none() => {
                RemotePods::ByKernel
            }
            Some(_) => RemotePods::BySwitch,
        }
    }
}

/// Whether the interface for unsegmented GSO packets was deleted or is down: then the sockets carry
/// all packets, at a higher cost.
fn offload_is_gone(namespace: &NetNs, open: &Open<SocketsPlan>) -> bool {
    let Some(name) = &open.offload else { return false };
    let found = Netlink::open(namespace).and_then(|mut netlink| netlink.find_link(name));
    found.is_ok_and(|link| link.is_none_or(|link| !link.is_up))
}

/// Whether a MAC address is the default that is derived from the node's IP address.
fn has_derived_mac(mac: Mac, addresses: &[IpAddr]) -> bool {
    let first = addresses.iter().find(|a| a.is_ipv4()).or(addresses.first());
    first.is_some_and(|first| underlay_mac(*first) == mac)
}
