//! Revalidation: entries stay valid after a configuration change if they depend on nothing that
//! changed.
//!
//! If a change affects no entry of the table, all entries stay valid at once. Otherwise each entry
//! is checked when its next packet arrives.

use super::{EntryId, FlowTable, OWN_PLANS_PER_CHUNK};
use crate::id::Epoch;
use crate::invalidation::{Affected, Groups, Invalidation};

/// Counts of the entries of earlier generations whose next packet arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Revalidations {
    /// They depend on nothing that changed, and stay valid.
    pub kept: u32,
    /// Their flow was re-evaluated.
    pub reevaluated: u32,
}

impl FlowTable {
    /// Makes `epoch` the current one, before a burst. Entries that depend on something that changed
    /// since the epoch before become invalid.
    #[inline]
    pub fn begin(&mut self, epoch: Epoch, invalidation: &Invalidation) {
        if !self.plans.is_of(epoch) {
            self.begin_epoch(epoch, invalidation);
        }
    }

    #[cold]
    fn begin_epoch(&mut self, epoch: Epoch, invalidation: &Invalidation) {
        let affected = self.plans.epoch().map_or(Affected::All, |before| {
            invalidation.since(before, |group| self.presence.has(group))
        });
        if affected == Affected::None {
            return self.plans.extend_to(epoch);
        }
        if self.plans.begin(epoch, affected == Affected::All) {
            for number in 0..self.lines.len() as u32 {
                self.remove(EntryId(number));
            }
        }
    }

    /// Makes an entry of an earlier generation valid if it depends on nothing that changed.
    pub(super) fn revalidate(&mut self, id: EntryId, invalidation: &Invalidation) -> bool {
        let plan = self.lines[id.0 as usize].plan;
        let Some(until) = self.plans.valid_until(plan) else { return false };
        if !invalidation.is_valid_since(until, &self.groups_of(id)) {
            return false;
        }
        self.lines[id.0 as usize].plan = self.plans.renewed(plan);
        self.revalidations.kept += 1;
        true
    }

    /// The dependencies of an entry's plan.
    pub(super) fn groups_of(&self, id: EntryId) -> Groups {
        let (at, line) = (id.0 as usize, &self.lines[id.0 as usize]);
        let (chunk, index) = (at / OWN_PLANS_PER_CHUNK, at % OWN_PLANS_PER_CHUNK);
        let own = || self.own_groups.get(chunk)?.as_deref()?.get(index).copied();
        match line.plan.is_own() {
            true => own().unwrap_or_default(),
            false => Groups::of_key(&line.key),
        }
    }

    /// The counts since the last call.
    #[inline]
    pub fn take_revalidations(&mut self) -> Revalidations {
        core::mem::take(&mut self.revalidations)
    }
}
