//! Short notation for policies, so that a case of the truth table takes one to three lines.

use std::sync::Arc;

use podswitch_policy::rule::*;

/// `key=value`, comma separated, `!key`, `key`, `key in (a b)`, `key notin (a b)`; empty: all.
pub(crate) fn sel(text: &str) -> Selector {
    let mut selector = Selector::everything();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let values = |list: &str| {
            let list = list.trim().trim_matches(['(', ')']);
            list.split_whitespace().map(Arc::from).collect::<Vec<Arc<str>>>()
        };
        let (key, operator) = if let Some((key, list)) = part.split_once(" notin ") {
            (key, Operator::NotIn(values(list)))
        } else if let Some((key, list)) = part.split_once(" in ") {
            (key, Operator::In(values(list)))
        } else if let Some((key, value)) = part.split_once('=') {
            selector.labels = selector.labels.with(key, value);
            continue;
        } else if let Some(key) = part.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (part, Operator::Exists)
        };
        selector.expressions.push(Requirement { key: key.into(), operator });
    }
    selector
}

pub(crate) fn pods(text: &str) -> Peer {
    Peer::Selectors { pods: Some(sel(text)), namespaces: None }
}

pub(crate) fn namespaces(text: &str) -> Peer {
    Peer::Selectors { pods: None, namespaces: Some(sel(text)) }
}

pub(crate) fn both(namespaces: &str, pods: &str) -> Peer {
    Peer::Selectors { pods: Some(sel(pods)), namespaces: Some(sel(namespaces)) }
}

/// `CIDR` or `CIDR except CIDR,CIDR`.
pub(crate) fn block(text: &str) -> Peer {
    let (cidr, except) = text.split_once(" except ").unwrap_or((text, ""));
    let except = except.split(',').filter(|part| !part.is_empty());
    Peer::IpBlock {
        cidr: cidr.parse().unwrap(),
        except: except.map(|part| part.parse().unwrap()).collect(),
    }
}

/// `80/TCP`, `80-90/UDP`, `*/SCTP`, `http/TCP`, `http`; comma separated, empty: any.
pub(crate) fn ports(text: &str) -> Ports {
    let one = |part: &str| {
        let (port, protocol) = part.split_once('/').unwrap_or((part, ""));
        let known = Protocol::ALL.into_iter().find(|p| p.name() == protocol);
        let tcp = known.unwrap_or_default();
        match (port, port.split_once('-')) {
            ("*", _) => PortRule::Every(tcp),
            (_, Some((first, last))) => PortRule::Range {
                protocol: tcp,
                first: first.parse().unwrap(),
                last: last.parse().unwrap(),
            },
            (port, None) => match port.parse() {
                Ok(number) => PortRule::port(tcp, number),
                Err(_) => PortRule::Named { protocol: known, name: port.into() },
            },
        }
    };
    Ports::from_list(text.split(',').filter(|part| !part.is_empty()).map(one).collect())
}

/// A rule with these peers (none: any) and ports (empty: any).
pub(crate) fn rule<const N: usize>(peers: [Peer; N], ports_text: &str) -> Rule {
    Rule { peers: Peers::from_list(peers.to_vec()), ports: ports(ports_text) }
}

/// A NetworkPolicy of namespace `namespace` for pods selected by `selected`, without rules.
pub(crate) fn policy(name: &str, selected: &str) -> NetworkPolicy {
    let (namespace, name) = name.split_once('/').unwrap();
    NetworkPolicy {
        cookie: format!("NetworkPolicy/{namespace}/{name}").into(),
        namespace: namespace.into(),
        name: name.into(),
        pods: sel(selected),
        ingress: None,
        egress: None,
    }
}

pub(crate) trait With: Sized {
    type Rule;
    fn ingress<const N: usize>(self, rules: [Self::Rule; N]) -> Self;
    fn egress<const N: usize>(self, rules: [Self::Rule; N]) -> Self;
}

impl With for NetworkPolicy {
    type Rule = Rule;

    fn ingress<const N: usize>(self, rules: [Rule; N]) -> Self {
        Self { ingress: Some(rules.to_vec()), ..self }
    }

    fn egress<const N: usize>(self, rules: [Rule; N]) -> Self {
        Self { egress: Some(rules.to_vec()), ..self }
    }
}

impl With for ClusterNetworkPolicy {
    type Rule = ClusterRule;

    fn ingress<const N: usize>(self, rules: [ClusterRule; N]) -> Self {
        Self { ingress: rules.to_vec(), ..self }
    }

    fn egress<const N: usize>(self, rules: [ClusterRule; N]) -> Self {
        Self { egress: rules.to_vec(), ..self }
    }
}

pub(crate) fn cluster_policy_of(
    tier: ClusterTier,
    name: &str,
    priority: u16,
    subject: (&str, &str),
) -> ClusterNetworkPolicy {
    ClusterNetworkPolicy {
        cookie: format!("ClusterNetworkPolicy/{name}").into(),
        name: name.into(),
        tier,
        priority,
        subject: NamespacedPods { namespaces: sel(subject.0), pods: sel(subject.1) },
        ingress: Vec::new(),
        egress: Vec::new(),
    }
}

pub(crate) fn admin(name: &str, priority: u16, subject: (&str, &str)) -> ClusterNetworkPolicy {
    cluster_policy_of(ClusterTier::Admin, name, priority, subject)
}

pub(crate) fn baseline(name: &str, priority: u16, subject: (&str, &str)) -> ClusterNetworkPolicy {
    cluster_policy_of(ClusterTier::Baseline, name, priority, subject)
}

pub(crate) fn cluster_rule<const N: usize>(
    action: Action,
    peers: [ClusterPeer; N],
    ports_text: &str,
) -> ClusterRule {
    ClusterRule { name: "".into(), action, peers: peers.to_vec(), ports: ports(ports_text) }
}

pub(crate) fn cluster_pods(namespaces: &str, pods: &str) -> ClusterPeer {
    ClusterPeer::Pods(NamespacedPods { namespaces: sel(namespaces), pods: sel(pods) })
}

pub(crate) fn networks(text: &str) -> ClusterPeer {
    ClusterPeer::Networks(text.split(',').map(|part| part.parse().unwrap()).collect())
}
