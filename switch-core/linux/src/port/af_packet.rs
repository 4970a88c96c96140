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
mod port;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use podswitch_core::port::{Device, DeviceFiles, Offloads, Port, PortInfo};

use self::port::FEW_SLOTS;
pub use self::port::PacketPort;
use super::injector::{Injector, Upkeep};
use super::several;
use crate::handover::Inherited;
use crate::sys::packet;
use crate::sys::ring::Ring;
use crate::{Context, HostError, NetNs, Netlink, netlink::Link};

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
            Receive::Ring if receives => {
                let longest = self.longest();
                Some(Ring::new(fd, self.config.ring_slots, longest).context(what)?)
            }
            Receive::Ring | Receive::Messages => None,
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
            // The group may belong to a predecessor too, which still forwards: this worker only sends.
            let receives = self.received.is_empty() || !self.config.inherited.has_predecessor();
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
        self.upkeep.as_mut().map(Upkeep::repair).unwrap_or_default()
    }
}
