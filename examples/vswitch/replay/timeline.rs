//! The time of a replay: that of the captures, and the engine's, derived from it.
//!
//! Between two frames the engine is polled so that timeouts occur in between: those of waiting
//! fragments and idle connections. However long the gap, the work is bounded: steps after the last
//! frame, a jump, and steps before the next frame.

use std::time::Duration;

use podswitch_core::time::Instant;

/// The engine's interval between two sweeps.
const STEP: u64 = 100_000_000;
/// Steps at each end of a gap: the engine sweeps its tables completely in ten seconds, and its
/// shortest timeouts end within them.
const STEPS: u64 = 110;
/// A longer jump would not cause any further timeout.
const LONGEST_LEAP: u64 = 7 * 86_400 * 1_000_000_000;
/// The engine counts seconds in 32 bits. In a longer capture its time stops at the end.
const END: Instant = Instant::from_secs(u32::MAX as u64);

/// The current time of a replay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeline {
    /// The captures' time: nanoseconds since 1970.
    capture: u64,
    engine: Instant,
}

impl Timeline {
    /// Begins at a capture's time.
    pub(super) fn begin(capture: u64) -> Self {
        Self { capture, engine: Instant::from_secs(1) }
    }

    /// The captures' time, in nanoseconds since 1970.
    pub(super) fn capture(&self) -> u64 {
        self.capture
    }

    /// The engine's time.
    pub(super) fn engine(&self) -> Instant {
        self.engine
    }

    /// Advances to a capture's time, calling `poll` at moments before it. `poll` returns whether
    /// anything is left that could time out. A time in the past changes nothing.
    pub(super) fn advance(&mut self, to: u64, mut poll: impl FnMut(&Self) -> bool) {
        let mut waiting = true;
        for _ in 0..STEPS {
            if !waiting || to.saturating_sub(self.capture) <= STEP {
                break;
            }
            self.go(STEP);
            waiting = poll(self);
        }
        let gap = to.saturating_sub(self.capture);
        let tail = if waiting { STEP * STEPS } else { 0 };
        if gap > tail {
            self.go(gap - tail);
            if waiting {
                waiting = poll(self);
            }
        }
        while waiting && to.saturating_sub(self.capture) > STEP {
            self.go(STEP);
            waiting = poll(self);
        }
        self.go(to.saturating_sub(self.capture));
    }

    fn go(&mut self, by: u64) {
        self.capture = self.capture.saturating_add(by);
        let by = Duration::from_nanos(by.min(LONGEST_LEAP));
        self.engine = (self.engine + by).min(END);
    }
}
