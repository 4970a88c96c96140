//! The reader of a capture.

use std::sync::Arc;

use super::frame::{CaptureOptions, CapturedFrame, Copy, Fate, RawFate};
use super::queue::Queue;
use super::tap::WorkerTap;
use crate::records::record;
use crate::snapshot::Snapshot;
use crate::worker::{Command, WorkerHandle};

/// Reads what the workers capture, on any thread. The capture ends when it is dropped.
#[derive(Debug)]
pub struct CaptureReader {
    id: u64,
    workers: Vec<(Arc<WorkerHandle>, Arc<Queue>)>,
    /// Says that this capture has not ended.
    _running: Arc<()>,
}

impl CaptureReader {
    /// Begins capture `id` on these workers. It has not ended as long as `running` has a second owner.
    pub(crate) fn start(
        id: u64,
        running: Arc<()>,
        workers: impl Iterator<Item = Arc<WorkerHandle>>,
        options: &CaptureOptions,
        snapshot: &Arc<Snapshot>,
    ) -> Self {
        let workers = workers.map(|worker| {
            let queue = Arc::new(Queue::new());
            let tap = WorkerTap::new(id, Arc::clone(&queue), options.clone(), Arc::clone(snapshot));
            worker.send(Command::Capture(Box::new(tap)));
            (worker, queue)
        });
        Self { id, workers: workers.collect(), _running: running }
    }

    /// Reads what was captured until now, in order of time.
    pub fn read(&mut self, mut each: impl FnMut(&CapturedFrame)) {
        let mut copies = Vec::new();
        for (index, (_, queue)) in self.workers.iter().enumerate() {
            // No more than were there: a worker may be faster than this.
            for _ in 0..queue.len() {
                let Some(copy) = queue.pop() else { break };
                copies.push((index, copy));
            }
        }
        // Stable: of one time, a worker's order is kept.
        copies.sort_by_key(|(_, copy)| copy.time);
        for (worker, copy) in copies {
            let frame = captured(worker, copy);
            each(&frame);
            self.workers[worker].1.recycle(frame.frame);
        }
    }

    /// Frames that were lost until now, since the reader is too slow.
    pub fn lost(&self) -> u64 {
        self.workers.iter().map(|(_, queue)| queue.lost()).sum()
    }
}

impl Drop for CaptureReader {
    fn drop(&mut self) {
        for (worker, _) in &self.workers {
            worker.send(Command::EndCapture(self.id));
        }
    }
}

fn captured(worker: usize, copy: Copy) -> CapturedFrame {
    let Copy { time, port, direction, original_len, headers, frame, snapshot, fate } = copy;
    let fate = match fate {
        RawFate::Forwarded(port) => Fate::Forwarded(port),
        RawFate::Dropped(raw) => Fate::Dropped(Box::new(record(worker, &raw, Some(&snapshot)))),
        RawFate::Sent { origin, ingress } => Fate::Sent { origin, ingress },
        RawFate::Unknown if headers.is_fragment => Fate::Held,
        RawFate::Unknown => Fate::Consumed,
    };
    let (key, tcp_flags, is_tunnel) = (headers.key(), headers.tcp_flags, headers.is_tunnel);
    CapturedFrame {
        worker,
        time,
        port,
        direction,
        original_len,
        key,
        tcp_flags,
        is_tunnel,
        frame,
        snapshot,
        fate,
    }
}
