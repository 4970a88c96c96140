//! Where records of drops and connections go, besides the control socket.
//!
//! An output never blocks the node that hands it records: it takes them from a bounded queue on a thread of its own,
//! and counts what it loses.

mod community_id;
mod ecs;
pub(crate) mod elasticsearch;
pub(crate) mod ipfix;
mod record;
#[cfg(test)]
mod samples;

pub use community_id::CommunityId;
pub use record::Record;
