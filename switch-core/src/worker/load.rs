//! A worker's load. CPU usage does not tell the load of a polling loop. The share of time in rounds
//! that moved frames does, and how full the bursts are.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::stats::Counter;
use crate::time::Instant;

/// Running totals, written by the worker.
#[derive(Debug, Default)]
pub struct LoadMeter {
    busy_nanos: Counter,
    rounds: Counter,
    bursts: Counter,
    frames: Counter,
    since: AtomicU64,
    latest: AtomicU64,
}

/// A reading of a [`LoadMeter`]; the difference of two readings is the load between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Time in rounds that moved frames, in nanoseconds.
    pub busy_nanos: u64,
    /// Time from the worker's first round to its latest one, in nanoseconds.
    pub nanos: u64,
    /// Rounds that moved frames.
    pub rounds: u64,
    /// Bursts received.
    pub bursts: u64,
    /// Frames received.
    pub frames: u64,
}

impl Load {
    /// The difference to an earlier reading.
    pub fn since(&self, earlier: &Load) -> Load {
        Load {
            busy_nanos: self.busy_nanos.saturating_sub(earlier.busy_nanos),
            nanos: self.nanos.saturating_sub(earlier.nanos),
            rounds: self.rounds.saturating_sub(earlier.rounds),
            bursts: self.bursts.saturating_sub(earlier.bursts),
            frames: self.frames.saturating_sub(earlier.frames),
        }
    }

    /// Share of time in rounds that moved frames, from 0 to 1.
    pub fn busy_share(&self) -> f64 {
        if self.nanos == 0 { 0.0 } else { self.busy_nanos as f64 / self.nanos as f64 }
    }

    /// Average frames per burst.
    pub fn batch_fill(&self) -> f64 {
        if self.bursts == 0 { 0.0 } else { self.frames as f64 / self.bursts as f64 }
    }
}

impl LoadMeter {
    #[inline]
    pub(super) fn burst(&self, frames: usize) {
        self.bursts.add(1);
        self.frames.add(frames as u64);
    }

    #[inline]
    pub(super) fn busy(&self, from: Instant, to: Instant) {
        self.rounds.add(1);
        self.busy_nanos.add(to.since(from).as_nanos() as u64);
        self.idle(to);
    }

    #[inline]
    pub(super) fn idle(&self, now: Instant) {
        if self.since.load(Relaxed) == 0 {
            self.since.store(now.as_nanos().max(1), Relaxed);
        }
        self.latest.store(now.as_nanos(), Relaxed);
    }

    /// The current totals.
    pub fn read(&self) -> Load {
        Load {
            busy_nanos: self.busy_nanos.get(),
            nanos: self.latest.load(Relaxed).saturating_sub(self.since.load(Relaxed)),
            rounds: self.rounds.get(),
            bursts: self.bursts.get(),
            frames: self.frames.get(),
        }
    }
}
