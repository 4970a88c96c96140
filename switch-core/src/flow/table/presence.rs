//! The groups of addresses on which the entries of the table depend. After a change of other
//! groups, no entry needs to be checked. A group is added with an entry; groups without entries are
//! dropped after each round of the sweep.

use crate::invalidation::{Group, Groups};

type Set = Box<[u64; Group::COUNT / 64]>;

pub(super) struct Presence {
    /// Every group on which some entry depends, and maybe some groups without entries.
    current: Set,
    /// The groups of the entries that were inserted, or visited by the sweep, since its round
    /// began. At the end of the round these are the groups of all entries, and they replace
    /// `current`.
    next: Set,
}

fn add(set: &mut Set, Groups(groups): &Groups) {
    let [a, b, c, d] = *groups;
    // Without translation there are two groups, each twice.
    let distinct = if [a, b] == [c, d] { &groups[..2] } else { groups };
    for group in distinct {
        set[group.index() / 64] |= 1 << (group.index() % 64);
    }
}

impl Presence {
    pub(super) fn new() -> Self {
        let empty = || Box::new([0; Group::COUNT / 64]);
        Self { current: empty(), next: empty() }
    }

    /// Adds the groups of an entry that is written.
    #[inline]
    pub(super) fn add(&mut self, groups: &Groups) {
        add(&mut self.current, groups);
        add(&mut self.next, groups);
    }

    /// Adds the groups of an entry that the sweep visits and keeps.
    pub(super) fn visited(&mut self, groups: &Groups) {
        add(&mut self.next, groups);
    }

    /// Ends a round of the sweep.
    pub(super) fn end_round(&mut self) {
        core::mem::swap(&mut self.current, &mut self.next);
        self.next.fill(0);
    }

    pub(super) fn has(&self, group: Group) -> bool {
        self.current[group.index() / 64] & 1 << (group.index() % 64) != 0
    }
}
