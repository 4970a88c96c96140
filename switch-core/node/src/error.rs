//! Typed errors.

use std::fmt;
use std::net::IpAddr;

use podswitch_core::config::ConfigError;
use podswitch_core::control::{ControlError, Refused};
use podswitch_linux::HostError;

use crate::pod_name::PodName;

/// A call of the node failed. Unless a variant says otherwise, the state in force stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The state, or a change of it, has errors: all of them.
    #[error("{}", Lines(.0))]
    Refused(Vec<ConfigError>),
    /// An option has an invalid value.
    #[error("option {option}: {reason}")]
    Option {
        /// Its name.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A pod could not be attached.
    #[error("{pod} is not attached: {error}")]
    Pod {
        /// The pod.
        pod: PodName,
        /// Why.
        #[source]
        error: PodError,
    },
    /// The underlay that the options require is not available.
    #[error(transparent)]
    Underlay(#[from] UnderlayError),
    /// The system refused a step of the set-up.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Ports or workers failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The node's thread has ended.
    #[error("the node's thread has ended")]
    Ended,
    /// The node's thread panicked, which is an error in the program.
    #[error("the node's thread panicked: {0}")]
    Panicked(String),
}

impl From<Refused> for NodeError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused.0)
    }
}

struct Lines<'a>(&'a [ConfigError]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if number > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// Why a pod is not attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PodError {
    /// A field of its [`PodAttachment`](crate::PodAttachment) has an invalid value.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// There is an interface of that name already, which is not to be used.
    #[error("interface: {namespace} has an interface {interface} already")]
    InterfaceExists {
        /// Its name.
        interface: String,
        /// Where it is.
        namespace: String,
    },
    /// The state with the pod left it out: why.
    #[error("the pod clashes with what is in force: {0}")]
    LeftOut(ConfigError),
    /// Its namespace or interface is not available.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Its port cannot be attached to the switch.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Why other nodes are not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnderlayError {
    /// The uplink interface cannot be used.
    #[error("uplink {interface}: {reason}")]
    Uplink {
        /// Its name.
        interface: String,
        /// Why.
        reason: String,
    },
    /// The tunnel's UDP sockets cannot be opened.
    #[error("underlay udp: {0}")]
    Sockets(String),
    /// The node has no address for its VTEP.
    #[error("underlay udp: {0}: its Node object has no InternalIP for the VTEP")]
    NoAddress(String),
    /// No interface has the address of the node's VTEP.
    #[error("underlay udp: no interface has the node's InternalIP {0}")]
    AddressNotFound(IpAddr),
    /// The interfaces cannot be listed.
    #[error("{0}")]
    Netlink(String),
}
