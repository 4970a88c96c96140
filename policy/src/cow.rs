//! Copy-on-write maps and vectors: copies share the unchanged parts.
//!
//! The control plane keeps one of each, changes it, and gives a clone to every snapshot. A clone is
//! one reference count. The first change after it copies the list of parts and the affected part,
//! nothing else. Workers only read. Nothing here locks, waits or reads a clock.

use core::borrow::Borrow;
use core::fmt;
use core::hash::{BuildHasher, Hash};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Average number of entries in a shard before another shard is added. Measured at 150,000 entries:
/// copying the list of shards then costs about as much as copying one shard.
const SHARD_TARGET: usize = 256;

type Shard<K, V> = Arc<HashTable<(K, V)>>;

/// A hash map in shards, each behind its own `Arc`.
///
/// Grows by linear hashing (W. Litwin, 1980): one shard at a time is split, so no insertion
/// rehashes the whole map. Shards are not merged when entries are removed.
pub struct CowMap<K, V> {
    shards: Arc<[Shard<K, V>]>,
    /// Smallest power of two not below the number of shards, less one.
    mask: usize,
    len: usize,
    hasher: DefaultHashBuilder,
}

impl<K, V> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            shards: Arc::clone(&self.shards),
            mask: self.mask,
            len: self.len,
            hasher: self.hasher.clone(),
        }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self {
            shards: Arc::new([Arc::new(HashTable::new())]),
            mask: 0,
            len: 0,
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl<K, V> CowMap<K, V> {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter().map(|(k, v)| (k, v)))
    }

    /// Bytes of the map itself on the heap, without what its entries own.
    pub fn heap_bytes(&self) -> usize {
        let tables: usize =
            self.shards.iter().map(|s| s.allocation_size() + size_of::<HashTable<(K, V)>>()).sum();
        tables + self.shards.len() * (size_of::<usize>() * 3)
    }

    /// Shards that this map and `other` share, and the number of this one's shards.
    #[cfg(test)]
    fn shared_with(&self, other: &Self) -> (usize, usize) {
        let same = self.shards.iter().zip(other.shards.iter()).filter(|(a, b)| Arc::ptr_eq(a, b));
        (same.count(), self.shards.len())
    }

    /// The shard of a hash. The hash table inside uses the low and the topmost bits, so this uses
    /// those in between.
    #[inline]
    fn shard_of(&self, hash: u64) -> usize {
        shard_index(hash, self.mask, self.shards.len())
    }
}

#[inline]
fn shard_index(hash: u64, mask: usize, shards: usize) -> usize {
    let index = (hash >> 32) as usize & mask;
    if index < shards { index } else { index & (mask >> 1) }
}

impl<K: Hash + Eq, V> CowMap<K, V> {
    /// The value of `key`.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let shard = &self.shards[self.shard_of(hash)];
        shard.find(hash, |(k, _)| k.borrow() == key).map(|(_, v)| v)
    }

    /// Whether `key` has a value.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(key).is_some()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> CowMap<K, V> {
    /// Sets the value of `key` and returns the previous one.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = self.hasher.hash_one(&key);
        let hasher = self.hasher.clone();
        let shard = self.shard_mut(hash);
        if let Some((_, old)) = shard.find_mut(hash, |(k, _)| *k == key) {
            return Some(core::mem::replace(old, value));
        }
        shard.insert_unique(hash, (key, value), |(k, _)| hasher.hash_one(k));
        self.len += 1;
        if self.len > self.shards.len() * SHARD_TARGET {
            self.split();
        }
        None
    }

    /// Removes `key` and returns its value.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        // Checked first, so that removing an absent key copies nothing.
        if !self.contains_key(key) {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        let entry = self.shard_mut(hash).find_entry(hash, |(k, _)| k.borrow() == key).ok()?;
        let ((_, value), _) = entry.remove();
        self.len -= 1;
        Some(value)
    }

    /// The value of `key`, mutable. Copies its shard if a clone shares it.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if !self.contains_key(key) {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        self.shard_mut(hash).find_mut(hash, |(k, _)| k.borrow() == key).map(|(_, v)| v)
    }

    fn shard_mut(&mut self, hash: u64) -> &mut HashTable<(K, V)> {
        let index = self.shard_of(hash);
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[index])
    }

    /// Adds one shard, and moves to it the entries that now belong there, from the shard that it
    /// splits.
    fn split(&mut self) {
        let opened = self.shards.len();
        self.mask = (opened + 1).next_power_of_two() - 1;
        let parent = opened & (self.mask >> 1);
        let (mask, hasher) = (self.mask, self.hasher.clone());
        let goes = |key: &K| shard_index(hasher.hash_one(key), mask, opened + 1) == opened;
        let (mut stays, mut moves) = (HashTable::new(), HashTable::new());
        for entry in self.shards[parent].iter() {
            let to = if goes(&entry.0) { &mut moves } else { &mut stays };
            to.insert_unique(hasher.hash_one(&entry.0), entry.clone(), |(k, _)| hasher.hash_one(k));
        }
        let mut shards: Vec<_> = self.shards.iter().cloned().collect();
        shards[parent] = Arc::new(stays);
        shards.push(Arc::new(moves));
        self.shards = shards.into();
    }
}

impl<K: Hash + Eq + Clone, V: Clone> FromIterator<(K, V)> for CowMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Extend<(K, V)> for CowMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for CowMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// A growing vector in chunks of `CHUNK` elements, each behind its own `Arc`. Indexed by ids from a
/// slab.
pub struct CowVec<T, const CHUNK: usize = 32> {
    chunks: Arc<[Arc<[T; CHUNK]>]>,
}

impl<T, const CHUNK: usize> Clone for CowVec<T, CHUNK> {
    fn clone(&self) -> Self {
        Self { chunks: Arc::clone(&self.chunks) }
    }
}

impl<T, const CHUNK: usize> Default for CowVec<T, CHUNK> {
    fn default() -> Self {
        Self { chunks: Arc::new([]) }
    }
}

impl<T, const CHUNK: usize> CowVec<T, CHUNK> {
    /// The element at `index`, if the vector is that long.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&T> {
        let index = index as usize;
        self.chunks.get(index / CHUNK).map(|chunk| &chunk[index % CHUNK])
    }

    /// All elements, including unset ones.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Bytes of the vector itself on the heap, without what its elements own.
    pub fn heap_bytes(&self) -> usize {
        self.chunks.len() * (size_of::<usize>() * 3 + size_of::<[T; CHUNK]>())
    }
}

impl<T: Clone + Default, const CHUNK: usize> CowVec<T, CHUNK> {
    /// Sets the element at `index`. The vector grows with default elements as needed, by half its
    /// length, so that filling it one by one costs linear time.
    pub fn set(&mut self, index: u32, value: T) {
        let (chunk, at) = (index as usize / CHUNK, index as usize % CHUNK);
        if chunk >= self.chunks.len() {
            let len = (chunk + 1).max(self.chunks.len() * 3 / 2);
            let empty = Arc::new(core::array::from_fn(|_| T::default()));
            let kept = self.chunks.iter().cloned();
            self.chunks = kept.chain(core::iter::repeat(empty)).take(len).collect();
        }
        Arc::make_mut(&mut Arc::make_mut(&mut self.chunks)[chunk])[at] = value;
    }
}

impl<T: fmt::Debug, const CHUNK: usize> fmt::Debug for CowVec<T, CHUNK> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_change_copies_one_shard() {
        let map: CowMap<u32, u32> = (0..150_000).map(|k| (k, k)).collect();
        let mut changed = map.clone();
        assert_eq!(changed.shared_with(&map).0, map.shards.len());
        changed.insert(77, 1);
        let (same, all) = changed.shared_with(&map);
        assert_eq!(same + 1, all);
        assert_eq!((map.get(&77), changed.get(&77)), (Some(&77), Some(&1)));
        assert!(all > 400, "{all} shards");
    }

    #[test]
    fn shards_stay_even() {
        let map: CowMap<u32, ()> = (0..100_000).map(|k| (k, ())).collect();
        let largest = map.shards.iter().map(|s| s.len()).max();
        assert!(largest < Some(SHARD_TARGET * 4), "{largest:?}");
        assert_eq!(map.iter().count(), 100_000);
    }

    #[test]
    fn removing_an_absent_key_copies_nothing() {
        let map: CowMap<u32, u32> = (0..1000).map(|k| (k, k)).collect();
        let mut other = map.clone();
        assert_eq!(other.remove(&5000), None);
        assert!(Arc::ptr_eq(&map.shards, &other.shards));
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_map(ops in prop::collection::vec((0u8..4, 0u16..900, 0u32..9), 0..2500)) {
            let mut plain: HashMap<u16, u32> = HashMap::new();
            let mut cow: CowMap<u16, u32> = CowMap::new();
            let mut kept = (plain.clone(), cow.clone());
            for (i, (op, key, value)) in ops.into_iter().enumerate() {
                match op {
                    0 => prop_assert_eq!(plain.remove(&key), cow.remove(&key)),
                    1 => {
                        if let Some(v) = cow.get_mut(&key) { *v += 1 }
                        if let Some(v) = plain.get_mut(&key) { *v += 1 }
                    }
                    _ => prop_assert_eq!(plain.insert(key, value), cow.insert(key, value)),
                }
                prop_assert_eq!(plain.len(), cow.len());
                if i % 500 == 250 {
                    kept = (plain.clone(), cow.clone());
                }
            }
            for (plain, cow) in [(plain, cow), kept] {
                let seen: HashMap<u16, u32> = cow.iter().map(|(k, v)| (*k, *v)).collect();
                prop_assert_eq!(&seen, &plain);
                prop_assert!(plain.iter().all(|(k, v)| cow.get(k) == Some(v)));
            }
        }
    }

    #[test]
    fn vector_shares_chunks() {
        let mut a: CowVec<u64> = CowVec::default();
        (0..1000).for_each(|i| a.set(i, u64::from(i)));
        let mut b = a.clone();
        b.set(40, 1);
        assert_eq!((a.get(40), b.get(40)), (Some(&40), Some(&1)));
        let same = a.chunks.iter().zip(b.chunks.iter()).filter(|(x, y)| Arc::ptr_eq(x, y)).count();
        assert_eq!(same + 1, a.chunks.len());
        assert_eq!(a.get(1_000_000), None);
    }
}
