//! Captures: one at a time.

use std::sync::{Arc, Weak};

use super::{ControlError, ControlPlane};
use crate::capture::{CaptureOptions, CaptureReader};

/// The captures started so far.
#[derive(Debug, Default)]
pub(super) struct Captures {
    /// Their number.
    started: u64,
    /// The last one, while it runs.
    running: Weak<()>,
}

impl ControlPlane {
    /// Begins a [capture](crate::capture) on all workers that exist. It ends when its reader is dropped.
    ///
    /// # Errors
    /// Another capture is running.
    pub fn capture(&mut self, options: &CaptureOptions) -> Result<CaptureReader, ControlError> {
        if self.is_capturing() {
            return Err(ControlError::Capturing);
        }
        let running = Arc::new(());
        self.captures.started += 1;
        self.captures.running = Arc::downgrade(&running);
        let workers = self.workers.iter().map(|worker| Arc::clone(&worker.handle));
        let id = self.captures.started;
        Ok(CaptureReader::start(id, running, workers, options, &self.snapshots.load_full()))
    }

    /// Whether a capture is running.
    pub fn is_capturing(&self) -> bool {
        self.captures.running.strong_count() > 0
    }
}
