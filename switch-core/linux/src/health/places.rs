//! Limits connections, at each port and in total. A new connection replaces an old one that has had
//! enough time to send its request and has not sent it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use podswitch_core::time::Instant;

use super::check::HealthCheck;
use super::connection::{Connection, Progress};

/// Maximum number of connections at one time, in total and at each port. Further ones replace those
/// that have sent nothing.
const MOST: usize = 512;
const MOST_AT_PORT: usize = 128;
/// A connection cannot be replaced before this time: a request comes with the last segment of the
/// handshake, or soon after.
const GRACE: Duration = Duration::from_millis(50);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Places {
    connections: Vec<Connection>,
}

impl Places {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.connections.iter()
    }

    /// Accepts waiting connections of a listener, as many as there is room for.
    pub(super) fn accept(&mut self, local: SocketAddr, listener: &TcpListener, now: Instant) {
        // Then other ports are served.
        for _ in 0..MOST_AT_PORT {
            if !self.has_room(local.port(), now) {
                return;
            }
            let Ok((stream, client)) = listener.accept() else { return };
            // A refused connection would be retried at once.
            self.make_room(local.port(), now);
            let ends = (local, client.ip().to_canonical());
            self.connections.extend(Connection::new(stream, ends, now));
        }
    }

    /// Serves all connections with input and closes those that have timed out.
    pub(super) fn go_on(&mut self, answers: &BTreeMap<u16, HealthCheck>, now: Instant) {
        self.connections.retain_mut(|one| one.go_on(answers, now) == Progress::Waiting);
    }

    /// Whether there is room for another connection at a port, or one can be replaced.
    pub(super) fn has_room(&self, port: u16, now: Instant) -> bool {
        self.full(port).is_none_or(|at| self.victim(at, now).is_some())
    }

    /// When the next connection may be replaced, if there is no room; otherwise `None`.
    pub(super) fn room_at(&self) -> Option<Instant> {
        let is_short = |one: &&Connection| self.full(one.port()).is_some();
        self.connections.iter().filter(is_short).map(|one| one.accepted() + GRACE).min()
    }

    fn make_room(&mut self, port: u16, now: Instant) {
        if let Some(victim) = self.full(port).and_then(|at| self.victim(at, now)) {
            self.connections.remove(victim);
        }
    }

    /// The port at which a connection must be replaced to accept another one at `port`, if there
    /// are too many: that port, or the one with most connections.
    fn full(&self, port: u16) -> Option<u16> {
        let mut at: BTreeMap<u16, usize> = BTreeMap::new();
        for one in &self.connections {
            *at.entry(one.port()).or_default() += 1;
        }
        if at.get(&port).is_some_and(|count| *count >= MOST_AT_PORT) {
            return Some(port);
        }
        let most = at.into_iter().max_by_key(|(_, count)| *count).map(|(port, _)| port);
        most.filter(|_| self.connections.len() >= MOST)
    }

    /// The connection to replace at a port: the oldest one of the client with most connections
    /// there.
    fn victim(&self, port: u16, now: Instant) -> Option<usize> {
        let there = || self.connections.iter().enumerate().filter(|(_, one)| one.port() == port);
        let mut by_client: BTreeMap<IpAddr, usize> = BTreeMap::new();
        there().for_each(|(_, one)| *by_client.entry(one.client()).or_default() += 1);
        let (client, _) = by_client.into_iter().max_by_key(|(_, count)| *count)?;
        let its = there().filter(|(_, one)| one.client() == client);
        let (at, oldest) = its.min_by_key(|(_, one)| one.accepted())?;
        (now >= oldest.accepted() + GRACE).then_some(at)
    }
}
