//! Flows: the worker's own table of directions, the connections that all workers share, TCP
//! tracking, fragments.
//!
//! On the packet path, by each worker thread. Knows nothing of ports, workers or control.

pub mod affinity;
pub mod connection;
pub mod fragments;
mod growing;
pub mod nat;
pub mod probes;
pub mod table;
pub mod tcp;
