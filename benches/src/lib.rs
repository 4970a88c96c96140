//! What the benches share.
//!
//! - [`rig`], [`full`], [`fresh`]: switches between memory ports, with flows that are known, known
//!   through Services and policies, or new.
//! - [`world`]: a cluster of the size to be held.
//! - [`cpu_time`], [`memory`]: what is measured besides wall time.
#![allow(missing_docs, reason = "names say what a helper does; what they do not say has a comment")]

pub mod cpu_time;
pub mod fresh;
pub mod full;
pub mod memory;
pub mod rig;
pub mod world;
