//! Session affinity by client address (S9): the backend to which a client of a Service port is pinned, and for how
//! long. Shared by all workers; used only when a connection to a Service with affinity is opened.
//!
//! Bounded: if there is no room, the client is not pinned. It then gets the backend that its address hashes to, which
//! stays the same as long as the set of backends does.

#![allow(clippy::disallowed_types, reason = "taken when a connection with affinity begins")]

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;
use podswitch_policy::service::entry::ServicePortId;

/// Maximum number of pinned clients.
const LIMIT: usize = 1 << 18;
/// Number of locks, so that workers rarely wait for each other.
const SHARDS: usize = 16;
/// Entries that are examined for an expired one when a shard is full.
const SCAN: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Pin {
    backend: SocketAddr,
    /// Second in which it expires.
    until: u32,
}

type Shard = HashMap<(ServicePortId, IpAddr), Pin>;

/// See the module's description.
#[derive(Debug)]
pub struct Affinity {
    shards: [Mutex<Shard>; SHARDS],
}

impl Default for Affinity {
    fn default() -> Self {
        Self { shards: core::array::from_fn(|_| Mutex::default()) }
    }
}

impl Affinity {
    fn with<T>(&self, client: IpAddr, f: impl FnOnce(&mut Shard) -> T) -> T {
        let byte = match client {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(a) => a.octets()[15],
        };
        let shard = &self.shards[usize::from(byte) % SHARDS];
        f(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The backend that `client` is pinned to, at the second `now`.
    pub fn get(&self, service: ServicePortId, client: IpAddr, now: u32) -> Option<SocketAddr> {
        self.with(client, |shard| {
            shard.get(&(service, client)).filter(|pin| now < pin.until).map(|pin| pin.backend)
        })
    }

    /// Pins `client` to `backend` for `timeout` seconds, or refreshes the timeout.
    pub fn pin(
        &self,
        service: ServicePortId,
        client: IpAddr,
        backend: SocketAddr,
        now: u32,
        timeout: u32,
    ) {
        let pin = Pin { backend, until: now.saturating_add(timeout) };
        self.with(client, |shard| {
            let key = (service, client);
            if !shard.contains_key(&key) && shard.len() >= LIMIT / SHARDS {
                let expired = shard.iter().take(SCAN).find(|(_, pin)| pin.until <= now);
                let Some(expired) = expired.map(|(key, _)| *key) else { return };
                shard.remove(&expired);
            }
            shard.insert(key, pin);
        });
    }

    /// Pins a client that is not pinned, for the time `left` of its timeout.
    pub fn restore(
        &self,
        service: ServicePortId,
        client: IpAddr,
        backend: SocketAddr,
        now: u32,
        left: u32,
    ) {
        if self.get(service, client, now).is_none() {
            self.pin(service, client, backend, now, left);
        }
    }

    /// Calls `each` for every pinned client at the second `now`: the Service port, the client, its backend, and the
    /// seconds left. It locks one of the sixteen shards at a time; workers that open a connection with affinity wait
    /// for that shard only.
    pub fn for_each(&self, now: u32, mut each: impl FnMut(ServicePortId, IpAddr, SocketAddr, u32)) {
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for ((service, client), pin) in shard.iter().filter(|(_, pin)| now < pin.until) {
                each(*service, *client, pin.backend, pin.until - now);
            }
        }
    }

    /// Number of pinned clients, expired ones included.
    pub fn len(&self) -> usize {
        let count = |s: &Mutex<Shard>| s.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.shards.iter().map(count).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes expired entries.
    pub fn sweep(&self, now: u32) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, pin| now < pin.until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expires_unless_refreshed() {
        let affinity = Affinity::default();
        let (client, backend) = ([10, 0, 0, 1].into(), "10.1.0.1:80".parse().unwrap());
        affinity.pin(ServicePortId(1), client, backend, 100, 10);
        assert_eq!(affinity.get(ServicePortId(1), client, 109), Some(backend));
        assert_eq!(affinity.get(ServicePortId(2), client, 109), None, "another port's");
        assert_eq!(affinity.get(ServicePortId(1), client, 110), None);
        affinity.pin(ServicePortId(1), client, backend, 109, 10);
        assert_eq!(affinity.get(ServicePortId(1), client, 118), Some(backend));
        affinity.sweep(119);
        assert!(affinity.is_empty());
    }

    #[test]
    fn the_remaining_time_is_restored_unless_there_is_a_newer_pin() {
        let (was, is) = (Affinity::default(), Affinity::default());
        let service = ServicePortId(1);
        let backend = |n: u8| SocketAddr::from(([10, 1, 0, n], 80));
        let clients = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]].map(IpAddr::from);
        for (client, now) in clients.into_iter().zip([100, 105, 80]) {
            was.pin(service, client, backend(1), now, 20);
        }
        is.pin(service, clients[1], backend(2), 3, 20);
        was.for_each(110, |service, client, backend, left| {
            is.restore(service, client, backend, 3, left);
        });
        assert_eq!(is.get(service, clients[0], 12), Some(backend(1)));
        assert_eq!(is.get(service, clients[0], 13), None, "ten seconds were left");
        assert_eq!(is.get(service, clients[1], 3), Some(backend(2)), "newer");
        assert_eq!(is.get(service, clients[2], 3), None, "it had expired");
    }

    #[test]
    fn is_bounded_and_replaces_expired_entries() {
        let affinity = Affinity::default();
        let backend = "10.1.0.1:80".parse().unwrap();
        let client = |n: u32| IpAddr::from((n * 16).to_be_bytes());
        for n in 0..(LIMIT / SHARDS) as u32 + 100 {
            affinity.pin(ServicePortId(1), client(n), backend, 0, 10);
        }
        assert_eq!(affinity.len(), LIMIT / SHARDS, "all in one shard, which is full");
        affinity.pin(ServicePortId(1), client(1 << 24), backend, 10, 10);
        assert_eq!(affinity.get(ServicePortId(1), client(1 << 24), 11), Some(backend));
        assert_eq!(affinity.len(), LIMIT / SHARDS);
    }
}
