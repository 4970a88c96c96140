//! Forwarding state outside the snapshot: addresses that workers learn. Read by every worker on the packet path.

pub mod fdb;
