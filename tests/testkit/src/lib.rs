//! What the tests of podswitch share.
//!
//! - [`privilege`]: network namespaces for whoever runs the tests, and a record of what was skipped.
//! - [`rig`]: a switch with memory ports, polled in virtual time.
//! - [`net`]: peers of kernel ports, in network namespaces.
//!
//! Of an assertion that fails in here, the backtrace (`RUST_BACKTRACE=1`) names the test's line.
#![allow(
    missing_docs,
    reason = "names say what a test helper does; what they do not say has a comment"
)]

pub mod net;
pub mod privilege;
pub mod record;
pub mod rig;
