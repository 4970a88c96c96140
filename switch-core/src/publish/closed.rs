//! The policy that is in force instead of an invalid one. It never allows anything.

use podswitch_policy::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, NamespacedPods, NetworkPolicy, Ports,
    Selector,
};

/// The policy without its rules: the pods that it selects are isolated in the directions that it
/// names.
pub(super) fn closed_network(policy: &NetworkPolicy) -> NetworkPolicy {
    NetworkPolicy {
        cookie: policy.cookie.clone(),
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        pods: policy.pods.clone(),
        ingress: policy.ingress.as_ref().map(|_| Vec::new()),
        egress: policy.egress.as_ref().map(|_| Vec::new()),
    }
}

/// The policy with a rule that denies everything in each direction that it names.
pub(super) fn closed_cluster(policy: &ClusterNetworkPolicy) -> ClusterNetworkPolicy {
    let closed = |rules: &[ClusterRule]| match rules {
        [] => Vec::new(),
        _ => vec![ClusterRule {
            name: "".into(),
            action: Action::Deny,
            // A Deny rule with unknown peers denies everything.
            peers: vec![ClusterPeer::Unknown],
            ports: Ports::Any,
        }],
    };
    ClusterNetworkPolicy {
        cookie: policy.cookie.clone(),
        name: policy.name.clone(),
        tier: policy.tier,
        priority: policy.priority.min(ClusterNetworkPolicy::MAX_PRIORITY),
        subject: policy.subject.clone(),
        ingress: closed(&policy.ingress),
        egress: closed(&policy.egress),
    }
}

/// Two policies of one name: the pods of the namespace are isolated in the directions that either
/// of them names.
pub(super) fn both_networks(a: &NetworkPolicy, b: &NetworkPolicy) -> NetworkPolicy {
    NetworkPolicy {
        pods: Selector::everything(),
        ingress: a.ingress.as_ref().or(b.ingress.as_ref()).map(|_| Vec::new()),
        egress: a.egress.as_ref().or(b.egress.as_ref()).map(|_| Vec::new()),
        ..a.clone()
    }
}

/// Two policies of one name: all pods are isolated in the directions that either of them names.
pub(super) fn both_clusters(
    a: &ClusterNetworkPolicy,
    b: &ClusterNetworkPolicy,
) -> ClusterNetworkPolicy {
    let of = |a: &[ClusterRule], b: &[ClusterRule]| a.iter().chain(b).take(1).cloned().collect();
    ClusterNetworkPolicy {
        tier: a.tier.min(b.tier),
        priority: a.priority.min(b.priority),
        subject: NamespacedPods {
            namespaces: Selector::everything(),
            pods: Selector::everything(),
        },
        ingress: of(&a.ingress, &b.ingress),
        egress: of(&a.egress, &b.egress),
        ..a.clone()
    }
}
