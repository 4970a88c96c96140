//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podswitch_wire::cidr::Cidr;

use super::{HostError, Netlink, family_of};

/// A route in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub destination: Cidr,
    /// The next router; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the interface that packets leave by.
    pub link: Option<u32>,
    /// The gateway is on the link although it is in no network of the interface (onlink).
    pub onlink: bool,
    /// Source address of packets that the host itself sends by this route.
    pub source: Option<IpAddr>,
    /// Routing table; 254 is the main one.
    pub table: u32,
    /// Metric among routes to the same destination; the lowest is preferred. `None`: the kernel's
    /// choice.
    pub metric: Option<u32>,
    /// MTU of the route, in bytes.
    pub mtu: Option<u32>,
    /// Packets that match the route are discarded.
    pub blackhole: bool,
}

impl Route {
    /// The main routing table.
    pub const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

    /// A route to `destination`; other fields have defaults.
    pub fn to(destination: Cidr) -> Self {
        Self {
            destination,
            gateway: None,
            link: None,
            onlink: false,
            source: None,
            table: Self::MAIN,
            metric: None,
            mtu: None,
            blackhole: false,
        }
    }

    /// Makes the route discard packets.
    #[must_use]
    pub fn blackhole(mut self) -> Self {
        self.blackhole = true;
        self
    }

    /// Sets the gateway.
    #[must_use]
    pub fn via(mut self, gateway: IpAddr) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// Sets the interface, by its index.
    #[must_use]
    pub fn link(mut self, index: u32) -> Self {
        self.link = Some(index);
        self
    }

    /// The gateway is on the link, for any addresses of the interface (onlink).
    #[must_use]
    pub fn onlink(mut self) -> Self {
        self.onlink = true;
        self
    }

    /// Sets the source address of packets that the host itself sends.
    #[must_use]
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }

    /// Sets the routing table.
    #[must_use]
    pub fn table(mut self, table: u32) -> Self {
        self.table = table;
        self
    }

    /// Sets the metric; the lowest is preferred.
    #[must_use]
    pub fn metric(mut self, metric: u32) -> Self {
        self.metric = Some(metric);
        self
    }

    /// Sets the MTU of the route, in bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// A query for the route that leads to the destination.
    fn lookup(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(self.destination.address());
        message.header.destination_prefix_length = self.destination.prefix();
        let destination = self.destination.address().into();
        message.attributes.push(RouteAttribute::Destination(destination));
        message
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(self.destination.address());
        message.header.destination_prefix_length = self.destination.prefix();
        // A byte cannot hold every table number; the attribute is used.
        message.header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = match self.gateway {
            None if self.destination.address().is_ipv4() && !self.blackhole => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        message.header.kind = match self.blackhole {
            true => RouteType::BlackHole,
            false => RouteType::Unicast,
        };
        if self.onlink {
            message.header.flags |= RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        if self.destination.prefix() > 0 {
            attributes.push(RouteAttribute::Destination(self.destination.address().into()));
        }
        attributes.extend(self.gateway.map(|a| RouteAttribute::Gateway(a.into())));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.source.map(|a| RouteAttribute::PrefSource(a.into())));
        attributes.push(RouteAttribute::Table(self.table));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        attributes.extend(self.mtu.map(|m| RouteAttribute::Metrics(vec![RouteMetric::Mtu(m)])));
        message
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.blackhole { "blackhole " } else { "" };
        write!(f, "{kind}{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(f, " through interface {link}")?;
        }
        if self.table != Self::MAIN {
            write!(f, " in table {}", self.table)?;
        }
        Ok(())
    }
}

impl Netlink {
    /// Adds a route; replaces one to the same destination with the same metric.
    ///
    /// # Errors
    /// The gateway cannot be reached; there is no such interface; missing privilege.
    pub fn add_route(&mut self, route: &Route) -> Result<(), HostError> {
        let message = RouteNetlinkMessage::NewRoute(route.message());
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, || format!("add route {route}"))
    }

    /// Removes a route.
    ///
    /// # Errors
    /// There is no such route (`is_not_found`).
    pub fn delete_route(&mut self, route: &Route) -> Result<(), HostError> {
        let mut message = route.message();
        // Fields that are not named match anything.
        message.header.protocol = RouteProtocol::Unspec;
        message.header.scope = RouteScope::NoWhere;
        let message = RouteNetlinkMessage::DelRoute(message);
        self.request(message, 0, || format!("remove route {route}"))
    }

    /// The route that packets to `address` take; `None` if there is none or it is local.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn route_to(&mut self, address: IpAddr) -> Result<Option<Route>, HostError> {
        let message = Route::to(Cidr::host(address)).lookup();
        let operation = || format!("look up the route to {address}");
        match self.get(RouteNetlinkMessage::GetRoute(message), operation) {
            Ok(answer) => Ok(answer.and_then(read).filter(|route| !route.blackhole)),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The next hop of packets from `source`, an address of this host, to `address`: the
    /// interface's index, and the router's address or `address` itself. `None` if there is no
    /// route, or if it is more than an interface and a neighbour (a lightweight tunnel).
    ///
    /// # Errors
    /// The kernel refused the query.
    pub(crate) fn next_hop(
        &mut self,
        source: IpAddr,
        address: IpAddr,
    ) -> Result<Option<(u32, IpAddr)>, HostError> {
        let mut message = Route::to(Cidr::host(address)).lookup();
        message.header.source_prefix_length = Cidr::host(source).prefix();
        message.attributes.push(RouteAttribute::Source(source.into()));
        let operation = || format!("look up the route from {source} to {address}");
        let answer = self.get(RouteNetlinkMessage::GetRoute(message), operation)?;
        let Some(RouteNetlinkMessage::NewRoute(answer)) = answer else { return Ok(None) };
        let is_plain = !answer.attributes.iter().any(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) | RouteAttribute::Via(_)
            )
        });
        let route = read(RouteNetlinkMessage::NewRoute(answer)).filter(|_| is_plain);
        Ok(route.and_then(|route| Some((route.link?, route.gateway.unwrap_or(address)))))
    }

    /// Whether packets to `address` are for this host.
    pub(super) fn is_local(&mut self, address: IpAddr) -> bool {
        let message = Route::to(Cidr::host(address)).lookup();
        let answer = self.get(RouteNetlinkMessage::GetRoute(message), || "look up a route".into());
        let Ok(Some(RouteNetlinkMessage::NewRoute(route))) = answer else { return false };
        route.header.kind == RouteType::Local
    }

    /// Every unicast route of the namespace, all tables and both families.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn routes(&mut self) -> Result<Vec<Route>, HostError> {
        Ok(self.all_routes()?.into_iter().filter(|route| !route.blackhole).collect())
    }

    /// As [`routes`](Self::routes), including those that discard packets.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn all_routes(&mut self) -> Result<Vec<Route>, HostError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = RouteNetlinkMessage::GetRoute(message);
            let list = self.dump(request, || "list routes".into())?;
            routes.extend(list.into_iter().filter_map(read));
        }
        Ok(routes)
    }
}

fn read(message: RouteNetlinkMessage) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let blackhole = message.header.kind == RouteType::BlackHole;
    if !blackhole && message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = Route::to(Cidr::host(destination));
    route.blackhole = blackhole;
    route.table = message.header.table.into();
    route.onlink = message.header.flags.contains(RouteFlags::Onlink);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(&address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(&address),
            RouteAttribute::PrefSource(address) => route.source = ip(&address),
            RouteAttribute::Oif(index) => route.link = Some(index),
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::Priority(metric) => route.metric = Some(metric),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.into_iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route.destination = Cidr::new(destination, message.header.destination_prefix_length)?;
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some(IpAddr::V4(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::V6(*a)),
        _ => None,
    }
}
