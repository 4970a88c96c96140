//! Passes records from the workers to the reader.

use core::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crossbeam::queue::ArrayQueue;
use hashbrown::DefaultHashBuilder;

use super::history::History;
use super::raw::RawDrop;
use super::resolve::{DropRecord, record};
use super::table::{Other, Table};
use crate::action::DropReason;
use crate::engine::{Dropped, Observer};
use crate::id::Epoch;
use crate::snapshot::Snapshot;

/// Maximum number of single records in a worker's queue.
const QUEUE: usize = 4096;

/// State shared by a worker and the reader.
struct Shared {
    singles: ArrayQueue<RawDrop>,
    /// Whether the worker's table has something to collect.
    has_rows: AtomicBool,
    /// Tables on their way to the reader, and empty ones on their way back.
    full: ArrayQueue<Box<Table>>,
    empty: ArrayQueue<Box<Table>>,
}

/// The reader of all workers' records. See the [module's description](super).
pub struct Recorder {
    workers: Vec<Arc<Shared>>,
    hasher: DefaultHashBuilder,
    history: History,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Recorder {
    /// A recorder without workers.
    pub fn new() -> Self {
        Self {
            workers: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            history: History::default(),
        }
    }

    /// The observer for one more worker
    /// ([`ControlPlane::observe`](crate::control::ControlPlane::observe) calls this for each worker).
    pub fn observer(&mut self) -> Box<dyn Observer> {
        let shared = Arc::new(Shared {
            singles: ArrayQueue::new(QUEUE),
            has_rows: AtomicBool::new(false),
            full: ArrayQueue::new(1),
            empty: ArrayQueue::new(1),
        });
        let table = || Box::new(Table::new(self.hasher.clone()));
        // The queue is new, and has room for one.
        let _ = shared.empty.push(table());
        let table = table();
        self.workers.push(Arc::clone(&shared));
        Box::new(WorkerSide { shared, table })
    }

    /// Remembers the names of a published snapshot until its records are read. Call it for each.
    pub fn published(&mut self, snapshot: Arc<Snapshot>) {
        self.history.published(snapshot);
    }

    /// Workers that have something to collect
    /// ([`ControlPlane::collect`](crate::control::ControlPlane::collect)).
    pub fn pending(&self) -> impl Iterator<Item = usize> {
        let has_rows =
            |(index, shared): (usize, &Arc<Shared>)| shared.has_rows.load(Relaxed).then_some(index);
        self.workers.iter().enumerate().filter_map(has_rows)
    }

    /// Reads the records that have arrived. Tables arrive after the workers were asked to
    /// [collect](crate::control::ControlPlane::collect).
    pub fn read(&mut self, mut each: impl FnMut(DropRecord)) {
        let snapshot = |epoch: Epoch| self.history.get(epoch);
        for (worker, shared) in self.workers.iter().enumerate() {
            // Reads only the records that are in the queue now: a worker may be faster than this
            // loop.
            for _ in 0..shared.singles.len() {
                let Some(raw) = shared.singles.pop() else { break };
                each(record(worker, &raw, snapshot(raw.epoch)));
            }
            if let Some(mut table) = shared.full.pop() {
                let mut others: Vec<(DropReason, Other)> = Vec::new();
                table.drain(
                    |raw| each(record(worker, &raw, snapshot(raw.epoch))),
                    |reason, other| others.push((reason, other)),
                );
                // The worker has taken the last empty table, otherwise this table would not have
                // arrived.
                let _ = shared.empty.push(table);
                for (reason, other) in others {
                    each(DropRecord::other(worker, reason, other));
                }
            }
        }
        self.history.end_reading();
    }
}

/// The worker's side.
struct WorkerSide {
    shared: Arc<Shared>,
    table: Box<Table>,
}

impl Observer for WorkerSide {
    fn dropped(&mut self, drop: &Dropped<'_>) {
        if self.table.is_empty() {
            self.shared.has_rows.store(true, Relaxed);
        }
        let (mut raw, frame) = RawDrop::new(drop);
        if !self.table.is_single(&raw) {
            return self.table.count(raw);
        }
        raw.frame = frame;
        if let Err(raw) = self.shared.singles.push(raw) {
            self.table.count(raw);
        }
    }

    fn collect(&mut self) {
        if self.table.is_empty() || self.shared.full.is_full() {
            return;
        }
        // If there is no empty table, the reader has not read the last one yet.
        let Some(empty) = self.shared.empty.pop() else { return };
        self.shared.has_rows.store(false, Relaxed);
        let full = core::mem::replace(&mut self.table, empty);
        // The queue was checked for room above, and only this function adds to it.
        let _ = self.shared.full.push(full);
    }
}
