//! Dense numbers for objects: never 0, reused after removal.

use core::ops::{Index, IndexMut};

/// Objects by number.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        // 0 is not a valid number.
        Self { items: vec![None], free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, item: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self.items[id as usize] = Some(item);
            return id;
        }
        self.items.push(Some(item));
        (self.items.len() - 1) as u32
    }

    /// Removes an object. Its number may be reused at once.
    pub(super) fn remove(&mut self, id: u32) -> Option<T> {
        let item = self.items.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(item)
    }

    /// Removes an object and keeps its number from reuse until [`Self::release`].
    pub(super) fn vacate(&mut self, id: u32) -> Option<T> {
        self.items.get_mut(id as usize)?.take()
    }

    /// Allows reuse of a vacated number.
    pub(super) fn release(&mut self, id: u32) {
        self.free.push(id);
    }

    pub(super) fn get(&self, id: u32) -> Option<&T> {
        self.items.get(id as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.items.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.items.iter().zip(0..).filter_map(|(item, id)| Some((id, item.as_ref()?)))
    }

    pub(super) fn len(&self) -> usize {
        self.items.len() - 1 - self.free.len()
    }
}

/// For numbers known to be in use: any other is a bug in the compiler.
impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, id: u32) -> &T {
        self.get(id).expect("a number in use")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        self.get_mut(id).expect("a number in use")
    }
}

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BitSet {
    words: Vec<u64>,
}

impl BitSet {
    pub(super) fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// Adds or removes a number, and returns whether that changed anything.
    pub(super) fn set(&mut self, id: u32, member: bool) -> bool {
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        if self.contains(id) == member {
            return false;
        }
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] ^= bit;
        true
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().zip(0u32..).flat_map(|(word, index)| {
            let next = |word: &u64| Some(word & (word - 1)).filter(|w| *w != 0);
            core::iter::successors(Some(*word).filter(|w| *w != 0), next)
                .map(move |word| index * 64 + word.trailing_zeros())
        })
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_reused_and_never_zero() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!((a, b), (1, 2));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert("c"), 1);
        assert_eq!(slab.vacate(2), Some("b"));
        assert_eq!(slab.insert("d"), 3);
        slab.release(2);
        assert_eq!(slab.insert("e"), 2);
        assert_eq!(slab.iter().map(|(id, _)| id).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(slab.len(), 3);
    }

    #[test]
    fn bits() {
        let mut set = BitSet::default();
        let ids = [0, 1, 63, 64, 200];
        for id in ids {
            assert!(set.set(id, true));
            assert!(!set.set(id, true));
        }
        assert!(!set.set(9999, false));
        assert_eq!(set.iter().collect::<Vec<_>>(), ids);
        assert!(set.set(64, false));
        assert!(!set.contains(64) && set.contains(63));
    }
}
