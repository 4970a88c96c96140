//! Policies that cannot be taken as they were written.

use std::sync::Arc;

use podswitch_policy::rule::{ClusterNetworkPolicy, NetworkPolicy};

use super::ConfigError;

/// A policy that could not be taken as it was written. It never opens anything: the last version
/// that was in force stays; if there was none, the pods that it selects are isolated in the
/// directions that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusedPolicy {
    /// A NetworkPolicy.
    Network {
        /// What is in force if there is no last good version; its rules are not looked at. The
        /// pods it selects: every pod of its namespace if its selector could not be read.
        policy: Arc<NetworkPolicy>,
        /// What is wrong with it. `object` is the policy's cookie.
        error: ConfigError,
    },
    /// A ClusterNetworkPolicy.
    Cluster {
        /// As for a NetworkPolicy.
        policy: Arc<ClusterNetworkPolicy>,
        /// What is wrong with it. `object` is the policy's cookie.
        error: ConfigError,
    },
}

impl RefusedPolicy {
    /// The policy's name: its cookie.
    pub fn cookie(&self) -> &Arc<str> {
        match self {
            Self::Network { policy, .. } => &policy.cookie,
            Self::Cluster { policy, .. } => &policy.cookie,
        }
    }
}
