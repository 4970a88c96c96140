//! A worker's load. A polling loop always uses its CPU, so CPU usage does not show its load. The share of time in
//! rounds that moved frames does, and so does the size of the bursts.
//!
//! The worker writes a few counters a burst and a poll, and reads the clock once a poll (once more
//! when it moved frames). Nothing here is done per packet.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use super::pauses::{Activity, Pause, Pauses};
use crate::stats::Counter;
use crate::time::Instant;

/// Classes of burst sizes: 1, 2, 3–4, 5–8, 9–16, 17–32, 33–64 frames.
pub const BURST_CLASSES: usize = 7;
/// Classes of durations: class `n` has those below 2^n ns that are not in class `n - 1`; the last has
/// all longer ones, from about 9 minutes on.
pub const DURATION_CLASSES: usize = 40;

/// The reason for the end of a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WakeReason {
    /// A port is readable.
    Port,
    /// The control plane or another worker.
    Command,
    /// The longest sleep was over.
    Timeout,
}

/// Running totals, written by the worker.
#[derive(Debug, Default)]
pub struct LoadMeter {
    busy_nanos: Counter,
    slept_nanos: Counter,
    empty_polls: Counter,
    frames: Counter,
    bursts: [Counter; BURST_CLASSES],
    durations: Durations,
    woken: [Counter; 3],
    /// Start of the current sleep; 0: the worker is awake.
    asleep_since: AtomicU64,
    since: AtomicU64,
    latest: AtomicU64,
    pauses: Pauses,
}

/// Polls that moved frames, by the class of their duration.
#[derive(Debug)]
struct Durations([Counter; DURATION_CLASSES]);

impl Default for Durations {
    fn default() -> Self {
        Self([const { Counter::new() }; DURATION_CLASSES])
    }
}

/// A reading of a [`LoadMeter`]; the difference of two readings is the load between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Time in rounds that moved frames, in nanoseconds.
    pub busy_nanos: u64,
    /// Time from the worker's first round to its latest one, in nanoseconds.
    pub nanos: u64,
    /// Time asleep in the kernel, in nanoseconds.
    pub slept_nanos: u64,
    /// Rounds that moved frames.
    pub rounds: u64,
    /// Rounds that received nothing.
    pub empty_polls: u64,
    /// Bursts received.
    pub bursts: u64,
    /// Frames received.
    pub frames: u64,
    /// Bursts by size: of 1, 2, 3–4, 5–8, 9–16, 17–32, 33–64 frames.
    pub burst_sizes: [u64; BURST_CLASSES],
    /// Rounds that moved frames, by duration: the entry `n` counts those of less than 2^n ns, and of at
    /// least half of that.
    pub durations: [u64; DURATION_CLASSES],
    /// Sleeps that ended because of a port, because of a command, and because the maximum sleep was over.
    pub woken: [u64; 3],
}

impl Default for Load {
    fn default() -> Self {
        Self {
            busy_nanos: 0,
            nanos: 0,
            slept_nanos: 0,
            rounds: 0,
            empty_polls: 0,
            bursts: 0,
            frames: 0,
            burst_sizes: [0; BURST_CLASSES],
            durations: [0; DURATION_CLASSES],
            woken: [0; 3],
        }
    }
}

/// The elements' differences.
fn differences<const N: usize>(now: [u64; N], earlier: [u64; N]) -> [u64; N] {
    core::array::from_fn(|n| now[n].saturating_sub(earlier[n]))
}

impl Load {
    /// The difference to an earlier reading.
    pub fn since(&self, earlier: &Load) -> Load {
        Load {
            busy_nanos: self.busy_nanos.saturating_sub(earlier.busy_nanos),
            nanos: self.nanos.saturating_sub(earlier.nanos),
            slept_nanos: self.slept_nanos.saturating_sub(earlier.slept_nanos),
            rounds: self.rounds.saturating_sub(earlier.rounds),
            empty_polls: self.empty_polls.saturating_sub(earlier.empty_polls),
            bursts: self.bursts.saturating_sub(earlier.bursts),
            frames: self.frames.saturating_sub(earlier.frames),
            burst_sizes: differences(self.burst_sizes, earlier.burst_sizes),
            durations: differences(self.durations, earlier.durations),
            woken: differences(self.woken, earlier.woken),
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

    /// A duration in nanoseconds that the share `part` (0 to 1) of the rounds that moved frames stayed
    /// below: a power of two, at most twice the exact value. 0 if there was no such round.
    pub fn duration_below(&self, part: f64) -> u64 {
        let total: u64 = self.durations.iter().sum();
        let wanted = (total as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (class, count) in self.durations.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return 1 << class;
            }
        }
        0
    }
}

/// The class of a burst of `frames` frames.
#[inline]
fn burst_class(frames: usize) -> usize {
    let class = usize::BITS - frames.saturating_sub(1).leading_zeros();
    (class as usize).min(BURST_CLASSES - 1)
}

/// The class of a duration.
#[inline]
fn duration_class(nanos: u64) -> usize {
    ((u64::BITS - nanos.leading_zeros()) as usize).min(DURATION_CLASSES - 1)
}

impl LoadMeter {
    /// A burst of `frames` frames, at least one, was received.
    #[inline]
    pub(super) fn burst(&self, frames: usize) {
        self.bursts[burst_class(frames)].add(1);
        self.frames.add(frames as u64);
    }

    /// A round that moved frames.
    #[inline]
    pub(super) fn busy(&self, from: Instant, to: Instant) {
        let nanos = to.since(from).as_nanos() as u64;
        self.durations.0[duration_class(nanos)].add(1);
        self.busy_nanos.add(nanos);
        self.at(to);
    }

    /// A round that received nothing.
    #[inline]
    pub(super) fn idle(&self, now: Instant) {
        self.empty_polls.add(1);
        self.at(now);
    }

    #[inline]
    fn at(&self, now: Instant) {
        if self.since.load(Relaxed) == 0 {
            self.since.store(now.as_nanos().max(1), Relaxed);
        }
        self.latest.store(now.as_nanos(), Relaxed);
    }

    /// A sleep begins.
    pub(super) fn sleeps(&self, now: Instant) {
        self.asleep_since.store(now.as_nanos(), Relaxed);
    }

    /// A sleep is over.
    pub(super) fn slept(&self, from: Instant, to: Instant, woken: WakeReason) {
        self.slept_nanos.add(to.since(from).as_nanos() as u64);
        self.woken[woken as usize].add(1);
        self.asleep_since.store(0, Relaxed);
        self.at(to);
    }

    /// Records the time from one round to the next, without a sleep in between, in which the worker did `activity`.
    #[inline]
    pub(super) fn pause(&self, from: Instant, to: Instant, activity: Activity) {
        self.pauses.add(from, to, activity);
    }

    /// The longest time from one round to the next within the last `window` (at most a minute), without
    /// sleeps. `now`: the time of the worker's clock.
    pub fn longest_pause(&self, now: Instant, window: Duration) -> Option<Pause> {
        self.pauses.longest(now, window)
    }

    /// The totals at the time `now` of the worker's clock: with the part of a sleep that has passed.
    pub fn read_at(&self, now: Instant) -> Load {
        let asleep = self.asleep_since.load(Relaxed);
        let mut load = self.read();
        if asleep != 0 {
            load.slept_nanos += now.as_nanos().saturating_sub(asleep);
            load.nanos += now.as_nanos().saturating_sub(self.latest.load(Relaxed));
        }
        load
    }

    /// The totals of completed rounds and sleeps.
    pub fn read(&self) -> Load {
        let burst_sizes = core::array::from_fn(|n| self.bursts[n].get());
        let durations: [u64; DURATION_CLASSES] =
            core::array::from_fn(|n| self.durations.0[n].get());
        Load {
            busy_nanos: self.busy_nanos.get(),
            nanos: self.latest.load(Relaxed).saturating_sub(self.since.load(Relaxed)),
            slept_nanos: self.slept_nanos.get(),
            rounds: durations.iter().sum(),
            empty_polls: self.empty_polls.get(),
            bursts: burst_sizes.iter().sum(),
            frames: self.frames.get(),
            burst_sizes,
            durations,
            woken: core::array::from_fn(|n| self.woken[n].get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn bursts_are_counted_by_size() {
        let meter = LoadMeter::default();
        for frames in 1..=64 {
            meter.burst(frames);
        }
        let load = meter.read();
        assert_eq!(load.burst_sizes, [1, 1, 2, 4, 8, 16, 32]);
        assert_eq!((load.bursts, load.frames), (64, 64 * 65 / 2));
    }

    #[test]
    fn quantiles_are_upper_bounds_within_a_factor_of_two() {
        let meter = LoadMeter::default();
        assert_eq!(meter.read().duration_below(0.5), 0);
        // 98 short rounds, one of 10 us, one of 3 ms.
        for nanos in std::iter::repeat_n(700, 98).chain([10_000, 3_000_000]) {
            meter.busy(at(5), at(5 + nanos));
        }
        let load = meter.read();
        assert_eq!(load.rounds, 100);
        assert_eq!(load.duration_below(0.5), 1024);
        assert_eq!(load.duration_below(0.99), 16_384);
        assert_eq!(load.duration_below(1.0), 1 << 22);
        assert_eq!(load.busy_nanos, 98 * 700 + 10_000 + 3_000_000);
        // An hour, and a round that the clock did not register.
        meter.busy(at(5), at(5 + 3_600_000_000_000));
        meter.busy(at(5), at(5));
        let load = meter.read().since(&load);
        assert_eq!(
            (load.rounds, load.durations[DURATION_CLASSES - 1], load.durations[0]),
            (2, 1, 1)
        );
    }

    #[test]
    fn a_difference_contains_only_later_events() {
        let meter = LoadMeter::default();
        meter.idle(at(100));
        meter.burst(3);
        let before = meter.read();
        meter.burst(64);
        meter.idle(at(200));
        meter.slept(at(200), at(1200), WakeReason::Port);
        meter.slept(at(1200), at(1300), WakeReason::Timeout);
        let load = meter.read().since(&before);
        assert_eq!(load.burst_sizes, [0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((load.empty_polls, load.nanos, load.slept_nanos), (1, 1200, 1100));
        assert_eq!(load.woken, [1, 0, 1]);
        meter.sleeps(at(1400));
        let later = meter.read_at(at(2000)).since(&before);
        assert_eq!((later.slept_nanos, later.nanos), (1700, 1900), "asleep since");
        meter.slept(at(1400), at(2100), WakeReason::Command);
        assert_eq!(meter.read_at(at(2200)).since(&before).slept_nanos, 1800);
    }
}
