//! What happens on a node, as typed values.
//!
//! Parts of the node put events into a queue of their own ([`Reporter`]); the [`Node`](crate::Node) hands them to
//! the embedder's sink at the end of each of its calls. Workers never call the sink: a dropped frame goes
//! into a bounded queue without locks.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};

use crossbeam::queue::{ArrayQueue, SegQueue};
use podswitch_core::action::DropReason;
use podswitch_core::config::ConfigError;
use podswitch_core::control::{ControlPlane, Effect, LeftOut};
use podswitch_core::engine::{Dropped, Observer};
use podswitch_core::id::{Cookie, Epoch, PortId};
use podswitch_core::time::Instant;
use podswitch_linux::HostError;

use crate::error::{PodError, UnderlayError};
use crate::flows::Flow;
use crate::pods::PodName;

/// Dropped frames that are kept until they are handed on; further ones are counted as lost.
const DROP_QUEUE: usize = 4096;

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
    /// A frame was dropped ([`NodeOptions::report_drops`](crate::NodeOptions::report_drops)).
    Dropped(DroppedFrame),
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
            Self::Dropped(frame) => frame.fmt(f),
            Self::FlowOpened(flow) => write!(f, "opened: {flow}"),
            Self::FlowClosed(flow) => write!(f, "closed: {flow}"),
            Self::Lost { count } => write!(f, "{count} events are lost"),
        }
    }
}

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

/// A frame that was dropped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DroppedFrame {
    /// When, by the clock of the switch ([`ControlPlane::clock`]).
    pub time: Instant,
    /// The port that it came in by.
    pub port: PortId,
    /// The pod behind that port, if a pod is.
    pub pod: Option<PodName>,
    /// Why.
    pub reason: DropReason,
    /// The policy or Service that decided it, if one did.
    pub object: Option<Cookie>,
}

impl fmt::Display for DroppedFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dropped: {} from ", self.reason.name())?;
        match &self.pod {
            Some(pod) => pod.fmt(f)?,
            None => write!(f, "port {}", self.port)?,
        }
        match &self.object {
            Some(object) => write!(f, " by {object}"),
            None => Ok(()),
        }
    }
}

/// Where events go. Closures are sinks.
pub trait EventSink: Send {
    /// Takes an event. Called on the thread that calls the node; what it waits for the node waits for.
    fn event(&mut self, event: Event);
}

impl<F: FnMut(Event) + Send> EventSink for F {
    fn event(&mut self, event: Event) {
        self(event);
    }
}

/// A bounded queue of events: a sink, and the end to receive from. Events that find it full are lost, and
/// [`Event::Lost`] says how many before the next one.
pub fn channel(capacity: usize) -> (impl EventSink + 'static, Receiver<Event>) {
    let (sender, receiver) = sync_channel(capacity.max(2));
    let mut lost = 0;
    let sink = move |event| {
        if lost > 0 {
            match sender.try_send(Event::Lost { count: lost }) {
                Ok(()) => lost = 0,
                Err(_) => {
                    lost += 1;
                    return;
                }
            }
        }
        if let Err(TrySendError::Full(_)) = sender.try_send(event) {
            lost += 1;
        }
    };
    (sink, receiver)
}

/// The queue by which the parts of the node report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reporter(Arc<SegQueue<Event>>);

impl Reporter {
    /// Reports an event.
    pub(crate) fn event(&self, event: Event) {
        self.0.push(event);
    }

    /// Reports what was put back, if anything was.
    pub(crate) fn repaired(&self, object: &str, done: Vec<String>) {
        if !done.is_empty() {
            self.event(Event::Repaired { object: object.to_owned(), done });
        }
    }

    /// Reports a failure.
    pub(crate) fn failure(&self, failure: Failure) {
        self.event(Event::Failure(failure));
    }

    /// The next event.
    pub(crate) fn next(&self) -> Option<Event> {
        self.0.pop()
    }
}

/// A dropped frame as a worker reports it.
#[derive(Debug)]
struct RawDrop {
    time: Instant,
    port: PortId,
    reason: DropReason,
    object: Option<Cookie>,
}

/// Dropped frames, on their way from the workers.
#[derive(Clone, Debug)]
pub(crate) struct DropQueue {
    frames: Arc<ArrayQueue<RawDrop>>,
    lost: Arc<AtomicU64>,
}

impl DropQueue {
    /// Has all workers of `control` report dropped frames.
    pub(crate) fn observe(control: &ControlPlane) -> Self {
        let queue = Self {
            frames: Arc::new(ArrayQueue::new(DROP_QUEUE)),
            lost: Arc::new(AtomicU64::new(0)),
        };
        control.observe(|_| Some(Box::new(queue.clone())));
        queue
    }

    /// Reports what arrived since the last call. `pod`: the pod at a port.
    pub(crate) fn report(&self, reporter: &Reporter, pod: impl Fn(PortId) -> Option<PodName>) {
        // No more than were there: workers may be faster than this.
        for _ in 0..self.frames.len() {
            let Some(RawDrop { time, port, reason, object }) = self.frames.pop() else { break };
            let frame = DroppedFrame { time, port, pod: pod(port), reason, object };
            reporter.event(Event::Dropped(frame));
        }
        let count = self.lost.swap(0, Relaxed);
        if count > 0 {
            reporter.event(Event::Lost { count });
        }
    }
}

impl Observer for DropQueue {
    fn dropped(&mut self, drop: &Dropped<'_>) {
        // A full queue costs a worker no copy of a name.
        if self.frames.is_full() {
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        let object = drop.object.cloned();
        let (time, port, reason) = (drop.now, drop.trace.ingress, drop.reason);
        if self.frames.push(RawDrop { time, port, reason, object }).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_channel_says_how_many_are_lost() {
        let (mut sink, events) = channel(2);
        for epoch in 1..=5 {
            sink.event(Event::Applied { epoch: Epoch(epoch) });
        }
        let seen: Vec<u32> = events
            .try_iter()
            .map(|event| match event {
                Event::Applied { epoch } => epoch.0,
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(seen, [1, 2]);
        sink.event(Event::Applied { epoch: Epoch(6) });
        assert!(matches!(events.recv(), Ok(Event::Lost { count: 3 })));
        assert!(matches!(events.recv(), Ok(Event::Applied { epoch: Epoch(6) })));
        drop(events);
        sink.event(Event::Applied { epoch: Epoch(7) });
    }
}
