//! One connection, evaluated by both ends' policies and by the switch that its first packet
//! reaches.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::{DropClass, DropReason, Plan, PlanFlags};
use podswitch_core::config::{Config, PortConfig, PortRole};
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::id::PortId;
use podswitch_core::resolve::{Decision, Denial, Query, resolve};
use podswitch_core::snapshot::{Location, PortFacts, Snapshot};
use podswitch_kubernetes::Manifests;
use podswitch_node::overlay::{UNKNOWN_NODE_MAC, attach_uplink};
use podswitch_node::{ClusterOptions, DEFAULT_MTU};
use podswitch_policy::explain::{Explanation, Side};
use podswitch_policy::table::PolicyTable;
use podswitch_policy::verdict::Why;
use podswitch_vxlan::template::Outer;
use podswitch_vxlan::vtep::VtepIndex;
use podswitch_wire::flow_key::{FlowKey, proto};

use super::ends::{End, Ends};
use super::reference::Wanted;
use super::service::Served;
use crate::failure::Failure;
use crate::state;

/// The node's own port.
const HOST: PortId = PortId(0);
/// The uplink's port, and the first of the pods' ports.
const UPLINK: PortId = PortId(1);
const PODS: u16 = 2;

/// The result for a connection.
pub(super) struct Outcome {
    /// The result of both ends' policies.
    pub(super) policies: Explanation,
    /// The decision of the switch at the source's node.
    pub(super) verdict: Verdict,
    /// The Service's part, if the destination is a Service's.
    pub(super) service: Option<Served>,
    /// The route of the first packet, even if a policy denies it; `None` if there is none.
    pub(super) route: Option<Route>,
}

/// The switch's decision about the first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is forwarded.
    Allow,
    /// A policy denies it.
    Deny(DropReason),
    /// It is rejected, with an answer to the client.
    Reject(DropReason),
    /// It is dropped for another reason.
    Drop(DropReason),
}

impl Outcome {
    pub(super) fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

/// A route that the switch of a node sends packets by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The node.
    pub(super) node: Arc<str>,
    /// Its destination.
    pub(super) leads: Leads,
    /// Through the uplink rather than the node's own port.
    pub(super) uplink: bool,
    /// The outer headers, if the route goes through the overlay.
    pub(super) tunnel: Option<Outer>,
}

/// The destination of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// To the port of a pod of this node, `namespace/pod`.
    Pod(String),
    /// To the gateway that pods see: the switch itself.
    Gateway,
    /// To this node, through its own port.
    Node,
    /// To another node, which has the address or the pod with it.
    Remote(Arc<str>),
    /// Out of the cluster, through the node's own port.
    Outside,
}

/// Evaluates the connection between two ends. `node`: the entry node, if the ends do not determine it.
pub(super) fn evaluate(
    manifests: &Manifests,
    cluster: &ClusterOptions,
    ends: &Ends,
    sport: u16,
    node: Option<&Arc<str>>,
) -> Result<Outcome, Failure> {
    // A source outside the cluster enters at the destination's node.
    let node = ends.from.party.node.as_ref().or(node).or(ends.to.party.node.as_ref());
    let compiled = state::compile(manifests, node.map(|name| &**name), cluster);
    let (config, ingress) = ports(compiled, &ends.from);
    let snapshot = snapshot(&config)?;
    let key = key(ends, sport)?;
    let is_pod = ends.from.party.pod.is_some();
    let served = node.and_then(|_| Served::find(&config, &snapshot, &key, is_pod));
    // Both ends' policies see the backend, and the client's own address (N15).
    let backend = served.as_ref().and_then(|served| served.backend(&config));
    let (to, wanted) = backend.as_ref().map_or((&ends.to, ends.wanted), |(end, port)| (end, *port));
    let traffic = wanted.traffic(key.src_addr().is_ipv6());
    let policies = snapshot.policy.explain(ends.from.address, to.address, traffic);
    let Some(node) = node else {
        // Two ends outside the cluster reach no switch; neither does a pod without a node.
        let verdict = match ends.from.party.pod.is_some() || ends.to.party.pod.is_some() {
            true => Verdict::Drop(DropReason::UnknownPod),
            false => Verdict::Allow,
        };
        let verdict = verdict.unless_denied(&policies);
        return Ok(Outcome { verdict, policies, service: None, route: None });
    };
    if ends.from.party.pod.is_some() && ends.from.party.node.is_none() {
        let verdict = Verdict::Drop(DropReason::EndpointNotReady).unless_denied(&policies);
        return Ok(Outcome { verdict, policies, service: served, route: None });
    }
    let first = FirstPacket { snapshot: &snapshot, config: &config, node, to, ingress };
    let decision = first.ask(&snapshot, &key);
    let is_refused = served.as_ref().is_some_and(Served::is_refused);
    let policies = match decision {
        Decision::Gateway => not_evaluated(policies),
        // There is no backend to evaluate policy for.
        _ if is_refused => not_evaluated(policies),
        _ => policies,
    };
    let (verdict, route) = match first.outcome(&decision) {
        Ok(route) => (Verdict::Allow, Some(route)),
        Err(DropReason::PolicyEgress | DropReason::PolicyIngress) => {
            // The route that the packet would take if it were allowed.
            let open = Snapshot { policy: Arc::new(PolicyTable::default()), ..(*snapshot).clone() };
            (Verdict::Allow, first.outcome(&first.ask(&open, &key)).ok())
        }
        Err(reason @ (DropReason::ServiceNoEndpoints | DropReason::ServiceUndefinedPort)) => {
            (Verdict::Reject(reason), None)
        }
        Err(reason) => (Verdict::Drop(reason), None),
    };
    // The switch at the source's node enforces only for its own pods.
    let verdict = match verdict {
        // A packet whose source may not send at all is not evaluated.
        Verdict::Drop(reason) if reason.class() == DropClass::Spoof => verdict,
        _ => verdict.unless_denied(&policies),
    };
    Ok(Outcome { policies, verdict, service: served, route })
}

impl Verdict {
    /// Policy is evaluated before the route.
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

/// The node's ports: its own, the uplink, and those of its pods. Returns the one that the first
/// packet of `from` enters by.
fn ports(mut compiled: podswitch_kubernetes::Compiled, from: &End) -> (Config, PortId) {
    let mac = compiled.config.node.underlay_mac;
    let mac = if mac.is_unicast() { mac } else { UNKNOWN_NODE_MAC };
    let role = PortRole::Host { mac, mtu: DEFAULT_MTU };
    compiled.config.ports.push(PortConfig { port: HOST, role });
    attach_uplink(&mut compiled.config, UPLINK);
    let mut ingress = HOST;
    // Pods beyond the maximum number of ports count as not attached.
    for pod in 0..compiled.pods.len().min(PortId::MAX_PORTS - usize::from(PODS)) {
        let port = PortId(pod as u16 + PODS);
        if from.party.pod.as_ref() == Some(&compiled.pods[pod].cookie) {
            ingress = port;
        }
        compiled.attach(pod, port, DEFAULT_MTU);
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

/// The gateway is not a peer: policy is not evaluated.
fn not_evaluated(policies: Explanation) -> Explanation {
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

/// The first packet at the switch that it reaches.
struct FirstPacket<'a> {
    snapshot: &'a Snapshot,
    config: &'a Config,
    node: &'a Arc<str>,
    /// The destination; a Service's backend.
    to: &'a End,
    ingress: PortId,
}

impl FirstPacket<'_> {
    fn ask<'s>(&self, snapshot: &'s Snapshot, key: &FlowKey) -> Decision<'s> {
        resolve(snapshot, &Query::new(key, self.ingress))
    }

    /// The route of a decision, or why there is none.
    fn outcome(&self, decision: &Decision) -> Result<Route, DropReason> {
        match decision {
            Decision::Forward { plan, .. } => Ok(self.route(self.leads(), plan)),
            Decision::Gateway => Ok(self.route(Leads::Gateway, &Plan::default())),
            // Packets from the node whose destination does not lead to the switch follow the node's
            // own routes.
            Decision::Drop(Denial { reason: DropReason::Hairpin, .. }) if self.ingress == HOST => {
                Ok(self.route(self.by_host(), &Plan::default()))
            }
            Decision::Drop(denial) => Err(denial.reason),
        }
    }

    fn route(&self, leads: Leads, plan: &Plan) -> Route {
        let ends = &self.snapshot.tunnels.ends;
        let is_tunnel = plan.flags.has(PlanFlags::ENCAP);
        let end = is_tunnel.then(|| ends.get(VtepIndex(plan.tunnel.into()))).flatten();
        let leads = match end.and(self.snapshot.tunnels.node(VtepIndex(plan.tunnel.into()))) {
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

    /// The owner of an address that is reached through the node's own port.
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

    /// The node whose CIDRs contain an address that no pod has.
    fn behind(&self, address: IpAddr) -> Option<Arc<str>> {
        let holds =
            |cidrs: &[podswitch_core::config::Cidr]| cidrs.iter().any(|c| c.contains(address));
        self.config.nodes.iter().find(|n| holds(&n.pod_cidrs)).map(|node| Arc::clone(&node.name))
    }
}

/// The snapshot that a switch with this configuration would use.
pub(super) fn snapshot(config: &Config) -> Result<Arc<Snapshot>, Failure> {
    let mut control = ControlPlane::new(Options::default());
    state::apply(&mut control, config)?;
    Ok(control.snapshot())
}
