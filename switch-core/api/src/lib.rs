//! The control socket of a node: queries to the running switch, as JSON over HTTP/1.1 on a Unix socket.
//!
//! [`ApiServer`] serves queries on a thread of its own. It queries the [`Node`](podswitch_node::Node) through the
//! node's thread ([`NodeCaller`](podswitch_node::NodeCaller)) and never accesses a worker, so that no query costs a
//! packet. [`DropLog`] keeps the last drops for later queries, and passes new ones to followers. [`Client`] is the
//! other end. `docs/api.md` describes all paths and fields.
//!
//! Paths begin with `/v1`: fields may be added to it, but are never removed or changed.
//!
//! Limits: [`MAX_CONNECTIONS`] connections, requests of 16 KiB, 10 s to send one, [`MAX_FLOWS`] flows in an answer.
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
pub use server::{ApiServer, MAX_CONNECTIONS, adopt, bind};
pub use web::{PageAccess, WebServer};
