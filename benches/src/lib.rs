//! Code that the benches share.
//!
//! - [`rig`], [`full`], [`fresh`]: switches between memory ports, with flows that are known, known
//!   through Services and policies, or new.
//! - [`world`]: a cluster of the target size.
//! - [`cpu_time`], [`memory`]: measurements other than wall time.
//! - [`document`]: documents with parts that programs write.
#![allow(missing_docs, reason = "the names describe most helpers; the others have comments")]

pub mod cpu_time;
pub mod document;
pub mod fresh;
pub mod full;
pub mod memory;
pub mod rig;
pub mod world;
