//! AF_PACKET: sends and receives frames on an existing interface: one end of a veth pair, or a
//! node's NIC.
//!
//! Each frame has a virtio-net header (10 bytes), so that checksums and segmentation can stay
//! offloaded between pods. Frames are received through a ring shared with the kernel or by
//! `recvmmsg` ([`Receive`]), and sent by `sendmmsg`.
//!
//! The socket gets copies: the host's stack receives each frame, too. If it must not, the interface
//! belongs in a namespace whose stack is inactive ([`attach`](crate::attach)) or needs an ingress
//! hook that drops its frames ([`nft`](crate::nft)).
//!
//! [`PacketDevice`] is used by control threads, each [`PacketPort`] by one worker.

mod joined;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use arrayvec::ArrayVec;
use podswitch_core::packet::{
    BATCH, Batch, Offload, Packet, Pool, SizeClass, UdpRuns, coalesce, tunnel_offsets,
};
use podswitch_core::port::{Device, DeviceFiles, Offloads, Port, PortInfo};
use rustix::io::Errno;

use super::gro::{Mtus, Outer};
use super::injector::{Injector, Upkeep};
use super::several;
use super::virtio::{self, HeaderForm};
use crate::handover::Inherited;
use crate::sys::mmsg::{self, Slot, VNET_HEADER};
use crate::sys::packet;
use crate::sys::ring::{Frame, Ring};
use crate::{Context, HostError, NetNs, Netlink, netlink::Link};

/// A burst ends when it holds about this many bytes, so that GSO packets are still in the
/// cache when the same worker sends them.
const BURST_BYTES: usize = 384 * 1024;

/// Socket buffer limit in addition to the ring, as the kernel accounts memory: about 60 GSO
/// packets.
const RECEIVE_BUFFER: i32 = 8 << 20;

/// How frames are received.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Receive {
    /// Through a ring shared with the kernel, without a system call for each burst. Frames too long
    /// for a slot (GSO packets) are received by `recvmmsg`.
    #[default]
    Ring,
    /// By `recvmmsg` only. Needs no ring memory for each port.
    Messages,
}

/// How an interface is opened.
#[derive(Clone, Debug)]
pub struct PacketConfig {
    /// How frames are received.
    pub receive: Receive,
    /// Slots of each worker's ring, about 2 KiB each at the usual MTU; a power of two.
    pub ring_slots: usize,
    /// Receives frames to any MAC address (promiscuous mode), not only to the interface's own.
    pub promiscuous: bool,
    /// On an uplink that terminates VXLAN tunnels, their UDP port. Inner TCP segments are merged
    /// where the kernel did not merge them, and GSO packets are sent unsegmented where the
    /// interface can segment them (Linux 6.17).
    pub tunnel: Option<u16>,
    /// UDP port whose datagrams are not received, for both families: a tunnel that sockets of the
    /// node's stack terminate.
    pub without: Option<u16>,
    /// Sockets that another process handed over are used instead of new ones.
    pub inherited: Inherited,
}

impl Default for PacketConfig {
    fn default() -> Self {
        Self {
            receive: Receive::default(),
            ring_slots: 1024,
            promiscuous: true,
            tunnel: None,
            without: None,
            inherited: Inherited::default(),
        }
    }
}

/// An interface, used from outside its host's stack.
#[derive(Debug)]
pub struct PacketDevice {
    ns: NetNs,
    link: Link,
    config: PacketConfig,
    /// Fanout group of the sockets, once there are two.
    group: Option<u16>,
    open: Vec<Member>,
    injector: Option<Arc<Injector>>,
    upkeep: Option<Upkeep>,
    /// Sockets that another process handed over, until ports take them.
    received: Vec<Option<OwnedFd>>,
    /// How many ports were opened.
    opened: usize,
}

#[derive(Debug)]
struct Member {
    socket: Weak<OwnedFd>,
    grouped: bool,
}

impl PacketDevice {
    /// The interface `name` of `ns`. Nothing is received before the device is opened as a port.
    ///
    /// # Errors
    /// There is no such interface, or it is not an Ethernet interface.
    pub fn new(ns: &NetNs, name: &str, config: PacketConfig) -> Result<Self, HostError> {
        let link = Netlink::open(ns)?.link(name)?;
        if link.mac.is_none() {
            let operation = format!("attach to interface {name}");
            return Err(HostError::invalid(operation, "it is not an Ethernet interface"));
        }
        // Without it, packets are segmented here.
        let injector =
            config.tunnel.and_then(|_| Injector::open(ns, &link, &config.inherited).ok().flatten());
        let (injector, upkeep) = injector.map(|(i, upkeep)| (Arc::new(i), upkeep)).unzip();
        let mut device = Self {
            ns: ns.clone(),
            link,
            config,
            group: None,
            open: Vec::new(),
            injector,
            upkeep,
            received: Vec::new(),
            opened: 0,
        };
        let received = device.config.inherited.take(&device.key()?);
        device.received = received.into_iter().map(Some).collect();
        Ok(device)
    }

    /// Says which sockets these are, and how they were set up.
    fn key(&self) -> Result<String, HostError> {
        let (device, inode) = self.ns.id()?;
        let PacketConfig { receive, ring_slots, promiscuous, without, .. } = &self.config;
        let (slot, slots) = Ring::size(*ring_slots, self.longest());
        let (index, without) = (self.link.index, without.unwrap_or(0));
        Ok(format!(
            "packet {device}:{inode} {index} {receive:?} {slot} {slots} {promiscuous} {without}"
        ))
    }

    /// Longest frame that a slot of the ring has room for, in bytes.
    fn longest(&self) -> usize {
        self.link.mtu as usize + 14 + 4
    }

    /// The interface's properties when the device was opened.
    pub fn link(&self) -> &Link {
        &self.link
    }

    fn port_info(&self) -> PortInfo {
        PortInfo {
            name: self.link.name.clone(),
            mac: self.link.mac,
            mtu: self.link.mtu,
            // The kernel completes in software what the interface cannot offload; but a packet
            // socket cannot request segmentation by an inner header.
            offloads: Offloads { tunnel: self.injector.is_some(), ..Offloads::ALL },
        }
    }

    /// A port of a socket that another process handed over.
    fn adopt(&mut self, socket: OwnedFd, is_grouped: bool) -> Result<PacketPort, HostError> {
        let operation = format!("go on with a packet socket on {} in {}", self.link.name, self.ns);
        let what = || operation.clone();
        let bypass = self.injector.is_none();
        packet::set_qdisc_bypass(socket.as_fd(), bypass).context(what)?;
        let ring = match self.config.receive {
            Receive::Messages => None,
            Receive::Ring => {
                let (slots, longest) = (self.config.ring_slots, self.longest());
                Some(Ring::adopt(socket.as_fd(), slots, longest).context(what)?)
            }
        };
        let socket = Arc::new(socket);
        if is_grouped {
            self.group = Some(packet::fanout(socket.as_fd()).context(what)?);
        }
        self.open.retain(|member| member.socket.strong_count() > 0);
        self.open.push(Member { socket: Arc::downgrade(&socket), grouped: is_grouped });
        Ok(self.port(socket, ring, bypass))
    }

    fn open_port(&mut self, receives: bool) -> Result<PacketPort, HostError> {
        let operation = format!("open a packet socket on {} in {}", self.link.name, self.ns);
        let what = || operation.clone();
        let socket = self.ns.enter(packet::open)?.context(what)?;
        let fd = socket.as_fd();
        packet::set_vnet_header(fd).context(what)?;
        packet::set_ignore_outgoing(fd).context(what)?;
        packet::set_auxdata(fd).context(what)?;
        // Injected frames are queued like all others; nothing may overtake them.
        let bypass = self.injector.is_none();
        packet::set_qdisc_bypass(fd, bypass).context(what)?;
        packet::set_receive_buffer(fd, RECEIVE_BUFFER).context(what)?;
        let ring = match self.config.receive {
            Receive::Messages => None,
            Receive::Ring => {
                let longest = self.longest();
                Some(Ring::new(fd, self.config.ring_slots, longest).context(what)?)
            }
        };
        // Receives nothing until it is in the fanout group: otherwise frames would be received
        // twice.
        packet::set_deaf(fd, true).context(what)?;
        packet::bind(fd, self.link.index).context(what)?;
        if self.config.promiscuous {
            packet::set_promiscuous(fd, self.link.index).context(what)?;
        }
        let socket = Arc::new(socket);
        if !receives {
            return Ok(self.port(socket, ring, bypass));
        }
        self.share(&socket).context(what)?;
        match self.config.without {
            // Replaces the filter that drops everything.
            Some(port) => packet::leave_out_udp(socket.as_fd(), port).context(what)?,
            None => packet::set_deaf(socket.as_fd(), false).context(what)?,
        }
        Ok(self.port(socket, ring, bypass))
    }

    fn port(&self, socket: Arc<OwnedFd>, ring: Option<Ring>, bypass: bool) -> PacketPort {
        PacketPort {
            socket,
            ring,
            info: self.port_info(),
            bypass,
            joins: self.link.kind.as_deref() == Some("veth"),
            slots: FEW_SLOTS,
            gone: false,
            tunnel: self.config.tunnel,
            injector: self.injector.clone(),
            waiting: VecDeque::new(),
            lost: 0,
        }
    }

    /// Puts all open sockets into one fanout group, if there is more than this one.
    fn share(&mut self, socket: &Arc<OwnedFd>) -> io::Result<()> {
        self.open.retain(|member| member.socket.strong_count() > 0);
        self.open.push(Member { socket: Arc::downgrade(socket), grouped: false });
        if self.open.len() == 1 {
            return Ok(());
        }
        for member in self.open.iter_mut().filter(|member| !member.grouped) {
            if let Some(socket) = member.socket.upgrade() {
                self.group = Some(packet::join_fanout(socket.as_fd(), self.group)?);
                member.grouped = true;
            }
        }
        Ok(())
    }
}

impl Device for PacketDevice {
    fn open(&mut self, _index: usize, workers: usize) -> io::Result<Box<dyn Port>> {
        self.opened += 1;
        let is_grouped = self.received.len() > 1;
        let left = self.received.iter_mut().filter_map(Option::take);
        // The last worker also receives from the sockets that are left over.
        let most = if self.opened >= workers { usize::MAX } else { 1 };
        let sockets: Vec<OwnedFd> = left.take(most).collect();
        if sockets.is_empty() {
            // The group belongs to the predecessor too, which still forwards: this worker only sends.
            let receives = self.received.is_empty();
            return Ok(Box::new(self.open_port(receives)?));
        }
        let ports = sockets.into_iter().map(|socket| self.adopt(socket, is_grouped));
        several::join(ports.collect::<Result<_, _>>()?)
    }

    fn files(&self) -> Vec<DeviceFiles> {
        let files: Vec<_> = self.open.iter().filter_map(|m| m.socket.upgrade()).collect();
        let sockets = self.key().ok().map(|key| DeviceFiles { key, files });
        sockets.into_iter().chain(self.injector.as_ref().and_then(|i| i.files())).collect()
    }

    fn leave_in_force(&mut self, stays: bool) {
        if let Some(injector) = &self.injector {
            injector.leave_in_force(stays);
        }
    }

    fn info(&self) -> PortInfo {
        self.port_info()
    }

    fn maintain(&mut self) -> Vec<String> {
        self.upkeep.as_mut().map(Upkeep::put_back).unwrap_or_default()
    }
}

/// Initial number of slots of a call of `recvmmsg`; grows while bursts fill them.
const FEW_SLOTS: usize = 8;

/// One worker's socket on an interface.
#[derive(Debug)]
pub struct PacketPort {
    socket: Arc<OwnedFd>,
    ring: Option<Ring>,
    info: PortInfo,
    /// Whether the queueing discipline is bypassed.
    bypass: bool,
    /// Datagrams of a flow are sent as one GSO packet. They stay joined on the way into a pod; for
    /// a network card the kernel would segment them again.
    joins: bool,
    /// Number of messages that the next call of `recvmmsg` can receive.
    slots: usize,
    /// The interface was removed.
    gone: bool,
    /// UDP port of tunnels whose inner packets are merged.
    tunnel: Option<u16>,
    /// Sends tunnelled GSO packets unsegmented.
    injector: Option<Arc<Injector>>,
    /// Received frames that a burst had no room for.
    waiting: VecDeque<Packet>,
    /// Frames lost here that are not reported yet.
    lost: u64,
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
    fn send(&mut self, packets: &[Packet], joined: u64) -> (u64, io::Result<()>) {
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
