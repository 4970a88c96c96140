//! Session affinity by client address (S9): which backend a client of a Service port is pinned to,
//! and for how long. Shared by all workers; asked only when a connection to a Service with
//! affinity is opened.
//!
//! Bounded: where there is no room, the client is not pinned. It then gets the backend that its
//! address hashes to, which is the same as long as the backends are.

#![allow(clippy::disallowed_types, reason = "taken when a connection with affinity begins")]

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;
use podswitch_policy::service::entry::ServicePortId;

/// Pins kept at most.
const LIMIT: usize = 1 << 18;
/// Locks, so that workers seldom wait for each other.
const SHARDS: usize = 16;
/// Pins looked at for one that is over, when a shard is full.
const SCAN: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Pin {
    backend: SocketAddr,
    /// Second from which on it holds no more.
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

    /// The backend that `client` is pinned to at `now` (seconds).
    pub fn get(&self, service: ServicePortId, client: IpAddr, now: u32) -> Option<SocketAddr> {
        self.with(client, |shard| {
            shard.get(&(service, client)).filter(|pin| now < pin.until).map(|pin| pin.backend)
        })
    }

    /// Pins `client` to `backend`, or refreshes that, for `timeout` seconds.
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
                let over = shard.iter().take(SCAN).find(|(_, pin)| pin.until <= now);
                let Some(over) = over.map(|(key, _)| *key) else { return };
                shard.remove(&over);
            }
            shard.insert(key, pin);
        });
    }

    /// Clients pinned, those whose time is over among them.
    pub fn len(&self) -> usize {
        let count = |s: &Mutex<Shard>| s.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.shards.iter().map(count).sum()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what is over.
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
    fn holds_until_its_time_is_over_and_use_refreshes_it() {
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
    fn is_bounded_and_makes_room_of_what_is_over() {
        let affinity = Affinity::default();
        let backend = "10.1.0.1:80".parse().unwrap();
        let client = |n: u32| IpAddr::from((n * 16).to_be_bytes());
        for n in 0..(LIMIT / SHARDS) as u32 + 100 {
            affinity.pin(ServicePortId(1), client(n), backend, 0, 10);
        }
        assert_eq!(affinity.len(), LIMIT / SHARDS, "all in one shard, and that is full");
        affinity.pin(ServicePortId(1), client(1 << 24), backend, 10, 10);
        assert_eq!(affinity.get(ServicePortId(1), client(1 << 24), 11), Some(backend));
        assert_eq!(affinity.len(), LIMIT / SHARDS);
    }
}
