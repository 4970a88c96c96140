//! Pods, and which object has what several claim.

use std::sync::Arc;

use podswitch_policy::rule::Workload;
use podswitch_wire::addr::Mac;

use crate::id::{Cookie, PortId};

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name in drops, flows and explanations.
    pub cookie: Cookie,
    /// The pod as policy sees it, with its addresses.
    pub workload: Workload,
    /// The node that it is on.
    pub node: Arc<str>,
    /// How it is attached, if it is on this node and attached here.
    pub attachment: Option<Attachment>,
    /// Which pod has an address or a port that several claim.
    pub precedence: Precedence,
}

/// Where a pod of this node is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The port.
    pub port: PortId,
    /// The pod's MAC address.
    pub mac: Mac,
    /// Largest network-layer packet that the pod takes, in bytes.
    pub mtu: u16,
}

/// Which of several objects has an address, a range or a port that all of them claim: the one with
/// the greatest precedence, by the fields in their order. Among equals it is the one whose name
/// sorts first, so that the outcome never depends on the order in which objects came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Precedence {
    /// Not being deleted (Kubernetes: no `deletionTimestamp`).
    pub living: bool,
    /// Known to run (Kubernetes: a pod in phase Running, a node that is Ready).
    pub running: bool,
    /// When it was created, in seconds since any fixed time: the newer one goes first.
    pub created: u64,
}

impl Default for Precedence {
    fn default() -> Self {
        Self { living: true, running: true, created: 0 }
    }
}
