//! Forwarding state outside the snapshot: what workers learn. Read by every worker on the packet path.

pub mod fdb;
