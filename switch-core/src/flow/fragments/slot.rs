//! A place for a datagram in the store.

use podswitch_wire::flow_key::FlowKey;

use super::datagram::Datagram;
use crate::action::DropReason;
use crate::id::PortId;
use crate::time::Instant;

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// The datagram that a fragment belongs to. It includes the ingress port, so that no port can add fragments to another
/// port's datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub(super) flow: FlowKey,
    pub(super) ingress: PortId,
}

/// A place for a datagram.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: Key,
    pub(super) hash: u64,
    pub(super) since: Instant,
    pub(super) state: State,
    pub(super) link: Link,
}

/// The content of a slot.
#[derive(Debug)]
pub(super) enum State {
    Free,
    Collecting(Datagram),
    /// Every further fragment is dropped with this reason (RFC 5722 §4).
    Rejected(DropReason),
}

/// A slot's links in the list of all slots and in the list of its account's, both by age, and its
/// charge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) prev: [u32; 2],
    pub(super) next: [u32; 2],
    pub(super) account: u8,
    pub(super) charged: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self { prev: [NONE; 2], next: [NONE; 2], account: 0, charged: 0 }
    }
}
