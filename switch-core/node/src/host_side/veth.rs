//! The node's port where there is no TAP: a veth pair, one end the node's, the other in the
//! switch's namespace under AF_PACKET. For machines whose tun device is not there or not open to
//! this user; all else is as with [`podswitch_linux::attach::HostPort`].

use std::collections::HashSet;
use std::net::IpAddr;

use podswitch_core::config::Gateway;
use podswitch_linux::attach::{HostPortConfig, detach_veth};
use podswitch_linux::netlink::{LinkSpec, Route};
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::{HostError, NetNs, Netlink, sysctl};
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

/// The switch's end.
const OURS: &str = "ps-node";

/// The node's end and its routes, there while this value lives.
#[derive(Debug)]
pub(super) struct VethHost {
    node: NetNs,
    switch: NetNs,
    index: u32,
    mac: Mac,
    config: HostPortConfig,
    /// Settings to put back: name and former value.
    changed: Vec<(&'static str, String)>,
}

impl VethHost {
    /// Makes the pair, with neighbours and routes. The device is for the switch to attach.
    pub(super) fn open(
        node: &NetNs,
        switch: &NetNs,
        config: HostPortConfig,
    ) -> Result<(Self, PacketDevice), HostError> {
        // What a killed run left.
        detach_veth(switch, OURS)?;
        let (mut here, mut there) = (Netlink::open(node)?, Netlink::open(switch)?);
        let mut theirs = LinkSpec::new(&config.name).mtu(config.mtu).up();
        if let Some(mac) = config.mac {
            theirs = theirs.mac(mac);
        }
        there.add_veth(&LinkSpec::new(OURS).mtu(config.mtu).up(), &theirs, node)?;
        let link = here.link(&config.name)?;
        let mac = link.mac.unwrap_or_default();
        let (node, switch, index) = (node.clone(), switch.clone(), link.index);
        let mut side = Self { node, switch, index, mac, config, changed: Vec::new() };
        side.set_up(&mut here)?;
        let device = PacketDevice::new(&side.switch, OURS, PacketConfig::default())?;
        Ok((side, device))
    }

    /// MAC address of the node's end.
    pub(super) fn mac(&self) -> Mac {
        self.mac
    }

    /// Sets the MTU of the switch's end, in bytes.
    pub(super) fn set_mtu(&self, mtu: u32) -> Result<(), HostError> {
        crate::pods::set_mtu(&self.switch, OURS, mtu)
    }

    /// Replaces the ranges that the node reaches by the switch.
    pub(super) fn set_destinations(&mut self, destinations: Vec<Cidr>) -> Result<(), HostError> {
        let mut netlink = Netlink::open(&self.node)?;
        for destination in &destinations {
            netlink.add_route(&self.route(*destination))?;
        }
        let old = std::mem::replace(&mut self.config.destinations, destinations);
        let stay: HashSet<&Cidr> = self.config.destinations.iter().collect();
        for destination in old.iter().filter(|d| !stay.contains(d)) {
            match netlink.delete_route(&self.route(*destination)) {
                Err(error) if error.is_not_found() => {}
                result => result?,
            }
        }
        Ok(())
    }

    fn set_up(&mut self, netlink: &mut Netlink) -> Result<(), HostError> {
        let Gateway { ipv4, ipv6, mac } = self.config.gateway;
        netlink.add_neighbour(self.index, ipv4.into(), mac)?;
        if self.has_ipv6() {
            netlink.add_neighbour(self.index, ipv6.into(), mac)?;
        }
        self.set_destinations(self.config.destinations.clone())?;
        if self.config.forward {
            self.change("net/ipv4/ip_forward", "1")?;
            if self.has_ipv6() {
                self.change("net/ipv6/conf/all/forwarding", "1")?;
            }
        }
        Ok(())
    }

    fn has_ipv6(&self) -> bool {
        self.config.destinations.iter().any(|range| range.address().is_ipv6())
    }

    fn route(&self, destination: Cidr) -> Route {
        let Gateway { ipv4, ipv6, .. } = self.config.gateway;
        let is_ipv4 = destination.address().is_ipv4();
        let via: IpAddr = if is_ipv4 { ipv4.into() } else { ipv6.into() };
        let mut route = Route::to(destination).via(via).link(self.index).onlink();
        route.source = self.config.node_addresses.iter().copied().find(|a| a.is_ipv4() == is_ipv4);
        route
    }

    fn change(&mut self, setting: &'static str, value: &str) -> Result<(), HostError> {
        let before = sysctl::get(&self.node, setting)?;
        if before != value {
            sysctl::set(&self.node, setting, value)?;
            self.changed.push((setting, before));
        }
        Ok(())
    }
}

impl Drop for VethHost {
    fn drop(&mut self) {
        // Best effort: there is nobody left to report to.
        for (setting, before) in self.changed.drain(..).rev() {
            let _ = sysctl::set(&self.node, setting, &before);
        }
        let _ = detach_veth(&self.switch, OURS);
    }
}
