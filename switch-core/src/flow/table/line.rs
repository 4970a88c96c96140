//! A flow entry in memory: one cache line that packets read.

use podswitch_wire::flow_key::{FlowKey, proto};

use super::shared_plans::PlanId;

/// Sender of a free entry: no port has such a number.
const NOBODY: u64 = u64::MAX;

/// A second (modulo 2^31) times two, plus one if the entry is [followed](Line::is_followed). So one
/// comparison tells that an entry is not followed and was updated in the current second.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub(super) struct Seen(u32);

impl Seen {
    #[inline(always)]
    pub(super) fn unfollowed(seconds: u32) -> Self {
        Self(seconds << 1)
    }

    #[inline(always)]
    pub(super) fn followed(seconds: u32) -> Self {
        Self(seconds << 1 | 1)
    }

    /// The second, modulo 2^31.
    pub(super) fn seconds(self) -> u32 {
        self.0 >> 1
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line {
    pub(super) key: FlowKey,
    pub(super) sender: u64,
    pub(super) plan: PlanId,
    /// When the connection was last updated, and whether it is updated with each packet.
    pub(super) seen: Seen,
    /// For an entry that [is followed](Self::is_followed): the connection. For others: packets and
    /// bytes that the connection has not been updated with yet.
    pub(super) tail: [u32; 2],
}

const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    /// A free entry.
    pub(super) fn free() -> Self {
        let (key, plan) = (FlowKey::default(), PlanId::default());
        Self { key, sender: NOBODY, plan, seen: Seen::default(), tail: [0; 2] }
    }

    /// Marks the entry as free.
    pub(super) fn clear(&mut self) {
        self.sender = NOBODY;
    }

    /// Whether the connection must be updated with each packet; `tail` is then the connection.
    #[inline(always)]
    pub(super) fn is_followed(&self) -> bool {
        self.seen.0 & 1 != 0
    }

    /// Whether the connection of a flow with this key and plan must be updated with each packet.
    #[inline]
    pub(super) fn must_follow(key: &FlowKey, plan: PlanId) -> bool {
        key.proto == proto::TCP || plan.is_own()
    }
}
