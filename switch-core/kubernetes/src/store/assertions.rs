//! An object's claims and counts while it is in the store: addresses, ports, ranges, network
//! namespaces, members of its namespace. They are added with the object and removed with it, and
//! dependent objects are marked.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::id::Cookie;

use super::{Facts, NamespaceState, Store};
use crate::object::Kind;
use crate::read::Content;

impl Store {
    /// Adds the claims and counts of an object.
    pub(super) fn assert(&mut self, object: &Cookie, facts: &Facts) {
        if let Some(name) = &facts.namespace {
            self.count(name, facts, 1);
        }
        let rank = facts.rank;
        match &facts.content {
            Content::Nothing | Content::Policy(_) | Content::ClusterPolicy(_) => {}
            Content::Namespace(namespace) => {
                let state = self.namespaces.entry(namespace.name.clone()).or_default();
                state.object = Some(namespace.clone());
                state.sequence = facts.sequence;
                self.dirty.namespaces.push(namespace.name.clone());
            }
            Content::Node(node) => {
                for (address, _) in &node.addresses {
                    let loser = self.addresses.add(*address, rank, object);
                    self.mark_all(loser);
                }
                for (range, _) in &node.ranges {
                    self.ranges.add(*range, rank, object);
                    self.mark_all(self.ranges.others(*range, object));
                }
                self.flannel_nodes += usize::from(node.flannel.found);
                if let Some(vni) = node.flannel.vni {
                    self.vnis.entry(vni).or_default().insert(object.clone());
                }
                self.dirty.base = true;
            }
            Content::Pod(pod) => {
                let endpoint = &pod.endpoint;
                if endpoint.workload.host_network {
                    if endpoint.workload.addresses.is_empty() {
                        let pods = self.host_pods.entry(endpoint.node.clone()).or_default();
                        pods.insert(object.clone());
                    }
                    return;
                }
                for address in &endpoint.workload.addresses {
                    let loser = self.addresses.add(*address, rank, object);
                    self.mark_all(loser);
                    self.mark_all(self.slices.at(*address));
                }
                if let Some(interface) = pod.interface() {
                    let key = (endpoint.node.clone(), interface.netns.clone());
                    self.netns.add_last(key, object);
                }
            }
            Content::EndedPod(addresses) => {
                self.slices.ended(addresses, 1);
                self.mark_slices(object, addresses);
            }
            Content::Service(service) => {
                for address in &service.service.cluster_ips {
                    let loser = self.addresses.add(*address, rank, object);
                    self.mark_all(loser);
                }
                for (_, protocol, port) in service.node_ports() {
                    let loser = self.node_ports.add((protocol, port), rank, object);
                    self.mark_all(loser);
                }
                self.services += usize::from(service.service.is_balanced());
            }
            Content::Slice(slice) => self.slices.add(object, slice),
            Content::ServiceCidr(ranges) => {
                self.cidrs.insert(object.clone(), ranges.clone());
                self.dirty.base = true;
            }
        }
    }

    /// Removes what [`assert`](Self::assert) added.
    pub(super) fn retract(&mut self, object: &Cookie, facts: &Facts) {
        if let Some(name) = &facts.namespace {
            self.count(name, facts, -1);
        }
        match &facts.content {
            Content::Nothing | Content::Policy(_) | Content::ClusterPolicy(_) => {}
            Content::Namespace(namespace) => {
                if let Some(state) = self.namespaces.get_mut(&namespace.name) {
                    state.object = None;
                }
                self.dirty.namespaces.push(namespace.name.clone());
            }
            Content::Node(node) => {
                for (address, _) in &node.addresses {
                    let winner = self.addresses.remove(address, object);
                    self.mark_all(winner);
                }
                for (range, _) in &node.ranges {
                    self.ranges.remove(*range, object);
                    self.mark_all(self.ranges.others(*range, object));
                }
                self.flannel_nodes -= usize::from(node.flannel.found);
                if let Some(nodes) = node.flannel.vni.and_then(|vni| self.vnis.get_mut(&vni)) {
                    nodes.remove(object);
                }
                self.vnis.retain(|_, nodes| !nodes.is_empty());
                self.dirty.base = true;
            }
            Content::Pod(pod) => {
                let endpoint = &pod.endpoint;
                if endpoint.workload.host_network {
                    if let Some(pods) = self.host_pods.get_mut(&endpoint.node) {
                        pods.remove(object);
                        if pods.is_empty() {
                            self.host_pods.remove(&endpoint.node);
                        }
                    }
                    return;
                }
                for address in &endpoint.workload.addresses {
                    let winner = self.addresses.remove(address, object);
                    self.mark_all(winner);
                    self.mark_all(self.slices.at(*address));
                }
                if let Some(interface) = pod.interface() {
                    let key = (endpoint.node.clone(), interface.netns.clone());
                    let winner = self.netns.remove(&key, object);
                    self.mark_all(winner);
                }
            }
            Content::EndedPod(addresses) => {
                self.slices.ended(addresses, -1);
                self.mark_slices(object, addresses);
            }
            Content::Service(service) => {
                for address in &service.service.cluster_ips {
                    let winner = self.addresses.remove(address, object);
                    self.mark_all(winner);
                }
                for (_, protocol, port) in service.node_ports() {
                    let winner = self.node_ports.remove(&(protocol, port), object);
                    self.mark_all(winner);
                }
                self.services -= usize::from(service.service.is_balanced());
            }
            Content::Slice(slice) => self.slices.remove(object, slice),
            Content::ServiceCidr(_) => {
                self.cidrs.remove(object);
                self.dirty.base = true;
            }
        }
    }

    /// Counts an object in its namespace, or removes it from the count.
    fn count(&mut self, name: &Arc<str>, facts: &Facts, by: isize) {
        let sequence = self.next;
        let state = self
            .namespaces
            .entry(name.clone())
            .or_insert_with(|| NamespaceState { sequence, ..NamespaceState::default() });
        let add = |count: &mut usize| *count = count.saturating_add_signed(by);
        let before = state.members;
        add(&mut state.members);
        if (before == 0) != (state.members == 0) {
            self.dirty.namespaces.push(name.clone());
        }
        match facts.kind {
            Kind::Pod => add(&mut state.pods),
            Kind::NetworkPolicy => add(&mut state.policies),
            _ => {}
        }
    }

    /// Marks the slices that name a pod that has ended, or that no longer counts as ended.
    fn mark_slices(&mut self, pod: &Cookie, addresses: &[IpAddr]) {
        self.mark_all(self.slices.of(pod));
        for address in addresses {
            self.mark_all(self.slices.at(*address));
        }
    }
}
