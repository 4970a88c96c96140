//! A slot of the connection table: per direction one cache line of relaxed atomics that change with
//! packets, and one cache line of facts that do not. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use podswitch_wire::flow_key::proto;

use super::facts::Facts;
use super::sync::{AtomicU32, AtomicU64};
use crate::flow::tcp::{self, Segment, Side, TcpState};
use crate::id::Epoch;
use crate::pinned::OpenedAt;
use crate::time::Instant;

/// The state of one direction. One cache line.
#[repr(C, align(64))]
pub(super) struct Lane {
    /// Odd while the slot is in use; the same in both lanes.
    pub(super) generation: AtomicU32,
    /// Second of the last packet.
    pub(super) last_seen: AtomicU32,
    pub(super) state: AtomicU32,
    pub(super) seq_end: AtomicU32,
    pub(super) ack: AtomicU32,
    pub(super) window: AtomicU32,
    pub(super) scale: AtomicU32,
    /// 1 while both sides are established and neither has closed. A data segment then changes nothing
    /// about the other side, whose cache line need not be read.
    pub(super) both_established: AtomicU32,
    /// Only in lane 0.
    pub(super) protocol: AtomicU32,
    /// Epoch in which the connection was opened. Only in lane 0.
    epoch: AtomicU32,
    pub(super) packets: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// When the connection was opened, in nanoseconds. Only in lane 0. The next process reads neither this nor the
    /// epoch.
    opened: AtomicU64,
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
            both_established: AtomicU32::new(0),
            protocol: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Sets the state of a new connection. The generation is not changed.
    pub(super) fn reset(&self, protocol: u8, now_secs: u32) {
        self.last_seen.store(now_secs, Relaxed);
        self.state.store(0, Relaxed);
        self.seq_end.store(0, Relaxed);
        self.ack.store(0, Relaxed);
        self.window.store(0, Relaxed);
        self.scale.store(14, Relaxed);
        self.both_established.store(0, Relaxed);
        self.protocol.store(u32::from(protocol), Relaxed);
        self.packets.store(0, Relaxed);
        self.bytes.store(0, Relaxed);
    }

    /// Takes over the state of another lane, except its generation.
    pub(super) fn copy_from(&self, other: &Self) {
        let copy = |to: &AtomicU32, from: &AtomicU32| to.store(from.load(Relaxed), Relaxed);
        copy(&self.last_seen, &other.last_seen);
        copy(&self.state, &other.state);
        copy(&self.seq_end, &other.seq_end);
        copy(&self.ack, &other.ack);
        copy(&self.window, &other.window);
        // A window scale beyond 14 is not possible (RFC 7323 §2.3).
        self.scale.store(other.scale.load(Relaxed).min(14), Relaxed);
        copy(&self.both_established, &other.both_established);
        self.packets.store(other.packets.load(Relaxed), Relaxed);
        self.bytes.store(other.bytes.load(Relaxed), Relaxed);
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

    /// Counts one packet. Nearly always one worker writes a lane. If two do, a count may be lost: the
    /// price of a plain store instead of an atomic addition.
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
            // The largest window ever: data that was in flight when the window closed may still
            // arrive, and an aborting sender resets at its end.
            let window = u32::from(segment.window) << self.scale.load(Relaxed);
            if window > self.window.load(Relaxed) {
                self.window.store(window, Relaxed);
            }
        }
    }
}

/// A slot; three cache lines.
#[repr(C)]
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

    /// Opens a connection in this slot, which the caller owns and has stored the facts in. Returns its
    /// generation.
    pub(super) fn open(&self, protocol: u8, at: OpenedAt) -> u32 {
        let generation = self.lanes[0].generation.load(Relaxed).wrapping_add(1) | 1;
        self.set_opened(at);
        for lane in &self.lanes {
            lane.reset(protocol, at.seconds());
            lane.generation.store(generation, Release);
        }
        generation
    }

    /// Second of the last packet of either direction.
    pub(super) fn last_seen(&self) -> u32 {
        let [a, b] = &self.lanes;
        a.last_seen.load(Relaxed).max(b.last_seen.load(Relaxed))
    }

    /// Packets of both directions, for comparison.
    pub(super) fn packets(&self) -> u64 {
        let [a, b] = &self.lanes;
        a.packets.load(Relaxed).wrapping_add(b.packets.load(Relaxed))
    }

    pub(super) fn set_opened(&self, at: OpenedAt) {
        self.lanes[0].epoch.store(at.epoch.0, Relaxed);
        self.lanes[0].opened.store(at.time.as_nanos(), Relaxed);
    }

    /// When the connection was opened.
    pub(super) fn opened(&self) -> OpenedAt {
        let lane = &self.lanes[0];
        let time = Instant::from_nanos(lane.opened.load(Relaxed));
        OpenedAt { time, epoch: Epoch(lane.epoch.load(Relaxed)) }
    }

    /// Ends the connection of this generation: references to it become invalid. Returns true for one
    /// caller only, which must remove it from the index and free the slot.
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

/// Idle timeout of short-lived connections while the table is nearly full, in seconds.
pub const PRESSURE_SECS: u32 = 5;

/// Idle timeout of connections other than TCP, in seconds (RFC 4787 REQ-5: UDP two minutes; RFC 5508
/// REQ-2: ICMP queries one minute).
fn datagram_idle_limit(protocol: u8) -> u32 {
    match protocol {
        proto::ICMP | proto::ICMPV6 => 60,
        proto::UDP => 120,
        proto::SCTP => 900,
        _ => 600,
    }
}

/// The value of a connection when a limit is reached: connections of lower value are ended first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EvictionClass {
    /// Closed or reset by its ends.
    Over,
    /// Not confirmed by the other end: TCP that is not established in both directions, other
    /// protocols without a reply. Ended before live connections (RFC 4987 §3.4; T-C5).
    Unproven,
    /// Both ends have sent packets.
    Live,
}

/// A connection's worth, and how many seconds it has been idle.
pub(super) fn worth(slot: &Slot, now_secs: u32) -> (EvictionClass, u32) {
    let [a, b] = &slot.lanes;
    let last = a.last_seen.load(Relaxed).max(b.last_seen.load(Relaxed));
    let worth = if a.protocol.load(Relaxed) as u8 == proto::TCP {
        match (a.side().state, b.side().state) {
            (x, y) if tcp::is_over(x, y) => EvictionClass::Over,
            (x, y) if tcp::is_live(x, y) => EvictionClass::Live,
            _ => EvictionClass::Unproven,
        }
    } else if b.packets.load(Relaxed) == 0 {
        EvictionClass::Unproven
    } else {
        EvictionClass::Live
    };
    (worth, now_secs.saturating_sub(last))
}

/// Whether a connection has timed out.
pub(super) fn is_over(slot: &Slot, now_secs: u32, pressure: bool) -> bool {
    let [a, b] = &slot.lanes;
    let protocol = a.protocol.load(Relaxed) as u8;
    let (worth, idle) = worth(slot, now_secs);
    let limit = match protocol {
        proto::TCP => tcp::idle_limit(a.side().state, b.side().state),
        _ => datagram_idle_limit(protocol),
    };
    idle >= limit || pressure && worth != EvictionClass::Live && idle >= PRESSURE_SECS
}
