//! Sends GSO packets unsegmented, to be segmented by the inner TCP header. A socket cannot request
//! that, so they bypass the sockets through the [`Injector`], along the path that the sockets'
//! datagrams take. A thread queries the kernel for that path (interface, next hop, path MTU) once a
//! second for each VTEP in use, since a query can take longer than a worker may wait. The kernel
//! resolves the neighbour for every frame. Source ports are those of the sockets, so that ICMP
//! errors arrive in their error queues.
//!
//! Everything else goes through the sockets, and so do GSO packets in case of doubt: the path is
//! not known yet, the interface cannot segment tunnelled packets, segments are longer than the path
//! MTU, packets are transformed (IPsec), or there are more VTEPs than paths are kept for.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam::queue::ArrayQueue;
use hashbrown::HashMap;
use podswitch_core::packet::{Packet, tunnel_offsets};
use podswitch_wire::checksum::{Sum, sum};
use podswitch_wire::flow_key::proto;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::config::UdpTunnelConfig;
use super::plan::Outer;
use crate::nft::forward::{NOTE_LINK, NOTE_NEXT_HOP};
use crate::port::injector::{FEATURE, Injector, Upkeep};
use crate::sys::{ethtool, udp};
use crate::{Context, HostError, NetNs, Netlink, xfrm};

/// Length of the Ethernet header.
const ETHERNET: usize = 14;
/// Interval after which a path is queried again.
const FRESH: Duration = Duration::from_secs(1);
/// Time after which a path expires.
const STALE: Duration = Duration::from_secs(2);
/// Maximum number of VTEPs with a known path: one query takes about 50 µs.
const MOST: usize = 256;
/// Maximum number of queries at a time.
const QUESTIONS: usize = 64;

/// A path for GSO packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    link: u32,
    next_hop: IpAddr,
    /// Largest outer packet, in bytes.
    mtu: u32,
}

/// Paths as of one time.
type Known = HashMap<IpAddr, (Duration, Option<Way>)>;

/// Shared by the workers and the query thread.
#[derive(Debug)]
struct Ways {
    known: ArcSwap<Known>,
    questions: ArrayQueue<SocketAddr>,
    ended: AtomicBool,
}

/// Shared by all workers.
#[derive(Debug)]
pub(super) struct TunnelGso {
    injector: Injector,
    ways: Arc<Ways>,
    asker: Option<JoinHandle<()>>,
    /// TTL or hop limit of sent packets.
    ttl: u8,
    fragmentable: bool,
}

impl Drop for TunnelGso {
    fn drop(&mut self) {
        self.ways.ended.store(true, Ordering::Release);
        if let Some(asker) = self.asker.take() {
            asker.thread().unpark();
            // It returns nothing.
            let _ = asker.join();
        }
    }
}

impl TunnelGso {
    /// Also returns the value that maintains the injector.
    ///
    /// # Errors
    /// This kernel does not support it, or privilege is missing; sockets or the thread cannot be
    /// created.
    pub(super) fn open(ns: &NetNs, config: &UdpTunnelConfig) -> Result<(Self, Upkeep), HostError> {
        let (injector, upkeep) = Injector::by_note(ns, config.port, &config.inherited)?;
        let ways = Arc::new(Ways {
            known: ArcSwap::default(),
            questions: ArrayQueue::new(QUESTIONS),
            ended: AtomicBool::new(false),
        });
        let asker = Asker::new(ns, config, Arc::clone(&ways))?;
        let asker = thread::Builder::new()
            .name("podswitch-ways".into())
            .spawn(move || asker.run())
            .context(|| "start the thread that queries paths".into())?;
        let (ttl, fragmentable) = (config.ttl, config.fragmentable);
        Ok((Self { injector, ways, asker: Some(asker), ttl, fragmentable }, upkeep))
    }

    /// Sends GSO packets.
    pub(super) fn injector(&self) -> &Injector {
        &self.injector
    }

    /// The interface that frames are written to.
    pub(super) fn interface(&self) -> &str {
        self.injector.name()
    }

    /// Whether the frame can be sent unsegmented now by [`send`](Self::send).
    pub(super) fn takes(&self, packet: &Packet, outer: &Outer) -> bool {
        let offload = &packet.offload;
        if !offload.is_gso()
            || usize::from(offload.hdr_len) < ETHERNET
            || !tunnel_offsets(packet).is_some_and(|offsets| offsets.is_exact)
        {
            return false;
        }
        let longest = u32::from(offload.hdr_len) - ETHERNET as u32 + u32::from(offload.gso_size);
        self.way(outer.to).is_some_and(|way| longest <= way.mtu)
    }

    /// Sends a frame that [`takes`](Self::takes) accepted. Sockets can still send it if that fails:
    /// of the overwritten headers they read only the source port.
    pub(super) fn send(
        &self,
        packet: &mut Packet,
        outer: &Outer,
        source_port: u16,
    ) -> Result<(), Errno> {
        let way = self.way(outer.to).ok_or(Errno::HOSTUNREACH)?;
        note(packet.bytes_mut(), &way);
        self.finish(packet.bytes_mut(), outer, source_port);
        self.injector.send(packet).inspect_err(|_| {
            // The sockets are chosen by the port that the switch set.
            let port = outer.source_port.to_be_bytes();
            packet.bytes_mut()[outer.udp..outer.udp + 2].copy_from_slice(&port);
        })
    }

    fn way(&self, to: SocketAddr) -> Option<Way> {
        let found = self.ways.known.load().get(&to.ip()).copied();
        let age = found.map_or(Duration::MAX, |(at, _)| now().saturating_sub(at));
        if age >= FRESH && self.ways.questions.push(to).is_ok() {
            self.asker.iter().for_each(|asker| asker.thread().unpark());
        }
        found.filter(|_| age < STALE)?.1
    }

    /// Sets the outer headers to those of a socket's datagrams: source port, TTL (decremented once
    /// on the way), and the mandatory checksum over IPv6.
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

/// Queries the kernel, on a thread of its own.
struct Asker {
    ways: Arc<Ways>,
    netlink: Netlink,
    /// This node's VTEPs, each with a socket to query path MTUs.
    ends: Vec<(IpAddr, OwnedFd)>,
    /// To query transformations; a kernel without them has no such socket.
    xfrm: Option<OwnedFd>,
}

impl Asker {
    fn new(ns: &NetNs, config: &UdpTunnelConfig, ways: Arc<Ways>) -> Result<Self, HostError> {
        let what = || format!("query paths in {ns}");
        let open = |address: IpAddr| {
            let socket = udp::open(address.is_ipv6())?;
            // Before its first query, because after that any host could send to it.
            crate::sys::packet::set_deaf(socket.as_fd(), true)?;
            udp::set_fragmentable(socket.as_fd(), address.is_ipv6(), false)?;
            Ok::<_, std::io::Error>((address, socket))
        };
        let ends = ns.enter(|| config.addresses().map(open).collect::<Result<_, _>>())?;
        let xfrm = ns.enter(xfrm::open)?.context(what)?;
        Ok(Self { ways, netlink: Netlink::open(ns)?, ends: ends.context(what)?, xfrm })
    }

    fn run(mut self) {
        while !self.ways.ended.load(Ordering::Acquire) {
            while let Some(to) = self.ways.questions.pop() {
                self.answer(to);
            }
            thread::park();
        }
    }

    fn answer(&mut self, to: SocketAddr) {
        let known = self.ways.known.load_full();
        let is_older = |at: Duration, than| now().saturating_sub(at) >= than;
        // Several queries for one VTEP.
        if known.get(&to.ip()).is_some_and(|(at, _)| !is_older(*at, FRESH)) {
            return;
        }
        let mut known = Known::clone(&known);
        if known.len() >= MOST {
            known.retain(|_, (at, _)| !is_older(*at, STALE));
        }
        if known.len() < MOST || known.contains_key(&to.ip()) {
            let way = self.ask(to);
            known.insert(to.ip(), (now(), way));
            self.ways.known.store(Arc::new(known));
        }
    }

    fn ask(&mut self, to: SocketAddr) -> Option<Way> {
        let (source, socket) = self.ends.iter().find(|end| end.0.is_ipv4() == to.is_ipv4())?;
        let (link, next_hop) = self.netlink.next_hop(*source, to.ip()).ok()??;
        // nf_tables takes an IPv6 next hop only from the packet's own destination.
        if next_hop.is_ipv4() != to.is_ipv4() || (to.is_ipv6() && next_hop != to.ip()) {
            return None;
        }
        rustix::net::connect(socket, &to).ok()?;
        let mtu = udp::path_mtu(socket.as_fd(), to.is_ipv6()).ok()?;
        let name = rustix::net::netdevice::index_to_name(socket, link).ok()?;
        let cuts = ethtool::has_feature(socket.as_fd(), &name, FEATURE).unwrap_or(false);
        // Packets must not bypass a transformation.
        let plain = match &self.xfrm {
            Some(socket) => xfrm::outgoing_policies(socket.as_fd()).is_ok_and(|count| count == 0),
            None => true,
        };
        (cuts && plain).then_some(Way { link, next_hop, mtu })
    }
}

/// A coarse clock, cheap to read.
fn now() -> Duration {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Writes the path in place of the MAC addresses.
fn note(frame: &mut [u8], way: &Way) {
    if let IpAddr::V4(address) = way.next_hop {
        frame[NOTE_NEXT_HOP..NOTE_NEXT_HOP + 4].copy_from_slice(&address.octets());
    }
    frame[NOTE_LINK..NOTE_LINK + 4].copy_from_slice(&way.link.to_ne_bytes());
}
