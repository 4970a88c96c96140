//! A persistent hash map: a copy shares everything, and a change copies the path to one leaf.
//!
//! A trie over the hash, 32 ways a level. The hash is seeded once a map, so that names cannot be chosen to collide.

use std::array;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::DefaultHashBuilder;

use crate::bytes::Bytes;

/// Bits of the hash that one level takes.
const BITS: u32 = 5;
const WAYS: usize = 1 << BITS;
/// Items of a leaf before it becomes a branch: so many that 10,000 items have two levels above their leaves.
const LEAF: usize = 16;

/// See the module's description.
#[derive(Clone, Debug)]
pub(crate) struct Map<V> {
    root: Node<V>,
    hasher: DefaultHashBuilder,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<V> {
    Leaf(Arc<[Item<V>]>),
    Branch(Arc<[Node<V>; WAYS]>),
}

#[derive(Clone, Debug)]
struct Item<V> {
    hash: u64,
    key: Bytes,
    value: V,
}

impl<V> Default for Map<V> {
    fn default() -> Self {
        Self { root: Node::empty(), hasher: DefaultHashBuilder::default(), len: 0 }
    }
}

impl<V> Node<V> {
    fn empty() -> Self {
        Self::Leaf(Arc::new([]))
    }
}

/// Which way the hash goes at the level that starts at bit `shift`.
fn way(hash: u64, shift: u32) -> usize {
    (hash >> shift) as usize & (WAYS - 1)
}

impl<V: Clone> Map<V> {
    /// Number of items.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        let (mut node, mut shift) = (&self.root, 0);
        loop {
            match node {
                Node::Branch(ways) => {
                    node = &ways[way(hash, shift)];
                    shift += BITS;
                }
                Node::Leaf(items) => {
                    let item = items.iter().find(|item| item.hash == hash && *item.key == *key)?;
                    return Some(&item.value);
                }
            }
        }
    }

    /// Sets or removes a value and returns the former one.
    pub(crate) fn set(&mut self, key: &[u8], value: Option<V>) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let is_there = value.is_some();
        let former = set(&mut self.root, 0, hash, key, value);
        self.len = self.len + usize::from(is_there) - usize::from(former.is_some());
        former
    }
}

fn set<V: Clone>(
    node: &mut Node<V>,
    shift: u32,
    hash: u64,
    key: &[u8],
    value: Option<V>,
) -> Option<V> {
    let items = match node {
        Node::Branch(ways) => {
            let way = &mut Arc::make_mut(ways)[way(hash, shift)];
            return set(way, shift + BITS, hash, key, value);
        }
        Node::Leaf(items) => items,
    };
    let at = items.iter().position(|item| item.hash == hash && *item.key == *key);
    match (at, value) {
        (None, None) => None,
        (Some(at), None) => {
            let former = items[at].value.clone();
            let others = items.iter().enumerate().filter(|(other, _)| *other != at);
            *items = others.map(|(_, item)| item.clone()).collect();
            Some(former)
        }
        (Some(at), Some(value)) => {
            Some(std::mem::replace(&mut Arc::make_mut(items)[at].value, value))
        }
        (None, Some(value)) => {
            let new = Item { hash, key: key.into(), value };
            let all = items.iter().cloned().chain([new]);
            // Beyond the last bit only equal hashes are left: these stay in one leaf.
            if items.len() < LEAF || shift + BITS > u64::BITS {
                *items = all.collect();
            } else {
                let mut parts: [Vec<Item<V>>; WAYS] = array::from_fn(|_| Vec::new());
                all.for_each(|item| parts[way(item.hash, shift)].push(item));
                *node = Node::Branch(Arc::new(parts.map(|part| Node::Leaf(part.into()))));
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_copy_keeps_what_it_was() {
        let mut map = Map::default();
        let keys: Vec<_> = (0..5_000_u32).map(u32::to_be_bytes).collect();
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(map.set(key, Some(n)), None);
        }
        let before = map.clone();
        for (n, key) in keys.iter().enumerate().filter(|(n, _)| n % 3 != 0) {
            let value = (n % 3 == 1).then_some(n + 1);
            assert_eq!(map.set(key, value), Some(n));
        }
        assert_eq!((before.len(), map.len()), (5_000, 5_000 - 1_666));
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(before.get(key), Some(&n));
            let now = [Some(n), Some(n + 1), None][n % 3];
            assert_eq!(map.get(key).copied(), now);
        }
        assert_eq!(map.set(b"never there", None), None);
    }

    /// As many items as one leaf cannot hold, all with one hash: they are found all the same.
    #[test]
    fn equal_hashes() {
        let mut node = Node::empty();
        let mut expected = HashMap::new();
        for n in 0..40_u8 {
            set(&mut node, 0, 7, &[n], Some(n));
            expected.insert(n, n);
        }
        for (n, value) in expected {
            assert_eq!(set(&mut node, 0, 7, &[n], None), Some(value));
        }
    }
}
