//! Pods attached by CNI: the agent that answers the plugin `podswitch-cni`.
//!
//! Everything here runs on threads of its own, none of which forwards packets; what concerns the switch is done on
//! the node's thread.
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "control plane: threads that answer CNI requests wait for each other and for deadlines"
)]

mod cluster_view;
mod directory;

pub use cluster_view::{ClusterView, PodFacts, PodListener, ViewError};
pub use directory::PodDirectory;
