//! Servers that forward a zone back to this resolver: found by queries for random names of the zone, which come back.

use std::net::SocketAddr;
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::time::Instant;

use super::message::OwnName;

/// For how long a server that forwards to this resolver is not asked, before it is probed again.
pub(super) const LOOPED: Duration = Duration::from_secs(300);
/// Most probes at once. More servers have their turn one after another.
pub(super) const MAX_PROBES: usize = 64;

/// A zone in wire form and lower case, and one of its servers.
pub(super) type Server = (Vec<u8>, SocketAddr);

/// As it is written in messages.
pub(super) fn written((zone, server): &Server) -> (String, SocketAddr) {
    let name = OwnName::from_octets(zone.clone());
    (name.map(|name| name.fmt_with_dot().to_string()).unwrap_or_default(), *server)
}

/// See the module's description.
#[derive(Default)]
pub(super) struct Loops {
    /// Servers that forward a zone to this resolver, until when they are not asked for it.
    looped: HashMap<Server, Instant>,
    /// Names that no client asks for, with the server that they were sent to.
    probes: HashMap<Vec<u8>, Server>,
    /// The server that was probed last.
    last: Option<Server>,
}

impl Loops {
    /// Whether a server is known to forward a zone back.
    pub(super) fn contains(&self, server: &Server) -> bool {
        self.looped.contains_key(server)
    }

    /// The server that was sent this name, if it is the name of a probe.
    pub(super) fn probed(&self, name: &[u8]) -> Option<&Server> {
        self.probes.get(name)
    }

    /// A probe came back from this server. Returns whether that is new.
    pub(super) fn found(&mut self, now: Instant, server: Server) -> bool {
        self.looped.insert(server, now + LOOPED).is_none()
    }

    /// Forgets all servers.
    pub(super) fn clear(&mut self) {
        self.looped.clear();
    }

    /// The servers to be probed now, for which [`sent`](Self::sent) is called. Earlier probes have ended.
    ///
    /// A server that forwards back is not asked until it is probed again.
    pub(super) fn next(&mut self, now: Instant, mut servers: Vec<Server>) -> Vec<Server> {
        self.probes.clear();
        servers.sort_unstable();
        servers.dedup();
        // Those behind the last one first.
        let behind = servers.partition_point(|it| Some(it) <= self.last.as_ref());
        servers.rotate_left(behind);
        servers.retain(|it| self.looped.get(it).is_none_or(|until| *until <= now));
        servers.truncate(MAX_PROBES);
        for server in &servers {
            self.looped.remove(server);
        }
        self.last = servers.last().cloned().or(self.last.take());
        servers
    }

    /// This name is sent to that server.
    pub(super) fn sent(&mut self, name: Vec<u8>, server: Server) {
        self.probes.insert(name, server);
    }
}
