//! Helpers for tests in network namespaces: a peer that represents the network behind a port, and a
//! wire between two ports.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use podswitch_core::packet::{Batch, Packet, Pool, PoolConfig};
use podswitch_core::port::Port;
use podswitch_linux::attach::PodInterface;
use podswitch_linux::{NetNs, Netlink};
use podswitch_wire::addr::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Removes a named namespace when dropped.
pub struct NameGuard(pub String);

impl Drop for NameGuard {
    fn drop(&mut self) {
        let _ = NetNs::remove(&self.0);
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A pod's interface with an MTU of 1400 and these addresses; its MAC address is derived from the
/// first.
pub fn pod(addresses: &[&str]) -> PodInterface {
    let addresses: Vec<IpAddr> = addresses.iter().map(|a| ip(a)).collect();
    let last = match addresses[0] {
        IpAddr::V4(a) => a.octets(),
        IpAddr::V6(a) => *a.octets().last_chunk().unwrap(),
    };
    let mac = Mac([0x0a, 0x58, last[0], last[1], last[2], last[3]]);
    PodInterface { mtu: 1400, ..PodInterface::new(mac, addresses) }
}

/// Makes the kernel segment the data sent on `socket` into datagrams of `size` bytes.
pub fn set_udp_segment(socket: &UdpSocket, size: i32) {
    set_udp_option(socket, libc::UDP_SEGMENT, size);
}

fn set_udp_option(socket: &UdpSocket, option: i32, value: i32) {
    use std::os::fd::AsRawFd;
    // SAFETY: the option takes an `int`, which `value` is.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(result, 0);
}

fn wait(port: &dyn Port, timeout: Duration) -> bool {
    let Some(fd) = port.poll_fd() else { return false };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
    poll(&mut fds, Some(&timeout)).unwrap() > 0
}

/// The network behind a port: answers ARP and ND for the gateway and, if `echo` is set, returns
/// datagrams to their senders.
pub struct Peer {
    pub port: Box<dyn Port>,
    pub pool: Pool,
    pub echo: bool,
}

impl Peer {
    pub fn new(port: Box<dyn Port>) -> Self {
        Self { port, pool: Pool::new(PoolConfig::default()), echo: true }
    }

    /// Receives until a frame satisfies `wanted`, or for five seconds without any frame.
    pub fn run_until(&mut self, mut wanted: impl FnMut(&[u8]) -> bool) -> bool {
        self.run_until_packet(|packet| wanted(packet.bytes()))
    }

    pub fn run_until_packet(&mut self, mut wanted: impl FnMut(&Packet) -> bool) -> bool {
        let mut batch = Batch::new();
        let mut found = false;
        while !found && wait(&*self.port, Duration::from_secs(5)) {
            self.port.rx(&mut self.pool, &mut batch).unwrap();
            let mut answers = Batch::new();
            for packet in batch.drain(..) {
                found |= wanted(&packet);
                let answer = answer_gateway(packet.bytes())
                    .or_else(|| self.echo.then(|| echo(packet.bytes())).flatten());
                answers.extend(answer.map(|frame| Packet::from_frame(&frame)));
                self.pool.free(packet);
            }
            self.port.tx(&mut self.pool, &mut answers).unwrap();
            assert!(answers.is_empty(), "answers were refused");
        }
        found
    }

    /// Receives all waiting frames, and counts those that end with these bytes.
    pub fn drain(&mut self, end: &[u8]) -> usize {
        let mut count = 0;
        let mut batch = Batch::new();
        while wait(&*self.port, Duration::from_millis(100)) {
            self.port.rx(&mut self.pool, &mut batch).unwrap();
            for packet in batch.drain(..) {
                count += usize::from(packet.bytes().ends_with(end));
                self.pool.free(packet);
            }
        }
        count
    }
}

/// The reply to an ARP request for 169.254.1.1 or a neighbour solicitation for fe80::1.
fn answer_gateway(frame: &[u8]) -> Option<Vec<u8>> {
    let is_arp = frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1];
    if is_arp && frame[38..42] == [169, 254, 1, 1] {
        let mut reply = frame[..42].to_vec();
        reply.copy_within(6..12, 0);
        reply[6..12].fill(0xee);
        reply[21] = 2;
        reply.copy_within(22..32, 32);
        reply[22..28].fill(0xee);
        reply[28..32].copy_from_slice(&[169, 254, 1, 1]);
        return Some(reply);
    }
    let is_ns = frame.len() >= 78 && frame[12..14] == [0x86, 0xdd] && frame[54] == 135;
    if !is_ns || frame[62..78] != [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] {
        return None;
    }
    let source: [u8; 16] = frame[22..38].try_into().unwrap();
    if source == [0; 16] {
        return None;
    }
    let mut reply = frame[..78].to_vec();
    reply.copy_within(6..12, 0);
    reply[6..12].fill(0xee);
    reply[18..20].copy_from_slice(&32u16.to_be_bytes());
    reply[21] = 255;
    reply.copy_within(62..78, 22);
    reply[38..54].copy_from_slice(&source);
    reply[54..62].copy_from_slice(&[136, 0, 0, 0, 0xe0, 0, 0, 0]);
    reply.extend([2, 1, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee]);
    let sum = checksum(&reply[54..], &reply[22..54], 58);
    reply[56..58].copy_from_slice(&sum.to_be_bytes());
    Some(reply)
}

/// The Internet checksum of `data` and, with addresses, of a pseudo-header.
pub fn checksum(data: &[u8], addresses: &[u8], proto: u8) -> u16 {
    let mut sum: u32 = if addresses.is_empty() { 0 } else { u32::from(proto) + data.len() as u32 };
    for part in [data, addresses] {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The datagram with another payload; lengths and checksums are updated.
fn with_payload(datagram: &[u8], payload: &[u8]) -> Vec<u8> {
    let (l4, v4) = if datagram[12..14] == [8, 0] { (34, true) } else { (54, false) };
    let mut frame = datagram[..l4 + 8].to_vec();
    frame.extend(payload);
    let len = (8 + payload.len()) as u16;
    frame[l4 + 4..l4 + 6].copy_from_slice(&len.to_be_bytes());
    let addresses = if v4 {
        frame[16..18].copy_from_slice(&(len + 20).to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34], &[], 0);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        26..34
    } else {
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        22..54
    };
    frame[l4 + 6..l4 + 8].fill(0);
    let sum = checksum(&frame[l4..], &frame[addresses], 17);
    frame[l4 + 6..l4 + 8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    frame
}

/// Sends datagrams of two flows, alternately, in one burst into a pod. Checks that each arrives
/// unchanged, and that those of a flow arrived as one GSO packet.
pub fn check_joined(ns: &NetNs, peer: &mut Peer, local: &str, remote: &str) {
    peer.echo = false;
    let bind = || ns.enter(|| UdpSocket::bind((ip(local), 0))).unwrap().unwrap();
    let sockets = [bind(), bind()];
    let answers = sockets.each_ref().map(|socket| {
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.send_to(b"question", (ip(remote), 9999)).unwrap();
        let mut answer = None;
        peer.run_until(|frame| {
            answer = answer.take().or_else(|| echo(frame));
            answer.is_some()
        });
        answer.expect("the question")
    });
    // The last one is shorter.
    let payload = |flow: usize, number: usize| {
        vec![(flow * 100 + number) as u8; if number == 9 { 7 } else { 18 }]
    };
    let mut send = || {
        let frames = (0..20).map(|n| with_payload(&answers[n % 2], &payload(n % 2, n / 2)));
        let mut burst: Batch = frames.map(|frame| Packet::from_frame(&frame)).collect();
        assert_eq!(peer.port.tx(&mut peer.pool, &mut burst).unwrap(), 20);
        assert!(burst.is_empty());
    };
    send();
    let mut buffer = [0; 2048];
    for (flow, socket) in sockets.iter().enumerate() {
        for number in 0..10 {
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..len], payload(flow, number), "{local}: {flow} {number}");
        }
        set_udp_option(socket, libc::UDP_GRO, 1);
    }
    // A socket that accepts GSO packets shows that they arrived as one.
    send();
    for (flow, socket) in sockets.iter().enumerate() {
        let len = socket.recv(&mut buffer).unwrap();
        let whole: Vec<u8> = (0..10).flat_map(|number| payload(flow, number)).collect();
        assert_eq!(buffer[..len], whole, "{local}: {flow}");
    }
    // Frames that an interface refuses because it is down stay with the caller, in their order.
    let mut netlink = Netlink::open(ns).unwrap();
    let index = netlink.link("eth0").unwrap().index;
    netlink.set_down(index).unwrap();
    let frames: Vec<Vec<u8>> =
        (0..20).map(|n| with_payload(&answers[n % 2], &payload(n % 2, n / 2))).collect();
    let mut burst: Batch = frames.iter().map(|frame| Packet::from_frame(frame)).collect();
    assert_eq!(peer.port.tx(&mut peer.pool, &mut burst).unwrap_or(0), 0);
    assert!(burst.iter().map(Packet::bytes).eq(&frames), "{local}: what was refused");
    netlink.set_up(index).unwrap();
}

/// A UDP datagram returned to its sender.
fn echo(frame: &[u8]) -> Option<Vec<u8>> {
    let (addresses, len, l4) = match frame.get(12..14)? {
        [8, 0] if frame[23] == 17 => (26, 4, 34),
        [0x86, 0xdd] if frame[20] == 17 => (22, 16, 54),
        _ => return None,
    };
    let mut reply = frame.to_vec();
    reply[..6].copy_from_slice(&frame[6..12]);
    reply[6..12].copy_from_slice(&frame[..6]);
    reply[addresses..addresses + len].copy_from_slice(&frame[addresses + len..][..len]);
    reply[addresses + len..][..len].copy_from_slice(&frame[addresses..][..len]);
    reply[l4..l4 + 2].copy_from_slice(&frame[l4 + 2..l4 + 4]);
    reply[l4 + 2..l4 + 4].copy_from_slice(&frame[l4..l4 + 2]);
    // The sender left the checksum partial.
    reply[l4 + 6..l4 + 8].fill(0);
    let end = l4 + usize::from(u16::from_be_bytes([frame[l4 + 4], frame[l4 + 5]]));
    let sum = checksum(reply.get(l4..end)?, &reply[addresses..addresses + 2 * len], 17);
    reply[l4 + 6..l4 + 8].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    Some(reply)
}

/// Forwards frames between two pods as a router would: it answers for the gateway, and passes all
/// other frames to the other pod unchanged, with their offload metadata.
pub struct Wire {
    stop: Arc<AtomicBool>,
    longest: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Wire {
    pub fn start(left: (Box<dyn Port>, Mac), right: (Box<dyn Port>, Mac)) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let longest = Arc::new(AtomicUsize::new(0));
        let (stopped, long) = (Arc::clone(&stop), Arc::clone(&longest));
        let thread = thread::spawn(move || {
            let mut ends = [left, right];
            let mut pool = Pool::new(PoolConfig::default());
            while !stopped.load(Relaxed) {
                let mut moved = 0;
                for i in 0..2 {
                    moved += carry(&mut ends, i, &mut pool, &long);
                }
                if moved == 0 {
                    let fds = [0, 1].map(|i: usize| ends[i].0.poll_fd().unwrap());
                    let mut fds = [0, 1].map(|i: usize| PollFd::new(&fds[i], PollFlags::IN));
                    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap();
                }
            }
        });
        Self { stop, longest, thread }
    }

    /// Stops; returns the length of the longest frame that passed.
    pub fn stop(self) -> usize {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap();
        self.longest.load(Relaxed)
    }
}

fn carry(
    ends: &mut [(Box<dyn Port>, Mac); 2],
    from: usize,
    pool: &mut Pool,
    longest: &AtomicUsize,
) -> usize {
    let mut batch = Batch::new();
    let count = ends[from].0.rx(pool, &mut batch).unwrap();
    let (mut there, mut back) = (Batch::new(), Batch::new());
    for mut packet in batch.drain(..) {
        longest.fetch_max(packet.len(), Relaxed);
        if let Some(answer) = answer_gateway(packet.bytes()) {
            back.push(Packet::from_frame(&answer));
            pool.free(packet);
            continue;
        }
        let frame = packet.bytes_mut();
        if frame[0] & 1 == 1 {
            pool.free(packet);
            continue;
        }
        frame[..6].copy_from_slice(&ends[1 - from].1.0);
        frame[6..12].fill(0xee);
        there.push(packet);
    }
    ends[1 - from].0.tx(pool, &mut there).unwrap();
    ends[from].0.tx(pool, &mut back).unwrap();
    for packet in there.drain(..).chain(back.drain(..)) {
        pool.free(packet);
    }
    count
}

/// Switches TCP segmentation offload of an interface on or off (`ethtool -K NAME tso off`).
pub fn set_tso(ns: &NetNs, name: &str, on: bool) {
    const ETHTOOL_STSO: u32 = 0x1f;
    set_offload(ns, name, ETHTOOL_STSO, on);
}

/// Switches on or off whether an interface merges received segments (`ethtool -K NAME gro on`).
pub fn set_gro(ns: &NetNs, name: &str, on: bool) {
    const ETHTOOL_SGRO: u32 = 0x2c;
    set_offload(ns, name, ETHTOOL_SGRO, on);
}

/// Switches on or off whether an interface accepts GSO packets (`ethtool -K NAME sg off`, on
/// which all segmentation depends).
pub fn set_tunnel_offloads(ns: &NetNs, name: &str, on: bool) {
    const ETHTOOL_SSG: u32 = 0x19;
    set_offload(ns, name, ETHTOOL_SSG, on);
}

fn set_offload(ns: &NetNs, name: &str, command: u32, on: bool) {
    ethtool(ns, name, &mut [command, u32::from(on)]);
}

/// Switches a feature of an interface on or off by its name (`ethtool -K NAME FEATURE on`).
pub fn set_feature(ns: &NetNs, name: &str, feature: &str, on: bool) {
    const ETHTOOL_GSTRINGS: u32 = 0x1b;
    const ETHTOOL_GSSET_INFO: u32 = 0x37;
    const ETHTOOL_SFEATURES: u32 = 0x3b;
    const ETH_SS_FEATURES: u32 = 4;
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ethtool(ns, name, &mut info);
    // Names of 32 bytes.
    let count = info[4] as usize;
    let mut names = vec![0u32; 3 + count * 8];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    ethtool(ns, name, &mut names);
    let bytes: Vec<u8> = names[3..].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let is_it = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next() == Some(feature.as_bytes());
    let at = bytes.chunks(32).position(is_it).expect("a feature that the kernel knows");
    // Blocks of 32 features: a mask of the features to change, and their values.
    let blocks = count.div_ceil(32);
    let mut set = vec![0u32; 2 + blocks * 2];
    set[..2].copy_from_slice(&[ETHTOOL_SFEATURES, blocks as u32]);
    set[2 + at / 32 * 2] = 1 << (at % 32);
    set[3 + at / 32 * 2] = u32::from(on) << (at % 32);
    ethtool(ns, name, &mut set);
}

/// `value` must begin with an ethtool command and be as long as its own fields say.
fn ethtool(ns: &NetNs, name: &str, value: &mut [u32]) {
    use std::os::fd::AsRawFd;
    ns.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // SAFETY: all zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: SIOCETHTOOL reads an `ifreq` that points to the command's struct, which is as long
        // as the counts in it say; the kernel writes no more than that.
        let result =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        assert!(result >= 0, "{}", std::io::Error::last_os_error());
    })
    .unwrap();
}
