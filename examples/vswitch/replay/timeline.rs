//! Time in a replay: that of the captures, and the engine's made from it.
//!
//! Between two frames the engine is polled so that what ends with time ends in between: fragments
//! that wait, connections that nobody uses. However long the gap, the work is bounded: steps
//! after the frame before, a leap, and steps before the frame to come.

use std::time::Duration;

use podswitch_core::time::Instant;

/// As long as the engine waits between two of its sweeps.
const STEP: u64 = 100_000_000;
/// Steps at each end of a gap: the engine sweeps its tables once round in ten seconds, and its
/// shortest waits end within them.
const STEPS: u64 = 110;
/// A leap longer than this ends nothing that this does not end.
const LONGEST_LEAP: u64 = 7 * 86_400 * 1_000_000_000;
/// The engine counts seconds in 32 bits. A capture that goes on for longer has its time stand
/// still in the end.
const END: Instant = Instant::from_secs(u32::MAX as u64);

/// The present moment of a replay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeline {
    /// As captures tell it: nanoseconds since 1970.
    capture: u64,
    engine: Instant,
}

impl Timeline {
    /// Begins at a capture's time.
    pub(super) fn begin(capture: u64) -> Self {
        Self { capture, engine: Instant::from_secs(1) }
    }

    /// The time as captures tell it, in nanoseconds since 1970.
    pub(super) fn capture(&self) -> u64 {
        self.capture
    }

    /// The time as the engine has it.
    pub(super) fn engine(&self) -> Instant {
        self.engine
    }

    /// Goes on to a capture's time, by way of `poll` at moments before it. `poll` says whether
    /// there is anything left that time could end. A time that is past already changes nothing.
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
