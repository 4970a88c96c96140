//! Connection tracking, shared by all workers: packets of both directions find the same connection on
//! every worker, and two simultaneous first packets create one connection.
//!
//! There are two parts. The *slots* hold a connection's pinned facts, and its state (TCP sides,
//! counters, time of the last packet) as relaxed atomics: one cache line per direction, which the
//! fast path reads and writes without a lock; one for the facts; and one more for translated
//! connections. The *index* leads from keys to slots. It is split into shards, each behind a mutex,
//! and is used only on a miss in a worker's flow table and when connections end. A connection without
//! translation has one entry for both directions. See decision records 0002 and 0012.
//!
//! Each use of a slot has a new generation. A flow entry stores the generation, so an entry of an
//! ended connection is invalid and never applies to another connection.
//!
//! The types are here; the table is in `tracker.rs`, the contents of a slot in `slot.rs` and `facts.rs`, updates by
//! packets in `packets.rs`, creation and end in `create.rs` and `ending.rs`, the end of connections that a change
//! denies in `review.rs`, and connections that survive a restart in `saved.rs`, or a hand-over in `running.rs`. `model.rs` compiles the same source for
//! `shuttle`, which tests interleavings of threads.

mod cast;
mod create;
mod ending;
mod facts;
mod header;
mod list;
mod packets;
mod review;
mod running;
mod saved;
mod slot;
mod tracker;

use podswitch_wire::flow_key::HashKey;

use super::tcp::TcpState;
use crate::id::PortId;

pub use crate::pinned::{Account, Charge, Direction, Opened, OpenedAt, Pinned, SourceNat};
pub(crate) use running::Places;
pub use running::Running;
pub(crate) use saved::Kept;
pub use saved::{MemoryError, Restored, Saved, SavedMemory, SlotMemory, memory_size};
pub use slot::{EvictionClass, PRESSURE_SECS};
pub use tracker::Tracker;

/// Atomics and locks; `model.rs` replaces them.
#[expect(
    clippy::disallowed_types,
    reason = "shard mutexes are taken on a miss and at the end of a connection, never on a hit"
)]
mod sync {
    pub(super) use std::sync::atomic::{AtomicU32, AtomicU64};
    pub(super) use std::sync::{Mutex, MutexGuard};
}

/// Number of slots that are allocated together.
const CHUNK: usize = 256;
/// Enough that two workers rarely wait for the same shard.
const SHARDS: usize = 64;
/// Number of ports that have an account.
const PORTS: usize = PortId::MAX_PORTS;
/// Number of VTEPs that have an account: the maximum number of VTEPs.
const ENDS: usize = 1 << 16;
/// Number of counts for the sources behind VTEPs. Sources with the same hash share one.
const SOURCES: usize = 1 << 16;

const _: () = assert!(size_of::<slot::Lane>() == 64 && size_of::<slot::Slot>() == 192);
const _: () = assert!(size_of::<facts::ReplyFacts>() == 64);

/// A reference to one direction of a connection. It becomes invalid when the connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionRef {
    /// Slot number times two, plus one for the reply direction.
    slot: u32,
    generation: u32,
}

impl ConnectionRef {
    /// No connection.
    pub const NONE: ConnectionRef = ConnectionRef { slot: u32::MAX, generation: 0 };

    /// Whether this is no connection.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.slot == u32::MAX
    }

    /// As two words, for a flow entry.
    #[inline]
    pub(super) const fn parts(self) -> [u32; 2] {
        [self.slot, self.generation]
    }

    /// The inverse of [`parts`](Self::parts).
    #[inline]
    pub(super) const fn from_parts([slot, generation]: [u32; 2]) -> Self {
        Self { slot, generation }
    }

    /// A number for the connection. No other connection of this run has it at the same time, nor for the next 2^31
    /// connections in the same slot. Both directions have the same number.
    pub const fn id(self) -> u64 {
        (self.slot >> 1) as u64 | (self.generation as u64) << 32
    }

    /// The direction.
    #[inline]
    pub const fn direction(self) -> Direction {
        if self.slot & 1 == 0 { Direction::Original } else { Direction::Reply }
    }

    /// The other direction of the same connection.
    #[inline]
    pub const fn reversed(self) -> Self {
        Self { slot: self.slot ^ 1, generation: self.generation }
    }
}

/// Hash by which the index finds a key's connection: the same for both directions of a connection
/// without translation. Made by [`Tracker::index_hash`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexHash(u64);

/// A connection found in the index, seen from one direction.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The connection, in the direction of the key that was looked up.
    pub connection: ConnectionRef,
    /// Its pinned facts.
    pub pinned: Pinned,
}

/// Limits of the connection table.
#[derive(Clone, Copy, Debug)]
pub struct TrackerConfig {
    /// Maximum number of connections in total.
    pub connections: u32,
    /// Maximum number of connections that one port or VTEP may originate. In addition, an account has at most as many
    /// connections as the table has free slots, and a source behind a VTEP at most as many as its VTEP's account has
    /// left. So a new account or source always finds room.
    pub per_port: u32,
    /// Secret hash key of this process. The flow tables must use the same.
    pub hash_key: HashKey,
}

/// Why a connection was not created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The table is full.
    Full,
    /// The originating port, VTEP or source has reached its limit.
    Limit(Charge),
    /// Another connection has the same reply key: the translations collide.
    Collision,
}

/// The result of creating a connection.
#[derive(Clone, Copy, Debug)]
pub enum Created {
    /// It was created.
    New(ConnectionRef),
    /// It existed: another worker, or the other direction, was faster.
    Existing(Known),
}

/// A connection, as it is listed.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The connection, in the original direction.
    pub connection: ConnectionRef,
    /// Pinned facts.
    pub pinned: Pinned,
    /// When it was opened.
    pub opened: OpenedAt,
    /// Packets by direction.
    pub packets: [u64; 2],
    /// Bytes by direction.
    pub bytes: [u64; 2],
    /// TCP states by direction; `None` for other protocols.
    pub tcp: Option<[TcpState; 2]>,
    /// Second of the last packet.
    pub last_seen: u32,
    /// A record says that it has ended ([`Tracker::record_end`]). Its slot is kept in case it continues.
    pub is_recorded: bool,
    /// A record said so before, and it went on: its counts have those of that record.
    pub is_resumed: bool,
}

/// Receives notifications of connections that end. `()` ignores them.
pub trait OnEnd {
    /// A connection ended. `read` reads its last state.
    fn ended(&mut self, read: impl FnOnce() -> Option<ConnectionInfo>);
}

impl OnEnd for () {
    #[inline]
    fn ended(&mut self, _: impl FnOnce() -> Option<ConnectionInfo>) {}
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
