//! Explains why a connection is forwarded or not, by the state in force.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_core::action::{DropReason, Plan};
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::resolve::{self, Query};
use podswitch_core::snapshot::{Location, Snapshot};
use podswitch_policy::explain::Explanation;
use podswitch_policy::verdict::Traffic;
use podswitch_wire::flow_key::FlowKey;

/// A connection to explain, by its first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The client.
    pub src: IpAddr,
    /// What it connects to: a pod, a Service, anything else.
    pub dst: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Port of the client. It chooses the backend of a Service.
    pub sport: u16,
    /// Port that it connects to; for an echo request 8 (ICMP) or 128 (ICMPv6).
    pub dport: u16,
}

/// What this node's switch does with the first packet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is forwarded, for a Service to this backend.
    Forward {
        /// The backend, if it is not what the client connects to.
        backend: Option<SocketAddr>,
    },
    /// The switch answers it, since it is for the gateway.
    Gateway,
    /// It is dropped or rejected.
    Drop {
        /// Why.
        reason: DropReason,
        /// The policy or Service that decides it, if one does.
        object: Option<Cookie>,
        /// The backend that a Service had selected for it, whose policies may be what denies it.
        backend: Option<SocketAddr>,
    },
}

/// Why a connection is forwarded or not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// What this node's switch does. `None`: another node's switch gets the first packet.
    pub outcome: Option<Outcome>,
    /// The verdict of the policies of both ends, with the backend in place of a Service. Without
    /// meaning if the outcome is [`Outcome::Gateway`].
    pub policies: Explanation,
}

impl Verdict {
    /// Whether the connection is allowed, as far as this node decides.
    pub fn is_allowed(&self) -> bool {
        match &self.outcome {
            Some(Outcome::Forward { .. }) | None => self.policies.allow(),
            Some(Outcome::Gateway) => true,
            Some(Outcome::Drop { .. }) => false,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.is_allowed() { "allow" } else { "deny" })?;
        match &self.outcome {
            Some(Outcome::Forward { backend: Some(backend) }) => writeln!(f, "backend: {backend}")?,
            Some(Outcome::Forward { backend: None }) => {}
            Some(Outcome::Gateway) => return write!(f, "the gateway answers"),
            Some(Outcome::Drop { reason, object, backend }) => {
                if let Some(backend) = backend {
                    writeln!(f, "backend: {backend}")?;
                }
                write!(f, "drop: {}", reason.name())?;
                match object {
                    Some(object) => writeln!(f, " by {object}")?,
                    None => writeln!(f)?,
                }
            }
            None => writeln!(f, "another node's switch meets it first")?,
        }
        self.policies.fmt(f)
    }
}

/// Explains a connection. `None`: its addresses are of different families.
pub(crate) fn explain(snapshot: &Arc<Snapshot>, connection: &Connection) -> Option<Verdict> {
    let Connection { src, dst, protocol, sport, dport } = *connection;
    let key = FlowKey::new(src, dst, protocol, sport, dport)?;
    let mut server = SocketAddr::new(dst, dport);
    let mut via_service = snapshot.services.is_frontend(&key);
    let outcome = ingress(snapshot, src).map(|ingress| {
        let query = Query::new(&key, ingress);
        let (mut pinned, mut plan) = (query.pinned(), Plan::default());
        let verdict = resolve::decide(snapshot, &query, None, &mut pinned, &mut plan);
        // A packet that policy drops has a backend as well: its policies count, not those of the Service's address.
        let backend = pinned
            .is_via_service()
            .then(|| SocketAddr::new(pinned.reply.src_addr(), pinned.reply.src_port));
        via_service |= backend.is_some();
        server = backend.unwrap_or(server);
        match verdict {
            resolve::Verdict::Forward(_) => Outcome::Forward { backend },
            resolve::Verdict::Gateway => Outcome::Gateway,
            resolve::Verdict::Drop(denial) => {
                Outcome::Drop { reason: denial.reason, object: denial.object, backend }
            }
        }
    });
    let traffic = Traffic { protocol, port: server.port(), via_service };
    Some(Verdict { outcome, policies: snapshot.policy.explain(src, server.ip(), traffic) })
}

/// The ingress port of the first packet from `src`, if this node's switch gets it first.
fn ingress(snapshot: &Snapshot, src: IpAddr) -> Option<PortId> {
    match snapshot.endpoints.get(&src).map(|facts| &facts.location) {
        Some(Location::Attached { port, .. }) => Some(*port),
        Some(Location::Unattached | Location::Remote) => None,
        Some(Location::Host) => snapshot.host.map(|host| host.port),
        None if snapshot.tunnels.is_node_address(src) => None,
        None => snapshot.host.map(|host| host.port),
    }
}
