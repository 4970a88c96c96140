//! Neighbours: link-layer addresses that the kernel found out, those that need not be asked for, and
//! the forwarding entries of bridges and tunnels.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podswitch_wire::addr::Mac;

use super::{HostError, Netlink, family_of};

/// What the kernel knows of a host on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface's index.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its link-layer address, as far as one is known that packets may be sent to.
    pub mac: Option<Mac>,
    /// Whether that needs no confirmation now: it was heard of lately, or is there for good.
    pub is_confirmed: bool,
}

impl Netlink {
    /// Every neighbour of the namespace, both families.
    ///
    /// # Errors
    /// The kernel refused to answer.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, HostError> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let list = self.dump(request, || "list neighbours".into())?;
        Ok(list.into_iter().filter_map(read).collect())
    }

    /// Has the kernel find out where `address` is on the interface, or make sure that it is there
    /// still, as it does before it sends packets. It goes on by itself; see
    /// [`neighbours`](Self::neighbours) for what came of it.
    ///
    /// # Errors
    /// There is no such interface, or it is off; the table is full; missing privilege.
    pub fn resolve_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), HostError> {
        let mut message = neighbour(link, address);
        message.header.flags = NeighbourFlags::Use;
        let message = RouteNetlinkMessage::NewNeighbour(message);
        self.request(message, NLM_F_CREATE, || {
            format!("look for neighbour {address} on interface {link}")
        })
    }

    /// Says for good that `address` is at `mac` on the interface.
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

    /// Forgets what is known of `address` on the interface.
    ///
    /// # Errors
    /// Nothing is known (`is_not_found`).
    pub fn delete_neighbour(&mut self, link: u32, address: IpAddr) -> Result<(), HostError> {
        let message = RouteNetlinkMessage::DelNeighbour(neighbour(link, address));
        self.request(message, 0, || format!("remove neighbour {address} of interface {link}"))
    }

    /// Has a VXLAN interface send frames for `mac` to the tunnel end `remote`; for the zero
    /// address, frames to addresses that it does not know (several ends may be added).
    ///
    /// # Errors
    /// It is no VXLAN interface; missing privilege.
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
