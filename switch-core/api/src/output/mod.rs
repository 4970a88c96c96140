//! Outputs for records of drops and connections, in addition to the control socket.
//!
//! An output never blocks the node: it takes records from a bounded queue on a thread of its own, and counts the
//! records that it loses.

mod community_id;
mod ecs;
pub(crate) mod elasticsearch;
pub(crate) mod ipfix;
mod record;
#[cfg(test)]
mod samples;

pub use community_id::CommunityId;
pub use record::Record;
