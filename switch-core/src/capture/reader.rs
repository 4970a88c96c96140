//! The reader of a capture.

use std::sync::Arc;

use super::frame::{CaptureOptions, CaptureOutcome, CapturedFrame, Copy, RawFate};
use super::queue::Queue;
use super::tap::WorkerTap;
use crate::records::record;
use crate::snapshot::Snapshot;
use crate::worker::{Command, WorkerHandle};

/// Reads the frames that the workers capture, on any thread. The capture ends when the reader is dropped.
#[derive(Debug)]
pub struct CaptureReader {
    id: u64,
    workers: Vec<(Arc<WorkerHandle>, Arc<Queue>)>,
    /// Keeps the capture marked as running.
    _running: Arc<()>,
}

impl CaptureReader {
    /// Begins capture `id` on these workers. It runs as long as `running` has a second owner.
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

    /// Reads the frames captured so far, in order of time.
    pub fn read(&mut self, mut each: impl FnMut(&CapturedFrame)) {
        let mut copies = Vec::new();
        for (index, (_, queue)) in self.workers.iter().enumerate() {
            // Reads only the copies that are in the queue now: a worker may be faster than this loop.
            for _ in 0..queue.len() {
                let Some(copy) = queue.pop() else { break };
                copies.push((index, copy));
            }
        }
        // Stable sort: frames of one worker with the same time keep their order.
        copies.sort_by_key(|(_, copy)| copy.time);
        for (worker, copy) in copies {
            let frame = captured(worker, copy);
            each(&frame);
            self.workers[worker].1.recycle(frame.frame);
        }
    }

    /// The number of frames lost so far because the reader is too slow.
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
        RawFate::Forwarded(port) => CaptureOutcome::Forwarded(port),
        RawFate::Dropped(raw) => {
            CaptureOutcome::Dropped(Box::new(record(worker, &raw, Some(&snapshot))))
        }
        RawFate::Sent { origin, ingress } => CaptureOutcome::Sent { origin, ingress },
        RawFate::Unknown if headers.is_fragment => CaptureOutcome::Held,
        RawFate::Unknown => CaptureOutcome::Consumed,
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
