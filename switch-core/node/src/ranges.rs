//! Locations of pods as address ranges, updated incrementally.
//!
//! Most pods have addresses in the ranges (podCIDRs) of their node. Only the others are listed
//! here, so that a change of a pod inside these ranges costs nothing.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::config::{Config, Endpoint, RemoteNode};
use podswitch_core::control::{Change, Objects};
use podswitch_core::id::Cookie;
use podswitch_policy::prefix::PrefixMap;
use podswitch_wire::cidr::Cidr;

/// A pod with addresses outside the ranges of its node, or on a node that is not known.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    addresses: Vec<IpAddr>,
    host_network: bool,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    /// By node.
    outside: HashMap<Arc<str>, HashMap<Cookie, Outside>>,
    /// The node of each pod that is outside.
    nodes: HashMap<Cookie, Arc<str>>,
    lists: Lists,
}

/// The ranges for the node's kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    /// Where this node's pods are.
    pub(crate) local: Vec<Cidr>,
    /// Where other nodes' pods are.
    pub(crate) remote: Vec<Cidr>,
    /// Ranges of all nodes, and addresses of nodes outside them.
    pub(crate) nodes: Vec<Cidr>,
    /// All pods and nodes.
    pub(crate) cluster: Vec<Cidr>,
}

/// Changes of a publish that ranges depend on.
#[derive(Debug, Default)]
pub(crate) struct Affected {
    pods: HashSet<Cookie>,
    /// Other nodes, as they were.
    nodes: HashMap<Arc<str>, Option<Arc<RemoteNode>>>,
    is_all: bool,
}

impl Affected {
    /// For changes to be published, given the previous settings.
    pub(crate) fn by(changes: &[Change], settings: &Config, objects: Objects<'_>) -> Self {
        let mut affected = Self::default();
        for change in changes {
            match change {
                Change::Pod(pod) => drop(affected.pods.insert(pod.cookie.clone())),
                Change::PodGone(cookie) => drop(affected.pods.insert(cookie.clone())),
                Change::Node(node) => affected.node(&node.name, objects),
                Change::NodeGone(name) => affected.node(name, objects),
                Change::Settings(after) => {
                    let facts = |config: &Config| {
                        let node = &config.node;
                        (node.name.clone(), node.pod_cidrs.clone(), node.addresses.clone())
                    };
                    affected.is_all |= facts(settings) != facts(after);
                }
                _ => {}
            }
        }
        affected
    }

    fn node(&mut self, name: &Arc<str>, objects: Objects<'_>) {
        let before = || objects.node(name).cloned();
        self.nodes.entry(name.clone()).or_insert_with(before);
    }
}

impl Ranges {
    /// From everything that is published.
    pub(crate) fn of(settings: &Config, objects: Objects<'_>) -> Self {
        let mut ranges = Self::default();
        for pod in objects.endpoints() {
            ranges.place(&pod.cookie, Some(pod), settings, objects);
        }
        ranges.list(settings, objects);
        ranges
    }

    /// The ranges.
    pub(crate) fn lists(&self) -> &Lists {
        &self.lists
    }

    /// Updates the ranges after a publish. Returns whether any changed.
    pub(crate) fn follow(
        &mut self,
        affected: Affected,
        settings: &Config,
        objects: Objects<'_>,
    ) -> bool {
        if affected.is_all {
            *self = Self::of(settings, objects);
            return true;
        }
        let mut changed = false;
        for (name, before) in affected.nodes {
            let after = objects.node(&name);
            let facts = |node: &Arc<RemoteNode>| (node.pod_cidrs.clone(), node.addresses.clone());
            if before.as_ref().map(facts) == after.map(facts) {
                continue;
            }
            changed = true;
            self.place_pods_of(&name, before.as_deref(), settings, objects);
        }
        for cookie in affected.pods {
            changed |= self.place(&cookie, objects.endpoint(&cookie), settings, objects);
        }
        if changed {
            self.list(settings, objects);
        }
        changed
    }

    /// Places the pods of a node whose ranges changed.
    fn place_pods_of(
        &mut self,
        name: &Arc<str>,
        before: Option<&RemoteNode>,
        settings: &Config,
        objects: Objects<'_>,
    ) {
        let now = cidrs_of(name, settings, objects);
        let is_lost = |range: &Cidr| !now.contains(range);
        if before.is_some_and(|before| before.pod_cidrs.iter().any(is_lost)) {
            // Pods in a range that the node lost are not listed yet.
            let pods: Vec<_> = objects.endpoints().filter(|pod| pod.node == *name).collect();
            for pod in pods {
                self.place(&pod.cookie, Some(pod), settings, objects);
            }
            return;
        }
        let listed: Vec<Cookie> =
            self.outside.get(name).into_iter().flat_map(HashMap::keys).cloned().collect();
        for cookie in listed {
            self.place(&cookie, objects.endpoint(&cookie), settings, objects);
        }
    }

    /// Adds a pod to the list, or removes it. Returns whether the list changed.
    fn place(
        &mut self,
        cookie: &Cookie,
        pod: Option<&Arc<Endpoint>>,
        settings: &Config,
        objects: Objects<'_>,
    ) -> bool {
        let outside = pod.and_then(|pod| Outside::of(pod, cidrs_of(&pod.node, settings, objects)));
        let before = self.nodes.remove(cookie).and_then(|node| {
            let pods = self.outside.get_mut(&node)?;
            let before = pods.remove(cookie);
            if pods.is_empty() {
                self.outside.remove(&node);
            }
            Some((node, before?))
        });
        let Some((pod, outside)) = pod.zip(outside) else { return before.is_some() };
        let is_same = before.is_some_and(|(node, before)| node == pod.node && before == outside);
        self.nodes.insert(cookie.clone(), pod.node.clone());
        self.outside.entry(pod.node.clone()).or_default().insert(cookie.clone(), outside);
        !is_same
    }

    fn list(&mut self, settings: &Config, objects: Objects<'_>) {
        let own = &settings.node;
        let nodes: HashMap<&Arc<str>, &Arc<RemoteNode>> =
            objects.nodes().map(|node| (&node.name, node)).collect();
        let of_nodes: HashSet<IpAddr> = nodes
            .values()
            .flat_map(|node| &node.addresses)
            .chain(&own.addresses)
            .copied()
            .collect();
        let mut remote: BTreeSet<Cidr> =
            nodes.values().flat_map(|node| &node.pod_cidrs).copied().collect();
        let mut local = Cover::of(own.pod_cidrs.iter().copied());
        let mut cluster = Cover::of(remote.iter().chain(&own.pod_cidrs).copied());
        cluster.extend(of_nodes.iter().copied());
        let mut without_pods = cluster.0.clone();
        without_pods.sort_unstable();
        for (node, pods) in &self.outside {
            for pod in pods.values() {
                if *node == own.name && !pod.host_network {
                    local.extend(pod.addresses.iter().copied());
                }
                if nodes.contains_key(node) {
                    // A pod with its node's network is reached as the node is.
                    let addresses = pod.addresses.iter().filter(|a| !of_nodes.contains(*a));
                    remote.extend(addresses.map(|address| Cidr::host(*address)));
                }
                cluster.extend(pod.addresses.iter().copied());
            }
        }
        let sorted = |Cover(mut ranges, _)| {
            ranges.sort_unstable();
            ranges
        };
        let remote = remote.into_iter().collect();
        let (local, cluster) = (sorted(local), sorted(cluster));
        self.lists = Lists { local, remote, nodes: without_pods, cluster };
    }
}

/// Ranges, and addresses that none of them holds.
struct Cover(Vec<Cidr>, PrefixMap<()>);

impl Cover {
    fn of(ranges: impl Iterator<Item = Cidr>) -> Self {
        let mut cover = Self(Vec::new(), PrefixMap::new());
        ranges.for_each(|range| cover.add(range));
        cover
    }

    fn extend(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            if self.1.get(address).is_none() {
                self.add(Cidr::host(address));
            }
        }
    }

    fn add(&mut self, range: Cidr) {
        if self.1.insert(range, ()).is_none() {
            self.0.push(range);
        }
    }
}

impl Outside {
    fn of(pod: &Endpoint, cidrs: &[Cidr]) -> Option<Self> {
        let is_outside = |a: &&IpAddr| !cidrs.iter().any(|range| range.contains(**a));
        let addresses: Vec<IpAddr> =
            pod.workload.addresses.iter().filter(is_outside).copied().collect();
        let host_network = pod.workload.host_network;
        (!addresses.is_empty()).then_some(Self { addresses, host_network })
    }
}

/// The ranges of a node; none if it is not known.
fn cidrs_of<'a>(name: &Arc<str>, settings: &'a Config, objects: Objects<'a>) -> &'a [Cidr] {
    if *name == settings.node.name {
        return &settings.node.pod_cidrs;
    }
    objects.node(name).map_or(&[], |node| &node.pod_cidrs)
}

#[cfg(test)]
mod tests {
    use podswitch_core::config::{LocalNode, Precedence};
    use podswitch_core::control::ControlPlane;
    use podswitch_policy::rule::{Labels, Workload};
    use proptest::prelude::*;

    use super::*;

    /// Names of nodes; the first is this one.
    const NODES: [&str; 4] = ["n0", "n1", "n2", "n3"];

    fn cidr(node: usize, number: u8) -> Cidr {
        Cidr::new([10, node as u8, number * 64, 0].into(), 18).expect("a range")
    }

    fn node(number: usize, ranges: u8) -> Arc<RemoteNode> {
        Arc::new(RemoteNode {
            cookie: Cookie::new(format!("Node/{}", NODES[number])),
            name: NODES[number].into(),
            labels: Labels::default(),
            addresses: vec![[192, 0, 2, number as u8 + 1].into()],
            pod_cidrs: (0..2).filter(|n| ranges & (1 << n) != 0).map(|n| cidr(number, n)).collect(),
            vtep: Default::default(),
            underlay_mac: Default::default(),
            precedence: Precedence::default(),
        })
    }

    fn pod(number: u8, node: usize, place: u8, host_network: bool) -> Arc<Endpoint> {
        let address: IpAddr = match (host_network, place) {
            (true, _) => [192, 0, 2, node as u8 + 1].into(),
            (_, 4) => [198, 51, 100, number].into(),
            (_, place) => [10, (node as u8 + place) % 4, place * 40, number].into(),
        };
        Arc::new(Endpoint {
            cookie: Cookie::new(format!("Pod/a/{number}")),
            workload: Workload {
                namespace: "a".into(),
                name: number.to_string().into(),
                labels: Labels::default(),
                addresses: vec![address],
                ports: Vec::new(),
                host_network,
            },
            node: NODES[node].into(),
            attachment: None,
            precedence: Precedence::default(),
        })
    }

    fn settings(ranges: u8) -> Config {
        let own = node(0, ranges);
        let local = LocalNode {
            name: own.name.clone(),
            addresses: own.addresses.clone(),
            pod_cidrs: own.pod_cidrs.clone(),
            ..LocalNode::default()
        };
        Config { node: local, ..Config::default() }
    }

    fn change() -> impl Strategy<Value = Change> {
        let pods = (0..6_u8, 0..4_usize, 0..5_u8, prop::bool::weighted(0.2));
        prop_oneof![
            4 => pods.prop_map(|(number, at, place, host)| Change::Pod(pod(number, at, place, host))),
            1 => (0..6_u8).prop_map(|n| Change::PodGone(Cookie::new(format!("Pod/a/{n}")))),
            2 => (1..4_usize, 0..4_u8).prop_map(|(n, ranges)| Change::Node(node(n, ranges))),
            1 => (1..4_usize).prop_map(|n| Change::NodeGone(NODES[n].into())),
            1 => (0..4_u8).prop_map(|ranges| Change::Settings(Arc::new(settings(ranges)))),
        ]
    }

    /// The lists against every pod and node by itself.
    fn check(lists: &Lists, settings: &Config, objects: Objects<'_>) {
        let of = |name: &Arc<str>| cidrs_of(name, settings, objects);
        let own = &settings.node;
        let holds = |list: &[Cidr], a: IpAddr| list.iter().any(|range| range.contains(a));
        let of_node = |a: &IpAddr| {
            own.addresses.contains(a) || objects.nodes().any(|node| node.addresses.contains(a))
        };
        for pod in objects.endpoints() {
            for address in &pod.workload.addresses {
                assert!(holds(&lists.cluster, *address), "{pod:?}");
                if pod.node == own.name && !pod.workload.host_network {
                    assert!(holds(&lists.local, *address), "{pod:?}");
                }
                if objects.node(&pod.node).is_some() && !of_node(address) {
                    assert!(holds(&lists.remote, *address), "{pod:?}");
                }
            }
        }
        // Single addresses are those of pods outside their node's ranges, and of nodes.
        let is_single = |range: &&Cidr| range.prefix() == 32;
        for range in lists.local.iter().chain(&lists.remote).filter(is_single) {
            let is_outside = |pod: &&Arc<Endpoint>| {
                let inside = of(&pod.node).iter().any(|r| r.contains(range.address()));
                pod.workload.addresses.contains(&range.address()) && !inside
            };
            assert!(objects.endpoints().any(|pod| is_outside(&pod)), "{range}");
        }
        for range in lists.cluster.iter().filter(is_single) {
            let has = |pod: &Arc<Endpoint>| pod.workload.addresses.contains(&range.address());
            assert!(of_node(&range.address()) || objects.endpoints().any(has), "{range}");
        }
    }

    proptest! {
        #[test]
        fn changes_lead_to_the_ranges_of_the_whole(
            batches in prop::collection::vec(prop::collection::vec(change(), 1..4), 1..12),
        ) {
            let mut control = ControlPlane::new(Default::default());
            let mut now = settings(1);
            control.apply(&now).expect("a good state");
            let mut ranges = Ranges::of(&now, control.objects());
            for batch in batches {
                let affected = Affected::by(&batch, &now, control.objects());
                control.update_lenient(batch.clone()).expect("good settings");
                for change in &batch {
                    if let Change::Settings(new) = change {
                        now = (**new).clone();
                    }
                }
                ranges.follow(affected, &now, control.objects());
                let whole = Ranges::of(&now, control.objects());
                prop_assert_eq!(ranges.lists(), whole.lists());
                check(whole.lists(), &now, control.objects());
            }
        }
    }
}
