//! Super-frames sent whole, to be cut by the header inside the tunnel: a socket cannot ask for that, so
//! they go round the sockets by the [`Injector`], on the way that the sockets' datagrams take. The
//! kernel is asked for that way: interface, next hop and path MTU once a second for each tunnel end,
//! neighbours by itself for every frame. Source ports are the sockets', so that what the network
//! says about a frame comes to their error queues.
//!
//! Everything else goes by the sockets, and so do super-frames where there is any doubt: an
//! interface that does not cut tunnels by itself, segments longer than the path MTU, packet
//! transformation (IPsec) in force, more tunnel ends than are kept.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use wire::checksum::{Sum, sum};
use wire::flow_key::proto;

use super::UdpTunnelConfig;
use super::senders::Family;
use super::tx::Outer;
use crate::host::nft::forward::{NOTE_LINK, NOTE_NEXT_HOP};
use crate::host::{Context, HostError, NetNs, Netlink, xfrm};
use crate::packet::{Packet, tunnel_places};
use crate::port::inject::{FEATURE, Injector};
use crate::sys::{ethtool, udp};

/// Length of the Ethernet header.
const ETHERNET: usize = 14;
/// How long a way is believed in.
const FRESH: Duration = Duration::from_secs(1);
/// Most tunnel ends whose ways are kept: asking for one costs some 50 µs.
const MOST: usize = 256;

/// A way for super-frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    link: u32,
    next_hop: IpAddr,
    /// Largest outer packet, in octets.
    mtu: u32,
}

/// One worker's.
#[derive(Debug)]
pub(super) struct Whole {
    injector: Arc<Injector>,
    netlink: Netlink,
    /// In the node's namespace, to ask about interfaces.
    socket: OwnedFd,
    /// To ask for transformations; a kernel that knows of none has no such socket.
    xfrm: Option<OwnedFd>,
    /// TTL or hop limit of what is sent.
    ttl: u8,
    fragmentable: bool,
    ways: HashMap<IpAddr, (Duration, Option<Way>)>,
}

impl Whole {
    /// # Errors
    /// The namespace cannot be entered, or the system gives no sockets.
    pub(super) fn new(
        ns: &NetNs,
        injector: Arc<Injector>,
        config: &UdpTunnelConfig,
    ) -> Result<Self, HostError> {
        let what = || format!("ask for ways in {ns}");
        let netlink = Netlink::open(ns)?;
        let (socket, xfrm) = ns.enter(|| (udp::open(false), xfrm::open()))?;
        let (socket, xfrm) = (socket.context(what)?, xfrm.context(what)?);
        let (ttl, fragmentable) = (config.ttl, config.fragmentable);
        let ways = HashMap::with_capacity(MOST);
        Ok(Self { injector, netlink, socket, xfrm, ttl, fragmentable, ways })
    }

    /// Whether the frame can go whole now; [`send`](Self::send) it then.
    pub(super) fn takes(&mut self, packet: &Packet, outer: &Outer, family: &Family) -> bool {
        let offload = &packet.offload;
        if !offload.is_gso()
            || usize::from(offload.hdr_len) < ETHERNET
            || tunnel_places(packet).is_none()
        {
            return false;
        }
        let longest = u32::from(offload.hdr_len) - ETHERNET as u32 + u32::from(offload.gso_size);
        self.way(outer.to, family).is_some_and(|way| longest <= way.mtu)
    }

    /// Sends a frame that [`takes`](Self::takes) said yes to. Sockets can still send it if that fails: of
    /// the headers written over they look at none but the source port.
    pub(super) fn send(
        &mut self,
        packet: &mut Packet,
        outer: &Outer,
        source_port: u16,
    ) -> Result<(), Errno> {
        let Some((_, Some(way))) = self.ways.get(&outer.to.ip()) else {
            return Err(Errno::HOSTUNREACH);
        };
        note(packet.bytes_mut(), way);
        self.finish(packet.bytes_mut(), outer, source_port);
        self.injector.send(packet).inspect_err(|_| {
            // The sockets choose by the port that the switch gave.
            let port = outer.source_port.to_be_bytes();
            packet.bytes_mut()[outer.udp..outer.udp + 2].copy_from_slice(&port);
        })
    }

    fn way(&mut self, to: SocketAddr, family: &Family) -> Option<Way> {
        let now = now();
        if let Some((asked, way)) = self.ways.get(&to.ip())
            && now.saturating_sub(*asked) < FRESH
        {
            return *way;
        }
        if self.ways.len() >= MOST && !self.ways.contains_key(&to.ip()) {
            self.ways.retain(|_, (asked, _)| now.saturating_sub(*asked) < FRESH);
            if self.ways.len() >= MOST {
                return None;
            }
        }
        let way = self.ask(to, family);
        self.ways.insert(to.ip(), (now, way));
        way
    }

    fn ask(&mut self, to: SocketAddr, family: &Family) -> Option<Way> {
        let (link, next_hop) = self.netlink.next_hop(family.address, to.ip()).ok()??;
        // nf_tables finds an IPv6 next hop in the packet itself only.
        if next_hop.is_ipv4() != to.is_ipv4() || (to.is_ipv6() && next_hop != to.ip()) {
            return None;
        }
        let mtu = family.path_mtu(to).ok()?;
        let name = rustix::net::netdevice::index_to_name(&self.socket, link).ok()?;
        let cuts = ethtool::has_feature(self.socket.as_fd(), &name, FEATURE).unwrap_or(false);
        // A packet that is to be transformed must not get round it.
        let plain = match &self.xfrm {
            Some(socket) => xfrm::outgoing_policies(socket.as_fd()).is_ok_and(|count| count == 0),
            None => true,
        };
        (cuts && plain).then_some(Way { link, next_hop, mtu })
    }

    /// Makes the outer headers those that a socket's datagrams have: source port, TTL (which is lowered
    /// by one on the way), and over IPv6 the checksum that there must be.
    fn finish(&self, frame: &mut [u8], outer: &Outer, source_port: u16) {
        let udp = outer.udp;
        let ttl = self.ttl.saturating_add(1);
        frame[udp..udp + 2].copy_from_slice(&source_port.to_be_bytes());
        let ip = &mut frame[ETHERNET..];
        if outer.to.is_ipv4() {
            ip[6] = if self.fragmentable { 0 } else { 0x40 };
            ip[8] = ttl;
            ip[10..12].fill(0);
            let checksum = sum(&ip[..udp - ETHERNET]).checksum();
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            return;
        }
        ip[7] = ttl;
        let length = (outer.end - udp) as u16;
        let pseudo = sum(&ip[8..40]) + Sum::word(length) + Sum::word(proto::UDP.into());
        frame[udp + 6..udp + 8].copy_from_slice(&pseudo.fold().to_be_bytes());
    }
}

/// Time that passes, read at next to no cost.
fn now() -> Duration {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Writes the way in place of MAC addresses.
fn note(frame: &mut [u8], way: &Way) {
    if let IpAddr::V4(address) = way.next_hop {
        frame[NOTE_NEXT_HOP..NOTE_NEXT_HOP + 4].copy_from_slice(&address.octets());
    }
    frame[NOTE_LINK..NOTE_LINK + 4].copy_from_slice(&way.link.to_ne_bytes());
}
