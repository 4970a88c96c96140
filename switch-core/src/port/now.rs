//! The current time for ports that need it: a port has no clock of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Instant;

/// The current time, set by the poller of the port. Clones share it. A worker sets it once per poll, a
/// test when its virtual time advances.
#[derive(Clone, Debug, Default)]
pub struct Now(Arc<AtomicU64>);

impl Now {
    /// A clock at [`Instant::ZERO`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the time.
    #[inline]
    pub fn set(&self, now: Instant) {
        self.0.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// The time that was last set.
    #[inline]
    pub fn get(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::Relaxed))
    }
}
