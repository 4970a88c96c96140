//! The output of `explain`: lines for people, JSON for programs.

use std::fmt;

use podswitch_policy::explain::{Nearest, Side};
use podswitch_policy::verdict::Why;
use serde::Serialize;

use super::ends::{End, Ends};
use super::evaluate::{Leads, Outcome, Route, Verdict};
use super::family::Family;
use super::service::{Served, ServiceReport};

/// The result for programs.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    /// `allow`, `deny` (by policy), `reject` (with an answer to the client) or `drop`.
    verdict: &'static str,
    /// Name of the drop reason, as in `drops.jsonl`; null if allowed.
    reason: Option<&'static str>,
    from: EndReport<'a>,
    to: EndReport<'a>,
    family: &'static str,
    /// `80/TCP`, `ICMP`.
    traffic: String,
    egress: SideReport<'a>,
    ingress: SideReport<'a>,
    /// The Service, if the destination is an address of one.
    service: Option<ServiceReport<'a>>,
    route: Option<RouteReport<'a>>,
}

#[derive(Serialize)]
struct EndReport<'a> {
    /// `Kind/namespace/name`, or the address if no object has it.
    object: &'a str,
    address: String,
    node: Option<&'a str>,
}

#[derive(Serialize)]
struct SideReport<'a> {
    verdict: &'static str,
    why: &'static str,
    /// The policy that decided: one that allows, or that denies; null if none applied.
    policy: Option<&'a str>,
    /// Index of its rule that decided; null if it denies by isolation.
    rule: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_text: Option<&'a str>,
    /// On denial: the policies that isolate the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    isolated_by: Option<Vec<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<NearestReport<'a>>,
}

/// The rule that came closest to allowing a denied connection.
#[derive(Serialize)]
struct NearestReport<'a> {
    policy: &'a str,
    rule: u32,
    /// `peer`, `port`, `protocol`.
    differs: &'a [&'a str],
    text: String,
}

#[derive(Serialize)]
struct RouteReport<'a> {
    /// The node whose switch decides.
    node: &'a str,
    /// `pod`, `gateway`, `node`, `remote` or `outside`.
    kind: &'static str,
    /// The port by which packets leave, as `replay` names it.
    port: Option<&'a str>,
    /// The other node, if the route leads to one.
    remote: Option<&'a str>,
    tunnel: bool,
    /// The tunnel packets' outer headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    vxlan: Option<VxlanReport>,
}

#[derive(Serialize)]
struct VxlanReport {
    vni: u32,
    source: String,
    destination: String,
    port: u16,
}

impl<'a> Report<'a> {
    pub(super) fn new(ends: &'a Ends, outcome: &'a Outcome) -> Self {
        let traffic = ends.wanted.traffic(ends.from.address.is_ipv6());
        Self {
            verdict: verdict(outcome.verdict),
            reason: reason(outcome.verdict),
            from: EndReport::new(&ends.from),
            to: EndReport::new(&ends.to),
            family: Family::of(ends.from.address).name(),
            traffic: traffic.to_string(),
            egress: SideReport::new(&outcome.policies.egress),
            ingress: SideReport::new(&outcome.policies.ingress),
            service: outcome.service.as_ref().map(Served::report),
            route: outcome.route.as_ref().map(RouteReport::new),
        }
    }
}

impl<'a> EndReport<'a> {
    fn new(end: &'a End) -> Self {
        Self {
            object: &end.party.name,
            address: end.address.to_string(),
            node: end.party.node.as_deref(),
        }
    }
}

impl<'a> SideReport<'a> {
    fn new(side: &'a Side) -> Self {
        let isolated_by = || side.isolated_by.iter().map(|cookie| &**cookie).collect();
        Self {
            verdict: side.verdict(),
            why: why(side.why),
            policy: side.policy.as_deref(),
            rule: side.rule,
            rule_text: side.rule_text.as_deref(),
            isolated_by: (!side.allow).then(isolated_by),
            nearest: side.nearest.as_ref().map(NearestReport::new),
        }
    }
}

impl<'a> NearestReport<'a> {
    fn new(nearest: &'a Nearest) -> Self {
        Self {
            policy: &nearest.policy,
            rule: nearest.rule,
            differs: nearest.differs(),
            text: nearest.to_string(),
        }
    }
}

impl<'a> RouteReport<'a> {
    fn new(route: &'a Route) -> Self {
        let by = if route.uplink { "uplink" } else { "host" };
        let (kind, port, remote) = match &route.leads {
            Leads::Pod(name) => ("pod", Some(name.as_str()), None),
            Leads::Gateway => ("gateway", None, None),
            Leads::Node => ("node", Some("host"), None),
            Leads::Remote(node) => ("remote", Some(by), Some(&**node)),
            Leads::Outside => ("outside", Some(by), None),
        };
        let vxlan = route.tunnel.as_ref().map(|outer| VxlanReport {
            vni: outer.vni.get(),
            source: outer.source.to_string(),
            destination: outer.destination.to_string(),
            port: outer.port,
        });
        Self { node: &route.node, kind, port, remote, tunnel: vxlan.is_some(), vxlan }
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Deny(_) => "deny",
        Verdict::Reject(_) => "reject",
        Verdict::Drop(_) => "drop",
    }
}

fn reason(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Allow => None,
        Verdict::Deny(reason) | Verdict::Reject(reason) | Verdict::Drop(reason) => {
            Some(reason.name())
        }
    }
}

fn why(why: Why) -> &'static str {
    match why {
        Why::NoPod => "no_pod",
        Why::OwnAddress => "own_address",
        Why::OwnNode => "own_node",
        Why::NotIsolated => "not_isolated",
        Why::Rule(_) => "rule",
        Why::Isolated => "isolated",
    }
}

/// The result for people.
pub(super) struct Text<'a> {
    pub(super) ends: &'a Ends,
    pub(super) outcome: &'a Outcome,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ends, outcome } = self;
        let traffic = ends.wanted.traffic(ends.from.address.is_ipv6());
        let [from, to] = [&ends.from, &ends.to].map(name);
        write!(f, "{}: {traffic} from {from} to {to}", verdict(outcome.verdict))?;
        if let Verdict::Deny(reason) | Verdict::Reject(reason) | Verdict::Drop(reason) =
            outcome.verdict
        {
            write!(f, "\nreason: {}. {}", reason.name(), reason.describe())?;
        }
        if let Some(service) = &outcome.service {
            write!(f, "\n{service}")?;
        }
        if !outcome.service.as_ref().is_some_and(Served::is_refused) {
            write!(f, "\n{}", outcome.policies)?;
        }
        match &outcome.route {
            Some(route) => write!(f, "\nroute: {route}"),
            None => f.write_str("\nroute: none"),
        }
    }
}

fn name(end: &End) -> String {
    let (name, address) = (&end.party.name, end.address.to_string());
    if *name == address {
        return address;
    }
    match &end.party.node {
        Some(node) if *name != format!("Node/{node}") => format!("{name} ({address}, on {node})"),
        _ => format!("{name} ({address})"),
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "on {} ", self.node)?;
        match &self.leads {
            Leads::Pod(name) => write!(f, "to the port of {name}"),
            Leads::Gateway => f.write_str("to the gateway, which is the switch itself"),
            Leads::Node => f.write_str("to the node itself, by its own port"),
            Leads::Remote(node) if self.uplink => match &self.tunnel {
                Some(outer) => write!(
                    f,
                    "through the overlay to {node} (VXLAN {}, {} to {}, UDP port {})",
                    outer.vni, outer.source, outer.destination, outer.port
                ),
                None => write!(f, "to {node}, by the uplink"),
            },
            Leads::Remote(node) => write!(f, "to {node}, by the node's own port"),
            Leads::Outside if self.uplink => f.write_str("off the cluster, by the uplink"),
            Leads::Outside => f.write_str("off the cluster, by the node's own port"),
        }
    }
}
