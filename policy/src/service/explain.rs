//! Why a connection gets its backend, or no backend; as text and as data.
//!
//! Called by `explain`, never on the packet path. The decision is the table's own, so the
//! explanation cannot disagree with it.

use core::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use podswitch_wire::flow_key::FlowKey;

use super::endpoints::Topology;
use super::entry::{BackendFlags, Scope, ServiceEntry};
use super::table::{DropReason, Found, FrontendKind, Lookup, Origin, RejectReason, ServiceTable};
use crate::rule::Protocol;

/// The decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Not a Service address: routed without translation.
    NotAService,
    /// Forwarded to this backend.
    Backend {
        /// Address and port.
        address: SocketAddr,
        /// The source is translated, too.
        source_nat: bool,
    },
    /// Rejected, with an answer to the client.
    Reject(RejectReason),
    /// Dropped, without an answer.
    Drop(DropReason),
}

/// One backend of the Service and its part in the selection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendLine {
    /// Address and port.
    pub address: SocketAddr,
    /// Node that it is on.
    pub node: Option<Arc<str>>,
    /// Zone that it is in.
    pub zone: Option<Arc<str>>,
    /// Cookie of the object behind it.
    pub target: Option<Arc<str>>,
    /// State according to the slices.
    pub flags: BackendFlags,
    /// Its weight.
    pub weight: u16,
    /// Share of new connections in the scope that applies, in thousandths.
    pub share_permille: u32,
    /// The selected one.
    pub chosen: bool,
}

/// How a backend was selected: by the table slot of the connection's hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The slot.
    pub slot: usize,
    /// The number of slots.
    pub slots: usize,
    /// The hash covers only the client's address, because the Service has affinity; otherwise it
    /// covers both addresses and ports.
    pub by_client: bool,
}

/// The Service of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceLines {
    /// Its cookie.
    pub cookie: Arc<str>,
    /// Name of its port.
    pub port_name: Arc<str>,
    /// Protocol of its port.
    pub protocol: Protocol,
    /// Number of its port.
    pub port: u16,
    /// Kind of the address that the client used; `None` if the address itself is the reason for the
    /// refusal.
    pub kind: Option<FrontendKind>,
    /// The set of backends that applies, if it was determined.
    pub scope: Option<Scope>,
    /// Hints that are honoured.
    pub topology: Topology,
    /// Affinity timeout in seconds.
    pub affinity: Option<u32>,
    /// How the backend was selected, if one was.
    pub choice: Option<Choice>,
    /// Every known backend.
    pub backends: Vec<BackendLine>,
}

/// An explanation; prints as text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The decision.
    pub outcome: Outcome,
    /// Cookie of the Service, if there is one.
    pub cookie: Option<Arc<str>>,
    /// The Service's port, if there is one.
    pub service: Option<ServiceLines>,
}

/// Explains the table's decision for a new connection.
pub fn explain(table: &ServiceTable, key: &FlowKey, origin: Origin) -> Explanation {
    let kind = table.kind(key);
    match table.lookup(key, origin) {
        Lookup::NotAService => {
            Explanation { outcome: Outcome::NotAService, cookie: None, service: None }
        }
        Lookup::Backend(chosen) => {
            let mut service = lines(chosen.entry, kind, Some(chosen.scope), Some(chosen.index));
            if let Found::Service(found) = table.find(key, origin) {
                service.choice = Some(Choice {
                    slot: table.slot(&found, key),
                    slots: chosen.entry.table(chosen.scope).size(),
                    by_client: chosen.entry.affinity.is_some(),
                });
            }
            Explanation {
                outcome: Outcome::Backend {
                    address: chosen.backend().socket(),
                    source_nat: chosen.needs_snat,
                },
                cookie: Some(chosen.entry.cookie.clone()),
                service: Some(service),
            }
        }
        Lookup::Reject(reason, subject) => Explanation {
            outcome: Outcome::Reject(reason),
            cookie: subject.cookie.cloned(),
            service: subject.entry.map(|entry| lines(entry, kind, None, None)),
        },
        Lookup::Drop(reason, subject) => Explanation {
            outcome: Outcome::Drop(reason),
            cookie: subject.cookie.cloned(),
            service: subject.entry.map(|entry| {
                let local = reason == DropReason::NoLocalEndpoints;
                lines(entry, kind, local.then_some(Scope::Local), None)
            }),
        },
    }
}

fn lines(
    entry: &ServiceEntry,
    kind: Option<FrontendKind>,
    scope: Option<Scope>,
    chosen: Option<usize>,
) -> ServiceLines {
    let mut slots = vec![0u64; entry.backends().len()];
    let table = entry.table(scope.unwrap_or(Scope::Cluster));
    table.slots().for_each(|index| slots[usize::from(index)] += 1);
    let all = table.size() as u64;
    let line = |(index, backend): (usize, &super::entry::Backend)| {
        let detail = entry.detail(index).cloned().unwrap_or_default();
        BackendLine {
            address: backend.socket(),
            node: detail.node,
            zone: detail.zone,
            target: detail.target,
            flags: backend.flags,
            weight: backend.weight,
            share_permille: ((slots[index] * 1000 + all / 2) / all) as u32,
            chosen: chosen == Some(index),
        }
    };
    ServiceLines {
        cookie: entry.cookie.clone(),
        port_name: entry.port_name.clone(),
        protocol: entry.protocol,
        port: entry.port,
        kind,
        scope,
        topology: entry.topology,
        affinity: entry.affinity,
        choice: None,
        backends: entry.backends().iter().enumerate().map(line).collect(),
    }
}

impl BackendLine {
    /// The backend's state in a few words, with the reason if it gets no new connections.
    pub fn state(&self, scope: Option<Scope>) -> &'static str {
        let has = |flag| self.flags.has(flag);
        let taken = match scope {
            Some(Scope::Local) => has(BackendFlags::IN_LOCAL),
            _ => has(BackendFlags::IN_CLUSTER),
        };
        let terminating = has(BackendFlags::TERMINATING);
        match (taken, has(BackendFlags::READY)) {
            (true, true) => "ready",
            (true, false) => "terminating, serving as the last resort",
            (false, _) if self.weight == 0 => "weight 0",
            (false, true) if scope == Some(Scope::Local) && !has(BackendFlags::LOCAL) => {
                "ready, on another node"
            }
            (false, true) => "ready, meant for others by its hints",
            (false, false) if terminating && has(BackendFlags::SERVING) => "terminating, serving",
            (false, false) if terminating => "terminating",
            (false, false) => "not ready",
        }
    }
}

impl Outcome {
    /// The decision in a sentence.
    fn sentence(&self) -> String {
        match self {
            Self::NotAService => "not a Service's address".into(),
            Self::Backend { address, source_nat: false } => format!("to {address}"),
            Self::Backend { address, source_nat: true } => {
                format!("to {address}, with source address translation")
            }
            Self::Reject(RejectReason::NoEndpoints) => "rejected: no usable endpoint".into(),
            Self::Reject(RejectReason::UndefinedPort) => {
                "rejected: the Service's address has no such port".into()
            }
            Self::Drop(DropReason::NoLocalEndpoints) => {
                "dropped: the traffic policy is Local and no usable endpoint is on this node".into()
            }
            Self::Drop(DropReason::SourceRange) => {
                "dropped: the client is outside loadBalancerSourceRanges".into()
            }
            Self::Drop(DropReason::Unallocated) => {
                "dropped: no Service has this address of the Service range".into()
            }
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(service) = &self.service else {
            if let Some(cookie) = &self.cookie {
                write!(f, "{cookie}: ")?;
            }
            return f.write_str(&self.outcome.sentence());
        };
        write!(f, "{} port {}", service.cookie, service.port)?;
        if !service.port_name.is_empty() {
            write!(f, " ({})", service.port_name)?;
        }
        if let Some(kind) = service.kind {
            write!(f, " by {}", kind.name())?;
        }
        write!(f, ": {}", self.outcome.sentence())?;
        match service.topology {
            Topology::Anywhere => {}
            Topology::SameZone => f.write_str("\n  hints are followed: same zone")?,
            Topology::SameNode => f.write_str("\n  hints are followed: same node")?,
        }
        if let Some(seconds) = service.affinity {
            write!(f, "\n  clients stay with their backend for {seconds} s")?;
        }
        if let Some(Choice { slot, slots, by_client }) = service.choice {
            let by = if by_client { "the client's address" } else { "both addresses and ports" };
            write!(f, "\n  chosen by the hash of {by}: slot {slot} of {slots}")?;
        }
        for line in &service.backends {
            let mark = if line.chosen { '*' } else { ' ' };
            write!(f, "\n {mark} {} {}", line.address, line.state(service.scope))?;
            if let Some(node) = &line.node {
                write!(f, ", node {node}")?;
            }
            if let Some(zone) = &line.zone {
                write!(f, ", zone {zone}")?;
            }
            if let Some(target) = &line.target {
                write!(f, ", {target}")?;
            }
            if line.share_permille > 0 {
                write!(f, ", {}.{} %", line.share_permille / 10, line.share_permille % 10)?;
            }
        }
        Ok(())
    }
}
