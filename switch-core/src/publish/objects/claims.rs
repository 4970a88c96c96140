//! An index of claims: maps each claim to the objects of one kind that make it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::hash::Hash;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use crate::config::Precedence;

/// An object's rank among those with the same claim: the smallest wins.
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

/// Nearly every claim has one claimant, so this is kept small.
#[derive(Debug)]
enum Claimants<K> {
    One(K),
    Several(BTreeSet<Rank<K>>),
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
    /// Adds a claim. `rank` returns the rank of the claimant that it has already.
    pub(super) fn add(&mut self, claim: C, by: &Rank<K>, rank: impl FnOnce(&K) -> Rank<K>) {
        match self.0.entry(claim) {
            Entry::Vacant(entry) => drop(entry.insert(Claimants::One(by.key.clone()))),
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Claimants::Several(set) => drop(set.insert(by.clone())),
                Claimants::One(one) if *one == by.key => {}
                Claimants::One(one) => {
                    let set = BTreeSet::from([rank(one), by.clone()]);
                    entry.insert(Claimants::Several(set));
                }
            },
        }
    }

    pub(super) fn remove(&mut self, claim: C, by: &Rank<K>) {
        let Entry::Occupied(mut entry) = self.0.entry(claim) else { return };
        match entry.get_mut() {
            Claimants::One(one) if *one == by.key => drop(entry.remove()),
            Claimants::One(_) => {}
            Claimants::Several(set) => {
                set.remove(by);
                if let (1, Some(last)) = (set.len(), set.first()) {
                    let last = last.key.clone();
                    entry.insert(Claimants::One(last));
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether several objects have this claim.
    pub(super) fn is_contested(&self, claim: &C) -> bool {
        matches!(self.0.get(claim), Some(Claimants::Several(_)))
    }

    /// All claimants by rank, if there are several.
    pub(super) fn rivals(&self, claim: &C) -> impl Iterator<Item = &Rank<K>> {
        let several = match self.0.get(claim) {
            Some(Claimants::Several(set)) => Some(set),
            _ => None,
        };
        several.into_iter().flatten()
    }

    /// Keys of all claimants by rank.
    pub(super) fn of(&self, claim: &C) -> impl Iterator<Item = &K> {
        let one = match self.0.get(claim) {
            Some(Claimants::One(one)) => Some(one),
            _ => None,
        };
        one.into_iter().chain(self.rivals(claim).map(|rank| &rank.key))
    }
}
