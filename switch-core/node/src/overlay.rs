//! How nodes reach each other's pods: options, and the underlay of a switch that has no real one.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{
    Config, NextHop, PortConfig, PortRole, Route, Routing, TunnelConfig, Underlay,
};
use podswitch_core::id::PortId;
use podswitch_kubernetes::Overlay;
use podswitch_linux::port::underlay_mac;
use podswitch_vxlan::header::Vni;
use podswitch_vxlan::template::{PORT, PORT_FLANNEL};
use podswitch_wire::addr::Mac;

use crate::DEFAULT_MTU;

/// MAC address on the underlay of a node that no Node object describes.
pub const UNKNOWN_NODE_MAC: Mac = Mac([0x0a, 0x58, 0, 0, 0, 1]);

/// How nodes reach each other's pods.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct OverlayOptions {
    /// VXLAN network identifier. `None`: the VNI in Flannel's annotations on Node objects, or 1.
    pub vni: Option<Vni>,
    /// UDP port of the tunnel. `None`: 8472 if Node objects have Flannel's annotations, otherwise
    /// 4789.
    pub port: Option<u16>,
    /// Through the tunnel, or directly.
    pub routing: Routing,
    /// Which family the tunnel runs over between nodes that have addresses of both.
    pub underlay: Underlay,
    /// Routes beyond pods and nodes.
    pub routes: Vec<Arc<Route>>,
}

impl OverlayOptions {
    /// Adds to a configuration how other nodes are reached.
    pub fn complete(&self, config: &mut Config, flannel: Option<Overlay>) {
        let annotated = flannel.and_then(|overlay| overlay.vni).and_then(Vni::new);
        let usual = if flannel.is_some() { PORT_FLANNEL } else { PORT };
        let default = TunnelConfig::default();
        config.tunnel = Some(TunnelConfig {
            routing: self.routing,
            vni: self.vni.or(annotated).unwrap_or(default.vni),
            port: self.port.unwrap_or(usual),
            underlay: self.underlay,
            ..default
        });
        config.routes.extend(self.routes.iter().cloned());
    }
}

/// Gives a configuration the underlay as its port `port`, for a switch without a real one (replay,
/// explanations, tests): one port for the tunnel and all else, every MAC address known.
pub fn attach_uplink(config: &mut Config, port: PortId) {
    let mac = config.node.underlay_mac;
    let mac = if mac.is_unicast() { mac } else { UNKNOWN_NODE_MAC };
    let role = PortRole::Uplink { mac, mtu: DEFAULT_MTU, tunnel: true, direct: true };
    config.ports.push(PortConfig { port, role });
    let is_node = |address: IpAddr| config.nodes.iter().any(|n| n.addresses.contains(&address));
    let hops = config.routes.iter().flat_map(|route| &route.next_hops);
    let routers = hops.filter_map(|hop| match hop {
        NextHop::Via(address) if !is_node(*address) => Some((*address, underlay_mac(*address))),
        _ => None,
    });
    config.neighbours = routers.collect();
}
