//! Attaching pods and the node itself: interfaces with addresses and routes, and the switch's end
//! of each.
//!
//! A pod's addresses are /32 and /128; its only next hop is a link-local gateway (169.254.1.1 and
//! fe80::1) for which the switch answers. The set-up is idempotent, so a new run attaches to the
//! pods of a switch that was killed.

mod host_port;
mod upkeep;
mod veth;

pub use host_port::{HostPort, HostPortConfig, change_routes, release};
pub use upkeep::InterfaceSettings;
pub(crate) use upkeep::serves;
pub use veth::{attach_veth, detach_veth, silence, switch_interface, switch_namespace};

use std::net::IpAddr;

use podswitch_core::config::Gateway;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::handover::Inherited;
use super::netlink::{Link, Route};
use super::{HostError, NetNs, Netlink, sysctl};
use crate::port::tap::{TapConfig, TapDevice};

/// A pod's interface as the pod sees it.
#[derive(Clone, Debug)]
pub struct PodInterface {
    /// Its name in the pod's namespace.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// The pod's addresses, usually at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// MTU, in bytes.
    pub mtu: u32,
    /// The gateway that the pod sees.
    pub gateway: Gateway,
    /// Adds the gateway's MAC address as a permanent neighbour, so that the pod sends no ARP or ND
    /// for it.
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

/// How a TAP interface is opened for a pod.
#[derive(Clone, Debug, Default)]
pub struct TapOptions {
    /// The interface stays when the switch ends or is killed, and the next run attaches to it.
    pub persistent: bool,
    /// One queue for each worker.
    pub multi_queue: bool,
    /// What another process handed over.
    pub inherited: Inherited,
}

/// Attaches a pod by a TAP interface created in its namespace, and sets the interface up. One left
/// by an earlier run is used unchanged, even if it was renamed.
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
        inherited: options.inherited,
    };
    rename_back(ns, pod)?;
    let device = TapDevice::open(ns, &config)?;
    match configure(ns, pod) {
        Ok(_) => Ok(device),
        Err(error) => {
            if !device.was_there() {
                // The first error is returned.
                let _ = device.destroy();
            }
            Err(error)
        }
    }
}

/// Restores the name of the TAP interface that an earlier run left in a pod, unless another
/// interface of the pod has that name. Otherwise a second interface would get the pod's addresses,
/// too.
fn rename_back(ns: &NetNs, pod: &PodInterface) -> Result<(), HostError> {
    let mut netlink = Netlink::open(ns)?;
    if netlink.find_link(&pod.name)?.is_some() {
        return Ok(());
    }
    let is_its = |link: &Link| link.kind.as_deref() == Some("tun") && link.mac == Some(pod.mac);
    if let Some(link) = netlink.links()?.into_iter().find(is_its) {
        // Kernels before 6.3 can rename an interface only while it is down.
        netlink.set_down(link.index)?;
        netlink.rename(link.index, &pod.name)?;
    }
    Ok(())
}

/// Sets up a pod's interface: up, addresses, the gateway as default route. Idempotent. Returns a
/// description of each change.
///
/// # Errors
/// There is no such interface; an address or route is refused.
pub fn configure(ns: &NetNs, pod: &PodInterface) -> Result<Vec<String>, HostError> {
    disable_autoconfiguration(ns, &pod.name);
    let mut netlink = Netlink::open(ns)?;
    let link = netlink.link(&pod.name)?;
    pod.settings().repair(ns, &mut netlink, &link)
}

/// As [`configure`], for the pod's interface with this index, which may have another name now.
/// `None`: it does not exist any more.
///
/// # Errors
/// Another interface has its name; an address or route is refused.
pub fn repair(
    ns: &NetNs,
    index: u32,
    pod: &PodInterface,
) -> Result<Option<Vec<String>>, HostError> {
    let mut netlink = Netlink::open(ns)?;
    let Some(link) = netlink.find_link_at(index)? else { return Ok(None) };
    pod.settings().repair_named(ns, &mut netlink, link, &pod.name).map(Some)
}

impl PodInterface {
    /// The wanted settings of the interface.
    fn settings(&self) -> InterfaceSettings {
        let mut settings = InterfaceSettings {
            mac: Some(self.mac),
            mtu: Some(self.mtu),
            addresses: self.addresses.iter().map(|address| (*address).into()).collect(),
            ..InterfaceSettings::default()
        };
        for (family, gateway) in gateways(&self.gateway) {
            if !self.addresses.iter().any(|a| a.is_ipv4() == family.is_ipv4()) {
                continue;
            }
            if self.static_gateway {
                settings.neighbours.push((gateway, self.gateway.mac));
            }
            let mut to_gateway = Route::to(Cidr::host(gateway));
            if gateway.is_ipv6() {
                // A pod that reaches itself through a Service answers the gateway, and would answer
                // from its link-local address, which the switch does not know.
                to_gateway.source =
                    self.addresses.iter().copied().find(|a| a.is_ipv6() && !is_link_local(*a));
            }
            settings.routes.push(to_gateway);
            let everywhere = Cidr::new(family, 0).expect("a prefix of no bits fits any family");
            settings.routes.push(Route::to(everywhere).via(gateway).onlink());
        }
        settings
    }
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

/// Disables duplicate address detection and router advertisements on the interface. Optional: there
/// is no other router on this link.
fn disable_autoconfiguration(ns: &NetNs, interface: &str) {
    for setting in ["accept_ra", "dad_transmits"] {
        let _ = sysctl::set(ns, &format!("net/ipv6/conf/{interface}/{setting}"), "0");
    }
}
