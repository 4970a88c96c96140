//! An index that grows without a pause: it doubles, and each insertion moves a few buckets of what it
//! was before.

use super::table::index::{Index, SLOTS};

/// Buckets that each insertion moves while the index grows. Growth begins at 5/8 load of the old
/// index, doubling; moving at least 1 bucket (5 entries) an insertion ends long before the next.
const MOVE_PER_INSERT: usize = 4;
/// Buckets at first.
const SMALLEST: usize = 4;

/// Entries by hash. Whoever asks compares keys.
pub(super) struct Growing {
    index: Index,
    /// The index before it grew, with the next bucket to move.
    old: Option<(Index, usize)>,
    len: usize,
}

impl Default for Growing {
    fn default() -> Self {
        Self { index: Index::new(SMALLEST), old: None, len: 0 }
    }
}

impl Growing {
    /// The first entry of this hash that `same` accepts.
    #[inline]
    pub(super) fn get(&self, hash: u64, mut same: impl FnMut(u32) -> bool) -> Option<u32> {
        if let Some(entry) = self.index.get(hash, &mut same) {
            return Some(entry);
        }
        self.old.as_ref()?.0.get(hash, same)
    }

    /// Whether [`get`](Self::get) may find anything: whether the tag of this hash is in its bucket.
    #[inline]
    pub(super) fn may_have(&self, hash: u64) -> bool {
        self.old.is_some() || self.index.may_have(hash)
    }

    /// Where its buckets are; see [`Index::whereabouts`].
    pub(super) fn whereabouts(&self) -> [usize; 2] {
        self.index.whereabouts()
    }

    /// Puts an entry in that is not there. `hash_of` says where others belong. True: the buckets are
    /// others now.
    pub(super) fn insert(&mut self, hash: u64, entry: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        self.len += 1;
        let mut grown = false;
        if self.old.is_none() && self.len * 8 > self.index.buckets() * SLOTS * 5 {
            let twice = Index::new(self.index.buckets() * 2);
            self.old = Some((core::mem::replace(&mut self.index, twice), 0));
            grown = true;
        }
        self.index.insert(hash, entry);
        if self.old.is_some() {
            self.migrate(hash_of);
        }
        grown
    }

    /// Takes an entry out; false if it is not there.
    pub(super) fn remove(&mut self, hash: u64, entry: u32) -> bool {
        let removed = self.index.remove(hash, entry)
            || self.old.as_mut().is_some_and(|(old, _)| old.remove(hash, entry));
        self.len -= usize::from(removed);
        removed
    }

    #[cold]
    fn migrate(&mut self, hash_of: impl Fn(u32) -> u64) {
        let Some((old, next)) = &mut self.old else { return };
        for _ in 0..MOVE_PER_INSERT {
            if *next == old.buckets() {
                self.old = None;
                return;
            }
            for entry in old.numbers(*next) {
                let hash = hash_of(entry);
                old.remove(hash, entry);
                self.index.insert(hash, entry);
            }
            *next += 1;
        }
    }

    /// Entries.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Buckets, for what is said of memory.
    #[cfg(test)]
    pub(super) fn buckets(&self) -> usize {
        self.index.buckets() + self.old.as_ref().map_or(0, |(old, _)| old.buckets())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Many entries of one hash, and many of one bucket.
    fn hash(entry: u32) -> u64 {
        let spread = u64::from(entry / 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if entry.is_multiple_of(5) { spread & !0xff } else { spread }
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(
            ops in prop::collection::vec((0u8..5, 0u32..2000, 1u32..200), 1..80),
        ) {
            let (mut growing, mut plain) = (Growing::default(), HashMap::new());
            for (op, from, count) in ops {
                for entry in from..from + count {
                    if op < 2 {
                        let was = plain.remove(&entry).is_some();
                        prop_assert_eq!(growing.remove(hash(entry), entry), was);
                    } else if plain.insert(entry, ()).is_none() {
                        growing.insert(hash(entry), entry, hash);
                    }
                }
                prop_assert_eq!(growing.len, plain.len());
                for entry in 0..2200 {
                    let found = growing.get(hash(entry), |e| e == entry);
                    prop_assert_eq!(found.is_some(), plain.contains_key(&entry));
                }
            }
            let buckets = (growing.len * 2).div_ceil(SLOTS).max(4096);
            prop_assert!(growing.buckets() <= buckets, "{} for {}", growing.buckets(), growing.len);
        }
    }
}
