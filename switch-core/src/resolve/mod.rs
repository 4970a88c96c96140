//! The slow path's one decision: where a packet goes and why, as a pure function of snapshot,
//! key, ingress and what is known of its connection.
//!
//! Called by the engine on a miss and after an epoch change, by `explain`, and by tests as a table without
//! a packet. Never sends, counts or remembers anything.
//!
//! Order: who sends (source) → translation (Services) → policy, both ends → where to (route) →
//! source NAT. A stage that a packet's connection has behind it is not run again for replies.

mod ends;
mod likely;
mod policy;
mod route;
mod service;
mod source;
mod uplink;

use std::net::SocketAddr;

use podswitch_vxlan::vtep::EndIndex;
use podswitch_wire::flow_key::FlowKey;

use ends::Ends;
pub use likely::Likely;
pub use route::Hop;
pub use service::{Fate, Served, fate, may_open};
pub use source::check_source;

use crate::action::{DropReason, Plan};
use crate::flow::affinity::Affinity;
use crate::flow::connection::{Direction, Opened, Pinned, SourceNat};
use crate::id::{Cookie, PortId};
use crate::packet::Packet;
use crate::snapshot::Snapshot;

/// What is asked about a packet.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The packet's key, as it came in.
    pub key: &'a FlowKey,
    /// The port that it came in by.
    pub ingress: PortId,
    /// The tunnel end that it came from, if it came through a tunnel.
    pub via: Option<EndIndex>,
    /// The connection that it belongs to and its direction, if it is known.
    pub known: Option<(&'a Pinned, Direction)>,
    /// Session affinity, and the second that it is now. `None`: no client is pinned.
    pub pins: Option<(&'a Affinity, u32)>,
    /// The backend that an unknown connection through a Service is known to have.
    pub backend: Option<SocketAddr>,
}

impl<'a> Query<'a> {
    /// About the first packet of a connection.
    pub fn new(key: &'a FlowKey, ingress: PortId) -> Self {
        Self { key, ingress, via: None, known: None, pins: None, backend: None }
    }

    /// The connection as far as it is known: its pinned facts, or those of one that is not translated.
    #[inline]
    pub fn pinned(&self) -> Pinned {
        match self.known {
            Some((pinned, _)) => *pinned,
            None => Pinned { origin_end: self.via, ..Pinned::new(*self.key, self.ingress) },
        }
    }

    /// As [`new`](Self::new), about a packet that was received.
    pub fn of(key: &'a FlowKey, packet: &Packet) -> Self {
        Self { via: packet.via(), ..Self::new(key, packet.ingress) }
    }
}

/// What the switch tells the sender of a packet that it drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing.
    Silent,
    /// ICMP: no route to the network.
    NetUnreachable,
    /// ICMP: the host is not there.
    HostUnreachable,
    /// ICMP port unreachable; a TCP reset for TCP.
    PortUnreachable,
    /// ICMP: administratively prohibited.
    Prohibited,
}

/// A packet that does not pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denial {
    /// Why.
    pub reason: DropReason,
    /// The object that decided it: a policy, a Service.
    pub object: Option<Cookie>,
    /// What the sender is told.
    pub answer: Answer,
}

impl From<DropReason> for Denial {
    fn from(reason: DropReason) -> Self {
        Self { reason, object: None, answer: Answer::Silent }
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug)]
pub enum Decision<'s> {
    /// It goes on, and so does the connection that is described.
    Forward {
        /// The answer for this direction.
        plan: Plan,
        /// The connection's pinned facts: those known, or those of a new connection. Where that
        /// has its source translated, the port of `reply`'s destination is the client's still, and
        /// one of the address's own is to be put in its place.
        pinned: Pinned,
        /// The Service that chose the backend of a new connection.
        service: Option<Served<'s>>,
    },
    /// It is for the gateway itself.
    Gateway,
    /// It does not pass.
    Drop(Denial),
}

/// Decides about one packet. See the module's description.
pub fn resolve<'s>(snapshot: &'s Snapshot, query: &Query<'_>) -> Decision<'s> {
    let mut pinned = query.pinned();
    let mut plan = Plan::default();
    match decide(snapshot, query, None, &mut pinned, &mut plan) {
        Verdict::Forward(service) => Decision::Forward { plan, pinned, service },
        Verdict::Gateway => Decision::Gateway,
        Verdict::Drop(denial) => Decision::Drop(denial),
    }
}

/// A [`Decision`], what it describes in the places that were given for it.
pub enum Verdict<'s> {
    /// It goes on.
    Forward(Option<Served<'s>>),
    /// It is for the gateway itself.
    Gateway,
    /// It does not pass.
    Drop(Denial),
}

/// As [`resolve`]: `pinned` is [the query's](Query::pinned), and is made that of the connection, `plan`
/// the answer. `likely`: what the snapshot says of the packet's likely ends.
pub fn decide<'s>(
    snapshot: &'s Snapshot,
    query: &Query<'_>,
    likely: Option<&Likely<'s>>,
    pinned: &mut Pinned,
    plan: &mut Plan,
) -> Verdict<'s> {
    if let Err(reason) = check_source(snapshot, query) {
        return Verdict::Drop(reason.into());
    }
    if let Err(reason) = uplink::check_tunnelled(snapshot, query) {
        return Verdict::Drop(reason.into());
    }
    let mut served = None;
    let direction = match query.known {
        Some((_, direction)) => direction,
        None => {
            match service::translate(snapshot, query, pinned, likely) {
                Ok(found) => served = found,
                Err(denial) => return Verdict::Drop(denial),
            }
            service::masquerade(snapshot, query, pinned);
            Direction::Original
        }
    };
    let hop = match way(snapshot, query, pinned, direction, likely) {
        Ok(hop) => hop,
        Err(denial) => return Verdict::Drop(denial),
    };
    // A new connection is as it came but for these.
    let may_differ =
        query.known.is_some() || served.is_some() || pinned.source_nat != SourceNat::Kept;
    if !hop.plan(snapshot, || outgoing(pinned, direction), plan) {
        return Verdict::Gateway;
    }
    if may_differ && pinned.is_translated() {
        *plan = plan.translate(query.key, &outgoing(pinned, direction));
    }
    Verdict::Forward(served)
}

/// The way of a connection's packets of one direction, if policy lets them go it at all. What is
/// cached of it is [`resolve`]'s business; ICMP errors about a connection ask for it alone.
///
/// # Errors
/// Policy or a missing route.
pub fn way<'s>(
    snapshot: &'s Snapshot,
    query: &Query<'_>,
    pinned: &Pinned,
    direction: Direction,
    likely: Option<&Likely<'s>>,
) -> Result<Hop, Denial> {
    uplink::check_taken(snapshot, query, pinned, direction)?;
    let ends = Ends::of(snapshot, query, pinned, direction, likely);
    let to_gateway = snapshot.is_gateway(pinned.reply.src_addr());
    if !to_gateway {
        policy::judge(snapshot, pinned, &ends, likely)?;
        if pinned.opened == Opened::Undirected {
            policy::judge(snapshot, &pinned.turned(), &ends.turned(), None)?;
        }
    }
    route::lookup(snapshot, query, pinned, direction, ends.to)
}

/// The key of a connection's packets as they go out: what the other direction answers.
#[inline]
pub fn outgoing(pinned: &Pinned, direction: Direction) -> FlowKey {
    match direction {
        Direction::Original => pinned.reply.reversed(),
        Direction::Reply => pinned.original.reversed(),
    }
}
