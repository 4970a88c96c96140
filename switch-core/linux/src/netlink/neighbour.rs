//! Neighbours: MAC addresses that the kernel resolved, permanent entries, and FDB entries of
//! bridges and tunnels.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podswitch_wire::addr::Mac;

use super::{HostError, Netlink, family_of};

/// The kernel's entry for a host on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface's index.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address, if it is known and may be used for sending.
    pub mac: Option<Mac>,
    /// Whether the entry needs no confirmation now: it is reachable or permanent.
    pub is_confirmed: bool,
}

impl Netlink {
    /// Every neighbour of the namespace, both families.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, HostError> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let list = self.dump(request, || "list neighbours".into())?;
        Ok(list.into_iter().filter_map(read).collect())
    }

    /// Makes the kernel start to resolve or confirm `address` on the interface, in the background;
    /// [`neighbours`](Self::neighbours) returns the result.
    ///
    /// # Errors
    /// There is no such interface, or it is down; the table is full; missing privilege.
    pub fn resolve_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), HostError> {
        let mut message = neighbour(link, address);
        message.header.flags = NeighbourFlags::Use;
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.request(message, NLM_F_CREATE, || {
            format!("look for neighbour {address} on interface {link}")
        })
    }

    /// Adds a permanent entry: `address` is at `mac` on the interface.
    ///
    /// # Errors
    /// There is no such interface; missing privilege.
    pub fn add_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> Result<(), HostError> {
        let mut message = neighbour(link, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("add neighbour {address} at {mac} on interface {link}")
        })
    }

    /// Removes the entry of `address` on the interface.
    ///
    /// # Errors
    /// There is no entry (`is_not_found`).
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), HostError> {
        let message = RouteNetlinkMessage::DelNeighbour(neighbour(link, address));
        self.request(message, 0, || format!("remove neighbour {address} of interface {link}"))
    }

    /// Adds an FDB entry to a VXLAN interface: frames for `mac` go to the VTEP `remote`. The
    /// all-zero address stands for unknown addresses and may have several VTEPs.
    ///
    /// # Errors
    /// It is not a VXLAN interface; missing privilege.
    pub fn add_tunnel_entry(
        &mut self,
        link: u32,
        mac: Mac,
        remote: IpAddr,
    ) -> Result<(), HostError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = link;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        message.attributes.push(NeighbourAttribute::Destination(destination(remote)));
        let flags = if mac == Mac::ZERO { NLM_F_APPEND } else { NLM_F_REPLACE };
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.request(message, NLM_F_CREATE | flags, || {
            format!("add tunnel entry {mac} at {remote} on interface {link}")
        })
    }
}

fn neighbour(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family_of(address);
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(destination(address)));
    message
}

fn destination(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(a) => NeighbourAddress::Inet(a),
        IpAddr::V6(a) => NeighbourAddress::Inet6(a),
    }
}

fn read(message: RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => {
                address = Some(IpAddr::V4(a));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                address = Some(IpAddr::V6(a));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            _ => {}
        }
    }
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    let state = message.header.state;
    let is_confirmed = matches!(state, Reachable | Permanent);
    let is_usable = is_confirmed || matches!(state, Stale | Delay | Probe);
    let mac = mac.filter(|_| is_usable);
    Some(Neighbour { link: message.header.ifindex, address: address?, mac, is_confirmed })
}
