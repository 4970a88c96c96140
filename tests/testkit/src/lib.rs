//! Code that the tests of podswitch share.
//!
//! - [`privilege`]: network namespaces for root and ordinary users, and a record of what was skipped.
//! - [`rig`]: a switch with memory ports, polled in virtual time.
//! - [`net`]: peers of kernel ports, in network namespaces.
//!
//! If an assertion fails in this crate, the backtrace (`RUST_BACKTRACE=1`) shows the line of the test.
#![allow(missing_docs, reason = "the names describe most test helpers; the others have comments")]

pub mod net;
pub mod privilege;
pub mod record;
pub mod rig;
