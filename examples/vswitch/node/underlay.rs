//! What joins the node to the others: the tunnel's sockets or interface, and the interface by which
//! off-cluster clients of Services come.
//!
//! With `udp` the tunnel goes through sockets of the node's own stack. With `packet` it goes by
//! the uplink as frames, of which the node's stack sees none; the kernel only finds out
//! where the other nodes are. What else the switch takes from the uplink (its direct traffic) is kept
//! from the node's stack as well, and nothing more than that.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{Config, NextHop, PortConfig, PortRole, Routing, TunnelConfig};
use podswitch_core::control::ControlPlane;
use podswitch_core::id::PortId;
use podswitch_core::port::Device;
use podswitch_core::snapshot::Snapshot;
use podswitch_kubernetes::Compiled;
use podswitch_linux::netlink::{Address, Link};
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::port::udp_tunnel::{UdpTunnelConfig, UdpTunnelDevice};
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_vxlan::template::inner_mtu;
use podswitch_wire::addr::Mac;

use super::NodeOptions;
use super::neighbours::Neighbours;
use super::taken::{self, Taken};
use crate::print;
use crate::state::MTU;

/// The most nodes asked for the way to them where the tunnel's address is no interface's own.
const ASKED: usize = 16;

/// What tunnel packets go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnderlayKind {
    /// UDP sockets of the node's stack.
    Udp,
    /// Frames by the uplink.
    Packet,
}

/// What is chosen of the underlay when a switch is started.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnderlayOptions {
    /// `None`: UDP sockets, once there are other nodes.
    pub(crate) kind: Option<UnderlayKind>,
    /// The interface for direct traffic, and with [`UnderlayKind::Packet`] for the tunnel.
    pub(crate) uplink: Option<String>,
    /// MTU of pods and of the node's own port. `None`: what the underlay leaves of its own.
    pub(crate) mtu: Option<u16>,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Underlay {
    options: UnderlayOptions,
    namespace: NetNs,
    plan: Plan,
    sockets: Option<Open<SocketsPlan>>,
    interface: Option<Open<InterfacePlan>>,
    /// Ports that are not to be told of any more, and then to be detached.
    outdated: Vec<PortId>,
    /// Whether what is told of a port changed, but not the port.
    renewed: bool,
    neighbours: Neighbours,
    taken: Taken,
    /// Why there is not what there should be; told already.
    trouble: Option<String>,
}

/// What there should be for a state.
#[derive(Debug, Default)]
struct Plan {
    tunnel: Option<TunnelConfig>,
    sockets: Option<SocketsPlan>,
    interface: Option<InterfacePlan>,
    trouble: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SocketsPlan {
    addresses: Vec<IpAddr>,
    port: u16,
    mtu: u32,
    /// What pods take at least.
    inner_mtu: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct InterfacePlan {
    link: Link,
    tunnel: bool,
    /// The UDP port of the tunnel, if sockets carry it.
    without: Option<u16>,
}

impl InterfacePlan {
    /// Whether a device that was opened for the one serves the other.
    fn fits(&self, other: &Self) -> bool {
        self.link.index == other.link.index
            && self.link.mtu == other.link.mtu
            && (self.tunnel, self.without) == (other.tunnel, other.without)
    }
}

/// A port, and what it was opened for.
#[derive(Debug)]
struct Open<P> {
    port: PortId,
    plan: P,
    mac: Mac,
}

impl Underlay {
    /// Nothing is opened yet.
    pub(super) fn new(options: &NodeOptions) -> Result<Self, HostError> {
        if options.underlay.uplink.is_none() {
            // What a killed run with an uplink left.
            taken::forget(&options.namespace);
        }
        Ok(Self {
            options: options.underlay.clone(),
            namespace: options.namespace.clone(),
            plan: Plan::default(),
            sockets: None,
            interface: None,
            outdated: Vec::new(),
            renewed: false,
            neighbours: Neighbours::open(&options.namespace)?,
            taken: Taken::default(),
            trouble: None,
        })
    }

    /// Whether somebody asked for it by an option, so that a start without it is none.
    pub(super) fn is_asked_for(&self) -> bool {
        self.options.kind.is_some() || self.options.uplink.is_some()
    }

    /// Why there is not what there should be.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Finds out what there should be for a state, as the node is now. What is there and does not
    /// fit is not told of any more; says whether there is such.
    pub(super) fn plan(&mut self, state: &Compiled) -> bool {
        let tunnel = state.config.tunnel.clone().filter(|_| self.is_needed(state));
        self.plan = match self.find(state, tunnel.as_ref()) {
            Ok((sockets, interface)) => Plan { tunnel, sockets, interface, trouble: None },
            Err(trouble) => Plan { tunnel, trouble: Some(trouble), ..Plan::default() },
        };
        if let Some(open) =
            self.sockets.take_if(|open| self.plan.sockets.as_ref() != Some(&open.plan))
        {
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

    /// Whether there is anybody to reach, or somebody asked for it all the same.
    fn is_needed(&self, state: &Compiled) -> bool {
        let others = state.config.nodes.iter().any(|node| !node.addresses.is_empty());
        others || self.options.kind.is_some()
    }

    fn find(
        &self,
        state: &Compiled,
        tunnel: Option<&TunnelConfig>,
    ) -> Result<(Option<SocketsPlan>, Option<InterfacePlan>), String> {
        let mut netlink = Netlink::open(&self.namespace).map_err(|e| e.to_string())?;
        let through = tunnel.filter(|tunnel| tunnel.routing == Routing::Vxlan);
        let kind = self.options.kind.unwrap_or(UnderlayKind::Udp);
        let interface = match &self.options.uplink {
            None => None,
            Some(name) => {
                let link = netlink.link(name).map_err(|e| format!("--uplink {name}: {e}"))?;
                if !link.mac.is_some_and(Mac::is_unicast) {
                    return Err(format!("--uplink {name}: it is not an Ethernet interface"));
                }
                if !link.is_up {
                    return Err(format!("--uplink {name}: the interface is switched off"));
                }
                let tunnel = through.is_some() && kind == UnderlayKind::Packet;
                let by_sockets = through.filter(|_| kind == UnderlayKind::Udp);
                Some(InterfacePlan { link, tunnel, without: by_sockets.map(|t| t.port) })
            }
        };
        let sockets = match through {
            Some(tunnel) if kind == UnderlayKind::Udp => {
                Some(self.sockets(state, tunnel, &mut netlink)?)
            }
            _ => None,
        };
        Ok((sockets, interface))
    }

    fn sockets(
        &self,
        state: &Compiled,
        tunnel: &TunnelConfig,
        netlink: &mut Netlink,
    ) -> Result<SocketsPlan, String> {
        let node = &state.config.node;
        let ends = [false, true].map(|v6| node.addresses.iter().find(|a| a.is_ipv6() == v6));
        let addresses: Vec<IpAddr> = ends.into_iter().flatten().copied().collect();
        if addresses.is_empty() {
            let reason = "its Node object has no InternalIP, which the tunnel would begin at";
            return Err(format!("--underlay udp: {}: {reason}", node.name));
        }
        let known = netlink.addresses().map_err(|e| e.to_string())?;
        let links = netlink.links().map_err(|e| e.to_string())?;
        let mut mtu = u32::MAX;
        for address in &addresses {
            let Some(link) = link_of(*address, &known, &links) else {
                return Err(format!(
                    "--underlay udp: no interface has the node's InternalIP {address}"
                ));
            };
            // An address of no network: what its packets leave by is another question.
            let of_ways =
                if link.name == "lo" { way_mtu(state, netlink, &links) } else { link.mtu };
            mtu = mtu.min(of_ways);
        }
        let has_ipv6 = addresses.iter().any(IpAddr::is_ipv6);
        let least = inner_mtu(clamped(mtu).into(), has_ipv6) as u16;
        let inner_mtu = self.options.mtu.map_or(least, |mtu| mtu.min(least));
        Ok(SocketsPlan { addresses, port: tunnel.port, mtu, inner_mtu })
    }

    /// Detaches what does not fit any more, of which nobody is told now.
    pub(super) fn detach(&mut self, control: &mut ControlPlane) {
        for port in self.outdated.drain(..) {
            // It is attached, or it would not be in the list.
            let _ = control.detach(port);
        }
    }

    /// Takes down that a port failed, if it is one of these: another is opened when that can be.
    pub(super) fn has_failed(&mut self, port: PortId, error: &std::io::Error) -> bool {
        let of_sockets = self.sockets.take_if(|open| open.port == port).is_some();
        if of_sockets || self.interface.take_if(|open| open.port == port).is_some() {
            let what = if of_sockets { "the tunnel's sockets" } else { "the uplink" };
            print::note(format_args!("{what} failed: {error}"));
            self.outdated.push(port);
            return true;
        }
        false
    }

    /// Opens what is missing. Says whether there is anything that was not there before; a person is
    /// told what cannot be opened.
    pub(super) fn attach(&mut self, control: &mut ControlPlane) -> bool {
        let mut news = std::mem::take(&mut self.renewed);
        let mut trouble = self.plan.trouble.clone();
        if let (None, Some(plan)) = (&self.sockets, self.plan.sockets.clone()) {
            match self.open_sockets(control, plan) {
                Ok(open) => (self.sockets, news) = (Some(open), true),
                Err(error) => trouble = Some(format!("--underlay udp: {error}")),
            }
        }
        if let (None, Some(plan)) = (&self.interface, self.plan.interface.clone()) {
            let name = plan.link.name.clone();
            match self.open_interface(control, plan) {
                Ok(open) => (self.interface, news) = (Some(open), true),
                Err(error) => trouble = Some(format!("--uplink {name}: {error}")),
            }
        }
        if let Some(text) = trouble.as_ref().filter(|text| self.trouble.as_ref() != Some(text)) {
            print::note(format_args!("other nodes are not reached: {text}"));
        }
        self.trouble = trouble;
        news
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
            ..UdpTunnelConfig::new(&plan.addresses)
        };
        let device = UdpTunnelDevice::new(&self.namespace, config).map_err(|e| e.to_string())?;
        if let Some(error) = device.why_cut() {
            print::note(format_args!("the switch itself cuts what leaves by the tunnel: {error}"));
        }
        let mac = device.info().mac.unwrap_or_default();
        let port = control.attach(Box::new(device)).map_err(|e| e.to_string())?;
        Ok(Open { port, plan, mac })
    }

    fn open_interface(
        &mut self,
        control: &mut ControlPlane,
        plan: InterfacePlan,
    ) -> Result<Open<InterfacePlan>, String> {
        let tunnel = self.plan.tunnel.as_ref().filter(|_| plan.tunnel).map(|tunnel| tunnel.port);
        let without = plan.without;
        let config =
            PacketConfig { promiscuous: false, tunnel, without, ..PacketConfig::default() };
        let name = &plan.link.name;
        let device = PacketDevice::new(&self.namespace, name, config).map_err(|e| e.to_string())?;
        let mac = plan.link.mac.unwrap_or_default();
        let port = control.attach(Box::new(device)).map_err(|e| e.to_string())?;
        Ok(Open { port, plan, mac })
    }

    /// MTU of pods and of the node's own port, in bytes.
    pub(super) fn mtu(&self, state: &Compiled) -> u16 {
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
            (Some(mtu), _) => inner_mtu(clamped(mtu).into(), needs_ipv6(state)) as u16,
            // Nothing is in the way of what travels as it is.
            (None, Some(open)) => clamped(open.plan.link.mtu),
            (None, None) => MTU,
        }
    }

    /// Finds out where the other nodes are, as far as the kernel knows now, and has it find out the
    /// rest. Says whether that changed.
    pub(super) fn find_neighbours(&mut self, config: &Config) -> bool {
        let Some(open) = &self.interface else { return self.neighbours.forget() };
        let beside = self.plan.tunnel.as_ref().is_some_and(|t| t.routing == Routing::HostGw);
        let nodes = if open.plan.tunnel || beside { &config.nodes[..] } else { &[] };
        let of_nodes = nodes.iter().flat_map(|node| node.addresses.iter().copied());
        let of_routes = config.routes.iter().flat_map(|r| &r.next_hops);
        let hops = of_routes.filter_map(|hop| match hop {
            NextHop::Via(address) => Some(*address),
            _ => None,
        });
        self.neighbours.follow(open.plan.link.index, of_nodes.chain(hops))
    }

    /// Whether anything of the node's interfaces, routes or neighbours changed since it was asked.
    pub(super) fn has_changed(&mut self) -> bool {
        self.neighbours.has_changed()
    }

    /// Tells the switch of all this.
    pub(super) fn complete(&self, config: &mut Config) {
        config.tunnel.clone_from(&self.plan.tunnel);
        if let Some(Open { port, plan, mac }) = &self.sockets {
            let (mac, mtu) = (*mac, clamped(plan.mtu));
            let role = PortRole::Uplink { mac, mtu, tunnel: true, direct: false };
            config.ports.push(PortConfig { port: *port, role });
        }
        let Some(Open { port, plan, mac }) = &self.interface else { return };
        let (mac, mtu) = (*mac, clamped(plan.link.mtu));
        let role = PortRole::Uplink { mac, mtu, tunnel: plan.tunnel, direct: true };
        config.ports.push(PortConfig { port: *port, role });
        config.neighbours.extend(self.neighbours.known());
        if !plan.tunnel {
            return;
        }
        // A made-up address is nobody's on a real network: better a reason than silence.
        for node in &mut config.nodes {
            // Of both families, as there may be a tunnel over each.
            let is_known = |a: &IpAddr| self.neighbours.has(*a);
            if has_made_up_mac(node.underlay_mac, &node.addresses)
                && !node.addresses.iter().all(is_known)
            {
                Arc::make_mut(node).underlay_mac = Mac::ZERO;
            }
        }
    }

    /// Keeps from the node's stack what the switch takes from the uplink in a state in force.
    pub(super) fn take(&mut self, state: &Compiled, snapshot: &Snapshot) {
        let Some(open) = &self.interface else { return self.taken.remove(&self.namespace) };
        let tunnel = self.plan.tunnel.as_ref();
        let drops = taken::of(state, snapshot, tunnel, open.plan.tunnel);
        self.taken.follow(&self.namespace, &open.plan.link, drops);
    }

    /// Gives the node's stack back all that it was kept from.
    pub(super) fn stop(mut self) {
        self.taken.remove(&self.namespace);
    }

    /// How other nodes' pods are reached by the node's own processes.
    pub(super) fn remote(&self) -> Remote {
        match &self.plan.tunnel {
            None => Remote::NotOurs,
            Some(tunnel) if tunnel.routing == Routing::HostGw && self.interface.is_none() => {
                Remote::ByKernel
            }
            Some(_) => Remote::BySwitch,
        }
    }
}

/// How other nodes' pods are reached by the node's own processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remote {
    /// As the node's routes say.
    NotOurs,
    /// By the switch.
    BySwitch,
    /// By the other nodes' addresses, which are on the same segment.
    ByKernel,
}

fn link_of<'a>(address: IpAddr, known: &[Address], links: &'a [Link]) -> Option<&'a Link> {
    let index = known.iter().find(|a| a.address.address() == address)?.link;
    links.iter().find(|link| link.index == index)
}

/// The smallest MTU of the interfaces that lead to other nodes.
fn way_mtu(state: &Compiled, netlink: &mut Netlink, links: &[Link]) -> u32 {
    let addresses = state.config.nodes.iter().flat_map(|node| &node.addresses).take(ASKED);
    let ways = addresses.filter_map(|address| netlink.route_to(*address).ok().flatten()?.link);
    let mtus = ways.filter_map(|index| links.iter().find(|link| link.index == index));
    mtus.map(|link| link.mtu).min().unwrap_or(u32::from(MTU))
}

/// Whether any tunnel runs over IPv6, whose headers are longer.
fn needs_ipv6(state: &Compiled) -> bool {
    use podswitch_core::config::Underlay::Ipv4First;
    let has = |addresses: &[IpAddr], v6: bool| addresses.iter().any(|a| a.is_ipv6() == v6);
    let own = &state.config.node;
    let v4_first = state.config.tunnel.as_ref().is_none_or(|t| t.underlay == Ipv4First);
    if state.config.nodes.is_empty() {
        return !has(&own.addresses, false);
    }
    state.config.nodes.iter().any(|other| {
        let [v4, v6] = [false, true].map(|v6| has(&own.addresses, v6) && has(&other.addresses, v6));
        v6 && (!v4_first || !v4 || own.vtep.both_have_second(other.vtep))
    })
}

fn clamped(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

/// Whether a link-layer address is the one that captures have for want of another.
fn has_made_up_mac(mac: Mac, addresses: &[IpAddr]) -> bool {
    let first = addresses.iter().find(|a| a.is_ipv4()).or(addresses.first());
    first.is_some_and(|first| podswitch_linux::port::underlay_mac(*first) == mac)
}
