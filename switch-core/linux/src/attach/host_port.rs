//! The node's own port: a TAP in the node's namespace through which the node reaches its pods, and
//! through which the node's kernel routes pods' off-cluster traffic.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podswitch_core::config::Gateway;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::{InterfaceSettings, gateways};
use crate::handover::Inherited;
use crate::netlink::{Link, Route};
use crate::port::tap::{TapConfig, TapDevice};
use crate::settings::{ChangedSettings, FORWARDING};
use crate::{HostError, NetNs, Netlink, sysctl};

/// Configuration of the node's port.
#[derive(Clone, Debug)]
pub struct HostPortConfig {
    /// The interface's name.
    pub name: String,
    /// Its MAC address. `None`: the kernel chooses one.
    pub mac: Option<Mac>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// One queue for each worker.
    pub multi_queue: bool,
    /// The node's addresses; the first of each family is the source of what the node itself
    /// sends to pods.
    pub node_addresses: Vec<IpAddr>,
    /// The gateway for which the switch answers.
    pub gateway: Gateway,
    /// Ranges that the node reaches through the switch: pods' addresses.
    pub destinations: Vec<Cidr>,
    /// Makes the node's kernel forward packets, which pods' off-cluster traffic needs.
    pub forward: bool,
    /// What another process handed over. Then the node's kernel keeps forwarding for that process, and the interface is
    /// its own, until [`HostPort::adopt`].
    pub inherited: Inherited,
}

impl Default for HostPortConfig {
    fn default() -> Self {
        Self {
            name: "podswitch0".into(),
            mac: None,
            mtu: 1500,
            multi_queue: false,
            node_addresses: Vec::new(),
            gateway: Gateway::default(),
            destinations: Vec::new(),
            forward: true,
            inherited: Inherited::default(),
        }
    }
}

/// The node's side of its port. The routes are kept while this value lives. The interface is not
/// persistent: it disappears with its routes when the switch ends for any reason.
#[derive(Debug)]
pub struct HostPort {
    ns: NetNs,
    index: u32,
    mac: Mac,
    config: HostPortConfig,
    destinations: BTreeSet<Cidr>,
    /// Whether routes have other sources than the kernel was given.
    sources_changed: bool,
    changed: ChangedSettings,
    /// Another process has the interface as well: it stays when this value is dropped.
    is_shared: bool,
}

impl HostPort {
    /// Creates the interface in the node's namespace, with neighbours and routes. The caller
    /// attaches the device to the switch.
    ///
    /// # Errors
    /// As [`TapDevice::open`]; a route is refused (for example, the node does not have one of its
    /// configured addresses).
    pub fn open(ns: &NetNs, config: HostPortConfig) -> Result<(Self, TapDevice), HostError> {
        let device = TapDevice::open(ns, &tap_config(&config))?;
        let config_inherited = config.inherited.has_predecessor();
        let mut port = Self {
            ns: ns.clone(),
            index: device.index(),
            mac: device.mac(),
            destinations: config.destinations.iter().copied().collect(),
            config,
            sources_changed: false,
            changed: ChangedSettings::new(ns, FORWARDING),
            is_shared: config_inherited,
        };
        port.set_up()?;
        Ok((port, device))
    }

    /// The interface's MAC address: the destination of the switch's frames to the node.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The interface's index in the node's namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Recreates a deleted interface with its neighbours and routes. The switch attaches the device
    /// in place of the former.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn reopen(&mut self) -> Result<TapDevice, HostError> {
        let device = TapDevice::open(&self.ns, &tap_config(&self.config))?;
        (self.index, self.mac) = (device.index(), device.mac());
        self.set_up()?;
        Ok(device)
    }

    /// Restores the interface's settings and the node's forwarding. Returns a description of each
    /// repair; `None` if the interface itself does not exist any more.
    ///
    /// # Errors
    /// The kernel refused something.
    pub fn reconcile(&mut self) -> Result<Option<Vec<String>>, HostError> {
        let mut netlink = Netlink::open(&self.ns)?;
        let Some(link) = netlink.find_link_at(self.index)? else { return Ok(None) };
        let mut done = release(&mut netlink, &link)?;
        let settings = self.settings();
        done.extend(settings.repair_named(&self.ns, &mut netlink, link, &self.config.name)?);
        done.extend(self.forward()?);
        Ok(Some(done))
    }

    /// Sets the node addresses that its interfaces have: the sources of the routes.
    pub fn set_node_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.sources_changed |= self.config.node_addresses != addresses;
        self.config.node_addresses = addresses;
    }

    /// The process that handed the interface over has ended: from now on it is this one's alone, with the node's
    /// forwarding.
    ///
    /// # Errors
    /// The kernel's settings cannot be written.
    pub fn adopt(&mut self) -> Result<(), HostError> {
        self.is_shared = false;
        self.config.inherited = Inherited::default();
        self.changed = ChangedSettings::new(&self.ns, FORWARDING);
        self.forward().map(drop)
    }

    /// Another process goes on with the interface: it stays when this is dropped, with its routes.
    pub fn share(&mut self) {
        self.is_shared = true;
    }

    /// Takes the interface back: no other process goes on with it.
    pub fn unshare(&mut self) {
        self.is_shared = false;
    }

    /// Leaves the node's kernel forwarding when this is dropped, for the next run.
    pub fn leave_in_force(&mut self) {
        self.changed.leave_in_force();
    }

    /// Sets the MTU, in bytes.
    ///
    /// # Errors
    /// The interface does not exist, or does not accept this MTU.
    pub fn set_mtu(&mut self, mtu: u32) -> Result<(), HostError> {
        self.config.mtu = mtu;
        Netlink::open(&self.ns)?.set_mtu(self.index, mtu)
    }

    /// Replaces the ranges that the node reaches through the switch. All new routes are added
    /// before the first old one is removed.
    ///
    /// # Errors
    /// A route is refused; those before it are in force then, and [`reconcile`](Self::reconcile)
    /// tries the others again.
    pub fn set_destinations(&mut self, destinations: BTreeSet<Cidr>) -> Result<(), HostError> {
        let removed = self.destinations.difference(&destinations).copied().collect();
        let added = match std::mem::take(&mut self.sources_changed) {
            true => {
                self.destinations.clear();
                destinations
            }
            false => destinations.difference(&self.destinations).copied().collect(),
        };
        self.change(added, removed)
    }

    /// Adds and removes single ranges that the node reaches through the switch. Ranges that are there already, or not
    /// there, are ignored.
    ///
    /// # Errors
    /// As [`set_destinations`](Self::set_destinations).
    pub fn change_destinations(
        &mut self,
        mut added: BTreeSet<Cidr>,
        mut removed: BTreeSet<Cidr>,
    ) -> Result<(), HostError> {
        added.retain(|range| !self.destinations.contains(range));
        removed.retain(|range| self.destinations.contains(range));
        self.change(added, removed)
    }

    fn change(&mut self, added: BTreeSet<Cidr>, removed: BTreeSet<Cidr>) -> Result<(), HostError> {
        let routes =
            |ranges: &BTreeSet<Cidr>| ranges.iter().map(|range| self.route(*range)).collect();
        let (new, old): (Vec<Route>, Vec<Route>) = (routes(&added), routes(&removed));
        for range in &removed {
            self.destinations.remove(range);
        }
        self.destinations.extend(added);
        change_routes(&self.ns, &new, &old)
    }

    fn set_up(&mut self) -> Result<(), HostError> {
        super::disable_autoconfiguration(&self.ns, &self.config.name);
        if !self.is_shared {
            self.relax();
        }
        let mut netlink = Netlink::open(&self.ns)?;
        let link = netlink.link(&self.config.name)?;
        self.settings().repair(&self.ns, &mut netlink, &link)?;
        self.forward().map(drop)
    }

    /// Enables forwarding in the node's kernel, if configured. Returns the settings that had to be
    /// set.
    fn forward(&mut self) -> Result<Vec<String>, HostError> {
        let mut done = Vec::new();
        if self.config.forward {
            self.enable("net/ipv4/ip_forward", &mut done)?;
            if self.has_ipv6() {
                self.enable("net/ipv6/conf/all/forwarding", &mut done)?;
            }
        }
        Ok(done)
    }

    /// The wanted settings of the interface.
    fn settings(&self) -> InterfaceSettings {
        let destinations = self.destinations.iter();
        InterfaceSettings {
            mac: Some(self.mac),
            mtu: Some(self.config.mtu),
            addresses: Vec::new(),
            neighbours: gateways(&self.config.gateway)
                .map(|(_, gateway)| (gateway, self.config.gateway.mac))
                .to_vec(),
            routes: destinations.map(|destination| self.route(*destination)).collect(),
        }
    }

    /// The switch has already checked sources, so a loose reverse path check is enough in the
    /// node's kernel, and the kernel need not send redirects to pods. Optional: the usual case
    /// works without these settings.
    fn relax(&self) {
        for (setting, value) in [("rp_filter", "2"), ("send_redirects", "0")] {
            let key = format!("net/ipv4/conf/{}/{setting}", self.config.name);
            let _ = sysctl::set(&self.ns, &key, value);
        }
    }

    fn has_ipv6(&self) -> bool {
        self.config.node_addresses.iter().any(IpAddr::is_ipv6)
            || self.destinations.iter().any(|d| d.address().is_ipv6())
    }

    fn route(&self, destination: Cidr) -> Route {
        let is_ipv4 = destination.address().is_ipv4();
        let gateway = &self.config.gateway;
        let gateway = if is_ipv4 { gateway.ipv4.into() } else { gateway.ipv6.into() };
        let mut route = Route::to(destination).via(gateway).link(self.index).onlink();
        route.source = self.config.node_addresses.iter().copied().find(|a| a.is_ipv4() == is_ipv4);
        route
    }

    fn enable(&mut self, setting: &str, done: &mut Vec<String>) -> Result<(), HostError> {
        if self.changed.set(setting, "1")? {
            done.push(format!("{setting} = 1"));
        }
        Ok(())
    }
}

/// Adds routes, and then removes others. Those that are gone already are ignored.
///
/// # Errors
/// The kernel refused a route; those before it are in force.
pub fn change_routes(ns: &NetNs, added: &[Route], removed: &[Route]) -> Result<(), HostError> {
    if added.is_empty() && removed.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open(ns)?;
    added.iter().try_for_each(|route| netlink.add_route(route))?;
    for route in removed {
        match netlink.delete_route(route) {
            Err(error) if error.is_not_found() => {}
            result => result?,
        }
    }
    Ok(())
}

/// Removes the node's interface from a bridge or another master interface: its packets would bypass
/// the settings of this interface and enter the node's stack there. Returns a description of each
/// repair.
///
/// # Errors
/// Missing privilege.
pub fn release(netlink: &mut Netlink, link: &Link) -> Result<Vec<String>, HostError> {
    if link.master.is_none() {
        return Ok(Vec::new());
    }
    netlink.set_master(link.index, None)?;
    Ok(vec!["taken out of a bridge".to_owned()])
}

fn tap_config(config: &HostPortConfig) -> TapConfig {
    TapConfig {
        name: config.name.clone(),
        mac: config.mac,
        mtu: config.mtu,
        multi_queue: config.multi_queue,
        persistent: false,
        inherited: config.inherited.clone(),
    }
}

impl Drop for HostPort {
    fn drop(&mut self) {
        if self.is_shared {
            return;
        }
        // Best effort, because the namespace may not exist any more, and there is no caller to
        // report to.
        let _ = Netlink::open(&self.ns).and_then(|mut n| n.delete_link(self.index));
    }
}
