//! An index from hash to entry number that grows without a pause: it doubles its size, and then
//! every insertion migrates a few buckets of the old size. No packet waits for a rehash.
//!
//! Used by the workers' flow tables and by the shards of the connection table. The index stores no
//! keys: callers compare them.

mod buckets;

pub(super) use buckets::{BUCKET_BYTES, Buckets};

use buckets::SLOTS;

/// Number of buckets that each insertion migrates during growth. Even with one bucket per
/// insertion, the migration would end long before the next growth.
const MIGRATE_PER_INSERT: usize = 4;

/// See the module's description.
pub(super) struct IncrementalIndex {
    current: Buckets,
    /// The smaller index during growth, with the next bucket to migrate.
    old: Option<(Buckets, usize)>,
    len: usize,
    /// The load at which the index grows, in eighths.
    max_load: usize,
}

impl IncrementalIndex {
    /// An empty index. It grows when more than `max_load` eighths of its slots are in use.
    pub(super) fn new(buckets: usize, max_load: usize) -> Self {
        Self { current: Buckets::new(buckets), old: None, len: 0, max_load }
    }

    /// The first entry with this hash that `is_same` accepts.
    #[inline]
    pub(super) fn get(&self, hash: u64, mut is_same: impl FnMut(u32) -> bool) -> Option<u32> {
        if let Some(entry) = self.current.get(hash, &mut is_same) {
            return Some(entry);
        }
        self.old.as_ref()?.0.get(hash, is_same)
    }

    /// Whether [`get`](Self::get) may find an entry. Rarely true if there is none.
    #[inline]
    pub(super) fn may_have(&self, hash: u64) -> bool {
        self.old.is_some() || self.current.may_have(hash)
    }

    /// The likely entry, by its tag in the home bucket. `None` if the entry is in another bucket.
    #[inline(always)]
    pub(super) fn candidate(&self, hash: u64) -> Option<u32> {
        self.current.candidate(hash)
    }

    /// Prefetches the home bucket of `hash`.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        self.current.prefetch(hash);
    }

    /// Where the buckets are in memory; see [`Buckets::location`].
    pub(super) fn location(&self) -> [usize; 2] {
        self.current.location()
    }

    /// Inserts an entry that is not in the index. `hash_of` returns the hash of other entries.
    /// Returns whether growth began, which moves the buckets in memory.
    #[inline]
    pub(super) fn insert(&mut self, hash: u64, entry: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        self.len += 1;
        let grows =
            self.old.is_none() && self.len * 8 > self.current.buckets() * SLOTS * self.max_load;
        if grows {
            self.grow();
        }
        self.current.insert(hash, entry);
        if self.old.is_some() {
            self.migrate_buckets(MIGRATE_PER_INSERT, hash_of);
        }
        grows
    }

    /// Removes an entry; false if it is not in the index.
    pub(super) fn remove(&mut self, hash: u64, entry: u32) -> bool {
        let removed = self.current.remove(hash, entry)
            || self.old.as_mut().is_some_and(|(old, _)| old.remove(hash, entry));
        self.len -= usize::from(removed);
        removed
    }

    /// Migrates up to `count` buckets during growth, so that growth ends without insertions too.
    #[inline]
    pub(super) fn migrate(&mut self, count: usize, hash_of: impl Fn(u32) -> u64) {
        if self.old.is_some() {
            self.migrate_buckets(count, hash_of);
        }
    }

    /// Whether entries are still to be migrated.
    pub(super) fn is_growing(&self) -> bool {
        self.old.is_some()
    }

    #[cold]
    fn grow(&mut self) {
        let twice = Buckets::new(self.current.buckets() * 2);
        self.old = Some((core::mem::replace(&mut self.current, twice), 0));
    }

    #[cold]
    fn migrate_buckets(&mut self, count: usize, hash_of: impl Fn(u32) -> u64) {
        let Some((old, next)) = &mut self.old else { return };
        for _ in 0..count {
            if *next == old.buckets() {
                self.old = None;
                return;
            }
            for entry in old.entries(*next) {
                let hash = hash_of(entry);
                old.remove(hash, entry);
                self.current.insert(hash, entry);
            }
            *next += 1;
        }
    }

    /// Entries.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether no growth is in progress and the buckets are as if no entry had ever been inserted.
    #[cfg(test)]
    pub(super) fn is_pristine(&self) -> bool {
        self.old.is_none() && self.current.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Several entries share a hash, and many share a bucket.
    fn hash(entry: u32) -> u64 {
        let spread = u64::from(entry / 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        if entry.is_multiple_of(5) { spread & !0xff } else { spread }
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(
            max_load in 5usize..7,
            ops in prop::collection::vec((0u8..5, 0u32..2000, 1u32..200), 1..80),
        ) {
            let (mut index, mut map) = (IncrementalIndex::new(4, max_load), HashMap::new());
            for (op, from, count) in ops {
                for entry in from..from + count {
                    if op < 2 {
                        let was = map.remove(&entry).is_some();
                        prop_assert_eq!(index.remove(hash(entry), entry), was);
                    } else if map.insert(entry, ()).is_none() {
                        index.insert(hash(entry), entry, hash);
                    }
                }
                prop_assert_eq!(index.len, map.len());
                for entry in 0..2200 {
                    let found = index.get(hash(entry), |e| e == entry);
                    prop_assert_eq!(found.is_some(), map.contains_key(&entry));
                    prop_assert!(found.is_none() || index.may_have(hash(entry)));
                }
            }
            let buckets = index.current.buckets() + index.old.as_ref().map_or(0, |(b, _)| b.buckets());
            let most = (index.len * 2).div_ceil(SLOTS).max(4096);
            prop_assert!(buckets <= most, "{} for {}", buckets, index.len);
        }
    }
}
