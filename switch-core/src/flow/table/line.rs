//! A flow entry in memory: one cache line that packets read.

use podswitch_wire::flow_key::{FlowKey, proto};

use super::shared_plans::PlanId;

/// Sender of a free entry: no port has such a number.
const NOBODY: u64 = u64::MAX;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line {
    pub(super) key: FlowKey,
    pub(super) sender: u64,
    pub(super) plan: PlanId,
    /// Second in which the connection was last updated.
    pub(super) last_seen: u32,
    /// For an entry that [is followed](Self::is_followed): the connection. For others: packets and
    /// bytes that the connection has not been updated with yet.
    pub(super) tail: [u32; 2],
}

const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    /// A free entry.
    pub(super) fn free() -> Self {
        let (key, plan) = (FlowKey::default(), PlanId::default());
        Self { key, sender: NOBODY, plan, last_seen: 0, tail: [0; 2] }
    }

    /// Marks the entry as free.
    pub(super) fn clear(&mut self) {
        self.sender = NOBODY;
    }

    /// Whether the connection must be updated with each packet; `tail` is then the connection.
    #[inline]
    pub(super) fn is_followed(&self) -> bool {
        self.key.proto == proto::TCP || self.plan.is_own()
    }
}
