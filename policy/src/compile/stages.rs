//! Stages: the policies of one tier that apply to the same pods, compiled together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use wire::cidr::Cidr;

use super::partitions::{PartitionKey, Partitions, Sources};
use super::policies::{Block, PolicyState, RuleState};
use super::ports::{self, PortMaps, Reach};
use super::slab::Slab;
use crate::rule::{Direction, NamedPort};
use crate::table::{BlockTrie, PolicyId, RuleRef, Stage};

/// What makes a stage the same as another.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct StageKey {
    pub(super) direction: Direction,
    /// Policies in order, each with its generation.
    pub(super) policies: Vec<(u32, u64)>,
    /// Ingress: the pods' ports of the names that the policies mention (N7).
    pub(super) ports: Vec<NamedPort>,
}

/// A stage in use.
#[derive(Debug)]
pub(super) struct StageState {
    pub(super) key: Arc<StageKey>,
    /// Identities judged by it.
    pub(super) refs: u32,
    pub(super) partition: u32,
}

/// Builds one stage.
pub(super) struct StageBuilder<'a> {
    pub(super) key: &'a StageKey,
    pub(super) policies: &'a Slab<PolicyState>,
    pub(super) partitions: &'a mut Partitions,
    pub(super) maps: &'a mut PortMaps,
}

impl StageBuilder<'_> {
    /// The stage. `partition` is the one it is built on already, if it is rebuilt.
    pub(super) fn build(mut self, from: &mut Sources<'_>) -> Stage {
        let direction = self.key.direction;
        let policies: &Slab<PolicyState> = self.policies;
        let states = self.key.policies.iter().map(|(id, _)| (*id, &policies[*id]));
        let mut rules: Vec<&RuleState> = Vec::new();
        let mut refs: Vec<RuleRef> = Vec::new();
        for (id, state) in states {
            let own = state.rules[direction.index()].iter().flatten();
            for (index, rule) in own.enumerate() {
                let counter = state.info.counter(direction, Some(index));
                let (policy, action) = (PolicyId(id), rule.action);
                refs.push(RuleRef { policy, index: index as u32, action, counter });
                rules.push(rule);
            }
        }
        let partition = self.partition(&rules, from);
        let (tables, blocks) = Tables::new(self.key, &rules)
            .build((partition != 0).then(|| self.partitions.get(partition)), self.maps);
        let first = self.key.policies.first().map(|(id, _)| &policies[*id]);
        Stage {
            partition,
            blocks,
            tables,
            rules: refs.into(),
            policies: self.key.policies.iter().map(|(id, _)| PolicyId(*id)).collect(),
            isolation_counter: first.map_or(0, |p| p.info.counter(direction, None)),
        }
    }

    /// The partition by the selectors and names of the rules, 0 if there are none.
    fn partition(&mut self, rules: &[&RuleState], from: &mut Sources<'_>) -> u32 {
        let selectors: BTreeSet<u32> =
            rules.iter().flat_map(|rule| rule.selectors.iter().copied()).collect();
        let names: BTreeSet<&Arc<str>> = match self.key.direction {
            // Resolved on the stage's own pods.
            Direction::Ingress => BTreeSet::new(),
            Direction::Egress => rules.iter().flat_map(|r| ports::names(&r.ports)).collect(),
        };
        if selectors.is_empty() && names.is_empty() {
            return 0;
        }
        let names = names.into_iter().cloned().collect();
        let key = PartitionKey { selectors: selectors.into_iter().collect(), names };
        self.partitions.acquire(key, from)
    }
}

/// The port tables of a stage while they are made.
struct Tables<'a> {
    key: &'a StageKey,
    rules: &'a [&'a RuleState],
    reaches: Vec<Reach>,
}

type Compiled = (Arc<[crate::table::PortTable]>, Option<Arc<BlockTrie>>);

impl<'a> Tables<'a> {
    fn new(key: &'a StageKey, rules: &'a [&'a RuleState]) -> Self {
        // On egress names depend on the peer and `key.ports` is empty.
        let reaches = rules.iter().map(|rule| Reach::new(&rule.ports, &key.ports)).collect();
        Self { key, rules, reaches }
    }

    fn build(
        &self,
        partition: Option<&super::partitions::PartitionState>,
        maps: &mut PortMaps,
    ) -> Compiled {
        let mut tables = Vec::new();
        tables.push(maps.table(&self.having(|rule| rule.everyone)));
        tables.push(if self.rules.iter().any(|rule| rule.every_pod) {
            maps.table(&self.having(|rule| rule.everyone || rule.every_pod))
        } else {
            tables[Stage::OUTSIDE].clone()
        });
        if let Some(partition) = partition {
            let by_selector = self.by_selector(&partition.key.selectors);
            for row in partition.rows.iter().skip(1) {
                let mut ranks: Vec<u32> =
                    row.selected().flat_map(|at| by_selector[at].iter().copied()).collect();
                if !row.ports.is_empty() {
                    ranks.extend(self.about_all_by_name());
                }
                ranks.sort_unstable();
                ranks.dedup();
                tables.push(maps.table(&self.reaches(&ranks, &row.ports)));
            }
        }
        let mut rows: HashMap<Vec<u32>, u32> = HashMap::new();
        let mut ranges = Vec::new();
        for (range, ranks) in self.ranges() {
            let row = if ranks.is_empty() {
                crate::table::NO_ROW
            } else {
                *rows.entry(ranks).or_insert_with_key(|ranks| {
                    tables.push(maps.table(&self.reaches(ranks, &[])));
                    tables.len() as u32 - 1
                })
            };
            ranges.push((range, row));
        }
        let blocks = (!ranges.is_empty()).then(|| Arc::new(BlockTrie::new(ranges)));
        (tables.into(), blocks)
    }

    /// The rules that have a property, in order.
    fn having(&self, property: impl Fn(&RuleState) -> bool) -> Vec<(u32, Reach)> {
        let all = (0u32..).zip(self.rules).zip(&self.reaches);
        all.filter(|((_, rule), _)| property(rule))
            .map(|((rank, _), r)| (rank, r.clone()))
            .collect()
    }

    /// These rules; on egress with names as the peer's `ports` have them.
    fn reaches(&self, ranks: &[u32], ports: &[NamedPort]) -> Vec<(u32, Reach)> {
        let reach = |rank: &u32| {
            let at = *rank as usize;
            let reach = match self.key.direction {
                Direction::Egress if !ports.is_empty() => Reach::new(&self.rules[at].ports, ports),
                _ => self.reaches[at].clone(),
            };
            (*rank, reach)
        };
        ranks.iter().map(reach).collect()
    }

    /// Rules about everyone, or every pod, that name ports: on egress they match where the peer
    /// has the name, so they stand in the rows of peers that do.
    fn about_all_by_name(&self) -> impl Iterator<Item = u32> {
        let all = (0u32..).zip(self.rules);
        let about = all.filter(|(_, rule)| {
            (rule.everyone || rule.every_pod) && ports::names(&rule.ports).next().is_some()
        });
        about.map(|(rank, _)| rank)
    }

    /// Ranks of the rules that mention each selector.
    fn by_selector(&self, selectors: &[u32]) -> Vec<Vec<u32>> {
        let mut ranks = vec![Vec::new(); selectors.len()];
        for (rank, rule) in (0u32..).zip(self.rules) {
            for selector in &rule.selectors {
                if let Ok(at) = selectors.binary_search(selector) {
                    ranks[at].push(rank);
                }
            }
        }
        ranks
    }

    /// Every range that the rules mention, each with the rules that hold for addresses of which
    /// it is the longest such range.
    fn ranges(&self) -> Vec<(Cidr, Vec<u32>)> {
        let mut marks: BTreeMap<Cidr, Vec<Mark>> = BTreeMap::new();
        let mut blocks: Vec<u32> = Vec::new();
        for (rank, rule) in (0u32..).zip(self.rules) {
            for Block { cidr, except } in &rule.blocks {
                if except.iter().any(|e| within(cidr, e)) {
                    continue;
                }
                let block = blocks.len();
                blocks.push(rank);
                marks.entry(*cidr).or_default().push(Mark { block, opens: true });
                for range in except.iter().filter(|e| within(e, cidr)) {
                    marks.entry(*range).or_default().push(Mark { block, opens: false });
                }
            }
        }
        // By family, address, length: a range comes before those within it, so a stack of the
        // ranges around the present one is all that is needed.
        let mut open = Open { ranks: blocks, depth: HashMap::new(), rules: BTreeMap::new() };
        let mut stack: Vec<(&Cidr, &Vec<Mark>)> = Vec::new();
        let mut ranges = Vec::with_capacity(marks.len());
        for (range, here) in &marks {
            while let Some((outer, _)) = stack.last()
                && !within(range, outer)
            {
                stack.pop().into_iter().for_each(|(_, marks)| open.leave(marks));
            }
            open.enter(here);
            stack.push((range, here));
            ranges.push((*range, open.rules.keys().copied().collect()));
        }
        ranges
    }
}

/// Whether one range lies in another.
fn within(inner: &Cidr, outer: &Cidr) -> bool {
    inner.prefix() >= outer.prefix() && outer.contains(inner.address())
}

/// What a range does to a block: begin it, or cut a piece out of it.
#[derive(Clone, Copy)]
struct Mark {
    block: usize,
    opens: bool,
}

/// The rules that hold inside the ranges entered so far.
struct Open {
    /// Rank of each block's rule.
    ranks: Vec<u32>,
    /// For each block entered, in how many of its exceptions we are.
    depth: HashMap<usize, u32>,
    /// For each rule that holds, by how many of its blocks.
    rules: BTreeMap<u32, u32>,
}

impl Open {
    fn enter(&mut self, marks: &[Mark]) {
        for mark in marks.iter().filter(|m| m.opens) {
            self.depth.insert(mark.block, 0);
            self.hold(mark.block);
        }
        for mark in marks.iter().filter(|m| !m.opens) {
            let depth = self.depth.entry(mark.block).or_default();
            *depth += 1;
            if *depth == 1 {
                self.let_go(mark.block);
            }
        }
    }

    fn leave(&mut self, marks: &[Mark]) {
        for mark in marks.iter().filter(|m| !m.opens) {
            let depth = self.depth.entry(mark.block).or_default();
            *depth -= 1;
            if *depth == 0 {
                self.hold(mark.block);
            }
        }
        for mark in marks.iter().filter(|m| m.opens) {
            self.depth.remove(&mark.block);
            self.let_go(mark.block);
        }
    }

    fn hold(&mut self, block: usize) {
        *self.rules.entry(self.ranks[block]).or_default() += 1;
    }

    fn let_go(&mut self, block: usize) {
        let rank = self.ranks[block];
        if let Some(count) = self.rules.get_mut(&rank) {
            *count -= 1;
            if *count == 0 {
                self.rules.remove(&rank);
            }
        }
    }
}
