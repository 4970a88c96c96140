//! The FDB (forwarding database) of the bridge domains: the port at which a MAC address was last seen (IEEE 802.1Q
//! §8.8). One lock-free table of fixed size for all workers. Each worker looks up and learns for every bridged frame,
//! and sweeps a few slots per poll. The control plane changes the table, too.
//!
//! # Layout
//!
//! An array of slots of two atomic words each:
//!
//! ```text
//! key    MAC 48 | domain 16
//! value  generation 20 | port 12 | expiry in seconds 30 | state 2
//! ```
//!
//! A key is searched in one row of 16 slots, chosen by a hash with the process's secret (threat T-C4),
//! so the work is bounded. If a row is full of live entries, further addresses are not learned, and
//! frames to them are flooded (threat T-C7).
//!
//! # Why a reader never gets another address's port
//!
//! A slot gets a new key in three steps, all by the thread that succeeds in the first: the value
//! changes from *free*, generation g, to *busy*, g + 1, by compare-and-exchange (1); the key is stored
//! with release (2); the value is stored as *live*, g + 1, with release (3). All other changes of a
//! slot (refreshed, moved, made static, freed) are a compare-and-exchange of the value that keeps the
//! generation.
//!
//! A reader loads the value, then the key with acquire, then the value again, and uses the entry only
//! if both values are live and of one generation g. The first load synchronises with (3) of generation
//! g (changes in between are read-modify-writes, which continue its release sequence), so the key that
//! it loads is that of g or of a later generation. If it were a later one, the load would synchronise
//! with (2) of that generation, which (1) precedes: the second load of the value would then return a
//! generation above g. So the key is that of g, and the port is that key's, maybe after a move. A
//! generation number could repeat only after 2^20 new keys in one slot between two loads of one reader.
//!
//! # Why an address has one entry
//!
//! Two workers may see a new address at the same time and each take a slot for it. Both publish their
//! entry, execute a sequentially consistent fence, and search the row again. At least one of them sees
//! the other's entry, and a thread that sees two frees all but the one that every thread would choose:
//! a static one, otherwise the first in the row.
//!
//! `model.rs` compiles the same source for `loom`, which tests every interleaving, and every value that
//! the memory model allows a load to return.

mod atomic {
    pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

/// Slots in a row.
const WAYS: usize = 16;
/// Slots per address of the table's capacity.
const SLOTS_PER_ENTRY: usize = 4;
/// Ports with a count of learned addresses.
const PORTS: usize = crate::id::PortId::MAX_PORTS;

mod slot;
mod table;

pub use self::table::{Bounds, Domain, Entry, Fdb, Learn};

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
