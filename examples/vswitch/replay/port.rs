//! The ports of a replay: they receive one frame at a time, and return sent frames in order.
//! Everything runs on one thread; the queues are needed because ports are `Send`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crossbeam::queue::{ArrayQueue, SegQueue};
use podswitch_core::id::PortId;
use podswitch_core::packet::{Batch, Packet, Pool};
use podswitch_core::port::{Device, Offloads, Port, PortInfo};
use podswitch_node::DEFAULT_MTU;

/// No port is set.
const NO_PORT: usize = usize::MAX;

/// A frame that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// The port.
    pub(super) port: PortId,
    /// The frame.
    pub(super) frame: Vec<u8>,
}

/// What the replay and the ports exchange.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Number of the port that has a frame to receive.
    waiting: AtomicUsize,
    frame: ArrayQueue<(Vec<u8>, u32)>,
    sent: SegQueue<Sent>,
    /// Buffers for reuse.
    spare: ArrayQueue<Vec<u8>>,
}

impl Exchange {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: AtomicUsize::new(NO_PORT),
            frame: ArrayQueue::new(1),
            sent: SegQueue::new(),
            spare: ArrayQueue::new(256),
        })
    }

    /// Makes `port` receive `frame`, tagged with `mark`, at the next poll.
    pub(super) fn give(&self, port: PortId, frame: Vec<u8>, mark: u32) {
        self.frame.force_push((frame, mark));
        self.waiting.store(port.index(), Relaxed);
    }

    /// The next frame that was sent.
    pub(super) fn next_sent(&self) -> Option<Sent> {
        self.sent.pop()
    }

    /// Returns a buffer for reuse.
    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        // If the queue is full, the buffer is freed.
        let _ = self.spare.push(buffer);
    }
}

/// A port of the replay, for the switch to attach.
#[derive(Debug)]
pub(super) struct ReplayDevice {
    exchange: Arc<Exchange>,
    number: usize,
    info: PortInfo,
}

impl ReplayDevice {
    /// The port with the number `number`.
    pub(super) fn new(exchange: &Arc<Exchange>, number: usize, name: &str) -> Self {
        let info = PortInfo {
            name: name.to_owned(),
            mac: None,
            mtu: u32::from(DEFAULT_MTU),
            offloads: Offloads::NONE,
        };
        Self { exchange: Arc::clone(exchange), number, info }
    }
}

impl Device for ReplayDevice {
    fn open(&mut self, _index: usize, _workers: usize) -> io::Result<Box<dyn Port>> {
        let (exchange, info) = (Arc::clone(&self.exchange), self.info.clone());
        Ok(Box::new(ReplayPort { exchange, number: self.number, info }))
    }

    fn info(&self) -> PortInfo {
        self.info.clone()
    }
}

struct ReplayPort {
    exchange: Arc<Exchange>,
    number: usize,
    info: PortInfo,
}

impl Port for ReplayPort {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        if self.exchange.waiting.load(Relaxed) != self.number || batch.is_full() {
            return Ok(0);
        }
        self.exchange.waiting.store(NO_PORT, Relaxed);
        let Some((frame, mark)) = self.exchange.frame.pop() else { return Ok(0) };
        // Do not lose a frame to a limit that depends on earlier frames.
        let packet = pool.alloc_for(frame.len());
        let mut packet = packet.unwrap_or_else(|| Packet::with_capacity(frame.len()));
        packet.fill(&frame);
        packet.mark = mark;
        batch.push(packet);
        self.exchange.recycle(frame);
        Ok(1)
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let count = batch.len();
        for packet in batch.drain(..) {
            let mut frame = self.exchange.spare.pop().unwrap_or_default();
            frame.extend_from_slice(packet.bytes());
            pool.free(packet);
            self.exchange.sent.push(Sent { port: PortId(self.number as u16), frame });
        }
        Ok(count)
    }

    fn info(&self) -> &PortInfo {
        &self.info
    }
}
