//! What could not be done, typed.

use std::io;

use podswitch_linux::HostError;

use crate::error::{PodError, UnderlayError};
use crate::pod_name::PodName;

/// Something that could not be done. The rest of the switch goes on without it. It is tried again where that
/// is possible, and reported again only if the reason changes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A pod of the state could not be attached.
    #[error("{pod} is not attached: {error}")]
    PodNotAttached {
        /// The pod.
        pod: PodName,
        /// Why.
        #[source]
        error: PodError,
    },
    /// A pod's interface went away under the switch.
    #[error("{pod}: its interface is gone: {error}")]
    PodInterfaceLost {
        /// The pod.
        pod: PodName,
        /// What the device said.
        #[source]
        error: io::Error,
    },
    /// A pod's interface could not be removed.
    #[error("{pod}: its interface stays: {error}")]
    PodInterfaceStays {
        /// The pod.
        pod: PodName,
        /// Why.
        #[source]
        error: HostError,
    },
    /// The MTU of a pod's interface could not be set. The switch answers what is too long all the same.
    #[error("{pod}: {error}")]
    PodMtu {
        /// The pod.
        pod: PodName,
        /// Why.
        #[source]
        error: HostError,
    },
    /// The node's interface to the switch is gone and could not be made again.
    #[error("the node's interface to the switch is gone: {0}")]
    HostInterface(String),
    /// What somebody took from an object could not be put back.
    #[error("{object}: {error}")]
    NotPutBack {
        /// A pod or `node`.
        object: String,
        /// Why.
        #[source]
        error: HostError,
    },
    /// The MTU of the node's interface to the switch could not be set.
    #[error("{0}")]
    HostMtu(#[source] HostError),
    /// Services at the node's own addresses are not served.
    #[error("Services at the node's own addresses are not served: {0}")]
    Steering(#[source] HostError),
    /// Ports that the switch uses were not kept from the node's own connections.
    #[error("ports of the switch are not reserved: {0}")]
    ReservedPorts(#[source] HostError),
    /// Routes, rules or steering on the node's side do not follow the state in force.
    #[error("the node's side does not follow the state in force: {0}")]
    HostSide(#[source] HostError),
    /// Whether kube-proxy is there is not known; it is taken not to be.
    #[error("whether kube-proxy is on this node is not known: {0}")]
    KubeProxy(#[source] HostError),
    /// A health check port cannot be listened on.
    #[error("{0}")]
    HealthCheck(#[source] HostError),
    /// The kernel's routes to other nodes' pods (routing past the tunnel) could not be set.
    #[error("routes to other nodes' pods: {0}")]
    NodeRoutes(#[source] HostError),
    /// Other nodes are not reached.
    #[error("other nodes are not reached: {0}")]
    Underlay(#[source] UnderlayError),
    /// The tunnel's sockets failed; they are opened again.
    #[error("the tunnel's sockets failed: {0}")]
    TunnelSockets(#[source] io::Error),
    /// The uplink failed; it is opened again.
    #[error("the uplink failed: {0}")]
    Uplink(#[source] io::Error),
    /// The node's stack sees, and may answer, what the switch takes from the uplink.
    #[error("uplink {interface}: the node's stack sees what the switch takes: {error}")]
    UplinkFilter {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        error: HostError,
    },
    /// The kernel does not cut what leaves by the tunnel: the switch does, at a cost.
    #[error("the switch itself cuts what leaves by the tunnel: {0}")]
    TunnelOffload(String),
}
