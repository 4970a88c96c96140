//! Finds the names for the addresses that a worker recorded, in the snapshot with which the frame
//! was dropped.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_policy::rule::Direction;
use podswitch_policy::verdict::Traffic;
use podswitch_wire::flow_key::FlowKey;

use super::raw::RawDrop;
use super::table::Other;
use crate::action::{DropClass, DropReason, Plan};
use crate::id::{Cookie, Epoch, PortId};
use crate::resolve::{Query, decide};

use crate::snapshot::{FibEntry, Reach, Snapshot};
use crate::time::Instant;

/// One end of a dropped frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct End {
    /// Address in the packet.
    pub address: IpAddr,
    /// Port; 0 if the protocol has none, and for sources of frames that were counted together.
    pub port: u16,
    /// Namespace of the pod that has the address.
    pub namespace: Option<Arc<str>>,
    /// Name of that pod.
    pub pod: Option<Arc<str>>,
    /// The node on which the pod is, or to which the address belongs.
    pub node: Option<Arc<str>>,
}

impl End {
    /// An end without a name.
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self { address, port, namespace: None, pod: None, node: None }
    }

    /// An end with the names of its address in `snapshot`.
    pub fn named(address: IpAddr, port: u16, snapshot: Option<&Snapshot>) -> Self {
        let mut end = Self::new(address, port);
        let Some(snapshot) = snapshot else { return end };
        if let Some(facts) = snapshot.endpoints.get(&address) {
            let endpoint = &facts.endpoint;
            end.node = Some(endpoint.node.clone());
            // Pods with their node's network share the node's address.
            if !endpoint.workload.host_network {
                end.namespace = Some(endpoint.workload.namespace.clone());
                end.pod = Some(endpoint.workload.name.clone());
            }
        } else if snapshot.node_addresses.contains(&address) {
            end.node = Some(snapshot.node.clone());
        } else if let Some(FibEntry::Node(Reach::Tunnel(vtep))) = snapshot.fib.get(address) {
            end.node = snapshot.tunnels.node(*vtep).cloned();
        }
        end
    }
}

/// Dropped frames: one, or several similar frames that were counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DropRecord {
    /// The worker that dropped them.
    pub worker: usize,
    /// The reason.
    pub reason: DropReason,
    /// Number of frames.
    pub count: u64,
    /// Sum of their lengths in bytes; 0 for frames that were lost before they were read.
    pub bytes: u64,
    /// When the first was dropped, on the switch's clock.
    pub first: Instant,
    /// When the last was dropped.
    pub last: Instant,
    /// The snapshot in force at that time. 0: unknown.
    pub epoch: Epoch,
    /// The port that received them. `None`: any port, see [`is_other`](Self::is_other).
    pub port: Option<PortId>,
    /// The source, if it is an IP packet that can be parsed.
    pub src: Option<End>,
    /// The destination.
    pub dst: Option<End>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// The Service to which the destination address belongs.
    pub service: Option<Arc<str>>,
    /// The backend that the Service selected.
    pub backend: Option<SocketAddr>,
    /// The object that caused the decision, for any reason.
    pub object: Option<Cookie>,
    /// For denials by policy, the end whose policies denied the connection.
    pub direction: Option<Direction>,
    /// The policy whose rule denied the connection.
    pub policy: Option<Arc<str>>,
    /// Index of that rule.
    pub rule: Option<u32>,
    /// If no rule denied it, but none allowed it either: the policies that isolate the pod.
    pub isolated_by: Vec<Arc<str>>,
    /// TCP flags of a single frame.
    pub tcp_flags: u8,
    /// VLAN of a single frame.
    pub vlan: Option<u16>,
    /// A single frame is a fragment.
    pub is_fragment: bool,
    /// The first [`PREFIX`](super::PREFIX) bytes of a single frame.
    pub prefix: Vec<u8>,
    /// A sum of frames that found no row in the table: only reason, counts and times are known.
    pub is_other: bool,
}

impl DropRecord {
    /// A record with no other facts yet.
    pub fn new(worker: usize, reason: DropReason) -> Self {
        Self {
            worker,
            reason,
            count: 0,
            bytes: 0,
            first: Instant::ZERO,
            last: Instant::ZERO,
            epoch: Epoch::default(),
            port: None,
            src: None,
            dst: None,
            protocol: None,
            service: None,
            backend: None,
            object: None,
            direction: None,
            policy: None,
            rule: None,
            isolated_by: Vec::new(),
            tcp_flags: 0,
            vlan: None,
            is_fragment: false,
            prefix: Vec::new(),
            is_other: false,
        }
    }

    pub(super) fn other(worker: usize, reason: DropReason, other: Other) -> Self {
        let Other { count, bytes, first, last, epoch } = other;
        Self { count, bytes, first, last, epoch, is_other: true, ..Self::new(worker, reason) }
    }

    /// Whether it is a single frame.
    pub fn is_single(&self) -> bool {
        !self.prefix.is_empty()
    }

    fn set_ends(&mut self, key: &FlowKey, snapshot: Option<&Snapshot>) {
        self.src = Some(End::named(key.src_addr(), key.src_port, snapshot));
        self.dst = Some(End::named(key.dst_addr(), key.dst_port, snapshot));
        self.protocol = Some(key.proto);
        let (Some(snapshot), Some(port)) = (snapshot, self.port) else { return };
        let query = Query::new(key, port);
        let (mut pinned, mut plan) = (query.pinned(), Plan::default());
        decide(snapshot, &query, None, &mut pinned, &mut plan);
        let via_service = pinned.is_via_service();
        let server = SocketAddr::new(pinned.reply.src_addr(), pinned.reply.src_port);
        if snapshot.services.is_frontend(key) {
            self.service = snapshot.services.name(key);
            self.backend = via_service.then_some(server);
        }
        if self.reason.class() == DropClass::Policy {
            let traffic = Traffic { protocol: key.proto, port: server.port(), via_service };
            let explanation = snapshot.policy.explain(key.src_addr(), server.ip(), traffic);
            if let Some(side) = explanation.denied_by() {
                self.direction = Some(side.direction);
                self.rule = side.rule;
                self.policy = side.policy.clone().filter(|_| side.rule.is_some());
                self.isolated_by = match side.rule {
                    Some(_) => Vec::new(),
                    None => side.isolated_by.clone(),
                };
            }
        }
    }
}

/// The record of a drop that a worker recorded.
pub(crate) fn record(worker: usize, raw: &RawDrop, snapshot: Option<&Snapshot>) -> DropRecord {
    let mut record = DropRecord {
        count: raw.count,
        bytes: raw.bytes,
        first: raw.first,
        last: raw.last,
        epoch: raw.epoch,
        port: Some(raw.alike.port),
        object: raw.alike.object.clone(),
        ..DropRecord::new(worker, raw.alike.reason)
    };
    if let Some(frame) = &raw.frame {
        record.tcp_flags = frame.tcp_flags;
        record.vlan = frame.vlan;
        record.is_fragment = frame.is_fragment;
        record.prefix = frame.prefix.to_vec();
    }
    if let Some(key) = &raw.alike.key {
        let src_port = raw.frame.as_ref().map_or(0, |frame| frame.src_port);
        record.set_ends(&FlowKey { src_port, ..*key }, snapshot);
    }
    record
}
