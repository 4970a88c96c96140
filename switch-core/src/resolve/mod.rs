//! The decision of the slow path: where a packet goes and why. A pure function of the snapshot, the
//! key, the ingress port and the known facts of the packet's connection.
//!
//! Called by the engine on a miss and after a configuration change, by `explain`, and by tests as a
//! table without packets. Never sends, counts or keeps state: a decision names the counters that it
//! concerns, and the engine's admission stage counts.
//!
//! Order: source checks → Service (DNAT, SNAT) → network policy at both ends → route. For replies
//! and other packets of a known connection, translation is taken from the connection.

mod decision;
mod ends;
mod hints;
mod martian;
mod policy;
mod query;
mod route;
mod service;
mod source;
mod uplink;

pub use decision::{AllowedBy, Answer, Decision, Denial, DenialCounter, Forward, Verdict};
use ends::Ends;
pub use hints::Hints;
pub use query::Query;
pub use route::Hop;
pub use service::{ConnAction, connection_action, may_open};
pub use source::{check_fragment, check_source};

use crate::action::Plan;
use crate::nat::select::{self, FirstPacket, Served};
use crate::pinned::{Direction, Opened, Pinned, SourceNat};
use crate::snapshot::Snapshot;

/// Decides for one packet. See the module's description.
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
    // A new connection without a Service or SNAT leaves unchanged, and needs no comparison.
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

/// The next hop of the packets of one direction of a connection, if policy allows the connection.
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
