//! Records of dropped frames and of connections.
//!
//! Records of dropped frames add up: every drop that a worker counts is in one record, or in one row of what
//! did not fit, at any rate.
//!
//! ```text
//! worker: drop -> alike since the last collection?  few: one record each, into a bounded queue
//!                                                   many, or the queue is full: a row of a bounded table
//!                                                   no row free: a sum for each reason
//! reader: queue, and every now and then the table -> DropRecord, with the names of the epoch's snapshot
//! ```
//!
//! The law: after a collection the counts of all records sum up to the workers' drop counters, for each reason.
//!
//! The worker's side ([`Recorder::observer`]) neither allocates nor locks: queue and tables are made beforehand, and a
//! collected table is exchanged for an empty one. A record costs a worker some 100 ns, where the frame was dropped
//! anyway; forwarded frames cost nothing.
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
