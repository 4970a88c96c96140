//! The tunnel's underlay through UDP sockets: works beside the node's own stack and uses its
//! routes, neighbours and path MTU.
//!
//! To the switch this is an uplink like any other: it gives and takes whole Ethernet frames with outer
//! IP, UDP and VXLAN headers. The kernel writes those itself, so what is sent is stripped of them and
//! what is received gets them back, as far as they are known: addresses, ports, traffic class,
//! lengths. The MAC addresses are made of the IP addresses ([`underlay_mac`]), the TTL is 64. The
//! kernel has verified the UDP checksum of every frame received (`csum_valid`); the field holds zero
//! over IPv4 and the pseudo-header's sum over IPv6.
//!
//! Super-frames stay whole as far as the kernel lets them (see `tunnel_gso`, `tx` and `rx`). What cannot be sent
//! because it is longer than the path MTU, and what the network says about that, comes back as the
//! ICMP error that a raw uplink would receive (`report`).
//!
//! [`UdpTunnelDevice`] is used by control threads, each [`UdpTunnelPort`] by one worker.

mod report;
mod rx;
mod senders;
mod tunnel_gso;
mod tx;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use arrayvec::ArrayVec;
use podswitch_core::packet::{Batch, Packet, Pool};
use podswitch_core::port::{Device, Offloads, Port, PortInfo};
use rustix::event::{EventfdFlags, epoll, eventfd};

use self::senders::Senders;
use self::tunnel_gso::TunnelGso;
use super::injector::Upkeep;
use super::underlay_mac;
use crate::sys::datagram::Slot;
use crate::sys::{packet as option, udp};
use crate::{Context, HostError, NetNs, Netlink};

/// What the kernel may hold for us, as it counts memory.
const BUFFER: i32 = 8 << 20;

/// What tunnel packets go through.
#[derive(Clone, Debug)]
pub struct UdpTunnelConfig {
    /// This node's tunnel address over IPv4.
    pub v4: Option<Ipv4Addr>,
    /// This node's tunnel address over IPv6.
    pub v6: Option<Ipv6Addr>,
    /// UDP port of the tunnel, 4789 by assignment.
    pub port: u16,
    /// Largest outer IP packet, in bytes. `None`: that of the interface that has the address.
    pub mtu: Option<u32>,
    /// Largest inner network-layer packet that pods take, in bytes: what a super-frame of a peer's is
    /// cut to whose segments' length the kernel does not tell. `None`: what the underlay leaves.
    pub inner_mtu: Option<u16>,
    /// TTL or hop limit of what is sent.
    pub ttl: u8,
    /// Routers may cut tunnel packets over IPv4. (RFC 7348 §4.3: they should not.)
    pub fragmentable: bool,
    /// How many source ports each family sends from, so that the underlay spreads flows: at
    /// most 1,024.
    pub senders: usize,
    /// Super-frames leave whole where the outgoing interface can cut them and the kernel lets us tell
    /// it so (Linux 6.17): on the way that the node's routes and neighbours say, but past its
    /// packet filters. Else, and without, they are cut into datagrams here.
    pub tunnel_gso: bool,
}

impl UdpTunnelConfig {
    /// A tunnel at these addresses, its first of each family: port 4789, never cut, TTL 64, 64
    /// source ports.
    pub fn new(addresses: &[IpAddr]) -> Self {
        Self {
            v4: addresses.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None }),
            v6: addresses.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None }),
            port: podswitch_vxlan::template::PORT,
            mtu: None,
            inner_mtu: None,
            ttl: 64,
            fragmentable: false,
            senders: 64,
            tunnel_gso: true,
        }
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// The UDP sockets of a tunnel on this node.
#[derive(Debug)]
pub struct UdpTunnelDevice {
    ns: NetNs,
    config: UdpTunnelConfig,
    info: PortInfo,
    /// Shared by all open ports.
    senders: Weak<Senders>,
    /// Likewise; or why there is none.
    tunnel_gso: Result<Arc<TunnelGso>, Option<HostError>>,
    upkeep: Option<Upkeep>,
}

impl UdpTunnelDevice {
    /// The tunnel of `config` in `ns`. Nothing is bound before it is opened as a port.
    ///
    /// # Errors
    /// No address is given, no interface has it, port 0, or no or too many senders.
    pub fn new(ns: &NetNs, config: UdpTunnelConfig) -> Result<Self, HostError> {
        let operation = || format!("tunnel over UDP port {} in {ns}", config.port);
        let refuse = |reason: &str| Err(HostError::invalid(operation(), reason));
        let Some(first) = config.addresses().next() else {
            return refuse("addresses: neither an IPv4 nor an IPv6 address is given");
        };
        if config.port == 0 {
            return refuse("port: 0 is none");
        }
        if config.ttl == 0 {
            return refuse("ttl: with 0 no packet would leave");
        }
        if !(1..=1024).contains(&config.senders) {
            return refuse("senders: between 1 and 1024");
        }
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => mtu_of(ns, config.addresses())?,
        };
        let info = PortInfo {
            name: format!("udp:{}", config.port),
            mac: Some(underlay_mac(first)),
            mtu,
            offloads: Offloads::ALL,
        };
        // Without one everything works, and is cut here.
        let tunnel_gso = match config.tunnel_gso {
            true => TunnelGso::open(ns, &config).map_err(Some),
            false => Err(None),
        };
        let (tunnel_gso, upkeep) = match tunnel_gso {
            Ok((tunnel_gso, upkeep)) => (Ok(Arc::new(tunnel_gso)), Some(upkeep)),
            Err(error) => (Err(error), None),
        };
        Ok(Self { ns: ns.clone(), config, info, senders: Weak::new(), tunnel_gso, upkeep })
    }

    /// Why super-frames are cut by the switch itself, although [`UdpTunnelConfig::tunnel_gso`] would have
    /// them leave whole: mostly a kernel before Linux 6.17.
    pub fn why_cut(&self) -> Option<&HostError> {
        self.tunnel_gso.as_ref().err()?.as_ref()
    }

    /// The interface by which the kernel is given super-frames whole, if it takes any.
    pub fn offload_interface(&self) -> Option<String> {
        self.tunnel_gso.as_ref().ok().map(|gso| gso.interface().to_owned())
    }

    fn open_port(&mut self, index: usize) -> Result<UdpTunnelPort, HostError> {
        let senders = match self.senders.upgrade() {
            Some(senders) => senders,
            None => {
                // The ports to receive by are shared with nobody but our own workers: somebody
                // else's socket there would get part of the traffic.
                for address in self.config.addresses() {
                    drop(self.bind(address, self.config.port, false)?);
                }
                let senders = Senders::open(&self.ns, &self.config)?;
                let senders = Arc::new(senders);
                self.senders = Arc::downgrade(&senders);
                senders
            }
        };
        let what = || format!("open the tunnel's UDP sockets in {}", self.ns);
        let flags = epoll::CreateFlags::CLOEXEC;
        let watch = epoll::create(flags).context(what)?;
        let signal = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context(what)?;
        let (data, readable) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        epoll::add(&watch, &signal, data, readable).context(what)?;
        let mut receivers = ArrayVec::new();
        for address in self.config.addresses() {
            let socket = self.bind(address, self.config.port, true)?;
            epoll::add(&watch, &socket, data, readable).context(what)?;
            receivers.push(Receiver { socket, address, slots: rx::FEW_SLOTS, overflow: 0 });
        }
        let errors = match index {
            0 => Some(senders.watch_errors().context(what)?),
            _ => None,
        };
        if let Some(errors) = &errors {
            epoll::add(&watch, errors, data, readable).context(what)?;
        }
        Ok(UdpTunnelPort {
            receivers,
            senders,
            watch,
            signal,
            errors,
            suspicious: false,
            port: self.config.port,
            tunnel_gso: self.tunnel_gso.as_ref().ok().cloned(),
            inner_mtu: self.config.inner_mtu.map_or(usize::MAX, usize::from),
            info: self.info.clone(),
            waiting: VecDeque::new(),
            reports: VecDeque::new(),
            plan: tx::Plan::default(),
            lost: 0,
        })
    }

    /// A socket that receives at `address`.
    fn bind(&self, address: IpAddr, port: u16, shared: bool) -> Result<OwnedFd, HostError> {
        let at = SocketAddr::new(address, port);
        let what = || format!("bind UDP {at} in {}", self.ns);
        let v6 = address.is_ipv6();
        let socket = self.ns.enter(|| udp::open(v6))?.context(what)?;
        let fd = socket.as_fd();
        if shared {
            udp::set_shared(fd).context(what)?;
            udp::set_receive_class(fd, v6).context(what)?;
            // What the socket has no room for is counted, where the kernel can say so.
            let _ = udp::set_overflow(fd);
            option::set_receive_buffer(fd, BUFFER).context(what)?;
            // Without (before Linux 5.0) every datagram comes by itself.
            let _ = udp::set_gro(fd);
        }
        rustix::net::bind(fd, &at).context(what)?;
        Ok(socket)
    }
}

/// The smallest MTU of the interfaces that have these addresses.
fn mtu_of(ns: &NetNs, addresses: impl Iterator<Item = IpAddr>) -> Result<u32, HostError> {
    let mut netlink = Netlink::open(ns)?;
    let (known, links) = (netlink.addresses()?, netlink.links()?);
    let mut smallest = u32::MAX;
    for address in addresses {
        let index = known.iter().find(|a| a.address.address() == address).map(|a| a.link);
        let link = index.and_then(|index| links.iter().find(|link| link.index == index));
        let Some(link) = link else {
            let operation = format!("tunnel at {address} in {ns}");
            return Err(HostError::invalid(operation, "no interface has this address"));
        };
        smallest = smallest.min(link.mtu);
    }
    Ok(smallest)
}

impl Device for UdpTunnelDevice {
    fn open(&mut self, index: usize, _workers: usize) -> io::Result<Box<dyn Port>> {
        Ok(Box::new(self.open_port(index)?))
    }

    fn info(&self) -> PortInfo {
        self.info.clone()
    }

    fn maintain(&mut self) -> Vec<String> {
        self.upkeep.as_mut().map(Upkeep::put_back).unwrap_or_default()
    }
}

/// A socket that receives.
#[derive(Debug)]
struct Receiver {
    socket: OwnedFd,
    /// What it is bound to.
    address: IpAddr,
    /// How many datagrams, or joined runs of them, the next call offers to take.
    slots: usize,
    /// Datagrams that it had no room for, as far as they are counted.
    overflow: u32,
}

/// One worker's sockets of a tunnel.
#[derive(Debug)]
pub struct UdpTunnelPort {
    receivers: ArrayVec<Receiver, 2>,
    senders: Arc<Senders>,
    /// What to wait on: all receivers, `errors`, `signal`.
    watch: OwnedFd,
    /// Readable while `reports` holds any.
    signal: OwnedFd,
    /// Readable while the network said something about datagrams that were sent, in the port
    /// that reads it.
    errors: Option<OwnedFd>,
    /// Sending met an error that may have been of that kind.
    suspicious: bool,
    port: u16,
    /// What takes super-frames whole.
    tunnel_gso: Option<Arc<TunnelGso>>,
    /// What super-frames of unknown segments are cut to, in bytes.
    inner_mtu: usize,
    info: PortInfo,
    /// Received frames that a burst had no room for.
    waiting: VecDeque<Packet>,
    /// ICMP errors to be received.
    reports: VecDeque<Packet>,
    plan: tx::Plan,
    /// Datagrams lost here that nobody was told of yet.
    lost: u64,
}

impl Port for UdpTunnelPort {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let before = batch.len();
        self.take_reports(batch);
        while !batch.is_full()
            && let Some(packet) = self.waiting.pop_front()
        {
            batch.push(packet);
        }
        if batch.len() == before {
            self.receive(pool, batch)?;
        }
        if self.suspicious {
            self.suspicious = false;
            self.read_errors();
        }
        Ok(batch.len() - before)
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        Ok(self.transmit(pool, batch))
    }

    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn arm(&mut self) -> bool {
        self.read_errors();
        self.waiting.is_empty() && self.reports.is_empty()
    }
}
