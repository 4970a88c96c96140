//! Discovery of the node's interfaces, once at the start.
//!
//! What has to follow changes of the kernel, or needs MTUs and routes, uses netlink instead
//! (`docs/decisions/0015-linux-and-node-crates.md`).

use std::net::IpAddr;

use pnet_datalink::NetworkInterface;
use podswitch_linux::{HostError, NetNs};

/// The interfaces of a namespace, with their addresses.
pub(crate) fn interfaces(namespace: &NetNs) -> Result<Vec<NetworkInterface>, HostError> {
    namespace.enter(pnet_datalink::interfaces)
}

/// The addresses of a node that no Node object describes, in the order of its interfaces: of those
/// that are up, not loopback and not the switch's own; the first of each family is the VTEP's.
/// Link-local addresses are left out.
///
/// For embedders that fill in [`LocalNode`](podswitch_core::config::LocalNode) themselves.
///
/// # Errors
/// The namespace cannot be entered.
pub fn node_addresses(namespace: &NetNs) -> Result<Vec<IpAddr>, HostError> {
    let is_candidate = |interface: &NetworkInterface| {
        interface.is_up() && !interface.is_loopback() && !interface.name.starts_with("podswitch")
    };
    let interfaces = interfaces(namespace)?;
    let addresses = interfaces.iter().filter(|i| is_candidate(i)).flat_map(|i| &i.ips);
    Ok(addresses.map(|network| network.ip()).filter(|address| !is_link_local(*address)).collect())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}
