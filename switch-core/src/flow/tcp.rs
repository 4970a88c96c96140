//! TCP state tracking: the state of each side, and which segments may change it.
//!
//! The state of a side only ever increases (as in pf), so two workers that see the two directions
//! change it with `fetch_max` and need no lock. The window is checked for segments that could close
//! or restart the connection (RFC 9293 §3.10.7.4, RFC 5382 REQ-3). Data is checked by the end
//! systems.

use podswitch_wire::parse::tcp_flags::{ACK, FIN, RST, SYN};

/// State of one side of a TCP connection: which control segments it has sent, and which of them
/// were acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum TcpState {
    /// Nothing seen from this side.
    None = 0,
    /// This side sent a SYN.
    SynSent = 1,
    /// Its SYN was acknowledged, or the connection was picked up mid-stream.
    Established = 2,
    /// This side sent a FIN.
    Closing = 3,
    /// Its FIN was acknowledged.
    Closed = 4,
    /// The connection was reset.
    Reset = 5,
}

impl TcpState {
    /// The state with the discriminant `raw`.
    #[inline]
    pub fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::None,
            1 => Self::SynSent,
            2 => Self::Established,
            3 => Self::Closing,
            4 => Self::Closed,
            _ => Self::Reset,
        }
    }
}

/// The parts of a TCP header that tracking needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Sequence number after the last byte, SYN and FIN counted.
    pub end: u32,
    /// Acknowledgment number; meaningful with the ACK flag.
    pub ack: u32,
    /// Window field, unscaled.
    pub window: u16,
    /// Flags.
    pub flags: u8,
}

impl Segment {
    /// Reads the segment whose header starts at `header`, with `payload` bytes of data behind it.
    /// `parse` has checked that the header is complete.
    #[inline]
    pub fn read(header: &[u8], flags: u8, payload: u32) -> Self {
        let header = header.first_chunk().copied().unwrap_or([0u8; 16]);
        let [_, _, _, _, a, b, c, d, e, f, g, h, _, _, window @ ..] = header;
        let seq = u32::from_be_bytes([a, b, c, d]);
        let extra = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        Self {
            seq,
            end: seq.wrapping_add(payload).wrapping_add(extra),
            ack: u32::from_be_bytes([e, f, g, h]),
            window: u16::from_be_bytes(window),
            flags,
        }
    }

    /// Whether the segment carries only data and an acknowledgment: no SYN, FIN or RST.
    #[inline]
    pub fn is_data(&self) -> bool {
        self.flags & (SYN | FIN | RST | ACK) == ACK
    }
}

/// `a` is at or before `b` in sequence space (RFC 9293 §3.4).
#[inline]
pub fn seq_le(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) >= 0
}

/// The later of two sequence numbers.
#[inline]
pub fn seq_max(a: u32, b: u32) -> u32 {
    if seq_le(a, b) { b } else { a }
}

/// The window scale option in the options of a SYN (RFC 7323 §2), at most 14.
pub fn window_scale(header: &[u8]) -> Option<u8> {
    let end = usize::from(header.get(12)? >> 4) * 4;
    let mut options = header.get(20..end.min(header.len()))?;
    while let [kind, rest @ ..] = options {
        match kind {
            0 => return None,
            1 => options = rest,
            _ => {
                let len = usize::from(*rest.first()?);
                if *kind == 3 && len == 3 {
                    return Some((*rest.get(1)?).min(14));
                }
                options = options.get(len.max(2)..)?;
            }
        }
    }
    None
}

/// The known facts about one side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// State.
    pub state: TcpState,
    /// Highest sequence number sent, plus one.
    pub seq_end: u32,
    /// Highest acknowledgment sent.
    pub ack: u32,
    /// Largest window advertised, scaled, in bytes.
    pub window: u32,
    /// Window scale; 14 if it is unknown, so that the window check is permissive.
    pub scale: u8,
}

/// The result of [`check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentCheck {
    /// It fits; the states may change.
    Fits,
    /// A SYN after the connection was closed: nothing was changed, and the caller ends the old
    /// connection.
    Restart,
    /// Outside the window: must be dropped, nothing was changed (T-N2).
    OutOfWindow,
}

/// Minimum window that is assumed, in bytes.
const MIN_WINDOW: u32 = 65_535;

/// Whether a connection with these states is closed, so that its ports may be used again: reset, or
/// closed by both sides. The last acknowledgment may still be missing.
pub fn is_over(a: TcpState, b: TcpState) -> bool {
    a == TcpState::Reset || b == TcpState::Reset || a.min(b) >= TcpState::Closing
}

/// Whether an end system ever sends a segment with these flags (RFC 9293 §3.5, §3.10): all segments
/// except SYN and RST have ACK set, and a SYN has neither FIN nor RST.
pub fn is_possible(flags: u8) -> bool {
    match flags & (SYN | FIN | RST) {
        SYN | RST => true,
        0 | FIN => flags & ACK != 0,
        _ => false,
    }
}

/// Checks a segment with SYN, FIN or RST from the side `own` to the side `peer`.
pub fn check(segment: &Segment, own: &Side, peer: &Side) -> SegmentCheck {
    if segment.flags & (SYN | ACK | RST) == SYN {
        if is_over(own.state, peer.state) {
            return SegmentCheck::Restart;
        }
        // A retransmitted SYN, or a simultaneous open. On an established connection the receiver
        // answers with a challenge ACK (RFC 5961 §4), so the SYN passes without effect.
        return SegmentCheck::Fits;
    }
    if peer.state == TcpState::None {
        return SegmentCheck::Fits;
    }
    // The peer accepts data from its last acknowledgment on, up to its window (RFC 9293
    // §3.10.7.4). A reset in reply to a SYN acknowledges it.
    if segment.flags & RST != 0 {
        if peer.state == TcpState::SynSent && segment.flags & ACK != 0 {
            return if segment.ack == peer.seq_end {
                SegmentCheck::Fits
            } else {
                SegmentCheck::OutOfWindow
            };
        }
        if own.state < TcpState::Established && peer.ack == 0 {
            return SegmentCheck::Fits;
        }
        let window = peer.window.max(1);
        let offset = segment.seq.wrapping_sub(peer.ack);
        // A side with data in flight resets with its next sequence number. That may be ahead of the
        // peer's acknowledgment, but not beyond the data seen from this side.
        let sent = own.seq_end.wrapping_sub(peer.ack);
        let limit = window.max(if (sent as i32) > 0 { sent } else { 0 });
        return if offset <= limit { SegmentCheck::Fits } else { SegmentCheck::OutOfWindow };
    }
    if own.state >= TcpState::Established && peer.state >= TcpState::Established {
        let window = peer.window.max(MIN_WINDOW);
        let fits = seq_le(segment.end, peer.ack.wrapping_add(window).wrapping_add(1))
            && seq_le(own.seq_end.wrapping_sub(window).wrapping_sub(1), segment.end);
        if !fits {
            return SegmentCheck::OutOfWindow;
        }
    }
    SegmentCheck::Fits
}

/// Idle timeout of a connection in these states, in seconds (RFC 5382 REQ-5: established two hours
/// four minutes, transitory four minutes). A half-closed connection may carry data of the other
/// side for an hour, the timeout that kube-proxy sets (`tcpCloseWaitTimeout`).
pub fn idle_limit(a: TcpState, b: TcpState) -> u32 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    match (low, high) {
        (_, TcpState::Reset) => 10,
        (TcpState::Closed, _) => 30,
        (TcpState::Established, TcpState::Established) => 7_440,
        (TcpState::Established, TcpState::Closing | TcpState::Closed) => 3_600,
        _ => 240,
    }
}

/// Whether both sides have answered and at least one may still send: such a connection is never ended
/// early.
pub fn is_live(a: TcpState, b: TcpState) -> bool {
    a.min(b) == TcpState::Established && a.max(b) != TcpState::Reset
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(state: TcpState, seq_end: u32, ack: u32, window: u32) -> Side {
        Side { state, seq_end, ack, window, scale: 0 }
    }

    fn segment(flags: u8, seq: u32, ack: u32) -> Segment {
        Segment { seq, end: seq, ack, window: 1000, flags }
    }

    #[test]
    fn reset_is_accepted_only_inside_the_window() {
        let own = side(TcpState::Established, 5_000, 9_000, 1_000);
        let peer = side(TcpState::Established, 9_000, 5_000, 1_000);
        assert_eq!(check(&segment(RST, 5_000, 0), &own, &peer), SegmentCheck::Fits);
        assert_eq!(check(&segment(RST, 5_999, 0), &own, &peer), SegmentCheck::Fits);
        assert_eq!(check(&segment(RST, 4_999, 0), &own, &peer), SegmentCheck::OutOfWindow);
        assert_eq!(check(&segment(RST, 6_001, 0), &own, &peer), SegmentCheck::OutOfWindow);
        assert_eq!(check(&segment(RST, 3_000_000_000, 0), &own, &peer), SegmentCheck::OutOfWindow);
    }

    #[test]
    fn reset_of_a_syn_must_acknowledge_it() {
        let own = side(TcpState::None, 0, 0, 0);
        let peer = side(TcpState::SynSent, 101, 0, 1_000);
        assert_eq!(check(&segment(RST | ACK, 0, 101), &own, &peer), SegmentCheck::Fits);
        assert_eq!(check(&segment(RST | ACK, 0, 100), &own, &peer), SegmentCheck::OutOfWindow);
    }

    #[test]
    fn syn_restarts_only_a_closed_connection() {
        let live = side(TcpState::Established, 5_000, 9_000, 1_000);
        let gone = side(TcpState::Closed, 5_000, 9_000, 1_000);
        assert_eq!(check(&segment(SYN, 77, 0), &gone, &gone), SegmentCheck::Restart);
        assert_eq!(check(&segment(SYN, 77, 0), &live, &live), SegmentCheck::Fits);
    }

    #[test]
    fn half_closed_connections_live_an_hour() {
        use TcpState::*;
        for closed in [Closing, Closed] {
            assert_eq!(idle_limit(Established, closed), 3_600);
            assert_eq!(idle_limit(closed, Established), 3_600);
            assert!(is_live(Established, closed) && is_live(closed, Established));
        }
        for ended in [[Closing, Closing], [Closing, Closed], [Closed, Closed]] {
            assert!(idle_limit(ended[0], ended[1]) <= 240);
            assert!(!is_live(ended[0], ended[1]));
        }
        assert!(is_live(Established, Established));
        for opening in [None, SynSent, Reset] {
            assert!(!is_live(Established, opening) && !is_live(opening, Established));
        }
    }

    #[test]
    fn sequence_space_wraps() {
        assert!(seq_le(0xffff_fff0, 5));
        assert!(!seq_le(5, 0xffff_fff0));
        assert_eq!(seq_max(0xffff_fff0, 5), 5);
    }

    #[test]
    fn window_scale_is_found_among_options_and_bounded() {
        let mut header = [0u8; 32];
        header[12] = 8 << 4;
        header[20..32].copy_from_slice(&[2, 4, 5, 0xb4, 1, 3, 3, 99, 0, 0, 0, 0]);
        assert_eq!(window_scale(&header), Some(14));
        header[20..32].copy_from_slice(&[2, 0, 5, 0xb4, 1, 3, 3, 7, 0, 0, 0, 0]);
        assert_eq!(window_scale(&header), None, "a zero length must not loop");
        assert_eq!(window_scale(&header[..10]), None);
    }
}
