//! Stages: the policies of one tier that apply to the same pods, compiled together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_wire::cidr::Cidr;

use super::partitions::{PartitionKey, PartitionState, Partitions, Sources};
use super::policies::{Block, PolicyState, RuleState};
use super::ports::{self, Reach, intervals};
use super::slab::Slab;
use crate::rule::{Action, Direction, NamedPort};
use crate::table::{Parts, PolicyId, RuleRef, Stage};

/// The key of a stage.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct StageKey {
    pub(super) direction: Direction,
    /// Policies in order, each with its generation.
    pub(super) policies: Vec<(u32, u64)>,
    /// Ingress: the pods' ports with the names that the policies mention (N7).
    pub(super) ports: Vec<NamedPort>,
}

/// A stage in use.
#[derive(Debug)]
pub(super) struct StageState {
    pub(super) key: Arc<StageKey>,
    /// Identities that it applies to.
    pub(super) refs: u32,
    pub(super) partition: u32,
}

/// Builds one stage.
pub(super) struct StageBuilder<'a> {
    pub(super) key: &'a StageKey,
    pub(super) policies: &'a Slab<PolicyState>,
    pub(super) partitions: &'a mut Partitions,
}

impl StageBuilder<'_> {
    /// The stage, and the number of its partition; 0 if it has no selectors.
    pub(super) fn build(mut self, from: &mut Sources<'_>) -> (Stage, u32) {
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
        let first = self.key.policies.first().map(|(id, _)| (PolicyId(*id), &policies[*id].info));
        let (policy, counter) =
            first.map_or_else(Default::default, |(id, info)| (id, info.counter(direction, None)));
        let isolation = RuleRef { policy, index: u32::MAX, action: Action::Deny, counter };
        let number = self.partition(&rules, from);
        let partition = (number != 0).then(|| self.partitions.get(number));
        let tables = Tables::new(self.key, &rules).build(partition);
        let stage = Stage::new(Parts {
            partition: partition.map(|p| p.compiled.clone()).unwrap_or_default(),
            tables: &tables.intervals,
            rows_are_whole: tables.rows_are_whole,
            ranges: &tables.ranges,
            rules: &refs,
            isolation,
        });
        (stage, number)
    }

    /// The partition by the selectors and names of the rules; 0 if there are none.
    fn partition(&mut self, rules: &[&RuleState], from: &mut Sources<'_>) -> u32 {
        let selectors: BTreeSet<u32> =
            rules.iter().flat_map(|rule| rule.selectors.iter().copied()).collect();
        let names: BTreeSet<&Arc<str>> = match self.key.direction {
            // Resolved with the ports of the stage's own pods.
            Direction::Ingress => BTreeSet::new(),
            Direction::Egress => rules.iter().flat_map(|r| ports::names(&r.ports)).collect(),
        };
        if selectors.is_empty() && names.is_empty() {
            return 0;
        }
        let names_of_all = !names.is_empty() && rules.iter().any(|rule| about_all_by_name(rule));
        let names = names.into_iter().cloned().collect();
        let selectors = selectors.into_iter().collect();
        let key = PartitionKey { selectors, names, names_of_all };
        self.partitions.acquire(key, from)
    }
}

/// The port tables of a stage under construction.
struct Tables<'a> {
    key: &'a StageKey,
    rules: &'a [&'a RuleState],
    reaches: Vec<Reach>,
}

/// A rule for any peer or any pod that names ports. On egress it matches where the peer has the
/// name, so it is in the rows of peers that do.
fn about_all_by_name(rule: &RuleState) -> bool {
    (rule.everyone || rule.every_pod) && ports::names(&rule.ports).next().is_some()
}

/// Up to this many intervals, rules for any peer are repeated in every row.
const FEW: usize = 8;

/// Port tables in the stage's order.
struct Built {
    intervals: Vec<Vec<(u32, u32)>>,
    rows_are_whole: bool,
    ranges: Vec<(Cidr, Option<usize>)>,
}

impl<'a> Tables<'a> {
    fn new(key: &'a StageKey, rules: &'a [&'a RuleState]) -> Self {
        // On egress names depend on the peer, and `key.ports` is empty.
        let reaches = rules.iter().map(|rule| Reach::new(&rule.ports, &key.ports)).collect();
        Self { key, rules, reaches }
    }

    fn build(&self, partition: Option<&PartitionState>) -> Built {
        let everyone = self.having(|rule| rule.everyone);
        let pods = self.having(|rule| rule.everyone || rule.every_pod);
        let mut tables = vec![intervals(&everyone), intervals(&pods)];
        // Rules for any peer are usually few: repeating them in every row saves a look-up. If there
        // are many, the tables would grow to rows times rules.
        let whole = tables[1].len() <= FEW;
        if let Some(partition) = partition {
            let by_selector = self.by_selector(&partition.key.selectors);
            for row in partition.rows.iter().skip(1) {
                let selected = row.selected().flat_map(|at| by_selector[at].iter().copied());
                let mut ranks: Vec<u32> = selected.collect();
                let all = (0u32..).zip(self.rules);
                let also = all.filter(|(_, rule)| {
                    let about = rule.everyone || (rule.every_pod && !row.nodes);
                    (whole && about) || (!row.ports.is_empty() && about_all_by_name(rule))
                });
                ranks.extend(also.map(|(rank, _)| rank));
                ranks.sort_unstable();
                ranks.dedup();
                tables.push(intervals(&self.reaches(&ranks, &row.ports)));
            }
        }
        let ranges = self.range_tables(&mut tables);
        Built { intervals: tables, rows_are_whole: whole, ranges }
    }

    /// Appends a table for each set of rules that CIDRs lead to.
    fn range_tables(&self, tables: &mut Vec<Vec<(u32, u32)>>) -> Vec<(Cidr, Option<usize>)> {
        let mut places: HashMap<Vec<u32>, usize> = HashMap::new();
        let mut table_of = |ranks: Vec<u32>| {
            if ranks.is_empty() {
                return None;
            }
            let place = places.entry(ranks).or_insert_with_key(|ranks| {
                tables.push(intervals(&self.reaches(ranks, &[])));
                tables.len() - 1
            });
            Some(*place)
        };
        self.ranges().into_iter().map(|(range, ranks)| (range, table_of(ranks))).collect()
    }

    /// The rules with a property, in order.
    fn having(&self, property: impl Fn(&RuleState) -> bool) -> Vec<(u32, Reach)> {
        let all = (0u32..).zip(self.rules).zip(&self.reaches);
        all.filter(|((_, rule), _)| property(rule))
            .map(|((rank, _), r)| (rank, r.clone()))
            .collect()
    }

    /// These rules; on egress with the peer's `ports` for names.
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

    /// Every CIDR that the rules mention, each with the rules that hold for the addresses of which
    /// it is the longest matching CIDR.
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
        // Sorted by family, address, length: a CIDR comes before those within it, so a stack of the
        // enclosing CIDRs suffices.
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

/// Whether one CIDR lies within another.
fn within(inner: &Cidr, outer: &Cidr) -> bool {
    inner.prefix() >= outer.prefix() && outer.contains(inner.address())
}

/// The effect of a CIDR on a block: it begins the block, or begins an exception of it.
#[derive(Clone, Copy)]
struct Mark {
    block: usize,
    opens: bool,
}

/// The rules that hold within the CIDRs entered so far.
struct Open {
    /// Rank of each block's rule.
    ranks: Vec<u32>,
    /// For each block entered, the number of its exceptions that are open.
    depth: HashMap<usize, u32>,
    /// For each rule that holds, the number of its blocks that make it hold.
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
