//! The Kubernetes API server as the source of a node's states, for programs that embed
//! [`podswitch_node`]. Implements [`Source`](podswitch_node::source::Source).
//!
//! ```no_run
//! use podswitch_kubernetes_api::{ApiOptions, ApiSource};
//! use podswitch_node::{Node, NodeOptions, source::Source};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut options = ApiOptions::new("node-1"); // the name of our Node object
//! options.servers = vec!["https://192.0.2.1:6443".into()];
//! let mut source = ApiSource::open(options)?;
//! let state = source.first_state(&mut |_why| true)?.expect("it was not stopped");
//! let node = Node::start(NodeOptions::new("node-1").lenient(true), state)?.spawn()?;
//! loop {
//!     source.follow(&mut &node, false)?;
//!     std::thread::sleep(source.next_check()); // or poll(2) on `wake_fd`
//! }
//! # }
//! ```
//!
//! # How it works
//!
//! One thread communicates with the API server. For every kind that podswitch reads, a task lists
//! and watches the objects ([`watch`]), trying one API server after another ([`servers`]). It sends
//! the objects in their thin form through a bounded queue ([`feed`]) to the thread that owns the
//! [`ApiSource`]. That thread adds them to its store and publishes the changes ([`source`]): a
//! complete state once every kind has been listed, then changes. The first change after a quiet
//! period is published at once; the following ones are coalesced over 30 ms. Only the pods of this
//! node are watched until a policy names pods or namespaces as peers.
//!
//! The state in force stays while no API server responds. It is saved to disk ([`saved`]) so that a
//! start is possible without one.
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_types,
    reason = "control plane: the API thread and the node's thread share little; each lock is held for one assignment"
)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the map of the modules is for those who read the code"
)]

mod agent;
mod error;
mod events;
mod feed;
mod lists;
mod names;
mod options;
mod runtime;
mod saved;
mod servers;
mod source;
mod split;
mod triggers;
mod view;
mod watch;

pub use error::ApiError;
pub use options::ApiOptions;
pub use source::ApiSource;
