//! Typed failures.

use std::io;

use podswitch_linux::HostError;

use crate::error::{PodError, UnderlayError};
use crate::pod_name::PodName;

/// A failure. The rest of the switch continues. It is retried where possible, and reported again
/// only if the reason changes.
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
    /// A pod's interface disappeared.
    #[error("{pod}: its interface is gone: {error}")]
    PodInterfaceLost {
        /// The pod.
        pod: PodName,
        /// The device's error.
        #[source]
        error: io::Error,
    },
    /// A pod's interface could not be removed.
    #[error("{pod}: its interface was not removed: {error}")]
    PodInterfaceStays {
        /// The pod.
        pod: PodName,
        /// Why.
        #[source]
        error: HostError,
    },
    /// The MTU of a pod's interface could not be set. The switch still answers packets that are too
    /// long.
    #[error("{pod}: {error}")]
    PodMtu {
        /// The pod.
        pod: PodName,
        /// Why.
        #[source]
        error: HostError,
    },
    /// The node's interface to the switch is gone and could not be recreated.
    #[error("the node's interface to the switch is gone: {0}")]
    HostInterface(String),
    /// Connections do not outlive the process, or not all of them.
    #[error("connections are not kept for a restart: {0}")]
    ConnectionsNotKept(String),
    /// What the switch has learnt and counted is not written for the next run.
    #[error("affinity, path MTUs and counts are not kept for a restart: {0}")]
    NotKept(String),
    /// What an earlier run has written cannot be used: of another version, or damaged.
    #[error("not restored from an earlier run: {0}")]
    NotRestored(String),
    /// An open device of the switch before was not taken over: this switch has none like it. Frames that waited in it are
    /// lost.
    #[error("not taken over from the switch before: {0}")]
    NotInherited(String),
    /// Devices do not outlive the process: there is no holder, or it has ended.
    #[error("devices are not held: after a crash they are opened again: {0}")]
    NotHeld(String),
    /// A removed setting could not be restored.
    #[error("{object}: {error}")]
    NotRepaired {
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
    /// Host ports at ::1 are not reached there.
    #[error("host ports are not reached at ::1, only at the node's other addresses: {0}")]
    HostPortsAtLoopback(#[source] HostError),
    /// Ports of the switch are not reserved.
    #[error("ports of the switch are not reserved: {0}")]
    ReservedPorts(#[source] HostError),
    /// Routes, rules or steering on the node's side do not follow the state in force.
    #[error("routes, rules or steering of the node are not up to date: {0}")]
    HostSide(#[source] HostError),
    /// Whether kube-proxy is there is not known; it is taken not to be.
    #[error("whether kube-proxy is on this node is not known: {0}")]
    KubeProxy(#[source] HostError),
    /// A health check port cannot be listened on.
    #[error("{0}")]
    HealthCheck(#[source] HostError),
    /// The kernel's routes to other nodes' pods (direct routing) could not be set.
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
    /// The node's stack receives, and may answer, what the switch handles on the uplink.
    #[error("uplink {interface}: the node's stack also receives the switch's packets: {error}")]
    UplinkFilter {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        error: HostError,
    },
    /// The kernel does not segment tunnelled packets: the switch does, at a higher cost.
    #[error("the switch itself segments tunnelled packets: {0}")]
    TunnelOffload(String),
}
