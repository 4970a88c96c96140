//! How other nodes are reached: options that `run`, `check`, `explain` and `replay` have in common.

use std::net::IpAddr;
use std::sync::Arc;

use clap::ValueEnum;
use podswitch_core::config::{
    Config, NextHop, PortConfig, PortRole, Route, Routing, TunnelConfig, Underlay,
};
use podswitch_core::id::PortId;
use podswitch_kubernetes::Compiled;
use podswitch_vxlan::header::Vni;
use podswitch_vxlan::template::{PORT, PORT_FLANNEL};
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use crate::state::MTU;

/// Link-layer address of a node that no Node object describes.
pub(crate) const NAMELESS: Mac = Mac([0x0a, 0x58, 0, 0, 0, 1]);

/// See the module's description.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct OverlayArgs {
    /// VXLAN network identifier. Otherwise what Flannel's annotations on Node objects say, or 1.
    #[arg(long, value_name = "N", value_parser = vni)]
    vni: Option<Vni>,
    /// UDP port of the tunnel. Otherwise 8472 where Node objects have Flannel's annotations, or 4789.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: Option<u16>,
    /// Through the tunnel, or past it to the node's link-layer address: all nodes are on one segment
    /// then.
    #[arg(long, value_enum, value_name = "vxlan|host-gw", default_value = "vxlan")]
    routing: RoutingFlag,
    /// Which family the tunnel runs over between nodes that have addresses of both; `inner`: each
    /// family has a tunnel of its own, over that family. So it always is between nodes of which both
    /// have Flannel's annotations for a second tunnel, over IPv6.
    #[arg(long, value_enum, value_name = "ipv4|ipv6|inner", default_value = "ipv4")]
    underlay_family: FamilyFlag,
    /// A route beyond pods and nodes: to routers on the underlay, which share flows alike on every
    /// node; `host` hands packets to the node's kernel, `blackhole` drops them. Can be repeated.
    #[arg(long, value_name = "CIDR=NEXTHOP[,NEXTHOP]", value_parser = RouteFlag::parse)]
    route: Vec<RouteFlag>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum RoutingFlag {
    #[default]
    Vxlan,
    HostGw,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FamilyFlag {
    #[default]
    Ipv4,
    Ipv6,
    Inner,
}

fn vni(text: &str) -> Result<Vni, String> {
    let number: u32 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    Vni::try_from(number).map_err(|error| error.to_string())
}

/// `--route CIDR=NEXTHOP[,NEXTHOP]`.
#[derive(Clone, Debug)]
struct RouteFlag(Route);

impl RouteFlag {
    fn parse(text: &str) -> Result<Self, String> {
        let (range, hops) = text.split_once('=').ok_or("it is not CIDR=NEXTHOP[,NEXTHOP]")?;
        let destination: Cidr = range.parse().map_err(|error| format!("{range:?}: {error}"))?;
        let hop = |hop: &str| match hop {
            "host" => Ok(NextHop::Host),
            "blackhole" => Ok(NextHop::Blackhole),
            other => other
                .parse()
                .map(NextHop::Via)
                .map_err(|_| format!("{other:?} is neither an address, host nor blackhole")),
        };
        let next_hops = hops.split(',').map(hop).collect::<Result<_, _>>()?;
        Ok(Self(Route { destination, next_hops }))
    }
}

impl OverlayArgs {
    /// Adds to a compiled state how other nodes are reached.
    pub(crate) fn complete(&self, compiled: &mut Compiled) {
        let flannel = compiled.flannel;
        let said = flannel.and_then(|overlay| overlay.vni).and_then(Vni::new);
        let usual = if flannel.is_some() { PORT_FLANNEL } else { PORT };
        let config = &mut compiled.config;
        let default = TunnelConfig::default();
        config.tunnel = Some(TunnelConfig {
            routing: match self.routing {
                RoutingFlag::Vxlan => Routing::Vxlan,
                RoutingFlag::HostGw => Routing::HostGw,
            },
            vni: self.vni.or(said).unwrap_or(default.vni),
            port: self.vxlan_port.unwrap_or(usual),
            underlay: match self.underlay_family {
                FamilyFlag::Ipv4 => Underlay::Ipv4First,
                FamilyFlag::Ipv6 => Underlay::Ipv6First,
                FamilyFlag::Inner => Underlay::Inner,
            },
            ..default
        });
        config.routes.extend(self.route.iter().map(|RouteFlag(route)| Arc::new(route.clone())));
    }
}

/// Gives a state the underlay as its port `port`, as `replay` and `explain` have it: one port
/// for the tunnel and all else, every link-layer address known without asking.
pub(crate) fn attach_uplink(config: &mut Config, port: PortId) {
    let mac = config.node.underlay_mac;
    let mac = if mac.is_unicast() { mac } else { NAMELESS };
    let role = PortRole::Uplink { mac, mtu: MTU, tunnel: true, direct: true };
    config.ports.push(PortConfig { port, role });
    let known = |address: IpAddr| config.nodes.iter().any(|n| n.addresses.contains(&address));
    let hops = config.routes.iter().flat_map(|route| &route.next_hops);
    let routers = hops.filter_map(|hop| match hop {
        NextHop::Via(address) if !known(*address) => Some((*address, mac_of(*address))),
        _ => None,
    });
    config.neighbours = routers.collect();
}

/// `0a:58` and the address's last four bytes.
fn mac_of(address: IpAddr) -> Mac {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    Mac([0x0a, 0x58, a, b, c, d])
}
