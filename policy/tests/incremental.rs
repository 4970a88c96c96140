//! A compiler that gets changes one by one, compared with the reference evaluator: label changes,
//! deletions, reused addresses and numbers (threat T-L5), snapshots that do not change afterwards
//! (T-L7).

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use common::*;
use podswitch_policy::affected::AffectedAddresses;
use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::reference::Cluster;
use podswitch_policy::rule::*;
use podswitch_policy::table::PolicyTable;
use proptest::prelude::*;
use proptest::sample::Index;

/// One change.
#[derive(Clone, Debug)]
enum Op {
    Pod(Arc<Pod>),
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Network(Arc<NetworkPolicy>),
    Cluster(Arc<ClusterNetworkPolicy>),
    Remove(Kind, Index),
    Publish,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Pod,
    Namespace,
    Node,
    Network,
    Cluster,
}

fn op() -> impl Strategy<Value = Op> {
    use Kind::*;
    let kind = prop::sample::select(vec![Pod, Pod, Namespace, Node, Network, Network, Cluster]);
    prop_oneof![
        6 => (0usize..8).prop_flat_map(pod).prop_map(Op::Pod),
        2 => (0usize..4).prop_flat_map(namespace).prop_map(Op::Namespace),
        1 => (0usize..3).prop_flat_map(node).prop_map(Op::Node),
        4 => (0usize..5).prop_flat_map(network_policy).prop_map(Op::Network),
        2 => (0usize..3).prop_flat_map(cluster_policy).prop_map(Op::Cluster),
        5 => (kind, any::<Index>()).prop_map(|(kind, index)| Op::Remove(kind, index)),
        3 => Just(Op::Publish),
    ]
}

/// The objects as they should be, by name.
#[derive(Default)]
struct Mirror {
    pods: BTreeMap<Arc<str>, Arc<Pod>>,
    namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    network: BTreeMap<Arc<str>, Arc<NetworkPolicy>>,
    cluster: BTreeMap<Arc<str>, Arc<ClusterNetworkPolicy>>,
}

impl Mirror {
    fn cluster(&self) -> Cluster {
        Cluster {
            pods: self.pods.values().cloned().collect(),
            namespaces: self.namespaces.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            network_policies: self.network.values().cloned().collect(),
            cluster_policies: self.cluster.values().cloned().collect(),
        }
    }

    /// Performs an operation on both.
    fn apply(&mut self, op: &Op, compiler: &mut PolicyCompiler) {
        match op {
            Op::Pod(pod) => {
                self.pods.insert(Arc::clone(&pod.cookie), Arc::clone(pod));
                compiler.upsert_pod(&pod.cookie, &pod.workload, &pod.node);
            }
            Op::Namespace(namespace) => {
                self.namespaces.insert(Arc::clone(&namespace.name), Arc::clone(namespace));
                compiler.upsert_namespace(namespace);
            }
            Op::Node(node) => {
                self.nodes.insert(Arc::clone(&node.name), Arc::clone(node));
                compiler.upsert_node(node);
            }
            Op::Network(policy) => {
                self.network.insert(Arc::clone(&policy.cookie), Arc::clone(policy));
                compiler.upsert_network_policy(policy);
            }
            Op::Cluster(policy) => {
                self.cluster.insert(Arc::clone(&policy.cookie), Arc::clone(policy));
                compiler.upsert_cluster_policy(policy);
            }
            Op::Remove(kind, index) => self.remove(*kind, *index, compiler),
            Op::Publish => {}
        }
    }

    fn remove(&mut self, kind: Kind, index: Index, compiler: &mut PolicyCompiler) {
        fn take<V>(map: &mut BTreeMap<Arc<str>, V>, index: Index) -> Option<Arc<str>> {
            let name = (!map.is_empty()).then(|| index.index(map.len()))?;
            let name = Arc::clone(map.keys().nth(name)?);
            map.remove(&name);
            Some(name)
        }
        match kind {
            Kind::Pod => take(&mut self.pods, index).iter().for_each(|n| compiler.remove_pod(n)),
            Kind::Namespace => {
                let name = take(&mut self.namespaces, index);
                name.iter().for_each(|n| compiler.remove_namespace(n));
            }
            Kind::Node => take(&mut self.nodes, index).iter().for_each(|n| compiler.remove_node(n)),
            Kind::Network => {
                take(&mut self.network, index).iter().for_each(|n| compiler.remove_policy(n));
            }
            Kind::Cluster => {
                take(&mut self.cluster, index).iter().for_each(|n| compiler.remove_policy(n));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn changes_one_by_one_agree_with_the_reference(
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut compiler = PolicyCompiler::new();
        let mut mirror = Mirror::default();
        let mut kept: Vec<(Cluster, Arc<PolicyTable>)> = Vec::new();
        for op in &ops {
            mirror.apply(op, &mut compiler);
            if matches!(op, Op::Publish) {
                let (cluster, table) = (mirror.cluster(), compiler.publish());
                prop_assert_eq!(disagreement(&cluster, &table).err(), None);
                kept.push((cluster, table));
            }
        }
        let (cluster, table) = (mirror.cluster(), compiler.publish());
        prop_assert_eq!(disagreement(&cluster, &table).err(), None);
        // Snapshots taken before are unchanged.
        for (cluster, table) in kept.iter().take(2) {
            prop_assert_eq!(disagreement(cluster, table).err(), None);
        }
        // No part of a deleted object remains.
        let names: Vec<_> = mirror.pods.keys().cloned().collect();
        names.iter().for_each(|name| compiler.remove_pod(name));
        mirror.nodes.keys().for_each(|name| compiler.remove_node(name));
        mirror.network.keys().chain(mirror.cluster.keys()).for_each(|n| compiler.remove_policy(n));
        compiler.publish();
        let left = compiler.footprint();
        prop_assert_eq!((left.identities, left.selectors, left.partitions, left.stages), (0, 0, 0, 0));
    }
}

/// A table's verdicts for all pairs of some addresses.
fn verdicts(table: &PolicyTable, all: &[IpAddr]) -> Vec<(IpAddr, IpAddr, String)> {
    let mut list = Vec::new();
    for from in all {
        for to in all.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
            let (source, destination) = (table.party(*from), table.party(*to));
            for traffic in traffics(from.is_ipv6()) {
                let got = table.verdict(&source, &destination, traffic);
                let egress = in_words(table, Direction::Egress, &got.egress, *from);
                let ingress = in_words(table, Direction::Ingress, &got.ingress, *to);
                list.push((*from, *to, format!("{egress:?} {ingress:?}")));
            }
        }
    }
    list
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Between addresses that no change has affected every verdict is unchanged, with the same
    /// reasons.
    #[test]
    fn verdicts_of_unaffected_addresses_are_unchanged(
        first in prop::collection::vec(op(), 20..60),
        steps in prop::collection::vec(prop::collection::vec(op(), 1..4), 1..20),
    ) {
        let mut compiler = PolicyCompiler::new();
        let mut mirror = Mirror::default();
        first.iter().for_each(|op| mirror.apply(op, &mut compiler));
        let mut before = (mirror.cluster(), compiler.publish());
        compiler.take_affected();
        for step in &steps {
            step.iter().for_each(|op| mirror.apply(op, &mut compiler));
            let now = (mirror.cluster(), compiler.publish());
            let AffectedAddresses::Listed(affected) = compiler.take_affected() else { panic!("not many") };
            let mut all = addresses(&before.0);
            all.extend(addresses(&now.0));
            all.sort_unstable();
            all.dedup();
            all.retain(|address| !affected.contains(address));
            let (was, is) = (verdicts(&before.1, &all), verdicts(&now.1, &all));
            let other = was.iter().zip(&is).find(|(was, is)| was != is);
            prop_assert!(other.is_none(), "{step:?} touches {affected:?}, yet {other:#?}");
            before = now;
        }
    }
}
