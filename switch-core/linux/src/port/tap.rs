//! TAP: an interface in a network namespace whose other end is the switch. Pods and the node itself
//! are attached by TAP by default.
//!
//! Each frame has a virtio-net header (12 bytes), so that checksums and segmentation can stay
//! offloaded from pod to pod. `read` and `write` in bursts had the best results (decision record
//! 0004). A persistent device outlives the switch: the interface keeps its addresses and routes,
//! and a new switch attaches to it.
//!
//! [`TapDevice`] is used by control threads, each [`TapPort`] by one worker. Neither sets up
//! addresses or routes: that is [`attach`](crate::attach).

mod losses;

use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use arrayvec::ArrayVec;
use podswitch_core::packet::{
    BATCH, Batch, MAX_UDP_HEADERS, Offload, Packet, Pool, SizeClass, UdpRun, UdpRuns,
};
use podswitch_core::port::{Device, DeviceFiles, Offloads, Port, PortInfo};
use podswitch_wire::addr::Mac;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use self::losses::{LossCounter, Losses};
use super::several;
use super::virtio::{self, HeaderForm};
use crate::handover::Inherited;
use crate::sys::tun;
use crate::{Context, HostError, NetNs, Netlink};

/// The device file for TAP interfaces.
const TUN_FILE: &str = "/dev/net/tun";

/// Length of the header in front of each frame.
const HEADER: usize = HeaderForm::V1.len();

/// A burst ends at this many bytes, so that GSO packets are still in the cache when the same worker
/// sends them.
const BURST_BYTES: usize = 384 * 1024;

/// Configuration of a TAP.
#[derive(Clone, Debug)]
pub struct TapConfig {
    /// Name of the interface, 1 to 15 bytes.
    pub name: String,
    /// Its MAC address. `None`: an existing TAP keeps its own, a new one gets one from the kernel.
    pub mac: Option<Mac>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// One queue for each worker. Otherwise worker 0 receives for all workers.
    pub multi_queue: bool,
    /// The interface outlives the switch.
    pub persistent: bool,
    /// If its queues are among these, it is not opened: another process has it open.
    pub inherited: Inherited,
}

impl TapConfig {
    /// A device with that name for one worker, with MTU 1500, removed when the switch ends.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            mac: None,
            mtu: 1500,
            multi_queue: false,
            persistent: false,
            inherited: Inherited::default(),
        }
    }
}

/// Whether this process may create TAPs.
///
/// # Errors
/// The device file is missing, or this user may not open it. Ports can be veth pairs with
/// `AF_PACKET` instead.
pub fn is_available() -> Result<(), HostError> {
    open_tun_file().map(drop)
}

/// A TAP interface, seen from the switch.
#[derive(Debug)]
pub struct TapDevice {
    ns: NetNs,
    name: String,
    index: u32,
    mac: Mac,
    mtu: u32,
    was_there: bool,
    multi_queue: bool,
    uso: bool,
    /// Reads the number of frames that the kernel dropped. `None`: the kernel does not report it,
    /// and losses are not counted.
    counter: Option<LossCounter>,
    /// With one queue: the queue that all ports share. With several: the first one, until a port
    /// takes it.
    queue: Option<Arc<OwnedFd>>,
    /// Further queues that another process handed over, until ports take them.
    further: Vec<Option<Arc<OwnedFd>>>,
    /// Another process handed the queues over, and still forwards. No queue is added to them: the kernel would put frames
    /// into it at once.
    is_inherited: bool,
    /// All open queues.
    open: Vec<Weak<OwnedFd>>,
    /// How many ports were opened.
    opened: usize,
}

/// A queue, and what is known of its interface.
struct FirstQueue {
    queue: OwnedFd,
    multi_queue: bool,
    uso: bool,
    /// Those that came with it.
    further: Vec<OwnedFd>,
    is_inherited: bool,
}

impl TapDevice {
    /// Creates the interface in `ns`, or attaches to a persistent one. A new one stays down.
    ///
    /// # Errors
    /// The tun device file cannot be opened ([`is_available`]); the name belongs to another kind of
    /// interface, or to a TAP that another process has open (`EBUSY`); missing privilege.
    pub fn open(ns: &NetNs, config: &TapConfig) -> Result<Self, HostError> {
        let what = || format!("open TAP {} in {ns}", config.name);
        let mut netlink = Netlink::open(ns)?;
        let before = netlink.find_link(&config.name)?;
        if let Some(kind) = before.as_ref().map(|l| l.kind.as_deref().unwrap_or("hardware"))
            && kind != "tun"
        {
            let reason = format!("an interface of kind {kind} has that name");
            return Err(HostError::invalid(what(), reason));
        }
        let FirstQueue { queue, multi_queue, uso, further, is_inherited } =
            Self::first_queue(ns, config, before.is_some())?;
        tun::set_persistent(queue.as_fd(), config.persistent).context(what)?;
        let link = netlink.link(&config.name)?;
        if let Some(mac) = config.mac.filter(|mac| Some(*mac) != link.mac) {
            netlink.set_mac(link.index, mac)?;
        }
        if link.mtu != config.mtu {
            netlink.set_mtu(link.index, config.mtu)?;
        }
        Ok(Self {
            ns: ns.clone(),
            name: config.name.clone(),
            index: link.index,
            mac: config.mac.or(link.mac).unwrap_or(Mac::ZERO),
            mtu: config.mtu,
            was_there: before.is_some(),
            multi_queue,
            uso,
            counter: LossCounter::new(netlink, link.index),
            queue: Some(Arc::new(queue)),
            is_inherited,
            further: further.into_iter().map(|queue| Some(Arc::new(queue))).collect(),
            open: Vec::new(),
            opened: 0,
        })
    }

    /// An existing device keeps its number of queues, one or several.
    fn first_queue(
        ns: &NetNs,
        config: &TapConfig,
        is_there: bool,
    ) -> Result<FirstQueue, HostError> {
        let files = config.inherited.take(&key(ns, &config.name)?);
        if !files.is_empty() {
            match Self::go_on_with(ns, config, files) {
                // The interface may have been deleted or renamed since its switch has ended: then there is another one.
                Err(_) if !config.inherited.has_predecessor() => {}
                result => return result,
            }
        }
        let wanted = config.multi_queue;
        let (queue, multi_queue, uso) = match attach(ns, &config.name, wanted) {
            Err(error) if is_there && error.raw_os_error() == Some(libc::EINVAL) => {
                attach(ns, &config.name, !wanted).map(|(fd, uso)| (fd, !wanted, uso))
            }
            result => result.map(|(fd, uso)| (fd, wanted, uso)),
        }?;
        Ok(FirstQueue { queue, multi_queue, uso, further: Vec::new(), is_inherited: false })
    }

    /// The queues that another process handed over, of which there is at least one.
    fn go_on_with(
        ns: &NetNs,
        config: &TapConfig,
        files: Vec<OwnedFd>,
    ) -> Result<FirstQueue, HostError> {
        let what = || format!("go on with TAP {} in {ns}", config.name);
        let mut files = files.into_iter();
        let queue = files.next().ok_or(io::ErrorKind::InvalidInput).map_err(io::Error::from);
        let queue = queue.context(what)?;
        let (name, flags) = tun::interface(queue.as_fd()).context(what)?;
        if name != config.name {
            return Err(HostError::invalid(what(), format!("it is a queue of {name}")));
        }
        let multi_queue = flags & tun::IFF_MULTI_QUEUE != 0;
        let uso = set_up(&queue).context(what)?;
        let is_inherited = config.inherited.has_predecessor();
        Ok(FirstQueue { queue, multi_queue, uso, further: files.collect(), is_inherited })
    }

    /// The interface's index in its namespace.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The interface's MAC address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Whether an earlier run had left the interface.
    pub fn was_there(&self) -> bool {
        self.was_there
    }

    /// Whether each worker can have a queue of its own.
    pub fn is_multi_queue(&self) -> bool {
        self.multi_queue
    }

    /// Removes the interface, even if it is persistent.
    ///
    /// # Errors
    /// It does not exist, or cannot be removed.
    pub fn destroy(self) -> Result<(), HostError> {
        Netlink::open(&self.ns)?.delete_link(self.index)
    }

    fn port_info(&self) -> PortInfo {
        PortInfo {
            name: self.name.clone(),
            // The interface is the pod's; the switch's end is a file without an address.
            mac: None,
            mtu: self.mtu,
            offloads: Offloads { uso: self.uso, tunnel: false, ..Offloads::ALL },
        }
    }

    /// The descriptor for worker `index`, and whether it receives.
    fn queue_for(&mut self, index: usize) -> Result<(Arc<OwnedFd>, bool), HostError> {
        if self.multi_queue {
            let mut further = self.further.iter_mut();
            if let Some(queue) = self.queue.take().or_else(|| further.find_map(Option::take)) {
                return Ok((queue, true));
            }
            if self.is_inherited
                && let Some(first) = self.open.iter().find_map(Weak::upgrade)
            {
                return Ok((first, false));
            }
            return Ok((Arc::new(attach(&self.ns, &self.name, true)?.0), true));
        }
        let queue = match &self.queue {
            Some(queue) => Arc::clone(queue),
            None => Arc::new(attach(&self.ns, &self.name, false)?.0),
        };
        self.queue = Some(Arc::clone(&queue));
        Ok((queue, index == 0))
    }
}

impl Device for TapDevice {
    fn open(&mut self, index: usize, workers: usize) -> io::Result<Box<dyn Port>> {
        let (queue, receives) = self.queue_for(index)?;
        // The last worker also receives from the queues that are left over.
        self.opened += 1;
        let is_last = receives && self.opened >= workers;
        let left = self.further.iter_mut().filter(|_| is_last).filter_map(Option::take);
        let queues: Vec<_> = std::iter::once(queue).chain(left).collect();
        self.open.retain(|queue| queue.strong_count() > 0);
        if receives {
            self.open.extend(queues.iter().map(Arc::downgrade));
        }
        let port = |queue| {
            let losses = self.counter.as_ref().map(|counter| Arc::clone(&counter.losses));
            let (info, joins) = (self.port_info(), self.uso);
            TapPort { queue, receives, losses, backlog: 0, joins, info }
        };
        several::join(queues.into_iter().map(port).collect())
    }

    fn files(&self) -> Vec<DeviceFiles> {
        let files: Vec<Arc<OwnedFd>> = self.open.iter().filter_map(Weak::upgrade).collect();
        match key(&self.ns, &self.name) {
            Ok(key) if !files.is_empty() => vec![DeviceFiles { key, files }],
            _ => Vec::new(),
        }
    }

    fn info(&self) -> PortInfo {
        self.port_info()
    }

    fn maintain(&mut self) -> Vec<String> {
        if let Some(counter) = &mut self.counter {
            counter.read();
        }
        Vec::new()
    }
}

pub(crate) fn open_tun_file() -> Result<OwnedFd, HostError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::open(TUN_FILE, flags, Mode::empty()).context(|| format!("open {TUN_FILE}"))
}

/// Opens one queue of the interface. Also returns whether the kernel supports UDP segmentation.
fn attach(ns: &NetNs, name: &str, multi_queue: bool) -> Result<(OwnedFd, bool), HostError> {
    let mut flags = tun::IFF_TAP | tun::IFF_NO_PI | tun::IFF_VNET_HDR;
    if multi_queue {
        flags |= tun::IFF_MULTI_QUEUE;
    }
    let what = || format!("attach to TAP {name} in {ns}");
    // The file belongs to the namespace in which it is opened.
    let fd = ns.enter(|| {
        let fd = open_tun_file()?;
        tun::set_interface(fd.as_fd(), name, flags).context(what)?;
        Ok::<_, HostError>(fd)
    })??;
    let uso = set_up(&fd).context(what)?;
    Ok((fd, uso))
}

/// Sets what a queue needs. Returns whether the kernel supports UDP segmentation.
fn set_up(queue: &OwnedFd) -> io::Result<bool> {
    tun::set_header_len(queue.as_fd(), HEADER as i32)?;
    let tcp = tun::TUN_F_CSUM | tun::TUN_F_TSO4 | tun::TUN_F_TSO6 | tun::TUN_F_TSO_ECN;
    let uso = tun::TUN_F_USO4 | tun::TUN_F_USO6;
    // Linux 6.2 introduced UDP segmentation.
    if tun::set_offloads(queue.as_fd(), tcp | uso).is_ok() {
        return Ok(true);
    }
    tun::set_offloads(queue.as_fd(), tcp)?;
    Ok(false)
}

/// Says which interface it is, to this process and to another one.
pub(super) fn key(ns: &NetNs, name: &str) -> Result<String, HostError> {
    let (device, inode) = ns.id()?;
    Ok(format!("tap {device}:{inode} {name}"))
}

/// A backlog of this many frames means that the queue may have been full. The kernel's queue holds
/// 500 or more (txqueuelen, 1000 by default).
const BACKLOG: usize = 500;
/// If a queue never becomes empty, it is reported once per this number of frames.
const LONG_BACKLOG: usize = 8192;

/// One worker's queue of a TAP.
#[derive(Debug)]
pub struct TapPort {
    queue: Arc<OwnedFd>,
    receives: bool,
    losses: Option<Arc<Losses>>,
    /// Frames received since the queue was empty, or was reported as full.
    backlog: usize,
    /// Consecutive datagrams of a flow are written as one GSO packet.
    joins: bool,
    info: PortInfo,
}

/// A bit for each packet of a burst that was written; and why the others were not.
struct Written {
    done: u64,
    result: io::Result<()>,
}

impl TapPort {
    /// Records that a burst was received, after which the queue was empty or not.
    fn burst(&mut self, received: usize, is_empty: bool) {
        self.backlog += received;
        let was_full = self.backlog >= if is_empty { BACKLOG } else { LONG_BACKLOG };
        if was_full && let Some(losses) = &self.losses {
            losses.may_be.store(true, Relaxed);
        }
        if is_empty || was_full {
            self.backlog = 0;
        }
    }

    fn write(&self, packet: &mut Packet) -> Result<(), Errno> {
        let offload = packet.offload;
        if packet.headroom() < HEADER {
            let mut header = [0; HEADER];
            virtio::encode(&offload, HeaderForm::V1, &mut header);
            let parts = [IoSlice::new(&header), IoSlice::new(packet.bytes())];
            return rustix::io::writev(&self.queue, &parts).map(drop);
        }
        virtio::encode(&offload, HeaderForm::V1, packet.push_front(HEADER));
        let result = rustix::io::write(&self.queue, packet.bytes());
        packet.pull_front(HEADER);
        result.map(drop)
    }
}

impl TapPort {
    /// Writes the datagrams of a run as one GSO packet.
    fn write_run(&self, run: &UdpRun<'_>) -> Result<(), Errno> {
        let mut head = [0; MAX_UDP_HEADERS];
        let (len, offload) = run.headers(&mut head);
        let mut header = [0; HEADER];
        virtio::encode(&offload, HeaderForm::V1, &mut header);
        let mut parts: ArrayVec<IoSlice<'_>, { BATCH + 2 }> = ArrayVec::new();
        parts.extend([IoSlice::new(&header), IoSlice::new(&head[..len])]);
        parts.extend(run.payloads().map(IoSlice::new));
        rustix::io::writev(&self.queue, &parts).map(drop)
    }

    /// Writes a burst that has runs of datagrams.
    fn write_joined(&mut self, burst: &mut Batch, runs: &UdpRuns) -> Written {
        let mut done = 0;
        for at in 0..burst.len() {
            if done >> at & 1 != 0 {
                continue;
            }
            if self.joins
                && let Some(run) = runs.run(burst, at)
            {
                match self.write_run(&run) {
                    Ok(()) => {
                        done = run.members().fold(done, |done, member| done | 1 << member);
                        continue;
                    }
                    // The kernel does not accept such packets although it reported support: from
                    // now on each datagram is written alone.
                    Err(Errno::INVAL) => self.joins = false,
                    // There may be enough memory for one datagram.
                    Err(_) => {}
                }
            }
            match self.write(&mut burst[at]) {
                Ok(()) => done |= 1 << at,
                Err(errno) => match ends_burst(errno) {
                    Some(result) => return Written { done, result },
                    None => continue,
                },
            }
        }
        Written { done, result: Ok(()) }
    }

    /// As [`Port::tx`], for a burst that has runs of datagrams.
    fn tx_joined(
        &mut self,
        pool: &mut Pool,
        batch: &mut Batch,
        runs: &UdpRuns,
    ) -> io::Result<usize> {
        let mut burst = mem::take(batch);
        let Written { done, result } = self.write_joined(&mut burst, runs);
        for (at, packet) in burst.into_iter().enumerate() {
            if done >> at & 1 != 0 {
                pool.free(packet);
            } else {
                batch.push(packet);
            }
        }
        result.map(|()| done.count_ones() as usize)
    }
}

/// Whether a failed write ends the burst: the queue is full, or the device no longer exists.
/// Otherwise the interface is down or refuses this frame, and others may pass.
fn ends_burst(errno: Errno) -> Option<io::Result<()>> {
    match errno {
        Errno::AGAIN => Some(Ok(())),
        errno if is_gone(errno) => Some(Err(io::ErrorKind::NotConnected.into())),
        _ => None,
    }
}

/// The offload metadata of a received frame. A header that contradicts the frame becomes
/// [`Offload::INVALID`], which the worker drops with its reason.
fn decode(header: &[u8], frame: &[u8]) -> Offload {
    virtio::decode(header, frame).unwrap_or(Offload::INVALID)
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::BADFD | Errno::NODEV)
}

impl Port for TapPort {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        if !self.receives {
            return Ok(0);
        }
        let before = batch.len();
        let mut bytes = 0;
        // Taken from the pool for each burst and not kept, because all ports of a worker share the
        // buffers that are in the cache. Without a buffer that is long enough for any frame,
        // nothing is read, since the frame would be truncated.
        let Some(mut large) = pool.alloc(SizeClass::Large) else { return Ok(0) };
        let (mut failure, mut is_empty) = (None, false);
        while !batch.is_full() && bytes < BURST_BYTES {
            let Some(mut small) = pool.alloc(SizeClass::Small) else { break };
            // Reads into one buffer, which costs the kernel less than several; short frames are
            // copied.
            match rustix::io::read(&self.queue, large.spare_mut()) {
                Ok(len) if len <= HEADER + Pool::SMALL => {
                    let read = &large.spare_mut()[..len.max(HEADER)];
                    let (header, frame) = read.split_at(HEADER);
                    small.fill(frame);
                    small.offload = decode(header, frame);
                    bytes += frame.len();
                    batch.push(small);
                }
                Ok(len) => {
                    pool.free(small);
                    large.set_len(len);
                    let (header, frame) = large.bytes().split_at(HEADER);
                    large.offload = decode(header, frame);
                    large.pull_front(HEADER);
                    bytes += large.len();
                    let Some(next) = pool.alloc(SizeClass::Large) else {
                        batch.push(large);
                        self.burst(batch.len() - before, false);
                        return Ok(batch.len() - before);
                    };
                    batch.push(mem::replace(&mut large, next));
                }
                Err(Errno::INTR) => pool.free(small),
                Err(errno) => {
                    pool.free(small);
                    is_empty = errno == Errno::AGAIN;
                    failure = Some(errno).filter(|_| !is_empty);
                    break;
                }
            }
        }
        pool.free(large);
        self.burst(batch.len() - before, is_empty);
        match (failure, batch.len() - before) {
            // Frames received before the failure count; the next call returns the error again.
            (Some(errno), 0) if is_gone(errno) => Err(io::ErrorKind::NotConnected.into()),
            (Some(errno), 0) => Err(errno.into()),
            (_, received) => Ok(received),
        }
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        if self.joins
            && let Some(runs) = UdpRuns::of(batch)
        {
            return self.tx_joined(pool, batch, &runs);
        }
        let mut sent = 0;
        let mut waiting = mem::take(batch).into_iter();
        let mut result = Ok(());
        for mut packet in waiting.by_ref() {
            let ended = match self.write(&mut packet) {
                Ok(()) => {
                    sent += 1;
                    pool.free(packet);
                    continue;
                }
                Err(errno) => ends_burst(errno),
            };
            batch.push(packet);
            if let Some(why) = ended {
                result = why;
                break;
            }
        }
        batch.extend(waiting);
        result.map(|()| sent)
    }

    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn take_lost(&mut self) -> u64 {
        let Some(losses) = &self.losses else { return 0 };
        // Read first: the cache line stays in all workers' caches while nothing is lost.
        if losses.uncounted.load(Relaxed) == 0 { 0 } else { losses.uncounted.swap(0, Relaxed) }
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.receives.then(|| self.queue.as_fd())
    }
}
