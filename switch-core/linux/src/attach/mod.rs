//! Attaching pods and the node itself: interfaces with addresses and routes, and the switch's
//! end of each.
//!
//! A pod's addresses are /32 and /128; its only way anywhere is the gateway, link-local, which
//! the switch answers for (169.254.1.1 and fe80::1). The same set-up is made again over an
//! existing one without harm, so a switch that was killed attaches to its pods as they are.

mod host_port;
mod veth;

pub use host_port::{HostPort, HostPortConfig};
pub use veth::{attach_veth, detach_veth, silence, switch_interface, switch_namespace};

use std::net::IpAddr;

use podswitch_core::config::Gateway;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::netlink::Route;
use super::{HostError, NetNs, Netlink, sysctl};
use crate::port::tap::{TapConfig, TapDevice};

/// A pod's interface as the pod sees it.
#[derive(Clone, Debug)]
pub struct PodInterface {
    /// Its name in the pod's namespace.
    pub name: String,
    /// Its link-layer address.
    pub mac: Mac,
    /// The pod's addresses, at most one of each family being usual.
    pub addresses: Vec<IpAddr>,
    /// Largest network-layer packet, in bytes.
    pub mtu: u32,
    /// What the pod sees as its gateway.
    pub gateway: Gateway,
    /// Tells the pod the gateway's MAC for good, so that it never asks by ARP or ND.
    pub static_gateway: bool,
}

impl PodInterface {
    /// `eth0` with the usual gateway and MTU 1500.
    pub fn new(mac: Mac, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            name: "eth0".into(),
            mac,
            addresses: addresses.into_iter().collect(),
            mtu: 1500,
            gateway: Gateway::default(),
            static_gateway: false,
        }
    }
}

/// How a TAP is opened for a pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct TapOptions {
    /// The interface stays when the switch ends or dies, and the next one attaches to it.
    pub persistent: bool,
    /// One queue for each worker.
    pub multi_queue: bool,
}

/// Attaches a pod by a TAP made inside its namespace, and sets the interface up. One that an
/// earlier run left is used as it is.
///
/// # Errors
/// As [`TapDevice::open`]; an address or route is refused. A new interface is removed again then.
pub fn attach_tap(
    ns: &NetNs,
    pod: &PodInterface,
    options: TapOptions,
) -> Result<TapDevice, HostError> {
    let config = TapConfig {
        name: pod.name.clone(),
        mac: Some(pod.mac),
        mtu: pod.mtu,
        multi_queue: options.multi_queue,
        persistent: options.persistent,
    };
    let device = TapDevice::open(ns, &config)?;
    match configure(ns, device.index(), pod) {
        Ok(()) => Ok(device),
        Err(error) => {
            if !device.was_there() {
                // The first error is the one to tell.
                let _ = device.destroy();
            }
            Err(error)
        }
    }
}

/// Sets up a pod's interface: on, addresses, the gateway as only way out. Changes nothing that is
/// right already.
///
/// # Errors
/// An address or route is refused.
pub fn configure(ns: &NetNs, index: u32, pod: &PodInterface) -> Result<(), HostError> {
    quieten(ns, &pod.name);
    let mut netlink = Netlink::open(ns)?;
    netlink.set_up(index)?;
    for address in &pod.addresses {
        netlink.add_address(index, (*address).into())?;
    }
    for address in &pod.addresses {
        // Pods that come late to their own address are no reason to refuse them.
        let _ = netlink.wait_until_local(*address);
    }
    for (family, gateway) in gateways(&pod.gateway) {
        if !pod.addresses.iter().any(|a| a.is_ipv4() == family.is_ipv4()) {
            continue;
        }
        if pod.static_gateway {
            netlink.add_neighbour(index, gateway, pod.gateway.mac)?;
        }
        let mut to_gateway = Route::to(Cidr::host(gateway)).link(index);
        if gateway.is_ipv6() {
            // A pod that answers itself through a Service answers the gateway, and would do so
            // from its link-local address, which is nobody's to the switch.
            to_gateway.source =
                pod.addresses.iter().copied().find(|a| a.is_ipv6() && !is_link_local(*a));
        }
        netlink.add_route(&to_gateway)?;
        let everywhere = Cidr::new(family, 0).expect("a prefix of no bits fits any family");
        netlink.add_route(&Route::to(everywhere).via(gateway).link(index).onlink())?;
    }
    Ok(())
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}

/// Both gateway addresses, each with its family's unspecified address.
fn gateways(gateway: &Gateway) -> [(IpAddr, IpAddr); 2] {
    use std::net::{Ipv4Addr, Ipv6Addr};
    [
        (Ipv4Addr::UNSPECIFIED.into(), gateway.ipv4.into()),
        (Ipv6Addr::UNSPECIFIED.into(), gateway.ipv6.into()),
    ]
}

/// Keeps IPv6 on the interface from waiting for duplicates of its link-local address and from
/// listening to router advertisements. Good to have, not needed: no router speaks on this link.
fn quieten(ns: &NetNs, interface: &str) {
    for setting in ["accept_ra", "dad_transmits"] {
        let _ = sysctl::set(ns, &format!("net/ipv6/conf/{interface}/{setting}"), "0");
    }
}
