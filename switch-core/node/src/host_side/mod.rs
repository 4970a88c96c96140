//! The node's side: its own port, the routes to pods, masquerading, and steering of Services.

mod kernel_routes;
mod lost_clients;
mod services;
mod veth;

use std::collections::BTreeSet;
use std::net::IpAddr;

use podswitch_core::config::{Config, PortConfig, PortRole};
use podswitch_core::control::{Change, ControlPlane, Objects};
use podswitch_core::id::PortId;
use podswitch_core::port::{Device, DeviceFiles};
use podswitch_core::snapshot::Snapshot;
use podswitch_linux::attach::{HostPort, HostPortConfig};
use podswitch_linux::nft::{Masquerade, MasqueradeConfig, RangeChange};
use podswitch_linux::port::tap;
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_policy::service::model::{EndpointSlice, Service};
use podswitch_wire::cidr::Cidr;

use crate::DEFAULT_MTU;
use crate::cluster::Masquerading;
use crate::error::NodeError;
use crate::events::{Failure, Reporter};
use crate::options::Settings;
use crate::ranges::{Lists, Ranges};
use crate::view::View;
use kernel_routes::KernelRoutes;
pub(crate) use kernel_routes::RemotePods;
use services::ServiceSide;
pub(crate) use services::sources;
use veth::VethHost;

/// The name by which the next process finds the connections of the node's own port.
const PORT_NAME: &str = "node";

/// The parts of the state in force that the node's kernel does not have yet.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// All locations of pods and nodes.
    pub(crate) pods: bool,
    /// Locations of single pods and nodes: ranges that are in other lists now.
    pub(crate) ranges: BTreeSet<Cidr>,
    /// Ranges or addresses of other nodes.
    pub(crate) nodes: bool,
    /// Addresses of Services.
    pub(crate) services: bool,
}

impl Behind {
    /// Everything.
    pub(crate) fn all() -> Self {
        Self { pods: true, nodes: true, services: true, ..Self::default() }
    }

    /// Whether any part is missing.
    pub(crate) fn any(&self) -> bool {
        self.pods || self.nodes || self.services || !self.ranges.is_empty()
    }
}

/// State of the node's interface to the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostInterface {
    /// It exists.
    There,
    /// It was deleted.
    Gone,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct HostSide {
    port: PortId,
    /// Replaced ports, to be detached once no state names them.
    replaced: Vec<PortId>,
    mtu: u16,
    masquerade: Option<Masquerade>,
    /// Masquerading is a predecessor's, to be replaced by the next rules.
    replaces_masquerade: bool,
    services: ServiceSide,
    node_routes: KernelRoutes,
    /// Ranges and addresses of Services that are routed to the switch.
    service_ranges: BTreeSet<Cidr>,
    /// How other nodes' pods were reached at the last update.
    remote: Option<RemotePods>,
    /// Addresses of the node's interfaces, if pods have host ports.
    local: Vec<IpAddr>,
    reporter: Reporter,
    /// Dropped last, so that nothing is steered to a removed interface.
    side: Side,
}

#[derive(Debug)]
enum Side {
    Tap(HostPort),
    Veth(VethHost),
}

impl HostSide {
    /// Creates the node's port and attaches it. Adds routes to `local_pods`; masquerading starts
    /// with the first state. Without TAP the port is a veth pair whose other end is in the switch's
    /// namespace.
    pub(crate) fn open(
        settings: &Settings,
        config: &Config,
        local_pods: Vec<Cidr>,
        control: &mut ControlPlane,
        reporter: &Reporter,
        own_namespace: impl FnOnce() -> Result<NetNs, HostError>,
    ) -> Result<Self, NodeError> {
        // One that is there is as long as its pods take, and goes on so.
        let is_there = settings.inherited.has_predecessor() || settings.inherited.has_files();
        let mtu = match is_there {
            true => present_mtu(settings).unwrap_or(DEFAULT_MTU),
            false => DEFAULT_MTU,
        };
        let port_config = HostPortConfig {
            mac: Some(config.node.underlay_mac).filter(|mac| mac.is_unicast()),
            mtu: u32::from(mtu),
            multi_queue: settings.workers > 1,
            node_addresses: present_addresses(settings, config)?,
            gateway: config.node.gateway,
            destinations: local_pods.clone(),
            inherited: settings.inherited.clone(),
            ..HostPortConfig::default()
        };
        let namespace = &settings.namespace;
        let (side, device): (_, Box<dyn Device>) = if tap::is_available().is_ok() {
            let (side, device) = HostPort::open(namespace, port_config)?;
            (Side::Tap(side), Box::new(device))
        } else {
            let (side, device) = VethHost::open(namespace, &own_namespace()?, port_config)?;
            (Side::Veth(side), Box::new(device))
        };
        let port = control.attach(device)?;
        control.name_port(port, PORT_NAME);
        let takes_over = settings.inherited.has_predecessor();
        let masquerade = match settings.masquerade {
            Masquerading::Off | Masquerading::Switch { .. } => None,
            Masquerading::Kernel if takes_over => None,
            Masquerading::Kernel => {
                let pods = Lists { local: local_pods, ..Lists::default() };
                let rules = masquerade_rules(settings, &pods, RemotePods::NotOurs);
                Some(Masquerade::install(namespace, &rules)?)
            }
        };
        let services = match settings.beside_kube_proxy {
            _ if takes_over => ServiceSide::of_predecessor(namespace, reporter),
            false => ServiceSide::open(namespace, config.node.gateway, reporter),
            true => ServiceSide::beside_kube_proxy(namespace, reporter),
        };
        Ok(Self {
            port,
            replaced: Vec::new(),
            mtu,
            masquerade,
            replaces_masquerade: false,
            services,
            node_routes: KernelRoutes::new(namespace, reporter),
            service_ranges: BTreeSet::new(),
            remote: None,
            local: Vec::new(),
            reporter: reporter.clone(),
            side,
        })
    }

    /// Whether something is to be put in force in a predecessor's place, and could not be.
    pub(crate) fn is_behind(&self) -> bool {
        self.replaces_masquerade
    }

    /// The port's number.
    pub(crate) fn port(&self) -> PortId {
        self.port
    }

    /// The port's role in the configuration.
    pub(crate) fn port_config(&self) -> PortConfig {
        let mac = match &self.side {
            Side::Tap(side) => side.mac(),
            Side::Veth(side) => side.mac(),
        };
        let role = PortRole::Host { mac, mtu: self.mtu };
        PortConfig { port: self.port, role }
    }

    /// Looks up the addresses of the node's interfaces, if pods have host ports. Returns whether
    /// they changed.
    pub(crate) fn find_addresses(&mut self, settings: &Settings, has_host_ports: bool) -> bool {
        let mut found = Vec::new();
        if has_host_ports {
            // If they cannot be read now, the next call tries again.
            let namespace = &settings.namespace;
            let Ok(there) = Netlink::open(namespace).and_then(|mut n| n.addresses()) else {
                return false;
            };
            found.extend(there.iter().map(|a| a.address.address()).filter(|a| is_global(*a)));
        }
        found.sort_unstable();
        found.dedup();
        let changed = found != self.local;
        self.local = found;
        changed
    }

    /// Whether the addresses of the node's interfaces are known.
    pub(crate) fn has_local_addresses(&self) -> bool {
        !self.local.is_empty()
    }

    /// The addresses of the node's interfaces.
    pub(crate) fn local_addresses(&self) -> &[IpAddr] {
        &self.local
    }

    /// Updates routes, steering and masquerading to the state in force (`snapshot`). `behind`: what
    /// to update.
    pub(crate) fn follow(
        &mut self,
        settings: &Settings,
        view: View<'_>,
        ranges: &Ranges,
        snapshot: &Snapshot,
        remote: RemotePods,
        behind: Behind,
    ) -> Result<(), HostError> {
        let is_whole =
            self.remote.replace(remote) != Some(remote) || behind.pods || self.replaces_masquerade;
        if is_whole || behind.nodes {
            self.node_routes.follow(view, remote);
        }
        let mut changed = behind.ranges;
        let other_services = is_whole || behind.nodes || behind.services;
        // kube-proxy translates before the route lookup.
        if other_services && !settings.beside_kube_proxy {
            let services = services::ranges(view, snapshot);
            changed.extend(self.service_ranges.symmetric_difference(&services));
            self.service_ranges = services;
        }
        // If one fails, the others are still updated.
        let steered = match is_whole || behind.services {
            true => self.services.follow(snapshot),
            false => Ok(()),
        };
        let (routed, masqueraded) = match is_whole {
            true => {
                let pods = ranges.lists();
                let routed = self.route(settings, view, &pods, remote);
                (routed, self.masquerade(settings, &pods, remote))
            }
            false => {
                let routed = self.route_changed(view, ranges, &changed, remote);
                (routed, self.masquerade_changed(settings, ranges, &changed, remote))
            }
        };
        routed.and(steered).and(masqueraded)
    }

    /// Sets all routes to the switch.
    fn route(
        &mut self,
        settings: &Settings,
        view: View<'_>,
        pods: &Lists,
        remote: RemotePods,
    ) -> Result<(), HostError> {
        let config = view.settings();
        let mut destinations: BTreeSet<Cidr> = pods.local.iter().copied().collect();
        if remote == RemotePods::BySwitch {
            destinations.extend(&pods.remote);
        }
        destinations.extend(&self.service_ranges);
        destinations.insert(gateway(config));
        let sources = present_addresses(settings, config)?;
        match &mut self.side {
            Side::Tap(side) => {
                side.set_node_addresses(sources);
                side.set_destinations(destinations)
            }
            Side::Veth(side) => {
                side.set_node_addresses(sources);
                side.set_destinations(destinations)
            }
        }
    }

    /// Sets the routes of changed ranges.
    fn route_changed(
        &mut self,
        view: View<'_>,
        ranges: &Ranges,
        changed: &BTreeSet<Cidr>,
        remote: RemotePods,
    ) -> Result<(), HostError> {
        let gateway = gateway(view.settings());
        let (added, removed) = changed.iter().copied().partition(|range| {
            let member = ranges.member(range);
            member.local
                || member.remote && remote == RemotePods::BySwitch
                || self.service_ranges.contains(range)
                || *range == gateway
        });
        match &mut self.side {
            Side::Tap(side) => side.change_destinations(added, removed),
            Side::Veth(side) => side.change_destinations(added, removed),
        }
    }

    /// Replaces what is masqueraded.
    fn masquerade(
        &mut self,
        settings: &Settings,
        pods: &Lists,
        remote: RemotePods,
    ) -> Result<(), HostError> {
        if self.replaces_masquerade {
            let rules = masquerade_rules(settings, pods, remote);
            self.masquerade = Some(Masquerade::install(&settings.namespace, &rules)?);
            self.replaces_masquerade = false;
            return Ok(());
        }
        let Some(masquerade) = &mut self.masquerade else { return Ok(()) };
        masquerade.update(&masquerade_rules(settings, pods, remote))
    }

    /// Updates what is masqueraded to changed ranges.
    fn masquerade_changed(
        &mut self,
        settings: &Settings,
        ranges: &Ranges,
        changed: &BTreeSet<Cidr>,
        remote: RemotePods,
    ) -> Result<(), HostError> {
        let Some(masquerade) = &mut self.masquerade else { return Ok(()) };
        let change = |is_in: &dyn Fn(&Cidr) -> bool| {
            let (added, removed) = changed.iter().copied().partition(|range| is_in(range));
            RangeChange { added, removed }
        };
        let pods = change(&|range| ranges.member(range).local);
        let cluster = change(&|range| {
            let member = ranges.member(range);
            let is_in = if remote == RemotePods::BySwitch { member.nodes } else { member.cluster };
            is_in || settings.cluster_cidrs.contains(range)
        });
        masquerade.change(&pods, &cluster)
    }

    /// Restores removed settings of the node's kernel, and updates the node's addresses. The caller
    /// handles a deleted interface ([`reopen`](Self::reopen)).
    pub(crate) fn repair(
        &mut self,
        settings: &Settings,
        config: &Config,
    ) -> Result<HostInterface, HostError> {
        let sources = present_addresses(settings, config)?;
        let done = match &mut self.side {
            Side::Tap(side) => {
                side.set_node_addresses(sources);
                side.reconcile()?
            }
            Side::Veth(side) => {
                side.set_node_addresses(sources);
                side.reconcile()?
            }
        };
        let Some(done) = done else { return Ok(HostInterface::Gone) };
        let object = HostPortConfig::default().name;
        self.reporter.repaired(&object, done);
        self.reporter.repaired("node", self.services.repair()?);
        self.reporter.repaired("node", self.node_routes.reconcile()?);
        if let Some(masquerade) = &mut self.masquerade
            && masquerade.repair()?
        {
            let table = format!("nftables table {}", masquerade.table());
            self.reporter.repaired("node", vec![table]);
        }
        Ok(HostInterface::There)
    }

    /// Recreates the node's interface and attaches it as a new port. Detach the old one
    /// ([`detach`](Self::detach)) once a state that names the new one is in force.
    pub(crate) fn reopen(&mut self, control: &mut ControlPlane) -> Result<(), NodeError> {
        let device: Box<dyn Device> = match &mut self.side {
            Side::Tap(side) => Box::new(side.reopen()?),
            Side::Veth(side) => Box::new(side.reopen()?),
        };
        let port = control.attach(device)?;
        control.name_port(port, PORT_NAME);
        self.replaced.push(std::mem::replace(&mut self.port, port));
        let object = HostPortConfig::default().name;
        self.reporter.repaired(&object, vec!["the interface itself".to_owned()]);
        Ok(())
    }

    /// Detaches replaced ports.
    pub(crate) fn detach(&mut self, control: &mut ControlPlane) {
        for port in self.replaced.drain(..) {
            // It is attached, since it is in the list.
            let _ = control.detach(port);
        }
    }

    /// Sets the MTU of the node's interface to the switch. Returns whether it changed.
    pub(crate) fn set_mtu(&mut self, mtu: u16) -> bool {
        if mtu == self.mtu {
            return false;
        }
        self.mtu = mtu;
        let set = match &mut self.side {
            Side::Tap(side) => side.set_mtu(mtu.into()),
            Side::Veth(side) => side.set_mtu(mtu.into()),
        };
        if let Err(error) = set {
            // The switch still sends ICMP errors for packets that are too long.
            self.reporter.failure(Failure::HostMtu(error));
        }
        true
    }

    /// Probes clients outside the cluster whose connections an earlier run translated, so that they
    /// learn that the connections are lost.
    pub(crate) fn ask_lost_clients(settings: &Settings, control: &ControlPlane) {
        lost_clients::ask(&settings.namespace, control);
    }

    /// Leaves in force when this is dropped what a kill would leave: packets for the switch are discarded until the next
    /// run. The node's stack would reset their connections.
    pub(crate) fn leave_in_force(&mut self) {
        self.services.leave_in_force();
        match &mut self.side {
            Side::Tap(side) => side.leave_in_force(),
            Side::Veth(side) => side.leave_in_force(),
        }
    }

    /// Whether another process can go on with it.
    pub(crate) fn can_be_handed_over(&self) -> bool {
        matches!(self.side, Side::Tap(_))
    }

    /// The sockets for health checks.
    pub(crate) fn socket_files(&self) -> Vec<DeviceFiles> {
        self.services.socket_files()
    }

    /// The predecessor has let go of the node's kernel. Masquerading and steering follow with the next
    /// [`follow`](Self::follow).
    pub(crate) fn adopt(&mut self, settings: &Settings, config: &Config) -> Result<(), HostError> {
        let (namespace, reporter) = (&settings.namespace, &self.reporter);
        self.replaces_masquerade = matches!(settings.masquerade, Masquerading::Kernel);
        self.services = match settings.beside_kube_proxy {
            false => {
                let sockets = services::health_sockets(&settings.inherited);
                ServiceSide::open(namespace, config.node.gateway, reporter).with_sockets(sockets)
            }
            true => ServiceSide::beside_kube_proxy(namespace, reporter),
        };
        match &mut self.side {
            Side::Tap(side) => side.adopt(),
            Side::Veth(_) => Ok(()),
        }
    }

    /// Leaves everything in force when this is dropped: another process has the interface, and replaces the rest.
    pub(crate) fn hand_over(&mut self) {
        self.leave_in_force();
        self.node_routes.leave_in_force();
        if let Side::Tap(side) = &mut self.side {
            side.share();
        }
        if let Some(masquerade) = &mut self.masquerade
            && let Err(error) = masquerade.leave_in_force()
        {
            self.reporter.failure(Failure::HostSide(error));
        }
    }

    /// As [`hand_over`](Self::hand_over), but at once. [`adopt`](Self::adopt) takes everything back.
    pub(crate) fn let_go(&mut self, settings: &Settings) {
        self.hand_over();
        self.services = ServiceSide::of_predecessor(&settings.namespace, &self.reporter);
        self.masquerade = None;
    }

    /// Updates health checks, and retries sockets that could not be opened.
    pub(crate) fn reconcile(&mut self, control: &ControlPlane) {
        self.services.reconcile(control);
    }
}

/// Whether a change of a Service affects the node's kernel: frontends at addresses other than
/// cluster IPs, or backends at this node's own addresses.
pub(crate) fn concerns_kernel(change: &Change, settings: &Config, objects: Objects<'_>) -> bool {
    let of_service = |service: &Service| services::concerns_kernel(service, settings);
    let is_own = |address: &IpAddr| settings.node.addresses.contains(address);
    let of_slice = |slice: &EndpointSlice| {
        slice.endpoints.iter().any(|endpoint| endpoint.addresses.first().is_some_and(is_own))
    };
    match change {
        Change::Service(service) => {
            of_service(service) || objects.service(&service.name).is_some_and(|s| of_service(s))
        }
        Change::ServiceDeleted(name) => objects.service(name).is_some_and(|s| of_service(s)),
        Change::Slice(slice) => {
            let before = objects.slice(&slice.namespace, &slice.name);
            of_slice(slice) || before.is_some_and(|slice| of_slice(slice))
        }
        Change::SliceDeleted(namespace, name) => {
            objects.slice(namespace, name).is_some_and(|slice| of_slice(slice))
        }
        Change::HostPorts(..) => true,
        _ => false,
    }
}

/// Whether other hosts can reach an address.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

/// The gateway's IPv4 address is routed to the switch: if the node reaches itself through a Service, it sees the gateway
/// as the client.
fn gateway(config: &Config) -> Cidr {
    Cidr::host(config.node.gateway.ipv4.into())
}

/// MTU of the node's interface to the switch, if there is one.
fn present_mtu(settings: &Settings) -> Option<u16> {
    let mut netlink = Netlink::open(&settings.namespace).ok()?;
    let link = netlink.find_link(&HostPortConfig::default().name).ok()??;
    u16::try_from(link.mtu).ok()
}

/// Those of the node's addresses that its interfaces have: only they can be source addresses.
fn present_addresses(settings: &Settings, config: &Config) -> Result<Vec<IpAddr>, HostError> {
    let found = Netlink::open(&settings.namespace)?.addresses()?;
    let is_present = |address: &&IpAddr| found.iter().any(|a| a.address.address() == **address);
    Ok(config.node.addresses.iter().filter(is_present).copied().collect())
}

fn masquerade_rules(settings: &Settings, pods: &Lists, remote: RemotePods) -> MasqueradeConfig {
    let configured = settings.cluster_cidrs.iter();
    // Packets to the switch are not masqueraded anyway, so the table need not be replaced for each
    // pod.
    let cluster = if remote == RemotePods::BySwitch { &pods.nodes } else { &pods.cluster };
    MasqueradeConfig {
        pods: pods.local.clone(),
        cluster: configured.chain(cluster).copied().collect(),
        ..MasqueradeConfig::default()
    }
}
