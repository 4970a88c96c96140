//! Reads the host's own connection tracking: the connections that the host has seen. Formats are
//! those of linux/netfilter/nfnetlink_conntrack.h.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::NlasIterator;
use podswitch_wire::flow_key::proto;

use super::message::Connection;
use super::{HostError, NetNs};

/// NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET.
const LIST: u16 = 1 << 8 | 1;
/// CTA_TUPLE_ORIG, and inside of it CTA_TUPLE_IP and CTA_TUPLE_PROTO.
const ORIGINAL: u16 = 1;
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
/// CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE.
const INFO: [u16; 3] = [4, 1, 1];
/// TCP_CONNTRACK_ESTABLISHED.
const ESTABLISHED: u8 = 3;

/// The established TCP connections that the kernel of `ns` tracks: each one's client, and the
/// address to which it is connected, as the client sees it.
///
/// # Errors
/// Missing privilege; a kernel without this query.
pub fn established(ns: &NetNs) -> Result<Vec<(SocketAddr, SocketAddr)>, HostError> {
    let mut connection = Connection::open(ns)?;
    let mut list = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let what = || format!("list the connections that {ns} tracks");
        let found = connection.dump(LIST, family as u8, |_| {}, what)?;
        list.extend(found.iter().filter_map(|entry| read(entry)));
    }
    Ok(list)
}

/// An entry, if it is an established TCP connection.
fn read(entry: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let mut info = entry.to_vec();
    for kind in INFO {
        info = attribute(&info, kind)?;
    }
    let original = attribute(entry, ORIGINAL)?;
    let (addresses, ports) = (attribute(&original, ADDRESSES)?, attribute(&original, PROTOCOL)?);
    let is_tcp = attribute(&ports, 1)?.first() == Some(&proto::TCP);
    if !is_tcp || info.first() != Some(&ESTABLISHED) {
        return None;
    }
    let end = |v4: u16, v6: u16, port: u16| {
        let address = match (attribute(&addresses, v4), attribute(&addresses, v6)) {
            (Some(v4), _) => IpAddr::from(*v4.first_chunk::<4>()?),
            (None, v6) => IpAddr::from(*v6?.first_chunk::<16>()?),
        };
        let port = u16::from_be_bytes(*attribute(&ports, port)?.first_chunk()?);
        Some(SocketAddr::new(address, port))
    };
    // Source and destination of each: CTA_IP_V4_*, CTA_IP_V6_*, CTA_PROTO_*_PORT.
    Some((end(1, 3, 2)?, end(2, 4, 3)?))
}

/// The value of the first attribute of a kind.
fn attribute(data: &[u8], kind: u16) -> Option<Vec<u8>> {
    let mut attributes = NlasIterator::new(data).flatten();
    attributes.find(|nla| nla.kind() == kind).map(|nla| nla.value().to_vec())
}
