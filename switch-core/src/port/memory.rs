//! Ports without a device: frames pass through bounded queues in memory. Tests, the smoltcp
//! examples and the benches attach them like any other device; no privilege is needed.
//!
//! [`pair`] makes a [`MemoryDevice`] for the switch and a [`MemoryEnd`] for whoever plays the
//! peer. The workers' ends share the queues, so frames of one flow may reach different workers;
//! a worker uses its end on its own thread, and the peer's end may be used from any. Nothing
//! here locks, and a system call is made only to wake a side that said that it sleeps.
//!
//! [`Circle`] is the same without a peer: frames that come round again and again, for benches.
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

mod circle;
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

pub use circle::Circle;

/// Largest network-layer packet of a port made by [`pair`].
const MTU: u32 = 1500;

/// Most buffers that an end keeps for the frames it copies in and out.
const SPARE: usize = 256;

/// What the two sides share.
#[derive(Debug)]
struct Link {
    info: PortInfo,
    to_switch: Lane,
    from_switch: Lane,
    switch_gone: CachePadded<AtomicBool>,
    end_gone: CachePadded<AtomicBool>,
}

/// A device for the switch with an Ethernet MTU of 1,500, and its peer's end. Each direction
/// holds up to `capacity` frames; `offloads` says what the peer takes unfinished.
pub fn pair(
    name: impl Into<String>,
    capacity: usize,
    offloads: Offloads,
) -> (MemoryDevice, MemoryEnd) {
    pair_with_info(PortInfo { name: name.into(), mac: None, mtu: MTU, offloads }, capacity)
}

/// As [`pair`], with every fact about the port chosen.
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

/// The switch's hold on the link, shared by the device and its ports: the last to go tells the
/// peer.
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

/// The end that is attached to the switch.
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

/// One worker's end of a [`MemoryDevice`].
#[derive(Debug)]
struct MemoryPort {
    side: Arc<SwitchSide>,
    /// This worker announced that it goes to sleep and was not seen here since.
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
        // Asked first: what was sent before the peer went is in the queue by now.
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

    fn is_looked_at(&self) -> bool {
        true
    }

    fn arm(&mut self) -> bool {
        self.armed = true;
        self.side.link.to_switch.arm() && !self.gone()
    }
}

impl Drop for MemoryPort {
    fn drop(&mut self) {
        // Another worker may sleep in the belief that this one polls.
        self.side.link.to_switch.wake();
    }
}

/// The peer's end of a [`MemoryDevice`], for any thread.
#[derive(Debug)]
pub struct MemoryEnd {
    link: Arc<Link>,
    /// Buffers of frames that were copied out, for those that are copied in.
    spare: ArrayQueue<Packet>,
}

impl MemoryEnd {
    /// Sends a packet to the switch.
    ///
    /// # Errors
    /// Gives the packet back if the queue is full or the switch's side is gone.
    pub fn send(&self, packet: Packet) -> Result<(), Packet> {
        if self.is_closed() {
            return Err(packet);
        }
        self.link.to_switch.push(packet)
    }

    /// Sends a copy of `frame` to the switch.
    ///
    /// # Errors
    /// `WouldBlock` if the queue is full, `NotConnected` if the switch's side is gone.
    pub fn send_frame(&self, frame: &[u8]) -> io::Result<()> {
        let mut packet = self.buffer(frame.len());
        packet.bytes_mut().copy_from_slice(frame);
        self.send(packet).map_err(|packet| {
            self.recycle(packet);
            let gone = self.is_closed();
            if gone { io::ErrorKind::NotConnected } else { io::ErrorKind::WouldBlock }.into()
        })
    }

    /// Sends from the front of `batch` what there is room for, and says how many that were.
    pub fn send_burst(&self, batch: &mut Batch) -> usize {
        if self.is_closed() { 0 } else { self.link.to_switch.push_burst(batch, None) }
    }

    /// The next packet from the switch, with its buffer and offload metadata.
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

    /// Takes from the switch what `batch` has room for, and says how many that were.
    pub fn recv_burst(&self, batch: &mut Batch) -> usize {
        self.link.from_switch.pop_burst(batch, None)
    }

    /// A packet of `len` bytes to be filled and sent, in a used buffer if there is one that
    /// fits; its content is arbitrary.
    pub fn buffer(&self, len: usize) -> Packet {
        let spare = self.spare.pop().filter(|packet| packet.capacity() >= len);
        let mut packet = spare.unwrap_or_else(|| Packet::with_capacity(len.max(Pool::SMALL)));
        packet.set_len(len);
        packet
    }

    /// Keeps a packet's buffer for [`buffer`](Self::buffer) and [`send_frame`](Self::send_frame).
    pub fn recycle(&self, mut packet: Packet) {
        packet.reset();
        // A full store frees it.
        let _ = self.spare.push(packet);
    }

    /// Frames that wait for [`recv`](Self::recv).
    pub fn pending(&self) -> usize {
        self.link.from_switch.len()
    }

    /// Whether the switch let go of its side. What it sent before can still be received.
    pub fn is_closed(&self) -> bool {
        self.link.switch_gone.load(Ordering::Acquire)
    }

    /// Sleeps until there is a frame to receive or the switch's side is gone, at most
    /// `timeout`. Says whether one of the two is so.
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
            // Whoever sent what was received before may ring only now: that is no reason to give up.
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
