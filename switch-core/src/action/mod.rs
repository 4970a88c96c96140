//! What is done with a packet: the compiled answer (`Plan`), and the reason where nothing is.

mod drop_reason;

pub use drop_reason::{DropClass, DropReason};
