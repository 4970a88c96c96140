//! The node's port without TAP: a veth pair with one end in the node's namespace and the other,
//! used through AF_PACKET, in the switch's. For machines whose tun device is missing or not
//! accessible to this user; otherwise like [`podswitch_linux::attach::HostPort`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use podswitch_core::config::Gateway;
use podswitch_linux::attach::{
    HostPortConfig, InterfaceSettings, change_routes, detach_veth, release,
};
use podswitch_linux::netlink::{Link, LinkSpec, Route};
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::settings::{ChangedSettings, FORWARDING};
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

/// The switch's end.
const OURS: &str = "ps-node";

/// The node's end and its routes, which exist while this value lives.
#[derive(Debug)]
pub(super) struct VethHost {
    node: NetNs,
    switch: NetNs,
    index: u32,
    mac: Mac,
    config: HostPortConfig,
    destinations: BTreeSet<Cidr>,
    /// Whether the routes' source addresses differ from those in the kernel.
    sources_changed: bool,
    changed: ChangedSettings,
}

impl VethHost {
    /// Creates the pair, with neighbours and routes. The switch attaches the device.
    pub(super) fn open(
        node: &NetNs,
        switch: &NetNs,
        config: HostPortConfig,
    ) -> Result<(Self, PacketDevice), HostError> {
        let mut side = Self {
            node: node.clone(),
            switch: switch.clone(),
            index: 0,
            mac: Mac::ZERO,
            destinations: config.destinations.iter().copied().collect(),
            config,
            sources_changed: false,
            changed: ChangedSettings::new(node, FORWARDING),
        };
        let device = side.reopen()?;
        Ok((side, device))
    }

    /// Creates the pair, replacing one that was deleted or that a killed run left.
    pub(super) fn reopen(&mut self) -> Result<PacketDevice, HostError> {
        detach_veth(&self.switch, OURS)?;
        let (mut here, mut there) = (Netlink::open(&self.node)?, Netlink::open(&self.switch)?);
        let mut theirs = LinkSpec::new(&self.config.name).mtu(self.config.mtu).up();
        if let Some(mac) = self.config.mac {
            theirs = theirs.mac(mac);
        }
        let ours = LinkSpec::new(OURS).mtu(self.config.mtu).up();
        there.add_veth(&ours, &theirs, &self.node)?;
        let link = here.link(&self.config.name)?;
        (self.index, self.mac) = (link.index, link.mac.unwrap_or_default());
        self.repair(&mut here, link)?;
        PacketDevice::new(&self.switch, OURS, PacketConfig::default())
    }

    /// Restores the interface's settings and the node's forwarding. Returns a description of each;
    /// `None` if the interface itself is gone.
    pub(super) fn reconcile(&mut self) -> Result<Option<Vec<String>>, HostError> {
        let mut there = Netlink::open(&self.switch)?;
        let mut here = Netlink::open(&self.node)?;
        let (Some(ours), Some(link)) = (there.find_link(OURS)?, here.find_link_at(self.index)?)
        else {
            return Ok(None);
        };
        let wanted = InterfaceSettings { mtu: Some(self.config.mtu), ..Default::default() };
        let mut done = wanted.repair(&self.switch, &mut there, &ours)?;
        done.extend(release(&mut here, &link)?);
        done.extend(self.repair(&mut here, link)?);
        Ok(Some(done))
    }

    /// MAC address of the node's end.
    pub(super) fn mac(&self) -> Mac {
        self.mac
    }

    /// Sets those of the node's addresses that its interfaces have. They are the source addresses
    /// of the routes.
    pub(super) fn set_node_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.sources_changed |= self.config.node_addresses != addresses;
        self.config.node_addresses = addresses;
    }

    /// Leaves the node's kernel forwarding when this is dropped, for the next run.
    pub(super) fn leave_in_force(&mut self) {
        self.changed.leave_in_force();
    }

    /// Sets the MTU of both ends, in bytes.
    pub(super) fn set_mtu(&mut self, mtu: u32) -> Result<(), HostError> {
        self.config.mtu = mtu;
        crate::pods::set_mtu(&self.switch, OURS, mtu)?;
        Netlink::open(&self.node)?.set_mtu(self.index, mtu)
    }

    /// Replaces the ranges that the node reaches through the switch.
    pub(super) fn set_destinations(
        &mut self,
        destinations: BTreeSet<Cidr>,
    ) -> Result<(), HostError> {
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

    /// Adds and removes single ranges. Those that are there already, or not there, are ignored.
    pub(super) fn change_destinations(
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
        change_routes(&self.node, &new, &old)
    }

    /// Restores what is missing on the node's end and in the node's kernel. Returns a description
    /// of each.
    fn repair(&mut self, netlink: &mut Netlink, link: Link) -> Result<Vec<String>, HostError> {
        let Gateway { ipv4, ipv6, mac } = self.config.gateway;
        let wanted = InterfaceSettings {
            mac: Some(self.mac),
            mtu: Some(self.config.mtu),
            addresses: Vec::new(),
            neighbours: vec![(ipv4.into(), mac), (ipv6.into(), mac)],
            routes: self.destinations.iter().map(|range| self.route(*range)).collect(),
        };
        let mut done = wanted.repair_named(&self.node, netlink, link, &self.config.name)?;
        if self.config.forward {
            self.enable("net/ipv4/ip_forward", &mut done)?;
            if self.has_ipv6() {
                self.enable("net/ipv6/conf/all/forwarding", &mut done)?;
            }
        }
        Ok(done)
    }

    fn has_ipv6(&self) -> bool {
        self.destinations.iter().any(|range| range.address().is_ipv6())
    }

    fn route(&self, destination: Cidr) -> Route {
        let Gateway { ipv4, ipv6, .. } = self.config.gateway;
        let is_ipv4 = destination.address().is_ipv4();
        let via: IpAddr = if is_ipv4 { ipv4.into() } else { ipv6.into() };
        let mut route = Route::to(destination).via(via).link(self.index).onlink();
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

impl Drop for VethHost {
    fn drop(&mut self) {
        // Best effort: there is no caller to report to.
        let _ = detach_veth(&self.switch, OURS);
    }
}
