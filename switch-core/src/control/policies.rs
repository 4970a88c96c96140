//! Keeps the policy compiler in step with the configuration: tells it what changed, object by
//! object, and nothing else. The compiler knows objects by name, so two of one name are refused
//! here: where the second took the place of the first, its removal would take both away.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::rule::{ClusterNetworkPolicy, Namespace, NetworkPolicy, Node};
use podswitch_policy::table::PolicyTable;
use podswitch_policy::touched::Touched;

use super::ground;
use crate::config::{Config, ConfigError, Endpoint, LocalNode, RemoteNode};
use crate::id::Cookie;
use crate::snapshot::PodChanges;

/// Objects that left a list, and those that came or are others than before.
pub(crate) struct Difference<'a, T> {
    /// In the old list and not, under their key, in the new one.
    pub(crate) removed: Vec<&'a Arc<T>>,
    /// In the new list and not, as they are, in the old one.
    pub(crate) changed: Vec<&'a Arc<T>>,
    /// What those of `changed` that take an object's place were before.
    pub(crate) replaced: Vec<&'a Arc<T>>,
    /// Those of `changed` that take no object's place.
    pub(crate) added: Vec<&'a Arc<T>>,
}

impl<'a, T> Difference<'a, T> {
    pub(super) fn none() -> Self {
        let (removed, changed) = (Vec::new(), Vec::new());
        Self { removed, changed, replaced: Vec::new(), added: Vec::new() }
    }

    /// An object that is wanted, and the one of its name that there was.
    pub(super) fn take(&mut self, before: Option<&'a Arc<T>>, object: &'a Arc<T>)
    where
        T: PartialEq,
    {
        match before {
            Some(known) if Arc::ptr_eq(known, object) || **known == **object => {}
            Some(known) => {
                self.changed.push(object);
                self.replaced.push(known);
            }
            None => {
                self.changed.push(object);
                self.added.push(object);
            }
        }
    }

    /// Names that go and names that come.
    pub(super) fn names<K>(&self, key: impl Fn(&T) -> K) -> (Vec<K>, Vec<K>) {
        let names = |list: &[&Arc<T>]| list.iter().map(|o| key(o)).collect();
        (names(&self.removed), names(&self.added))
    }
}

/// What changed between two lists of objects with unique keys. Objects that both lists share by
/// pointer cost a comparison of pointers.
pub(crate) fn difference<'a, T, K: Eq + Hash>(
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
    let mut difference = Difference::none();
    for object in new {
        difference.take(before.remove(&key(object)), object);
    }
    difference.removed = before.into_values().collect();
    difference
}

/// The names in force of one kind of object.
#[derive(Debug)]
pub(super) struct Names<K>(HashSet<K>);

impl<K> Default for Names<K> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<K: Eq + Hash + Clone> Names<K> {
    /// Those of `added` that two objects would have.
    pub(super) fn taken(&self, (removed, added): &(Vec<K>, Vec<K>)) -> Vec<K> {
        let leaving: HashSet<&K> = removed.iter().collect();
        let mut fresh = HashSet::new();
        let in_use = |name: &K| self.0.contains(name) && !leaving.contains(name);
        added.iter().filter(|&name| in_use(name) || !fresh.insert(name)).cloned().collect()
    }

    pub(super) fn take(&mut self, (removed, added): (Vec<K>, Vec<K>)) {
        for name in &removed {
            self.0.remove(name);
        }
        self.0.extend(added);
    }
}

/// What a new configuration changes of what policy depends on.
pub(crate) struct Step<'a> {
    pub(super) namespaces: Difference<'a, Namespace>,
    pub(super) nodes: Difference<'a, RemoteNode>,
    pub(super) pods: Difference<'a, Endpoint>,
    pub(super) policies: Difference<'a, NetworkPolicy>,
    pub(super) cluster_policies: Difference<'a, ClusterNetworkPolicy>,
    /// This node, before and after.
    pub(super) local: (&'a LocalNode, &'a LocalNode),
    /// Whether all that is no pod, policy or Service is as it was; see [`ground::is_same`].
    pub(super) ground: bool,
}

impl<'a> Step<'a> {
    /// From `old`, which is in force, to `new`.
    pub(crate) fn between(old: &'a Config, new: &'a Config) -> Self {
        Self {
            namespaces: difference(&old.namespaces, &new.namespaces, |n| &n.name),
            nodes: difference(&old.nodes, &new.nodes, |n| &n.name),
            pods: difference(&old.endpoints, &new.endpoints, |e| &e.cookie),
            policies: difference(&old.policies, &new.policies, |p| &p.cookie),
            cluster_policies: difference(&old.cluster_policies, &new.cluster_policies, |p| {
                &p.cookie
            }),
            local: (&old.node, &new.node),
            ground: ground::is_same(old, new),
        }
    }

    /// The pods that changed.
    pub(super) fn pod_changes(&self) -> PodChanges<'a> {
        let gone = self.pods.removed.iter().chain(&self.pods.replaced).copied().collect();
        PodChanges { gone, here: self.pods.changed.clone() }
    }

    /// Names that go and names that come.
    fn namespace_names(&self) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        self.namespaces.names(|n| n.name.clone())
    }

    fn node_names(&self) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let (mut removed, mut added) = self.nodes.names(|n| n.name.clone());
        let (old, new) = (&self.local.0.name, &self.local.1.name);
        if old != new {
            removed.push(old.clone());
            added.extend((!new.is_empty()).then(|| new.clone()));
        }
        (removed, added)
    }

    fn pod_names(&self) -> (Vec<Cookie>, Vec<Cookie>) {
        self.pods.names(|p| p.cookie.clone())
    }

    /// Of both kinds of policies: the compiler does not tell their names apart.
    fn policy_names(&self) -> (Vec<Arc<str>>, Vec<Arc<str>>) {
        let (mut removed, mut added) = self.policies.names(|p| p.cookie.clone());
        let cluster = self.cluster_policies.names(|p| p.cookie.clone());
        removed.extend(cluster.0);
        added.extend(cluster.1);
        (removed, added)
    }
}

/// The compiler and the names that it knows.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    compiler: PolicyCompiler,
    namespaces: Names<Arc<str>>,
    nodes: Names<Arc<str>>,
    pods: Names<Cookie>,
    policies: Names<Arc<str>>,
}

impl Policies {
    /// What is wrong with a step: names that two objects would have.
    pub(crate) fn check(&self, step: &Step<'_>) -> Vec<ConfigError> {
        let namespaces = self.namespaces.taken(&step.namespace_names());
        let namespaces = namespaces.iter().map(|n| Cookie::new(format!("Namespace/{n}")));
        let nodes = self.nodes.taken(&step.node_names());
        let nodes = nodes.iter().map(|n| Cookie::new(format!("Node/{n}")));
        let pods = self.pods.taken(&step.pod_names());
        let policies = self.policies.taken(&step.policy_names()).into_iter().map(Cookie::new);
        let error = |object| ConfigError {
            object,
            field: "name".into(),
            reason: "another object has this name".into(),
        };
        namespaces.chain(nodes).chain(pods).chain(policies).map(error).collect()
    }

    /// Takes a step that was found right, and returns the table after it.
    pub(crate) fn advance(&mut self, step: &Step<'_>) -> Arc<PolicyTable> {
        self.namespaces.take(step.namespace_names());
        self.nodes.take(step.node_names());
        self.pods.take(step.pod_names());
        self.policies.take(step.policy_names());
        let compiler = &mut self.compiler;
        for namespace in &step.namespaces.removed {
            compiler.remove_namespace(&namespace.name);
        }
        for namespace in &step.namespaces.changed {
            compiler.upsert_namespace(namespace);
        }
        Self::advance_nodes(compiler, step);
        for pod in &step.pods.removed {
            compiler.remove_pod(pod.cookie.as_str());
        }
        for pod in &step.pods.changed {
            compiler.upsert_pod(&pod.cookie.text(), &pod.workload, &pod.node);
        }
        // Both kinds go first: a name may pass from one to the other.
        for policy in &step.policies.removed {
            compiler.remove_policy(&policy.cookie);
        }
        for policy in &step.cluster_policies.removed {
            compiler.remove_policy(&policy.cookie);
        }
        for policy in &step.policies.changed {
            compiler.upsert_network_policy(policy);
        }
        for policy in &step.cluster_policies.changed {
            compiler.upsert_cluster_policy(policy);
        }
        compiler.publish()
    }

    /// What steps changed since the last call, as far as policy goes.
    pub(crate) fn take_touched(&mut self) -> Touched {
        self.compiler.take_touched()
    }

    fn advance_nodes(compiler: &mut PolicyCompiler, step: &Step<'_>) {
        let (old, new) = step.local;
        for node in &step.nodes.removed {
            compiler.remove_node(&node.name);
        }
        if old.name != new.name {
            compiler.remove_node(&old.name);
        }
        for node in &step.nodes.changed {
            compiler.upsert_node(&remote(node));
        }
        if !new.name.is_empty() {
            compiler.upsert_node(&local(new));
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
