//! The facts about a connection, with the names of the snapshot that allowed it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_policy::service::table::BackendState;
use podswitch_policy::table::Decision;
use podswitch_policy::verdict::{Traffic, Why};

use super::super::resolve::End;
use crate::engine::EndCause;
use crate::flow::connection::{ConnectionInfo, OpenedAt, Pinned};
use crate::flow::tcp::{TcpState, is_over};
use crate::id::Epoch;
use crate::snapshot::Snapshot;
use crate::time::Instant;

/// Why one end's policies allowed a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allowed {
    /// The reason.
    pub why: Why,
    /// Cookie of the policy whose rule allowed it.
    pub policy: Option<Arc<str>>,
    /// Index of that rule in the policy's list for the direction.
    pub rule: Option<u32>,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// Both ends closed it (TCP).
    Fin,
    /// An end reset it (TCP).
    Rst,
    /// It was idle for the timeout of its state.
    Timeout,
    /// It was ended in favour of another one at a limit of the connection table or of source ports.
    Evicted,
    /// A packet of its client opened another connection in its place.
    Replaced,
    /// A change of the state made a policy deny it.
    PolicyChanged,
    /// The pod of an end was removed.
    PodDeleted,
    /// The backend no longer belongs to the Service.
    BackendGone,
    /// The switch stopped.
    Shutdown,
    /// The switch answered it itself: a name query. There was no connection, and no record of its opening.
    Answered,
}

impl CloseReason {
    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fin => "fin",
            Self::Rst => "rst",
            Self::Timeout => "timeout",
            Self::Evicted => "evicted",
            Self::Replaced => "replaced",
            Self::PolicyChanged => "policy_changed",
            Self::PodDeleted => "pod_gone",
            Self::BackendGone => "backend_gone",
            Self::Shutdown => "shutdown",
            Self::Answered => "answered",
        }
    }
}

/// The event or state that a record reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowChange {
    /// The connection was opened.
    Opened,
    /// It continues.
    Updated,
    /// It ended.
    Closed(CloseReason),
}

/// A connection at one time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FlowRecord {
    /// The event or state that this record reports.
    pub change: FlowChange,
    /// Number of the connection, the same in all of its records.
    pub id: u64,
    /// When it was opened, on the switch's clock.
    pub start: Instant,
    /// The time of this record.
    pub time: Instant,
    /// The second of its last packet.
    pub last_packet: Instant,
    /// The snapshot that names and verdict come from: the one that allowed the connection, if it is
    /// still known.
    pub epoch: Epoch,
    /// The client.
    pub client: End,
    /// The address to which the client connects, such as a Service's address.
    pub target: SocketAddr,
    /// The server: the backend of a Service, or the target.
    pub server: End,
    /// The client as the server sees it, if its address or port is translated.
    pub source_nat: Option<SocketAddr>,
    /// IP protocol number.
    pub protocol: u8,
    /// The Service to which the client connects.
    pub service: Option<Arc<str>>,
    /// Whether the target is translated to the server.
    pub is_translated: bool,
    /// Why the client's policies allowed it.
    pub egress: Option<Allowed>,
    /// Why the server's policies allowed it.
    pub ingress: Option<Allowed>,
    /// Packets from the client, and from the server.
    pub packets: [u64; 2],
    /// Bytes from the client, and from the server.
    pub bytes: [u64; 2],
    /// TCP states of both sides.
    pub tcp: Option<[TcpState; 2]>,
    /// What a name query that the switch answered itself asked for.
    pub question: Option<NameQuestion>,
}

/// The question of a name query, and how it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameQuestion {
    /// The name, with a dot at its end. Empty: the query could not be read.
    pub name: String,
    /// Type of the records asked for.
    pub qtype: u16,
    /// Response code.
    pub rcode: podswitch_dns::Rcode,
}

impl FlowRecord {
    /// A record of a connection without translation, with no other facts yet.
    pub fn new(change: FlowChange, id: u64, protocol: u8, client: End, server: End) -> Self {
        Self {
            change,
            id,
            start: Instant::ZERO,
            time: Instant::ZERO,
            last_packet: Instant::ZERO,
            epoch: Epoch(0),
            client,
            target: SocketAddr::new(server.address, server.port),
            server,
            source_nat: None,
            protocol,
            service: None,
            is_translated: false,
            egress: None,
            ingress: None,
            packets: [0; 2],
            bytes: [0; 2],
            tcp: None,
            question: None,
        }
    }

    /// The time from the first packet to the time of the record; if the connection ended by
    /// timeout, to its last packet.
    pub fn duration(&self) -> std::time::Duration {
        self.end().since(self.start)
    }

    /// When it ended, as far as is known; for other records the time of the record.
    pub fn end(&self) -> Instant {
        match self.change {
            FlowChange::Closed(CloseReason::Shutdown) => self.time,
            FlowChange::Closed(_) => self.last_packet.max(self.start).min(self.time),
            _ => self.time,
        }
    }
}

/// The facts that do not change during a connection, with names.
#[derive(Clone, Debug)]
pub(super) struct Names {
    epoch: Epoch,
    client: End,
    server: End,
    service: Option<Arc<str>>,
    egress: Option<Allowed>,
    ingress: Option<Allowed>,
}

/// How the ends of a TCP connection closed it, if they did.
pub(super) fn closed_by_ends(info: &ConnectionInfo) -> Option<CloseReason> {
    match info.tcp? {
        [a, b] if a == TcpState::Reset || b == TcpState::Reset => Some(CloseReason::Rst),
        [a, b] if is_over(a, b) => Some(CloseReason::Fin),
        _ => None,
    }
}

fn traffic(pinned: &Pinned) -> (IpAddr, SocketAddr, Traffic) {
    let server = SocketAddr::new(pinned.reply.src_addr(), pinned.reply.src_port);
    let via_service = pinned.is_via_service();
    let traffic = Traffic { protocol: pinned.original.proto, port: server.port(), via_service };
    (pinned.original.src_addr(), server, traffic)
}

impl Names {
    pub(super) fn of(pinned: &Pinned, snapshot: Option<&Snapshot>) -> Self {
        let (client, server, traffic) = traffic(pinned);
        let mut names = Self {
            epoch: snapshot.map_or(Epoch(0), |snapshot| snapshot.epoch),
            client: End::named(client, pinned.original.src_port, snapshot),
            server: End::named(server.ip(), server.port(), snapshot),
            service: None,
            egress: None,
            ingress: None,
        };
        let Some(snapshot) = snapshot else { return names };
        if pinned.is_via_service() {
            names.service = snapshot.services.name(&pinned.original);
        }
        let policy = &snapshot.policy;
        let verdict = policy.verdict(&policy.party(client), &policy.party(server.ip()), traffic);
        let allowed = |decision: Decision| Allowed {
            why: decision.why,
            rule: decision.rule,
            policy: decision
                .rule
                .and_then(|_| Some(Arc::clone(policy.policy(decision.policy)?.object.cookie()))),
        };
        // Policies may have changed since then, so the rule that allowed it is not known.
        names.egress = verdict.egress.allow.then(|| allowed(verdict.egress));
        names.ingress = verdict.ingress.allow.then(|| allowed(verdict.ingress));
        names
    }

    /// The record of a connection that was just opened.
    pub(super) fn opened(&self, id: u64, pinned: &Pinned, at: OpenedAt) -> FlowRecord {
        self.record(FlowChange::Opened, id, pinned, at.time, at.time)
    }

    /// The record of a connection with its counts.
    pub(super) fn counted(
        &self,
        change: FlowChange,
        info: &ConnectionInfo,
        time: Instant,
    ) -> FlowRecord {
        let opened = info.opened.time;
        FlowRecord {
            last_packet: Instant::from_secs(info.last_seen.into()),
            packets: info.packets,
            bytes: info.bytes,
            tcp: info.tcp,
            ..self.record(change, info.connection.id(), &info.pinned, opened, time)
        }
    }

    fn record(
        &self,
        change: FlowChange,
        id: u64,
        pinned: &Pinned,
        start: Instant,
        time: Instant,
    ) -> FlowRecord {
        let Self { epoch, client, server, service, egress, ingress } = self.clone();
        let (original, reply) = (&pinned.original, &pinned.reply);
        let seen = SocketAddr::new(reply.dst_addr(), reply.dst_port);
        let own = SocketAddr::new(original.src_addr(), original.src_port);
        FlowRecord {
            start,
            time,
            last_packet: start,
            epoch,
            target: SocketAddr::new(original.dst_addr(), original.dst_port),
            source_nat: (seen != own).then_some(seen),
            service,
            is_translated: pinned.is_via_service(),
            egress,
            ingress,
            ..FlowRecord::new(change, id, original.proto, client, server)
        }
    }

    /// Why a connection ended, from the actions of its ends, the actions of the worker, or the
    /// changes since it was opened.
    pub(super) fn close_reason(
        &self,
        info: &ConnectionInfo,
        cause: EndCause,
        snapshot: Option<&Snapshot>,
    ) -> CloseReason {
        if let Some(reason) = closed_by_ends(info) {
            return reason;
        }
        match (cause, snapshot) {
            (EndCause::Evicted, _) => CloseReason::Evicted,
            (EndCause::Replaced, _) => CloseReason::Replaced,
            (EndCause::BackendGone, _) => CloseReason::BackendGone,
            (EndCause::PolicyChanged, _) => CloseReason::PolicyChanged,
            (EndCause::PodDeleted, _) => CloseReason::PodDeleted,
            (EndCause::Timeout, None) => CloseReason::Timeout,
            (EndCause::Timeout, Some(snapshot)) => self.silent_because(&info.pinned, snapshot),
        }
    }

    fn silent_because(&self, pinned: &Pinned, snapshot: &Snapshot) -> CloseReason {
        let is_gone = |end: &End| {
            let now = End::named(end.address, end.port, Some(snapshot));
            end.pod.is_some() && (&end.namespace, &end.pod) != (&now.namespace, &now.pod)
        };
        let (client, server, traffic) = traffic(pinned);
        let has_no_backend = || {
            let state = snapshot.services.backend_state(&pinned.original, server);
            matches!(state, BackendState::Gone | BackendState::NoService)
        };
        if is_gone(&self.client) || is_gone(&self.server) {
            return CloseReason::PodDeleted;
        }
        if self.service.is_some() && has_no_backend() {
            return CloseReason::BackendGone;
        }
        let policy = &snapshot.policy;
        let verdict = policy.verdict(&policy.party(client), &policy.party(server.ip()), traffic);
        match verdict.allow() {
            true => CloseReason::Timeout,
            false => CloseReason::PolicyChanged,
        }
    }
}
