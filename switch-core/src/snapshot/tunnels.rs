//! The overlay in the form that the packet path needs: other nodes' VTEPs, the outer headers to
//! each, and the reach of each node.

mod path;

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_policy::cow::CowMap;
use podswitch_vxlan::decap::DecapRules;
use podswitch_vxlan::template::Template;
use podswitch_vxlan::vtep::{VtepIndex, VtepTable};
use podswitch_wire::addr::Mac;

pub use path::{PATH_MTU_SECS, PathMtu};

use super::UplinkPort;
use crate::config::Gateway;
use crate::id::PortId;
use crate::time::Instant;

/// How another node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Through the tunnel to this end.
    Tunnel(VtepIndex),
    /// Without encapsulation, by the direct uplink, to this MAC address.
    Neighbour(Mac),
    /// By this node's own routes.
    Host,
    /// This node has no tunnel address of a family that the other node has.
    NoSource,
    /// No port carries the tunnel.
    NoUplink,
    /// Its MAC address is unknown.
    NoNeighbour,
}

/// A tunnel in the form that the packet path needs: two cache lines.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Tunnel {
    /// The outer headers.
    pub template: Template,
    /// Largest inner packet that the uplink carries, in bytes.
    pub mtu: u16,
    /// The learned path MTU.
    pub path: PathMtu,
}

const _: () = assert!(size_of::<Tunnel>() == 128);

impl Tunnel {
    /// Largest inner packet at `now`, in bytes.
    #[inline]
    pub fn inner_mtu(&self, now: Instant) -> u16 {
        match self.path.get(now) {
            None => self.mtu,
            Some(path) => self.mtu.min(self.inner_of(path)),
        }
    }

    /// The largest inner packet on a path with `mtu`.
    fn inner_of(&self, mtu: u16) -> u16 {
        podswitch_vxlan::template::inner_mtu(mtu.into(), self.template.is_ipv6()) as u16
    }
}

/// How another node is reached.
#[derive(Clone, Debug)]
pub(crate) struct NodePlace {
    /// By the family of the inner packet: IPv4, IPv6.
    pub(crate) reach: [Reach; 2],
    /// Its VTEPs: the only or first one, and the second one, for IPv6 packets.
    pub(crate) ends: [Option<VtepIndex>; 2],
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Tunnels {
    /// Whether the switch itself reaches other nodes; otherwise the node's own routes do.
    pub enabled: bool,
    /// VTEPs, for received packets.
    pub ends: VtepTable,
    /// VNI and UDP port that are accepted.
    pub rules: DecapRules,
    /// The port that carries the tunnel.
    pub port: PortId,
    /// This node inside the tunnel, by the underlay's family (IPv4, IPv6): its MAC address, and the
    /// addresses that answer there for its pods (with Flannel the first address of the node's
    /// range).
    pub gateways: [Gateway; 2],
    /// By index of the VTEP.
    pub(crate) tunnels: Vec<Option<Arc<Tunnel>>>,
    /// By node's name.
    pub(crate) places: CowMap<Arc<str>, NodePlace>,
    /// Name of a VTEP's node.
    pub(crate) owners: HashMap<VtepIndex, Arc<str>>,
    /// All nodes' own addresses.
    pub(crate) addresses: HashSet<IpAddr>,
    /// First addresses of this node's ranges.
    pub(crate) own: Vec<IpAddr>,
    /// Shared by tables in which unchanged nodes are reached in the same way.
    reach: Arc<()>,
}

impl Tunnels {
    /// A copy, to be changed into the next table. `same_reach`: unchanged nodes are reached in the
    /// same way.
    pub(crate) fn successor(&self, same_reach: bool) -> Self {
        Self {
            enabled: self.enabled,
            ends: self.ends.clone(),
            rules: self.rules,
            port: self.port,
            gateways: self.gateways,
            tunnels: self.tunnels.clone(),
            places: self.places.clone(),
            owners: self.owners.clone(),
            addresses: self.addresses.clone(),
            own: self.own.clone(),
            reach: if same_reach { self.reach.clone() } else { Arc::default() },
        }
    }

    /// Whether unchanged nodes are reached in the same way as by `other`.
    pub(crate) fn has_same_reach(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.reach, &other.reach)
    }

    /// The tunnel of a plan.
    #[inline]
    pub fn get(&self, number: u16) -> Option<&Tunnel> {
        self.tunnels.get(usize::from(number))?.as_deref()
    }

    /// The tunnel to a VTEP.
    #[inline]
    pub fn to(&self, end: VtepIndex) -> Option<&Tunnel> {
        self.tunnels.get(end.index())?.as_deref()
    }

    /// How a node is reached with packets of a family, if there is such a node.
    pub fn reach(&self, node: &str, ipv6: bool) -> Option<Reach> {
        self.places.get(node).map(|place| place.reach[usize::from(ipv6)])
    }

    /// The name of the node at a VTEP.
    pub fn node(&self, end: VtepIndex) -> Option<&Arc<str>> {
        self.owners.get(&end)
    }

    /// Whether packets from a node or pod with this `reach` may come from the VTEP `end`: it is
    /// that VTEP, or the other one of the same node.
    pub fn may_send_from(&self, end: VtepIndex, reach: Reach) -> bool {
        let Reach::Tunnel(to) = reach else { return false };
        to == end || self.node(to).is_some_and(|node| self.node(end) == Some(node))
    }

    /// This node's identity inside the tunnel to `end`.
    #[inline]
    pub fn gateway(&self, end: VtepIndex) -> &Gateway {
        let v6 = self.to(end).is_some_and(|tunnel| tunnel.template.is_ipv6());
        &self.gateways[usize::from(v6)]
    }

    /// Whether `mac` is this node's inside the tunnel.
    #[inline]
    pub fn is_own_mac(&self, mac: Mac) -> bool {
        self.enabled && self.gateways.iter().any(|gateway| gateway.mac == mac)
    }

    /// Whether `address` is the first address of one of this node's ranges, which Flannel gives to
    /// the node itself.
    pub fn is_own_gateway(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// This node's address in a Flannel overlay, by family: the first address of its range.
    pub fn own_gateway(&self, ipv6: bool) -> Option<IpAddr> {
        self.own.iter().find(|address| address.is_ipv6() == ipv6).copied()
    }

    /// Whether `address` is the own address of this node or of another one.
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }
}

/// The uplinks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uplinks {
    /// The one that carries the tunnel.
    pub tunnel: Option<UplinkPort>,
    /// The one for traffic without a tunnel.
    pub direct: Option<UplinkPort>,
}
