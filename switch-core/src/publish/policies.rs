//! Policies: passes a publish to the policy compiler.

use std::sync::Arc;

use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::rule::Node;
use podswitch_policy::table::PolicyTable;

use super::diff::{Desired, Diff};
use super::settings::Settings;
use crate::config::{LocalNode, RemoteNode};

/// Passes the changes of a publish to the compiler, and returns the new table.
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
    // The compiler has one namespace of names for both kinds, and a name may move from one kind to
    // the other. If both kinds have it, the NetworkPolicy is used.
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
