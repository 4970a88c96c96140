//! All policies of one tier and direction that apply to the same pods, compiled together.

use std::sync::Arc;

use super::{BlockTrie, Decision, NO_RULE, Party, PolicyId, PolicyTable, PortKey, PortTable};
use crate::rule::Action;
use crate::verdict::Why;

/// A rule of a stage, in the order in which the stage's rules count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuleRef {
    pub(crate) policy: PolicyId,
    pub(crate) index: u32,
    /// What it does; of NetworkPolicies always [`Action::Accept`].
    pub(crate) action: Action,
    pub(crate) counter: u32,
}

impl RuleRef {
    #[inline]
    pub(crate) fn decision(&self, allow: bool, why: Why) -> Decision {
        let (policy, rule) = (self.policy, Some(self.index));
        Decision { allow, why, policy, rule, counter: self.counter }
    }
}

/// One tier's say about some pods in one direction.
///
/// A rule is known by its rank, its place in `rules`. Each table says which rank is the lowest
/// that matches a port; a connection concerns up to three tables (rules about everyone, rules
/// that select the peer, rules whose ipBlocks hold it), and the lowest of their ranks decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    /// Number of the partition of identities by the stage's selectors, 0 if it selects by none.
    pub(crate) partition: u32,
    /// The stage's ranges, if it has any, leading to indices of `tables`.
    pub(crate) blocks: Option<Arc<BlockTrie>>,
    /// [`Self::OUTSIDE`], [`Self::PODS`], then one for each row of the partition but the first,
    /// then one for each row of the blocks.
    pub(crate) tables: Arc<[PortTable]>,
    pub(crate) rules: Arc<[RuleRef]>,
    /// The policies, in order, and the counter of each one's isolation.
    pub(crate) policies: Arc<[PolicyId]>,
    pub(crate) isolation_counter: u32,
}

impl Stage {
    /// Table of rules about everyone.
    pub(crate) const OUTSIDE: usize = 0;
    /// Table of rules about everyone and of those about every pod.
    pub(crate) const PODS: usize = 1;

    /// The table of a partition's row; its row 0 has none.
    pub(crate) const fn table_of_row(row: u32) -> usize {
        Self::PODS + row as usize
    }

    /// Lowest rank of a rule that matches.
    #[inline]
    pub(crate) fn first_match(&self, table: &PolicyTable, peer: &Party, key: PortKey) -> u32 {
        let everyone = if peer.is_pod() { Self::PODS } else { Self::OUTSIDE };
        let mut rank = self.rank(everyone, key);
        if self.partition != 0
            && let Some(partition) = table.partitions.get(self.partition)
        {
            let row = partition.row(peer.identity());
            if row != 0 {
                rank = rank.min(self.rank(Self::table_of_row(row), key));
            }
        }
        if let Some(blocks) = &self.blocks {
            // Beyond the last table if no range holds the address.
            rank = rank.min(self.rank(blocks.row(peer.address()) as usize, key));
        }
        rank
    }

    #[inline]
    fn rank(&self, table: usize, key: PortKey) -> u32 {
        self.tables.get(table).map_or(NO_RULE, |t| t.rank(key))
    }

    /// The rule of a rank, if it is one.
    #[inline]
    pub(crate) fn rule(&self, rank: u32) -> Option<&RuleRef> {
        self.rules.get(rank as usize)
    }

    /// The denial of a pod that is isolated, named after the first policy that isolates it.
    #[inline]
    pub(crate) fn isolation(&self) -> Decision {
        let policy = self.policies.first().copied().unwrap_or_default();
        let counter = self.isolation_counter;
        Decision { allow: false, why: Why::Isolated, policy, rule: None, counter }
    }

    pub(crate) fn policies(&self) -> &[PolicyId] {
        &self.policies
    }

    /// Octets on the heap, shared port maps not counted.
    pub(crate) fn heap_bytes(&self) -> usize {
        let tables: usize = self.tables.iter().map(|t| t.heap_bytes() + size_of_val(t)).sum();
        let blocks = self.blocks.as_ref().map_or(0, |b| b.heap_bytes());
        tables + blocks + size_of_val(&*self.rules) + size_of_val(&*self.policies)
    }
}
