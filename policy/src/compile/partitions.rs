//! Partitions of the identities by the selectors of a stage.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::selectors::{Scope, Selectors};
use super::slab::Slab;
use crate::rule::NamedPort;
use crate::table::{IdentityInfo, Partition};

/// The criteria by which a partition distinguishes identities.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct PartitionKey {
    /// Selectors, ascending, without duplicates.
    pub(super) selectors: Vec<u32>,
    /// Names of ports that egress rules resolve on the peer (N7), sorted, without duplicates.
    pub(super) names: Vec<Arc<str>>,
    /// Whether the names also matter for identities that no selector selects.
    pub(super) names_of_all: bool,
}

/// The properties that the identities of a row share.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Row {
    /// One bit for each selector of the key: whether it selects them.
    selected: Vec<u64>,
    /// Their ports with the key's names.
    pub(super) ports: Vec<NamedPort>,
    /// Whether they are nodes rather than pods; row 0 has both.
    pub(super) nodes: bool,
}

impl Row {
    /// Positions of the key's selectors that select the row's identities.
    pub(super) fn selected(&self) -> impl Iterator<Item = usize> {
        let bits = |word: u64| (0..64).filter(move |bit| word >> bit & 1 == 1);
        self.selected.iter().enumerate().flat_map(move |(i, w)| bits(*w).map(move |b| i * 64 + b))
    }

    fn is_nothing(&self) -> bool {
        self.ports.is_empty() && self.selected.iter().all(|word| *word == 0)
    }

    /// Fills the row for an identity.
    fn fill(&mut self, key: &PartitionKey, selectors: &Selectors, id: u32, info: &IdentityInfo) {
        self.selected.clear();
        self.selected.resize(key.selectors.len().div_ceil(64), 0);
        for (place, selector) in key.selectors.iter().enumerate() {
            let member = selectors.get(*selector).members.contains(id);
            self.selected[place / 64] |= u64::from(member) << (place % 64);
        }
        self.ports.clear();
        self.nodes = matches!(info, IdentityInfo::Nodes { .. }) && !self.is_nothing();
        if let IdentityInfo::Pods { ports, .. } = info
            && !key.names.is_empty()
            && (key.names_of_all || !self.is_nothing())
        {
            let meant = |p: &&NamedPort| key.names.binary_search(&p.name).is_ok();
            self.ports.extend(ports.iter().filter(meant).cloned());
        }
    }
}

/// A partition in use.
#[derive(Debug)]
pub(super) struct PartitionState {
    pub(super) key: PartitionKey,
    /// Row 0: no selector, no port.
    pub(super) rows: Vec<Row>,
    by_row: HashMap<Row, u32>,
    /// Stages built on it, one reference each.
    pub(super) stages: HashSet<u32>,
    pub(super) compiled: Partition,
}

/// All identities of the compiler.
pub(super) type Identities = Slab<super::state::IdentityState>;

/// The effect of a change of identities on a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Stages built on it stay valid.
    Rows,
    /// There are new rows that its stages do not have.
    NewRows,
}

/// All partitions in use.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    slab: Slab<PartitionState>,
    by_key: HashMap<PartitionKey, u32>,
}

/// The inputs from which partitions are built.
pub(super) struct Sources<'a> {
    pub(super) selectors: &'a mut Selectors,
    pub(super) identities: &'a Identities,
}

impl Partitions {
    pub(super) fn get(&self, id: u32) -> &PartitionState {
        &self.slab[id]
    }

    /// The partition of a key, on which a stage will be built.
    pub(super) fn acquire(&mut self, key: PartitionKey, from: &mut Sources<'_>) -> u32 {
        if let Some(&id) = self.by_key.get(&key) {
            return id;
        }
        for selector in &key.selectors {
            from.selectors.retain(*selector);
        }
        let id = self.slab.insert(PartitionState {
            key: key.clone(),
            rows: Vec::new(),
            by_row: HashMap::new(),
            stages: HashSet::new(),
            compiled: Partition::default(),
        });
        for selector in &key.selectors {
            from.selectors.get_mut(*selector).partitions.insert(id);
        }
        self.by_key.insert(key, id);
        self.slab[id].build(from);
        id
    }

    /// Registers a stage built on a partition.
    pub(super) fn add_stage(&mut self, id: u32, stage: u32) {
        self.slab[id].stages.insert(stage);
    }

    /// Deregisters a stage; a partition without stages is removed.
    pub(super) fn remove_stage(&mut self, id: u32, stage: u32, from: &mut Sources<'_>) {
        let state = &mut self.slab[id];
        state.stages.remove(&stage);
        if !state.stages.is_empty() {
            return;
        }
        let Some(state) = self.slab.remove(id) else { return };
        self.by_key.remove(&state.key);
        for selector in &state.key.selectors {
            from.selectors.get_mut(*selector).partitions.remove(&id);
            from.selectors.release(*selector);
        }
    }

    /// Partitions in which an identity that no selector selects may differ from the default, so
    /// that every identity that appears or disappears affects them.
    pub(super) fn concerned_by_all(&self) -> impl Iterator<Item = u32> {
        let concerned = |(_, state): &(u32, &PartitionState)| {
            state.compiled.default_row() != Partition::NOTHING || state.key.names_of_all
        };
        self.slab.iter().filter(concerned).map(|(id, _)| id)
    }

    /// Updates a partition after these identities appeared, disappeared or changed.
    pub(super) fn update(
        &mut self,
        id: u32,
        changed: &[u32],
        from: &Sources<'_>,
    ) -> Option<Change> {
        self.slab.get_mut(id)?.update(changed, from)
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.slab.iter().map(|(_, state)| state.compiled.heap_bytes()).sum()
    }
}

impl PartitionState {
    /// Builds everything from scratch. The most frequent row becomes the default.
    fn build(&mut self, from: &Sources<'_>) {
        let selected = vec![0; self.key.selectors.len().div_ceil(64)];
        self.rows = vec![Row { selected, ..Row::default() }];
        self.by_row = HashMap::from_iter([(self.rows[0].clone(), 0)]);
        if let [_] = self.key.selectors[..]
            && self.key.names.is_empty()
        {
            // The usual case: both possible rows exist from the start, so that new identities never
            // require rebuilding the partition's stages.
            let nodes = from.selectors.scope(self.key.selectors[0]) == Scope::Nodes;
            self.row_number(&Row { selected: vec![1], nodes, ..Row::default() });
        }
        let mut scratch = Row::default();
        let mut assigned: Vec<(u32, u32)> = Vec::new();
        for identity in self.candidates(from) {
            let Some(state) = from.identities.get(identity) else { continue };
            scratch.fill(&self.key, from.selectors, identity, &state.info);
            if !scratch.is_nothing() {
                assigned.push((identity, self.row_number(&scratch)));
            }
        }
        let mut counts = vec![0usize; self.rows.len()];
        assigned.iter().for_each(|(_, row)| counts[*row as usize] += 1);
        counts[0] = from.identities.len().saturating_sub(assigned.len());
        let most = (0..counts.len()).rev().max_by_key(|row| counts[*row]).unwrap_or(0) as u32;
        if most != 0 {
            let known: HashMap<u32, u32> = assigned.into_iter().collect();
            let row = |id| known.get(&id).copied().unwrap_or(0);
            assigned = from.identities.iter().map(|(id, _)| (id, row(id))).collect();
            assigned.retain(|(_, row)| *row != most);
        }
        self.compiled = Partition::new(most, &assigned);
    }

    /// Identities that may be in another row than row 0.
    fn candidates(&self, from: &Sources<'_>) -> Vec<u32> {
        if self.key.names_of_all {
            return from.identities.iter().map(|(id, _)| id).collect();
        }
        let selectors = self.key.selectors.iter().map(|s| from.selectors.get(*s));
        let mut all: Vec<u32> = selectors.flat_map(|s| s.members.iter()).collect();
        if self.key.selectors.len() > 1 {
            all.sort_unstable();
            all.dedup();
        }
        all
    }

    fn row_number(&mut self, row: &Row) -> u32 {
        if let Some(&number) = self.by_row.get(row) {
            return number;
        }
        let number = self.rows.len() as u32;
        self.rows.push(row.clone());
        self.by_row.insert(row.clone(), number);
        number
    }

    fn update(&mut self, changed: &[u32], from: &Sources<'_>) -> Option<Change> {
        let old = self.compiled.clone();
        let (rows_before, mut scratch) = (self.rows.len(), Row::default());
        let mut moved: HashMap<u32, u32> = HashMap::new();
        for &identity in changed {
            let row = match from.identities.get(identity) {
                Some(state) => {
                    scratch.fill(&self.key, from.selectors, identity, &state.info);
                    self.row_number(&scratch)
                }
                // A removed identity must leave no trace, because its number will be reused (T-L5).
                None => old.default_row(),
            };
            if old.row(identity) != row {
                moved.insert(identity, row);
            }
        }
        if moved.is_empty() {
            return None;
        }
        let mut exceptions: Vec<_> =
            old.exceptions().filter(|(identity, _)| !moved.contains_key(identity)).collect();
        let default = old.default_row();
        exceptions.extend(moved.into_iter().filter(|(_, row)| *row != default));
        if self.is_worn(&exceptions, from.identities.len()) {
            self.build(from);
            return Some(Change::NewRows);
        }
        self.compiled = Partition::new(default, &exceptions);
        Some(if self.rows.len() > rows_before { Change::NewRows } else { Change::Rows })
    }

    /// Whether changes have made it inefficient: most identities are exceptions, or most rows have
    /// no identity.
    fn is_worn(&self, exceptions: &[(u32, u32)], identities: usize) -> bool {
        if exceptions.len() > identities / 2 + 16 {
            return true;
        }
        if self.rows.len() < 32 {
            return false;
        }
        let used: HashSet<u32> = exceptions.iter().map(|(_, row)| *row).collect();
        self.rows.len() > used.len() * 2 + 16
    }
}
