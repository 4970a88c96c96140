//! Pods, and the precedence among objects that claim the same address or port.

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
    /// Its attachment, if it is on this node and attached here.
    pub attachment: Option<Attachment>,
    /// Decides which pod gets an address or port that several claim.
    pub precedence: Precedence,
}

/// Where a pod of this node is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The port.
    pub port: PortId,
    /// The pod's MAC address.
    pub mac: Mac,
    /// Largest network-layer packet that the pod accepts, in bytes.
    pub mtu: u16,
}

/// Decides which of several objects gets an address, a range or a port that all of them claim. The
/// one with the greatest precedence gets it; the fields are compared in their order. Among equals
/// it is the one whose name sorts first, so that the result never depends on the order in which
/// objects arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Precedence {
    /// Not being deleted (Kubernetes: no `deletionTimestamp`).
    pub living: bool,
    /// Known to run (Kubernetes: a pod in phase Running, a node that is Ready).
    pub running: bool,
    /// Creation time in seconds since any fixed time: the newer object has precedence.
    pub created: u64,
}

impl Default for Precedence {
    fn default() -> Self {
        Self { living: true, running: true, created: 0 }
    }
}
