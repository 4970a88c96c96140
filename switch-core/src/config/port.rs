//! Ports and bridge domains.

use std::sync::Arc;

use podswitch_wire::addr::Mac;

use crate::id::PortId;

/// The role of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The port.
    pub port: PortId,
    /// Its role.
    pub role: PortRole,
}

/// The role of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// One pod is behind it: the endpoint that names this port in its `attachment`.
    Pod,
    /// The node's own stack is behind it. Off-cluster traffic leaves by it. At most one port.
    Host {
        /// MAC address of the node's end.
        mac: Mac,
        /// Largest network-layer packet that the node accepts, in bytes.
        mtu: u16,
    },
    /// The underlay is behind it: frames are raw Ethernet, with the tunnel's outer headers. At most
    /// one port carries the tunnel, and at most one port carries other traffic; one port may do
    /// both.
    Uplink {
        /// MAC address of the node on the underlay.
        mac: Mac,
        /// Largest network-layer packet of the underlay, in bytes. The tunnel's headers take 50
        /// bytes of it over IPv4, 70 over IPv6.
        mtu: u16,
        /// The port receives and sends tunnel packets.
        tunnel: bool,
        /// The port receives packets of off-cluster clients of Services. Next hops and, without a
        /// tunnel, other nodes are behind it.
        direct: bool,
    },
    /// Member of a bridge domain.
    Bridge {
        /// Name of the domain.
        domain: Arc<str>,
        /// VLAN membership.
        vlans: Vlans,
    },
}

/// VLAN membership of a bridge port (IEEE 802.1Q).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vlans {
    /// VLAN of untagged frames, which leave untagged again. `None`: untagged frames are dropped.
    pub untagged: Option<u16>,
    /// VLANs whose frames are received and sent tagged.
    pub tagged: Vec<u16>,
}

impl Vlans {
    /// Every VLAN ID named, untagged first.
    pub fn ids(&self) -> impl Iterator<Item = u16> {
        self.untagged.iter().chain(&self.tagged).copied()
    }
}

impl Default for Vlans {
    fn default() -> Self {
        Self { untagged: Some(1), tagged: Vec::new() }
    }
}

/// A layer-2 broadcast domain among ports with [`PortRole::Bridge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeDomain {
    /// The name by which ports refer to it.
    pub name: Arc<str>,
    /// Seconds after which a learned address is forgotten if it was not seen again.
    pub ageing_secs: u32,
    /// Maximum number of addresses learned from one port.
    pub learn_limit: u32,
}
