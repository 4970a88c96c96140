//! The tunnel over UDP sockets of the node's own stack, with its routes, neighbours and path MTU.
//!
//! To the switch this is an uplink like any other: it sends and receives complete Ethernet frames
//! with outer IP, UDP and VXLAN headers. The kernel writes the outer headers itself, so they are
//! removed on transmission and rebuilt on reception as far as they are known: addresses, ports,
//! traffic class, lengths. The MAC addresses are derived from the IP addresses ([`underlay_mac`]),
//! the TTL is 64. The kernel has verified the UDP checksum of every frame received (`csum_valid`);
//! the field holds zero over IPv4 and the pseudo-header's sum over IPv6.
//!
//! GSO packets are passed unsegmented where the kernel allows it (see `tunnel_gso`, `tx` and `rx`).
//! A packet longer than the path MTU is answered with the ICMP error that a raw uplink would
//! receive (`report`), whether the kernel or a router refused it.
//!
//! [`UdpTunnelDevice`] is used by control threads, each [`UdpTunnelPort`] by one worker.

mod config;
mod plan;
mod port;
mod report;
mod rx;
mod senders;
mod tunnel_gso;
mod tx;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use podswitch_core::port::{Device, DeviceFiles, Offloads, Port, PortInfo};
use rustix::event::{EventfdFlags, epoll, eventfd};

use self::config::BUFFER;
pub use self::config::UdpTunnelConfig;
use self::plan::Plan;
use self::port::Receiver;
pub use self::port::UdpTunnelPort;
use self::senders::Senders;
use self::tunnel_gso::TunnelGso;
use super::injector::Upkeep;
use super::underlay_mac;
use crate::sys::{packet as option, udp};
use crate::{Context, HostError, NetNs, Netlink};

/// The UDP sockets of a tunnel on this node.
#[derive(Debug)]
pub struct UdpTunnelDevice {
    ns: NetNs,
    config: UdpTunnelConfig,
    info: PortInfo,
    /// Shared by all open ports.
    senders: Weak<Senders>,
    /// The same for the injector; or the reason why it could not be opened.
    tunnel_gso: Result<Arc<TunnelGso>, Option<HostError>>,
    upkeep: Option<Upkeep>,
    /// Sockets to receive that another process handed over, by address, until ports take them.
    received: Vec<(IpAddr, Option<OwnedFd>)>,
    /// Sockets that receive.
    open: Vec<(IpAddr, Weak<OwnedFd>)>,
    /// How many ports were opened.
    opened: usize,
}

impl UdpTunnelDevice {
    /// The tunnel of `config` in `ns`. Sockets are bound when it is opened as a port.
    ///
    /// # Errors
    /// There is no address, no interface has it, the port is 0, or the number of senders is out of
    /// range.
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
        // Without it, packets are segmented here.
        let tunnel_gso = match config.tunnel_gso {
            true => TunnelGso::open(ns, &config).map_err(Some),
            false => Err(None),
        };
        let (tunnel_gso, upkeep) = match tunnel_gso {
            Ok((tunnel_gso, upkeep)) => (Ok(Arc::new(tunnel_gso)), Some(upkeep)),
            Err(error) => (Err(error), None),
        };
        let mut received = Vec::new();
        for address in config.addresses() {
            let files = config.inherited.take(&receivers_key(ns, address, config.port)?);
            received.extend(files.into_iter().map(|socket| (address, Some(socket))));
        }
        Ok(Self {
            ns: ns.clone(),
            config,
            info,
            senders: Weak::new(),
            tunnel_gso,
            upkeep,
            received,
            open: Vec::new(),
            opened: 0,
        })
    }

    /// Why the switch segments GSO packets itself although [`UdpTunnelConfig::tunnel_gso`] is set:
    /// usually a kernel before Linux 6.17.
    pub fn offload_error(&self) -> Option<&HostError> {
        self.tunnel_gso.as_ref().err()?.as_ref()
    }

    /// The interface through which the kernel gets unsegmented GSO packets, if there is one.
    pub fn offload_interface(&self) -> Option<String> {
        self.tunnel_gso.as_ref().ok().map(|gso| gso.interface().to_owned())
    }

    fn open_port(&mut self, index: usize, workers: usize) -> Result<UdpTunnelPort, HostError> {
        let senders = match self.senders.upgrade() {
            Some(senders) => senders,
            None => {
                // Only the switch's own workers share the receive ports: another program's socket
                // would get part of the traffic.
                let is_new = |address| !self.received.iter().any(|(at, _)| *at == address);
                for address in self.config.addresses().filter(|address| is_new(*address)) {
                    drop(self.bind(address, self.config.port, false)?);
                }
                let senders = Senders::open(&self.ns, &self.config)?;
                let senders = Arc::new(senders);
                self.senders = Arc::downgrade(&senders);
                senders
            }
        };
        let receivers = self.receive_sockets(workers)?;
        let what = || format!("open the tunnel's UDP sockets in {}", self.ns);
        let flags = epoll::CreateFlags::CLOEXEC;
        let watch = epoll::create(flags).context(what)?;
        let signal = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).context(what)?;
        let (data, readable) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        epoll::add(&watch, &signal, data, readable).context(what)?;
        for receiver in &receivers {
            epoll::add(&watch, &receiver.socket, data, readable).context(what)?;
        }
        self.open.retain(|(_, socket)| socket.strong_count() > 0);
        let opened = receivers.iter().map(|r| (r.address, Arc::downgrade(&r.socket)));
        self.open.extend(opened);
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
            plan: Plan::default(),
            lost: 0,
        })
    }

    /// The sockets that the next port receives from: one for each address. The last
    /// port also has those that are left over from a process with more workers.
    fn receive_sockets(&mut self, workers: usize) -> Result<Vec<Receiver>, HostError> {
        self.opened += 1;
        let is_last = self.opened >= workers;
        let mut sockets = Vec::new();
        for address in self.config.addresses() {
            let mut received = self.received.iter_mut().filter(|(at, _)| *at == address);
            match received.find_map(|(_, socket)| socket.take()) {
                // What it lost before was counted there.
                Some(socket) => sockets.push(Receiver::new(address, socket, None)),
                // The kernel would give a further socket datagrams at once, while the predecessor still forwards.
                None if self.config.inherited.has_predecessor()
                    && self.received.iter().any(|(at, _)| *at == address) => {}
                None => {
                    let socket = self.bind(address, self.config.port, true)?;
                    sockets.push(Receiver::new(address, socket, Some(0)));
                }
            }
        }
        for (address, socket) in self.received.iter_mut().filter(|_| is_last) {
            let address = *address;
            sockets.extend(socket.take().map(|socket| Receiver::new(address, socket, None)));
        }
        Ok(sockets)
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
            // Counts the datagrams for which the socket's buffer has no room, if the kernel
            // supports it.
            let _ = udp::set_overflow(fd);
            option::set_receive_buffer(fd, BUFFER).context(what)?;
            // Before Linux 5.0 every datagram is received separately.
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
    fn open(&mut self, index: usize, workers: usize) -> io::Result<Box<dyn Port>> {
        Ok(Box::new(self.open_port(index, workers)?))
    }

    fn info(&self) -> PortInfo {
        self.info.clone()
    }

    fn maintain(&mut self) -> Vec<String> {
        self.upkeep.as_mut().map(Upkeep::repair).unwrap_or_default()
    }

    fn files(&self) -> Vec<DeviceFiles> {
        let mut all = Vec::new();
        for address in self.config.addresses() {
            let own = self.open.iter().filter(|(at, _)| *at == address);
            let files: Vec<_> = own.filter_map(|(_, socket)| socket.upgrade()).collect();
            let key = receivers_key(&self.ns, address, self.config.port);
            all.extend(key.ok().map(|key| DeviceFiles { key, files }));
        }
        all.extend(
            self.senders.upgrade().into_iter().flat_map(|s| s.files(&self.ns, &self.config)),
        );
        all.extend(self.tunnel_gso.as_ref().ok().and_then(|gso| gso.injector().files()));
        all
    }

    fn leave_in_force(&mut self, stays: bool) {
        if let Ok(gso) = &self.tunnel_gso {
            gso.injector().leave_in_force(stays);
        }
    }
}

/// Says which sockets receive at an address, to this process and to another one.
fn receivers_key(ns: &NetNs, address: IpAddr, port: u16) -> Result<String, HostError> {
    let (device, inode) = ns.id()?;
    Ok(format!("udp-receive {device}:{inode} {}", SocketAddr::new(address, port)))
}
