//! The sockets from which a tunnel sends, one for each source port. They receive nothing.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use podswitch_core::port::DeviceFiles;
use podswitch_vxlan::template::SourcePort;
use rustix::event::epoll;
use rustix::io::Errno;

use super::config::{BUFFER, UdpTunnelConfig};
use crate::sys::{packet as option, udp};
use crate::{Context, HostError, NetNs};

/// Number of ports tried for each socket before it is left out.
const ATTEMPTS: u16 = 16;

/// Sockets of one family.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) address: IpAddr,
    pub(super) sockets: Vec<Sender>,
    /// Used to query path MTUs.
    probe: OwnedFd,
}

/// A sending socket.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) fd: Arc<OwnedFd>,
    /// Its source port.
    pub(super) port: u16,
}

/// The sockets of both families, shared by all workers: the kernel takes no lock on them to send.
#[derive(Debug)]
pub(super) struct Senders {
    pub(super) families: [Option<Family>; 2],
}

impl Senders {
    pub(super) fn open(ns: &NetNs, config: &UdpTunnelConfig) -> Result<Self, HostError> {
        let family = |address: Option<IpAddr>| {
            address.map(|address| Family::open(ns, config, address)).transpose()
        };
        Ok(Self {
            families: [family(config.v4.map(Into::into))?, family(config.v6.map(Into::into))?],
        })
    }

    /// The sockets, for another process.
    pub(super) fn files(&self, ns: &NetNs, config: &UdpTunnelConfig) -> Vec<DeviceFiles> {
        let of_family = |family: &Family| {
            let key = key(ns, config, family.address).ok()?;
            let files = family.sockets.iter().map(|sender| Arc::clone(&sender.fd)).collect();
            Some(DeviceFiles { key, files })
        };
        self.families.iter().flatten().filter_map(of_family).collect()
    }

    /// The sockets of a family.
    pub(super) fn family(&self, v6: bool) -> Option<&Family> {
        self.families[usize::from(v6)].as_ref()
    }

    /// An epoll set that is readable while any socket has a pending error; its event data is the
    /// number for [`Senders::by_number`].
    pub(super) fn watch_errors(&self) -> io::Result<OwnedFd> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (f, family) in self.families.iter().enumerate() {
            for (n, sender) in family.iter().flat_map(|f| &f.sockets).enumerate() {
                let data = epoll::EventData::new_u64((f << 16 | n) as u64);
                // Errors are always reported.
                epoll::add(&set, &sender.fd, data, epoll::EventFlags::empty())?;
            }
        }
        Ok(set)
    }

    pub(super) fn by_number(&self, number: u64) -> Option<(&Family, &Sender)> {
        let family = self.families.get(number as usize >> 16)?.as_ref()?;
        Some((family, family.sockets.get(number as usize & 0xffff)?))
    }
}

impl Family {
    fn open(ns: &NetNs, config: &UdpTunnelConfig, address: IpAddr) -> Result<Self, HostError> {
        let what = || format!("open UDP sockets to send from {address} in {ns}");
        let inherited = config.inherited.take(&key(ns, config, address)?);
        let mut sockets: Vec<Sender> = inherited.into_iter().filter_map(Sender::of).collect();
        let is_complete = !sockets.is_empty();
        let opened = ns.enter(|| {
            // Spread over the range; if a port is in use, the next one.
            let span = (1 << 14) / config.senders as u16;
            for n in (0..config.senders as u16).filter(|_| !is_complete) {
                let first = SourcePort::MIN + n * span;
                for port in first..first.saturating_add(span.min(ATTEMPTS)) {
                    match Sender::open(config, address, port) {
                        Ok(sender) => sockets.push(sender),
                        Err(error) if is_taken(&error) => continue,
                        Err(error) => return Err(error),
                    }
                    break;
                }
            }
            udp::open(address.is_ipv6())
        })?;
        let probe = opened.context(what)?;
        if sockets.is_empty() {
            return Err(HostError::new(what(), Errno::ADDRINUSE.into()));
        }
        udp::set_fragmentable(probe.as_fd(), address.is_ipv6(), false).context(what)?;
        option::set_deaf(probe.as_fd(), true).context(what)?;
        Ok(Self { address, sockets, probe })
    }

    /// The path MTU towards `to` that the kernel knows. Workers share the probe socket: an answer
    /// may belong to another worker's query, but it is always the path MTU of some VTEP, and the
    /// next packet that is too long repeats the query.
    pub(super) fn path_mtu(&self, to: SocketAddr) -> io::Result<u32> {
        rustix::net::connect(&self.probe, &to)?;
        udp::path_mtu(self.probe.as_fd(), to.is_ipv6())
    }

    /// The socket for packets that the switch gave this source port.
    pub(super) fn index(&self, source_port: u16) -> usize {
        usize::from(source_port) % self.sockets.len()
    }

    pub(super) fn socket(&self, index: usize) -> BorrowedFd<'_> {
        self.sockets[index].fd.as_fd()
    }
}

impl Sender {
    fn open(config: &UdpTunnelConfig, address: IpAddr, port: u16) -> io::Result<Self> {
        let v6 = address.is_ipv6();
        let fd = udp::open(v6)?;
        let socket = fd.as_fd();
        // Before it is bound, because after that any host could send to it.
        option::set_deaf(socket, true)?;
        option::set_send_buffer(socket, BUFFER)?;
        udp::set_ttl(socket, v6, config.ttl)?;
        udp::set_fragmentable(socket, v6, config.fragmentable)?;
        udp::set_queue_errors(socket, v6)?;
        rustix::net::bind(socket, &SocketAddr::new(address, port))?;
        Ok(Self { fd: Arc::new(fd), port })
    }

    /// One that another process opened.
    fn of(fd: OwnedFd) -> Option<Self> {
        let address = SocketAddr::try_from(rustix::net::getsockname(&fd).ok()?).ok()?;
        Some(Self { fd: Arc::new(fd), port: address.port() })
    }
}

/// Says which sockets these are, and how they were set up.
fn key(ns: &NetNs, config: &UdpTunnelConfig, address: IpAddr) -> Result<String, HostError> {
    let (device, inode) = ns.id()?;
    let UdpTunnelConfig { ttl, fragmentable, senders, .. } = config;
    Ok(format!("udp-send {device}:{inode} {address} {senders} {ttl} {fragmentable}"))
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}
