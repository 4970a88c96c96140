//! The immutable state on which the processing of packets depends.
//!
//! Built by the control plane, read by workers; a batch sees one snapshot from its first packet to
//! its last. Unchanged parts are shared with the previous snapshot.

mod addresses;
mod names;
mod policy_counters;
mod ports;
mod tunnels;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use podswitch_policy::cow::CowMap;
use podswitch_policy::maglev::Maglev;
use podswitch_policy::prefix::PrefixMap;
use podswitch_policy::service::table::ServiceTable;
use podswitch_policy::table::PolicyTable;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;

pub use names::Names;
pub use policy_counters::PolicyCounters;
pub use ports::{BridgePort, Domain, HostPort, Member, PodPort, PortFacts, Tagging, UplinkPort};
pub(crate) use tunnels::NodePlace;
pub use tunnels::{PATH_MTU_SECS, PathMtu, Reach, Tunnel, Tunnels, Uplinks};

use crate::config::{ClusterKey, Endpoint, Gateway, Masquerade, NAT_PORTS};
use crate::id::{Epoch, PortId};
use crate::invalidation::Invalidation;

/// Where an address of the pod network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Attached to this switch.
    Attached {
        /// Its port.
        port: PortId,
        /// Its MAC address.
        mac: Mac,
        /// Its MTU, in bytes.
        mtu: u16,
    },
    /// On this node, not attached here.
    Unattached,
    /// On another node.
    Remote,
    /// A pod that shares this node's own network, or the node itself.
    Host,
}

/// Properties of one address.
#[derive(Clone, Debug)]
pub struct EndpointFacts {
    /// Where it is.
    pub location: Location,
    /// Its owner.
    pub endpoint: Arc<Endpoint>,
}

/// The target of a prefix of the FIB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FibEntry {
    /// A range of this node's pods: addresses in it without a pod are unassigned.
    LocalPods,
    /// This node's own address.
    Local,
    /// Another node, or its pods.
    Node(Reach),
    /// Equal-cost next hops of a configured route.
    NextHops(Arc<NextHops>),
}

/// Equal-cost next hops, and the choice among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHops {
    /// The reach of each next hop; `None`: unreachable, packets are dropped.
    pub hops: Box<[Option<Reach>]>,
    /// Selects the next hop of a flow: the same on every node with the same next hops. Routers with
    /// unknown MAC addresses are skipped while others are known.
    pub choice: Maglev,
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Number of this snapshot.
    pub epoch: Epoch,
    /// The epochs of the last changes, by address, for the invalidation of flows.
    pub invalidation: Invalidation,
    /// The gateway that pods see.
    pub gateway: Gateway,
    /// This node's addresses, for packets that the switch originates.
    pub node_addresses: Arc<[IpAddr]>,
    /// Source ports on the node's addresses for masqueraded clients.
    pub nat_ports: RangeInclusive<u16>,
    /// The role of each port, by its number.
    pub ports: Arc<[PortFacts]>,
    /// The node's own port, if there is one.
    pub host: Option<HostPort>,
    /// The underlay's ports.
    pub uplinks: Uplinks,
    /// The overlay.
    pub tunnels: Arc<Tunnels>,
    /// Name of this node.
    pub node: Arc<str>,
    /// Pods by address.
    pub endpoints: CowMap<IpAddr, EndpointFacts>,
    /// Everything else, by longest prefix.
    pub fib: Arc<PrefixMap<FibEntry>>,
    /// Network policy, compiled.
    pub policy: Arc<PolicyTable>,
    /// Decision counts of its rules.
    pub policy_counters: PolicyCounters,
    /// Services, host ports among them.
    pub services: ServiceTable,
    /// The switch's own masquerading, if configured.
    pub masquerade: Option<Arc<Masquerade>>,
    /// The cluster's hash key.
    pub cluster_key: HashKey,
    /// Bridge domains, one for each VLAN of each configured domain.
    pub domains: Arc<[Domain]>,
    /// The names that the switch answers for.
    pub names: Option<Arc<Names>>,
}

impl Snapshot {
    /// A state that forwards nothing, in force before the first configuration (N13).
    pub fn empty() -> Self {
        Self {
            epoch: Epoch(0),
            invalidation: Invalidation::everything(Epoch(0)),
            gateway: Gateway::default(),
            node_addresses: Arc::new([]),
            nat_ports: NAT_PORTS,
            ports: Arc::new([]),
            host: None,
            uplinks: Uplinks::default(),
            tunnels: Arc::default(),
            node: "".into(),
            endpoints: CowMap::new(),
            fib: Arc::new(PrefixMap::new()),
            policy: Arc::default(),
            policy_counters: PolicyCounters::default(),
            services: ServiceTable::default(),
            masquerade: None,
            cluster_key: ClusterKey::default().0,
            domains: Arc::new([]),
            names: None,
        }
    }

    /// The role of `port`.
    #[inline]
    pub fn port(&self, port: PortId) -> &PortFacts {
        self.ports.get(port.index()).unwrap_or(&PortFacts::Unused)
    }

    /// The source address of ICMP errors of the switch, of the family of `towards`: the node's own,
    /// or the gateway's if the node has none.
    pub fn own_address(&self, towards: IpAddr) -> IpAddr {
        let same = |a: &&IpAddr| a.is_ipv4() == towards.is_ipv4();
        self.node_addresses.iter().find(same).copied().unwrap_or(match towards {
            IpAddr::V4(_) => self.gateway.ipv4.into(),
            IpAddr::V6(_) => self.gateway.ipv6.into(),
        })
    }

    /// Whether `address` is the gateway's.
    #[inline]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway.has(address)
    }
}
