//! Steering of Services at the node's own addresses into the switch: node ports, host ports,
//! load-balancer and external addresses that the node has. Otherwise the node's stack would answer
//! them.
//!
//! Packets to them are marked ([`nft`](super::nft)) where they enter the node's stack, from the
//! network or from local processes, and a routing rule before the kernel's local rule sends marked
//! packets to the switch with unchanged addresses. The switch answers from the node's own
//! addresses, which the node's interface to the switch is configured to accept.
//!
//! The kernel's rule for the local table has the highest priority and is moved behind ours; a local
//! rule exists at every moment. Everything is restored at the end.
//!
//! Host ports at `::1` need one more step, because the kernel discards packets with that address from
//! any interface but the loopback device: the switch's replies are passed to that device
//! (`nft::loopback`).
//!
//! The rules that a killed run left, or a run that [leaves them](Steering::leave_in_force), are
//! taken over by the next one. Until then marked packets are discarded: the route to the interface
//! is removed with the interface, and a second route discards the packets. If the node's stack
//! received them, it would reset connections that the next run continues. [`forget`] removes the
//! rules if no run follows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_core::config::Gateway;
use podswitch_wire::cidr::Cidr;

use super::attach::serves;
use super::netlink::{InterfaceAddress, Route, Rule};
use super::nft::{Installed, L4Address, Marking, MarkingConfig, forget_marks, loopback};
use super::{HostError, NetNs, Netlink, sysctl};

/// Priorities of the rule for marked packets and of the kernel's local rule after it.
const MARKED: u32 = 80;
const LOCAL: u32 = 81;
/// Metric of the route that discards packets while there is no switch: all other routes have a
/// better one.
const LAST: u32 = u32::MAX - 1;
/// The kernel's local table.
const LOCAL_TABLE: u32 = 255;
/// An address for the interface where the kernel requires one, from the link-local range (RFC
/// 3927).
const FALLBACK: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);

/// Configuration of steering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SteeringConfig {
    /// The node's interface to the switch.
    pub interface: String,
    /// The gateway for which the switch answers.
    pub gateway: Gateway,
    /// Routing table of marked packets.
    pub table: u32,
    /// Name of the nftables table.
    pub marks: String,
    /// The mark: one bit that nothing else on the node uses.
    pub mark: u32,
    /// MTU of the interface to the switch.
    pub mtu: u16,
    /// Addresses from which the switch sends: the node's, and those of its own masquerading.
    pub sources: Vec<IpAddr>,
    /// Addresses and ports of the switch.
    pub service_addresses: Vec<L4Address>,
    /// Servers of the node itself to which the switch forwards clients with the clients' own
    /// addresses.
    pub servers: Vec<L4Address>,
    /// The mark of connections to these servers, in conntrack: one bit that nothing else uses.
    pub server_mark: u32,
}

impl Default for SteeringConfig {
    fn default() -> Self {
        Self {
            interface: "podswitch0".into(),
            gateway: Gateway::default(),
            table: 28_787,
            marks: "podswitch-services".into(),
            mark: 0x0800_0000,
            mtu: 1500,
            sources: Vec::new(),
            service_addresses: Vec::new(),
            servers: Vec::new(),
            server_mark: 0x1000_0000,
        }
    }
}

impl SteeringConfig {
    fn marking(&self) -> MarkingConfig {
        MarkingConfig {
            table: self.marks.clone(),
            host_interface: self.interface.clone(),
            mark: self.mark,
            mtu: self.mtu,
            sources: self.sources.clone(),
            service_addresses: self.service_addresses.clone(),
            servers: self.servers.clone(),
            server_mark: self.server_mark,
        }
    }

    fn rule(&self, is_ipv6: bool) -> Rule {
        let mark = Some((self.mark, self.mark));
        Rule { is_ipv6, priority: MARKED, table: self.table, mark, ..Rule::default() }
    }
}

/// Steering in force while this value lives.
#[derive(Debug)]
pub struct Steering {
    ns: NetNs,
    config: SteeringConfig,
    marking: Marking,
    rules: Rules,
    /// Delivery of replies from and to `::1`, if a host port is there and the kernel can.
    loopback: Loopback,
}

impl Steering {
    /// Installs steering in the node's namespace. The interface must exist and be up.
    ///
    /// # Errors
    /// There is no such interface; missing privilege; a kernel without nf_tables.
    pub fn install(ns: &NetNs, config: SteeringConfig) -> Result<Self, HostError> {
        let mut rules = Rules { ns: ns.clone(), ours: Vec::new() };
        repair(ns, &config, &mut rules)?;
        let marking = Marking::install(ns, &config.marking())?;
        let mut loopback = Loopback::new(ns);
        loopback.follow(&config)?;
        Ok(Self { ns: ns.clone(), config, marking, rules, loopback })
    }

    /// Replaces the steered addresses, atomically. Steered connections continue.
    ///
    /// # Errors
    /// Missing privilege; the rules in force stay, until they are [repaired](Self::reconcile).
    pub fn update(
        &mut self,
        mtu: u16,
        sources: Vec<IpAddr>,
        (service_addresses, servers): (Vec<L4Address>, Vec<L4Address>),
    ) -> Result<(), HostError> {
        let config =
            SteeringConfig { mtu, sources, service_addresses, servers, ..self.config.clone() };
        if config == self.config {
            return Ok(());
        }
        self.config = config;
        self.marking.update(&self.config.marking())?;
        self.loopback.follow(&self.config).map(drop)
    }

    /// Why host ports at `::1` are not reached there, once: a kernel without nf_tables' forwarding
    /// between interfaces.
    pub fn take_loopback_failure(&mut self) -> Option<HostError> {
        self.loopback.failure.take()
    }

    /// Restores removed settings, routes, rules and marks. Returns a description of each repair.
    ///
    /// # Errors
    /// The interface does not exist any more; missing privilege.
    pub fn reconcile(&mut self) -> Result<Vec<String>, HostError> {
        let mut done = repair(&self.ns, &self.config, &mut self.rules)?;
        if self.marking.repair()? {
            done.push(format!("nftables table {}", self.config.marks));
        }
        if self.loopback.follow(&self.config)? {
            done.push("delivery of packets from ::1".to_owned());
        }
        Ok(done)
    }

    /// Leaves steering in force when this value is dropped, as a kill does: steered packets are
    /// discarded until the next run.
    pub fn leave_in_force(&mut self) {
        self.marking.leave_in_force();
        self.rules.ours.clear();
        self.loopback.ns = None;
    }

    /// Restores the kernel's rules.
    ///
    /// # Errors
    /// Missing privilege.
    pub fn stop(self) -> Result<(), HostError> {
        let Self { ns, marking, mut rules, loopback, .. } = self;
        drop((marking, loopback));
        rules.remove(&ns)
    }
}

/// Adds missing settings of the interface, routes of marked packets, and rules. Returns a
/// description of each repair.
fn repair(
    ns: &NetNs,
    config: &SteeringConfig,
    rules: &mut Rules,
) -> Result<Vec<String>, HostError> {
    let mut netlink = Netlink::open(ns)?;
    let index = netlink.link(&config.interface)?.index;
    let mut done = accept_own_addresses(ns, &mut netlink, index, &config.interface)?;
    let found = netlink.all_routes()?;
    for is_ipv6 in families(ns) {
        let gateway: IpAddr = match is_ipv6 {
            false => config.gateway.ipv4.into(),
            true => config.gateway.ipv6.into(),
        };
        let everywhere = everywhere(is_ipv6);
        let discard = discard(is_ipv6, config.table);
        if !found.iter().any(|found| is_discard(found, &discard)) {
            netlink.add_route(&discard)?;
            done.push(format!("route {discard}"));
        }
        let route = Route::to(everywhere).via(gateway).link(index).onlink().table(config.table);
        if !found.iter().any(|found| serves(found, &route)) {
            netlink.add_route(&route)?;
            done.push(format!("route {route}"));
        }
        rules.repair(&mut netlink, config.rule(is_ipv6), &mut done)?;
    }
    Ok(done)
}

fn everywhere(is_ipv6: bool) -> Cidr {
    let any = match is_ipv6 {
        false => Ipv4Addr::UNSPECIFIED.into(),
        true => Ipv6Addr::UNSPECIFIED.into(),
    };
    Cidr::new(any, 0).expect("a prefix of no bits fits")
}

/// The route that discards marked packets while there is no switch.
fn discard(is_ipv6: bool, table: u32) -> Route {
    Route::to(everywhere(is_ipv6)).table(table).metric(LAST).blackhole()
}

/// The kernel reports an interface for an IPv6 route of this kind.
fn is_discard(found: &Route, discard: &Route) -> bool {
    found.blackhole && found.table == discard.table && found.destination == discard.destination
}

/// Removes the steering of an earlier run with the default configuration, if no other run follows.
///
/// # Errors
/// Missing privilege.
pub fn forget(ns: &NetNs) -> Result<(), HostError> {
    let config = SteeringConfig::default();
    let ours = families(ns).into_iter().map(|is_ipv6| config.rule(is_ipv6)).collect();
    forget_marks(ns, &config.marks)?;
    loopback::remove(ns)?;
    Rules { ns: ns.clone(), ours }.remove(ns)
}

/// Delivery of replies from and to `::1` ([`loopback`]), while a host port is there.
#[derive(Debug)]
struct Loopback {
    /// `None`: what is installed stays.
    ns: Option<NetNs>,
    /// With the index of the interface: before Linux 6.16 the rules end with it, without a trace in
    /// the generation of nf_tables.
    installed: Option<(u32, Installed)>,
    /// Rules of this run, or of an earlier one, may be in force.
    may_be_there: bool,
    /// The kernel cannot, so it is not tried again.
    is_missing: bool,
    failure: Option<HostError>,
}

impl Loopback {
    fn new(ns: &NetNs) -> Self {
        let ns = Some(ns.clone());
        Self { ns, installed: None, may_be_there: true, is_missing: false, failure: None }
    }

    /// Installs or removes the rules as the configuration wants. Returns whether rules that had been
    /// installed were missing or changed.
    fn follow(&mut self, config: &SteeringConfig) -> Result<bool, HostError> {
        let Some(ns) = &self.ns else { return Ok(false) };
        if !config.service_addresses.iter().any(|front| front.address == Ipv6Addr::LOCALHOST) {
            // That of a run that was killed, too.
            if self.may_be_there {
                loopback::remove(ns)?;
                (self.installed, self.may_be_there) = (None, false);
            }
            return Ok(false);
        }
        // It is being made again.
        let Some(link) = Netlink::open(ns)?.find_link(&config.interface)? else { return Ok(false) };
        let had = self.installed.is_some();
        let is_intact = match &mut self.installed {
            Some((index, installed)) => *index == link.index && installed.is_intact()?,
            None => self.is_missing,
        };
        if is_intact {
            return Ok(false);
        }
        match loopback::deliver(ns, &config.interface) {
            Ok(installed) => {
                self.installed = Some((link.index, installed));
                self.may_be_there = true;
            }
            // Everything else is served without it. A kernel that cannot is not asked again.
            Err(error) => {
                self.is_missing = is_missing(&error);
                self.installed = None;
                self.failure.get_or_insert(error);
            }
        }
        Ok(had)
    }
}

/// Whether the kernel does not have what the rules need.
fn is_missing(error: &HostError) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EAFNOSUPPORT))
}

impl Drop for Loopback {
    fn drop(&mut self) {
        if let Some(ns) = self.ns.as_ref().filter(|_| self.may_be_there) {
            // Best effort: without the interface the rules have no effect.
            let _ = loopback::remove(ns);
        }
    }
}

/// The routing rules, and the routes that discard packets; restored when dropped.
#[derive(Debug)]
struct Rules {
    ns: NetNs,
    ours: Vec<Rule>,
}

impl Rules {
    /// The kernel's local rule must come after ours. Adds the missing ones.
    fn repair(
        &mut self,
        netlink: &mut Netlink,
        ours: Rule,
        done: &mut Vec<String>,
    ) -> Result<(), HostError> {
        let there = netlink.rules()?;
        let local: Vec<&Rule> = there.iter().filter(|r| is_local(r, ours.is_ipv6)).collect();
        if !local.iter().any(|rule| rule.priority > MARKED) {
            let moved = local_rule(ours.is_ipv6, LOCAL);
            netlink.add_rule(&moved)?;
            done.push(moved.to_string());
        }
        if !there.contains(&ours) {
            netlink.add_rule(&ours)?;
            done.push(ours.to_string());
        }
        for early in local.into_iter().filter(|rule| rule.priority <= MARKED) {
            netlink.delete_rule(early)?;
            done.push(format!("{early} behind the switch's"));
        }
        if !self.ours.contains(&ours) {
            self.ours.push(ours);
        }
        Ok(())
    }

    fn remove(&mut self, ns: &NetNs) -> Result<(), HostError> {
        let ours = std::mem::take(&mut self.ours);
        if ours.is_empty() {
            return Ok(());
        }
        let mut netlink = Netlink::open(ns)?;
        let there = netlink.rules()?;
        for rule in ours {
            let moved = local_rule(rule.is_ipv6, LOCAL);
            if there.contains(&moved) {
                netlink.add_rule(&local_rule(rule.is_ipv6, 0))?;
                netlink.delete_rule(&moved)?;
            }
            let removed = [
                netlink.delete_rule(&rule),
                netlink.delete_route(&discard(rule.is_ipv6, rule.table)),
            ];
            for result in removed {
                match result {
                    Err(error) if error.is_not_found() => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        // Best effort, because the namespace may not exist any more, and there is no caller to
        // report to.
        let ns = self.ns.clone();
        let _ = self.remove(&ns);
    }
}

/// The kernel's rule for the local table.
fn local_rule(is_ipv6: bool, priority: u32) -> Rule {
    Rule { is_ipv6, priority, table: LOCAL_TABLE, ..Rule::default() }
}

fn is_local(rule: &Rule, is_ipv6: bool) -> bool {
    *rule == local_rule(is_ipv6, rule.priority)
}

/// IPv4, and IPv6 if the namespace has it.
fn families(ns: &NetNs) -> Vec<bool> {
    let disabled = sysctl::get(ns, "net/ipv6/conf/all/disable_ipv6");
    if disabled.is_ok_and(|value| value == "0") { vec![false, true] } else { vec![false] }
}

/// Lets the kernel accept packets with its own source addresses from the switch (accept_local,
/// loose rp_filter). IPv6 accepts them anyway. Returns the settings that had to be set.
fn accept_own_addresses(
    ns: &NetNs,
    netlink: &mut Netlink,
    index: u32,
    interface: &str,
) -> Result<Vec<String>, HostError> {
    // The stricter of the interface's setting and the one for all applies. The loose check accepts
    // any address on an interface that has an address itself.
    let is_checked = sysctl::get(ns, "net/ipv4/conf/all/rp_filter")? != "0";
    let rp_filter = if is_checked { "2" } else { "0" };
    let mut done = Vec::new();
    // route_localnet: host ports at 127.0.0.1. The switch sends packets with such an address only
    // as replies to the node's own processes (T-S4).
    let settings = [
        ("rp_filter", rp_filter),
        ("accept_local", "1"),
        ("send_redirects", "0"),
        ("route_localnet", "1"),
    ];
    for (setting, value) in settings {
        let key = format!("net/ipv4/conf/{interface}/{setting}");
        if sysctl::repair(ns, &key, value)? {
            done.push(format!("{key} = {value}"));
        }
    }
    let address = InterfaceAddress::from(IpAddr::from(FALLBACK));
    let is_there = |netlink: &mut Netlink| -> Result<bool, HostError> {
        Ok(netlink.addresses()?.iter().any(|a| (a.link, a.address) == (index, address)))
    };
    if is_checked && !is_there(netlink)? {
        netlink.add_address(index, address)?;
        done.push(format!("address {address}"));
    }
    Ok(done)
}
