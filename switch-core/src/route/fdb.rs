//! The forwarding database of the bridge domains: which port a MAC address was last seen at
//! (IEEE 802.1Q §8.8). One table for all workers, read and taught by each of them for every
//! bridged frame, swept by them a few slots a poll, and changed by the control plane: lock-free,
//! and of fixed size.
//!
//! # How it is laid out
//!
//! An array of slots, each two atomic words:
//!
//! ```text
//! key    MAC 48 | domain 16
//! value  generation 20 | port 12 | expiry in seconds 30 | state 2
//! ```
//!
//! A key is looked for in one row of 16 slots, which a hash under the process's secret chooses
//! (threat T-C4), so the work is bounded; where a row is full of live entries nothing more is
//! learnt and its addresses are flooded to (threat T-C7).
//!
//! # Why a reader never gets another address's port
//!
//! A slot changes hands in three steps, by one thread that won the first: the value goes from
//! *free*, generation g, to *busy*, g + 1, by compare-and-exchange (1); the key is stored with
//! release (2); the value is stored as *live*, g + 1, with release (3). Everything else that
//! happens to a slot (seen again, moved, made static, freed) is a compare-and-exchange of the value
//! that keeps the generation.
//!
//! A reader loads the value, then the key with acquire, then the value again, and takes the entry
//! only if both values are live and of one generation, g. The first load synchronises with (3) of
//! generation g (whatever came between were read-modify-writes, which continue its release
//! sequence), so the key it loads is that of g or a later one. Were it a later one, the load
//! would synchronise with (2) of that later generation, before which came (1): the second load
//! of the value would then have to show a generation beyond g. So the key is that of g, and so is
//! the port, or one that the same key moved to. A generation comes round after 2^20 changes of
//! hands of one slot, between two loads of one reader.
//!
//! # Why an address is not there twice
//!
//! Two workers may see a new address at once and each take a slot for it. Both publish theirs,
//! then pass a sequentially consistent fence, then search the row again: one of the two sees the
//! other's at least, and whoever sees two frees all but one, the one that every worker would
//! choose (a static one, else the first in the row).
//!
//! `model.rs` puts the same source before `loom`, which tries every interleaving and every value
//! that the memory model lets a load return.

mod atomic {
    pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

/// Slots in a row.
const WAYS: usize = 16;
/// Slots for each address that the table is made for.
const SLOTS_PER_ENTRY: usize = 4;
/// Ports that addresses are counted for.
const PORTS: usize = crate::id::PortId::MAX_PORTS;

mod table;

pub use self::table::{Bounds, Domain, Entry, Fdb, Learn};

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
