//! The configuration of the overlay.

use podswitch_vxlan::header::Vni;
use podswitch_vxlan::template::{Dscp, PORT};

/// How other nodes' pods are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Through a tunnel or without one.
    pub routing: Routing,
    /// VXLAN network identifier, the same on all nodes.
    pub vni: Vni,
    /// UDP port of the tunnel: 4789, or 8472 where Linux's old default is used (Flannel).
    pub port: u16,
    /// DSCP of tunnel packets (RFC 2983). ECN is always the inner packet's (RFC 6040).
    pub dscp: Dscp,
    /// The family over which the tunnel runs between nodes that have addresses of both.
    pub underlay: Underlay,
    /// Accept tunnel packets without UDP checksum over IPv6 (RFC 6935 §5).
    pub ipv6_zero_checksum: bool,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            routing: Routing::Vxlan,
            vni: Vni::new(1).unwrap_or_default(),
            port: PORT,
            dscp: Dscp::Fixed(0),
            underlay: Underlay::Ipv4First,
            ipv6_zero_checksum: false,
        }
    }
}

/// How packets travel between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routing {
    /// Through VXLAN.
    #[default]
    Vxlan,
    /// Unencapsulated, to the node's MAC address: all nodes are on one segment. By the direct
    /// uplink, or by the node's own routes if there is none.
    HostGw,
}

/// The family of the underlay between two nodes that have both families in common; otherwise it is
/// the family that they have in common. Between nodes that both have a second VTEP for IPv6
/// ([`VtepMac`](super::VtepMac)) it is always [`Inner`](Self::Inner).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4 if both nodes have it.
    #[default]
    Ipv4First,
    /// IPv6 if both nodes have it.
    Ipv6First,
    /// The family of the inner packet: each family has its own tunnel.
    Inner,
}
