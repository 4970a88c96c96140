//! Pods attached by CNI: the agent that answers the plugin `podswitch-cni`.
//!
//! The plugin is a small program that a container runtime starts for each verb. It passes environment and standard
//! input to the [`Agent`] of the running switch, by a socket, and prints the answer. The agent knows the pod's labels
//! from a [`ClusterView`], gives it addresses of the node's ranges, has the node attach it, and answers when the pod
//! is in force at every worker.
//!
//! Everything here runs on threads of its own, none of which forwards packets; what concerns the switch, or enters a
//! namespace, is done on the node's thread.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "control plane: threads that answer CNI requests wait for each other and for deadlines"
)]

mod agent;
mod clock;
mod cluster_view;
mod config;
mod directory;
mod error;
mod heartbeat;
mod install;
pub mod ipam;
mod leased;
mod leases;
pub mod protocol;
mod queue;
mod request;
mod result;
mod server;
mod verbs;
mod version;

pub use agent::{Agent, AgentOptions, COOL_DOWN, CniEvent};
pub use cluster_view::{ClusterView, PodFacts, PodListener, ViewError};
pub use directory::PodDirectory;
pub use error::CniError;
pub use install::{BINARY, CONFIGURATION, Install};
pub use leases::{Found, Lease, LeasedPort, Leases};
pub use request::{Add, IpamResult, Key, PortMapping, Request, Verb};
pub use version::Version;
