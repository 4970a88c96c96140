//! Memory ports: frames pass through bounded queues in memory. Tests, examples and benchmarks attach
//! them like any other device, without privileges.
//!
//! [`pair`] makes a [`MemoryDevice`] for the switch and a [`MemoryEnd`] for its peer. All workers share
//! the queues, so frames of one flow may be received by different workers. The peer's end may be used
//! by any thread. Nothing here locks, and a system call is made only to wake a side that sleeps.
//!
//! [`FrameLoop`] has no peer: it receives the same frames again and again, for benchmarks.
//!
//! ```
//! use podswitch_core::packet::{Batch, Pool, PoolConfig};
//! use podswitch_core::port::{Device, Offloads, Port, memory};
//!
//! let (mut left, left_peer) = memory::pair("left", 256, Offloads::NONE);
//! let (mut right, right_peer) = memory::pair("right", 256, Offloads::NONE);
//! let (mut from, mut to) = (left.open(0, 1)?, right.open(0, 1)?);
//! let (mut pool, mut batch) = (Pool::new(PoolConfig::default()), Batch::new());
//!
//! left_peer.send_frame(b"a frame")?;
//! from.rx(&mut pool, &mut batch)?;
//! to.tx(&mut pool, &mut batch)?;
//! assert_eq!(right_peer.recv_frame().as_deref(), Some(&b"a frame"[..]));
//! # Ok::<(), std::io::Error>(())
//! ```

mod frame_loop;
mod lane;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use super::{Device, Offloads, Port, PortInfo};
use crate::packet::{Batch, Packet, Pool};
use crate::time::Clock;
use lane::Lane;

pub use frame_loop::FrameLoop;

/// MTU of a port made by [`pair`].
const MTU: u32 = 1500;

/// Most free buffers that an end keeps.
const SPARE: usize = 256;

/// The state that both sides share.
#[derive(Debug)]
struct Link {
    info: PortInfo,
    to_switch: Lane,
    from_switch: Lane,
    switch_gone: CachePadded<AtomicBool>,
    end_gone: CachePadded<AtomicBool>,
}

/// A device with an MTU of 1,500 bytes for the switch, and the end of its peer. Each direction queues
/// up to `capacity` frames. `offloads`: what the peer accepts.
pub fn pair(
    name: impl Into<String>,
    capacity: usize,
    offloads: Offloads,
) -> (MemoryDevice, MemoryEnd) {
    pair_with_info(PortInfo { name: name.into(), mac: None, mtu: MTU, offloads }, capacity)
}

/// As [`pair`], with given properties.
pub fn pair_with_info(info: PortInfo, capacity: usize) -> (MemoryDevice, MemoryEnd) {
    let link = Arc::new(Link {
        info,
        to_switch: Lane::new(capacity),
        from_switch: Lane::new(capacity),
        switch_gone: CachePadded::new(AtomicBool::new(false)),
        end_gone: CachePadded::new(AtomicBool::new(false)),
    });
    let side = Arc::new(SwitchSide { link: Arc::clone(&link) });
    (MemoryDevice { side }, MemoryEnd { link, spare: ArrayQueue::new(SPARE) })
}

/// The switch's side, shared by the device and its ports. The peer is woken when the last of them is
/// dropped.
#[derive(Debug)]
struct SwitchSide {
    link: Arc<Link>,
}

impl Drop for SwitchSide {
    fn drop(&mut self) {
        self.link.switch_gone.store(true, Ordering::Release);
        self.link.from_switch.wake();
    }
}

/// The device to attach to the switch.
#[derive(Debug)]
pub struct MemoryDevice {
    side: Arc<SwitchSide>,
}

impl Device for MemoryDevice {
    fn open(&mut self, _index: usize, _workers: usize) -> io::Result<Box<dyn Port>> {
        self.side.link.to_switch.event()?;
        Ok(Box::new(MemoryPort { side: Arc::clone(&self.side), armed: false }))
    }

    fn info(&self) -> PortInfo {
        self.side.link.info.clone()
    }
}

/// One worker's port of a [`MemoryDevice`].
#[derive(Debug)]
struct MemoryPort {
    side: Arc<SwitchSide>,
    /// This worker has called `arm` and has not received since.
    armed: bool,
}

impl MemoryPort {
    fn gone(&self) -> bool {
        self.side.link.end_gone.load(Ordering::Acquire)
    }
}

impl Port for MemoryPort {
    #[inline]
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let lane = &self.side.link.to_switch;
        if self.armed {
            lane.disarm();
            self.armed = false;
        }
        // Read first: frames that were sent before the peer was dropped are in the queue by now.
        let gone = self.gone();
        let taken = lane.pop_burst(batch, Some(pool));
        if taken == 0 && gone && !batch.is_full() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(taken)
    }

    #[inline]
    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        if self.gone() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        Ok(self.side.link.from_switch.push_burst(batch, Some(pool)))
    }

    fn info(&self) -> &PortInfo {
        &self.side.link.info
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.side.link.to_switch.event().ok()
    }

    fn is_always_polled(&self) -> bool {
        true
    }

    fn arm(&mut self) -> bool {
        self.armed = true;
        self.side.link.to_switch.arm() && !self.gone()
    }
}

impl Drop for MemoryPort {
    fn drop(&mut self) {
        // Another worker may sleep and rely on this one to poll.
        self.side.link.to_switch.wake();
    }
}

/// The peer's end of a [`MemoryDevice`]. May be used by any thread.
#[derive(Debug)]
pub struct MemoryEnd {
    link: Arc<Link>,
    /// Free buffers.
    spare: ArrayQueue<Packet>,
}

impl MemoryEnd {
    /// Sends a packet to the switch.
    ///
    /// # Errors
    /// Returns the packet if the queue is full or the switch's side was dropped.
    pub fn send(&self, packet: Packet) -> Result<(), Packet> {
        if self.is_closed() {
            return Err(packet);
        }
        self.link.to_switch.push(packet)
    }

    /// Sends a copy of `frame` to the switch.
    ///
    /// # Errors
    /// `WouldBlock` if the queue is full, `NotConnected` if the switch's side was dropped.
    pub fn send_frame(&self, frame: &[u8]) -> io::Result<()> {
        let mut packet = self.buffer(frame.len());
        packet.bytes_mut().copy_from_slice(frame);
        self.send(packet).map_err(|packet| {
            self.recycle(packet);
            let gone = self.is_closed();
            if gone { io::ErrorKind::NotConnected } else { io::ErrorKind::WouldBlock }.into()
        })
    }

    /// Sends packets from the front of `batch` while there is room. Returns their number.
    pub fn send_burst(&self, batch: &mut Batch) -> usize {
        if self.is_closed() { 0 } else { self.link.to_switch.push_burst(batch, None) }
    }

    /// The next packet from the switch, with its offload metadata.
    pub fn recv(&self) -> Option<Packet> {
        self.link.from_switch.pop()
    }

    /// A copy of the next frame from the switch.
    pub fn recv_frame(&self) -> Option<Vec<u8>> {
        let packet = self.recv()?;
        let frame = packet.bytes().to_vec();
        self.recycle(packet);
        Some(frame)
    }

    /// Receives packets from the switch while `batch` has room. Returns their number.
    pub fn recv_burst(&self, batch: &mut Batch) -> usize {
        self.link.from_switch.pop_burst(batch, None)
    }

    /// A packet of `len` bytes with arbitrary content, to be written and sent. Uses a free buffer if
    /// there is one of sufficient size.
    pub fn buffer(&self, len: usize) -> Packet {
        let spare = self.spare.pop().filter(|packet| packet.capacity() >= len);
        let mut packet = spare.unwrap_or_else(|| Packet::with_capacity(len.max(Pool::SMALL)));
        packet.set_len(len);
        packet
    }

    /// Keeps a packet's buffer for [`buffer`](Self::buffer) and [`send_frame`](Self::send_frame).
    pub fn recycle(&self, mut packet: Packet) {
        packet.reset();
        // If the queue is full, the buffer is freed.
        let _ = self.spare.push(packet);
    }

    /// Number of frames to [receive](Self::recv).
    pub fn pending(&self) -> usize {
        self.link.from_switch.len()
    }

    /// Whether the switch's side was dropped. Frames that it sent before can still be received.
    pub fn is_closed(&self) -> bool {
        self.link.switch_gone.load(Ordering::Acquire)
    }

    /// Sleeps until there is a frame to receive or the switch's side is dropped, at most for `timeout`.
    /// Returns whether one of the two is the case.
    ///
    /// # Errors
    /// The system has no event descriptor left, or waiting failed.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let lane = &self.link.from_switch;
        let fd = lane.event()?;
        let clock = Clock::start();
        let end = clock.now() + timeout;
        loop {
            let now = clock.now();
            if lane.arm() && !self.is_closed() {
                lane::wait(fd, end.since(now))?;
            }
            lane.disarm();
            let there = self.pending() > 0 || self.is_closed();
            // A spurious wake-up: the sender of a frame that was already received rang the doorbell late.
            if there || now >= end {
                return Ok(there);
            }
        }
    }
}

impl Drop for MemoryEnd {
    fn drop(&mut self) {
        self.link.end_gone.store(true, Ordering::Release);
        self.link.to_switch.wake();
    }
}

#[cfg(test)]
mod tests;
