//! Flows and connections: the worker's own flow table, the connection table that all workers share,
//! TCP state tracking, reassembly of fragments.
//!
//! Used on the packet path by each worker thread. Independent of ports, workers and control.

mod chunk;
pub mod connection;
pub mod fragments;
mod incremental_index;
pub mod probes;
pub mod table;
pub mod tcp;
