//! One worker's socket on an interface: receives through the ring or by `recvmmsg`, and sends by `sendmmsg`.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;
use podswitch_core::packet::{
    BATCH, Batch, Offload, Packet, Pool, SizeClass, UdpRuns, coalesce, tunnel_offsets,
};
use podswitch_core::port::{Port, PortInfo};
use rustix::io::Errno;

use crate::port::gro::{Mtus, Outer};
use crate::port::injector::Injector;
use crate::port::virtio::{self, HeaderForm};
use crate::sys::mmsg::{self, Slot, VNET_HEADER};
use crate::sys::packet;
use crate::sys::ring::{Frame, Ring};

/// A burst ends when it holds about this many bytes, so that GSO packets are still in the
/// cache when the same worker sends them.
const BURST_BYTES: usize = 384 * 1024;

/// Initial number of slots of a call of `recvmmsg`; grows while bursts fill them.
pub(super) const FEW_SLOTS: usize = 8;

/// One worker's socket on an interface.
#[derive(Debug)]
pub struct PacketPort {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) ring: Option<Ring>,
    pub(super) info: PortInfo,
    /// Whether the queueing discipline is bypassed.
    pub(super) bypass: bool,
    /// Datagrams of a flow are sent as one GSO packet. They stay joined on the way into a pod; for
    /// a network card the kernel would segment them again.
    pub(super) joins: bool,
    /// Number of messages that the next call of `recvmmsg` can receive.
    pub(super) slots: usize,
    /// The interface was removed.
    pub(super) gone: bool,
    /// UDP port of tunnels whose inner packets are merged.
    pub(super) tunnel: Option<u16>,
    /// Sends tunnelled GSO packets unsegmented.
    pub(super) injector: Option<Arc<Injector>>,
    /// Received frames that a burst had no room for.
    pub(super) waiting: VecDeque<Packet>,
    /// Frames lost here that are not reported yet.
    pub(super) lost: u64,
}

impl PacketPort {
    /// Receives one burst.
    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let before = batch.len();
        if self.ring.is_some() {
            self.rx_ring(pool, batch)?;
            return Ok(batch.len() - before);
        }
        let count = self.rx_messages(pool, batch, self.slots)?.unwrap_or(0);
        let bytes: usize = batch[before..].iter().map(Packet::len).sum();
        if count == self.slots && bytes < BURST_BYTES / 2 {
            self.slots = (self.slots * 2).min(BATCH);
        } else if bytes > BURST_BYTES || count < self.slots / 4 {
            self.slots = (self.slots / 2).max(FEW_SLOTS);
        }
        Ok(count)
    }

    /// Splits merged tunnel datagrams, which may give more frames than fit the burst.
    fn look_into_tunnels(&mut self, port: u16, pool: &mut Pool, batch: &mut Batch) {
        if !batch.iter().any(|packet| Outer::of(packet, port).is_some()) {
            return;
        }
        let mtus = Mtus { underlay: self.info.mtu as usize, inner: usize::MAX };
        for packet in batch.drain(..) {
            match Outer::of(&packet, port) {
                Some(outer) => {
                    let out = &mut |packet| self.waiting.push_back(packet);
                    self.lost += outer.open(packet, mtus, pool, out);
                }
                None => self.waiting.push_back(packet),
            }
        }
    }

    /// Receives from the ring until it is empty or the batch is full.
    fn rx_ring(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<()> {
        let mut bytes = 0;
        while !batch.is_full() && bytes < BURST_BYTES {
            let Some(ring) = &mut self.ring else { return Ok(()) };
            if !ring.is_ready() {
                return Ok(());
            }
            match ring.peek(0) {
                None => return Ok(()),
                Some(Frame::Whole { header, bytes: frame, vlan }) => {
                    let Some(mut packet) = pool.alloc_for(frame.len()) else { return Ok(()) };
                    packet.fill(frame);
                    bytes += frame.len();
                    complete(&mut packet, header, vlan);
                    batch.push(packet);
                    ring.release(1);
                }
                Some(Frame::Lost) => {
                    self.lost += 1;
                    ring.release(1);
                }
                Some(Frame::Queued) => {
                    let room = batch.remaining_capacity().min((BURST_BYTES - bytes) >> 14).max(1);
                    let run = (1..room)
                        .take_while(|ahead| matches!(ring.peek(*ahead), Some(Frame::Queued)))
                        .count();
                    let received = self.rx_messages(pool, batch, run + 1)?;
                    if received == Some(0) {
                        // No buffer was free, or the call must be repeated.
                        return Ok(());
                    }
                    let count = received.unwrap_or(0);
                    self.lost += u64::from(count == 0);
                    bytes += batch.iter().rev().take(count).map(Packet::len).sum::<usize>();
                    if let Some(ring) = &mut self.ring {
                        // The queue is empty although the slot refers to it: that frame is lost.
                        ring.release(count.max(1));
                    }
                }
            }
        }
        Ok(())
    }

    /// Receives up to `most` frames by `recvmmsg`. Returns how many; `None` if there are none.
    fn rx_messages(
        &mut self,
        pool: &mut Pool,
        batch: &mut Batch,
        most: usize,
    ) -> io::Result<Option<usize>> {
        let mut slots: ArrayVec<Slot, BATCH> = ArrayVec::new();
        while slots.len() < most.min(batch.remaining_capacity()) {
            let Some(large) = pool.alloc(SizeClass::Large) else { break };
            let Some(small) = pool.alloc(SizeClass::Small) else {
                pool.free(large);
                break;
            };
            slots.push(Slot::new(small, large));
        }
        let result = match slots.len() {
            0 => Ok(0),
            _ => mmsg::receive(self.socket.as_fd(), &mut slots),
        };
        let count = *result.as_ref().unwrap_or(&0);
        for (i, slot) in slots.into_iter().enumerate() {
            if i < count {
                batch.push(take_frame(slot, pool));
            } else {
                pool.free(slot.small);
                pool.free(slot.large);
            }
        }
        match result {
            Ok(count) => Ok(Some(count)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(None),
                // The kernel dropped a frame whose offload the header cannot express.
                Some(libc::EINVAL) => {
                    self.lost += 1;
                    Ok(Some(0))
                }
                Some(libc::EINTR) => Ok(Some(0)),
                Some(libc::ENETDOWN) => self.down().map(|()| Some(0)),
                _ => Err(error),
            },
        }
    }

    /// The interface went down: it was removed, or it may come up again.
    fn down(&mut self) -> io::Result<()> {
        self.gone |= packet::is_gone(self.socket.as_fd());
        if self.gone { Err(ErrorKind::NotConnected.into()) } else { Ok(()) }
    }

    /// Sends from the front of `packets` until one fails for a reason that applies to the others
    /// too. Returns a bit for each that was sent. `joined`: a bit for each that consists of several
    /// datagrams.
    pub(super) fn send(&mut self, packets: &[Packet], joined: u64) -> (u64, io::Result<()>) {
        let mut headers = [[0; VNET_HEADER]; BATCH];
        for (header, packet) in headers.iter_mut().zip(packets) {
            virtio::encode(&packet.offload, HeaderForm::Legacy, header);
        }
        let (mut sent, mut at) = (0u64, 0);
        while at < packets.len() {
            let plain = match &self.injector {
                None => packets.len() - at,
                Some(injector) => {
                    let whole = |packet: &&Packet| tunnel_offsets(packet).is_none();
                    match packets[at..].iter().take_while(whole).count() {
                        0 => {
                            match injector.send(&packets[at]) {
                                Ok(()) => sent |= 1 << at,
                                Err(Errno::AGAIN | Errno::NOBUFS) => return (sent, Ok(())),
                                Err(_) => {}
                            }
                            at += 1;
                            continue;
                        }
                        count => count,
                    }
                }
            };
            let run = at..at + plain;
            let result = mmsg::send(self.socket.as_fd(), &headers[run.clone()], &packets[run]);
            let error = match result {
                Ok(0) => return (sent, Ok(())),
                Ok(count) => {
                    sent |= (u64::MAX >> (64 - count)) << at;
                    at += count;
                    continue;
                }
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return (sent, Ok(())),
                // With the queueing discipline bypassed the kernel does not segment for the
                // interface; otherwise it does.
                Some(libc::ENOBUFS) if self.bypass && packets[at].offload.is_gso() => {
                    if let Err(error) = packet::set_qdisc_bypass(self.socket.as_fd(), false) {
                        return (sent, Err(error));
                    }
                    self.bypass = false;
                }
                Some(libc::ENOBUFS) => return (sent, Ok(())),
                Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => return (sent, self.down()),
                // The kernel does not accept GSO packets, as before Linux 6.2: from now on each
                // datagram is sent alone. Later packets must not overtake these datagrams.
                Some(libc::EINVAL) if joined >> at & 1 != 0 => {
                    self.joins = false;
                    return (sent, Ok(()));
                }
                // This frame is too long or its header invalid; others may pass.
                _ => at += 1,
            }
        }
        (sent, Ok(()))
    }
}

/// Makes a packet from a message, in the smaller buffer if it is large enough.
fn take_frame(slot: Slot, pool: &mut Pool) -> Packet {
    let Slot { header, mut small, mut large, len, vlan, .. } = slot;
    let mut packet = if len <= Pool::SMALL {
        pool.free(large);
        small.set_len(len);
        small
    } else {
        large.spare_mut()[..Pool::SMALL].copy_from_slice(&small.spare_mut()[..Pool::SMALL]);
        pool.free(small);
        large.set_len(len.min(large.capacity()));
        large
    };
    complete(&mut packet, &header, vlan);
    packet
}

/// Sets the offload metadata and puts back the VLAN tag.
fn complete(packet: &mut Packet, header: &[u8], vlan: Option<(u16, u16)>) {
    packet.offload = virtio::decode(header, packet.bytes()).unwrap_or(Offload::INVALID);
    let Some((tpid, tci)) = vlan else { return };
    if packet.len() < 12 {
        return;
    }
    packet.push_front(4);
    let frame = packet.bytes_mut();
    frame.copy_within(4..16, 0);
    frame[12..14].copy_from_slice(&tpid.to_be_bytes());
    frame[14..16].copy_from_slice(&tci.to_be_bytes());
    packet.offload.shift(4);
}

impl Port for PacketPort {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        if self.gone {
            return Err(ErrorKind::NotConnected.into());
        }
        let Some(port) = self.tunnel else { return self.receive(pool, batch) };
        let before = batch.len();
        if self.waiting.is_empty() {
            self.receive(pool, batch)?;
            self.look_into_tunnels(port, pool, batch);
        }
        while !batch.is_full()
            && let Some(packet) = self.waiting.pop_front()
        {
            batch.push(packet);
        }
        coalesce(batch, Some(port), pool);
        Ok(batch.len() - before)
    }
    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        if self.joins
            && let Some(runs) = UdpRuns::of(batch)
        {
            return self.tx_joined(pool, batch, &runs);
        }
        let waiting = mem::take(batch);
        let (sent, result) = self.send(&waiting, 0);
        for (i, packet) in waiting.into_iter().enumerate() {
            if sent & 1 << i != 0 {
                pool.free(packet);
            } else {
                batch.push(packet);
            }
        }
        result.map(|()| sent.count_ones() as usize)
    }

    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn take_lost(&mut self) -> u64 {
        mem::take(&mut self.lost)
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn hold(&mut self) -> bool {
        if let Some(ring) = &mut self.ring {
            // A successor may release frames before it ends, and this process goes on.
            ring.forget_position();
        }
        !self.waiting.is_empty()
    }

    fn arm(&mut self) -> bool {
        if !self.waiting.is_empty() {
            return false;
        }
        // A ring does not report that an interface went down; its socket does.
        if self.ring.is_some() && packet::take_error(self.socket.as_fd()).is_err() {
            return self.down().is_ok();
        }
        true
    }
}
