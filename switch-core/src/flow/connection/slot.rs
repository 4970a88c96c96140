//! What changes with packets: relaxed atomics, one cache line for each direction; beside them the
//! facts that do not. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use podswitch_wire::flow_key::proto;

use super::facts::Facts;
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
    /// Only of lane 0.
    pub(super) protocol: AtomicU32,
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
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
            protocol: AtomicU32::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// As of a connection that begins now. The generation is not touched.
    pub(super) fn begin(&self, protocol: u8, now_secs: u32) {
        self.last_seen.store(now_secs, Relaxed);
        self.state.store(0, Relaxed);
        self.seq_end.store(0, Relaxed);
        self.ack.store(0, Relaxed);
        self.window.store(0, Relaxed);
        self.scale.store(14, Relaxed);
        self.settled.store(0, Relaxed);
        self.protocol.store(u32::from(protocol), Relaxed);
        self.packets.store(0, Relaxed);
        self.bytes.store(0, Relaxed);
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
        if segment.flags & podswitch_wire::parse::tcp_flags::ACK != 0 {
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

/// Three cache lines.
pub(super) struct Slot {
    pub(super) lanes: [Lane; 2],
    pub(super) facts: Facts,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self { lanes: [Lane::new(), Lane::new()], facts: Facts::new() }
    }

    /// Odd while the slot is in use.
    #[inline]
    pub(super) fn generation(&self) -> u32 {
        self.lanes[0].generation.load(Acquire)
    }

    /// A connection begins in this slot, which is the caller's; its facts are stored already.
    /// Returns its generation.
    pub(super) fn open(&self, protocol: u8, now_secs: u32) -> u32 {
        let generation = self.lanes[0].generation.load(Relaxed).wrapping_add(1) | 1;
        for lane in &self.lanes {
            lane.begin(protocol, now_secs);
            lane.generation.store(generation, Release);
        }
        generation
    }

    /// Ends the connection of this generation for all who know it. Whoever gets true, and nobody
    /// else, takes it out of the index and gives the slot back.
    pub(super) fn claim(&self, generation: u32) -> bool {
        let next = generation.wrapping_add(1);
        let [original, reply] = &self.lanes;
        let claimed =
            original.generation.compare_exchange(generation, next, Acquire, Relaxed).is_ok();
        if claimed {
            reply.generation.store(next, Release);
        }
        claimed
    }
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

/// How much a connection is worth when something is short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Worth {
    /// Ended by its own ends: gives way to whatever needs its place.
    Over,
    /// Nobody has shown that it is wanted: TCP that is not open both ways, other protocols without an
    /// answer. Goes before what is live (RFC 4987 §3.4; T-C5).
    Unproven,
    /// Both sides have answered.
    Live,
}

/// A connection's worth, and for how many seconds it has been idle.
pub(super) fn worth(slot: &Slot, now_secs: u32) -> (Worth, u32) {
    let [a, b] = &slot.lanes;
    let last = a.last_seen.load(Relaxed).max(b.last_seen.load(Relaxed));
    let worth = if a.protocol.load(Relaxed) as u8 == proto::TCP {
        match (a.side().state, b.side().state) {
            (x, y) if tcp::is_over(x, y) => Worth::Over,
            (x, y) if tcp::is_live(x, y) => Worth::Live,
            _ => Worth::Unproven,
        }
    } else if b.packets.load(Relaxed) == 0 {
        Worth::Unproven
    } else {
        Worth::Live
    };
    (worth, now_secs.saturating_sub(last))
}

pub(super) fn is_over(slot: &Slot, now_secs: u32, pressure: bool) -> bool {
    let [a, b] = &slot.lanes;
    let protocol = a.protocol.load(Relaxed) as u8;
    let (worth, idle) = worth(slot, now_secs);
    let limit = match protocol {
        proto::TCP => tcp::idle_limit(a.side().state, b.side().state),
        _ => datagram_idle_limit(protocol),
    };
    idle >= limit || pressure && worth != Worth::Live && idle >= PRESSURE_SECS
}
