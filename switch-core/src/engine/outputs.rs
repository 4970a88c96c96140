//! Egress queues: frames to be transmitted, by port.

use std::collections::VecDeque;

use crate::id::PortId;
use crate::packet::{BATCH, Batch, Packet};

/// Frames for one port.
#[derive(Debug, Default)]
struct Queue {
    batch: Batch,
    /// Frames beyond a burst of 64: floods, released fragments.
    more: VecDeque<Packet>,
    listed: bool,
}

/// Frames that the engine hands to ports. Filled by one call of the engine, emptied by its caller.
#[derive(Debug, Default)]
pub struct Outputs {
    queues: Vec<Option<Box<Queue>>>,
    /// Ports whose queue is not empty.
    listed: Vec<PortId>,
}

impl Outputs {
    /// Empty queues.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues a frame for `port`.
    #[inline]
    pub fn push(&mut self, port: PortId, packet: Packet) {
        // A queue that is not empty is listed already.
        if let Some(Some(queue)) = self.queues.get_mut(port.index())
            && (1..BATCH).contains(&queue.batch.len())
        {
            queue.batch.push(packet);
            return;
        }
        self.push_slow(port, packet);
    }

    #[inline(never)]
    fn push_slow(&mut self, port: PortId, packet: Packet) {
        if self.queues.len() <= port.index() {
            self.queues.resize_with(port.index() + 1, || None);
        }
        let queue = self.queues[port.index()].get_or_insert_default();
        if !queue.listed {
            queue.listed = true;
            self.listed.push(port);
        }
        if queue.batch.is_full() {
            queue.more.push_back(packet);
        } else {
            queue.batch.push(packet);
        }
    }

    /// Whether all queues are empty.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// Passes each port's frames to `send`, in bursts, in order. `send` must empty the burst: frames
    /// that it leaves are freed without being counted.
    #[inline]
    pub fn flush(&mut self, mut send: impl FnMut(PortId, &mut Batch)) {
        while let Some(port) = self.listed.pop() {
            let Some(Some(queue)) = self.queues.get_mut(port.index()) else { continue };
            queue.listed = false;
            send(port, &mut queue.batch);
            queue.batch.clear();
            while !queue.more.is_empty() {
                let count = queue.more.len().min(BATCH);
                queue.batch.extend(queue.more.drain(..count));
                send(port, &mut queue.batch);
                queue.batch.clear();
            }
        }
    }
}
