//! What changes with packets: relaxed atomics, one cache line for each direction. Compiled a second
//! time by `model.rs`.

use core::sync::atomic::Ordering::Relaxed;

use wire::flow_key::proto;

use super::sync::{AtomicU32, AtomicU64};
use crate::flow::tcp::{self, Segment, Side, TcpState};

/// What changes with the packets of one direction. One cache line.
#[repr(C, align(64))]
pub(super) struct Lane {
    /// Odd while the slot is in use; the same in both lanes.
    pub(super) generation: AtomicU32,
    /// Seconds.
    pub(super) last_seen: AtomicU32,
    pub(super) state: AtomicU32,
    pub(super) seq_end: AtomicU32,
    pub(super) ack: AtomicU32,
    pub(super) window: AtomicU32,
    pub(super) scale: AtomicU32,
    /// One while both sides are established and neither has closed: a plain segment then has
    /// nothing to say about the other side, whose lane need not be read.
    pub(super) settled: AtomicU32,
    /// Protocol (low 8 bits), then the origin port; only of lane 0.
    pub(super) about: AtomicU32,
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Hash of this direction's key, to find its record.
    pub(super) hash: AtomicU64,
}

impl Lane {
    pub(super) fn new() -> Self {
        Self {
            generation: AtomicU32::new(0),
            last_seen: AtomicU32::new(0),
            state: AtomicU32::new(0),
            seq_end: AtomicU32::new(0),
            ack: AtomicU32::new(0),
            window: AtomicU32::new(0),
            scale: AtomicU32::new(0),
            settled: AtomicU32::new(0),
            about: AtomicU32::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            hash: AtomicU64::new(0),
        }
    }

    pub(super) fn side(&self) -> Side {
        Side {
            state: TcpState::from_raw(self.state.load(Relaxed)),
            seq_end: self.seq_end.load(Relaxed),
            ack: self.ack.load(Relaxed),
            window: self.window.load(Relaxed),
            scale: self.scale.load(Relaxed) as u8,
        }
    }

    /// One worker writes a lane at nearly every time; where two do, a count may be lost, which
    /// is worth the plain store.
    #[inline]
    pub(super) fn count(&self, bytes: u64) {
        self.count_many(1, bytes);
    }

    #[inline]
    pub(super) fn count_many(&self, packets: u64, bytes: u64) {
        self.packets.store(self.packets.load(Relaxed).wrapping_add(packets), Relaxed);
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(bytes), Relaxed);
    }

    #[inline]
    pub(super) fn advance(&self, segment: &Segment) {
        let seen = self.seq_end.load(Relaxed);
        if tcp::seq_le(seen, segment.end) {
            self.seq_end.store(segment.end, Relaxed);
        }
        if segment.flags & wire::parse::tcp_flags::ACK != 0 {
            let acked = self.ack.load(Relaxed);
            if tcp::seq_le(acked, segment.ack) || acked == 0 {
                self.ack.store(segment.ack, Relaxed);
            }
            // The largest ever: what was in flight when a window closed may still arrive, and a
            // sender that gives up resets from there.
            let window = u32::from(segment.window) << self.scale.load(Relaxed);
            if window > self.window.load(Relaxed) {
                self.window.store(window, Relaxed);
            }
        }
    }
}

pub(super) struct Slot {
    pub(super) lanes: [Lane; 2],
}

/// Seconds that short-lived state may be idle when the table is nearly full.
pub const PRESSURE_SECS: u32 = 5;

/// Seconds of silence after which a connection without TCP states ends (RFC 4787 REQ-5: UDP two
/// minutes; RFC 5508 REQ-2: ICMP queries one minute).
fn datagram_idle_limit(protocol: u8) -> u32 {
    match protocol {
        proto::ICMP | proto::ICMPV6 => 60,
        proto::UDP => 120,
        proto::SCTP => 900,
        _ => 600,
    }
}

pub(super) fn is_over(slot: &Slot, now_secs: u32, pressure: bool) -> bool {
    let [a, b] = &slot.lanes;
    let last = a.last_seen.load(Relaxed).max(b.last_seen.load(Relaxed));
    let idle = now_secs.saturating_sub(last);
    let protocol = (a.about.load(Relaxed) & 0xff) as u8;
    let (limit, short_lived) = if protocol == proto::TCP {
        let (x, y) = (a.side().state, b.side().state);
        let live = x == TcpState::Established && y == TcpState::Established;
        (tcp::idle_limit(x, y), !live)
    } else {
        (datagram_idle_limit(protocol), b.packets.load(Relaxed) == 0)
    };
    idle >= limit || pressure && short_lived && idle >= PRESSURE_SECS
}
