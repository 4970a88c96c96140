//! Fragments: held until their datagram is complete, then admitted and sent together (T-F1 to T-F5).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
#[expect(clippy::disallowed_types, reason = "only fragments take this lock")]
use std::sync::Mutex;

use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Icmp, Parsed};

use super::admission::Admission;
use super::prefetch::MissInfo;
use super::{BurstContext, Engine};
use crate::action::DropReason;
use crate::flow::fragments::{Fragment, FragmentConfig, Fragments, Released, compact};
use crate::id::PortId;
use crate::packet::Packet;
use crate::resolve::{Query, check_fragment};
use crate::time::Instant;

/// Datagrams that are checked for their timeout in one poll.
const FRAGMENT_BUDGET: usize = 16;

/// The fragments of all workers: those of one datagram may be received by different workers.
#[derive(Debug)]
pub(super) struct FragmentStore {
    #[expect(clippy::disallowed_types, reason = "only fragments take this lock")]
    held: Mutex<Fragments>,
    /// When the oldest datagram times out, in nanoseconds; `u64::MAX` if nothing is held. Read
    /// without the lock, so that a poll with nothing to expire does not take it.
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
    /// Holds a fragment until its datagram is complete, then admits the datagram.
    pub(super) fn fragment(
        &mut self,
        cx: &mut BurstContext<'_>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
    ) {
        let query = Query::of(&parsed.key, &packet);
        if let Err(reason) = check_fragment(cx.snapshot, &query, parsed.fragment) {
            return self.drop(cx, packet, reason, None);
        }
        // Each port and each VTEP has its own share of the store. Addresses behind the node's port
        // have none: they can be forged (T-C6).
        let end = packet.via().map_or(0, |end| u64::from(end.0) + 1);
        let account = end << 16 | u64::from(ingress.0);
        // The worker that releases it, maybe another one, takes it into its pool.
        let packet = compact(packet, cx.pool);
        cx.pool.forget(&packet);
        let now = cx.now;
        let mut released = self.change_fragments(cx, |held, out| {
            held.insert(packet, parsed, account, now, out);
        });
        if !released.whole.is_empty() {
            self.datagram(cx, &mut released.whole);
        }
        self.released = released;
    }

    /// Changes the store, and drops the fragments that the change released.
    fn change_fragments(
        &mut self,
        cx: &mut BurstContext<'_>,
        change: impl FnOnce(&mut Fragments, &mut Released),
    ) -> Released {
        let mut released = std::mem::take(&mut self.released);
        self.shared.fragments.with(|held| change(held, &mut released));
        for (packet, reason) in released.dropped.drain(..) {
            cx.pool.adopt(&packet);
            self.drop(cx, packet, reason, None);
        }
        released
    }

    /// Admits a complete datagram, and sends or drops its fragments.
    fn datagram(&mut self, cx: &mut BurstContext<'_>, pieces: &mut Vec<Fragment>) {
        let admission = match pieces.first() {
            Some(Fragment { parsed, .. }) if parsed.icmp == Icmp::Error => {
                DropReason::IcmpUnrelated.into()
            }
            Some(Fragment { packet, parsed }) => {
                let payload = datagram_payload(pieces);
                self.admit(cx, packet, parsed, payload, MissInfo::default())
            }
            None => return,
        };
        for Fragment { packet, parsed } in pieces.drain(..) {
            cx.pool.adopt(&packet);
            match &admission {
                Admission::Pass(plan) => self.transmit(cx, packet, &parsed, plan),
                // A datagram that came in fragments is never answered here.
                Admission::Gateway | Admission::Answer(_) => self.consume(cx, packet),
                Admission::Deny(denial) => self.deny(cx, packet, &parsed, denial),
            }
        }
    }

    /// Drops fragments that have timed out.
    pub(super) fn expire_fragments(&mut self, cx: &mut BurstContext<'_>) {
        let now = cx.now;
        if self.shared.fragments.is_due(now) {
            self.released = self.change_fragments(cx, |held, out| {
                held.expire(now, FRAGMENT_BUDGET, out);
            });
        }
    }

    /// Drops the held fragments of a port that was detached.
    pub(super) fn drain_port_fragments(&mut self, cx: &mut BurstContext<'_>, port: PortId) {
        self.released = self.change_fragments(cx, |held, out| held.drain_port(port, out));
    }

    /// Drops all held fragments.
    pub(super) fn drain_fragments(&mut self, cx: &mut BurstContext<'_>, reason: DropReason) {
        self.released = self.change_fragments(cx, |held, out| held.drain(reason, out));
    }
}

/// Bytes behind the layer-4 header of a complete datagram.
fn datagram_payload(pieces: &[Fragment]) -> u32 {
    let [Fragment { parsed: first, .. }, Fragment { parsed: second, .. }, ..] = pieces else {
        return 0;
    };
    let later = pieces.iter().skip(1).map(|p| p.parsed.end - u32::from(p.parsed.l4));
    let total = u32::from(second.fragment_offset) + later.sum::<u32>();
    // Less the headers in the first fragment: layer 4, and IPv6 extension headers before it.
    let data = u32::from(second.fragment_offset) + u32::from(first.payload);
    total.saturating_sub(data.saturating_sub(first.end))
}
