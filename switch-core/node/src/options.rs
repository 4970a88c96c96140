//! Options of a node's switch.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use podswitch_core::control::Pinning;
use podswitch_core::engine::Limits;
use podswitch_linux::handover::Inherited;
use podswitch_linux::{HostError, NetNs};
use podswitch_wire::cidr::Cidr;

use crate::cluster::{ClusterOptions, Masquerading};
use crate::error::NodeError;
use crate::events::EventSink;
use crate::kube_proxy::KubeProxyMode;
use crate::metrics::Meters;

/// Most workers.
const MAX_WORKERS: usize = 64;
/// IPv6 needs links to carry at least 1280 bytes (RFC 8200 §5); a TAP takes at most 65,521.
const MTU_RANGE: std::ops::RangeInclusive<u16> = 1280..=65_521;

/// Options of a node's switch. All but the name have defaults.
///
/// ```
/// use podswitch_node::{Masquerading, NodeOptions, UnderlayOptions};
///
/// let mut underlay = UnderlayOptions::default();
/// underlay.uplink = Some("eth0".into());
/// let options = NodeOptions::new("node-1")
///     .workers(2)
///     .masquerade(Masquerading::Kernel)
///     .underlay(underlay)
///     .on_event(|event| eprintln!("{event}"));
/// ```
pub struct NodeOptions {
    pub(crate) name: String,
    pub(crate) namespace: Option<NetNs>,
    pub(crate) switch_namespace: Option<NetNs>,
    pub(crate) workers: usize,
    pub(crate) pinning: Pinning,
    pub(crate) limits: Limits,
    pub(crate) masquerade: Masquerading,
    pub(crate) cluster_cidrs: Vec<Cidr>,
    pub(crate) underlay: UnderlayOptions,
    pub(crate) kube_proxy: KubeProxyMode,
    pub(crate) keep_connections: Option<PathBuf>,
    pub(crate) inherited: Inherited,
    pub(crate) lenient: bool,
    pub(crate) report_drops: bool,
    pub(crate) report_flows: bool,
    pub(crate) update_flows: Option<Duration>,
    pub(crate) sink: Option<Box<dyn EventSink>>,
    pub(crate) meters: Meters,
}

impl NodeOptions {
    /// The switch of the node `name`, in this process's network namespace, with one worker.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: None,
            switch_namespace: None,
            workers: 1,
            pinning: Pinning::default(),
            limits: Limits::default(),
            masquerade: Masquerading::default(),
            cluster_cidrs: Vec::new(),
            underlay: UnderlayOptions::default(),
            kube_proxy: KubeProxyMode::default(),
            keep_connections: None,
            inherited: Inherited::default(),
            lenient: false,
            report_drops: false,
            report_flows: false,
            update_flows: None,
            sink: None,
            meters: Meters::default(),
        }
    }

    /// The node's own network namespace, if it is not that of this process.
    #[must_use]
    pub fn namespace(mut self, namespace: NetNs) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// Where the node enters what it measures, for [`Node::metrics`](crate::Node::metrics).
    #[must_use]
    pub fn meters(mut self, meters: Meters) -> Self {
        self.meters = meters;
        self
    }

    /// The namespace in which the switch keeps its ends of veth pairs. Otherwise one named
    /// `podswitch-NODE`, created when it is needed and removed at the end.
    #[must_use]
    pub fn switch_namespace(mut self, namespace: NetNs) -> Self {
        self.switch_namespace = Some(namespace);
        self
    }

    /// How many workers forward, each on a thread of its own: 1 to 64.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Which processor cores workers are pinned to; by default none.
    #[must_use]
    pub fn pinning(mut self, pinning: Pinning) -> Self {
        self.pinning = pinning;
        self
    }

    /// Bounds of the tables.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What happens to the source address of packets that leave the cluster; by default the node's
    /// kernel masquerades them.
    #[must_use]
    pub fn masquerade(mut self, masquerade: Masquerading) -> Self {
        self.masquerade = masquerade;
        self
    }

    /// Ranges that belong to the cluster, in addition to those of nodes and pods: packets of pods
    /// to them keep their source address.
    #[must_use]
    pub fn cluster_cidrs(mut self, ranges: impl IntoIterator<Item = Cidr>) -> Self {
        self.cluster_cidrs = ranges.into_iter().collect();
        self
    }

    /// Takes masquerading and cluster ranges from the cluster's options.
    #[must_use]
    pub fn cluster(self, options: &ClusterOptions) -> Self {
        self.masquerade(options.masquerade).cluster_cidrs(options.cluster_cidrs.iter().copied())
    }

    /// How other nodes are reached.
    #[must_use]
    pub fn underlay(mut self, underlay: UnderlayOptions) -> Self {
        self.underlay = underlay;
        self
    }

    /// Whether kube-proxy serves this node; by default it is looked for.
    #[must_use]
    pub fn kube_proxy(mut self, mode: KubeProxyMode) -> Self {
        self.kube_proxy = mode;
        self
    }

    /// Keeps the connections in files in this folder, which must be on tmpfs and this switch's alone, so that they
    /// outlive the process: the next run on this node goes on with them, after a kill too. They take 256 bytes each,
    /// and 8 MiB ahead. Where that is not possible, a failure is reported and the switch runs without.
    #[must_use]
    pub fn keep_connections(mut self, folder: impl Into<PathBuf>) -> Self {
        self.keep_connections = Some(folder.into());
        self
    }

    /// Takes the node over from a running switch, which gave this process these files
    /// ([`Predecessor::receive_devices`](crate::Predecessor::receive_devices)). [`Node::start`](crate::Node::start) then attaches its devices
    /// while it forwards; packets are forwarded from [`Node::take_over`](crate::Node::take_over) on.
    #[must_use]
    pub fn take_over(mut self, files: Inherited) -> Self {
        self.inherited = files;
        self
    }

    /// Goes on with devices that a holder kept for a switch that has ended
    /// ([`HolderLink::connect`](crate::hold::HolderLink::connect)). Nobody else forwards. If there are any, what waits in
    /// them is received from [`Node::hold`](crate::Node::hold) on, which must be called when the pods are attached: a frame
    /// of a pod that no state in force describes would be dropped (N13).
    #[must_use]
    pub fn held(mut self, files: Inherited) -> Self {
        self.inherited = files;
        self
    }

    /// Leaves out invalid objects, with an [`Event::LeftOut`](crate::Event::LeftOut) for each; the
    /// rest of the state is put in force. Otherwise one of them makes the whole state refused.
    #[must_use]
    pub fn lenient(mut self, lenient: bool) -> Self {
        self.lenient = lenient;
        self
    }

    /// Reports each dropped frame ([`Event::Dropped`](crate::Event::Dropped)). Otherwise drops are
    /// counted only ([`Node::stats`](crate::Node::stats)).
    #[must_use]
    pub fn report_drops(mut self) -> Self {
        self.report_drops = true;
        self
    }

    /// Reports each connection that is opened and that ends
    /// ([`Event::FlowOpened`](crate::Event::FlowOpened), [`Event::FlowClosed`](crate::Event::FlowClosed)).
    #[must_use]
    pub fn report_flows(mut self) -> Self {
        self.report_flows = true;
        self
    }

    /// As [`report_flows`](Self::report_flows), and every `interval` (at least a second) each connection with a packet
    /// since ([`Event::FlowUpdated`](crate::Event::FlowUpdated)). The cost is proportional to the number of
    /// connections.
    #[must_use]
    pub fn update_flows(mut self, interval: Duration) -> Self {
        self.report_flows = true;
        self.update_flows = Some(interval.max(Duration::from_secs(1)));
        self
    }

    /// Where events go: a closure, or an end of [`channel`](crate::channel). Called on the thread
    /// that calls the [`Node`](crate::Node), at the end of its calls.
    #[must_use]
    pub fn on_event(mut self, sink: impl EventSink + 'static) -> Self {
        self.sink = Some(Box::new(sink));
        self
    }

    /// Checks the values.
    pub(crate) fn check(&self) -> Result<(), NodeError> {
        let refuse = |option, reason: String| Err(NodeError::Option { option, reason });
        if self.name.is_empty() {
            return refuse("name", "is empty".to_owned());
        }
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            let reason = format!("{} is not from 1 to {MAX_WORKERS}", self.workers);
            return refuse("workers", reason);
        }
        if self.underlay.kind == Some(UnderlayKind::Packet) && self.underlay.uplink.is_none() {
            return refuse("underlay.uplink", "the packet underlay needs an interface".to_owned());
        }
        match self.underlay.mtu {
            Some(mtu) if !MTU_RANGE.contains(&mtu) => {
                let (least, most) = (MTU_RANGE.start(), MTU_RANGE.end());
                refuse("underlay.mtu", format!("{mtu} is not from {least} to {most}"))
            }
            _ => Ok(()),
        }
    }

    /// The node's namespace.
    pub(crate) fn open_namespace(&self) -> Result<NetNs, HostError> {
        self.namespace.clone().map_or_else(NetNs::current, Ok)
    }
}

impl fmt::Debug for NodeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeOptions")
            .field("name", &self.name)
            .field("namespace", &self.namespace)
            .field("workers", &self.workers)
            .field("masquerade", &self.masquerade)
            .field("underlay", &self.underlay)
            .finish_non_exhaustive()
    }
}

/// Transport of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnderlayKind {
    /// UDP sockets of the node's stack.
    Udp,
    /// Frames on the uplink.
    Packet,
}

/// How other nodes are reached.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct UnderlayOptions {
    /// Transport of the tunnel. `None`: UDP sockets, once there are other nodes. `Some`: the node
    /// does not start without.
    pub kind: Option<UnderlayKind>,
    /// The interface for direct traffic, and with [`UnderlayKind::Packet`] for the tunnel. The node
    /// does not start without it.
    pub uplink: Option<String>,
    /// MTU of pods and of the node's own port, in bytes, from 1280 to 65,521. `None`: the
    /// underlay's MTU less the outer headers.
    pub mtu: Option<u16>,
}

impl UnderlayOptions {
    /// Whether an option requires the underlay: without it the start fails.
    pub(crate) fn is_required(&self) -> bool {
        self.kind.is_some() || self.uplink.is_some()
    }
}

/// Options that hold for as long as the node runs.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) namespace: NetNs,
    pub(crate) switch_namespace: Option<NetNs>,
    pub(crate) workers: usize,
    pub(crate) masquerade: Masquerading,
    pub(crate) cluster_cidrs: Vec<Cidr>,
    pub(crate) underlay: UnderlayOptions,
    /// Services of the node's own side are kube-proxy's.
    pub(crate) beside_kube_proxy: bool,
    pub(crate) lenient: bool,
    /// What a running switch handed over.
    pub(crate) inherited: Inherited,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_are_refused_by_name() {
        let refused = |options: NodeOptions| match options.check() {
            Err(NodeError::Option { option, .. }) => option,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(NodeOptions::new("")), "name");
        assert_eq!(refused(NodeOptions::new("n").workers(0)), "workers");
        assert_eq!(refused(NodeOptions::new("n").workers(65)), "workers");
        let mut underlay =
            UnderlayOptions { kind: Some(UnderlayKind::Packet), ..UnderlayOptions::default() };
        assert_eq!(refused(NodeOptions::new("n").underlay(underlay.clone())), "underlay.uplink");
        underlay.uplink = Some("eth0".into());
        NodeOptions::new("n").underlay(underlay.clone()).check().unwrap();
        for mtu in [0, 1279, 65_522] {
            underlay.mtu = Some(mtu);
            assert_eq!(refused(NodeOptions::new("n").underlay(underlay.clone())), "underlay.mtu");
        }
    }
}
