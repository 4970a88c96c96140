//! Pods attached by CNI: the agent that serves the plugin `podswitch-cni`.
//!
//! The plugin is a small program that a container runtime starts for each verb. It passes its
//! environment and standard input to the [`Agent`] of the running switch, through a socket, and
//! prints the answer. The agent gets the pod's labels from a [`ClusterView`], allocates addresses
//! from the node's ranges, attaches the pod by the node, and answers when every worker has
//! acknowledged the pod.
//!
//! Everything here runs on separate threads, none of which forwards packets. Whatever changes the
//! switch or enters a namespace runs on the node's thread.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "control plane: threads that answer CNI requests wait for each other and for deadlines"
)]

mod agent;
mod cluster_view;
mod config;
#[cfg(test)]
mod crash_tests;
mod directory;
mod error;
mod heartbeat;
mod install;
pub mod ipam;
mod key;
mod leased;
mod leases;
pub mod protocol;
mod queue;
mod request;
mod result;
mod server;
mod shared;
mod verbs;
mod version;

pub use agent::{Agent, AgentOptions, COOL_DOWN};
pub use cluster_view::{ClusterView, PodFacts, PodListener, ViewError};
pub use config::{IpamResult, PortMapping};
pub use directory::PodDirectory;
pub use error::CniError;
pub use install::{BINARY, CONFIGURATION, Install};
pub use key::Key;
pub use leases::{Found, Lease, LeasedPort, Leases};
pub use request::{Add, Request, Verb};
pub use shared::{AnsweredCall, CniEvent};
pub use version::Version;
