//! Dropped frames, from the workers to the node's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::queue::ArrayQueue;
use podswitch_core::action::DropReason;
use podswitch_core::control::ControlPlane;
use podswitch_core::engine::{Dropped, Observer};
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::time::Instant;

use super::event::{DroppedFrame, Event};
use super::sink::Reporter;
use crate::pod_name::PodName;

/// Most dropped frames that wait; further ones are counted as lost.
const DROP_QUEUE: usize = 4096;

/// A dropped frame as a worker reports it.
#[derive(Debug)]
struct RawDrop {
    time: Instant,
    port: PortId,
    reason: DropReason,
    object: Option<Cookie>,
}

/// Dropped frames, on their way from the workers.
#[derive(Clone, Debug)]
pub(crate) struct DropQueue {
    frames: Arc<ArrayQueue<RawDrop>>,
    lost: Arc<AtomicU64>,
}

impl DropQueue {
    /// Makes all workers of `control` report dropped frames.
    pub(crate) fn observe(control: &ControlPlane) -> Self {
        let queue = Self {
            frames: Arc::new(ArrayQueue::new(DROP_QUEUE)),
            lost: Arc::new(AtomicU64::new(0)),
        };
        control.observe(|_| Some(Box::new(queue.clone())));
        queue
    }

    /// Reports what arrived since the last call. `pod`: the pod at a port.
    pub(crate) fn report(&self, reporter: &Reporter, pod: impl Fn(PortId) -> Option<PodName>) {
        // Bounded, since workers may add them faster.
        for _ in 0..self.frames.len() {
            let Some(RawDrop { time, port, reason, object }) = self.frames.pop() else { break };
            let frame = DroppedFrame { time, port, pod: pod(port), reason, object };
            reporter.event(Event::Dropped(frame));
        }
        let count = self.lost.swap(0, Relaxed);
        if count > 0 {
            reporter.event(Event::Lost { count });
        }
    }
}

impl Observer for DropQueue {
    fn dropped(&mut self, drop: &Dropped<'_>) {
        // With a full queue the worker does not copy the name.
        if self.frames.is_full() {
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        let object = drop.object.cloned();
        let (time, port, reason) = (drop.now, drop.trace.ingress, drop.reason);
        if self.frames.push(RawDrop { time, port, reason, object }).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}
