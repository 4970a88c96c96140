//! Policies that cannot be applied as written.

use std::sync::Arc;

use podswitch_policy::rule::{ClusterNetworkPolicy, NetworkPolicy};

use super::ConfigError;

/// A policy that could not be applied as written. It never allows anything: the last version that
/// was in force stays in force. If there was none, the pods that it selects are isolated in the
/// directions that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusedPolicy {
    /// A NetworkPolicy.
    Network {
        /// The policy in force if there is no last valid version. Its rules are ignored. It selects
        /// every pod of its namespace if its selector could not be read.
        policy: Arc<NetworkPolicy>,
        /// The error. `object` is the policy's cookie.
        error: ConfigError,
    },
    /// A ClusterNetworkPolicy.
    Cluster {
        /// As for a NetworkPolicy.
        policy: Arc<ClusterNetworkPolicy>,
        /// The error. `object` is the policy's cookie.
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
