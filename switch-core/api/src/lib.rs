//! The control socket of a node: queries to the running switch, as JSON over HTTP/1.1 on a Unix socket.
//!
//! [`ApiServer`] answers on a thread of its own. It asks the [`Node`](podswitch_node::Node) by way of its thread
//! ([`NodeCaller`](podswitch_node::NodeCaller)) and never touches a worker, so that no question costs a packet. [`DropLog`] keeps the last drops
//! for later queries, and hands new ones to followers. [`Client`] is the other end. `docs/api.md` has all
//! paths and fields.
//!
//! Paths begin with `/v1`: fields are added to it, and never removed or changed.
//!
//! Bounds: [`MAX_CONNECTIONS`] connections, requests of 16 KiB, 10 s to send one, [`MAX_FLOWS`] flows in an answer.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_types, reason = "locks of the control socket, far from any packet")]

mod background;
mod capture;
mod client;
mod drop_log;
mod filter;
mod json_lines;
mod log_level;
mod map;
mod output;
mod page;
mod routes;
mod server;
mod service;
mod trace;
mod web;

pub use client::{Client, ClientError};
pub use drop_log::DropLog;
pub use json_lines::{JsonLines, Rotation};
pub use log_level::LogLevel;
pub use output::elasticsearch::{
    Credentials, DeliveryCounts, Elasticsearch, ElasticsearchOptions, Endpoint, EndpointError, Lost,
};
pub use output::ipfix::{Ipfix, IpfixCounts};
pub use output::{CommunityId, Record};
pub use routes::{
    MAX_CAPTURE_FRAMES, MAX_CAPTURE_SECONDS, MAX_FLOWS, MAX_OFFSET, MAX_PERF_SECONDS,
};
pub use server::{ApiServer, MAX_CONNECTIONS, bind};
pub use web::{PageAccess, WebServer};
