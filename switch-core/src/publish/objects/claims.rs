//! Who claims what: an index from what objects of one kind claim to the objects that claim it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::hash::Hash;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::config::Precedence;

/// An object's place among those that claim the same: the smallest goes first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rank<K> {
    precedence: Reverse<Precedence>,
    pub(super) key: K,
}

impl<K> Rank<K> {
    pub(super) fn new(precedence: Precedence, key: K) -> Self {
        Self { precedence: Reverse(precedence), key }
    }
}

#[derive(Debug)]
enum Claimants<K> {
    One(Rank<K>),
    Several(Box<BTreeSet<Rank<K>>>),
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Claims<C, K>(HashMap<C, Claimants<K>>);

impl<C, K> Default for Claims<C, K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<C: Eq + Hash, K: Clone + Ord> Claims<C, K> {
    pub(super) fn add(&mut self, claim: C, rank: Rank<K>) {
        match self.0.entry(claim) {
            Entry::Vacant(entry) => drop(entry.insert(Claimants::One(rank))),
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Claimants::Several(set) => drop(set.insert(rank)),
                Claimants::One(one) if *one == rank => {}
                Claimants::One(one) => {
                    let set = Box::new(BTreeSet::from([one.clone(), rank]));
                    entry.insert(Claimants::Several(set));
                }
            },
        }
    }

    pub(super) fn remove(&mut self, claim: C, rank: &Rank<K>) {
        let Entry::Occupied(mut entry) = self.0.entry(claim) else { return };
        match entry.get_mut() {
            Claimants::One(one) if one == rank => drop(entry.remove()),
            Claimants::One(_) => {}
            Claimants::Several(set) => {
                set.remove(rank);
                if let (1, Some(last)) = (set.len(), set.first().cloned()) {
                    entry.insert(Claimants::One(last));
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether several objects lay this claim.
    pub(super) fn is_contested(&self, claim: &C) -> bool {
        matches!(self.0.get(claim), Some(Claimants::Several(_)))
    }

    /// All that lay this claim, in their order.
    pub(super) fn of(&self, claim: &C) -> impl Iterator<Item = &Rank<K>> {
        let (one, several) = match self.0.get(claim) {
            None => (None, None),
            Some(Claimants::One(one)) => (Some(one), None),
            Some(Claimants::Several(set)) => (None, Some(set.iter())),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }
}
