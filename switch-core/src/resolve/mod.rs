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

use vxlan::vtep::EndIndex;
use wire::flow_key::FlowKey;

use ends::Ends;
pub use likely::Likely;
pub use policy::Judged;
pub use route::Hop;
pub use service::{Fate, Served, fate, may_open};
pub use source::check_source;

use crate::action::{DropReason, Plan};
use crate::flow::affinity::Affinity;
use crate::flow::connection::{Direction, Pinned};
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
}

impl<'a> Query<'a> {
    /// About the first packet of a connection.
    pub fn new(key: &'a FlowKey, ingress: PortId) -> Self {
        Self { key, ingress, via: None, known: None, pins: None }
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
    resolve_likely(snapshot, query, None)
}

/// As [`resolve`], where it is known what the snapshot says of the packet's likely ends.
pub fn resolve_likely<'s>(
    snapshot: &'s Snapshot,
    query: &Query<'_>,
    likely: Option<&Likely<'s>>,
) -> Decision<'s> {
    if let Err(reason) = check_source(snapshot, query) {
        return Decision::Drop(reason.into());
    }
    if let Err(reason) = uplink::check_tunnelled(snapshot, query) {
        return Decision::Drop(reason.into());
    }
    let mut served = None;
    let (pinned, direction) = match query.known {
        Some((pinned, direction)) => (*pinned, direction),
        None => {
            let mut pinned = Pinned::new(*query.key, query.ingress);
            pinned.origin_end = query.via;
            match service::translate(snapshot, query, &mut pinned, likely) {
                Ok(found) => served = found,
                Err(denial) => return Decision::Drop(denial),
            }
            service::masquerade(snapshot, query, &mut pinned);
            (pinned, Direction::Original)
        }
    };
    let hop = match way(snapshot, query, &pinned, direction, likely) {
        Ok(hop) => hop,
        Err(denial) => return Decision::Drop(denial),
    };
    let outgoing = outgoing(&pinned, direction);
    match hop.plan(snapshot, &outgoing) {
        Some(mut plan) => {
            if pinned.is_translated() {
                plan = plan.translate(query.key, &outgoing);
            }
            Decision::Forward { plan, pinned, service: served }
        }
        None => Decision::Gateway,
    }
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
