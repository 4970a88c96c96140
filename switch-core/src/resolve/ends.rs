//! Both ends of a connection, each looked up once.

use std::net::IpAddr;

use super::Query;
use super::likely::{Likely, endpoint};
use crate::flow::connection::{Direction, Pinned};
use crate::snapshot::{EndpointFacts, Location, PortFacts, Snapshot};

/// What is known of a connection's ends, from one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'s> {
    /// Whether the client is a pod of this node.
    pub(super) client_is_local: bool,
    /// Whether the backend is.
    pub(super) backend_is_local: bool,
    /// Whom the packet goes to.
    pub(super) to: Option<&'s EndpointFacts>,
}

impl<'s> Ends<'s> {
    pub(super) fn of(
        snapshot: &'s Snapshot,
        query: &Query<'_>,
        pinned: &Pinned,
        direction: Direction,
        likely: Option<&Likely<'s>>,
    ) -> Self {
        let (client, backend) = (pinned.original.src_addr(), pinned.reply.src_addr());
        let (from, towards) = match direction {
            Direction::Original => (client, backend),
            Direction::Reply => (backend, client),
        };
        let to = endpoint(snapshot, likely, towards);
        let from_is_local = is_local_sender(snapshot, query, from);
        let to_is_local = to.is_some_and(EndpointFacts::is_local);
        let (client_is_local, backend_is_local) = match direction {
            Direction::Original => (from_is_local, to_is_local),
            Direction::Reply => (to_is_local, from_is_local),
        };
        Self { client_is_local, backend_is_local, to }
    }

    /// Those of a connection that the other end opened.
    pub(super) fn turned(self) -> Self {
        let Self { client_is_local, backend_is_local, to } = self;
        Self { client_is_local: backend_is_local, backend_is_local: client_is_local, to }
    }
}

/// Nearly always the pod whose port the packet came by, of which the port tells enough.
fn is_local_sender(snapshot: &Snapshot, query: &Query<'_>, address: IpAddr) -> bool {
    match snapshot.port(query.ingress) {
        PortFacts::Pod(pod) if pod.owns(address) => true,
        _ => snapshot.is_local_pod(address),
    }
}

impl EndpointFacts {
    /// Whether it is a pod of this node.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.location, Location::Attached { .. } | Location::Unattached)
    }
}
