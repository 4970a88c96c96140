//! Both ends of a connection, each looked up once.

use std::net::IpAddr;

use super::hints::{Hints, endpoint};
use super::query::Query;
use crate::pinned::{Direction, Pinned};
use crate::snapshot::{EndpointFacts, PortFacts, Snapshot};

/// The ends of a connection, for a packet of one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'s> {
    /// Whether the client is a pod of this node.
    pub(super) client_is_local: bool,
    /// Whether the backend is a pod of this node.
    pub(super) backend_is_local: bool,
    /// The receiver of the packet.
    pub(super) to: Option<&'s EndpointFacts>,
}

impl<'s> Ends<'s> {
    pub(super) fn of(
        snapshot: &'s Snapshot,
        query: &Query<'_>,
        pinned: &Pinned,
        direction: Direction,
        hints: Option<&Hints<'s>>,
    ) -> Self {
        let (client, backend) = (pinned.original.src_addr(), pinned.reply.src_addr());
        let (sender, receiver) = match direction {
            Direction::Original => (client, backend),
            Direction::Reply => (backend, client),
        };
        let to = endpoint(snapshot, hints, receiver);
        let sender_is_local = is_local_sender(snapshot, query, sender);
        let receiver_is_local = to.is_some_and(EndpointFacts::is_local);
        let (client_is_local, backend_is_local) = match direction {
            Direction::Original => (sender_is_local, receiver_is_local),
            Direction::Reply => (receiver_is_local, sender_is_local),
        };
        Self { client_is_local, backend_is_local, to }
    }

    /// Those of a connection that the other end opened.
    pub(super) fn turned(self) -> Self {
        let Self { client_is_local, backend_is_local, to } = self;
        Self { client_is_local: backend_is_local, backend_is_local: client_is_local, to }
    }
}

/// The sender is nearly always the pod behind the ingress port, and the port's facts suffice.
fn is_local_sender(snapshot: &Snapshot, query: &Query<'_>, address: IpAddr) -> bool {
    match snapshot.port(query.ingress) {
        PortFacts::Pod(pod) if pod.owns(address) => true,
        _ => snapshot.is_local_pod(address),
    }
}
