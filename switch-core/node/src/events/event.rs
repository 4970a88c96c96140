//! What happened.

use std::fmt;

use podswitch_core::config::ConfigError;
use podswitch_core::control::{Effect, LeftOut};
use podswitch_core::id::{Cookie, Epoch, PortId};
use podswitch_core::records::FlowsLeftOut;

use super::dropped::DroppedFrames;
use super::failure::Failure;
use super::recorded_flow::RecordedFlow;
use crate::pod_name::PodName;

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A state is in force: all workers use it.
    Applied {
        /// Which.
        epoch: Epoch,
    },
    /// The state is refused because of the node's present interfaces; the one in force stays.
    Refused(Vec<ConfigError>),
    /// An object is not in force as written
    /// ([`NodeOptions::lenient`](crate::NodeOptions::lenient)).
    LeftOut(LeftOut),
    /// An object that was left out is in force now.
    Taken {
        /// The object.
        object: Cookie,
    },
    /// A pod was attached. It forwards nothing before an [`Applied`](Self::Applied) state describes
    /// it.
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
    /// A setting of the switch was removed or changed, and has been restored.
    Repaired {
        /// A pod, an interface or `node`.
        object: String,
        /// What was restored.
        done: Vec<String>,
    },
    /// Connections of an earlier run are open again
    /// ([`NodeOptions::keep_connections`](crate::NodeOptions::keep_connections)).
    Restored {
        /// So many.
        restored: usize,
        /// So many are not: the client's pod or node is gone, or a limit is reached.
        lost: usize,
        /// So many wait for the client's pod to be attached.
        waiting: usize,
    },
    /// A holder keeps the devices for the time after a crash, in place of one that has ended.
    Held,
    /// kube-proxy serves this node, and the switch leaves the node's side of Services to it.
    BesideKubeProxy {
        /// What was found.
        found: String,
    },
    /// A failure; the rest of the switch continues.
    Failure(Failure),
    /// Frames were dropped ([`NodeOptions::report_drops`](crate::NodeOptions::report_drops)).
    Dropped(Box<DroppedFrames>),
    /// A connection was opened ([`NodeOptions::report_flows`](crate::NodeOptions::report_flows)).
    FlowOpened(Box<RecordedFlow>),
    /// A connection goes on ([`NodeOptions::update_flows`](crate::NodeOptions::update_flows)).
    FlowUpdated(Box<RecordedFlow>),
    /// A connection ended.
    FlowClosed(Box<RecordedFlow>),
    /// Connections were opened or ended faster than their records could be read.
    FlowsLeftOut(FlowsLeftOut),
    /// Events were lost because a queue was full.
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
                write!(f, "the state is refused with the node's present interfaces")?;
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
            Self::Taken { object } => write!(f, "{object} is in force as written"),
            Self::PodAttached { pod, port } => write!(f, "{pod} is attached as port {port}"),
            Self::PodDetached { pod } => write!(f, "{pod} is detached"),
            Self::Repaired { object, done } => {
                write!(f, "{object}: restored: {}", done.join(", "))
            }
            Self::Restored { restored, lost, waiting } => write!(
                f,
                "connections of the run before: {restored} open again, {waiting} waiting for their pods, {lost} lost"
            ),
            Self::Held => f.write_str("a holder keeps the devices again"),
            Self::BesideKubeProxy { found } => write!(
                f,
                "{found} is on this node: node ports, load-balancer addresses and the node's own connections to Services \
                 stay with it; pods' connections are the switch's. Without it: kube-proxy --cleanup, then start again"
            ),
            Self::Failure(failure) => failure.fmt(f),
            Self::Dropped(frames) => write!(f, "dropped: {frames}"),
            Self::FlowOpened(flow) => write!(f, "opened: {flow}"),
            Self::FlowUpdated(flow) => write!(f, "goes on: {flow}"),
            Self::FlowClosed(flow) => write!(f, "closed: {flow}"),
            Self::FlowsLeftOut(FlowsLeftOut { opened, closed, .. }) => {
                write!(
                    f,
                    "no records of {opened} connections that were opened and {closed} that ended"
                )
            }
            Self::Lost { count } => write!(f, "{count} events are lost"),
        }
    }
}
