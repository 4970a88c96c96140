//! Probes: find the client's connection to which an unknown segment of a server belongs.
//!
//! The segment of a Service's backend has the client's address and port, but not the Service address to which the
//! client connected. The client is probed for each possible address. It acknowledges the right one, with sequence
//! numbers that nobody else can guess, and resets the others.
//!
//! Shared by all workers behind one lock, which is taken only for segments of unknown connections, as
//! after a restart. Bounded in number and time.

#![allow(clippy::disallowed_types, reason = "taken for segments of connections that are unknown")]

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use hashbrown::HashMap;
use podswitch_wire::flow_key::{FlowKey, to_bytes};

use super::tcp::{Segment, seq_le};

/// Seconds after which a client that did not answer is probed again.
const ANSWERS: u32 = 2;
/// Seconds for which the result "none of them" is kept: longer than the longest retransmission
/// timeout of a server (Linux's `TCP_RTO_MAX`).
const DENIED: u32 = 130;
/// Maximum number of connections that are probed for at one time.
const CAPACITY: usize = 4096;
/// Maximum distance of a client's sequence number from the server's last acknowledgment, and of its acknowledgment from
/// the server's sequence number, in bytes. The chance to guess both is 1 in 2^26.
const SENT: u32 = 1 << 16;
const RECEIVED: u32 = 1 << 20;

/// A connection that is probed for.
#[derive(Clone, Copy, Debug)]
struct Probe {
    seq: u32,
    ack: u32,
    /// Second of the probes.
    at: u32,
    /// Number of addresses that the client has not reset yet.
    open: u8,
}

impl Probe {
    fn is_over(&self, now_secs: u32) -> bool {
        let lifetime = if self.open == 0 { DENIED } else { ANSWERS };
        now_secs.saturating_sub(self.at) >= lifetime
    }
}

#[derive(Debug, Default)]
struct State {
    /// By the key of the server's segments.
    probed: HashMap<FlowKey, Probe>,
    /// From the key of the client's segments, for each address, to that of the server's.
    candidates: HashMap<FlowKey, FlowKey>,
}

/// The result of the probes so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The client has not answered yet.
    Waiting,
    /// The client has none of these connections.
    Denied,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Probes(Mutex<State>);

impl Probes {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result of the probes for a server's segment with this key. `None`: there were none.
    pub fn progress(&self, key: &FlowKey, now_secs: u32) -> Option<Progress> {
        let state = self.lock();
        let probe = state.probed.get(key).filter(|probe| !probe.is_over(now_secs))?;
        Some(if probe.open == 0 { Progress::Denied } else { Progress::Waiting })
    }

    /// Records that the client of a server's segment is being probed for `addresses`. False if there are too many
    /// probes already.
    pub fn begin(
        &self,
        key: &FlowKey,
        segment: &Segment,
        addresses: &[SocketAddr],
        now_secs: u32,
    ) -> bool {
        let State { probed, candidates } = &mut *self.lock();
        if probed.len() >= CAPACITY {
            probed.retain(|_, probe| probe.open > 0 && !probe.is_over(now_secs));
            candidates.retain(|_, server| probed.contains_key(server));
        }
        if probed.len() >= CAPACITY {
            return false;
        }
        for address in addresses {
            candidates.insert(client_key(key, *address), *key);
        }
        let open = addresses.len().min(usize::from(u8::MAX)) as u8;
        probed.insert(*key, Probe { seq: segment.seq, ack: segment.ack, at: now_secs, open });
        true
    }

    /// The server of the connection that a client's segment belongs to, if the segment answers a probe and its sequence
    /// numbers fit.
    pub fn confirm(&self, key: &FlowKey, segment: &Segment, now_secs: u32) -> Option<SocketAddr> {
        let State { probed, candidates } = &mut *self.lock();
        let server = *candidates.get(key)?;
        let fits = |probe: &&Probe| {
            !probe.is_over(now_secs)
                && is_near(segment.seq, probe.ack, SENT)
                && is_near(segment.ack, probe.seq, RECEIVED)
        };
        probed.get(&server).filter(fits)?;
        probed.remove(&server);
        candidates.remove(key);
        Some(SocketAddr::new(server.src_addr(), server.src_port))
    }

    /// Records that a client reset a probe. False if the reset is not the answer to a probe.
    pub fn deny(&self, key: &FlowKey, segment: &Segment) -> bool {
        let State { probed, candidates } = &mut *self.lock();
        let Some(server) = candidates.get(key) else { return false };
        match probed.get_mut(server) {
            Some(probe) if probe.ack == segment.seq => {
                probe.open = probe.open.saturating_sub(1);
                candidates.remove(key);
                true
            }
            _ => false,
        }
    }
}

/// The key of the client's packets, if it reached the server of `key` by `address`.
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
    fn an_answer_with_the_right_numbers_identifies_the_client() {
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
    fn a_client_may_have_none_of_the_connections() {
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
        assert_eq!(probes.lock().probed.len(), 1);
        assert_eq!(probes.lock().candidates.len(), 1);
        // A connection that the client denied is the first to be replaced.
        assert!(probes.deny(&client_key(&key(5000), vips[0]), &at(1, 0)));
        for n in 0..CAPACITY as u16 {
            assert!(probes.begin(&key(n), &at(1, 1), &vips, 12));
        }
        assert_eq!(probes.progress(&key(5000), 12), None);
    }
}
