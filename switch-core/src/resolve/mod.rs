//! The slow path's one decision: where a packet goes and why. A pure function of snapshot, key,
//! ingress port and what is known of the packet's connection.
//!
//! Called by the engine on a miss and after a configuration change, by `explain`, and by tests as a
//! table without packets. Never sends, counts or remembers anything: a decision names the counters
//! that it concerns, and the engine's admission stage counts.
//!
//! Order: source checks → Service (DNAT, SNAT) → network policy at both ends → route. For replies
//! and other packets of a known connection, translation is taken from the connection.

mod ends;
mod hints;
mod martian;
mod policy;
mod route;
mod service;
mod source;
mod uplink;

use std::net::SocketAddr;
use std::sync::Arc;

use podswitch_policy::service::entry::ServiceEntry;
use podswitch_vxlan::vtep::VtepIndex;
use podswitch_wire::flow_key::FlowKey;

use ends::Ends;
pub use hints::Hints;
pub use route::Hop;
pub use service::{ConnAction, connection_action, may_open};
pub use source::check_source;

use crate::action::{DropReason, Plan};
use crate::id::{Cookie, PortId};
use crate::nat::affinity::Affinity;
use crate::nat::select::{self, FirstPacket, Served};
use crate::packet::Packet;
use crate::pinned::{Direction, Opened, Pinned, SourceNat};
use crate::snapshot::Snapshot;

/// A packet, as [`resolve`] sees it.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The packet's key, as it was received.
    pub key: &'a FlowKey,
    /// The port that it was received on.
    pub ingress: PortId,
    /// The VTEP that sent it, if it came through the tunnel.
    pub via: Option<VtepIndex>,
    /// Its connection and its direction in it, if the connection is known.
    pub known: Option<(&'a Pinned, Direction)>,
    /// Session affinity and the current second. `None`: no client has affinity.
    pub affinity: Option<(&'a Affinity, u32)>,
    /// The backend of a connection through a Service of which nothing else is known.
    pub backend: Option<SocketAddr>,
}

impl<'a> Query<'a> {
    /// The first packet of a connection.
    pub fn new(key: &'a FlowKey, ingress: PortId) -> Self {
        Self { key, ingress, via: None, known: None, affinity: None, backend: None }
    }

    /// The same for a packet that was received.
    pub fn of(key: &'a FlowKey, packet: &Packet) -> Self {
        Self { via: packet.via(), ..Self::new(key, packet.ingress) }
    }

    /// The facts of the packet's connection; if it is not known, those of a new one without
    /// translation.
    #[inline]
    pub fn pinned(&self) -> Pinned {
        match self.known {
            Some((pinned, _)) => *pinned,
            None => Pinned { origin_end: self.via, ..Pinned::new(*self.key, self.ingress) },
        }
    }
}

/// The answer that the sender of a dropped packet gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// None.
    Silent,
    /// ICMP network unreachable.
    NetUnreachable,
    /// ICMP host unreachable.
    HostUnreachable,
    /// ICMP port unreachable; for TCP a reset.
    PortUnreachable,
    /// ICMP administratively prohibited.
    Prohibited,
}

/// Why a packet is not forwarded.
#[derive(Clone, Debug)]
pub struct Denial<'s> {
    /// The reason.
    pub reason: DropReason,
    /// The object that decided it: a policy, a Service.
    pub object: Option<Cookie>,
    /// What the sender is told.
    pub answer: Answer,
    /// The counter of that object. Every denied packet counts once: it opens no connection, so each
    /// is an attempt of its own.
    pub counter: Option<DenialCounter<'s>>,
}

/// The counter of what denied a packet.
#[derive(Clone, Copy, Debug)]
pub enum DenialCounter<'s> {
    /// A policy's counter, by its number in [`Snapshot::policy_counters`].
    Policy(u32),
    /// Connections that a Service port rejected (S5).
    ServiceRejected(&'s Arc<ServiceEntry>),
    /// Connections that a Service port dropped (S3, S4, S7).
    ServiceDropped(&'s Arc<ServiceEntry>),
}

impl From<DropReason> for Denial<'_> {
    fn from(reason: DropReason) -> Self {
        Self { reason, object: None, answer: Answer::Silent, counter: None }
    }
}

/// The policy rules that allowed a connection, by their numbers in [`Snapshot::policy_counters`].
/// Each counts once for a connection, when the connection is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AllowedBy {
    /// The rule of the source's egress policy; `None` if it was not evaluated here.
    pub egress: Option<u32>,
    /// The rule of the destination's ingress policy; `None` if it was not evaluated here.
    pub ingress: Option<u32>,
}

/// What happens to a packet.
#[derive(Clone, Debug)]
pub enum Decision<'s> {
    /// It is forwarded.
    Forward {
        /// What is done with packets of this direction.
        plan: Plan,
        /// The facts of the connection. If the source of a new connection is translated, the
        /// destination port of `reply` is still the client's: opening the connection leases one.
        pinned: Pinned,
        /// The Service that chose the backend of a new connection.
        service: Option<Served<'s>>,
        /// The policy rules that allowed it.
        allowed_by: AllowedBy,
    },
    /// It is for the gateway itself.
    Gateway,
    /// It is dropped.
    Drop(Denial<'s>),
}

/// Decides about one packet. See the module's description.
pub fn resolve<'s>(snapshot: &'s Snapshot, query: &Query<'_>) -> Decision<'s> {
    let mut pinned = query.pinned();
    let mut plan = Plan::default();
    match decide(snapshot, query, None, &mut pinned, &mut plan) {
        Verdict::Forward(Forward { service, allowed_by }) => {
            Decision::Forward { plan, pinned, service, allowed_by }
        }
        Verdict::Gateway => Decision::Gateway,
        Verdict::Drop(denial) => Decision::Drop(denial),
    }
}

/// A [`Decision`] whose large parts are written to the caller's memory.
pub enum Verdict<'s> {
    /// Forward.
    Forward(Forward<'s>),
    /// For the gateway itself.
    Gateway,
    /// Drop.
    Drop(Denial<'s>),
}

/// The small parts of [`Decision::Forward`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'s> {
    /// The Service that chose the backend of a new connection.
    pub service: Option<Served<'s>>,
    /// The policy rules that allowed it.
    pub allowed_by: AllowedBy,
}

/// As [`resolve`]. `pinned` is [the query's](Query::pinned) and becomes that of the connection;
/// `plan` becomes the plan. `hints`: results of lookups that were made in advance.
pub fn decide<'s>(
    snapshot: &'s Snapshot,
    query: &Query<'_>,
    hints: Option<&Hints<'s>>,
    pinned: &mut Pinned,
    plan: &mut Plan,
) -> Verdict<'s> {
    if let Err(reason) = check_source(snapshot, query) {
        return Verdict::Drop(reason.into());
    }
    if let Err(reason) = uplink::check_nested_tunnel(snapshot, query) {
        return Verdict::Drop(reason.into());
    }
    let mut service = None;
    let direction = match query.known {
        Some((_, direction)) => direction,
        None => {
            match translate(snapshot, query, hints, pinned) {
                Ok(served) => service = served,
                Err(denial) => return Verdict::Drop(denial),
            }
            Direction::Original
        }
    };
    let mut allowed_by = AllowedBy::default();
    let hop = match forwarding(snapshot, query, pinned, direction, hints, &mut allowed_by) {
        Ok(hop) => hop,
        Err(denial) => return Verdict::Drop(denial),
    };
    // A new connection without a Service or SNAT leaves as it came, and needs no comparison.
    let may_be_translated =
        query.known.is_some() || service.is_some() || pinned.source_nat != SourceNat::Kept;
    if !hop.plan(snapshot, || pinned.outgoing(direction), plan) {
        return Verdict::Gateway;
    }
    if may_be_translated && pinned.is_translated() {
        *plan = plan.translate(query.key, &pinned.outgoing(direction));
    }
    Verdict::Forward(Forward { service, allowed_by })
}

/// Translation of a new connection: backend, SNAT and masquerade.
#[inline]
fn translate<'s>(
    snapshot: &'s Snapshot,
    query: &Query<'_>,
    hints: Option<&Hints<'s>>,
    pinned: &mut Pinned,
) -> Result<Option<Served<'s>>, Denial<'s>> {
    let packet = FirstPacket {
        key: query.key,
        ingress: query.ingress,
        affinity: query.affinity,
        backend: query.backend,
        frontend: hints.map(|hints| &hints.frontend),
    };
    let returns_to_host = |pinned: &Pinned| route::returns_to_host(snapshot, query, pinned);
    let served = select::backend(snapshot, &packet, pinned, returns_to_host);
    let served = served.map_err(service::denial)?;
    select::masquerade(snapshot, query.ingress, pinned);
    Ok(served)
}

/// Where packets of one direction of a connection go, if policy allows the connection.
/// `allowed_by` is set to the rules that allowed it. Used by [`resolve`], and for ICMP errors about
/// a connection, which travel the same way.
///
/// # Errors
/// Denied by policy, or no route.
pub fn forwarding<'s>(
    snapshot: &'s Snapshot,
    query: &Query<'_>,
    pinned: &Pinned,
    direction: Direction,
    hints: Option<&Hints<'s>>,
    allowed_by: &mut AllowedBy,
) -> Result<Hop, Denial<'s>> {
    uplink::check_uplink(snapshot, query, pinned, direction)?;
    let ends = Ends::of(snapshot, query, pinned, direction, hints);
    let to_gateway = snapshot.is_gateway(pinned.reply.src_addr());
    if !to_gateway {
        policy::evaluate(snapshot, pinned, &ends, hints, allowed_by)?;
        if pinned.opened == Opened::Undirected {
            let mut opposite = AllowedBy::default();
            policy::evaluate(snapshot, &pinned.turned(), &ends.turned(), None, &mut opposite)?;
        }
    }
    route::lookup(snapshot, query, pinned, direction, ends.to).map_err(Denial::from)
}
