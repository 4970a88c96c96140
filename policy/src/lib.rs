//! NetworkPolicy and Services, compiled to look-up tables.
//!
//! No sockets, no clocks, no allocation per packet.
#![forbid(unsafe_code)]

pub mod compile;
pub mod cow;
pub mod explain;
pub mod maglev;
pub mod prefix;
pub mod reference;
pub mod rule;
pub mod service;
pub mod table;
pub mod touched;
pub mod verdict;
