//! The forwarding engine of podswitch.
//!
//! Dependencies inside this crate run one way: `engine`, `resolve` and `flow` know nothing of
//! `port`, `worker` and `control`; the hit path neither allocates, locks, logs nor asks the
//! system for the time.
#![deny(unsafe_code)]

pub mod action;
pub mod answer;
pub mod config;
pub mod control;
pub mod engine;
pub mod flow;
pub mod host;
pub mod id;
pub mod limit;
pub mod packet;
pub mod port;
mod prefetch;
pub mod resolve;
pub mod route;
pub mod snapshot;
pub mod stats;
mod sys;
pub mod time;
pub mod worker;
