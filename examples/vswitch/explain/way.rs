//! One connection, judged: by both ends' policies and by the switch that its first packet meets.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::{DropClass, DropReason, Plan, PlanFlags};
use podswitch_core::config::{Config, PortConfig, PortRole};
use podswitch_core::id::PortId;
use podswitch_core::resolve::{Decision, Denial, Query, resolve};
use podswitch_core::snapshot::{Location, PortFacts, Snapshot};
use podswitch_kubernetes::Manifests;
use podswitch_policy::explain::{Explanation, Side};
use podswitch_policy::table::PolicyTable;
use podswitch_policy::verdict::Why;
use podswitch_vxlan::template::Outer;
use podswitch_vxlan::vtep::EndIndex;
use podswitch_wire::flow_key::{FlowKey, proto};

use super::ends::{End, Ends};
use super::reference::Wanted;
use super::service::Served;
use super::snapshot;
use crate::cluster::ClusterArgs;
use crate::failure::Failure;
use crate::overlay::{NAMELESS, attach_uplink};
use crate::state::{self, MTU};

/// The node's own port.
const HOST: PortId = PortId(0);
/// The underlay's, and the first of the pods'.
const UPLINK: PortId = PortId(1);
const PODS: u16 = 2;

/// What becomes of a connection.
pub(super) struct Judged {
    /// What both ends' policies say.
    pub(super) policies: Explanation,
    /// What the switch at the source's node does.
    pub(super) fate: Fate,
    /// What became of the destination, if it is a Service's.
    pub(super) service: Option<Served>,
    /// The way of the first packet, also where a policy forbids it; `None` if there is none.
    pub(super) route: Option<Route>,
}

/// What the switch does with the first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Allow,
    /// A policy denies it.
    Deny(DropReason),
    /// It is refused, and the client told at once.
    Reject(DropReason),
    /// It is dropped for another reason.
    Drop(DropReason),
}

impl Judged {
    pub(super) fn is_allowed(&self) -> bool {
        self.fate == Fate::Allow
    }
}

/// A way that the switch of a node sends packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The node.
    pub(super) node: Arc<str>,
    /// Where it leads.
    pub(super) leads: Leads,
    /// By the uplink rather than the node's own port.
    pub(super) uplink: bool,
    /// The outer headers, if it is through the overlay.
    pub(super) tunnel: Option<Outer>,
}

/// Where a way leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// To the port of a pod of this node, `namespace/pod`.
    Pod(String),
    /// To the gateway that pods see: the switch itself.
    Gateway,
    /// To this node, by its own port.
    Node,
    /// To another node, which has the address or the pod that has it.
    Remote(Arc<str>),
    /// Off the cluster, by the node's own port.
    Outside,
}

/// Judges the connection between two ends, at `node` if it may come in anywhere.
pub(super) fn judge(
    manifests: &Manifests,
    cluster: &ClusterArgs,
    ends: &Ends,
    sport: u16,
    node: Option<&Arc<str>>,
) -> Result<Judged, Failure> {
    // A source off the cluster comes in at the destination's node.
    let node = ends.from.party.node.as_ref().or(node).or(ends.to.party.node.as_ref());
    let compiled =
        state::judge(manifests, node.map(|name| &**name), cluster).map_err(Failure::Refused)?;
    let (config, ingress) = scene(compiled, &ends.from);
    let snapshot = snapshot(&config)?;
    let key = key(ends, sport)?;
    let is_pod = ends.from.party.pod.is_some();
    let served = node.and_then(|_| Served::find(&config, &snapshot, &key, is_pod));
    // Both ends' policies see the backend, and the client as it is (N15).
    let backend = served.as_ref().and_then(|served| served.backend(&config));
    let (to, wanted) = backend.as_ref().map_or((&ends.to, ends.wanted), |(end, port)| (end, *port));
    let traffic = wanted.traffic(key.src_addr().is_ipv6());
    let policies = snapshot.policy.explain(ends.from.address, to.address, traffic);
    let Some(node) = node else {
        // Whoever are not of the cluster meet no switch of it; a pod on no node meets none either.
        let fate = match ends.from.party.pod.is_some() || ends.to.party.pod.is_some() {
            true => Fate::Drop(DropReason::UnknownPod),
            false => Fate::Allow,
        };
        let fate = fate.unless_denied(&policies);
        return Ok(Judged { fate, policies, service: None, route: None });
    };
    if ends.from.party.pod.is_some() && ends.from.party.node.is_none() {
        let fate = Fate::Drop(DropReason::EndpointNotReady).unless_denied(&policies);
        return Ok(Judged { fate, policies, service: served, route: None });
    }
    let way = Way { snapshot: &snapshot, config: &config, node, to, ingress };
    let decision = way.ask(&snapshot, &key);
    let is_refused = served.as_ref().is_some_and(Served::is_refused);
    let policies = match decision {
        Decision::Gateway => beyond_policy(policies),
        // There is no backend that policy could be asked about.
        _ if is_refused => beyond_policy(policies),
        _ => policies,
    };
    let (fate, route) = match way.outcome(&decision) {
        Ok(route) => (Fate::Allow, Some(route)),
        Err(DropReason::PolicyEgress | DropReason::PolicyIngress) => {
            // Where it would go if it were allowed.
            let open = Snapshot { policy: Arc::new(PolicyTable::default()), ..(*snapshot).clone() };
            (Fate::Allow, way.outcome(&way.ask(&open, &key)).ok())
        }
        Err(reason @ (DropReason::ServiceNoEndpoints | DropReason::ServiceUndefinedPort)) => {
            (Fate::Reject(reason), None)
        }
        Err(reason) => (Fate::Drop(reason), None),
    };
    // The switch at the source's node speaks for its own pods only.
    let fate = match fate {
        // Nor is anybody judged who may not send at all.
        Fate::Drop(reason) if reason.class() == DropClass::Spoof => fate,
        _ => fate.unless_denied(&policies),
    };
    Ok(Judged { policies, fate, service: served, route })
}

impl Fate {
    /// Policy is judged before the way is looked for.
    fn unless_denied(self, policies: &Explanation) -> Self {
        if !policies.egress.allow {
            Self::Deny(DropReason::PolicyEgress)
        } else if !policies.ingress.allow {
            Self::Deny(DropReason::PolicyIngress)
        } else {
            self
        }
    }
}

/// The node's ports: its own, the uplink, and those of its pods. Gives the one that the first packet of
/// `from` comes in by.
fn scene(mut compiled: podswitch_kubernetes::Compiled, from: &End) -> (Config, PortId) {
    let mac = compiled.config.node.underlay_mac;
    let mac = if mac.is_unicast() { mac } else { NAMELESS };
    let role = PortRole::Host { mac, mtu: MTU };
    compiled.config.ports.push(PortConfig { port: HOST, role });
    attach_uplink(&mut compiled.config, UPLINK);
    let mut ingress = HOST;
    // More than there can be ports for are as good as not attached.
    for pod in 0..compiled.pods.len().min(PortId::MAX_PORTS - usize::from(PODS)) {
        let port = PortId(pod as u16 + PODS);
        if from.party.pod.as_ref() == Some(&compiled.pods[pod].cookie) {
            ingress = port;
        }
        compiled.attach(pod, port, MTU);
    }
    (compiled.config, ingress)
}

/// The first packet's key.
fn key(ends: &Ends, sport: u16) -> Result<FlowKey, Failure> {
    let (from, to) = (ends.from.address, ends.to.address);
    let (protocol, port) = match ends.wanted {
        Wanted::Port(port, protocol) => (protocol.number(), port),
        Wanted::Echo if from.is_ipv4() => (proto::ICMP, 8),
        Wanted::Echo => (proto::ICMPV6, 128),
    };
    FlowKey::new(from, to, protocol, sport, port)
        .ok_or_else(|| Failure::Input(format!("{from} and {to} are of two families")))
}

/// The gateway is nobody's peer: policy is not asked.
fn beyond_policy(policies: Explanation) -> Explanation {
    let open = |side: Side| Side {
        allow: true,
        why: Why::NoPod,
        pod: None,
        policy: None,
        rule: None,
        rule_text: None,
        isolated_by: Vec::new(),
        nearest: None,
        ..side
    };
    Explanation { egress: open(policies.egress), ingress: open(policies.ingress) }
}

/// The first packet at the switch that it meets.
struct Way<'a> {
    snapshot: &'a Snapshot,
    config: &'a Config,
    node: &'a Arc<str>,
    /// The destination; a Service's backend.
    to: &'a End,
    ingress: PortId,
}

impl Way<'_> {
    fn ask<'s>(&self, snapshot: &'s Snapshot, key: &FlowKey) -> Decision<'s> {
        resolve(snapshot, &Query::new(key, self.ingress))
    }

    /// Where a decision leads, or why it leads nowhere.
    fn outcome(&self, decision: &Decision) -> Result<Route, DropReason> {
        match decision {
            Decision::Forward { plan, .. } => Ok(self.route(self.leads(), plan)),
            Decision::Gateway => Ok(self.route(Leads::Gateway, &Plan::default())),
            // What the node sends to where the switch does not lead goes by its own routes.
            Decision::Drop(Denial { reason: DropReason::Hairpin, .. }) if self.ingress == HOST => {
                Ok(self.route(self.by_host(), &Plan::default()))
            }
            Decision::Drop(denial) => Err(denial.reason),
        }
    }

    fn route(&self, leads: Leads, plan: &Plan) -> Route {
        let ends = &self.snapshot.tunnels.ends;
        let is_tunnel = plan.flags.has(PlanFlags::ENCAP);
        let end = is_tunnel.then(|| ends.get(EndIndex(plan.tunnel.into()))).flatten();
        let leads = match end.and(self.snapshot.tunnels.node(EndIndex(plan.tunnel.into()))) {
            Some(node) => Leads::Remote(Arc::clone(node)),
            None => leads,
        };
        let uplink = matches!(self.snapshot.port(plan.out), PortFacts::Uplink(_));
        let tunnel = end.map(|end| *end.outer());
        Route { node: Arc::clone(self.node), leads, uplink, tunnel }
    }

    fn leads(&self) -> Leads {
        let destination = self.snapshot.endpoints.get(&self.to.address);
        match destination {
            Some(facts) if matches!(facts.location, Location::Attached { .. }) => {
                let pod = &facts.endpoint.workload;
                Leads::Pod(format!("{}/{}", pod.namespace, pod.name))
            }
            _ => self.by_host(),
        }
    }

    /// Whom the address belongs to that is reached by the node's own port.
    fn by_host(&self) -> Leads {
        let address = self.to.address;
        if self.config.node.addresses.contains(&address) {
            return Leads::Node;
        }
        match &self.to.party.node {
            Some(name) if *name == *self.node => Leads::Node,
            Some(name) => Leads::Remote(Arc::clone(name)),
            None => self.behind(address).map_or(Leads::Outside, Leads::Remote),
        }
    }

    /// The node whose ranges hold an address that no pod has.
    fn behind(&self, address: IpAddr) -> Option<Arc<str>> {
        let holds =
            |cidrs: &[podswitch_core::config::Cidr]| cidrs.iter().any(|c| c.contains(address));
        self.config.nodes.iter().find(|n| holds(&n.pod_cidrs)).map(|node| Arc::clone(&node.name))
    }
}
