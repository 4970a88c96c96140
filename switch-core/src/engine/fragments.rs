//! Fragments: held until their datagram is whole, then judged and sent as one (T-F1 to T-F5).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
#[expect(clippy::disallowed_types, reason = "only fragments meet at this lock")]
use std::sync::Mutex;

use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Icmp, Parsed};

use super::admit::Admission;
use super::ahead::Ahead;
use super::{Engine, Turn};
use crate::action::DropReason;
use crate::flow::fragments::{Fragment, FragmentConfig, Fragments, Released, compact};
use crate::id::PortId;
use crate::packet::Packet;
use crate::resolve::{Query, check_source};
use crate::time::Instant;

/// Held datagrams looked at for their age in one poll.
const FRAGMENT_BUDGET: usize = 16;

/// The fragments that all workers hold: those of one datagram may arrive at different workers.
#[derive(Debug)]
pub(super) struct FragmentStore {
    #[expect(clippy::disallowed_types, reason = "only fragments meet at this lock")]
    held: Mutex<Fragments>,
    /// When the oldest datagram has had its time, in nanoseconds; `u64::MAX`: nothing is held.
    /// A poll that has nothing to do here does not take the lock.
    next_expiry: AtomicU64,
}

impl FragmentStore {
    pub(super) fn new(secret: HashKey) -> Self {
        let held = Fragments::new(FragmentConfig::default(), secret).into();
        Self { held, next_expiry: AtomicU64::new(u64::MAX) }
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.next_expiry.load(Relaxed) == u64::MAX
    }

    fn is_due(&self, now: Instant) -> bool {
        now.as_nanos() >= self.next_expiry.load(Relaxed)
    }

    fn with(&self, change: impl FnOnce(&mut Fragments)) {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut held);
        let next = held.next_expiry().map_or(u64::MAX, Instant::as_nanos);
        self.next_expiry.store(next, Relaxed);
    }
}

impl Engine {
    /// Holds a fragment until its datagram is whole; then the whole datagram goes one way.
    pub(super) fn fragment(
        &mut self,
        turn: &mut Turn<'_>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
    ) {
        let query = Query::of(&parsed.key, &packet);
        if let Err(reason) = check_source(turn.snapshot, &query) {
            return self.drop(turn, packet, reason, None);
        }
        // Each port has its own share of the store. Addresses behind the node's port can be
        // forged, so they have none of their own (T-C6). So has each tunnel end.
        let end = packet.via().map_or(0, |end| u64::from(end.0) + 1);
        let account = end << 16 | u64::from(ingress.0);
        // Whoever lets it go adopts it: that may be another worker.
        let packet = compact(packet, turn.pool);
        turn.pool.forget(&packet);
        let now = turn.now;
        let mut released = self.released(turn, |held, out| {
            held.insert(packet, parsed, account, now, out);
        });
        if !released.whole.is_empty() {
            self.datagram(turn, &mut released.whole);
        }
        self.released = released;
    }

    /// Changes the store, and drops what that let go without being whole.
    fn released(
        &mut self,
        turn: &mut Turn<'_>,
        change: impl FnOnce(&mut Fragments, &mut Released),
    ) -> Released {
        let mut released = std::mem::take(&mut self.released);
        self.shared.fragments.with(|held| change(held, &mut released));
        for (packet, reason) in released.dropped.drain(..) {
            turn.pool.adopt(&packet);
            self.drop(turn, packet, reason, None);
        }
        released
    }

    fn datagram(&mut self, turn: &mut Turn<'_>, pieces: &mut Vec<Fragment>) {
        let admission = match pieces.first() {
            Some(Fragment { parsed, .. }) if parsed.icmp == Icmp::Error => {
                DropReason::IcmpUnrelated.into()
            }
            Some(Fragment { packet, parsed }) => {
                let payload = datagram_payload(pieces);
                self.admit(turn, packet, parsed, payload, Ahead::default())
            }
            None => return,
        };
        for Fragment { packet, parsed } in pieces.drain(..) {
            turn.pool.adopt(&packet);
            match &admission {
                Admission::Pass(plan) => self.transmit(turn, packet, &parsed, plan),
                Admission::Gateway => self.consume(turn, packet),
                Admission::Deny(denial) => self.deny(turn, packet, &parsed, denial),
            }
        }
    }

    /// Gives back what was held too long.
    pub(super) fn expire_fragments(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now;
        if self.shared.fragments.is_due(now) {
            self.released = self.released(turn, |held, out| {
                held.expire(now, FRAGMENT_BUDGET, out);
            });
        }
    }

    /// Drops what is held from a port that went away.
    pub(super) fn drain_port_fragments(&mut self, turn: &mut Turn<'_>, port: PortId) {
        self.released = self.released(turn, |held, out| held.drain_port(port, out));
    }

    /// Drops everything that is held.
    pub(super) fn drain_fragments(&mut self, turn: &mut Turn<'_>, reason: DropReason) {
        self.released = self.released(turn, |held, out| held.drain(reason, out));
    }
}

/// Bytes behind the layer-4 header of a whole datagram in pieces.
fn datagram_payload(pieces: &[Fragment]) -> u32 {
    let [Fragment { parsed: first, .. }, Fragment { parsed: second, .. }, ..] = pieces else {
        return 0;
    };
    let later = pieces.iter().skip(1).map(|p| p.parsed.end - u32::from(p.parsed.l4));
    let total = u32::from(second.fragment_offset) + later.sum::<u32>();
    // What the first piece carries beside layer-4 payload: its header, and IPv6 headers before it.
    let data = u32::from(second.fragment_offset) + u32::from(first.payload);
    total.saturating_sub(data.saturating_sub(first.end))
}
