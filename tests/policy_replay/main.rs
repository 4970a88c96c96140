//! Network policy on the wire: real frames through `vswitch replay`, judged as `explain` says,
//! while states change under connections that live.

#[path = "../explain/cases/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of explain")]
mod cases;
#[path = "../../switch-core/tests/rig/frames.rs"]
#[allow(unreachable_pub, dead_code, clippy::precedence, reason = "shared with the engine's tests")]
mod octets;
#[path = "../support/mod.rs"]
mod support;

mod changes;
mod connections;
mod replayed;
mod same_verdict;
mod via_service;
