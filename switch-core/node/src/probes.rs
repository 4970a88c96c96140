//! What a kubelet's probes ask of a switch: whether it is alive, and whether it is ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};

/// After how long without a round the control thread counts as hung: a whole state of the largest cluster takes
/// seconds.
const HUNG: Duration = Duration::from_secs(60);

/// Written by the thread that follows a source, read by whatever answers probes. Clones share it.
#[derive(Clone, Debug)]
pub struct Probes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    /// The last round, in ms of `clock`.
    alive_at: AtomicU64,
    is_ready: AtomicBool,
}

impl Default for Probes {
    fn default() -> Self {
        Self(Arc::new(Inner {
            clock: Clock::start(),
            alive_at: AtomicU64::new(0),
            is_ready: AtomicBool::new(false),
        }))
    }
}

impl Probes {
    fn now(&self) -> u64 {
        let now = self.0.clock.now().since(Instant::default());
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }

    /// The control thread goes round.
    pub fn alive(&self) {
        self.0.alive_at.store(self.now(), Relaxed);
    }

    /// The first state is in force.
    pub fn ready(&self) {
        self.0.is_ready.store(true, Relaxed);
    }

    /// Whether the control thread went round within the last minute.
    pub fn is_alive(&self) -> bool {
        let silence = self.now().saturating_sub(self.0.alive_at.load(Relaxed));
        u128::from(silence) < HUNG.as_millis()
    }

    /// Whether it is alive and the first state is in force at every worker.
    pub fn is_ready(&self) -> bool {
        self.is_alive() && self.0.is_ready.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_follows_the_first_state() {
        let probes = Probes::default();
        probes.alive();
        assert!(probes.is_alive() && !probes.is_ready());
        probes.clone().ready();
        assert!(probes.is_ready());
    }
}
