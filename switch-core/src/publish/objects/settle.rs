//! Decides which objects are in force.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::mem::take;

use hashbrown::{HashMap, HashSet};

use super::claims::{Claims, Rank};
use super::kind::{Before, Kind, Verdict};
use super::object::{Claim, Object};
use crate::publish::fault::Faults;
use crate::publish::settings::Settings;

/// Which objects are evaluated in addition to the staged ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Again {
    /// No others.
    No,
    /// All, because the state against which they are validated has changed.
    Check,
    /// All, and their claims may have changed too.
    Claims,
}

/// Settling: a desired object is in force if it is valid and no object of higher rank in force has
/// one of its claims. So the outcome depends only on the desired state, not on the order of
/// changes, except for the last valid version of a policy, see [`Object::fallback`].
impl<O: Object> Kind<O> {
    /// Applies the staged changes, and evaluates all affected objects.
    pub(crate) fn settle(&mut self, settings: &Settings, context: O::Context<'_>, again: Again) {
        self.reclaimed = again == Again::Claims;
        let mut queue = Queue::default();
        for (key, object) in take(&mut self.staged) {
            self.put(key, object, settings, &mut queue);
        }
        queue.alone.append(&mut self.again);
        if self.reclaimed {
            self.reclaim(settings);
        }
        if again != Again::No {
            let known = self.objects.keys().filter(|key| !queue.fresh.contains(*key));
            queue.alone.extend(known.cloned());
        }
        // An object whose claims nobody else makes does not affect others.
        for key in take(&mut queue.alone) {
            match self.is_contested(&key, settings) {
                true => queue.push(&self.objects, &key),
                false => drop(self.evaluate(&key, settings, context)),
            }
        }
        while let Some(rank) = queue.waiting.pop_first() {
            let was_taken = self.is_taken(&rank.key) && !queue.fresh.remove(&rank.key);
            let is_taken = self.evaluate(&rank.key, settings, context);
            if was_taken != is_taken {
                let later = |other: &&Rank<O::Key>| **other > rank;
                self.rivals(&rank.key, settings, |claims, claim| {
                    queue.waiting.extend(claims.rivals(claim).filter(later).cloned());
                });
            }
        }
    }

    /// Replaces the object of a key.
    fn put(
        &mut self,
        key: O::Key,
        object: Option<O>,
        settings: &Settings,
        queue: &mut Queue<O::Key>,
    ) {
        if let (Some(known), Some(object)) = (self.objects.get_mut(&key), &object)
            && known.is_same(object)
        {
            // The new one, so that the old one can be freed.
            *known = object.clone();
            return;
        }
        if object.is_none() && !self.objects.contains_key(&key) {
            return;
        }
        self.remember(&key);
        let was_taken = self.is_taken(&key);
        if let Some(old) = self.objects.get(&key) {
            queue.waiting.remove(&Rank::new(old.precedence(), key.clone()));
            queue.fresh.remove(&key);
            if !self.reclaimed {
                self.unclaim(&key, settings, |claims, claim| {
                    let others = claims.rivals(claim).filter(|other| other.key != key);
                    if was_taken {
                        queue.waiting.extend(others.cloned());
                    }
                });
            }
            self.objects.remove(&key);
            self.verdicts.remove(&key);
        }
        if let Some(object) = object {
            self.objects.insert(key.clone(), object);
            if !self.reclaimed {
                self.claim(&key, settings);
            }
            queue.fresh.insert(key.clone());
            queue.alone.push(key);
        }
    }

    /// Enters all claims of an object.
    pub(super) fn claim(&mut self, key: &O::Key, settings: &Settings) {
        let (objects, claims) = (&self.objects, &mut self.claims);
        let rank = |key: &O::Key| Rank::new(objects[key].precedence(), key.clone());
        let by = rank(key);
        objects[key].claims(settings, &mut |claim| claims.add(claim, &by, rank));
    }

    /// Removes all claims of an object, and calls `each` for them first.
    pub(super) fn unclaim(
        &mut self,
        key: &O::Key,
        settings: &Settings,
        mut each: impl FnMut(&Claims<O::Claim, O::Key>, &O::Claim),
    ) {
        let Some(object) = self.objects.get(key) else { return };
        let by = Rank::new(object.precedence(), key.clone());
        let claims = &mut self.claims;
        object.claims(settings, &mut |claim| {
            each(claims, &claim);
            claims.remove(claim, &by);
        });
    }

    /// Rebuilds all claims.
    pub(super) fn reclaim(&mut self, settings: &Settings) {
        self.claims.clear();
        let (objects, claims) = (&self.objects, &mut self.claims);
        let rank = |key: &O::Key| Rank::new(objects[key].precedence(), key.clone());
        for (key, object) in objects {
            let by = rank(key);
            object.claims(settings, &mut |claim| claims.add(claim, &by, rank));
        }
    }

    /// Calls `each` with all exclusive claims of an object.
    fn rivals(
        &self,
        key: &O::Key,
        settings: &Settings,
        mut each: impl FnMut(&Claims<O::Claim, O::Key>, &O::Claim),
    ) {
        let Some(object) = self.objects.get(key) else { return };
        object.claims(settings, &mut |claim| {
            if claim.is_exclusive() {
                each(&self.claims, &claim);
            }
        });
    }

    fn is_contested(&self, key: &O::Key, settings: &Settings) -> bool {
        let mut found = false;
        self.rivals(key, settings, |claims, claim| found |= claims.is_contested(claim));
        found
    }

    /// Whether the object of a key is in force. All of higher rank have been evaluated.
    fn evaluate(&mut self, key: &O::Key, settings: &Settings, context: O::Context<'_>) -> bool {
        let Some(object) = self.objects.get(key) else { return false };
        let mut faults = Faults::default();
        object.check(context, &mut faults);
        let rank = Rank::new(object.precedence(), key.clone());
        self.rivals(key, settings, |claims, claim| {
            let mut before = claims.rivals(claim).take_while(|other| **other < rank);
            let holder = before.find(|other| self.is_taken(&other.key));
            if let Some(holder) = holder.and_then(|holder| self.objects.get(&holder.key)) {
                let (field, what) = object.describe(claim);
                faults.conflict(field, &what, &holder.cookie());
            }
        });
        let known = self.verdicts.get(key);
        if known.map_or(&[][..], |known| &known.faults.0) == faults.0 {
            return faults.0.is_empty();
        }
        self.remember(key);
        if faults.0.is_empty() {
            self.verdicts.remove(key);
            return true;
        }
        let last = self.journaled.get(key).and_then(|at| self.journal[*at].1.last_version());
        let fallback = self.objects[key].fallback(last);
        self.verdicts.insert(key.clone(), Box::new(Verdict { faults, fallback }));
        false
    }

    /// Records an object before it changes.
    fn remember(&mut self, key: &O::Key) {
        if self.journaled.contains_key(key) {
            return;
        }
        self.journaled.insert(key.clone(), self.journal.len());
        let object = self.objects.get(key).cloned();
        let before = Before { object, verdict: self.verdicts.get(key).cloned() };
        self.journal.push((key.clone(), before));
    }
}

/// Objects waiting for evaluation.
struct Queue<K> {
    /// By rank.
    waiting: BTreeSet<Rank<K>>,
    /// Unordered: it is not known yet whether others have the same claims.
    alone: Vec<K>,
    /// New and not evaluated yet.
    fresh: HashSet<K>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { waiting: BTreeSet::new(), alone: Vec::new(), fresh: HashSet::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    fn push<O: Object<Key = K>>(&mut self, objects: &HashMap<K, O>, key: &K) {
        if let Some(object) = objects.get(key) {
            self.waiting.insert(Rank::new(object.precedence(), key.clone()));
        }
    }
}
