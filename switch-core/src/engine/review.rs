//! If a change of the state denies a connection, or removes one of its pods, the next sweep reports it as ended. It
//! does not wait for the timeout.

use std::net::IpAddr;

use podswitch_policy::verdict::Traffic;

use super::flow_events::{EndCause, FlowEvent};
use super::{BurstContext, Engine};
use crate::action::DropClass;
use crate::flow::connection::{ConnectionRef, OpenedAt, Pinned};
use crate::flow::tcp::is_over;
use crate::id::Epoch;
use crate::invalidation::Groups;
use crate::pinned::Direction;
use crate::resolve::{AllowedBy, Query, forwarding};
use crate::snapshot::{FibEntry, Location, Snapshot};

/// The epochs with which the connections of this worker's share were compared.
#[derive(Debug, Default)]
pub(super) struct Review {
    /// The epoch at the start of the sweep's previous round: each connection was compared with it, or with a later one.
    since: Epoch,
    /// The epoch at the start of this round.
    round: Epoch,
    /// Some records found no room: the next round compares all connections with the same epoch again.
    is_incomplete: bool,
}

impl Engine {
    /// Reports the connections in the slots `from..from + count` that changes since the previous round deny, or whose
    /// pod they removed. `begins`: this is the first part of a round. Costs nothing unless something changed.
    pub(super) fn review(
        &mut self,
        cx: &BurstContext<'_>,
        begins: bool,
        from: usize,
        count: usize,
    ) {
        let Self { review, shared, flow_observer, .. } = self;
        let (snapshot, tracker) = (cx.snapshot, &shared.tracker);
        if begins {
            if !std::mem::take(&mut review.is_incomplete) {
                review.since = review.round;
            }
            review.round = snapshot.epoch;
        }
        let Some(observer) = flow_observer else { return };
        if snapshot.epoch == review.since {
            return;
        }
        tracker.review(from, count, |info| {
            let groups = Groups::of_connection(&info.pinned.original, &info.pinned.reply);
            // A connection that its own ends closed has another close reason.
            if snapshot.invalidation.is_valid_since(review.since, &groups)
                || info.tcp.is_some_and(|[a, b]| is_over(a, b))
            {
                return;
            }
            if !observer.has_room() {
                review.is_incomplete = true;
                return;
            }
            if let Some(cause) = ended_by_change(snapshot, &info.pinned)
                && let Some(info) = tracker.record_end(info.connection)
            {
                let (time, epoch) = (cx.now, snapshot.epoch);
                observer.event(FlowEvent::Ended { info, cause, time, epoch });
            }
        });
    }

    /// Reports a connection as opened again if a packet of it passes after it was reported as ended, unless the node of
    /// its other end drops it.
    #[inline]
    pub(super) fn resume(
        &mut self,
        cx: &BurstContext<'_>,
        connection: ConnectionRef,
        pinned: &Pinned,
    ) {
        if !self.shared.tracker.is_recorded(connection) || is_denied_elsewhere(cx.snapshot, pinned)
        {
            return;
        }
        let opened = OpenedAt { time: cx.now, epoch: cx.snapshot.epoch };
        if self.shared.tracker.resume(connection, opened) {
            self.counters.opened.add(1);
            self.notify_opened(cx, connection, pinned);
        }
    }
}

/// The cause if packets of a connection will never be forwarded again; `None` if they may be.
fn ended_by_change(snapshot: &Snapshot, pinned: &Pinned) -> Option<EndCause> {
    // A pod that is known but not attached, as after a start, may be attached soon.
    let is_gone = |address: IpAddr| {
        snapshot.endpoints.get(&address).is_none()
            && matches!(snapshot.fib.get(address), Some(FibEntry::LocalPods))
    };
    if is_gone(pinned.original.src_addr()) || is_gone(pinned.reply.src_addr()) {
        return Some(EndCause::PodDeleted);
    }
    let query = Query {
        via: pinned.origin_end,
        known: Some((pinned, Direction::Original)),
        ..Query::new(&pinned.original, pinned.origin)
    };
    let mut allowed_by = AllowedBy::default();
    let direction = Direction::Original;
    match forwarding(snapshot, &query, pinned, direction, None, &mut allowed_by) {
        Err(denial) if denial.reason.class() == DropClass::Policy => Some(EndCause::PolicyChanged),
        Ok(_) if is_denied_elsewhere(snapshot, pinned) => Some(EndCause::PolicyChanged),
        _ => None,
    }
}

/// Whether policies of a pod of another node deny the connection. That node drops its packets: this one forwards them.
fn is_denied_elsewhere(snapshot: &Snapshot, pinned: &Pinned) -> bool {
    let (client, server) = (pinned.original.src_addr(), pinned.reply.src_addr());
    let is_elsewhere = |address: IpAddr| {
        let facts = snapshot.endpoints.get(&address);
        facts.is_some_and(|facts| matches!(facts.location, Location::Remote))
    };
    if !is_elsewhere(client) && !is_elsewhere(server) {
        return false;
    }
    let (protocol, port) = (pinned.original.proto, pinned.reply.src_port);
    let traffic = Traffic { protocol, port, via_service: pinned.is_via_service() };
    let policy = &snapshot.policy;
    !policy.verdict(&policy.party(client), &policy.party(server), traffic).allow()
}
