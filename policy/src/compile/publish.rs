//! Compiles the known objects to a table.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hashbrown::HashMap;

use super::PolicyCompiler;
use super::partitions::{Change, Sources};
use super::stages::{StageBuilder, StageKey, StageState};
use crate::affected::AffectedAddresses;
use crate::rule::{Direction, NamedPort, Tier};
use crate::table::{IdentityInfo, PolicyId, PolicyObject, PolicyTable, Stage, StageSet};

/// Stages by their inputs: the selectors by which policies apply, and the named ports.
type Found = HashMap<(Vec<u32>, Vec<NamedPort>), StageSet>;

impl PolicyCompiler {
    /// A table of everything known now. Cheap if little has changed since the last one.
    pub fn publish(&mut self) -> Arc<PolicyTable> {
        for identity in core::mem::take(&mut self.dirty.peers) {
            self.affect_holders(identity);
        }
        let stale = self.update_partitions();
        self.update_stage_sets();
        for stage in stale {
            self.rebuild_stage(stage);
        }
        self.dirty.changed.clear();
        self.dirty.population = false;
        Arc::new(self.table.clone())
    }

    /// The addresses whose policies changed since the last call, or whose row as a peer changed. A
    /// verdict depends on the two addresses of a connection: on the owner of each, on the stages of
    /// the one's identity, and on the other's row in them. So this includes every address with a
    /// new owner, and all addresses of an identity whose stages or rows changed.
    pub fn take_affected(&mut self) -> AffectedAddresses {
        core::mem::take(&mut self.affected)
    }

    fn affect_holders(&mut self, identity: u32) {
        let first = (identity, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let holders = self.holders.range(first..).take_while(|(id, _)| *id == identity);
        self.affected.extend(holders.map(|(_, address)| *address));
    }

    /// Moves identities that appeared, disappeared or changed to their rows. Returns the stages to
    /// be rebuilt because there are rows they do not have.
    fn update_partitions(&mut self) -> BTreeSet<u32> {
        let mut concerned = core::mem::take(&mut self.dirty.partitions);
        if self.dirty.population {
            concerned.extend(self.partitions.concerned_by_all());
        }
        let changed: Vec<u32> = self.dirty.changed.iter().copied().collect();
        let mut stale = BTreeSet::new();
        let from = Sources { selectors: &mut self.selectors, identities: &self.identities };
        for id in concerned {
            let change = self.partitions.update(id, &changed, &from);
            let Some(change) = change else { continue };
            let state = self.partitions.get(id);
            if change == Change::NewRows {
                stale.extend(state.stages.iter().copied());
                continue;
            }
            for &stage in &state.stages {
                if let Some(old) = self.table.stages.get(stage) {
                    let partition = state.compiled.clone();
                    self.table.stages.set(stage, old.with_partition(partition));
                }
            }
        }
        stale
    }

    /// Finds the stages of every identity whose set of policies changed.
    fn update_stage_sets(&mut self) {
        let mut left: Vec<StageSet> = Vec::new();
        let mut found = Found::new();
        for id in core::mem::take(&mut self.dirty.identities) {
            let Some(state) = self.identities.get(id) else { continue };
            let info = Arc::clone(&state.info);
            let set = self.stage_set(id, &info, &mut found);
            let state = &mut self.identities[id];
            left.push(core::mem::replace(&mut state.stages, set));
            if self.table.stage_sets.get(id) != Some(&set) {
                self.table.stage_sets.set(id, set);
                self.affect_holders(id);
            }
        }
        for (id, set) in core::mem::take(&mut self.dirty.gone) {
            left.push(set);
            self.table.stage_sets.set(id, StageSet::default());
            self.identities.release(id);
        }
        // Released only now, so that a stage that one identity leaves and another enters is kept.
        for stage in left.into_iter().flatten().flatten().filter(|stage| *stage != 0) {
            self.release_stage(stage);
        }
    }

    /// The stages of an identity, one reference to each. `found`: those found before for identities
    /// that the same selectors select.
    fn stage_set(&mut self, identity: u32, info: &IdentityInfo, found: &mut Found) -> StageSet {
        let subjects = self.selectors.subjects_of(identity, info);
        let ports = match info {
            IdentityInfo::Pods { ports, .. } => ports.clone(),
            IdentityInfo::Nodes { .. } => Vec::new(),
        };
        let alike = (subjects, ports);
        if let Some(set) = found.get(&alike) {
            for stage in set.iter().flatten().filter(|stage| **stage != 0) {
                self.stages[*stage].refs += 1;
            }
            return *set;
        }
        let mut set = StageSet::default();
        let policies = self.selectors.policies_of(&alike.0);
        for tier in Tier::ALL {
            for direction in Direction::BOTH {
                let listed = self.in_order(&policies, tier, direction);
                if !listed.is_empty() {
                    let ports = self.ports_named_by(&listed, direction, info);
                    let key = StageKey { direction, policies: listed, ports };
                    set[direction.index()][tier.index()] = self.acquire_stage(key);
                }
            }
        }
        found.insert(alike, set);
        set
    }

    /// The policies that apply to a tier and direction, with their generations, in order of
    /// evaluation: by priority, then by name.
    fn in_order(&self, policies: &[u32], tier: Tier, direction: Direction) -> Vec<(u32, u64)> {
        let states = policies.iter().map(|id| (*id, &self.policies[*id]));
        let mut listed: Vec<_> = states
            .filter(|(_, p)| p.info.object.tier() == tier && p.rules[direction.index()].is_some())
            .collect();
        listed.sort_by_key(|(_, p)| match &p.info.object {
            PolicyObject::Network(policy) => (0, &policy.cookie),
            PolicyObject::Cluster(policy) => (policy.priority, &policy.cookie),
        });
        listed.into_iter().map(|(id, p)| (id, p.generation)).collect()
    }

    /// An identity's ports with the names that policies mention for ingress.
    fn ports_named_by(
        &self,
        policies: &[(u32, u64)],
        direction: Direction,
        info: &IdentityInfo,
    ) -> Vec<NamedPort> {
        let IdentityInfo::Pods { ports, .. } = info else { return Vec::new() };
        if ports.is_empty() || direction == Direction::Egress {
            return Vec::new();
        }
        let states = policies.iter().map(|(id, _)| &self.policies[*id]);
        let names: BTreeSet<_> = states.flat_map(|p| p.port_names(direction)).collect();
        ports.iter().filter(|port| names.contains(&port.name)).cloned().collect()
    }

    fn acquire_stage(&mut self, key: StageKey) -> u32 {
        if let Some(&id) = self.stage_ids.get(&key) {
            self.stages[id].refs += 1;
            return id;
        }
        let key = Arc::new(key);
        let state = StageState { key: Arc::clone(&key), refs: 1, partition: 0 };
        let id = self.stages.insert(state);
        self.stage_ids.insert(key, id);
        self.rebuild_stage(id);
        id
    }

    fn rebuild_stage(&mut self, id: u32) {
        let Some(state) = self.stages.get(id) else { return };
        let key = Arc::clone(&state.key);
        let builder =
            StageBuilder { key: &key, policies: &self.policies, partitions: &mut self.partitions };
        let mut from = Sources { selectors: &mut self.selectors, identities: &self.identities };
        let (stage, partition) = builder.build(&mut from);
        if partition != 0 {
            self.partitions.add_stage(partition, id);
        }
        self.stages[id].partition = partition;
        self.table.stages.set(id, stage);
        let policies = key.policies.iter().map(|(id, _)| PolicyId(*id)).collect();
        self.table.stage_policies.set(id, policies);
    }

    fn release_stage(&mut self, id: u32) {
        let state = &mut self.stages[id];
        state.refs -= 1;
        if state.refs > 0 {
            return;
        }
        let Some(state) = self.stages.remove(id) else { return };
        self.stage_ids.remove(&state.key);
        self.table.stages.set(id, Stage::default());
        self.table.stage_policies.set(id, Arc::default());
        if state.partition != 0 {
            let mut from = Sources { selectors: &mut self.selectors, identities: &self.identities };
            self.partitions.remove_stage(state.partition, id, &mut from);
        }
    }

    /// The size of the compiled state, to be compared with the number of policies and pods.
    pub fn footprint(&self) -> Footprint {
        let table = &self.table;
        let stages: usize = table.stages.iter().map(Stage::heap_bytes).sum();
        Footprint {
            identities: self.identities.len(),
            selectors: self.selectors.len(),
            partitions: self.partitions.len(),
            stages: self.stages.len(),
            address_bytes: table.v4.heap_bytes() + table.v6.heap_bytes(),
            stage_bytes: stages + table.stages.heap_bytes() + table.stage_sets.heap_bytes(),
            selector_bytes: self.selectors.heap_bytes() + self.partitions.heap_bytes(),
        }
    }
}

/// Numbers and sizes of a compiled state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Distinct identities.
    pub identities: usize,
    /// Distinct selectors.
    pub selectors: usize,
    /// Distinct partitions of the identities by selectors.
    pub partitions: usize,
    /// Distinct stages: sets of policies that apply together.
    pub stages: usize,
    /// Bytes of the table from address to identity.
    pub address_bytes: usize,
    /// Bytes of the table from identity to verdict.
    pub stage_bytes: usize,
    /// Bytes of the compiler's own selectors and their members.
    pub selector_bytes: usize,
}
