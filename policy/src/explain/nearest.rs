//! Rules as written, compared with one connection: which parts match and which do not.

use core::fmt;
use std::sync::Arc;

use crate::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, Direction, Labels, NamespacedPods, NetworkPolicy,
    Peer, Peers, PortRule, Ports, Protocol,
};
use crate::table::{IdentityInfo, Party, PolicyId, PolicyInfo, PolicyObject, PolicyTable};
use crate::verdict::Traffic;

/// How far one part of a rule matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Closeness {
    /// It matches.
    Whole,
    /// Partly: the namespace but not the pod or vice versa, the CIDR but also one of its
    /// exceptions, the protocol but not the port.
    Half,
    /// Not at all.
    None,
}

/// How far a rule matches a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Match {
    /// `from` or `to`.
    pub peer: Closeness,
    /// `ports`.
    pub port: Closeness,
}

impl Match {
    /// Whether the rule matches: both parts do (N6).
    pub fn is_whole(&self) -> bool {
        self.peer == Closeness::Whole && self.port == Closeness::Whole
    }

    fn distance(&self) -> u8 {
        self.peer as u8 + self.port as u8
    }
}

/// The rule that came closest to allowing a denied connection, and the differences.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nearest {
    /// Cookie of its policy.
    pub policy: Arc<str>,
    /// Direction of the rule.
    pub direction: Direction,
    /// Index in the policy's list for the direction.
    pub rule: u32,
    /// How far it matches.
    pub matched: Match,
    /// What the rule requires of the peer and the peer does not have; `None` if the peer matches.
    pub wants_peer: Option<String>,
    /// The ports that the rule names, if the connection's port is not one of them; `None` if the
    /// port matches.
    pub wants_port: Option<String>,
    /// The peer.
    pub peer: String,
    /// The connection.
    pub traffic: String,
}

impl Nearest {
    /// The differences: `peer`, `port`, `protocol`, or two of them.
    pub fn differs(&self) -> &'static [&'static str] {
        let peer = self.matched.peer != Closeness::Whole;
        match (peer, self.matched.port) {
            (false, Closeness::Whole) => &[],
            (false, Closeness::Half) => &["port"],
            (false, Closeness::None) => &["protocol"],
            (true, Closeness::Whole) => &["peer"],
            (true, Closeness::Half) => &["peer", "port"],
            (true, Closeness::None) => &["peer", "protocol"],
        }
    }
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, direction, rule, peer, traffic, .. } = self;
        write!(f, "nearest is {policy} {direction}[{rule}]")?;
        let mut joint = ", which";
        if let Some(wants) = &self.wants_peer {
            write!(f, "{joint} is about {wants} and not {peer}")?;
            joint = ", and";
        }
        if let Some(wants) = &self.wants_port {
            write!(f, "{joint} names {wants} and not {traffic}")?;
        }
        Ok(())
    }
}

/// One end to be explained.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) table: &'a PolicyTable,
    pub(super) direction: Direction,
    pub(super) subject: &'a Party,
    pub(super) peer: &'a Party,
    pub(super) traffic: Traffic,
}

impl Case<'_> {
    /// The rule closest to matching among all rules of these policies; the first one if several are
    /// equally close. `None` if the policies have no rule.
    pub(super) fn nearest(&self, policies: &[PolicyId]) -> Option<Nearest> {
        let mut best: Option<(Match, &Arc<PolicyInfo>, usize)> = None;
        for policy in policies.iter().filter_map(|id| self.table.policy(*id)) {
            for rule in 0..policy.object.rule_count(self.direction) {
                let Some(matched) = self.weigh(policy, rule) else { continue };
                if best.is_none_or(|(b, ..)| matched.distance() < b.distance()) {
                    best = Some((matched, policy, rule));
                }
            }
        }
        let (matched, policy, rule) = best?;
        let wants = |part: Closeness, text: Option<String>| match part {
            Closeness::Whole => None,
            _ => text,
        };
        let (peers, ports) = rule_parts(&policy.object, self.direction, rule)?;
        Some(Nearest {
            policy: Arc::clone(policy.object.cookie()),
            direction: self.direction,
            rule: rule as u32,
            matched,
            wants_peer: wants(matched.peer, Some(peers)),
            wants_port: wants(matched.port, Some(ports)),
            peer: self.peer_text(),
            traffic: self.traffic.to_string(),
        })
    }

    pub(super) fn weigh(&self, policy: &PolicyInfo, rule: usize) -> Option<Match> {
        match &policy.object {
            PolicyObject::Network(policy) => self.weigh_network(policy, rule),
            PolicyObject::Cluster(policy) => self.weigh_cluster(policy, rule),
        }
    }

    fn weigh_network(&self, policy: &NetworkPolicy, rule: usize) -> Option<Match> {
        let rule = policy.rules(self.direction)?.get(rule)?;
        let Peers::AnyOf(peers) = &rule.peers else {
            return Some(Match { peer: Closeness::Whole, port: self.port(&rule.ports, false) });
        };
        let each = peers.iter().map(|peer| {
            let by_address = matches!(peer, Peer::IpBlock { .. });
            let port = self.port(&rule.ports, by_address);
            Match { peer: self.peer(policy, peer), port }
        });
        Some(self.best(each, &rule.ports))
    }

    fn weigh_cluster(&self, policy: &ClusterNetworkPolicy, rule: usize) -> Option<Match> {
        let rule = policy.rules(self.direction).get(rule)?;
        if rule.has_unknown_peer() {
            // Fails closed: a rule with the action Accept matches nothing, others match everything.
            let whole = rule.action != Action::Accept;
            let part = if whole { Closeness::Whole } else { Closeness::None };
            return Some(Match { peer: part, port: part });
        }
        let each = rule.peers.iter().map(|peer| {
            let by_address = matches!(peer, ClusterPeer::Networks(_));
            let port = self.port(&rule.ports, by_address);
            Match { peer: self.cluster_peer(peer), port }
        });
        Some(self.best(each, &rule.ports))
    }

    /// The best match of a rule's peers; without peers, only the ports can match.
    fn best(&self, each: impl Iterator<Item = Match>, ports: &Ports) -> Match {
        let none = Match { peer: Closeness::None, port: self.port(ports, false) };
        each.min_by_key(Match::distance).unwrap_or(none)
    }

    fn peer(&self, policy: &NetworkPolicy, peer: &Peer) -> Closeness {
        match peer {
            Peer::IpBlock { cidr, except } => {
                let address = self.peer.address();
                if !cidr.contains(address) {
                    Closeness::None
                } else if except.iter().any(|range| range.contains(address)) {
                    Closeness::Half
                } else {
                    Closeness::Whole
                }
            }
            Peer::Selectors { pods, namespaces } => {
                let Some((namespace, labels)) = self.peer_pod() else { return Closeness::None };
                let pod = pods.as_ref().is_none_or(|s| s.matches(labels));
                let home = match namespaces {
                    Some(selector) => selector.matches(&self.namespace_labels(namespace)),
                    None => *namespace == policy.namespace,
                };
                halves(home, pod)
            }
        }
    }

    fn cluster_peer(&self, peer: &ClusterPeer) -> Closeness {
        let whole = |matches| if matches { Closeness::Whole } else { Closeness::None };
        match peer {
            ClusterPeer::Pods(NamespacedPods { namespaces, pods }) => match self.peer_pod() {
                Some((namespace, labels)) => {
                    let home = namespaces.matches(&self.namespace_labels(namespace));
                    halves(home, pods.matches(labels))
                }
                None => Closeness::None,
            },
            ClusterPeer::Nodes(selector) => {
                whole(match self.table.identity(self.peer).map(|info| &**info) {
                    Some(IdentityInfo::Nodes { labels }) => selector.matches(labels),
                    _ => false,
                })
            }
            ClusterPeer::Networks(ranges) => {
                whole(ranges.iter().any(|range| range.contains(self.peer.address())))
            }
            ClusterPeer::Unknown => Closeness::None,
        }
    }

    /// `by_address`: the peer was matched by address, for which names match nothing on egress (N7).
    fn port(&self, ports: &Ports, by_address: bool) -> Closeness {
        let Ports::AnyOf(entries) = ports else { return Closeness::Whole };
        let Some(protocol) = Protocol::from_number(self.traffic.protocol) else {
            return Closeness::None;
        };
        let each = entries.iter().map(|entry| self.port_entry(entry, protocol, by_address));
        each.min().unwrap_or(Closeness::None)
    }

    fn port_entry(&self, entry: &PortRule, protocol: Protocol, by_address: bool) -> Closeness {
        let port = self.traffic.port;
        let (same, matches) = match entry {
            PortRule::Every(p) => (*p == protocol, true),
            PortRule::Range { protocol: p, first, last } => {
                (*p == protocol, (*first..=*last).contains(&port))
            }
            PortRule::Named { protocol: p, name } => {
                let destination = match self.direction {
                    Direction::Egress => self.peer,
                    Direction::Ingress => self.subject,
                };
                let resolves = !(by_address && self.direction == Direction::Egress);
                let ports = match self.table.identity(destination).map(|info| &**info) {
                    Some(IdentityInfo::Pods { ports, .. }) if resolves => ports.as_slice(),
                    _ => &[],
                };
                let meant = ports.iter().filter(|c| c.name == *name && c.protocol == protocol);
                (p.is_none_or(|p| p == protocol), meant.clone().any(|c| c.port == port))
            }
        };
        match (same, matches) {
            (true, true) => Closeness::Whole,
            (true, false) => Closeness::Half,
            (false, _) => Closeness::None,
        }
    }

    fn peer_pod(&self) -> Option<(&Arc<str>, &Labels)> {
        match &**self.table.identity(self.peer)? {
            IdentityInfo::Pods { namespace, labels, .. } => Some((namespace, labels)),
            IdentityInfo::Nodes { .. } => None,
        }
    }

    fn namespace_labels(&self, name: &str) -> Labels {
        self.table.namespace_labels(name).cloned().unwrap_or_default()
    }

    fn peer_text(&self) -> String {
        match (self.table.pod(self.peer), self.peer.is_node()) {
            (Some(pod), _) => format!("{pod} ({})", self.peer.address()),
            (None, true) => format!("node address {}", self.peer.address()),
            (None, false) => self.peer.address().to_string(),
        }
    }
}

fn halves(a: bool, b: bool) -> Closeness {
    match (a, b) {
        (true, true) => Closeness::Whole,
        (false, false) => Closeness::None,
        _ => Closeness::Half,
    }
}

/// A rule as text.
pub(super) fn rule_text(
    object: &PolicyObject,
    direction: Direction,
    rule: usize,
) -> Option<String> {
    let (peers, ports) = rule_parts(object, direction, rule)?;
    let word = match direction {
        Direction::Egress => "to",
        Direction::Ingress => "from",
    };
    let action = match object {
        PolicyObject::Network(_) => "",
        PolicyObject::Cluster(policy) => policy.rules(direction).get(rule)?.action.name(),
    };
    let space = if action.is_empty() { "" } else { " " };
    Some(format!("{action}{space}{word} {peers}, {ports}"))
}

/// A rule's peers and ports as text.
fn rule_parts(
    object: &PolicyObject,
    direction: Direction,
    rule: usize,
) -> Option<(String, String)> {
    fn list(items: impl Iterator<Item = String>, none: &str) -> String {
        let items: Vec<String> = items.collect();
        if items.is_empty() { none.to_owned() } else { items.join(" or ") }
    }
    let (peers, ports) = match object {
        PolicyObject::Network(policy) => {
            let rule = policy.rules(direction)?.get(rule)?;
            let peers = match &rule.peers {
                Peers::Any => "anyone".to_owned(),
                Peers::AnyOf(peers) => list(peers.iter().map(Peer::to_string), "nobody"),
            };
            (peers, &rule.ports)
        }
        PolicyObject::Cluster(policy) => {
            let rule = policy.rules(direction).get(rule)?;
            (list(rule.peers.iter().map(ClusterPeer::to_string), "nobody"), &rule.ports)
        }
    };
    let ports = match ports {
        Ports::Any => "any port".to_owned(),
        Ports::AnyOf(ports) => list(ports.iter().map(PortRule::to_string), "no port"),
    };
    Some((peers, ports))
}
