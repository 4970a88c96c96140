//! Selectors in use, each stored once, with the identities that it selects.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::slab::{BitSet, Slab};
use crate::rule::{Labels, NamespacedPods, Selector};
use crate::table::IdentityInfo;

/// The objects that a selector selects from.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum SelectorKey {
    /// Pods of one namespace.
    Local(Arc<str>, Selector),
    /// Pods of namespaces with certain labels.
    Wide(NamespacedPods),
    /// Nodes.
    Nodes(Selector),
}

impl SelectorKey {
    /// Whether an identity is selected; `namespace`: the labels of its namespace.
    fn matches(&self, identity: &IdentityInfo, namespace: &Labels) -> bool {
        match (self, identity) {
            (Self::Local(name, pods), IdentityInfo::Pods { namespace, labels, .. }) => {
                name == namespace && pods.matches(labels)
            }
            (Self::Wide(wide), IdentityInfo::Pods { labels, .. }) => {
                wide.pods.matches(labels) && wide.namespaces.matches(namespace)
            }
            (Self::Nodes(selector), IdentityInfo::Nodes { labels }) => selector.matches(labels),
            _ => false,
        }
    }
}

/// A selector in use.
#[derive(Debug)]
pub(super) struct SelectorState {
    key: SelectorKey,
    refs: u32,
    /// Identities that it selects.
    pub(super) members: BitSet,
    /// Partitions that it is part of.
    pub(super) partitions: HashSet<u32>,
    /// Policies whose subject it is.
    pub(super) subject_of: BTreeSet<u32>,
}

/// All selectors in use.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    slab: Slab<SelectorState>,
    by_key: HashMap<SelectorKey, u32>,
    /// Selectors within one namespace.
    local: HashMap<Arc<str>, BTreeSet<u32>>,
    /// Selectors of namespaces by label.
    wide: BTreeSet<u32>,
    nodes: BTreeSet<u32>,
    /// Those of `wide` that are the subject of a policy.
    wide_subjects: BTreeSet<u32>,
}

impl Selectors {
    /// The number of a selector, with one more reference. `true` if it is new: its members must
    /// then be found with [`Self::update`].
    pub(super) fn acquire(&mut self, key: SelectorKey) -> (u32, bool) {
        if let Some(&id) = self.by_key.get(&key) {
            self.slab[id].refs += 1;
            return (id, false);
        }
        let id = self.slab.insert(SelectorState {
            key: key.clone(),
            refs: 1,
            members: BitSet::default(),
            partitions: HashSet::new(),
            subject_of: BTreeSet::new(),
        });
        self.family(&key).insert(id);
        self.by_key.insert(key, id);
        (id, true)
    }

    /// Adds a reference.
    pub(super) fn retain(&mut self, id: u32) {
        self.slab[id].refs += 1;
    }

    /// Drops a reference.
    pub(super) fn release(&mut self, id: u32) {
        let state = &mut self.slab[id];
        state.refs -= 1;
        if state.refs > 0 {
            return;
        }
        let Some(state) = self.slab.remove(id) else { return };
        self.by_key.remove(&state.key);
        self.family(&state.key).remove(&id);
        if let SelectorKey::Local(namespace, _) = &state.key
            && self.local.get(namespace).is_some_and(BTreeSet::is_empty)
        {
            self.local.remove(namespace);
        }
    }

    fn family(&mut self, key: &SelectorKey) -> &mut BTreeSet<u32> {
        match key {
            SelectorKey::Local(namespace, _) => {
                self.local.entry(Arc::clone(namespace)).or_default()
            }
            SelectorKey::Wide(_) => &mut self.wide,
            SelectorKey::Nodes(_) => &mut self.nodes,
        }
    }

    /// Adds or removes a policy whose subject the selector is.
    pub(super) fn set_subject(&mut self, id: u32, policy: u32, is: bool) {
        let state = &mut self.slab[id];
        if is {
            state.subject_of.insert(policy);
        } else {
            state.subject_of.remove(&policy);
        }
        if matches!(state.key, SelectorKey::Wide(_)) {
            if state.subject_of.is_empty() {
                self.wide_subjects.remove(&id);
            } else {
                self.wide_subjects.insert(id);
            }
        }
    }

    pub(super) fn get(&self, id: u32) -> &SelectorState {
        &self.slab[id]
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut SelectorState {
        &mut self.slab[id]
    }

    /// Updates an identity's membership and returns whether it changed.
    pub(super) fn update(
        &mut self,
        id: u32,
        identity: u32,
        info: &IdentityInfo,
        namespace: &Labels,
    ) -> bool {
        let state = &mut self.slab[id];
        let member = state.key.matches(info, namespace);
        state.members.set(identity, member)
    }

    /// Removes an identity from a selector; returns whether it was a member.
    pub(super) fn forget(&mut self, id: u32, identity: u32) -> bool {
        self.slab[id].members.set(identity, false)
    }

    /// The selectors that may select an identity.
    pub(super) fn candidates(&self, info: &IdentityInfo) -> Vec<u32> {
        match info {
            IdentityInfo::Pods { namespace, .. } => {
                let local = self.local.get(namespace).into_iter().flatten();
                local.chain(&self.wide).copied().collect()
            }
            IdentityInfo::Nodes { .. } => self.nodes.iter().copied().collect(),
        }
    }

    /// The selectors of namespaces by label.
    pub(super) fn wide(&self) -> Vec<u32> {
        self.wide.iter().copied().collect()
    }

    /// The objects that a selector selects from: pods of one namespace, all pods, or nodes.
    pub(super) fn scope(&self, id: u32) -> Scope {
        match &self.slab[id].key {
            SelectorKey::Local(namespace, _) => Scope::Namespace(Arc::clone(namespace)),
            SelectorKey::Wide(_) => Scope::Pods,
            SelectorKey::Nodes(_) => Scope::Nodes,
        }
    }

    /// The selectors by which policies apply to a pod identity.
    pub(super) fn subjects_of(&self, identity: u32, info: &IdentityInfo) -> Vec<u32> {
        let IdentityInfo::Pods { namespace, .. } = info else { return Vec::new() };
        let local = self.local.get(namespace).into_iter().flatten();
        let selecting = local.chain(&self.wide_subjects).copied();
        let applies = |id: &u32| {
            let state = &self.slab[*id];
            !state.subject_of.is_empty() && state.members.contains(identity)
        };
        selecting.filter(applies).collect()
    }

    /// The policies that have one of these selectors as their subject.
    pub(super) fn policies_of(&self, subjects: &[u32]) -> Vec<u32> {
        let states = subjects.iter().map(|id| &self.slab[*id]);
        states.flat_map(|state| state.subject_of.iter().copied()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let members: usize = self.slab.iter().map(|(_, s)| s.members.heap_bytes()).sum();
        members + self.slab.len() * (size_of::<SelectorState>() + size_of::<SelectorKey>() * 2)
    }
}

/// The objects that a selector selects from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// Pods of this namespace.
    Namespace(Arc<str>),
    /// All pods.
    Pods,
    /// Nodes.
    Nodes,
}
