//! Compares an interface with its wanted settings and restores missing ones.

use std::net::IpAddr;

use podswitch_wire::addr::Mac;

use crate::netlink::{InterfaceAddress, Link, Route};
use crate::{HostError, NetNs, Netlink, sysctl};

/// The wanted settings of one interface. Settings that others added are kept.
#[derive(Clone, Debug, Default)]
pub struct InterfaceSettings {
    /// Its MAC address, if the switch sets it.
    pub mac: Option<Mac>,
    /// Its MTU, in bytes, if the switch sets it.
    pub mtu: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Permanent neighbours.
    pub neighbours: Vec<(IpAddr, Mac)>,
    /// Routes out of the interface. Their `link` is filled in.
    pub routes: Vec<Route>,
}

impl InterfaceSettings {
    /// Restores missing settings in `ns`, on `link`. Returns a description of each repair. While
    /// IPv6 is disabled on the interface, IPv6 settings are skipped.
    ///
    /// # Errors
    /// The kernel refused a step. The steps before it have been taken.
    pub fn repair(
        &self,
        ns: &NetNs,
        netlink: &mut Netlink,
        link: &Link,
    ) -> Result<Vec<String>, HostError> {
        let mut done = Vec::new();
        let index = link.index;
        if let Some(mac) = self.mac.filter(|mac| Some(*mac) != link.mac) {
            netlink.set_mac(index, mac)?;
            done.push(format!("MAC address {mac}"));
        }
        // First: the kernel disables IPv6 on an interface whose MTU is below 1280.
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu != link.mtu) {
            netlink.set_mtu(index, mtu)?;
            done.push(format!("MTU {mtu}"));
        }
        if !link.is_up {
            netlink.set_up(index)?;
            done.push("switched on".to_owned());
        }
        let has_ipv6 = self.has_ipv6() && is_ipv6_enabled(ns, &link.name);
        let is_wanted = |address: IpAddr| has_ipv6 || address.is_ipv4();
        self.put_back_addresses(netlink, index, is_wanted, &mut done)?;
        self.put_back_neighbours(netlink, index, is_wanted, &mut done)?;
        self.put_back_routes(netlink, index, is_wanted, &mut done)?;
        Ok(done)
    }

    /// As [`repair`](Self::repair), for an interface that was set up under `name`, which may
    /// have another name now.
    ///
    /// # Errors
    /// As `repair`; another interface has that name.
    pub fn repair_named(
        &self,
        ns: &NetNs,
        netlink: &mut Netlink,
        mut link: Link,
        name: &str,
    ) -> Result<Vec<String>, HostError> {
        let mut done = Vec::new();
        if link.name != name {
            // Kernels before 6.3 can rename an interface only while it is down.
            netlink.set_down(link.index)?;
            if let Err(error) = netlink.rename(link.index, name) {
                netlink.set_up(link.index)?;
                return Err(error);
            }
            done.push(format!("name, which was {}", link.name));
            (link.name, link.is_up) = (name.to_owned(), false);
        }
        done.extend(self.repair(ns, netlink, &link)?);
        Ok(done)
    }

    fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|a| a.address().is_ipv6())
            || self.neighbours.iter().any(|(address, _)| address.is_ipv6())
            || self.routes.iter().any(|route| route.destination.address().is_ipv6())
    }

    fn put_back_addresses(
        &self,
        netlink: &mut Netlink,
        index: u32,
        is_wanted: impl Fn(IpAddr) -> bool,
        done: &mut Vec<String>,
    ) -> Result<(), HostError> {
        if self.addresses.is_empty() {
            return Ok(());
        }
        let found = netlink.addresses()?;
        let is_missing = |wanted: &&InterfaceAddress| {
            !found.iter().any(|a| a.link == index && a.address == **wanted)
        };
        let wanted = self.addresses.iter().filter(|a| is_wanted(a.address()));
        let missing: Vec<InterfaceAddress> = wanted.filter(is_missing).copied().collect();
        for address in &missing {
            netlink.add_address(index, *address)?;
            done.push(format!("address {address}"));
        }
        for address in missing {
            // If a pod's address becomes usable late, the pod is not refused.
            let _ = netlink.wait_until_local(address.address());
        }
        Ok(())
    }

    fn put_back_neighbours(
        &self,
        netlink: &mut Netlink,
        index: u32,
        is_wanted: impl Fn(IpAddr) -> bool,
        done: &mut Vec<String>,
    ) -> Result<(), HostError> {
        if self.neighbours.is_empty() {
            return Ok(());
        }
        let found = netlink.neighbours()?;
        for (address, mac) in self.neighbours.iter().filter(|(address, _)| is_wanted(*address)) {
            let is_there = found.iter().any(|n| {
                (n.link, n.address, n.mac) == (index, *address, Some(*mac)) && n.is_confirmed
            });
            if !is_there {
                netlink.add_neighbour(index, *address, *mac)?;
                done.push(format!("neighbour {address} at {mac}"));
            }
        }
        Ok(())
    }

    fn put_back_routes(
        &self,
        netlink: &mut Netlink,
        index: u32,
        is_wanted: impl Fn(IpAddr) -> bool,
        done: &mut Vec<String>,
    ) -> Result<(), HostError> {
        if self.routes.is_empty() {
            return Ok(());
        }
        let found = netlink.routes()?;
        let wanted = self.routes.iter().filter(|r| is_wanted(r.destination.address()));
        for route in wanted.map(|route| route.clone().link(index)) {
            if !found.iter().any(|found| serves(found, &route)) {
                netlink.add_route(&route)?;
                done.push(format!("route {}", described(&route)));
            }
        }
        Ok(())
    }
}

/// Whether an existing route is the wanted one.
pub(crate) fn serves(found: &Route, wanted: &Route) -> bool {
    (found.destination, found.gateway, found.table)
        == (wanted.destination, wanted.gateway, wanted.table)
        && wanted.link.is_none_or(|link| found.link == Some(link))
        && wanted.source.is_none_or(|source| found.source == Some(source))
}

fn described(route: &Route) -> String {
    match route.gateway {
        Some(gateway) => format!("{} via {gateway}", route.destination),
        None => route.destination.to_string(),
    }
}

/// Whether the interface has IPv6: a kernel without IPv6 does not have this setting.
fn is_ipv6_enabled(ns: &NetNs, interface: &str) -> bool {
    let setting = format!("net/ipv6/conf/{interface}/disable_ipv6");
    sysctl::get(ns, &setting).is_ok_and(|value| value == "0")
}
