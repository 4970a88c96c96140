//! Locations of pods as address ranges, updated incrementally.
//!
//! Most pods have addresses in the ranges (podCIDRs) of their node. Only the others are listed one by one, so that a
//! change of a pod inside these ranges changes nothing. A change of a node costs as much as the node has pods.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::config::{Config, Endpoint, RemoteNode};
use podswitch_core::control::{Change, Objects};
use podswitch_core::id::Cookie;
use podswitch_wire::cidr::Cidr;

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    /// This node, as counted.
    own: Own,
    /// Other nodes, as counted.
    nodes: HashMap<Arc<str>, Arc<RemoteNode>>,
    /// Every pod, by node.
    pods: HashMap<Arc<str>, HashSet<Cookie>>,
    /// Pods that are outside the ranges of their node, as counted.
    outside: HashMap<Cookie, Outside>,
    reasons: HashMap<Cidr, Reasons>,
    /// Ranges whose reasons changed, with the lists that they were in.
    touched: HashMap<Cidr, Member>,
}

/// What ranges depend on of this node.
#[derive(Debug, Default, PartialEq, Eq)]
struct Own {
    name: Arc<str>,
    addresses: Vec<IpAddr>,
    pod_cidrs: Vec<Cidr>,
}

/// A pod with addresses outside the ranges of its node, or on a node that is not known.
#[derive(Debug, PartialEq, Eq)]
struct Outside {
    addresses: Vec<IpAddr>,
    host_network: bool,
    /// It is on this node.
    is_own: bool,
    /// It is on another node that is known.
    is_remote: bool,
}

/// Why a range is listed: numbers of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reasons {
    own_ranges: u32,
    node_ranges: u32,
    /// Addresses of nodes, this one included.
    node_addresses: u32,
    /// Pods outside their node's ranges: of this node except those with its network, of other known nodes, and all.
    own_pods: u32,
    remote_pods: u32,
    pods: u32,
}

/// The lists for the node's kernel that a range is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    /// Where this node's pods are.
    pub(crate) local: bool,
    /// Where other nodes' pods are.
    pub(crate) remote: bool,
    /// Ranges and addresses of all nodes.
    pub(crate) nodes: bool,
    /// All pods and nodes.
    pub(crate) cluster: bool,
}

/// All ranges, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    /// See [`Member`].
    pub(crate) local: Vec<Cidr>,
    /// See [`Member`].
    pub(crate) remote: Vec<Cidr>,
    /// See [`Member`].
    pub(crate) nodes: Vec<Cidr>,
    /// See [`Member`].
    pub(crate) cluster: Vec<Cidr>,
}

/// Changes of a publish that ranges depend on.
#[derive(Debug, Default)]
pub(crate) struct Affected {
    /// Pods, with the node that each was on.
    pods: HashMap<Cookie, Option<Arc<str>>>,
    /// Other nodes.
    nodes: HashSet<Arc<str>>,
    is_all: bool,
}

/// What a publish changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    /// The ranges were counted again: all of them may have changed.
    pub(crate) is_all: bool,
    /// Ranges or addresses of other nodes.
    pub(crate) nodes: bool,
}

impl Affected {
    /// For changes to be published, given the previous settings.
    pub(crate) fn by(changes: &[Change], settings: &Config, objects: Objects<'_>) -> Self {
        let mut affected = Self::default();
        for change in changes {
            match change {
                Change::Pod(pod) => affected.pod(&pod.cookie, objects),
                Change::PodDeleted(cookie) => affected.pod(cookie, objects),
                Change::Node(node) => drop(affected.nodes.insert(node.name.clone())),
                Change::NodeDeleted(name) => drop(affected.nodes.insert(name.clone())),
                Change::Settings(after) => affected.is_all |= Own::of(settings) != Own::of(after),
                _ => {}
            }
        }
        affected
    }

    fn pod(&mut self, cookie: &Cookie, objects: Objects<'_>) {
        let before = || objects.endpoint(cookie).map(|pod| pod.node.clone());
        self.pods.entry(cookie.clone()).or_insert_with(before);
    }
}

impl Ranges {
    /// From everything that is published.
    pub(crate) fn of(settings: &Config, objects: Objects<'_>) -> Self {
        let mut ranges = Self { own: Own::of(settings), ..Self::default() };
        for address in settings.node.addresses.clone() {
            ranges.count(Cidr::host(address), |reasons| reasons.node_addresses += 1);
        }
        for range in settings.node.pod_cidrs.clone() {
            ranges.count(range, |reasons| reasons.own_ranges += 1);
        }
        for node in objects.nodes() {
            ranges.replace_node(&node.name, Some(node));
        }
        for pod in objects.endpoints() {
            ranges.pods.entry(pod.node.clone()).or_default().insert(pod.cookie.clone());
            ranges.place(&pod.cookie, Some(pod), objects);
        }
        ranges.touched.clear();
        ranges
    }

    /// The lists that a range is in.
    pub(crate) fn member(&self, range: &Cidr) -> Member {
        self.reasons.get(range).map(Reasons::member).unwrap_or_default()
    }

    /// All ranges.
    pub(crate) fn lists(&self) -> Lists {
        let mut all: Vec<(&Cidr, Member)> =
            self.reasons.iter().map(|(range, reasons)| (range, reasons.member())).collect();
        all.sort_unstable_by_key(|(range, _)| *range);
        let list = |is_in: fn(&Member) -> bool| {
            all.iter().filter(|(_, member)| is_in(member)).map(|(range, _)| **range).collect()
        };
        Lists {
            local: list(|member| member.local),
            remote: list(|member| member.remote),
            nodes: list(|member| member.nodes),
            cluster: list(|member| member.cluster),
        }
    }

    /// Updates the ranges after a publish.
    pub(crate) fn follow(
        &mut self,
        affected: Affected,
        settings: &Config,
        objects: Objects<'_>,
    ) -> Followed {
        if affected.is_all {
            *self = Self::of(settings, objects);
            return Followed { is_all: true, nodes: true };
        }
        for (cookie, before) in &affected.pods {
            let now = objects.endpoint(cookie).map(|pod| &pod.node);
            if before.as_ref() != now {
                self.move_pod(cookie, before.as_ref(), now);
            }
        }
        let mut followed = Followed::default();
        for name in &affected.nodes {
            if self.replace_node(name, objects.node(name)) {
                followed.nodes = true;
                let pods = self.pods.get(name).into_iter().flatten().cloned();
                for cookie in pods.collect::<Vec<_>>() {
                    self.place(&cookie, objects.endpoint(&cookie), objects);
                }
            }
        }
        for cookie in affected.pods.keys() {
            self.place(cookie, objects.endpoint(cookie), objects);
        }
        followed
    }

    /// The ranges that are in other lists than at the last call.
    pub(crate) fn take_changes(&mut self) -> BTreeSet<Cidr> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        touched.filter(|(range, was)| self.member(range) != *was).map(|(range, _)| range).collect()
    }

    fn move_pod(&mut self, cookie: &Cookie, before: Option<&Arc<str>>, now: Option<&Arc<str>>) {
        if let Some(before) = before
            && let Some(pods) = self.pods.get_mut(before)
        {
            pods.remove(cookie);
            if pods.is_empty() {
                self.pods.remove(before);
            }
        }
        if let Some(now) = now {
            self.pods.entry(now.clone()).or_default().insert(cookie.clone());
        }
    }

    /// Counts a node as it is now. Returns whether its ranges or addresses changed.
    fn replace_node(&mut self, name: &Arc<str>, now: Option<&Arc<RemoteNode>>) -> bool {
        let before = match now {
            Some(now) => self.nodes.insert(name.clone(), now.clone()),
            None => self.nodes.remove(name),
        };
        let facts = |node: &Arc<RemoteNode>| (node.pod_cidrs.clone(), node.addresses.clone());
        if before.as_ref().map(facts) == now.map(facts) {
            return false;
        }
        for (node, by) in [(now, 1), (before.as_ref(), -1)] {
            let Some(node) = node else { continue };
            for range in &node.pod_cidrs {
                self.count(*range, |reasons| add(&mut reasons.node_ranges, by));
            }
            for address in &node.addresses {
                let range = Cidr::host(*address);
                self.count(range, |reasons| add(&mut reasons.node_addresses, by));
            }
        }
        true
    }

    /// Counts a pod as it is now.
    fn place(&mut self, cookie: &Cookie, pod: Option<&Arc<Endpoint>>, objects: Objects<'_>) {
        let now = pod.and_then(|pod| Outside::of(pod, &self.own, objects));
        if self.outside.get(cookie) == now.as_ref() {
            return;
        }
        if let Some(before) = self.outside.remove(cookie) {
            self.count_pod(&before, -1);
        }
        if let Some(now) = now {
            self.count_pod(&now, 1);
            self.outside.insert(cookie.clone(), now);
        }
    }

    fn count_pod(&mut self, pod: &Outside, by: i32) {
        for address in &pod.addresses {
            self.count(Cidr::host(*address), |reasons| {
                add(&mut reasons.pods, by);
                if pod.is_own && !pod.host_network {
                    add(&mut reasons.own_pods, by);
                }
                if pod.is_remote {
                    add(&mut reasons.remote_pods, by);
                }
            });
        }
    }

    fn count(&mut self, range: Cidr, change: impl FnOnce(&mut Reasons)) {
        let reasons = self.reasons.entry(range).or_default();
        self.touched.entry(range).or_insert_with(|| reasons.member());
        change(reasons);
        if *reasons == Reasons::default() {
            self.reasons.remove(&range);
        }
    }
}

fn add(count: &mut u32, by: i32) {
    *count = count.saturating_add_signed(by);
}

impl Reasons {
    fn member(&self) -> Member {
        let nodes = self.own_ranges > 0 || self.node_ranges > 0 || self.node_addresses > 0;
        Member {
            local: self.own_ranges > 0 || self.own_pods > 0,
            // A pod with its node's network is reached as the node is.
            remote: self.node_ranges > 0 || self.remote_pods > 0 && self.node_addresses == 0,
            nodes,
            cluster: nodes || self.pods > 0,
        }
    }
}

impl Own {
    fn of(settings: &Config) -> Self {
        let node = &settings.node;
        Self {
            name: node.name.clone(),
            addresses: node.addresses.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
        }
    }
}

impl Outside {
    fn of(pod: &Endpoint, own: &Own, objects: Objects<'_>) -> Option<Self> {
        let is_own = pod.node == own.name;
        let node = objects.node(&pod.node);
        let cidrs = match is_own {
            true => &own.pod_cidrs[..],
            false => node.map_or(&[][..], |node| &node.pod_cidrs),
        };
        let is_outside = |a: &&IpAddr| !cidrs.iter().any(|range| range.contains(**a));
        let addresses: Vec<IpAddr> =
            pod.workload.addresses.iter().filter(is_outside).copied().collect();
        let host_network = pod.workload.host_network;
        let is_remote = node.is_some();
        (!addresses.is_empty()).then_some(Self { addresses, host_network, is_own, is_remote })
    }
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
            1 => (0..6_u8).prop_map(|n| Change::PodDeleted(Cookie::new(format!("Pod/a/{n}")))),
            2 => (1..4_usize, 0..4_u8).prop_map(|(n, ranges)| Change::Node(node(n, ranges))),
            1 => (1..4_usize).prop_map(|n| Change::NodeDeleted(NODES[n].into())),
            1 => (0..4_u8).prop_map(|ranges| Change::Settings(Arc::new(settings(ranges)))),
        ]
    }

    /// The ranges of a node; none if it is not known.
    fn cidrs_of<'a>(name: &Arc<str>, settings: &'a Config, objects: Objects<'a>) -> &'a [Cidr] {
        if *name == settings.node.name {
            return &settings.node.pod_cidrs;
        }
        objects.node(name).map_or(&[], |node| &node.pod_cidrs)
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

    /// Ranges that are in other lists.
    fn differences(before: &Lists, now: &Lists) -> BTreeSet<Cidr> {
        let lists = |lists: &Lists| {
            let Lists { local, remote, nodes, cluster } = lists;
            [local, remote, nodes, cluster]
                .map(|list| list.iter().copied().collect::<BTreeSet<_>>())
        };
        let both = lists(before).into_iter().zip(lists(now));
        both.flat_map(|(before, now)| {
            before.symmetric_difference(&now).copied().collect::<Vec<_>>()
        })
        .collect()
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
                let before = ranges.lists();
                let followed = ranges.follow(affected, &now, control.objects());
                let whole = Ranges::of(&now, control.objects());
                let lists = ranges.lists();
                prop_assert_eq!(&lists, &whole.lists());
                prop_assert_eq!(&ranges.pods, &whole.pods);
                check(&lists, &now, control.objects());
                let changes = ranges.take_changes();
                if !followed.is_all {
                    prop_assert_eq!(changes, differences(&before, &lists));
                }
            }
        }
    }
}
