//! Updates of a connection by its packets. Uses the slot's atomics only, never the index: no lock is
//! taken on a hit. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::Relaxed;

use super::ConnectionRef;
use super::slot::Lane;
use super::tracker::Tracker;
use crate::flow::tcp::{self, Segment, TcpState};

impl Tracker {
    /// Records a packet that is not TCP, of `bytes` bytes. False if the connection has ended.
    #[inline]
    pub fn record(&self, connection: ConnectionRef, bytes: usize, now_secs: u32) -> bool {
        let Some(lane) = self.lane(connection) else { return false };
        if lane.last_seen.load(Relaxed) != now_secs {
            lane.last_seen.store(now_secs, Relaxed);
        }
        lane.count(bytes as u64);
        true
    }

    /// Records packets of the last second, none of them TCP. `now_secs` becomes the second of the last packet. False if
    /// the connection has ended.
    pub fn record_many(
        &self,
        connection: ConnectionRef,
        packets: u32,
        bytes: u32,
        now_secs: u32,
    ) -> bool {
        let Some(lane) = self.lane(connection) else { return false };
        lane.last_seen.store(now_secs, Relaxed);
        lane.count_many(packets.into(), bytes.into());
        true
    }

    /// Adds packets that were counted elsewhere before. False without effect if the connection has ended, or if a
    /// record says so.
    pub fn add_counts(&self, connection: ConnectionRef, packets: u32, bytes: u32) -> bool {
        let Some(lane) = self.lane(connection) else { return false };
        if self.slot(connection.slot >> 1).is_some_and(|slot| slot.facts.is_recorded()) {
            return false;
        }
        lane.count_many(packets.into(), bytes.into());
        true
    }

    /// Records a TCP segment without SYN, FIN and RST. False if the connection has ended.
    #[inline]
    pub fn record_segment(
        &self,
        connection: ConnectionRef,
        segment: &Segment,
        bytes: usize,
        now_secs: u32,
    ) -> bool {
        let Some(lane) = self.lane(connection) else { return false };
        if lane.last_seen.load(Relaxed) != now_secs {
            lane.last_seen.store(now_secs, Relaxed);
        }
        lane.count(bytes as u64);
        if lane.both_established.load(Relaxed) == 1
            && tcp::seq_le(segment.seq, lane.seq_end.load(Relaxed))
        {
            lane.advance(segment);
            return true;
        }
        self.data_segment(connection, lane, *segment);
        true
    }

    /// A segment that is not just the next one of an established connection. Passed by value, so that
    /// the caller can keep it in registers.
    #[inline(never)]
    fn data_segment(&self, connection: ConnectionRef, lane: &Lane, segment: Segment) {
        let segment = &segment;
        let Some(peer) = self.lane(connection.reversed()) else { return };
        let (own, other) = (lane.side(), peer.side());
        if own.state == TcpState::None {
            // Picked up mid-stream: both ends have established the connection before.
            lane.state.fetch_max(TcpState::Established as u32, Relaxed);
            lane.seq_end.store(segment.end, Relaxed);
            lane.advance(segment);
        } else {
            let window = other.window.max(65_535);
            let limit = other.ack.wrapping_add(window);
            if other.ack == 0 || tcp::seq_le(segment.end, limit) {
                lane.advance(segment);
            }
        }
        self.acknowledge(peer, segment);
        let established = |l: &Lane| l.state.load(Relaxed) == TcpState::Established as u32;
        if established(lane) && established(peer) {
            lane.both_established.store(1, Relaxed);
        }
    }

    /// Updates the state of the side that a segment acknowledges.
    fn acknowledge(&self, peer: &Lane, segment: &Segment) {
        if segment.flags & podswitch_wire::parse::tcp_flags::ACK == 0 {
            return;
        }
        let side = peer.side();
        let next = match side.state {
            TcpState::SynSent if segment.ack == side.seq_end => TcpState::Established,
            TcpState::Closing if tcp::seq_le(side.seq_end, segment.ack) => TcpState::Closed,
            _ => return,
        };
        peer.state.fetch_max(next as u32, Relaxed);
    }

    /// Checks a TCP segment with SYN, FIN or RST against the window of the other side; if it fits,
    /// updates the states. `None` if the connection has ended.
    pub fn control_segment(
        &self,
        connection: ConnectionRef,
        segment: &Segment,
        scale: Option<u8>,
        bytes: usize,
        now_secs: u32,
    ) -> Option<tcp::SegmentCheck> {
        use podswitch_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};
        let own = self.lane(connection)?;
        let peer = self.lane(connection.reversed())?;
        let judgement = tcp::check(segment, &own.side(), &peer.side());
        if judgement != tcp::SegmentCheck::Fits {
            return Some(judgement);
        }
        own.last_seen.store(now_secs, Relaxed);
        own.count(bytes as u64);
        own.both_established.store(0, Relaxed);
        peer.both_established.store(0, Relaxed);
        if segment.flags & RST != 0 {
            own.state.fetch_max(TcpState::Reset as u32, Relaxed);
            peer.state.fetch_max(TcpState::Reset as u32, Relaxed);
            return Some(judgement);
        }
        if segment.flags & SYN != 0 && own.state.load(Relaxed) > TcpState::SynSent as u32 {
            // The receiver answers with a challenge ACK (RFC 5961 §4), so it changes no state.
            return Some(judgement);
        }
        if segment.flags & SYN != 0 {
            // Window scaling is used only if both SYNs have the option. A second SYN without it
            // disables it (RFC 7323 §2.2).
            let agreed = if segment.flags & ACK != 0 && scale.is_none() {
                peer.scale.store(0, Relaxed);
                0
            } else {
                scale.unwrap_or(0)
            };
            own.scale.store(u32::from(agreed), Relaxed);
            own.state.fetch_max(TcpState::SynSent as u32, Relaxed);
            own.seq_end.store(segment.end, Relaxed);
            own.ack.store(if segment.flags & ACK != 0 { segment.ack } else { 0 }, Relaxed);
            own.window.store(u32::from(segment.window), Relaxed);
        } else {
            if own.state.load(Relaxed) == TcpState::None as u32 {
                own.state.fetch_max(TcpState::Established as u32, Relaxed);
                own.seq_end.store(segment.end, Relaxed);
            }
            own.advance(segment);
        }
        if segment.flags & FIN != 0 {
            own.state.fetch_max(TcpState::Closing as u32, Relaxed);
        }
        self.acknowledge(peer, segment);
        Some(judgement)
    }

    /// States of both sides, this direction's sender first; `None` if the connection has ended.
    pub fn tcp_states(&self, connection: ConnectionRef) -> Option<[TcpState; 2]> {
        let own = self.lane(connection)?;
        let peer = self.lane(connection.reversed())?;
        Some([own.side().state, peer.side().state])
    }
}
