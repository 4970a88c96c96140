//! All policies of one tier and direction that apply to the same pods, compiled together.

use std::sync::Arc;

use super::{BlockTrie, Decision, Line, Partition, Party, PolicyId, PortKey, rank};
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

/// One tier's say about some pods in one direction. One cache line of pointers, each to one run
/// of memory.
///
/// A rule is known by its rank, its place in `rules`. Each port table says which rank is the
/// lowest that matches a port; a connection concerns up to three tables (rules about everyone,
/// rules that select the peer, rules whose ipBlocks hold it), and the lowest of their ranks
/// decides.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub(crate) struct Stage {
    /// Identities by the stage's selectors.
    pub(crate) partition: Partition,
    /// The stage's ranges, leading to port tables.
    pub(crate) blocks: BlockTrie,
    /// The port tables: [`Self::OUTSIDE`], [`Self::PODS`], then one for each row of the partition
    /// but the first, then one for each row of the blocks.
    pub(crate) lines: Arc<[Line]>,
    /// In order; behind them what stands for the isolation of the pods.
    pub(crate) rules: Arc<[RuleRef]>,
}

const _: () = assert!(size_of::<Stage>() == 64);

impl Stage {
    /// Table of rules about everyone.
    pub(crate) const OUTSIDE: u32 = 0;
    /// Table of rules about everyone and of those about every pod.
    pub(crate) const PODS: u32 = 1;

    /// Lowest rank of a rule that matches.
    #[inline]
    pub(crate) fn first_match(&self, peer: &Party, key: PortKey) -> u32 {
        let everyone = if peer.is_pod() { Self::PODS } else { Self::OUTSIDE };
        let mut lowest = rank(&self.lines, everyone, key);
        let row = self.partition.row(peer.identity());
        if row != Partition::NOTHING {
            lowest = lowest.min(rank(&self.lines, Self::PODS + row, key));
        }
        // Beyond the last table if no range holds the address.
        lowest.min(rank(&self.lines, self.blocks.row(peer.address()), key))
    }

    /// The rule of a rank, if it is one.
    #[inline]
    pub(crate) fn rule(&self, rank: u32) -> Option<&RuleRef> {
        let rank = rank as usize;
        if rank + 1 < self.rules.len() { self.rules.get(rank) } else { None }
    }

    /// The denial of a pod that is isolated, named after the first policy that isolates it.
    #[inline]
    pub(crate) fn isolation(&self) -> Decision {
        let last = self.rules.last();
        let (policy, counter) = last.map_or_else(Default::default, |l| (l.policy, l.counter));
        Decision { allow: false, why: Why::Isolated, policy, rule: None, counter }
    }

    /// Octets on the heap, those of a partition counted for each stage that shares it.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.partition.heap_bytes()
            + self.blocks.heap_bytes()
            + size_of_val(&*self.lines)
            + size_of_val(&*self.rules)
            + 4 * size_of::<usize>()
    }
}
