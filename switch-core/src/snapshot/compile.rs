//! Configuration → snapshot: everything is checked here, so that nothing needs checking later.
//!
//! Control plane only. All errors of a configuration are found, not just the first.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_policy::maglev::{self, Maglev};
use podswitch_policy::prefix::PrefixMap;
use podswitch_policy::service::table::ServiceTable;
use podswitch_policy::touched::Touched;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::{
    BridgePort, Domain, FibEntry, HostPort, Member, NextHops, PodChanges, PolicyCounters,
    PortFacts, Reach, Snapshot, Tagging, Tunnels, UplinkPort, Uplinks, tunnels,
};
use crate::config::{Config, ConfigError, NextHop, PortConfig, PortRole, Vlans};
use crate::id::{Cookie, Epoch, PortId};
use crate::route::fdb::{self, Bounds};

/// Compiles `config` into the snapshot of `epoch`, all but policy and Services, whose compilers
/// keep their own state. `fdb_ids` remembers what the FDB knows each
/// VLAN of each domain by; it is only added to. `before` is the snapshot in force, `pods` what changed
/// of them since, and `ground` whether all that is no pod, policy or Service is as it was then. What the
/// snapshot touches is what others than pods, policy and Services have to do with.
///
/// # Errors
/// Everything that is wrong, each with object, field and reason.
pub fn compile(
    config: &Config,
    epoch: Epoch,
    fdb_ids: &mut FdbIds,
    before: &Snapshot,
    pods: &PodChanges<'_>,
    ground: bool,
) -> Result<Snapshot, Vec<ConfigError>> {
    let mut build = Build {
        config,
        errors: Vec::new(),
        ports: Vec::new(),
        host: None,
        uplinks: Uplinks::default(),
    };
    build.node();
    build.masquerade();
    let domains = build.bridges(fdb_ids);
    build.ports(&domains);
    let endpoints = build.endpoints(before, pods);
    let tunnels = tunnels::Compiler::new(config, build.uplinks, &mut build.errors);
    let tunnels = tunnels.compile(&before.tunnels);
    let ground = ground && Arc::ptr_eq(&tunnels, &before.tunnels);
    let fib = if ground { before.fib.clone() } else { Arc::new(build.fib(&tunnels)) };
    let mut touched = before.touched.clone();
    touched.touch(epoch, if ground { pods.touched() } else { Touched::Everything });
    let Build { errors, mut ports, host, uplinks, .. } = build;
    if !errors.is_empty() {
        return Err(errors);
    }
    let domains = fill_domains(domains, &mut ports);
    Ok(Snapshot {
        epoch,
        touched,
        gateway: config.node.gateway,
        node_addresses: config.node.addresses.clone().into(),
        nat_ports: config.node.nat_ports.clone(),
        ports: ports.into(),
        host,
        uplinks,
        tunnels,
        node: config.node.name.clone(),
        endpoints: endpoints.by_address,
        attached: endpoints.attached,
        fib,
        policy: Arc::default(),
        policy_counters: PolicyCounters::default(),
        services: ServiceTable::default(),
        masquerade: config.masquerade.clone().map(Arc::new),
        cluster_key: config.cluster_key.0,
        domains: domains.into(),
    })
}

/// Compiles a configuration by itself: what [`compile`] would say of it with nothing in force.
///
/// # Errors
/// Everything that is wrong, each with object, field and reason.
pub fn check(config: &Config) -> Result<Snapshot, Vec<ConfigError>> {
    let pods = PodChanges { gone: Vec::new(), here: config.endpoints.iter().collect() };
    compile(config, Epoch(1), &mut FdbIds::default(), &Snapshot::empty(), &pods, false)
}

/// What the FDB knows each VLAN of each bridge domain by, kept from epoch to epoch.
#[derive(Debug, Default)]
pub struct FdbIds(HashMap<(Arc<str>, u16), u16>);

impl FdbIds {
    fn of(&mut self, domain: &Arc<str>, vid: u16) -> Option<u16> {
        let next = u16::try_from(self.0.len()).ok()?;
        Some(*self.0.entry((domain.clone(), vid)).or_insert(next))
    }
}

/// VLANs of the domains that are in use: (name, VLAN ID) to index, and the domains.
struct Vlanned {
    index: HashMap<(Arc<str>, u16), u16>,
    domains: Vec<Domain>,
}

pub(super) struct Build<'a> {
    pub(super) config: &'a Config,
    errors: Vec<ConfigError>,
    pub(super) ports: Vec<PortFacts>,
    host: Option<HostPort>,
    uplinks: Uplinks,
}

impl Build<'_> {
    pub(super) fn error(
        &mut self,
        object: &Cookie,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) {
        self.errors.push(ConfigError {
            object: object.clone(),
            field: field.into(),
            reason: reason.into(),
        });
    }

    fn node(&mut self) {
        let node = &self.config.node;
        let cookie = Cookie::new(format!("Node/{}", node.name));
        if !node.gateway.mac.is_unicast() {
            self.error(&cookie, "gateway.mac", "is not a unicast MAC address");
        }
        if node.nat_ports.is_empty() || *node.nat_ports.start() < 1024 {
            self.error(&cookie, "nat_ports", "is empty, or has ports below 1024");
        }
        for (i, address) in node.addresses.iter().enumerate() {
            if !is_unicast(*address) {
                self.error(&cookie, format!("addresses[{i}]"), "is not a unicast address");
            }
            if node.addresses[..i].contains(address) {
                self.error(&cookie, format!("addresses[{i}]"), "is listed twice");
            }
        }
    }

    fn masquerade(&mut self) {
        let Some(masquerade) = &self.config.masquerade else { return };
        let cookie = Cookie::new("Masquerade");
        let fields =
            [("ipv4", masquerade.ipv4.map(IpAddr::V4)), ("ipv6", masquerade.ipv6.map(IpAddr::V6))];
        for (field, address) in fields {
            if address.is_some_and(|a| !is_unicast(a)) {
                self.error(&cookie, field, "is not a unicast address");
            }
        }
    }

    fn bridges(&mut self, fdb_ids: &mut FdbIds) -> Vlanned {
        let mut limits = HashMap::new();
        for bridge in &self.config.bridges {
            let cookie = Cookie::new(format!("BridgeDomain/{}", bridge.name));
            if limits.insert(bridge.name.clone(), bridge.clone()).is_some() {
                self.error(&cookie, "name", "is used by another bridge domain");
            }
            if bridge.ageing_secs == 0 {
                self.error(&cookie, "ageing_secs", "must be at least 1 second");
            }
        }
        let mut vlanned = Vlanned { index: HashMap::new(), domains: Vec::new() };
        for port in &self.config.ports {
            let PortRole::Bridge { domain, vlans } = &port.role else { continue };
            let cookie = port_cookie(port.port);
            let Some(bridge) = limits.get(domain) else {
                self.error(&cookie, "domain", format!("no bridge domain is named {domain}"));
                continue;
            };
            for vid in vlans.untagged.iter().chain(&vlans.tagged) {
                let key = (domain.clone(), *vid);
                if vlanned.index.contains_key(&key) {
                    continue;
                }
                let Some(fdb_id) = fdb_ids.of(domain, *vid) else {
                    self.error(&cookie, "vlans", "more VLANs in all domains than 65,535");
                    continue;
                };
                vlanned.index.insert(key, vlanned.domains.len() as u16);
                vlanned.domains.push(Domain {
                    id: fdb::Domain(fdb_id),
                    members: Vec::new(),
                    bounds: Bounds { ageing_secs: bridge.ageing_secs, limit: bridge.learn_limit },
                });
            }
        }
        vlanned
    }

    fn ports(&mut self, vlanned: &Vlanned) {
        let mut seen: HashMap<PortId, ()> = HashMap::new();
        for PortConfig { port, role, .. } in &self.config.ports {
            let cookie = port_cookie(*port);
            if port.index() >= PortId::MAX_PORTS {
                self.error(&cookie, "port", format!("is not below {}", PortId::MAX_PORTS));
                continue;
            }
            if seen.insert(*port, ()).is_some() {
                self.error(&cookie, "port", "is configured twice");
            }
            let facts = match role {
                // Filled in by the endpoint that names the port.
                PortRole::Pod => PortFacts::Unused,
                PortRole::Host { mac, mtu } => {
                    if !mac.is_unicast() {
                        self.error(&cookie, "mac", "is not a unicast MAC address");
                    }
                    let host = HostPort { port: *port, mac: *mac, mtu: *mtu };
                    if self.host.replace(host).is_some() {
                        self.error(&cookie, "role", "another port is the node's already");
                    }
                    PortFacts::Host(host)
                }
                PortRole::Uplink { mac, mtu, tunnel, direct } => {
                    let (port, mac, mtu) = (*port, *mac, *mtu);
                    let uplink = UplinkPort { port, mac, mtu, tunnel: *tunnel, direct: *direct };
                    self.uplink(&cookie, uplink)
                }
                PortRole::Bridge { domain, vlans } => {
                    self.check_vlans(&cookie, vlans);
                    let of = |vid: u16| vlanned.index.get(&(domain.clone(), vid)).copied();
                    let mut tagged: Vec<(u16, u16)> =
                        vlans.tagged.iter().filter_map(|&v| Some((v, of(v)?))).collect();
                    tagged.sort_unstable();
                    tagged.dedup();
                    let untagged = vlans.untagged.and_then(of);
                    PortFacts::Bridge(Arc::new(BridgePort { untagged, tagged }))
                }
            };
            self.set_port(*port, facts);
        }
    }

    fn uplink(&mut self, cookie: &Cookie, uplink: UplinkPort) -> PortFacts {
        if !uplink.mac.is_unicast() {
            self.error(cookie, "mac", "is not a unicast MAC address");
        }
        if !uplink.tunnel && !uplink.direct {
            self.error(cookie, "role", "is an uplink that carries nothing");
        }
        if uplink.tunnel && self.uplinks.tunnel.replace(uplink).is_some() {
            self.error(cookie, "tunnel", "another uplink carries the tunnel already");
        }
        if uplink.direct && self.uplinks.direct.replace(uplink).is_some() {
            self.error(cookie, "direct", "another uplink carries direct traffic already");
        }
        PortFacts::Uplink(uplink)
    }

    fn check_vlans(&mut self, cookie: &Cookie, vlans: &Vlans) {
        for vid in vlans.untagged.iter().chain(&vlans.tagged) {
            if !(1..=4094).contains(vid) {
                self.error(cookie, "vlans", format!("{vid} is no VLAN ID (1 to 4094)"));
            }
        }
        if vlans.untagged.is_some_and(|v| vlans.tagged.contains(&v)) {
            self.error(cookie, "vlans", "a VLAN is both tagged and untagged");
        }
    }

    pub(super) fn set_port(&mut self, port: PortId, facts: PortFacts) {
        if self.ports.len() <= port.index() {
            self.ports.resize(port.index() + 1, PortFacts::Unused);
        }
        self.ports[port.index()] = facts;
    }

    fn fib(&mut self, tunnels: &Tunnels) -> PrefixMap<FibEntry> {
        let mut fib = PrefixMap::new();
        for range in &self.config.node.pod_cidrs {
            fib.insert(*range, FibEntry::LocalPods);
        }
        for node in &self.config.nodes {
            for range in &node.pod_cidrs {
                let reach = tunnels.reach(&node.name, range.address().is_ipv6());
                fib.insert(*range, FibEntry::Node(reach.unwrap_or(Reach::Host)));
            }
        }
        let links = self.links();
        for route in &self.config.routes {
            let cookie = Cookie::new(format!("Route/{}", route.destination));
            if route.next_hops.is_empty() {
                self.error(&cookie, "next_hops", "must name at least one");
            }
            let hops = self.next_hops(&cookie, &route.next_hops, &links);
            fib.insert(route.destination, FibEntry::NextHops(hops));
        }
        // Last, so that no range or route hides nodes' own addresses.
        for node in self.config.nodes.iter().filter(|_| tunnels.enabled) {
            for address in &node.addresses {
                if let Some(reach) = tunnels.reach(&node.name, address.is_ipv6()) {
                    fib.insert(Cidr::host(*address), FibEntry::Node(reach));
                }
            }
        }
        for address in &self.config.node.addresses {
            fib.insert(Cidr::host(*address), FibEntry::Local);
        }
        fib
    }

    /// Link-layer addresses on the direct uplink.
    fn links(&self) -> HashMap<IpAddr, Mac> {
        let config = self.config;
        if config.routes.is_empty() || self.uplinks.direct.is_none() {
            return HashMap::new();
        }
        let nodes =
            config.nodes.iter().flat_map(|n| n.addresses.iter().map(|a| (*a, n.underlay_mac)));
        let known = nodes.chain(config.neighbours.iter().copied());
        known.filter(|(_, mac)| mac.is_unicast()).collect()
    }

    fn next_hops(
        &mut self,
        cookie: &Cookie,
        hops: &[NextHop],
        links: &HashMap<IpAddr, Mac>,
    ) -> Arc<NextHops> {
        let direct = self.uplinks.direct.is_some();
        let reach = |hop: &NextHop| match hop {
            NextHop::Blackhole => None,
            NextHop::Via(address) if direct => {
                Some(links.get(address).map_or(Reach::NoNeighbour, |mac| Reach::Neighbour(*mac)))
            }
            NextHop::Host | NextHop::Via(_) => Some(Reach::Host),
        };
        for (i, hop) in hops.iter().enumerate() {
            if matches!(hop, NextHop::Via(address) if !is_unicast(*address)) {
                self.error(cookie, format!("next_hops[{i}]"), "is not a unicast address");
            }
        }
        // While others are known, nothing goes where nobody answers for the next hop.
        let is_known = |hop: &&NextHop| reach(hop) != Some(Reach::NoNeighbour);
        let known: Vec<&NextHop> = match hops.iter().any(|hop| is_known(&hop)) {
            true => hops.iter().filter(is_known).collect(),
            false => hops.iter().collect(),
        };
        let identity = |hop: &NextHop| match hop {
            NextHop::Host => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            NextHop::Blackhole => IpAddr::V4(Ipv4Addr::BROADCAST),
            NextHop::Via(address) => *address,
        };
        let identities: Vec<_> = known.iter().map(|hop| (identity(hop), 1)).collect();
        // Of all, so that as few flows as can be move when one comes or goes.
        let size = maglev::default_size(hops.len());
        let choice = Maglev::new(&identities, size, &self.config.cluster_key.0);
        let choice = choice.unwrap_or_else(|error| {
            self.error(cookie, "next_hops", error.to_string());
            Maglev::default()
        });
        Arc::new(NextHops { hops: known.into_iter().map(reach).collect(), choice })
    }
}

/// Enters each bridge port as a member of its domains.
fn fill_domains(vlanned: Vlanned, ports: &mut [PortFacts]) -> Vec<Domain> {
    let mut domains = vlanned.domains;
    for (number, facts) in ports.iter().enumerate() {
        let PortFacts::Bridge(bridge) = facts else { continue };
        let port = PortId(number as u16);
        if let Some(domain) = bridge.untagged {
            domains[domain as usize].members.push(Member { port, tagging: Tagging::Untagged });
        }
        for &(vid, domain) in &bridge.tagged {
            domains[domain as usize].members.push(Member { port, tagging: Tagging::Tagged(vid) });
        }
    }
    domains
}

fn port_cookie(port: PortId) -> Cookie {
    Cookie::new(format!("Port/{port}"))
}

pub(super) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_unspecified() || a.is_multicast() || a.is_broadcast()),
        IpAddr::V6(a) => !(a.is_unspecified() || a.is_multicast()),
    }
}
