//! Keeps the policy compiler in step with the configuration: tells it what changed, object by
//! object, and nothing else.

use std::sync::Arc;

use hashbrown::HashMap;
use policy::compile::PolicyCompiler;
use policy::rule::Node;
use policy::table::PolicyTable;

use crate::config::{Config, LocalNode, RemoteNode};

/// Objects that left a list, and those that came or are others than before.
pub(crate) struct Difference<'a, T> {
    /// In the old list and not, under their key, in the new one.
    pub(crate) removed: Vec<&'a Arc<T>>,
    /// In the new list and not, as they are, in the old one.
    pub(crate) changed: Vec<&'a Arc<T>>,
}

/// What changed between two lists of objects with unique keys. Objects that both lists share by
/// pointer cost a comparison of pointers.
pub(crate) fn difference<'a, T, K: Eq + std::hash::Hash>(
    old: &'a [Arc<T>],
    new: &'a [Arc<T>],
    key: impl Fn(&'a T) -> K,
) -> Difference<'a, T>
where
    T: PartialEq,
{
    let same = |(a, b): &(&Arc<T>, &Arc<T>)| Arc::ptr_eq(a, b);
    let front = old.iter().zip(new).take_while(same).count();
    let (old, new) = (&old[front..], &new[front..]);
    let back = old.iter().rev().zip(new.iter().rev()).take_while(same).count();
    let (old, new) = (&old[..old.len() - back], &new[..new.len() - back]);
    let mut before: HashMap<K, &Arc<T>> = old.iter().map(|o| (key(o), o)).collect();
    let mut changed = Vec::new();
    for object in new {
        match before.remove(&key(object)) {
            Some(known) if Arc::ptr_eq(known, object) || **known == **object => {}
            _ => changed.push(object),
        }
    }
    Difference { removed: before.into_values().collect(), changed }
}

/// The compiler and the state that it knows.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    compiler: PolicyCompiler,
}

impl Policies {
    /// Takes the step from `old` to `new`, both valid, and returns the table of `new`.
    pub(crate) fn advance(&mut self, old: &Config, new: &Config) -> Arc<PolicyTable> {
        let compiler = &mut self.compiler;
        let namespaces = difference(&old.namespaces, &new.namespaces, |n| n.name.clone());
        for namespace in namespaces.removed {
            compiler.remove_namespace(&namespace.name);
        }
        for namespace in namespaces.changed {
            compiler.upsert_namespace(namespace);
        }
        Self::advance_nodes(compiler, old, new);
        let pods = difference(&old.endpoints, &new.endpoints, |e| e.cookie.as_str());
        for pod in pods.removed {
            compiler.remove_pod(pod.cookie.as_str());
        }
        for pod in pods.changed {
            compiler.upsert_pod(&pod.cookie.text(), &pod.workload, &pod.node);
        }
        let policies = difference(&old.policies, &new.policies, |p| p.cookie.clone());
        for policy in policies.removed {
            compiler.remove_policy(&policy.cookie);
        }
        for policy in policies.changed {
            compiler.upsert_network_policy(policy);
        }
        let policies =
            difference(&old.cluster_policies, &new.cluster_policies, |p| p.cookie.clone());
        for policy in policies.removed {
            compiler.remove_policy(&policy.cookie);
        }
        for policy in policies.changed {
            compiler.upsert_cluster_policy(policy);
        }
        compiler.publish()
    }

    fn advance_nodes(compiler: &mut PolicyCompiler, old: &Config, new: &Config) {
        let nodes = difference(&old.nodes, &new.nodes, |n| n.name.clone());
        for node in nodes.removed {
            compiler.remove_node(&node.name);
        }
        if old.node.name != new.node.name {
            compiler.remove_node(&old.node.name);
        }
        for node in nodes.changed {
            compiler.upsert_node(&remote(node));
        }
        if !new.node.name.is_empty() {
            compiler.upsert_node(&local(&new.node));
        }
    }
}

fn remote(node: &RemoteNode) -> Node {
    Node { name: node.name.clone(), labels: node.labels.clone(), addresses: node.addresses.clone() }
}

fn local(node: &LocalNode) -> Node {
    Node { name: node.name.clone(), labels: node.labels.clone(), addresses: node.addresses.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shared_objects_are_no_change() {
        let list: Vec<Arc<(u8, u8)>> = (0..5).map(|n| Arc::new((n, 0))).collect();
        let mut new = list.clone();
        new.remove(2);
        new.insert(1, Arc::new((9, 9)));
        let d = difference(&list, &new, |o| o.0);
        assert_eq!(d.removed, [&Arc::new((2, 0))]);
        assert_eq!(d.changed, [&Arc::new((9, 9))]);
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_new_list(
            old in proptest::collection::btree_map(0u8..20, 0u8..3, 0..12),
            new in proptest::collection::btree_map(0u8..20, 0u8..3, 0..12),
        ) {
            let list = |m: &std::collections::BTreeMap<u8, u8>| -> Vec<Arc<(u8, u8)>> {
                m.iter().map(|(k, v)| Arc::new((*k, *v))).collect()
            };
            let (a, b) = (list(&old), list(&new));
            let d = difference(&a, &b, |o| o.0);
            let mut state = old;
            for o in d.removed {
                state.remove(&o.0);
            }
            for o in d.changed {
                state.insert(o.0, o.1);
            }
            prop_assert_eq!(state, new);
        }
    }
}
