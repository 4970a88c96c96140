//! Which entries hold when the state has changed: those that depend on nothing that did.
//!
//! Where a change concerns no entry, all hold as they are. Where it may concern some, each is asked
//! when a packet next comes for it.

use super::ways::is_own;
use super::{EntryId, FlowTable, PLANS};
use crate::id::Epoch;
use crate::invalidation::{Affected, Groups, Invalidation};

/// What became of entries of earlier turns that packets came for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Renewals {
    /// They depend on nothing that changed, and hold as they are.
    pub kept: u32,
    /// They were judged again.
    pub judged: u32,
}

impl FlowTable {
    /// From now on `epoch` is the one. Answers that depend on what changed since the one before hold
    /// no more. Said before a batch.
    #[inline]
    pub fn begin(&mut self, epoch: Epoch, invalidation: &Invalidation) {
        if !self.ways.is_of(epoch) {
            self.renew(epoch, invalidation);
        }
    }

    #[cold]
    fn renew(&mut self, epoch: Epoch, invalidation: &Invalidation) {
        let affected = self.ways.epoch().map_or(Affected::All, |before| {
            invalidation.since(before, |group| self.presence.has(group))
        });
        if affected == Affected::None {
            return self.ways.go_on(epoch);
        }
        if self.ways.begin(epoch, affected == Affected::All) {
            for number in 0..self.lines.len() as u32 {
                self.remove(EntryId(number));
            }
        }
    }

    /// Whether the entry holds, which it has not been asked in this turn.
    pub(super) fn keep(&mut self, id: EntryId, invalidation: &Invalidation) -> bool {
        let way = self.lines[id.0 as usize].way;
        let Some(until) = self.ways.until(way) else { return false };
        if !invalidation.is_valid_since(until, &self.groups_of(id)) {
            return false;
        }
        self.lines[id.0 as usize].way = self.ways.renewed(way);
        self.renewals.kept += 1;
        true
    }

    /// What the answer of an entry depends on.
    pub(super) fn groups_of(&self, id: EntryId) -> Groups {
        let (at, line) = (id.0 as usize, &self.lines[id.0 as usize]);
        let own = || self.groups.get(at / PLANS)?.as_deref()?.get(at % PLANS).copied();
        match is_own(line.way) {
            true => own().unwrap_or_default(),
            false => Groups::of_key(&line.key),
        }
    }

    /// What became of entries of earlier turns since the last call.
    #[inline]
    pub fn renewals(&mut self) -> Renewals {
        core::mem::take(&mut self.renewals)
    }
}
