//! The slow path's one decision: where a packet goes and why, as a pure function of snapshot,
//! key, ingress and what is known of its connection.
//!
//! Called by the engine on a miss and after an epoch change, by `explain`, and by tests as a table without
//! a packet. Never sends, counts or remembers anything.
//!
//! Order: who sends (source) → translation (Services) → policy, both ends → where to (route) →
//! source NAT. A stage that a packet's connection has behind it is not run again for replies.

mod policy;
mod route;
mod source;

use wire::flow_key::FlowKey;

pub use policy::Judged;
pub use route::Hop;
pub use source::check_source;

use crate::action::{DropReason, Plan};
use crate::flow::connection::{Direction, Pinned};
use crate::id::{Cookie, PortId};
use crate::snapshot::Snapshot;

/// What is asked about a packet.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The packet's key, as it came in.
    pub key: &'a FlowKey,
    /// The port that it came in by.
    pub ingress: PortId,
    /// The connection that it belongs to and its direction, if it is known.
    pub known: Option<(&'a Pinned, Direction)>,
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// It goes on, and so does the connection that is described.
    Forward {
        /// The answer for this direction.
        plan: Plan,
        /// The connection's pinned facts: those known, or those of a new connection.
        pinned: Pinned,
    },
    /// It is for the gateway itself.
    Gateway,
    /// It does not pass.
    Drop(Denial),
}

/// Decides about one packet. See the module's description.
pub fn resolve(snapshot: &Snapshot, query: &Query<'_>) -> Decision {
    if let Err(reason) = check_source(snapshot, query) {
        return Decision::Drop(reason.into());
    }
    let pinned = match query.known {
        Some((pinned, _)) => *pinned,
        None => Pinned { original: *query.key, reply: query.key.reversed(), origin: query.ingress },
    };
    let to_gateway = snapshot.is_gateway(pinned.reply.src_addr());
    if !to_gateway && let Err(denial) = policy::judge(snapshot, &pinned) {
        return Decision::Drop(denial);
    }
    // The packet as it goes out: in the original direction what the reply will answer.
    let outgoing = match query.known {
        Some((pinned, Direction::Reply)) => pinned.original.reversed(),
        _ => pinned.reply.reversed(),
    };
    match route::lookup(snapshot, outgoing.dst_addr(), query.ingress) {
        Ok(Hop::Out { port, mtu, to }) => {
            let mut plan = Plan::route(port, mtu, to, snapshot.gateway.mac);
            if pinned.is_translated() {
                plan = plan.translate(query.key, &outgoing);
            }
            Decision::Forward { plan, pinned }
        }
        Ok(Hop::Gateway) => Decision::Gateway,
        Err(denial) => Decision::Drop(denial),
    }
}
