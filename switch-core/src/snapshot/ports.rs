//! Roles of ports, in the form that the packet path needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use podswitch_wire::addr::Mac;

use crate::config::Endpoint;
use crate::id::PortId;
use crate::route::fdb::{self, Bounds};

/// The role of a port in this snapshot.
#[derive(Clone, Debug)]
pub enum PortFacts {
    /// Not configured: nothing passes (N13).
    Unused,
    /// A pod.
    Pod(Arc<PodPort>),
    /// The node's own stack.
    Host(HostPort),
    /// The underlay.
    Uplink(UplinkPort),
    /// A member of bridge domains.
    Bridge(Arc<BridgePort>),
}

/// A pod's port.
#[derive(Clone, Debug)]
pub struct PodPort {
    /// The pod.
    pub endpoint: Arc<Endpoint>,
    /// Its MAC address.
    pub mac: Mac,
    /// Its IPv4 addresses.
    pub ipv4: Vec<Ipv4Addr>,
    /// Its IPv6 addresses, without link-local ones.
    pub ipv6: Vec<Ipv6Addr>,
    /// Its MTU, in bytes.
    pub mtu: u16,
}

impl PodPort {
    /// Whether `address` is the pod's own.
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.ipv4.contains(&a),
            IpAddr::V6(a) => self.ipv6.contains(&a),
        }
    }
}

/// The node's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The port.
    pub port: PortId,
    /// MAC address of the node's end.
    pub mac: Mac,
    /// MTU, in bytes.
    pub mtu: u16,
}

/// A port to the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkPort {
    /// The port.
    pub port: PortId,
    /// MAC address of the node there.
    pub mac: Mac,
    /// MTU of the underlay, in bytes.
    pub mtu: u16,
    /// Whether it carries the tunnel.
    pub tunnel: bool,
    /// Whether it carries other traffic.
    pub direct: bool,
}

/// A port of one or more bridge domains.
#[derive(Clone, Debug)]
pub struct BridgePort {
    /// Domain of untagged frames, as an index into `Snapshot::domains`.
    pub untagged: Option<u16>,
    /// VLAN ID to domain, sorted by VLAN ID.
    pub tagged: Vec<(u16, u16)>,
}

impl BridgePort {
    /// The domain of frames tagged with `vid`.
    pub fn domain_of(&self, vid: u16) -> Option<u16> {
        let at = self.tagged.binary_search_by_key(&vid, |&(v, _)| v).ok()?;
        Some(self.tagged[at].1)
    }
}

/// Tagging of a domain's frames on a member port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tagging {
    /// Without a tag.
    Untagged,
    /// With this VLAN ID.
    Tagged(u16),
}

/// A port in a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The port.
    pub port: PortId,
    /// Tagging of the domain's frames on egress.
    pub tagging: Tagging,
}

/// One broadcast domain: a VLAN of a configured bridge domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number in the FDB. Stable from snapshot to snapshot, so that learned addresses stay.
    pub id: fdb::Domain,
    /// Ports, sorted by number.
    pub members: Vec<Member>,
    /// Bounds of learning: entries for each port, and ageing time.
    pub bounds: Bounds,
}
