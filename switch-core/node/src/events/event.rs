//! What happened.

use std::fmt;

use podswitch_core::config::ConfigError;
use podswitch_core::control::{Effect, LeftOut};
use podswitch_core::id::{Cookie, Epoch, PortId};

use super::dropped::DroppedFrames;
use super::failure::Failure;
use crate::flows::Flow;
use crate::pod_name::PodName;

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A state is in force: every worker forwards by it.
    Applied {
        /// Which.
        epoch: Epoch,
    },
    /// What the node's interfaces became makes a state that cannot be; the one in force stays.
    Refused(Vec<ConfigError>),
    /// The switch does not have an object as it was written
    /// ([`NodeOptions::lenient`](crate::NodeOptions::lenient)).
    LeftOut(LeftOut),
    /// The switch has an object that was left out before.
    Taken {
        /// The object.
        object: Cookie,
    },
    /// A pod was attached. It passes nothing before an [`Applied`](Self::Applied) state knows it.
    PodAttached {
        /// The pod.
        pod: PodName,
        /// Its port.
        port: PortId,
    },
    /// A pod was detached and its interface removed.
    PodDetached {
        /// The pod.
        pod: PodName,
    },
    /// Something that the switch had set up was gone or changed, and is as it was again.
    Repaired {
        /// A pod, an interface or `node`.
        object: String,
        /// What was put back.
        done: Vec<String>,
    },
    /// kube-proxy serves this node, and the switch leaves the node's side of Services to it.
    BesideKubeProxy {
        /// What was found.
        found: String,
    },
    /// Something could not be done; the rest goes on.
    Failure(Failure),
    /// Frames were dropped ([`NodeOptions::report_drops`](crate::NodeOptions::report_drops)).
    Dropped(Box<DroppedFrames>),
    /// A connection was opened ([`NodeOptions::report_flows`](crate::NodeOptions::report_flows)).
    FlowOpened(Flow),
    /// A connection ended, as it was seen last.
    FlowClosed(Flow),
    /// Events that were lost because a queue was full.
    Lost {
        /// How many.
        count: u64,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied { epoch } => write!(f, "epoch {epoch} is in force"),
            Self::Refused(errors) => {
                write!(f, "the node's interfaces leave a state that is refused")?;
                errors.iter().try_for_each(|error| write!(f, "; {error}"))
            }
            Self::LeftOut(left_out) => {
                let effect = match left_out.effect {
                    Effect::LastVersion => "its last good version stays in force",
                    Effect::Isolated => "the pods that it selects are isolated",
                    Effect::OneFrontend => "it has not this address and port",
                    _ => "the object is left out",
                };
                write!(f, "{} ({effect})", left_out.error)
            }
            Self::Taken { object } => write!(f, "{object} is in force as it is written"),
            Self::PodAttached { pod, port } => write!(f, "{pod} is attached as port {port}"),
            Self::PodDetached { pod } => write!(f, "{pod} is detached"),
            Self::Repaired { object, done } => {
                write!(f, "{object}: put back: {}", done.join(", "))
            }
            Self::BesideKubeProxy { found } => write!(
                f,
                "{found} is on this node: node ports, load-balancer addresses and the node's own connections to Services \
                 stay with it; pods' connections are the switch's. Without it: kube-proxy --cleanup, then start again"
            ),
            Self::Failure(failure) => failure.fmt(f),
            Self::Dropped(frames) => write!(f, "dropped: {frames}"),
            Self::FlowOpened(flow) => write!(f, "opened: {flow}"),
            Self::FlowClosed(flow) => write!(f, "closed: {flow}"),
            Self::Lost { count } => write!(f, "{count} events are lost"),
        }
    }
}
