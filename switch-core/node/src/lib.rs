//! The switch of one Kubernetes node, as a library for CNI plugins and network agents.
//!
//! A [`Node`] contains everything that a node's switch needs: the engine with its workers, the
//! node's own port with its routes, masquerading and the steering of Services, health checks, the
//! underlay to other nodes, and the pods. Its input is whole [`State`]s or [single
//! changes](Node::update), and pods are [added](Node::add_pod) and [removed](Node::remove_pod) at
//! run time. It reports [`Event`]s and prints nothing.
//!
//! # A node with two pods
//!
//! Runs as root, or in a user namespace ([`podswitch_linux::userns`]).
//!
//! ```
//! use std::net::UdpSocket;
//! use std::sync::mpsc::channel;
//! use podswitch_core::config::{Config, LocalNode};
//! use podswitch_linux::NetNs;
//! use podswitch_node::{Event, Node, NodeOptions, PodAttachment, PodInterfaces, PodName, State};
//! use podswitch_policy::rule::Labels;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # if NetNs::anonymous().is_err() { eprintln!("SKIPPED: namespaces need privilege"); return Ok(()); }
//! let (node_ns, red, blue) = (NetNs::anonymous()?, NetNs::anonymous()?, NetNs::anonymous()?);
//! let (sender, events) = channel();
//! let options = NodeOptions::new("node-1")
//!     .namespace(node_ns) // otherwise that of this process
//!     .on_event(move |event| drop(sender.send(event)));
//! let local = LocalNode { name: "node-1".into(), ..LocalNode::default() };
//! let mut node = Node::start(options, State::new(Config { node: local, ..Config::default() }))?;
//!
//! // What a CNI plugin's ADD comes to.
//! let name = PodName::new("default", "red")?;
//! node.add_pod(PodAttachment::new(name, red.clone(), ["10.1.0.2".parse()?]).labels(Labels::default()))?;
//! let name = PodName::new("default", "blue")?;
//! node.add_pod(PodAttachment::new(name.clone(), blue.clone(), ["10.1.0.3".parse()?]).labels(Labels::default()))?;
//!
//! let from = red.enter(|| UdpSocket::bind("10.1.0.2:7000"))??;
//! let to = blue.enter(|| UdpSocket::bind("10.1.0.3:7000"))??;
//! from.send_to(b"hello", "10.1.0.3:7000")?;
//! assert_eq!(to.recv_from(&mut [0; 16])?, (5, "10.1.0.2:7000".parse()?));
//! assert_eq!(node.flows()[0].src_pod.as_deref(), Some("default/red"));
//!
//! node.remove_pod(&name)?; // DEL
//! node.poll()?; // Every so often: reconciles with what changed. `Node::spawn` has a thread do so.
//! node.stop(PodInterfaces::Remove)?;
//! assert!(events.iter().any(|event| matches!(event, Event::PodAttached { pod, .. } if pod == name)));
//! # Ok(())
//! # }
//! ```
//!
//! # How the parts fit
//!
//! [`Node`] owns the control plane of `podswitch_core` and reconciles the desired with the actual
//! state: `pods` attaches and detaches pods, `host_side` manages the node's own port and the
//! settings of its kernel, `underlay` the path to other nodes. All of them run on the thread that
//! owns the [`Node`] ([`Node::spawn`] starts one, and returns a [`NodeHandle`] that any thread may
//! use). Workers forward on threads of their own and never wait for it.
#![forbid(unsafe_code)]

mod attachment;
mod boot;
mod capture;
mod cluster;
pub mod cni;
mod device_files;
mod discovery;
mod error;
mod events;
mod explain;
mod first_packet;
mod flow_filter;
mod flow_view;
mod flows;
mod handle;
mod handover;
pub mod hold;
mod host_side;
mod inspect;
mod kept;
mod kube_proxy;
mod leftovers;
mod metrics;
mod name_view;
mod names;
mod node;
mod options;
pub mod overlay;
mod perf;
mod pod_name;
mod pods;
mod policy_view;
mod probes;
mod ranges;
pub mod resolver;
mod service_view;
pub mod source;
mod state;
mod stats;
mod totals;
mod underlay;
mod view;

pub use attachment::{ExistingInterface, InterfaceKind, PodAttachment, PodNetns};
pub use capture::{Capture, CaptureError, CaptureRequest, CapturedLine};
pub use cluster::{ClusterOptions, Masquerading, ParseMasqueradingError};
pub use discovery::node_addresses;
pub use error::{NodeError, PodError, UnderlayError};
pub use events::{DroppedFrames, Event, EventSink, Failure, RecordedFlow, channel};
pub use explain::{Connection, Outcome, Verdict};
pub use first_packet::{SendError, SentPacket};
pub use flow_filter::FlowFilter;
pub use flow_view::{
    FlowDecision, FlowPage, FlowQuery, FlowRates, FlowRow, FlowSample, FlowSort, FlowView,
};
pub use flows::Flow;
pub use handle::{NodeCaller, NodeHandle};
pub use handover::{
    HANDOVER_SOCKET, HandoverError, Predecessor, Successor, SuccessorState, shared_file,
    take_shared,
};
pub use inspect::{PodInfo, Status, WorkerStatus};
pub use kube_proxy::KubeProxyMode;
pub use leftovers::remove_leftovers;
pub use metrics::{METRICS_CONTENT_TYPE, Meters, ObjectCounts};
pub use name_view::{NameLine, NameStep, NameTruncated, NameView};
pub use names::{UnknownName, check_drop_reason, protocol_name, protocol_number};
pub use node::{Node, PUBLISH_TIMEOUT, PodInterfaces, RECONCILE_INTERVAL};
pub use options::{NodeOptions, UnderlayKind, UnderlayOptions};
pub use perf::{LongestPause, Perf, PerfReading, PollTime, SlowPath, WakeReasons, WorkerPerf};
pub use pod_name::{PodName, PodNameError};
pub use podswitch_core::records::{
    Allowed, CloseReason, DropRecord, End, FlowChange, FlowRecord, FlowsLeftOut, NameQuestion,
};
pub use podswitch_kubernetes::label_query;
pub use policy_view::{PolicyPage, PolicyQuery};
pub use probes::Probes;
pub use service_view::{BackendInfo, ServiceAddress, ServicePage, ServicePortInfo, ServiceQuery};
pub use state::{State, StateChanges};
pub use stats::{PortStats, Stats, WorkerStats};

/// Default MTU of a port, in bytes.
pub const DEFAULT_MTU: u16 = 1500;
