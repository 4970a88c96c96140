//! The last drops, and a stream of new ones.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use podswitch_node::DroppedFrames;
use tokio::sync::broadcast::{self, Receiver, Sender};

/// Number of records that are kept for later queries.
const KEPT: usize = 10_000;
/// Number of records that a follower may be behind; records that it misses are counted.
const BEHIND: usize = 4096;

/// See the module's description. Filled by the node's event sink, read by the server.
pub struct DropLog {
    kept: Mutex<VecDeque<Arc<DroppedFrames>>>,
    live: Sender<Arc<DroppedFrames>>,
}

impl fmt::Debug for DropLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DropLog").finish_non_exhaustive()
    }
}

impl Default for DropLog {
    fn default() -> Self {
        Self { kept: Mutex::default(), live: broadcast::channel(BEHIND).0 }
    }
}

impl DropLog {
    /// Adds a record. Never waits for readers.
    pub fn push(&self, frames: DroppedFrames) {
        let frames = Arc::new(frames);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&frames));
        // Under the lock, so that a reader who requests kept and new records gets each record once. It is not an error
        // if there is no reader.
        let _ = self.live.send(frames);
    }

    /// The kept records, the oldest first.
    pub(crate) fn kept(&self) -> Vec<Arc<DroppedFrames>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The kept records, and a receiver for later ones.
    pub(crate) fn follow(&self) -> (Vec<Arc<DroppedFrames>>, Receiver<Arc<DroppedFrames>>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.live.subscribe())
    }
}
