//! Static neighbours: link-layer addresses that need not be asked for, and the forwarding
//! entries of bridges and tunnels.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use wire::addr::Mac;

use super::{HostError, Netlink, family_of};

impl Netlink {
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
