//! Queries to a running node: its status and its pods.

use std::net::IpAddr;

use podswitch_core::control::ControlPlane;
use podswitch_core::id::PortId;
use serde::Serialize;

use crate::attachment::{InterfaceKind, PodAttachment};
use crate::pods::{PodCounts, Pods, Share};
use crate::stats::{Stats, Workers};

/// How a node does. Counters are sums of all workers and, where they are kept, of earlier runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// Version of the switch.
    pub version: &'static str,
    /// Name of the node.
    pub node: String,
    /// Epoch of the state in force.
    pub epoch: u32,
    /// Pods attached.
    pub pods: usize,
    /// Connections alive.
    pub connections: usize,
    /// The most connections that there may be.
    pub connection_limit: usize,
    /// New connections may push out idle ones: the table is nearly full.
    pub connections_under_pressure: bool,
    /// Frames received.
    pub received: u64,
    /// Frames dropped.
    pub dropped: u64,
    /// Each worker.
    pub workers: Vec<WorkerStatus>,
    /// Objects that are not in force as they are written, and why.
    pub left_out: Vec<String>,
}

/// How a worker does.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Which.
    pub worker: usize,
    /// Share of time in rounds that moved frames, in percent.
    pub busy_percent: f64,
    /// Frames to a burst.
    pub batch_fill: f64,
    /// Packets that took the fast path.
    pub hits: u64,
    /// Packets that took the slow path.
    pub misses: u64,
    /// The last state that it acknowledged.
    pub acknowledged: u32,
}

impl Status {
    /// `stats`: the counters now.
    pub(crate) fn read(control: &ControlPlane, node: &str, stats: &Stats) -> Self {
        let tracker = &control.shared().tracker;
        let mut status = Self {
            version: env!("CARGO_PKG_VERSION"),
            node: node.to_owned(),
            epoch: control.snapshot().epoch.0,
            pods: stats.pods,
            connections: tracker.len(),
            connection_limit: tracker.limit(),
            connections_under_pressure: tracker.is_under_pressure(),
            received: stats.received,
            dropped: stats.dropped,
            workers: Vec::new(),
            left_out: control.left_out().iter().map(|object| object.error.to_string()).collect(),
        };
        for (index, worker) in control.workers().enumerate() {
            let (counters, load) = (&worker.counters, worker.load.read());
            status.workers.push(WorkerStatus {
                worker: index,
                busy_percent: 100.0 * load.busy_share(),
                batch_fill: load.batch_fill(),
                hits: counters.hits.get(),
                misses: counters.misses.get(),
                acknowledged: worker.acknowledged().0,
            });
        }
        status
    }
}

/// A pod that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PodInfo {
    /// `namespace/name`.
    pub pod: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its interface, as the pod sees it.
    pub interface: String,
    /// Kind of the interface: `tap` or `veth`.
    pub kind: &'static str,
    /// MAC address of the interface.
    pub mac: String,
    /// Its port of the switch.
    pub port: u16,
    /// Connections that it opened and that are alive.
    pub connections: u32,
    /// Frames that the pod sent.
    pub sent_packets: u64,
    /// Bytes that the pod sent.
    pub sent_bytes: u64,
    /// Frames that the pod received.
    pub received_packets: u64,
    /// Bytes that the pod received.
    pub received_bytes: u64,
    /// Frames that the pod sent and that were dropped.
    pub dropped: u64,
}

impl PodInfo {
    /// The pods that are attached, by name. `workers` may have stopped.
    pub(crate) fn list(control: &ControlPlane, workers: &Workers, pods: &Pods) -> Vec<Self> {
        let infos =
            pods.list().map(|(pod, port, share)| Self::read(control, workers, pod, (port, share)));
        let mut list: Vec<_> = infos.collect();
        list.sort_by(|a, b| a.pod.cmp(&b.pod));
        list
    }

    fn read(
        control: &ControlPlane,
        workers: &Workers,
        attachment: &PodAttachment,
        (port, share): (PortId, Share),
    ) -> Self {
        let counts = share.of(PodCounts::of_port(workers, port));
        Self {
            pod: attachment.pod.to_string(),
            addresses: attachment.addresses.clone(),
            interface: attachment.interface.clone(),
            kind: match attachment.kind {
                InterfaceKind::Tap => "tap",
                InterfaceKind::Veth => "veth",
            },
            mac: attachment.mac.to_string(),
            port: port.0,
            connections: control.shared().tracker.originated(port),
            sent_packets: counts.sent_packets,
            sent_bytes: counts.sent_bytes,
            received_packets: counts.received_packets,
            received_bytes: counts.received_bytes,
            dropped: counts.dropped,
        }
    }

    pub(crate) fn counts(&self) -> PodCounts {
        PodCounts {
            sent_packets: self.sent_packets,
            sent_bytes: self.sent_bytes,
            received_packets: self.received_packets,
            received_bytes: self.received_bytes,
            dropped: self.dropped,
        }
    }
}
