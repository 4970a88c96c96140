//! Notification of opened and ended connections.

use podswitch_dns::Rcode;

use super::{BurstContext, Engine};
use crate::flow::connection::{ConnectionInfo, ConnectionRef, OnEnd, OpenedAt, Pinned};
use crate::flow::table::PendingCounts;
use crate::id::Epoch;
use crate::time::Instant;

/// The reason why a worker ended a connection. The TCP states say more: most connections are removed by the sweep after
/// both ends have closed them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndCause {
    /// It was idle for the timeout of its state.
    Timeout,
    /// It was ended in favour of another one at a limit of the connection table or of source ports (T-C5).
    Evicted,
    /// A packet of its client opens another connection in its place.
    Replaced,
    /// Its backend no longer belongs to the Service.
    BackendGone,
    /// A change of the state made a policy deny it. Its slot is kept until it has been idle for the timeout of its
    /// state.
    PolicyChanged,
    /// A pod of this node that is one of its ends was removed. Its slot is kept for the same time.
    PodDeleted,
}

/// A connection opened or ended.
#[derive(Clone, Debug)]
pub enum FlowEvent<'a> {
    /// A connection was opened.
    Opened {
        /// The connection, in the original direction.
        connection: ConnectionRef,
        /// Its facts.
        pinned: &'a Pinned,
        /// When it was opened, and with which snapshot.
        opened: OpenedAt,
    },
    /// A connection ended. If a change ended it ([`EndCause::PolicyChanged`], [`EndCause::PodDeleted`]), it may be opened
    /// again if another change allows it, with the same [`ConnectionRef`]; its counts continue. If it is not opened
    /// again, it ends a second time when its slot is freed, with [`ConnectionInfo::is_recorded`] set.
    Ended {
        /// Its last state. Packets that are still counted in flow entries are not included: they follow as
        /// [`Late`](Self::Late), and only for connections that are neither TCP nor translated.
        info: ConnectionInfo,
        /// The reason.
        cause: EndCause,
        /// The time of the end.
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

/// Receives notifications of opened and ended connections. Runs on the worker's thread: it must not allocate, lock or
/// wait.
pub trait FlowObserver: Send {
    /// A connection opened or ended.
    fn event(&mut self, event: FlowEvent<'_>);

    /// Whether there is room for the next event. Connections that a change denies are reported as ended only if there
    /// is.
    fn has_room(&self) -> bool {
        true
    }
}

/// Notifies an observer of connections that end.
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

    /// Updates connections with the packets counted in flow entries.
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

    /// Updates the counts of all connections, and has the observer of drops deliver what it collected. Called when the
    /// worker ends.
    pub(crate) fn hand_over(&mut self) {
        self.flows.flush_all();
        self.add_pending_counts();
        self.collect();
    }
}
