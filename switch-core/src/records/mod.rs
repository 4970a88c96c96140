//! Records of dropped frames and of connections.
//!
//! Records of dropped frames are complete: every drop that a worker counts is in one record of its own, or in a row or
//! a sum together with others.
//!
//! ```text
//! worker: drop -> similar drops since collection?    few: one record each, into a bounded queue
//!                                                   many, or the queue is full: a row of a bounded table
//!                                                   no row free: a sum for each reason
//! reader: queue, and periodically the table -> DropRecord, with the names of the epoch's snapshot
//! ```
//!
//! Invariant: after a collection, the counts of all records add up to the workers' drop counters, for each reason.
//!
//! The worker's side ([`Recorder::observer`]) neither allocates nor locks: queue and tables are allocated beforehand,
//! and a collected table is exchanged for an empty one. A record costs a worker about 100 ns for a frame that is
//! dropped; forwarded frames cost nothing.
//!
//! Records of connections ([`FlowRecorder`]) are made when a connection opens or ends, on the slow path, and go through
//! a bounded queue as well.

mod flows;
mod history;
mod raw;
mod recorder;
mod resolve;
mod table;

pub use flows::{
    Allowed, CloseReason, FlowChange, FlowRecord, FlowRecorder, FlowsLeftOut, NameQuestion,
};
pub(crate) use raw::RawDrop;
pub use recorder::Recorder;
pub(crate) use resolve::record;
pub use resolve::{DropRecord, End};

/// Bytes from the start of a dropped frame that its record keeps.
pub const PREFIX: usize = 128;

#[cfg(test)]
mod tests;
