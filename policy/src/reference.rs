//! NetworkPolicy evaluated directly as the API's text says: no index, no cache, no optimization.
//!
//! The compiled table is tested against this. Every rule N1–N18 is one function here, and each
//! verdict walks all policies of the cluster. Used by tests, and by `vswitch explain` as a check of
//! the table.

use core::net::IpAddr;
use std::sync::Arc;

use crate::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, Direction, Labels,
    NAMESPACE_NAME_LABEL, Namespace, NamespacedPods, NetworkPolicy, Node, Peer, Peers, Pod,
    PortRule, Ports, Protocol, Rule, Tier,
};
use crate::verdict::{Traffic, Why};

/// All inputs of policy evaluation, as lists.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Pods.
    pub pods: Vec<Arc<Pod>>,
    /// Namespaces.
    pub namespaces: Vec<Arc<Namespace>>,
    /// Nodes.
    pub nodes: Vec<Arc<Node>>,
    /// NetworkPolicies.
    pub network_policies: Vec<Arc<NetworkPolicy>>,
    /// ClusterNetworkPolicies.
    pub cluster_policies: Vec<Arc<ClusterNetworkPolicy>>,
}

/// The verdict of one end's policies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Side {
    /// Whether this end allows the connection.
    pub allow: bool,
    /// Why.
    pub why: Why,
    /// The rule that decided: cookie of its policy and index in the direction's list.
    pub rule: Option<(Arc<str>, usize)>,
    /// NetworkPolicies that isolate the pod in this direction, by cookie, sorted.
    pub isolated_by: Vec<Arc<str>>,
}

/// The verdicts of both ends. The connection is allowed if both allow it (N4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Policies of the source.
    pub egress: Side,
    /// Policies of the destination.
    pub ingress: Side,
}

impl Verdict {
    /// Whether both ends allow the connection (N4).
    pub fn allow(&self) -> bool {
        self.egress.allow && self.ingress.allow
    }
}

/// The owner of an address.
#[derive(Clone, Copy, Debug)]
enum Who<'a> {
    Pod(&'a Pod),
    /// A node, by name; hostNetwork pods are their node (N11).
    Node(&'a str),
    Outside,
}

/// One end of the connection.
#[derive(Clone, Copy, Debug)]
struct End<'a> {
    address: IpAddr,
    who: Who<'a>,
}

/// Evaluates a new connection between two addresses, for both ends.
pub fn evaluate(cluster: &Cluster, from: IpAddr, to: IpAddr, traffic: Traffic) -> Verdict {
    let source = End { address: from, who: cluster.who(from) };
    let destination = End { address: to, who: cluster.who(to) };
    let case = |direction, subject, peer| Case { cluster, direction, subject, peer, traffic };
    Verdict {
        egress: case(Direction::Egress, source, destination).evaluate(),
        ingress: case(Direction::Ingress, destination, source).evaluate(),
    }
}

impl Cluster {
    /// If several pods claim one address, the first by cookie has it; a pod's claim precedes a
    /// node's.
    fn who(&self, address: IpAddr) -> Who<'_> {
        let claims = |pod: &&Arc<Pod>| pod.workload.addresses.contains(&address);
        let first = |host_network| {
            let pods = self.pods.iter().filter(|p| p.workload.host_network == host_network);
            pods.filter(claims).min_by_key(|p| &p.cookie)
        };
        if let Some(pod) = first(false) {
            return Who::Pod(pod);
        }
        let nodes = self.nodes.iter().filter(|n| n.addresses.contains(&address));
        if let Some(node) = nodes.min_by_key(|n| &n.name) {
            return Who::Node(&node.name);
        }
        match first(true) {
            Some(pod) => Who::Node(&pod.node),
            None => Who::Outside,
        }
    }

    /// Labels of a namespace as selectors see them. A namespace without an object has only the
    /// label with its name.
    fn namespace_labels(&self, name: &str) -> Labels {
        match self.namespaces.iter().find(|n| *n.name == *name) {
            Some(namespace) => namespace.effective_labels(),
            None => [(NAMESPACE_NAME_LABEL, name)].into_iter().collect(),
        }
    }
}

/// One end's evaluation: may `subject` open to (egress) or accept from (ingress) `peer`?
struct Case<'a> {
    cluster: &'a Cluster,
    direction: Direction,
    subject: End<'a>,
    peer: End<'a>,
    traffic: Traffic,
}

impl Case<'_> {
    fn evaluate(&self) -> Side {
        let side = |allow, why, rule| Side { allow, why, rule, isolated_by: Vec::new() };
        let Who::Pod(pod) = self.subject.who else {
            return side(true, Why::NoPod, None);
        };
        if let Who::Pod(peer) = self.peer.who
            && peer.cookie == pod.cookie
            && !self.traffic.via_service
        {
            return side(true, Why::OwnAddress, None);
        }
        if let Who::Node(node) = self.peer.who
            && *node == *pod.node
            && !node.is_empty()
        {
            return side(true, Why::OwnNode, None);
        }
        self.tiers(pod)
    }

    /// Order: Admin, NetworkPolicy, Baseline; if none decides, the connection is allowed.
    fn tiers(&self, pod: &Pod) -> Side {
        let isolating = self.isolating(pod);
        let isolated_by: Vec<_> = isolating.iter().map(|p| Arc::clone(&p.cookie)).collect();
        let side = |allow, why, rule| Side { allow, why, rule, isolated_by: isolated_by.clone() };
        if let Some((allow, rule)) = self.cluster_tier(pod, Tier::Admin) {
            return side(allow, Why::Rule(Tier::Admin), Some(rule));
        }
        if !isolating.is_empty() {
            return match self.first_allowing(pod, &isolating) {
                Some(rule) => side(true, Why::Rule(Tier::NetworkPolicy), Some(rule)),
                None => side(false, Why::Isolated, None),
            };
        }
        if let Some((allow, rule)) = self.cluster_tier(pod, Tier::Baseline) {
            return side(allow, Why::Rule(Tier::Baseline), Some(rule));
        }
        side(true, Why::NotIsolated, None)
    }

    /// NetworkPolicies that isolate the pod in this direction (N1, N2), by cookie.
    fn isolating(&self, pod: &Pod) -> Vec<&NetworkPolicy> {
        let policies = self.cluster.network_policies.iter().map(|p| &**p);
        let mut list: Vec<_> = policies
            .filter(|p| p.rules(self.direction).is_some())
            .filter(|p| p.namespace == pod.workload.namespace)
            .filter(|p| p.pods.matches(&pod.workload.labels))
            .collect();
        list.sort_by_key(|p| &p.cookie);
        list
    }

    /// The first rule of these policies that matches: one suffices (N3).
    fn first_allowing(&self, pod: &Pod, policies: &[&NetworkPolicy]) -> Option<(Arc<str>, usize)> {
        for policy in policies {
            for (index, rule) in policy.rules(self.direction).unwrap_or_default().iter().enumerate()
            {
                if self.rule_matches(pod, policy, rule) {
                    return Some((Arc::clone(&policy.cookie), index));
                }
            }
        }
        None
    }

    /// A rule's peers and ports must both match (N6). One entry of each list suffices. A named port
    /// depends on the peer, so each peer is tried together with the ports.
    fn rule_matches(&self, pod: &Pod, policy: &NetworkPolicy, rule: &Rule) -> bool {
        match &rule.peers {
            Peers::Any => self.ports_match(pod, &rule.ports, false),
            Peers::AnyOf(peers) => peers.iter().any(|peer| {
                let by_address = matches!(peer, Peer::IpBlock { .. });
                self.peer_matches(policy, peer) && self.ports_match(pod, &rule.ports, by_address)
            }),
        }
    }

    fn peer_matches(&self, policy: &NetworkPolicy, peer: &Peer) -> bool {
        match peer {
            // N9: an ipBlock matches any address in it, pods and nodes included.
            Peer::IpBlock { cidr, except } => {
                let address = self.peer.address;
                cidr.contains(address) && !except.iter().any(|e| e.contains(address))
            }
            // N8.
            Peer::Selectors { pods, namespaces } => {
                let Who::Pod(peer) = self.peer.who else { return false };
                let namespace = &peer.workload.namespace;
                let in_namespace = match namespaces {
                    Some(selector) => selector.matches(&self.cluster.namespace_labels(namespace)),
                    None => *namespace == policy.namespace,
                };
                in_namespace && pods.as_ref().is_none_or(|s| s.matches(&peer.workload.labels))
            }
        }
    }

    /// `by_address`: the peer was matched by address, for which names match nothing on egress (N7).
    fn ports_match(&self, pod: &Pod, ports: &Ports, by_address: bool) -> bool {
        let Ports::AnyOf(list) = ports else { return true };
        // N10, N17: a protocol is matched only by its own entries.
        let Some(protocol) = Protocol::from_number(self.traffic.protocol) else { return false };
        let port = self.traffic.port;
        list.iter().any(|entry| match entry {
            PortRule::Every(p) => *p == protocol,
            PortRule::Range { protocol: p, first, last } => {
                *p == protocol && (*first..=*last).contains(&port)
            }
            PortRule::Named { protocol: p, name } => {
                let destination = match (self.direction, self.peer.who) {
                    (Direction::Ingress, _) => pod,
                    (Direction::Egress, Who::Pod(peer)) if !by_address => peer,
                    (Direction::Egress, _) => return false,
                };
                p.is_none_or(|p| p == protocol)
                    && destination
                        .workload
                        .ports
                        .iter()
                        .any(|c| c.name == *name && c.protocol == protocol && c.port == port)
            }
        })
    }

    /// The decision of a tier of ClusterNetworkPolicies: the first matching rule by priority, name
    /// and position. `Pass` and no match decide nothing.
    fn cluster_tier(&self, pod: &Pod, tier: Tier) -> Option<(bool, (Arc<str>, usize))> {
        let policies = self.cluster.cluster_policies.iter().map(|p| &**p);
        let mut list: Vec<_> = policies
            .filter(|p| Tier::from(p.tier) == tier && self.selects(&p.subject, pod))
            .collect();
        list.sort_by_key(|p| (p.priority, &p.cookie));
        for policy in list {
            for (index, rule) in policy.rules(self.direction).iter().enumerate() {
                let decided = Some((Arc::clone(&policy.cookie), index));
                match self.cluster_rule(pod, rule) {
                    Some(Action::Accept) => return decided.map(|d| (true, d)),
                    Some(Action::Deny) => return decided.map(|d| (false, d)),
                    Some(Action::Pass) => return None,
                    None => {}
                }
            }
        }
        None
    }

    /// The action of a rule for this connection; `None` if it does not match.
    fn cluster_rule(&self, pod: &Pod, rule: &ClusterRule) -> Option<Action> {
        if rule.has_unknown_peer() {
            return (rule.action != Action::Accept).then_some(Action::Deny);
        }
        let matches = rule.peers.iter().any(|peer| {
            let by_address = matches!(peer, ClusterPeer::Networks(_));
            self.cluster_peer_matches(peer) && self.ports_match(pod, &rule.ports, by_address)
        });
        matches.then_some(rule.action)
    }

    fn cluster_peer_matches(&self, peer: &ClusterPeer) -> bool {
        match (peer, self.peer.who) {
            (ClusterPeer::Pods(pods), Who::Pod(pod)) => self.selects(pods, pod),
            (ClusterPeer::Nodes(selector), Who::Node(name)) => {
                let node = self.cluster.nodes.iter().find(|n| *n.name == *name);
                node.is_some_and(|n| selector.matches(&n.labels))
            }
            (ClusterPeer::Networks(ranges), _) => {
                ranges.iter().any(|r| r.contains(self.peer.address))
            }
            _ => false,
        }
    }

    fn selects(&self, pods: &NamespacedPods, pod: &Pod) -> bool {
        let namespace = self.cluster.namespace_labels(&pod.workload.namespace);
        pods.namespaces.matches(&namespace) && pods.pods.matches(&pod.workload.labels)
    }
}
