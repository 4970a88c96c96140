//! The poller's clock, for wrappers that need the time: a port has no clock of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Instant;

/// The present time as the poller last told it. Clones show the same time; a worker sets it once
/// a poll, a test whenever its virtual time moves.
#[derive(Clone, Debug, Default)]
pub struct Now(Arc<AtomicU64>);

impl Now {
    /// A clock that stands at [`Instant::ZERO`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time.
    #[inline]
    pub fn set(&self, now: Instant) {
        self.0.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// The time that was set last.
    #[inline]
    pub fn get(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::Relaxed))
    }
}
