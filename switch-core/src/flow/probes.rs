//! Clients that were asked which connection they have: of a connection through a Service that the
//! switch does not know, its server's segment tells the client's address and port but not the
//! Service's address that the client knows. The client is asked for each that it may be, and what it
//! answers says which it is, or that it is none.
//!
//! Shared by all workers behind one lock, on the slow path: a server spoke first after a restart.
//! Bounded in number and time.

#![allow(clippy::disallowed_types, reason = "taken for segments of connections that are unknown")]

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;
use podswitch_wire::flow_key::{FlowKey, to_bytes};

use super::tcp::{Segment, seq_le};

/// Seconds within which a client answers; then it is asked again.
const ANSWERS: u32 = 2;
/// Seconds for which a client is known to have none: longer than a server waits before it sends
/// again (Linux's `TCP_RTO_MAX`).
const DENIED: u32 = 130;
/// Servers' segments that are waited for at a time.
const CAPACITY: usize = 4096;
/// How far a client's sequence number may be from what its server acknowledged last, and its
/// acknowledgment from what the server sent: one who sees neither guesses both once in 2^27.
const SENT: u32 = 1 << 16;
const RECEIVED: u32 = 1 << 20;

/// What a server's segment said.
#[derive(Clone, Copy, Debug)]
struct Asked {
    seq: u32,
    ack: u32,
    /// Second.
    at: u32,
    /// Addresses that the client has not denied yet.
    open: u8,
}

impl Asked {
    fn is_over(&self, now_secs: u32) -> bool {
        let lifetime = if self.open == 0 { DENIED } else { ANSWERS };
        now_secs.saturating_sub(self.at) >= lifetime
    }
}

#[derive(Debug, Default)]
struct State {
    /// By the server's key.
    asked: HashMap<FlowKey, Asked>,
    /// Keys of servers by those that their clients would have.
    candidates: HashMap<FlowKey, FlowKey>,
}

/// What is known of a server's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Its client has not answered yet.
    Waiting,
    /// Its client has none of those connections.
    Denied,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Probes(Mutex<State>);

impl Probes {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the connection of a server's segment with this key. `None`: its client is to be
    /// asked.
    pub fn progress(&self, key: &FlowKey, now_secs: u32) -> Option<Progress> {
        let state = self.lock();
        let asked = state.asked.get(key).filter(|asked| !asked.is_over(now_secs))?;
        Some(if asked.open == 0 { Progress::Denied } else { Progress::Waiting })
    }

    /// The client of a server's segment is asked for `addresses` now. False: too many are.
    pub fn begin(
        &self,
        key: &FlowKey,
        segment: &Segment,
        addresses: &[SocketAddr],
        now_secs: u32,
    ) -> bool {
        let State { asked, candidates } = &mut *self.lock();
        if asked.len() >= CAPACITY {
            asked.retain(|_, asked| asked.open > 0 && !asked.is_over(now_secs));
            candidates.retain(|_, server| asked.contains_key(server));
        }
        if asked.len() >= CAPACITY {
            return false;
        }
        for address in addresses {
            candidates.insert(client_key(key, *address), *key);
        }
        let open = addresses.len().min(usize::from(u8::MAX)) as u8;
        asked.insert(*key, Asked { seq: segment.seq, ack: segment.ack, at: now_secs, open });
        true
    }

    /// The server of the connection that a client's segment belongs to, if it answers a question as
    /// only the client of that connection can.
    pub fn confirm(&self, key: &FlowKey, segment: &Segment, now_secs: u32) -> Option<SocketAddr> {
        let State { asked, candidates } = &mut *self.lock();
        let server = *candidates.get(key)?;
        let fits = |asked: &&Asked| {
            !asked.is_over(now_secs)
                && is_near(segment.seq, asked.ack, SENT)
                && is_near(segment.ack, asked.seq, RECEIVED)
        };
        asked.get(&server).filter(fits)?;
        asked.remove(&server);
        candidates.remove(key);
        Some(SocketAddr::new(server.src_addr(), server.src_port))
    }

    /// A client reset what it was asked for. False: it was not asked for that.
    pub fn deny(&self, key: &FlowKey, segment: &Segment) -> bool {
        let State { asked, candidates } = &mut *self.lock();
        let Some(server) = candidates.get(key) else { return false };
        match asked.get_mut(server) {
            Some(asked) if asked.ack == segment.seq => {
                asked.open = asked.open.saturating_sub(1);
                candidates.remove(key);
                true
            }
            _ => false,
        }
    }
}

/// The key of the client's packets that a server's of `key` answer, had the client asked for `address`.
pub fn client_key(key: &FlowKey, address: SocketAddr) -> FlowKey {
    FlowKey { dst: to_bytes(address.ip()).0, dst_port: address.port(), ..key.reversed() }
}

fn is_near(a: u32, b: u32, by: u32) -> bool {
    seq_le(b.wrapping_sub(by), a) && seq_le(a, b.wrapping_add(by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use podswitch_wire::flow_key::proto;

    fn key(client_port: u16) -> FlowKey {
        let (server, client) = ("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap());
        FlowKey::new(server, client, proto::TCP, 80, client_port).unwrap()
    }

    fn at(seq: u32, ack: u32) -> Segment {
        Segment { seq, ack, ..Segment::default() }
    }

    #[test]
    fn whoever_answers_with_the_right_numbers_is_the_client() {
        let vips = ["10.96.0.1:80", "10.96.0.2:80"].map(|a| a.parse().unwrap());
        let probes = Probes::default();
        let server = key(5000);
        assert_eq!(probes.progress(&server, 10), None);
        assert!(probes.begin(&server, &at(7000, 300), &vips, 10));
        assert_eq!(probes.progress(&server, 11), Some(Progress::Waiting));
        let client = client_key(&server, vips[1]);
        for (seq, ack) in [(300 + SENT + 1, 7000), (300, 7001 + RECEIVED), (1 << 31, 7000)] {
            assert_eq!(probes.confirm(&client, &at(seq, ack), 11), None);
        }
        assert_eq!(probes.confirm(&client_key(&key(5001), vips[1]), &at(300, 7000), 11), None);
        assert_eq!(probes.confirm(&client, &at(300, 7000), 12), None, "too late");
        let backend = Some("10.0.0.2:80".parse().unwrap());
        assert_eq!(probes.confirm(&client, &at(290, 9000), 11), backend);
        assert_eq!(probes.confirm(&client, &at(290, 9000), 11), None, "once");
        assert_eq!(probes.progress(&server, 11), None);
    }

    #[test]
    fn a_client_may_have_none_of_them() {
        let vips = ["10.96.0.1:80", "10.96.0.2:80"].map(|a| a.parse().unwrap());
        let probes = Probes::default();
        let server = key(5000);
        probes.begin(&server, &at(7000, 300), &vips, 10);
        assert!(!probes.deny(&client_key(&server, vips[0]), &at(301, 0)), "of something else");
        assert!(probes.deny(&client_key(&server, vips[0]), &at(300, 0)));
        assert!(!probes.deny(&client_key(&server, vips[0]), &at(300, 0)), "once");
        assert_eq!(probes.progress(&server, 11), Some(Progress::Waiting));
        assert!(probes.deny(&client_key(&server, vips[1]), &at(300, 0)));
        assert_eq!(probes.progress(&server, 139), Some(Progress::Denied));
        assert_eq!(probes.progress(&server, 140), None);
    }

    #[test]
    fn is_bounded() {
        let vips = ["10.96.0.1:80".parse().unwrap()];
        let probes = Probes::default();
        for n in 0..CAPACITY as u16 {
            assert!(probes.begin(&key(n), &at(1, 1), &vips, 10));
        }
        assert!(!probes.begin(&key(5000), &at(1, 1), &vips, 11));
        assert!(probes.begin(&key(5000), &at(1, 1), &vips, 12));
        assert_eq!(probes.lock().asked.len(), 1);
        assert_eq!(probes.lock().candidates.len(), 1);
        // What was denied makes room first.
        assert!(probes.deny(&client_key(&key(5000), vips[0]), &at(1, 0)));
        for n in 0..CAPACITY as u16 {
            assert!(probes.begin(&key(n), &at(1, 1), &vips, 12));
        }
        assert_eq!(probes.progress(&key(5000), 12), None);
    }
}
