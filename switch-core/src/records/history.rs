//! Snapshots that records may still refer to.

use std::sync::Arc;

use crate::id::Epoch;
use crate::snapshot::Snapshot;

/// Maximum number of snapshots that are kept for their names.
const SNAPSHOTS: usize = 64;

/// Snapshots to whose epochs records may refer, the oldest first.
#[derive(Default)]
pub(super) struct History {
    snapshots: Vec<Arc<Snapshot>>,
    /// The number of snapshots at the end of the last reading.
    read: usize,
}

impl History {
    /// Remembers a published snapshot.
    pub(super) fn published(&mut self, snapshot: Arc<Snapshot>) {
        if self.snapshots.last().is_none_or(|last| last.epoch != snapshot.epoch) {
            if self.snapshots.len() == SNAPSHOTS {
                self.snapshots.remove(0);
                self.read = self.read.saturating_sub(1);
            }
            self.snapshots.push(snapshot);
        }
    }

    /// The snapshot of an epoch. If the epoch is 0 (unknown), the newest snapshot, because its names are the best
    /// guess.
    pub(super) fn get(&self, epoch: Epoch) -> Option<&Snapshot> {
        match epoch {
            Epoch(0) => self.newest(),
            epoch => self.snapshots.iter().rev().find(|s| s.epoch == epoch).map(|s| &**s),
        }
    }

    /// The newest snapshot.
    pub(super) fn newest(&self) -> Option<&Snapshot> {
        self.snapshots.last().map(|snapshot| &**snapshot)
    }

    /// Everything was read. Later records have an epoch from the last reading on, so snapshots that were replaced
    /// before it are freed.
    pub(super) fn end_reading(&mut self) {
        self.snapshots.drain(..self.read.saturating_sub(1));
        self.read = self.snapshots.len();
    }
}
