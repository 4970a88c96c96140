//! Lookup of flow entries for packets: candidate, hit, search.

use podswitch_wire::flow_key::FlowKey;

use super::line::Seen;
use super::shared_plans::PlanRef;
use super::{EntryId, FlowTable, Line, OWN_PLANS_PER_CHUNK, PendingCounts};
use crate::action::Plan;
use crate::flow::connection::ConnectionRef;
use crate::invalidation::Invalidation;
use crate::prefetch::{prefetch, prefetch_address};

/// The facts that identify a packet's flow entry.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// The [candidate](FlowTable::candidate) entry; may have been removed since.
    pub candidate: EntryId,
    /// The key's hash with the table's hash key.
    pub hash: u64,
    /// The packet's key.
    pub key: &'a FlowKey,
    /// The packet's sender; see [`FlowEntry::sender`](super::FlowEntry::sender).
    pub sender: u64,
}

/// The result of [`FlowTable::hit`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hit<'a> {
    /// The packet is routed by this plan, and was counted in the entry.
    Counted(&'a Plan),
    /// The packet is routed by this plan. It is TCP: the connection must be updated with it.
    Tcp(&'a Plan, ConnectionRef),
    /// The entry is valid, but the plan does more than route, or the packet does not fit its MTU, or
    /// the connection is due for an update. Nothing was counted: call [`FlowTable::hit_entry`].
    Other(EntryId),
    /// The candidate is not a valid entry for the packet. Call [`FlowTable::find`].
    Unknown,
}

/// How a packet that hit an entry is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// In the entry, which was done.
    Counted,
    /// In the connection, packet by packet. For TCP, which has windows to track; and for translated
    /// packets, which must not pass when the connection has ended.
    Each(ConnectionRef),
    /// In the connection, with the packets counted in the entry before: once a second.
    Flush(PendingCounts),
}

/// Why there is no valid entry for a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LookupMiss {
    /// The table has no entry with its key.
    Absent,
    /// The entry with its key belongs to another sender, or its plan depends on something that
    /// changed.
    Invalid,
}

impl FlowTable {
    /// First step: prefetches the bucket of a hash.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Second step: the likely entry, by its tag in the home bucket, and prefetches it. It is certain
    /// only after its key was compared.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> EntryId {
        match self.index.candidate(hash) {
            Some(number) => {
                let at = number as usize * size_of::<Line>();
                prefetch_address(self.lines.as_ptr().addr().wrapping_add(at));
                EntryId(number)
            }
            None => EntryId::NONE,
        }
    }

    /// Third step: prefetches the entry's own plan, if it has one. Returns the connection if it is
    /// updated with each packet, so that the caller can prefetch that.
    #[inline(always)]
    pub fn prefetch_plan(&self, candidate: EntryId) -> Option<ConnectionRef> {
        let line = self.lines.get(candidate.0 as usize)?;
        if !line.is_followed() {
            return None;
        }
        if line.plan.is_own()
            && let Some(plan) = self.own_plan(candidate)
        {
            prefetch(plan);
        }
        Some(ConnectionRef::from_parts(line.tail))
    }

    /// Fourth step: checks the candidate of a packet; if its plan only routes, counts the packet.
    /// `length`: bytes of the network-layer packet, not 0. `bytes`: bytes of the frame.
    #[inline(always)]
    pub fn hit(&mut self, flow: &Flow<'_>, (length, bytes): (u32, u32), seconds: u32) -> Hit<'_> {
        let Some(line) = self.lines.get_mut(flow.candidate.0 as usize) else { return Hit::Unknown };
        let is_valid =
            line.key == *flow.key && line.sender == flow.sender && self.plans.is_current(line.plan);
        if !is_valid {
            return Hit::Unknown;
        }
        let Some(plan) = self.plans.routed(line.plan, length) else {
            return Hit::Other(flow.candidate);
        };
        if line.seen != Seen::unfollowed(seconds) {
            if !line.is_followed() {
                return Hit::Other(flow.candidate);
            }
            // The entry is followed although its plan is shared, so it is TCP.
            let now = Seen::followed(seconds);
            if line.seen != now {
                line.seen = now;
            }
            return Hit::Tcp(plan, ConnectionRef::from_parts(line.tail));
        }
        let [packets, so_far] = line.tail;
        let Some(total) = so_far.checked_add(bytes) else { return Hit::Other(flow.candidate) };
        // Each packet has bytes, so the byte count overflows first.
        line.tail = [packets.wrapping_add(1), total];
        Hit::Counted(plan)
    }

    /// The valid entry of a packet if the candidate is another entry or was not checked.
    ///
    /// # Errors
    /// [`LookupMiss`].
    #[inline(never)]
    pub fn find(
        &mut self,
        flow: &Flow<'_>,
        invalidation: &Invalidation,
    ) -> Result<EntryId, LookupMiss> {
        let matches = |line: &Line| line.key == *flow.key && line.sender == flow.sender;
        let found = match self.lines.get(flow.candidate.0 as usize).is_some_and(matches) {
            true => Some(flow.candidate),
            false => self.search(flow.hash, flow.key),
        };
        let Some(id) = found else { return Err(LookupMiss::Absent) };
        let line = &self.lines[id.0 as usize];
        let is_stale = !self.plans.is_current(line.plan);
        if line.sender != flow.sender || is_stale && !self.revalidate(id, invalidation) {
            return Err(LookupMiss::Invalid);
        }
        Ok(id)
    }

    /// Last step for every packet that [`hit`](Self::hit) did not count: the plan of a valid entry,
    /// and how the packet of `bytes` bytes is counted. `None`, and nothing was counted, if the entry
    /// is not valid or the packet does not fit, as `fits` decides.
    #[inline]
    pub fn hit_entry(
        &mut self,
        id: EntryId,
        bytes: usize,
        seconds: u32,
        fits: impl FnOnce(&Plan) -> bool,
    ) -> Option<(&Plan, Follow)> {
        let at = id.0 as usize;
        let line = self.lines.get_mut(at)?;
        let plan = match self.plans.get(line.plan) {
            PlanRef::Stale => return None,
            PlanRef::Shared(plan) => plan,
            PlanRef::Own => {
                let chunk = self.own_plans.get(at / OWN_PLANS_PER_CHUNK)?.as_deref()?;
                &chunk[at % OWN_PLANS_PER_CHUNK]
            }
        };
        if !fits(plan) {
            return None;
        }
        if line.is_followed() {
            line.seen = Seen::followed(seconds);
            return Some((plan, Follow::Each(ConnectionRef::from_parts(line.tail))));
        }
        let [packets, so_far] = line.tail;
        // No frame is longer than the limit.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX / 2);
        let now = Seen::unfollowed(seconds);
        if line.seen == now
            && let Some(total) = so_far.checked_add(bytes)
        {
            line.tail = [packets.wrapping_add(1), total];
            return Some((plan, Follow::Counted));
        }
        line.seen = now;
        line.tail = [1, bytes];
        let connection = self.connections[at];
        Some((plan, Follow::Flush(PendingCounts { connection, packets, bytes: so_far })))
    }

    pub(super) fn own_plan(&self, id: EntryId) -> Option<&Plan> {
        let at = id.0 as usize;
        let chunk = self.own_plans.get(at / OWN_PLANS_PER_CHUNK)?.as_deref()?;
        Some(&chunk[at % OWN_PLANS_PER_CHUNK])
    }

    /// The entry of a key, valid or not, for any sender.
    #[inline(never)]
    pub(super) fn search(&self, hash: u64, key: &FlowKey) -> Option<EntryId> {
        self.index.get(hash, |number| self.lines[number as usize].key == *key).map(EntryId)
    }
}
