//! Notification of connections that open and end.

use podswitch_dns::Rcode;

use super::{BurstContext, Engine};
use crate::flow::connection::{ConnectionInfo, ConnectionRef, OnEnd, OpenedAt, Pinned};
use crate::flow::table::PendingCounts;
use crate::id::Epoch;
use crate::time::Instant;

/// What a worker did that ended a connection. The states of its ends say more: most are swept after both have
/// closed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndCause {
    /// It was silent for the time that its state allows.
    Timeout,
    /// It gave way to another one at a limit of the connection table or of source ports (T-C5).
    Evicted,
    /// A packet of its client opens another one in its place.
    Replaced,
    /// Its backend serves the Service no more.
    BackendGone,
    /// A policy denies it since the state changed. Its place is kept until it is silent for the time that its state allows.
    PolicyChanged,
    /// A pod of this node that is one of its ends is gone. Likewise.
    PodGone,
}

/// A connection opened or ended.
#[derive(Clone, Debug)]
pub enum FlowEvent<'a> {
    /// A connection was opened.
    Opened {
        /// Which, in the original direction.
        connection: ConnectionRef,
        /// Its facts.
        pinned: &'a Pinned,
        /// When, and by which snapshot.
        opened: OpenedAt,
    },
    /// A connection ended. One that a change ended ([`EndCause::PolicyChanged`], [`EndCause::PodGone`]) may be opened again
    /// if another change allows it, with the same [`ConnectionRef`]; its counts go on. If it is not, it ends once more when
    /// its place is freed, with [`ConnectionInfo::is_recorded`] set.
    Ended {
        /// Its last state. Its counts do not have what is counted in flow entries still: that is
        /// [`Late`](Self::Late), and only of what is neither TCP nor translated.
        info: ConnectionInfo,
        /// Why.
        cause: EndCause,
        /// When.
        time: Instant,
        /// The snapshot in force.
        epoch: Epoch,
    },
    /// Packets of a connection that has ended.
    Late(PendingCounts),
    /// A name query was answered: no connection was opened.
    Answered(AnsweredQuery<'a>),
}

/// A name query that the switch answered itself.
#[derive(Clone, Copy, Debug)]
pub struct AnsweredQuery<'a> {
    /// The facts of the connection that the query would have opened.
    pub pinned: &'a Pinned,
    /// When, and by which snapshot.
    pub at: OpenedAt,
    /// Name in wire form. Empty: the query cannot be read.
    pub name: &'a [u8],
    /// Type of the records asked for.
    pub qtype: u16,
    /// Response code.
    pub rcode: Rcode,
    /// Bytes of the packets of query and answer.
    pub bytes: [u64; 2],
}

/// Is notified of connections that open and end. Runs on the worker's thread: it must not allocate, lock
/// or wait.
pub trait FlowObserver: Send {
    /// A connection opened or ended.
    fn event(&mut self, event: FlowEvent<'_>);

    /// Whether there is room for the next event. Connections that a change denies are reported as ended only then.
    fn has_room(&self) -> bool {
        true
    }
}

/// Tells an observer of connections that end.
pub(super) struct Ending<'a> {
    pub(super) observer: &'a mut Option<Box<dyn FlowObserver>>,
    pub(super) cause: EndCause,
    pub(super) time: Instant,
    pub(super) epoch: Epoch,
}

impl OnEnd for Ending<'_> {
    #[inline]
    fn ended(&mut self, read: impl FnOnce() -> Option<ConnectionInfo>) {
        let Self { observer, cause, time, epoch } = self;
        if let Some(observer) = observer
            && let Some(info) = read()
        {
            observer.event(FlowEvent::Ended { info, cause: *cause, time: *time, epoch: *epoch });
        }
    }
}

impl Engine {
    /// Sets the observer that is notified of connections.
    pub fn set_flow_observer(&mut self, observer: Option<Box<dyn FlowObserver>>) {
        self.flow_observer = observer;
    }

    /// Ends a connection.
    pub(super) fn end_connection(
        &mut self,
        cx: &BurstContext<'_>,
        connection: ConnectionRef,
        cause: EndCause,
    ) {
        let (observer, epoch) = (&mut self.flow_observer, cx.snapshot.epoch);
        self.shared.tracker.end(connection, &mut Ending { observer, cause, time: cx.now, epoch });
    }

    /// Notifies the observer of a new connection.
    #[inline]
    pub(super) fn notify_opened(
        &mut self,
        cx: &BurstContext<'_>,
        connection: ConnectionRef,
        pinned: &Pinned,
    ) {
        if let Some(observer) = &mut self.flow_observer {
            let opened = OpenedAt { time: cx.now, epoch: cx.snapshot.epoch };
            observer.event(FlowEvent::Opened { connection, pinned, opened });
        }
    }

    /// Updates connections with what was counted in flow entries.
    pub(super) fn add_pending_counts(&mut self) {
        let Self { flows, flow_observer, shared, .. } = self;
        for late in flows.take_pending() {
            let PendingCounts { connection, packets, bytes } = late;
            if !shared.tracker.add_counts(connection, packets, bytes)
                && let Some(observer) = flow_observer
            {
                observer.event(FlowEvent::Late(late));
            }
        }
    }

    /// Brings the counts of all connections up to date, and has the observer of drops hand over what it
    /// collected. At the end of the worker.
    pub(crate) fn hand_over(&mut self) {
        self.flows.flush_all();
        self.add_pending_counts();
        self.collect();
    }
}
