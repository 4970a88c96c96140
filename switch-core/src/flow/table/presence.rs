//! Which groups of addresses the table's flows depend on: what no flow depends on may change without
//! any being looked at. Groups are entered with flows, and those that no flow is left in are
//! forgotten when the sweep has gone round.

use crate::invalidation::{Group, Groups};

type Set = Box<[u64; Group::COUNT / 64]>;

pub(super) struct Presence {
    /// Every group that some entry depends on, and some that none does any more.
    now: Set,
    /// What will take its place: the groups of what was entered or seen since the sweep began its
    /// round, which at its end are those of every entry.
    next: Set,
}

fn add(set: &mut Set, Groups(groups): &Groups) {
    let [a, b, c, d] = *groups;
    // What is not translated has two twice.
    let different = if [a, b] == [c, d] { &groups[..2] } else { groups };
    for group in different {
        set[group.index() / 64] |= 1 << (group.index() % 64);
    }
}

impl Presence {
    pub(super) fn new() -> Self {
        let none = || Box::new([0; Group::COUNT / 64]);
        Self { now: none(), next: none() }
    }

    /// An entry came, or depends on other groups than before.
    #[inline]
    pub(super) fn enter(&mut self, groups: &Groups) {
        add(&mut self.now, groups);
        add(&mut self.next, groups);
    }

    /// The sweep came by an entry.
    pub(super) fn stay(&mut self, groups: &Groups) {
        add(&mut self.next, groups);
    }

    /// The sweep has been everywhere, and begins again.
    pub(super) fn turn_over(&mut self) {
        core::mem::swap(&mut self.now, &mut self.next);
        self.next.fill(0);
    }

    pub(super) fn has(&self, group: Group) -> bool {
        self.now[group.index() / 64] & 1 << (group.index() % 64) != 0
    }
}
