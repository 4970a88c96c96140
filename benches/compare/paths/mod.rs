//! Data paths: two pods, and the path between them.

mod kernel;
mod kube_proxy;
mod nodes;
pub(crate) mod ovs;
mod pod;
mod podswitch;
mod policies;
mod reach;
pub(crate) mod services;
pub(crate) mod tools;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use podswitch_core::action::DropReason;
use podswitch_core::control::ControlPlane;
use podswitch_linux::{HostError, NetNs};

pub(crate) use nodes::Wire;
pub(crate) use pod::Pod;
use podswitch::Attach::{Packet, Tap};
use podswitch::tunnel::Underlay::{Packet as Raw, Sockets, Udp};
use podswitch::tunnel::two_nodes;
use policies::Switches;
use services::{Protocol, Services};

use crate::Outcome;

/// Paths are compared within a group: all paths of a group do the same for the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Two pods of a node, by each other's addresses.
    OneNode,
    /// Two pods of a node, through the cluster IPs of this number of Services.
    Services(usize),
    /// Two pods of two nodes.
    TwoNodes(Wire),
}

impl Group {
    /// Name of the path with which the group's others are compared.
    pub(crate) fn baseline(self) -> &'static str {
        match self {
            Self::OneNode => "bridge",
            Self::Services(1) => "nftables/1",
            Self::Services(1_000) => "nftables/1000",
            Self::Services(_) => "nftables/5000",
            Self::TwoNodes(Wire::Offloads) => "bridge+vxlan",
            Self::TwoNodes(Wire::Packets) => "bridge+vxlan/packets",
        }
    }

    /// Title of the group.
    pub(crate) fn title(self) -> String {
        match self {
            Self::OneNode => "one node".to_owned(),
            Self::Services(1) => "through 1 Service".to_owned(),
            Self::Services(count) => format!("through {count} Services"),
            Self::TwoNodes(Wire::Offloads) => "across two nodes".to_owned(),
            Self::TwoNodes(Wire::Packets) => {
                "across two nodes, interfaces without tunnel offloads".to_owned()
            }
        }
    }
}

/// A kind of path: its name, and the function that creates it.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    make: fn() -> Result<World, Missing>,
}

/// Short form for the list.
const fn kind(name: &'static str, group: Group, make: fn() -> Result<World, Missing>) -> Kind {
    Kind { name, group, make }
}

const TWO_NODES: Group = Group::TwoNodes(Wire::Offloads);
const CUT: Group = Group::TwoNodes(Wire::Packets);

/// Every kind, in the order of the table.
pub(crate) const ALL: &[Kind] = &[
    kind("veth", Group::OneNode, kernel::veth),
    kind("bridge", Group::OneNode, kernel::bridge),
    kind("ovs", Group::OneNode, || ovs::plain(ovs::Pipeline::Normal)),
    kind("ovs/conntrack", Group::OneNode, || ovs::plain(ovs::Pipeline::Conntrack)),
    kind("podswitch/tap", Group::OneNode, || podswitch::one_node(Tap, 1)),
    kind("podswitch/af_packet", Group::OneNode, || podswitch::one_node(Packet, 1)),
    kind("podswitch/tap/2_workers", Group::OneNode, || podswitch::one_node(Tap, 2)),
    kind("podswitch/af_packet/2_workers", Group::OneNode, || podswitch::one_node(Packet, 2)),
    kind("iptables/1", Group::Services(1), || kube_proxy::iptables(1)),
    kind("nftables/1", Group::Services(1), || kube_proxy::nftables(1)),
    kind("ovs/conntrack_nat/1", Group::Services(1), || ovs::services(1)),
    kind("podswitch/tap/services/1", Group::Services(1), || podswitch::services(Tap, 1)),
    kind("podswitch/af_packet/services/1", Group::Services(1), || podswitch::services(Packet, 1)),
    kind("iptables/1000", Group::Services(1_000), || kube_proxy::iptables(1_000)),
    kind("nftables/1000", Group::Services(1_000), || kube_proxy::nftables(1_000)),
    kind("ovs/conntrack_nat/1000", Group::Services(1_000), || ovs::services(1_000)),
    kind("podswitch/tap/services/1000", Group::Services(1_000), || podswitch::services(Tap, 1_000)),
    kind("podswitch/af_packet/services/1000", Group::Services(1_000), || {
        podswitch::services(Packet, 1_000)
    }),
    kind("iptables/5000", Group::Services(5_000), || kube_proxy::iptables(5_000)),
    kind("nftables/5000", Group::Services(5_000), || kube_proxy::nftables(5_000)),
    kind("ovs/conntrack_nat/5000", Group::Services(5_000), || ovs::services(5_000)),
    kind("podswitch/tap/services/5000", Group::Services(5_000), || podswitch::services(Tap, 5_000)),
    kind("podswitch/af_packet/services/5000", Group::Services(5_000), || {
        podswitch::services(Packet, 5_000)
    }),
    kind("bridge+vxlan", TWO_NODES, || kernel::bridge_vxlan(Wire::Offloads)),
    kind("flannel", TWO_NODES, kernel::flannel),
    kind("ovs/vxlan", TWO_NODES, ovs::vxlan),
    kind("podswitch/tap/vxlan_udp", TWO_NODES, || two_nodes(Udp, Wire::Offloads)),
    kind("podswitch/tap/vxlan_udp/sockets", TWO_NODES, || two_nodes(Sockets, Wire::Offloads)),
    kind("podswitch/tap/vxlan_packet", TWO_NODES, || two_nodes(Raw, Wire::Offloads)),
    kind("bridge+vxlan/packets", CUT, || kernel::bridge_vxlan(Wire::Packets)),
    kind("podswitch/tap/vxlan_udp/packets", CUT, || two_nodes(Udp, Wire::Packets)),
    kind("podswitch/tap/vxlan_packet/packets", CUT, || two_nodes(Raw, Wire::Packets)),
];

/// The group of the path with this name.
pub(crate) fn group_of(name: &str) -> Group {
    ALL.iter().find(|kind| kind.name == name).map_or(Group::OneNode, |kind| kind.group)
}

/// Two pods that can reach each other as long as `between` exists.
struct World {
    client: Pod,
    server: Pod,
    /// The Services through which the client reaches the server, unless it uses the server's
    /// address.
    services: Option<Services>,
    between: Between,
}

impl World {
    fn new(client: Pod, server: Pod, between: Between) -> Self {
        Self { client, server, services: None, between }
    }
}

/// The resources that must exist while the pods communicate. Dropping it removes them all, because
/// none of them has a name.
#[derive(Default)]
struct Between {
    /// The first field, so that switches end before their interfaces are removed.
    switches: Vec<ControlPlane>,
    _daemons: Vec<ovs::Daemon>,
    _namespaces: Vec<NetNs>,
}

/// A path that was created.
pub(crate) struct Path {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    services: Option<Services>,
    /// Before `_between`, so that switches end before their interfaces are removed.
    switches: Switches,
    _between: Between,
}

impl Path {
    /// The address on which a server listens, and the addresses to which its clients connect.
    pub(crate) fn ends(&self, protocol: Protocol, family: Family) -> Ends<'_> {
        let listen = match &self.services {
            Some(services) => services.listen(&self.server, protocol, family),
            None => SocketAddr::new(self.server.address(family), 0),
        };
        Ends { listen, services: self.services.as_ref(), protocol, family }
    }

    /// The drops of the switches so far, by reason, if there are switches.
    pub(crate) fn dropped(&self) -> Vec<(&'static str, u64)> {
        let switches = self.switches.lock();
        let workers = || switches.iter().flat_map(ControlPlane::workers);
        let count = |&reason| workers().map(|w| w.counters.dropped(reason)).sum();
        let all = DropReason::ALL.iter().map(|reason| (reason.name(), count(reason)));
        all.filter(|(_, count)| *count > 0).collect()
    }
}

/// See [`Path::ends`].
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    /// The address to which the server binds.
    pub(crate) listen: SocketAddr,
    services: Option<&'a Services>,
    protocol: Protocol,
    family: Family,
}

impl Ends<'_> {
    /// The target of connection `number`, given the address `bound` of the server. If the path goes
    /// through Services, successive connections use different Services.
    pub(crate) fn target(&self, bound: SocketAddr, number: usize) -> SocketAddr {
        match self.services {
            Some(services) => services.target(self.protocol, self.family, number),
            None => bound,
        }
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The unspecified address.
    pub(crate) fn unspecified(self) -> std::net::IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Why a path could not be created.
pub(crate) enum Missing {
    /// This machine lacks something that the path needs.
    Unavailable(String),
    /// It should have worked.
    Broken(String),
}

impl From<String> for Missing {
    fn from(error: String) -> Self {
        Self::Broken(error)
    }
}

impl From<HostError> for Missing {
    fn from(error: HostError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Creates a path, and checks that traffic of each family passes.
pub(crate) fn make(kind: &Kind) -> Result<Path, Missing> {
    let World { client, server, services, mut between } = (kind.make)()?;
    let switches = Switches::new(std::mem::take(&mut between.switches));
    let (name, group) = (kind.name, kind.group);
    let path = Path { name, group, client, server, services, switches, _between: between };
    reach::check(&path).map_err(Missing::Broken)?;
    Ok(path)
}

/// A namespace for the part between the pods.
fn namespace() -> Outcome<NetNs> {
    NetNs::anonymous().map_err(|e| e.to_string())
}

/// Versions of the installed programs that paths are created with.
pub(crate) fn programs() -> Vec<String> {
    let of = |program| tools::find(program).ok().map(tools::version);
    [of("iptables-restore"), of("nft"), ovs::version()].into_iter().flatten().collect()
}
