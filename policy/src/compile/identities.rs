//! Which pod or node has which address, and the identities that pods share.

use std::net::IpAddr;
use std::sync::Arc;

use super::PolicyCompiler;
use super::state::{Claim, Claimant, Claims, IdentityState, NodeState, PodState};
use crate::rule::{Labels, NAMESPACE_NAME_LABEL, Namespace, Node, Workload};
use crate::table::{IdentityInfo, Owner, StageSet};

impl PolicyCompiler {
    /// Adds or replaces a namespace.
    pub fn upsert_namespace(&mut self, namespace: &Namespace) {
        let labels = namespace.effective_labels();
        let state = self.namespaces.entry(Arc::clone(&namespace.name)).or_default();
        if state.known && state.labels == labels {
            return;
        }
        state.known = true;
        self.relabel(&namespace.name, labels);
    }

    /// Removes a namespace. Pods that are still in it remain, in a namespace whose only label is
    /// its name.
    pub fn remove_namespace(&mut self, name: &str) {
        let Some(state) = self.namespaces.get_mut(name) else { return };
        state.known = false;
        if state.identities.is_empty() {
            self.namespaces.remove(name);
            self.table.namespaces.remove(name);
        } else {
            self.relabel(name, bare_labels(name));
        }
    }

    fn relabel(&mut self, name: &str, labels: Labels) {
        let Some(state) = self.namespaces.get_mut(name) else { return };
        state.labels = labels.clone();
        let identities: Vec<u32> = state.identities.iter().copied().collect();
        let name: Arc<str> = name.into();
        self.table.namespaces.insert(name, labels);
        let wide = self.selectors.wide();
        for identity in identities {
            self.update_members(identity, &wide);
        }
    }

    /// Adds or replaces a pod. `cookie` names it (`Pod/namespace/name`); `node` is the node it runs
    /// on, empty if it has none.
    pub fn upsert_pod(&mut self, cookie: &Arc<str>, workload: &Workload, node: &Arc<str>) {
        if self.pods.get(cookie).is_some_and(|pod| self.is_same(pod, workload, node)) {
            return;
        }
        let old = self.pods.remove(cookie);
        if let Some(old) = &old {
            self.unclaim_pod(cookie, old);
        }
        let (identity, number) = if workload.host_network {
            (0, 0)
        } else {
            let number = old.as_ref().map_or(0, |old| old.number);
            let number = if number == 0 { self.pod_numbers.insert(()) } else { number };
            (self.acquire_identity(pod_info(workload)), number)
        };
        let pod = PodState {
            identity,
            number,
            node: Arc::clone(node),
            addresses: workload.addresses.as_slice().into(),
        };
        self.enter_node(cookie, &pod);
        self.claim_pod(cookie, &pod);
        if number != 0 && old.as_ref().is_none_or(|old| old.number != number) {
            self.table.pods.set(number, Some(Arc::clone(cookie)));
        }
        self.pods.insert(Arc::clone(cookie), pod);
        if let Some(old) = old {
            let number = if old.number == number { 0 } else { old.number };
            self.release_pod(cookie, PodState { number, ..old }, node);
        }
    }

    /// Removes a pod; nobody has its addresses then (T-L5).
    pub fn remove_pod(&mut self, cookie: &str) {
        let Some((cookie, pod)) = self.pods.remove_entry(cookie) else { return };
        self.unclaim_pod(&cookie, &pod);
        self.release_pod(&cookie, pod, "");
    }

    fn is_same(&self, pod: &PodState, workload: &Workload, node: &str) -> bool {
        let same_kind = workload.host_network == (pod.number == 0);
        let same_place = *pod.addresses == *workload.addresses && *pod.node == *node;
        same_kind
            && same_place
            && (workload.host_network || *self.identities[pod.identity].info == pod_info(workload))
    }

    /// Releases everything that a pod held, except its claims. `stays_on` is the node of its
    /// successor.
    fn release_pod(&mut self, cookie: &Arc<str>, pod: PodState, stays_on: &str) {
        if pod.identity != 0 {
            self.release_identity(pod.identity);
        }
        if pod.number != 0 {
            self.pod_numbers.remove(pod.number);
            self.table.pods.set(pod.number, None);
        }
        if pod.node.is_empty() {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&pod.node) {
            node.pods -= 1;
            if *pod.node != *stays_on || self.pods.get(cookie).is_none_or(|p| p.number != 0) {
                node.host_pods.remove(cookie);
            }
        }
        self.drop_node_if_unused(&pod.node);
    }

    fn enter_node(&mut self, cookie: &Arc<str>, pod: &PodState) {
        if pod.node.is_empty() {
            return;
        }
        let node = self.node_entry(&pod.node);
        node.pods += 1;
        if pod.number == 0 {
            node.host_pods.insert(Arc::clone(cookie));
        }
    }

    fn node_entry(&mut self, name: &Arc<str>) -> &mut NodeState {
        let numbers = &mut self.node_numbers;
        let fresh = || NodeState { number: numbers.insert(()), ..NodeState::default() };
        self.nodes.entry(Arc::clone(name)).or_insert_with(fresh)
    }

    fn drop_node_if_unused(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|node| node.pods == 0 && node.object.is_none())
            && let Some(node) = self.nodes.remove(name)
        {
            self.node_numbers.remove(node.number);
        }
    }

    /// Adds or replaces a node.
    pub fn upsert_node(&mut self, node: &Node) {
        if self.nodes.get(&node.name).is_some_and(|state| state.object.as_ref() == Some(node)) {
            return;
        }
        let identity = self.acquire_identity(IdentityInfo::Nodes { labels: node.labels.clone() });
        self.replace_node(&node.name, Some(node.clone()), identity);
    }

    /// Removes a node.
    pub fn remove_node(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|state| state.object.is_some()) {
            self.replace_node(&name.into(), None, 0);
            self.drop_node_if_unused(name);
        }
    }

    fn replace_node(&mut self, name: &Arc<str>, object: Option<Node>, identity: u32) {
        let host_pods: Vec<_> = self.node_entry(name).host_pods.iter().cloned().collect();
        let mut affected = Vec::new();
        for cookie in host_pods {
            if let Some(pod) = self.pods.remove(&cookie) {
                self.unclaim_pod(&cookie, &pod);
                affected.push((cookie, pod));
            }
        }
        let addresses = |node: &Option<Node>| {
            node.as_ref().map_or_else(Vec::new, |node| node.addresses.clone())
        };
        let state = self.node_entry(name);
        let old_identity = core::mem::replace(&mut state.identity, identity);
        let new_addresses = addresses(&object);
        let old_addresses = addresses(&core::mem::replace(&mut state.object, object));
        let owner = Owner { identity, pod: 0, node: state.number };
        let claim = Claim { by: Claimant::Node, name: Arc::clone(name) };
        for address in old_addresses {
            self.unclaim(address, &claim);
        }
        for address in new_addresses {
            self.claim(address, claim.clone(), owner);
        }
        if old_identity != 0 {
            self.release_identity(old_identity);
        }
        for (cookie, pod) in affected {
            self.claim_pod(&cookie, &pod);
            self.pods.insert(cookie, pod);
        }
    }

    fn claim_pod(&mut self, cookie: &Arc<str>, pod: &PodState) {
        let node = self.nodes.get(&pod.node);
        let mut owner = Owner {
            identity: pod.identity,
            pod: pod.number,
            node: node.map_or(0, |node| node.number),
        };
        if pod.number == 0 {
            owner.identity = node.map_or(0, |node| node.identity);
        }
        for address in &pod.addresses {
            self.claim(*address, pod_claim(cookie, pod), owner);
        }
    }

    fn unclaim_pod(&mut self, cookie: &Arc<str>, pod: &PodState) {
        for address in &pod.addresses {
            self.unclaim(*address, &pod_claim(cookie, pod));
        }
    }

    fn claim(&mut self, address: IpAddr, claim: Claim, owner: Owner) {
        let claims = match self.claims.get_mut(&address) {
            None => {
                self.claims.insert(address, Claims { first: (claim, owner), others: Vec::new() });
                return self.set_owner(address, Some(owner));
            }
            Some(claims) => claims,
        };
        // An object that lists an address twice claims it once.
        let known = |(c, _): &(Claim, Owner)| *c == claim;
        if known(&claims.first) || claims.others.iter().any(known) {
            return;
        }
        let mut loser = (claim, owner);
        if loser.0 < claims.first.0 {
            core::mem::swap(&mut loser, &mut claims.first);
        }
        claims.others.push(loser);
        let owner = claims.first.1;
        self.set_owner(address, Some(owner));
    }

    fn unclaim(&mut self, address: IpAddr, claim: &Claim) {
        let Some(claims) = self.claims.get_mut(&address) else { return };
        claims.others.retain(|(c, _)| c != claim);
        if claims.first.0 != *claim {
            return;
        }
        let next = (0..claims.others.len()).min_by_key(|at| &claims.others[*at].0);
        match next {
            Some(at) => {
                claims.first = claims.others.swap_remove(at);
                let owner = claims.first.1;
                self.set_owner(address, Some(owner));
            }
            None => {
                self.claims.remove(&address);
                self.set_owner(address, None);
            }
        }
    }

    fn set_owner(&mut self, address: IpAddr, owner: Option<Owner>) {
        let before = self.table.party(address).owner();
        let now = owner.unwrap_or_default();
        if now != before {
            self.affected.extend([address]);
        }
        if now.identity != before.identity {
            self.holders.remove(&(before.identity, address));
            if now.identity != 0 {
                self.holders.insert((now.identity, address));
            }
        }
        match (address, owner) {
            (_, Some(owner)) if owner == before => {}
            (IpAddr::V4(a), Some(owner)) => drop(self.table.v4.insert(a.into(), owner)),
            (IpAddr::V6(a), Some(owner)) => drop(self.table.v6.insert(a.into(), owner)),
            (IpAddr::V4(a), None) => drop(self.table.v4.remove(&u32::from(a))),
            (IpAddr::V6(a), None) => drop(self.table.v6.remove(&u128::from(a))),
        }
    }

    fn acquire_identity(&mut self, info: IdentityInfo) -> u32 {
        if let Some(&id) = self.identity_ids.get(&info) {
            self.identities[id].refs += 1;
            return id;
        }
        let info = Arc::new(info);
        let state = IdentityState { info: Arc::clone(&info), refs: 1, stages: StageSet::default() };
        let id = self.identities.insert(state);
        self.identity_ids.insert(Arc::clone(&info), id);
        self.table.identities.set(id, Some(Arc::clone(&info)));
        if let IdentityInfo::Pods { namespace, .. } = &*info {
            let state = self.namespaces.entry(Arc::clone(namespace)).or_default();
            state.identities.insert(id);
            if !state.known {
                state.labels = bare_labels(namespace);
                self.table.namespaces.insert(Arc::clone(namespace), state.labels.clone());
            }
        }
        let candidates = self.selectors.candidates(&info);
        self.update_members(id, &candidates);
        self.dirty.identities.insert(id);
        self.dirty.changed.insert(id);
        self.dirty.population = true;
        id
    }

    fn release_identity(&mut self, id: u32) {
        let state = &mut self.identities[id];
        state.refs -= 1;
        if state.refs > 0 {
            return;
        }
        // The number is not reused while any compiled part refers to it (T-L5).
        let Some(state) = self.identities.vacate(id) else { return };
        self.identity_ids.remove(&state.info);
        for selector in self.selectors.candidates(&state.info) {
            if self.selectors.forget(selector, id) {
                self.dirty.partitions.extend(&self.selectors.get(selector).partitions);
            }
        }
        if let IdentityInfo::Pods { namespace, .. } = &*state.info
            && let Some(home) = self.namespaces.get_mut(namespace)
        {
            home.identities.remove(&id);
            if home.identities.is_empty() && !home.known {
                self.namespaces.remove(namespace);
                self.table.namespaces.remove(namespace);
            }
        }
        self.table.identities.set(id, None);
        self.dirty.identities.remove(&id);
        self.dirty.changed.insert(id);
        self.dirty.population = true;
        self.dirty.gone.push((id, state.stages));
    }

    /// Re-evaluates these selectors for an identity.
    pub(super) fn update_members(&mut self, identity: u32, selectors: &[u32]) {
        let info = &self.identities[identity].info;
        let none = Labels::default();
        let labels = match &**info {
            IdentityInfo::Pods { namespace, .. } => {
                self.namespaces.get(namespace).map_or(&none, |state| &state.labels)
            }
            IdentityInfo::Nodes { .. } => &none,
        };
        for &selector in selectors {
            if self.selectors.update(selector, identity, info, labels) {
                self.dirty.changed.insert(identity);
                let state = self.selectors.get(selector);
                self.dirty.partitions.extend(&state.partitions);
                if !state.partitions.is_empty() {
                    self.dirty.peers.insert(identity);
                }
                if !state.subject_of.is_empty() {
                    self.dirty.identities.insert(identity);
                }
            }
        }
    }
}

fn pod_claim(cookie: &Arc<str>, pod: &PodState) -> Claim {
    let by = if pod.number == 0 { Claimant::HostPod } else { Claimant::Pod };
    Claim { by, name: Arc::clone(cookie) }
}

fn pod_info(workload: &Workload) -> IdentityInfo {
    let mut ports = workload.ports.clone();
    ports.sort_unstable();
    ports.dedup();
    IdentityInfo::Pods {
        namespace: Arc::clone(&workload.namespace),
        labels: workload.labels.clone(),
        ports,
    }
}

/// Labels of a namespace of which only the name is known.
fn bare_labels(name: &str) -> Labels {
    [(NAMESPACE_NAME_LABEL, name)].into_iter().collect()
}
