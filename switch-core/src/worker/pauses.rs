//! The longest times in which a worker did not poll, second by second.
//!
//! Two maxima cannot be subtracted from each other as two counters can. So there is one maximum for each of the last
//! seconds, and any number of readers may query their own window.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;

use crate::time::Instant;

/// Seconds that are remembered.
const SECONDS: usize = 64;
/// The longest window in seconds: the slots of this second and the one to come are being written.
const LONGEST_WINDOW: u64 = 60;

/// The activities of a worker between two polls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Activity(u8);

impl Activity {
    /// Moved frames.
    pub const FRAMES: Self = Self(1);
    /// Executed commands of the control plane, such as adding or removing ports.
    pub const COMMANDS: Self = Self(2);
    /// Switched to a new snapshot.
    pub const PUBLISH: Self = Self(4);
    /// Swept a part of the tables for timeouts.
    pub const SWEEP: Self = Self(8);
    /// Migrated entries of a growing flow table.
    pub const GROWTH: Self = Self(16);

    /// The names of its activities: `frames`, `commands`, `publish`, `sweep`, `growth`. None: the worker found nothing
    /// to do, and the kernel ran other threads on the core.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = ["frames", "commands", "publish", "sweep", "growth"];
        all.into_iter().enumerate().filter(move |(n, _)| self.0 >> n & 1 == 1).map(|(_, name)| name)
    }

    /// Adds `other` if `condition` holds.
    #[inline]
    pub(super) fn add_if(&mut self, condition: bool, other: Self) {
        self.0 |= other.0 * u8::from(condition);
    }
}

/// A time in which a worker did not poll.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pause {
    /// The duration.
    pub duration: Duration,
    /// The worker's activities in this time.
    pub activity: Activity,
}

/// The longest pause of each second: nanoseconds, activity (8 bits), second (16 bits).
#[derive(Debug)]
pub(super) struct Pauses([AtomicU64; SECONDS]);

impl Default for Pauses {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; SECONDS])
    }
}

/// Durations above 18 minutes are stored as 18 minutes.
const MAX_NANOS: u64 = (1 << 40) - 1;

impl Pauses {
    #[inline]
    pub(super) fn add(&self, from: Instant, to: Instant, Activity(activity): Activity) {
        let second = to.as_secs();
        let nanos = (to.since(from).as_nanos() as u64).min(MAX_NANOS);
        let slot = &self.0[second as usize % SECONDS];
        let old = slot.load(Relaxed);
        if nanos > old >> 24 || old & 0xffff != second & 0xffff {
            slot.store(nanos << 24 | u64::from(activity) << 16 | second & 0xffff, Relaxed);
        }
    }

    pub(super) fn longest(&self, now: Instant, window: Duration) -> Option<Pause> {
        let last = now.as_secs();
        let first = last.saturating_sub(window.as_secs().min(LONGEST_WINDOW));
        let of_second = |second: u64| {
            let slot = self.0[second as usize % SECONDS].load(Relaxed);
            (slot & 0xffff == second & 0xffff).then_some(slot).filter(|slot| slot >> 24 > 0)
        };
        (first..=last).filter_map(of_second).max().map(|slot| Pause {
            duration: Duration::from_nanos(slot >> 24),
            activity: Activity((slot >> 16) as u8),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(pauses: &Pauses, second: u64, nanos: u64, activity: Activity) {
        let from = Instant::from_secs(second);
        pauses.add(from, from + Duration::from_nanos(nanos), activity);
    }

    #[test]
    fn the_longest_of_a_window_is_found() {
        let pauses = Pauses::default();
        assert_eq!(pauses.longest(Instant::from_secs(3), Duration::from_secs(60)), None);
        let mut both = Activity::FRAMES;
        both.add_if(true, Activity::SWEEP);
        both.add_if(false, Activity::GROWTH);
        add(&pauses, 100, 5_000_000, both);
        add(&pauses, 100, 7_000, Activity::FRAMES);
        add(&pauses, 107, 40_000, Activity::PUBLISH);
        let longest = |window| {
            let pause = pauses.longest(Instant::from_secs(108), Duration::from_secs(window));
            pause.map(|pause| {
                (pause.duration.as_nanos(), pause.activity.names().collect::<Vec<_>>())
            })
        };
        assert_eq!(longest(10), Some((5_000_000, vec!["frames", "sweep"])));
        assert_eq!(longest(3), Some((40_000, vec!["publish"])));
        assert_eq!(longest(0), None);
    }

    #[test]
    fn a_second_is_forgotten_after_a_minute() {
        let pauses = Pauses::default();
        add(&pauses, 100, 9_000_000, Activity::FRAMES);
        // The same slot, a shorter pause, another second.
        add(&pauses, 100 + SECONDS as u64, 10, Activity::default());
        let window = Duration::from_secs(600);
        let longest = pauses.longest(Instant::from_secs(100 + SECONDS as u64), window).unwrap();
        assert_eq!(longest.duration, Duration::from_nanos(10));
        assert_eq!(longest.activity.names().count(), 0);
        add(&pauses, 200, u64::MAX / 4, Activity::FRAMES);
        let longest = pauses.longest(Instant::from_nanos(u64::MAX), window);
        assert_eq!(longest, None, "its end is in another second");
    }
}
