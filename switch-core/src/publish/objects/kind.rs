//! One kind of object: the desired objects, those in force, and the outcome of a publish.

use std::mem::take;

use hashbrown::HashMap;

use super::claims::Claims;
use super::difference::{Changed, Difference};
use super::list::{List, Staged};
use super::object::Object;
use crate::id::Cookie;
use crate::publish::fault::Faults;
use crate::publish::left_out::{Effect, LeftOut};
use crate::publish::settings::Settings;

/// For an object that is left out: the reason, and what is in force instead.
#[derive(Clone, Debug)]
pub(super) struct Verdict<O> {
    pub(super) faults: Faults,
    pub(super) fallback: Option<(O, Effect)>,
}

impl<O> Verdict<O> {
    fn effect(&self) -> Effect {
        self.fallback.as_ref().map_or(Effect::Absent, |(_, effect)| *effect)
    }
}

/// An object as it was before the publish began.
#[derive(Clone, Debug)]
pub(super) struct Before<O> {
    pub(super) object: Option<O>,
    pub(super) verdict: Option<Box<Verdict<O>>>,
}

impl<O> Before<O> {
    fn in_force(&self) -> Option<&O> {
        match &self.verdict {
            Some(verdict) => verdict.fallback.as_ref().map(|(object, _)| object),
            None => self.object.as_ref(),
        }
    }

    /// The last version that was in force as written.
    pub(super) fn last_version(&self) -> Option<&O> {
        match &self.verdict {
            Some(verdict) => match &verdict.fallback {
                Some((object, Effect::LastVersion)) => Some(object),
                _ => None,
            },
            None => self.object.as_ref(),
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Kind<O: Object> {
    /// The desired objects.
    pub(super) objects: HashMap<O::Key, O>,
    pub(super) claims: Claims<O::Claim, O::Key>,
    /// Verdicts on those that are left out.
    pub(super) verdicts: HashMap<O::Key, Box<Verdict<O>>>,
    list: List<O>,
    pub(super) staged: Staged<O>,
    /// Keys of objects to re-evaluate.
    pub(super) again: Vec<O::Key>,
    /// The previous versions of the objects that this publish changed, in order.
    pub(super) journal: Vec<(O::Key, Before<O>)>,
    pub(super) journaled: HashMap<O::Key, usize>,
    /// Whether this publish rebuilt all claims.
    pub(super) reclaimed: bool,
}

impl<O: Object> Default for Kind<O> {
    fn default() -> Self {
        Self {
            objects: HashMap::new(),
            claims: Claims::default(),
            verdicts: HashMap::new(),
            list: List::default(),
            staged: Vec::new(),
            again: Vec::new(),
            journal: Vec::new(),
            journaled: HashMap::new(),
            reclaimed: false,
        }
    }
}

/// The objects in force.
impl<O: Object> Kind<O> {
    /// Number of desired objects.
    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is a desired object with this key.
    pub(crate) fn is_wanted(&self, key: &O::Key) -> bool {
        self.objects.contains_key(key)
    }

    /// The desired object of this key, in force or left out.
    pub(crate) fn wanted(&self, key: &O::Key) -> Option<&O> {
        self.objects.get(key)
    }

    /// All desired objects, unordered.
    pub(crate) fn all_wanted(&self) -> impl Iterator<Item = &O> {
        self.objects.values()
    }

    /// The object in force under a key.
    pub(crate) fn get(&self, key: &O::Key) -> Option<&O> {
        match self.verdicts.get(key) {
            Some(verdict) => verdict.fallback.as_ref().map(|(object, _)| object),
            None => self.objects.get(key),
        }
    }

    /// All objects in force, unordered.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &O> {
        self.objects.keys().filter_map(|key| self.get(key))
    }

    /// The object in force that has a claim; the first if the claim is not exclusive.
    pub(crate) fn holder(&self, claim: &O::Claim) -> Option<&O> {
        let taken = self.claims.of(claim).find(|key| self.is_taken(key))?;
        self.objects.get(taken)
    }

    /// Keys of all desired objects with this claim.
    pub(crate) fn claimants(&self, claim: &O::Claim) -> impl Iterator<Item = &O::Key> {
        self.claims.of(claim)
    }

    /// Whether the object of this key is in force as it was written.
    pub(super) fn is_taken(&self, key: &O::Key) -> bool {
        !self.verdicts.contains_key(key) && self.objects.contains_key(key)
    }
}

/// Staging of the desired state.
impl<O: Object> Kind<O> {
    /// Upserts an object, or deletes it; deleting an absent object is a no-op. If two changes have
    /// the same key, the last one is used.
    pub(crate) fn stage(&mut self, key: O::Key, object: Option<O>) {
        self.list.outdate(&key);
        self.staged.push((key, object));
    }

    /// Makes these the desired objects.
    pub(crate) fn stage_all(&mut self, new: &[O]) {
        let staged = self.list.replace(new, &self.objects);
        self.staged.extend(staged);
    }

    /// The staged changes.
    #[cfg(test)]
    pub(super) fn staged(&self) -> &[(O::Key, Option<O>)] {
        &self.staged
    }

    /// Re-evaluates the object of this key, since something that it depends on has changed.
    pub(crate) fn stage_again(&mut self, key: O::Key) {
        self.again.push(key);
    }
}

/// The outcome of a publish, and its end.
impl<O: Object> Kind<O> {
    /// The difference between the objects in force before and after.
    pub(crate) fn difference(&self) -> Difference<O> {
        let mut difference = Difference { removed: Vec::new(), changed: Vec::new() };
        for (key, before) in &self.journal {
            match (before.in_force(), self.get(key)) {
                (Some(old), Some(new)) if old.is_same(new) => {}
                (old, Some(new)) => {
                    difference.changed.push(Changed { before: old.cloned(), after: new.clone() })
                }
                (Some(old), None) => difference.removed.push(old.clone()),
                (None, None) => {}
            }
        }
        difference
    }

    /// Keys of all objects that this publish changed in any way: the object, or whether it is in
    /// force.
    pub(crate) fn changed(&self) -> impl Iterator<Item = &O::Key> {
        self.journal.iter().map(|(key, _)| key)
    }

    /// Everything that is left out.
    pub(crate) fn left_out(&self, out: &mut Vec<LeftOut>) {
        out.extend(self.list.duplicates().iter().map(|(_, left_out)| left_out.clone()));
        let mut keys: Vec<&O::Key> = self.verdicts.keys().collect();
        keys.sort_unstable();
        keys.into_iter().for_each(|key| self.report(key, out));
    }

    /// The objects that this publish left out.
    pub(crate) fn newly_left_out(&self, out: &mut Vec<LeftOut>) {
        out.extend(self.list.new_duplicates().cloned());
        self.journal.iter().for_each(|(key, _)| self.report(key, out));
    }

    /// The objects that had been left out before this publish, and are in force now.
    pub(crate) fn newly_taken(&self, out: &mut Vec<Cookie>) {
        for (key, _) in self.journal.iter().filter(|(_, before)| before.verdict.is_some()) {
            out.extend(self.objects.get(key).filter(|_| self.is_taken(key)).map(O::cookie));
        }
    }

    fn report(&self, key: &O::Key, out: &mut Vec<LeftOut>) {
        let Some(verdict) = self.verdicts.get(key) else { return };
        let Some(object) = self.objects.get(key) else { return };
        let cookie = object.cookie();
        out.extend(verdict.faults.0.iter().map(|fault| fault.left_out(&cookie, verdict.effect())));
    }

    /// Keeps the settled state.
    pub(crate) fn commit(&mut self) {
        self.list.commit();
        self.journal = Vec::new();
        self.journaled = HashMap::new();
    }

    /// Undoes everything that was staged and settled, given the previous settings.
    pub(crate) fn undo(&mut self, settings: &Settings) {
        self.list.undo();
        self.journaled = HashMap::new();
        for (key, before) in take(&mut self.journal) {
            if !self.reclaimed {
                self.unclaim(&key, settings, |_, _| {});
            }
            self.objects.remove(&key);
            self.verdicts.remove(&key);
            if let Some(object) = before.object {
                self.objects.insert(key.clone(), object);
                if !self.reclaimed {
                    self.claim(&key, settings);
                }
                if let Some(verdict) = before.verdict {
                    self.verdicts.insert(key, verdict);
                }
            }
        }
        if take(&mut self.reclaimed) {
            self.reclaim(settings);
        }
    }
}
