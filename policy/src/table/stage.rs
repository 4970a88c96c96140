//! All policies of one tier and direction that apply to the same pods, compiled together.

use std::sync::Arc;

use super::blocks::{NO_TABLE, Root, table_of, write_ranges};
use super::decision::{Decision, PolicyId};
use super::line::Line;
use super::partition::Partition;
use super::party::Party;
use super::ports::{NO_RULE, PortKey, rank, write_tables};
use crate::rule::Action;
use crate::verdict::Why;
use podswitch_wire::cidr::Cidr;

/// A rule of a stage. Four words of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuleRef {
    pub(crate) policy: PolicyId,
    pub(crate) index: u32,
    /// Its action; for NetworkPolicies always [`Action::Accept`].
    pub(crate) action: Action,
    pub(crate) counter: u32,
}

impl RuleRef {
    const WORDS: usize = 4;

    #[inline]
    pub(crate) fn decision(&self, allow: bool, why: Why) -> Decision {
        let (policy, rule) = (self.policy, Some(self.index));
        Decision { allow, why, policy, rule, counter: self.counter }
    }

    fn words(&self) -> [u32; Self::WORDS] {
        [self.policy.0, self.index, self.action as u32, self.counter]
    }

    #[inline]
    fn from_words(words: &[u32]) -> Self {
        let action = match words[2] {
            a if a == Action::Accept as u32 => Action::Accept,
            a if a == Action::Pass as u32 => Action::Pass,
            _ => Action::Deny,
        };
        Self { policy: PolicyId(words[0]), index: words[1], action, counter: words[3] }
    }
}

/// The rules of one tier for some pods in one direction, in one run of memory.
///
/// A rule's rank is its position in the order of rules. Each port table gives the lowest rank that
/// matches a port. A connection involves up to three tables (rules for any peer, rules that select
/// the peer, rules whose ipBlocks contain it); the lowest of their ranks decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    /// Identities by the stage's selectors.
    partition: Partition,
    /// [`Header`], then the port tables: [`Self::OUTSIDE`], [`Self::PODS`], one for each row of the
    /// partition except the first, those for CIDRs; then the lines that divide these further, the
    /// trees of the CIDRs, the rules.
    run: Arc<[Line]>,
}

/// The first line of a stage.
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    /// The trees of CIDRs of both families.
    roots: [Root; 2],
    /// First line of the rules.
    rules: u32,
    /// The number of rules. One more entry behind them stands for the isolation of the pods.
    rule_count: u32,
    /// Whether the tables of rows include the rules for any peer.
    rows_are_whole: bool,
    /// The partition's default row.
    default_row: u32,
}

impl Header {
    fn to_line(self) -> Line {
        let [v4, v6] = self.roots;
        let mut words = [0; 16];
        words[..5].copy_from_slice(&[v4.node, v4.skip, (v4.head >> 96) as u32, v6.node, v6.skip]);
        words[5..9].copy_from_slice(&[96, 64, 32, 0].map(|shift| (v6.head >> shift) as u32));
        words[RULES] = self.rules;
        words[RULE_COUNT] = self.rule_count;
        words[ROWS_ARE_WHOLE] = u32::from(self.rows_are_whole);
        words[DEFAULT_ROW] = self.default_row;
        Line(words)
    }

    #[inline]
    fn root(words: &[u32; 16], ipv4: bool) -> Root {
        if ipv4 {
            return Root { node: words[0], skip: words[1], head: u128::from(words[2]) << 96 };
        }
        let head = words[5..9].iter().fold(0, |head, word| head << 32 | u128::from(*word));
        Root { node: words[3], skip: words[4], head }
    }
}

/// Word of the header with the first line of the rules.
const RULES: usize = 9;
/// Word of the header with the number of rules.
const RULE_COUNT: usize = 10;
/// Word of the header that says whether rows are complete.
const ROWS_ARE_WHOLE: usize = 11;

/// Word of the header with the partition's default row.
const DEFAULT_ROW: usize = 12;

/// The inputs from which a stage is built.
pub(crate) struct Parts<'a> {
    pub(crate) partition: Partition,
    /// Intervals of each port table, in the order of lines: see [`Stage`].
    pub(crate) tables: &'a [Vec<(u32, u32)>],
    pub(crate) rows_are_whole: bool,
    /// Each distinct CIDR, and the index in `tables` for addresses of which it is the longest
    /// matching CIDR, if any rule holds there.
    pub(crate) ranges: &'a [(Cidr, Option<usize>)],
    pub(crate) rules: &'a [RuleRef],
    /// The entry for the isolation of the pods.
    pub(crate) isolation: RuleRef,
}

impl Stage {
    /// Table of the rules for any peer.
    pub(crate) const OUTSIDE: u32 = 1;
    /// Table of the rules for any peer and for any pod.
    pub(crate) const PODS: u32 = 2;

    pub(crate) fn new(parts: Parts<'_>) -> Self {
        let mut run = vec![Header::default().to_line()];
        write_tables(&mut run, parts.tables);
        let line = |table: &Option<usize>| table.map_or(NO_TABLE, |at| at as u32 + Self::OUTSIDE);
        let ranges: Vec<_> =
            parts.ranges.iter().map(|(cidr, table)| (*cidr, line(table))).collect();
        let roots = write_ranges(&mut run, &ranges);
        let rules = run.len() as u32;
        let words: Vec<u32> =
            parts.rules.iter().chain([&parts.isolation]).flat_map(RuleRef::words).collect();
        for chunk in words.chunks(16) {
            let mut line = Line([0; 16]);
            line.0[..chunk.len()].copy_from_slice(chunk);
            run.push(line);
        }
        let (rule_count, rows_are_whole) = (parts.rules.len() as u32, parts.rows_are_whole);
        let default_row = parts.partition.default_row();
        run[0] = Header { roots, rules, rule_count, rows_are_whole, default_row }.to_line();
        Self { partition: parts.partition, run: run.into() }
    }

    /// The same stage with a new partition, whose rows it already has and whose default row is the
    /// same.
    pub(crate) fn with_partition(&self, partition: Partition) -> Self {
        debug_assert_eq!(self.partition.default_row(), partition.default_row());
        Self { partition, run: Arc::clone(&self.run) }
    }

    /// Prefetches the first line. Returns an arbitrary number.
    #[inline]
    pub(super) fn prefetch(&self) -> u32 {
        self.run.first().map_or(0, |Line(header)| header[RULES])
    }

    /// Lowest rank of a matching rule.
    #[inline]
    pub(crate) fn first_match(&self, peer: &Party, key: PortKey) -> u32 {
        let Some(Line(header)) = self.run.first() else { return NO_RULE };
        let everyone = if peer.is_pod() { Self::PODS } else { Self::OUTSIDE };
        // The header's copy of the default row saves a cache line that would be read for nothing
        // else.
        let row = self.partition.exception(peer.identity()).unwrap_or(header[DEFAULT_ROW]);
        let mut lowest = match row {
            Partition::NOTHING => rank(&self.run, everyone, key),
            row => rank(&self.run, Self::PODS + row, key),
        };
        if row != Partition::NOTHING && header[ROWS_ARE_WHOLE] == 0 {
            lowest = lowest.min(rank(&self.run, everyone, key));
        }
        let root = Header::root(header, peer.address().is_ipv4());
        if root.node != 0 {
            let table = table_of(&self.run, root, peer.address());
            // No line if no CIDR contains the address.
            lowest = lowest.min(rank(&self.run, table, key));
        }
        lowest
    }

    /// The rule of a rank, if there is one.
    #[inline]
    pub(crate) fn rule(&self, rank: u32) -> Option<RuleRef> {
        let Line(header) = self.run.first()?;
        if rank < header[RULE_COUNT] { self.rule_at(header, rank) } else { None }
    }

    #[inline]
    fn rule_at(&self, header: &[u32; 16], place: u32) -> Option<RuleRef> {
        const EACH: usize = 16 / RuleRef::WORDS;
        let place = place as usize;
        let Line(words) = self.run.get(header[RULES] as usize + place / EACH)?;
        let at = place % EACH * RuleRef::WORDS;
        Some(RuleRef::from_words(&words[at..at + RuleRef::WORDS]))
    }

    /// The denial of an isolated pod, attributed to the first policy that isolates it.
    #[inline]
    pub(crate) fn isolation(&self) -> Decision {
        let first = self.run.first();
        let rule = first.and_then(|Line(header)| self.rule_at(header, header[RULE_COUNT]));
        let (policy, counter) = rule.map_or_else(Default::default, |r| (r.policy, r.counter));
        Decision { allow: false, why: Why::Isolated, policy, rule: None, counter }
    }

    /// Bytes on the heap; a shared partition counts for each stage.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.partition.heap_bytes() + size_of_val(&*self.run) + size_of::<Line>()
    }
}
