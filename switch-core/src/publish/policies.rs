//! Policies: what stands in the place of those that cannot be taken, and what the policy compiler is
//! told of a publish.

use std::sync::Arc;

use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::rule::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterRule, NamespacedPods, NetworkPolicy, Node,
    Ports, Selector,
};
use podswitch_policy::table::PolicyTable;

use super::diff::{Desired, Diff};
use super::settings::Settings;
use crate::config::{LocalNode, RemoteNode};

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

/// The policy with one rule in place of those of each direction that it names: everything is denied.
pub(super) fn closed_cluster(policy: &ClusterNetworkPolicy) -> ClusterNetworkPolicy {
    let closed = |rules: &[ClusterRule]| match rules {
        [] => Vec::new(),
        _ => vec![ClusterRule {
            name: "".into(),
            action: Action::Deny,
            // A Deny rule whose peers are not known denies everything.
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
/// names.
pub(super) fn both_networks(a: &NetworkPolicy, b: &NetworkPolicy) -> NetworkPolicy {
    NetworkPolicy {
        pods: Selector::everything(),
        ingress: a.ingress.as_ref().or(b.ingress.as_ref()).map(|_| Vec::new()),
        egress: a.egress.as_ref().or(b.egress.as_ref()).map(|_| Vec::new()),
        ..a.clone()
    }
}

/// Two policies of one name: all pods are isolated in the directions that either names.
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

/// Tells the compiler what a publish changes, and returns the table after it.
pub(super) fn compile(
    compiler: &mut PolicyCompiler,
    diff: &Diff,
    was: &Settings,
    now: &Desired,
) -> Arc<PolicyTable> {
    for namespace in &diff.namespaces.removed {
        compiler.remove_namespace(&namespace.name);
    }
    for namespace in diff.namespaces.after() {
        compiler.upsert_namespace(namespace);
    }
    nodes(compiler, diff, &was.node, &now.settings.node);
    for pod in &diff.endpoints.removed {
        compiler.remove_pod(pod.cookie.as_str());
    }
    for pod in diff.endpoints.after() {
        compiler.upsert_pod(&pod.cookie.text(), &pod.workload, &pod.node);
    }
    // The compiler knows both kinds by one name, which may pass from one to the other. Where both
    // have it, it is the NetworkPolicy's.
    let is_network = |cookie: &Arc<str>| now.policies.get(cookie).is_some();
    for policy in &diff.policies.removed {
        let cookie = &policy.policy.cookie;
        compiler.remove_policy(cookie);
        if let Some(other) = now.cluster_policies.get(cookie) {
            compiler.upsert_cluster_policy(&other.policy);
        }
    }
    let cluster = &diff.cluster_policies;
    for policy in cluster.removed.iter().filter(|p| !is_network(&p.policy.cookie)) {
        compiler.remove_policy(&policy.policy.cookie);
    }
    for policy in diff.policies.after() {
        compiler.upsert_network_policy(&policy.policy);
    }
    for policy in cluster.after().filter(|p| !is_network(&p.policy.cookie)) {
        compiler.upsert_cluster_policy(&policy.policy);
    }
    compiler.publish()
}

fn nodes(compiler: &mut PolicyCompiler, diff: &Diff, was: &LocalNode, now: &LocalNode) {
    for node in &diff.nodes.removed {
        compiler.remove_node(&node.name);
    }
    if was.name != now.name {
        compiler.remove_node(&was.name);
    }
    for node in diff.nodes.after() {
        compiler.upsert_node(&remote(node));
    }
    if !now.name.is_empty() {
        compiler.upsert_node(&local(now));
    }
}

fn remote(node: &RemoteNode) -> Node {
    Node { name: node.name.clone(), labels: node.labels.clone(), addresses: node.addresses.clone() }
}

fn local(node: &LocalNode) -> Node {
    Node { name: node.name.clone(), labels: node.labels.clone(), addresses: node.addresses.clone() }
}
