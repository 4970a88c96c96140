//! Nodes in network namespaces, joined by an underlay, each with its own `vswitch run`, and real
//! sockets to test them. Everything is removed on drop.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use podswitch_linux::netlink::LinkSpec;
use podswitch_linux::port::tap;
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_testkit::privilege;
use podswitch_wire::addr::Mac;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use crate::Folder;
pub use crate::running::{Limit, PATIENCE, Running};

/// The longest wait for an answer before the request is repeated.
const SHORT: Duration = Duration::from_millis(400);

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address of our own")
}

/// A namespace without duplicate address detection.
pub fn namespace() -> NetNs {
    let ns = NetNs::anonymous().expect("a namespace");
    for (setting, value) in
        [("net/ipv6/conf/default/dad_transmits", "0"), ("net/ipv6/conf/default/accept_ra", "0")]
    {
        sysctl::set(&ns, setting, value).expect("set");
    }
    // In a user namespace only groups that it maps can be named.
    const PING_GROUPS: &str = "net/ipv4/ping_group_range";
    let all = sysctl::set(&ns, PING_GROUPS, "0 2147483647");
    all.or_else(|_| sysctl::set(&ns, PING_GROUPS, "0 0")).expect("set");
    let mut netlink = Netlink::open(&ns).expect("netlink");
    let lo = netlink.link("lo").expect("every namespace has one").index;
    netlink.set_up(lo).expect("on");
    ns
}

/// A segment that connects nodes: a bridge in a namespace.
pub struct Fabric {
    pub ns: NetNs,
    bridge: u32,
    mtu: u32,
    next: AtomicUsize,
}

impl Fabric {
    pub fn new(mtu: u32) -> Self {
        let ns = namespace();
        let mut netlink = Netlink::open(&ns).expect("netlink");
        let bridge = netlink.add_bridge(&LinkSpec::new("br0").mtu(mtu).up()).expect("a bridge");
        Self { ns, bridge, mtu, next: AtomicUsize::new(0) }
    }

    /// Connects a namespace to the segment through `eth0`. Returns the name of the bridge's port.
    pub fn plug(&self, ns: &NetNs, addresses: &[IpAddr], mac: Option<Mac>) -> String {
        let port = format!("port{}", self.next.fetch_add(1, Ordering::Relaxed));
        let (mut here, mut there) = (Netlink::open(&self.ns).unwrap(), Netlink::open(ns).unwrap());
        let mut far = LinkSpec::new("eth0").mtu(self.mtu).up();
        if let Some(mac) = mac {
            far = far.mac(mac);
        }
        let index = here.add_veth(&LinkSpec::new(&port).mtu(self.mtu).up(), &far, ns).unwrap();
        here.set_master(index, Some(self.bridge)).unwrap();
        let link = there.link("eth0").unwrap().index;
        for address in addresses {
            let prefix = if address.is_ipv4() { 24 } else { 64 };
            there.add_address(link, format!("{address}/{prefix}").parse().unwrap()).unwrap();
        }
        for address in addresses {
            there.wait_until_local(*address).unwrap();
        }
        port
    }
}

/// A pod with addresses of both families, in a namespace of its own.
pub struct Pod {
    pub name: String,
    pub ns: NetNs,
    pub addresses: [IpAddr; 2],
    kind: &'static str,
}

/// Node number `n` has the addresses 192.0.2.n and 2001:db8:1::n, as far as they are requested, and
/// the ranges 10.n.0.0/24 and fd00:n::/64.
pub struct Node {
    pub name: String,
    pub number: u8,
    pub ns: NetNs,
    pub addresses: Vec<IpAddr>,
    pub pods: Vec<Pod>,
    /// YAML between braces.
    pub annotations: String,
}

impl Node {
    /// A node with two pods, on the segment. `families`: those of the underlay.
    pub fn new(fabric: &Fabric, number: u8, families: &[bool], kinds: &[&'static str]) -> Self {
        let ns = namespace();
        let addresses: Vec<IpAddr> = families.iter().map(|v6| node_address(number, *v6)).collect();
        fabric.plug(&ns, &addresses, None);
        let is_tap_there = tap::is_available().is_ok();
        if !is_tap_there && kinds.contains(&"tap") {
            privilege::skip("pods with TAP interfaces", "no /dev/net/tun; they have veth pairs");
        }
        let pod = |(at, kind): (usize, &&'static str)| Pod {
            name: format!("p{number}-{at}"),
            ns: namespace(),
            addresses: [
                ip(&format!("10.{number}.0.{}", at + 2)),
                ip(&format!("fd00:{number}::{}", at + 2)),
            ],
            kind: if is_tap_there { kind } else { "veth" },
        };
        let pods = kinds.iter().enumerate().map(pod).collect();
        let name = format!("n{number}-{}-{}", std::process::id(), unique());
        Self { name, number, ns, addresses, pods, annotations: String::new() }
    }

    /// The node's objects and its pods'.
    pub fn manifest(&self) -> String {
        let Self { name, number, annotations, .. } = self;
        let address = |a: &IpAddr| format!("{{type: InternalIP, address: \"{a}\"}}");
        let addresses: Vec<String> = self.addresses.iter().map(address).collect();
        let mut text = format!(
            "---\napiVersion: v1\nkind: Node\n\
             metadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
             spec: {{podCIDRs: [10.{number}.0.0/24, \"fd00:{number}::/64\"]}}\n\
             status: {{addresses: [{}]}}\n",
            addresses.join(", ")
        );
        for Pod { name: pod, ns, addresses, kind } in &self.pods {
            let [v4, v6] = addresses;
            let netns = ns.path();
            let _ = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: a, \
                 annotations: {{podswitch.io/netns: {}, podswitch.io/port: {kind}}}}}\n\
                 spec: {{nodeName: {name}}}\n\
                 status: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n",
                netns.display()
            );
        }
        text
    }

    /// Starts the node's switch on the manifests of `folder`.
    pub fn start(&self, folder: &Folder, more: &[&str]) -> Running {
        let (manifests, netns) = (folder.text("state"), self.ns.path().display().to_string());
        let head = ["--json", "--stats", "0.3", "--node", &self.name, "--manifests", &manifests];
        Running::start(&[&head, &["--node-netns", &netns][..], more].concat())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Removes what a killed switch leaves for its next run: there is none.
        let _ = NetNs::remove(&format!("podswitch-{}", self.name));
    }
}

fn unique() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The node's address on the segment.
pub fn node_address(number: u8, v6: bool) -> IpAddr {
    if v6 { ip(&format!("2001:db8:1::{number}")) } else { ip(&format!("192.0.2.{number}")) }
}

/// Replaces the state atomically.
pub fn put(folder: &Folder, objects: &[String]) {
    let head = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    fs::write(folder.path("next"), [head, &objects.concat()].concat()).expect("written");
    fs::create_dir_all(folder.path("state")).expect("a folder");
    fs::rename(folder.path("next"), folder.path("state/state.yaml")).expect("renamed");
}

/// The MTU of an interface.
pub fn mtu(ns: &NetNs, name: &str) -> u32 {
    Netlink::open(ns).unwrap().link(name).unwrap().mtu
}

pub fn set_mtu(ns: &NetNs, name: &str, mtu: u32) {
    let mut netlink = Netlink::open(ns).unwrap();
    let index = netlink.link(name).unwrap().index;
    netlink.set_mtu(index, mtu).unwrap();
}

/// Serves TCP and UDP at `port` on both families: echoes all data.
pub fn serve(ns: &NetNs, port: u16) {
    let listener = ns.enter(|| TcpListener::bind(("::", port))).unwrap().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_read_timeout(Some(PATIENCE));
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..len]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let socket = ns.enter(|| UdpSocket::bind(("::", port))).unwrap().expect("bound");
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
}

fn pattern(at: usize) -> u8 {
    (at ^ at >> 8 ^ (at >> 16).wrapping_mul(31)) as u8
}

/// Sends bytes to a server of [`serve`] and checks that they are echoed, over one connection.
#[track_caller]
pub fn tcp(from: &NetNs, to: IpAddr, port: u16, bytes: usize) {
    try_tcp(from, to, port, bytes).unwrap_or_else(|e| panic!("TCP to [{to}]:{port}: {e}"));
}

pub fn try_tcp(from: &NetNs, to: IpAddr, port: u16, bytes: usize) -> io::Result<()> {
    let address = SocketAddr::new(to, port);
    let mut stream = from
        .enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)))
        .expect("entered")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let writing = thread::spawn(move || {
        let data: Vec<u8> = (0..bytes).map(pattern).collect();
        writer.write_all(&data)
    });
    let mut back = vec![0; bytes];
    stream.read_exact(&mut back)?;
    writing.join().expect("it ends")?;
    match back.iter().enumerate().position(|(at, byte)| *byte != pattern(at)) {
        None => Ok(()),
        Some(at) => Err(io::Error::other(format!("byte {at} came back as another"))),
    }
}

/// Sends datagrams of `len` bytes to a server of [`serve`] until one is echoed.
#[track_caller]
pub fn udp(from: &NetNs, to: IpAddr, port: u16, len: usize) {
    assert!(try_udp(from, to, port, len, PATIENCE), "no datagram comes back from [{to}]:{port}");
}

pub fn try_udp(from: &NetNs, to: IpAddr, port: u16, len: usize, patience: Duration) -> bool {
    let any: IpAddr = if to.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
    let socket = from.enter(|| UdpSocket::bind((any, 0))).expect("entered").expect("bound");
    socket.set_read_timeout(Some(SHORT)).expect("set");
    let limit = Limit::new(patience);
    let mut buffer = vec![0; 1 << 16];
    let data: Vec<u8> = (0..len).map(pattern).collect();
    while limit.left().is_some() {
        // Errors caused by earlier datagrams are reported here.
        let _ = socket.send_to(&data, (to, port));
        while let Ok((got, peer)) = socket.recv_from(&mut buffer) {
            if peer.ip() == to && buffer[..got] == data[..] {
                return true;
            }
        }
    }
    false
}

/// Sends datagrams to a server of [`serve`]; each must be echoed exactly once.
#[track_caller]
pub fn udp_once(from: &NetNs, to: IpAddr, port: u16) {
    const COUNT: usize = 20;
    let any: IpAddr = if to.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
    let socket = from.enter(|| UdpSocket::bind((any, 0))).expect("entered").expect("bound");
    socket.set_read_timeout(Some(SHORT)).expect("set");
    let (mut seen, mut buffer) = ([0; COUNT], [0; 64]);
    for _ in 0..20 {
        // A datagram that was lost on an overloaded machine is sent again.
        for missing in (0..COUNT).filter(|n| seen[*n] == 0) {
            let _ = socket.send_to(&[missing as u8], (to, port));
        }
        while let Ok((1, _)) = socket.recv_from(&mut buffer) {
            seen[usize::from(buffer[0])] += 1;
        }
        if !seen.contains(&0) {
            break;
        }
    }
    assert_eq!(seen, [1; COUNT], "datagrams that came back from [{to}]:{port}");
}

/// Whether the kernel may fragment the packets that it sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    Never,
    Allowed,
}

/// Pings with packets of `len` bytes, including the IP header. Returns whether a reply arrives; an
/// error if the kernel knows that the packet is too long.
pub fn ping(from: &NetNs, to: IpAddr, len: usize, cut: Cut) -> io::Result<bool> {
    let v6 = to.is_ipv6();
    let open = || match v6 {
        false => socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)),
        true => socket(AddressFamily::INET6, SocketType::DGRAM, Some(ipproto::ICMPV6)),
    };
    let fd = from.enter(open).expect("entered")?;
    match (v6, cut) {
        (false, Cut::Never) => sockopt::set_ip_mtu_discover(&fd, Ipv4PathMtuDiscovery::DO)?,
        (false, Cut::Allowed) => sockopt::set_ip_mtu_discover(&fd, Ipv4PathMtuDiscovery::DONT)?,
        (true, Cut::Never) => sockopt::set_ipv6_mtu_discover(&fd, Ipv6PathMtuDiscovery::DO)?,
        // The source fragments, according to the PMTU that it knows.
        (true, Cut::Allowed) => sockopt::set_ipv6_mtu_discover(&fd, Ipv6PathMtuDiscovery::WANT)?,
    }
    let socket = UdpSocket::from(fd);
    socket.set_read_timeout(Some(SHORT))?;
    let headers = if v6 { 40 } else { 20 };
    let mut packet: Vec<u8> = (0..len - headers).map(pattern).collect();
    packet[..8].copy_from_slice(&[if v6 { 128 } else { 8 }, 0, 0, 0, 0, 0, 0, 1]);
    let mut buffer = vec![0; 1 << 16];
    for _ in 0..8 {
        match socket.send_to(&packet, (to, 0)) {
            Err(error) if error.raw_os_error() == Some(EMSGSIZE) => return Err(error),
            _ => {}
        }
        while let Ok(got) = socket.recv(&mut buffer) {
            if buffer[8..got] == packet[8..] {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

const EMSGSIZE: i32 = 90;
