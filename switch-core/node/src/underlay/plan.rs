//! Plan of the underlay, from the configuration and the node's interfaces. Opens nothing.

use std::net::IpAddr;

use podswitch_core::config::{Routing, TunnelConfig, Underlay};
use podswitch_linux::Netlink;
use podswitch_linux::netlink::{Address, Link};
use podswitch_vxlan::template::inner_mtu;
use podswitch_wire::addr::Mac;

use crate::DEFAULT_MTU;
use crate::error::UnderlayError;
use crate::options::{UnderlayKind, UnderlayOptions};
use crate::view::View;

/// Most nodes whose routes are looked up if no interface has the tunnel's address.
const MAX_PROBED_NODES: usize = 16;

/// The wanted underlay.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) tunnel: Option<TunnelConfig>,
    pub(super) sockets: Option<SocketsPlan>,
    pub(super) interface: Option<InterfacePlan>,
    pub(super) error: Option<UnderlayError>,
}

/// The tunnel's UDP sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketsPlan {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) port: u16,
    pub(super) mtu: u32,
    /// Smallest MTU of pods, in bytes.
    pub(super) inner_mtu: u16,
}

/// The uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InterfacePlan {
    pub(super) link: Link,
    pub(super) tunnel: bool,
    /// The tunnel's UDP port, if sockets carry the tunnel.
    pub(super) without: Option<u16>,
}

impl InterfacePlan {
    /// Whether a device opened for `other` can be kept.
    pub(super) fn fits(&self, other: &Self) -> bool {
        self.link.index == other.link.index
            && self.link.mtu == other.link.mtu
            && (self.tunnel, self.without) == (other.tunnel, other.without)
    }
}

impl Plan {
    /// For a configuration and the node's present interfaces.
    pub(super) fn find(
        options: &UnderlayOptions,
        view: View<'_>,
        open_netlink: impl FnOnce() -> Result<Netlink, podswitch_linux::HostError>,
    ) -> Self {
        let others = view.nodes().any(|node| !node.addresses.is_empty());
        let is_needed = others || options.kind.is_some();
        let tunnel = view.settings().tunnel.clone().filter(|_| is_needed);
        let found = open_netlink().map_err(|error| UnderlayError::Netlink(error.to_string()));
        let found = found.and_then(|netlink| {
            let through = tunnel.as_ref().filter(|tunnel| tunnel.routing == Routing::Vxlan);
            Finder { options, view, through, netlink }.find()
        });
        match found {
            Ok((sockets, interface)) => Plan { tunnel, sockets, interface, error: None },
            Err(error) => Plan { tunnel, error: Some(error), ..Plan::default() },
        }
    }
}

struct Finder<'a> {
    options: &'a UnderlayOptions,
    view: View<'a>,
    /// The tunnel, if packets go through one.
    through: Option<&'a TunnelConfig>,
    netlink: Netlink,
}

impl Finder<'_> {
    fn find(&mut self) -> Result<(Option<SocketsPlan>, Option<InterfacePlan>), UnderlayError> {
        let kind = self.options.kind.unwrap_or(UnderlayKind::Udp);
        let interface = match &self.options.uplink {
            Some(name) => Some(self.interface(name, kind)?),
            None => None,
        };
        let sockets = match self.through {
            Some(tunnel) if kind == UnderlayKind::Udp => Some(self.sockets(tunnel)?),
            _ => None,
        };
        Ok((sockets, interface))
    }

    fn interface(
        &mut self,
        name: &str,
        kind: UnderlayKind,
    ) -> Result<InterfacePlan, UnderlayError> {
        let refuse = |reason: String| {
            let interface = name.to_owned();
            Err(UnderlayError::Uplink { interface, reason })
        };
        let link = match self.netlink.link(name) {
            Ok(link) => link,
            Err(error) => return refuse(error.to_string()),
        };
        if !link.mac.is_some_and(Mac::is_unicast) {
            return refuse("it is not an Ethernet interface".to_owned());
        }
        if !link.is_up {
            return refuse("the interface is down".to_owned());
        }
        let tunnel = self.through.is_some() && kind == UnderlayKind::Packet;
        let by_sockets = self.through.filter(|_| kind == UnderlayKind::Udp);
        Ok(InterfacePlan { link, tunnel, without: by_sockets.map(|t| t.port) })
    }

    fn sockets(&mut self, tunnel: &TunnelConfig) -> Result<SocketsPlan, UnderlayError> {
        let node = &self.view.settings().node;
        let ends = [false, true].map(|v6| node.addresses.iter().find(|a| a.is_ipv6() == v6));
        let addresses: Vec<IpAddr> = ends.into_iter().flatten().copied().collect();
        if addresses.is_empty() {
            return Err(UnderlayError::NoAddress(node.name.to_string()));
        }
        let failed = |error: podswitch_linux::HostError| UnderlayError::Netlink(error.to_string());
        let known = self.netlink.addresses().map_err(failed)?;
        let links = self.netlink.links().map_err(failed)?;
        let mut mtu = u32::MAX;
        for address in &addresses {
            let Some(link) = link_of(*address, &known, &links) else {
                return Err(UnderlayError::AddressNotFound(*address));
            };
            // A loopback address: packets leave by other interfaces.
            let of_routes = if link.name == "lo" { self.route_mtu(&links) } else { link.mtu };
            mtu = mtu.min(of_routes);
        }
        let has_ipv6 = addresses.iter().any(IpAddr::is_ipv6);
        let least = inner_mtu(clamped(mtu).into(), has_ipv6) as u16;
        let inner_mtu = self.options.mtu.map_or(least, |mtu| mtu.min(least));
        Ok(SocketsPlan { addresses, port: tunnel.port, mtu, inner_mtu })
    }

    /// The smallest MTU of the interfaces that lead to other nodes.
    fn route_mtu(&mut self, links: &[Link]) -> u32 {
        let addresses = self.view.nodes().flat_map(|node| &node.addresses);
        let netlink = &mut self.netlink;
        let routes = addresses
            .take(MAX_PROBED_NODES)
            .filter_map(|address| netlink.route_to(*address).ok().flatten()?.link);
        let mtus = routes.filter_map(|index| links.iter().find(|link| link.index == index));
        mtus.map(|link| link.mtu).min().unwrap_or(u32::from(DEFAULT_MTU))
    }
}

fn link_of<'a>(address: IpAddr, known: &[Address], links: &'a [Link]) -> Option<&'a Link> {
    let index = known.iter().find(|a| a.address.address() == address)?.link;
    links.iter().find(|link| link.index == index)
}

/// Whether any tunnel runs over IPv6, whose headers are longer.
pub(super) fn needs_ipv6(view: View<'_>) -> bool {
    let has = |addresses: &[IpAddr], v6: bool| addresses.iter().any(|a| a.is_ipv6() == v6);
    let (settings, mut nodes) = (view.settings(), view.nodes().peekable());
    let own = &settings.node;
    let v4_first = settings.tunnel.as_ref().is_none_or(|t| t.underlay == Underlay::Ipv4First);
    if nodes.peek().is_none() {
        return !has(&own.addresses, false);
    }
    nodes.any(|other| {
        let [v4, v6] = [false, true].map(|v6| has(&own.addresses, v6) && has(&other.addresses, v6));
        v6 && (!v4_first || !v4 || own.vtep.both_have_second(other.vtep))
    })
}

/// An MTU, limited to what the switch supports.
pub(super) fn clamped(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}
