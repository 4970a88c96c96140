//! Super-frames sent whole, to be cut by the header inside the tunnel: a socket cannot ask for that, so
//! they go round the sockets by the [`Injector`], on the way that the sockets' datagrams take. A
//! thread asks the kernel for that way, interface, next hop and path MTU, once a second for each
//! tunnel end that is sent to: the kernel may take its time to answer, which workers have not. Neighbours
//! are the kernel's own for every frame. Source ports are the sockets', so that what the network
//! says about a frame comes to their error queues.
//!
//! Everything else goes by the sockets, and so do super-frames where there is any doubt: a way not
//! known yet, an interface that does not cut tunnels by itself, segments longer than the path MTU, packet
//! transformation (IPsec) in force, more tunnel ends than are kept.

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

use super::UdpTunnelConfig;
use super::tx::Outer;
use crate::nft::forward::{NOTE_LINK, NOTE_NEXT_HOP};
use crate::port::injector::{FEATURE, Injector, Upkeep};
use crate::sys::{ethtool, udp};
use crate::{Context, HostError, NetNs, Netlink, xfrm};

/// Length of the Ethernet header.
const ETHERNET: usize = 14;
/// When a way is asked for again.
const FRESH: Duration = Duration::from_secs(1);
/// When it is no longer believed in.
const STALE: Duration = Duration::from_secs(2);
/// Most tunnel ends whose ways are kept: asking for one costs some 50 µs.
const MOST: usize = 256;
/// Most questions at a time.
const QUESTIONS: usize = 64;

/// A way for super-frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    link: u32,
    next_hop: IpAddr,
    /// Largest outer packet, in bytes.
    mtu: u32,
}

/// Ways as they were found at a time.
type Known = HashMap<IpAddr, (Duration, Option<Way>)>;

/// Shared by workers and the thread that asks.
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
    /// TTL or hop limit of what is sent.
    ttl: u8,
    fragmentable: bool,
}

impl Drop for TunnelGso {
    fn drop(&mut self) {
        self.ways.ended.store(true, Ordering::Release);
        if let Some(asker) = self.asker.take() {
            asker.thread().unpark();
            // It has nothing to say.
            let _ = asker.join();
        }
    }
}

impl TunnelGso {
    /// With what keeps it up.
    ///
    /// # Errors
    /// This kernel cannot, or privilege is missing; the system gives no sockets or no thread.
    pub(super) fn open(ns: &NetNs, config: &UdpTunnelConfig) -> Result<(Self, Upkeep), HostError> {
        let (injector, upkeep) = Injector::by_note(ns, config.port)?;
        let ways = Arc::new(Ways {
            known: ArcSwap::default(),
            questions: ArrayQueue::new(QUESTIONS),
            ended: AtomicBool::new(false),
        });
        let asker = Asker::new(ns, config, Arc::clone(&ways))?;
        let asker = thread::Builder::new()
            .name("podswitch-ways".into())
            .spawn(move || asker.run())
            .context(|| "start the thread that asks for ways".into())?;
        let (ttl, fragmentable) = (config.ttl, config.fragmentable);
        Ok((Self { injector, ways, asker: Some(asker), ttl, fragmentable }, upkeep))
    }

    /// The interface that frames are written to.
    pub(super) fn interface(&self) -> &str {
        self.injector.name()
    }

    /// Whether the frame can go whole now; [`send`](Self::send) it then.
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

    /// Sends a frame that [`takes`](Self::takes) said yes to. Sockets can still send it if that fails: of
    /// the headers written over they look at none but the source port.
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
            // The sockets choose by the port that the switch gave.
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

/// Asks the kernel, on a thread of its own.
struct Asker {
    ways: Arc<Ways>,
    netlink: Netlink,
    /// This node's ends, each with a socket to ask for path MTUs.
    ends: Vec<(IpAddr, OwnedFd)>,
    /// To ask for transformations; a kernel that knows of none has no such socket.
    xfrm: Option<OwnedFd>,
}

impl Asker {
    fn new(ns: &NetNs, config: &UdpTunnelConfig, ways: Arc<Ways>) -> Result<Self, HostError> {
        let what = || format!("ask for ways in {ns}");
        let open = |address: IpAddr| {
            let socket = udp::open(address.is_ipv6())?;
            // From when it is first asked by, anybody could send to it.
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
        // Asked for several times.
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
        // nf_tables finds an IPv6 next hop in the packet itself only.
        if next_hop.is_ipv4() != to.is_ipv4() || (to.is_ipv6() && next_hop != to.ip()) {
            return None;
        }
        rustix::net::connect(socket, &to).ok()?;
        let mtu = udp::path_mtu(socket.as_fd(), to.is_ipv6()).ok()?;
        let name = rustix::net::netdevice::index_to_name(socket, link).ok()?;
        let cuts = ethtool::has_feature(socket.as_fd(), &name, FEATURE).unwrap_or(false);
        // A packet that is to be transformed must not get round it.
        let plain = match &self.xfrm {
            Some(socket) => xfrm::outgoing_policies(socket.as_fd()).is_ok_and(|count| count == 0),
            None => true,
        };
        (cuts && plain).then_some(Way { link, next_hop, mtu })
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
