//! Two nodes on one underlay, with a pod on each. The far node is plain Linux with a bridge and a
//! VXLAN device. The near one is the port under test with a fixed tunnel, or also plain Linux, for
//! comparison.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use podswitch_core::packet::{Batch, Offload, Packet, Pool, PoolConfig, fit};
use podswitch_core::port::{Device, Port};
use podswitch_core::time::Clock;
use podswitch_linux::netlink::{InterfaceAddress, LinkSpec, Vxlan};
use podswitch_linux::nft::{Ingress, IngressDrop};
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::port::tap::{TapConfig, TapDevice};
use podswitch_linux::port::{
    udp_tunnel::{UdpTunnelConfig, UdpTunnelDevice},
    underlay_mac,
};
use podswitch_linux::{NetNs, Netlink};
use podswitch_vxlan::header::Vni;
use podswitch_vxlan::template::{
    DontFragment, Dscp, InnerFacts, Outer, PartialChecksum, Template, UdpChecksum,
};
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub(crate) const NEAR: [&str; 2] = ["192.0.2.1", "fd00:a::1"];
pub(crate) const FAR: [&str; 2] = ["192.0.2.2", "fd00:a::2"];
/// Addresses of the pods: IPv4 and IPv6 of the near one, then of the far one.
pub(crate) const POD: [[&str; 2]; 2] = [["10.9.0.1", "fd09::1"], ["10.9.0.2", "fd09::2"]];

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A tunnel between the two nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tunnel {
    pub(crate) v6: bool,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    /// GSO packets may leave unsegmented.
    pub(crate) tunnel_gso: bool,
}

impl Tunnel {
    pub(crate) fn near(&self) -> IpAddr {
        ip(NEAR[usize::from(self.v6)])
    }

    pub(crate) fn far(&self) -> IpAddr {
        ip(FAR[usize::from(self.v6)])
    }

    /// MTU of the pods on an underlay of 1500.
    pub(crate) fn mtu(&self) -> u32 {
        if self.v6 { 1430 } else { 1450 }
    }

    /// This end's address and the other's.
    pub(crate) fn ends(&self, is_far: bool) -> (IpAddr, IpAddr) {
        if is_far { (self.far(), self.near()) } else { (self.near(), self.far()) }
    }

    /// With the real MAC addresses of the two nodes.
    pub(crate) fn template_on(&self, underlay: &Underlay) -> Template {
        self.template_from(&underlay.near, &underlay.far, false)
    }

    fn template_from(&self, node: &NetNs, peer: &NetNs, is_far: bool) -> Template {
        let mac = |ns| Netlink::open(ns).unwrap().link("u0").unwrap().mac.unwrap();
        let checksum = if self.v6 { UdpChecksum::Computed } else { UdpChecksum::Zero };
        self.template_with(is_far, checksum).with_ethernet(mac(node), mac(peer))
    }

    /// The kernel writes the outer checksum.
    pub(crate) fn template(&self, is_far: bool) -> Template {
        self.template_with(is_far, UdpChecksum::Zero)
    }

    fn template_with(&self, is_far: bool, checksum: UdpChecksum) -> Template {
        let (near, far) = self.ends(is_far);
        self.template_of(near, far, checksum)
    }

    /// The same tunnel between other addresses.
    pub(crate) fn template_between(&self, near: IpAddr, far: IpAddr) -> Template {
        self.template_of(near, far, UdpChecksum::Zero)
    }

    fn template_of(&self, near: IpAddr, far: IpAddr, checksum: UdpChecksum) -> Template {
        Template::new(&Outer {
            ethernet: Some((underlay_mac(near), underlay_mac(far))),
            port: self.port,
            dscp: Dscp::Inherit,
            dont_fragment: DontFragment::Set,
            checksum,
            ..Outer::new(near, far, Vni::new(self.vni).unwrap())
        })
        .unwrap()
    }

    pub(crate) fn config(&self, local: IpAddr) -> UdpTunnelConfig {
        let (port, tunnel_gso) = (self.port, self.tunnel_gso);
        UdpTunnelConfig { port, tunnel_gso, ..UdpTunnelConfig::new(&[local]) }
    }

    pub(crate) fn device(&self, ns: &NetNs, is_far: bool) -> UdpTunnelDevice {
        let local = self.ends(is_far).0;
        UdpTunnelDevice::new(ns, self.config(local)).unwrap()
    }
}

/// Two connected nodes.
pub(crate) struct Underlay {
    pub(crate) near: NetNs,
    pub(crate) far: NetNs,
}

impl Underlay {
    pub(crate) fn new() -> Self {
        let (near, far) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
        let spec = LinkSpec::new("u0").up();
        Netlink::open(&near).unwrap().add_veth(&spec, &spec, &far).unwrap();
        for (ns, addresses) in [(&near, NEAR), (&far, FAR)] {
            let mut netlink = Netlink::open(ns).unwrap();
            let index = netlink.link("u0").unwrap().index;
            for (address, prefix) in addresses.iter().zip([24, 64]) {
                add_address(&mut netlink, index, ip(address), prefix);
            }
        }
        Self { near, far }
    }
}

pub(crate) fn add_address(netlink: &mut Netlink, index: u32, address: IpAddr, prefix: u8) {
    netlink.add_address(index, InterfaceAddress::new(address, prefix).unwrap()).unwrap();
    netlink.wait_until_local(address).unwrap();
}

/// A pod on a plain Linux node: veth, bridge, VXLAN device towards the other node.
pub(crate) fn kernel_pod(node: &NetNs, tunnel: &Tunnel, is_far: bool) -> NetNs {
    let pod = NetNs::anonymous().unwrap();
    let (local, remote) = tunnel.ends(is_far);
    let mut netlink = Netlink::open(node).unwrap();
    let bridge = netlink.add_bridge(&LinkSpec::new("br0").mtu(tunnel.mtu()).up()).unwrap();
    let vxlan = Vxlan {
        vni: tunnel.vni,
        local: Some(local),
        remote: Some(remote),
        port: tunnel.port,
        learning: true,
        link: None,
    };
    let vxlan = netlink.add_vxlan(&LinkSpec::new("vx0").mtu(tunnel.mtu()).up(), &vxlan).unwrap();
    let inside = LinkSpec::new("eth0").mtu(tunnel.mtu()).up();
    let outside = LinkSpec::new("pod0").mtu(tunnel.mtu()).up();
    let veth = netlink.add_veth(&outside, &inside, &pod).unwrap();
    for port in [vxlan, veth] {
        netlink.set_master(port, Some(bridge)).unwrap();
    }
    address_pod(&pod, usize::from(is_far));
    pod
}

fn address_pod(pod: &NetNs, which: usize) {
    let mut netlink = Netlink::open(pod).unwrap();
    let index = netlink.link("eth0").unwrap().index;
    for (address, prefix) in POD[which].iter().zip([24, 64]) {
        add_address(&mut netlink, index, ip(address), prefix);
    }
}

/// A pod on a node with the port under test: a TAP interface, and a thread that carries its frames
/// through the tunnel.
pub(crate) struct Near {
    pub(crate) pod: NetNs,
    carrier: Option<Carrier>,
}

struct Carrier {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    longest: Arc<[AtomicUsize; 2]>,
}

impl Near {
    pub(crate) fn new(node: &NetNs, tunnel: &Tunnel) -> Self {
        Self::at(node, tunnel, false)
    }

    /// The same on the far node.
    pub(crate) fn far(node: &NetNs, tunnel: &Tunnel) -> Self {
        Self::at(node, tunnel, true)
    }

    fn at(node: &NetNs, tunnel: &Tunnel, is_far: bool) -> Self {
        let uplink = tunnel.device(node, is_far).open(0, 1).unwrap();
        Self::with(uplink, tunnel.template(is_far), tunnel, is_far)
    }

    /// Through the node's interface itself, by packet socket.
    pub(crate) fn raw(underlay: &Underlay, tunnel: &Tunnel, is_far: bool) -> Self {
        let (node, peer) = match is_far {
            false => (&underlay.near, &underlay.far),
            true => (&underlay.far, &underlay.near),
        };
        // The stack would report the port as closed.
        let drops = Ingress { udp_to: vec![tunnel.port], ..Ingress::default() };
        IngressDrop::install(node, "tunnel", "u0", &drops).unwrap();
        let config = PacketConfig { tunnel: Some(tunnel.port), ..PacketConfig::default() };
        let uplink = PacketDevice::new(node, "u0", config).unwrap().open(0, 1).unwrap();
        let template = tunnel.template_from(node, peer, is_far);
        Self::with(uplink, template, tunnel, is_far)
    }

    fn with(uplink: Box<dyn Port>, template: Template, tunnel: &Tunnel, is_far: bool) -> Self {
        let pod = NetNs::anonymous().unwrap();
        let config = TapConfig { mtu: tunnel.mtu(), ..TapConfig::new("eth0") };
        let mut tap = TapDevice::open(&pod, &config).unwrap();
        let mut netlink = Netlink::open(&pod).unwrap();
        let index = netlink.link("eth0").unwrap().index;
        netlink.set_up(index).unwrap();
        let tap = Device::open(&mut tap, 0, 1).unwrap();
        let template_port = tunnel.port.to_be_bytes();
        let stop = Arc::new(AtomicBool::new(false));
        let longest = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let (stopped, long) = (stop.clone(), longest.clone());
        let thread = std::thread::spawn(move || {
            let pool = Pool::new(PoolConfig::default());
            Loop { template_port, tap, uplink, template, pool, longest: long }.run(&stopped);
        });
        address_pod(&pod, usize::from(is_far));
        Self { pod, carrier: Some(Carrier { stop, thread, longest }) }
    }

    /// Stops; returns the length of the longest inner frame sent and received.
    pub(crate) fn stop(mut self) -> [usize; 2] {
        let carrier = self.carrier.take().unwrap();
        carrier.stop.store(true, Relaxed);
        carrier.thread.join().unwrap();
        [0, 1].map(|n| carrier.longest[n].load(Relaxed))
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            carrier.stop.store(true, Relaxed);
            let _ = carrier.thread.join();
        }
    }
}

struct Loop {
    template_port: [u8; 2],
    tap: Box<dyn Port>,
    uplink: Box<dyn Port>,
    template: Template,
    pool: Pool,
    longest: Arc<[AtomicUsize; 2]>,
}

impl Loop {
    fn run(&mut self, stop: &AtomicBool) {
        let clock = Clock::start();
        let mut quiet = None;
        while !stop.load(Relaxed) {
            if self.out() + self.back() > 0 {
                quiet = None;
                continue;
            }
            let now = clock.now();
            if now.since(*quiet.get_or_insert(now)) < Duration::from_micros(30) {
                std::thread::yield_now();
                continue;
            }
            quiet = None;
            if !self.uplink.arm() {
                continue;
            }
            let fds = [self.tap.poll_fd().unwrap(), self.uplink.poll_fd().unwrap()];
            let mut fds = [0, 1].map(|i: usize| PollFd::new(&fds[i], PollFlags::IN));
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 })).unwrap();
        }
    }

    fn out(&mut self) -> usize {
        let mut batch = Batch::new();
        let count = self.tap.rx(&mut self.pool, &mut batch).unwrap();
        let mut there = Batch::new();
        for mut packet in batch.drain(..) {
            self.longest[0].fetch_max(packet.len(), Relaxed);
            match encapsulate(&mut packet, &self.template) {
                true => there.push(packet),
                false => self.pool.free(packet),
            }
        }
        self.send(there, true);
        count
    }

    fn back(&mut self) -> usize {
        let mut batch = Batch::new();
        let count = self.uplink.rx(&mut self.pool, &mut batch).unwrap();
        let mut there = Batch::new();
        for mut packet in batch.drain(..) {
            let len = self.template.len();
            let port = self.template_port;
            if packet.len() < len + 14 || packet.bytes()[len - 14..len - 12] != port {
                self.pool.free(packet);
                continue;
            }
            decapsulate(&mut packet, len);
            self.longest[1].fetch_max(packet.len(), Relaxed);
            there.push(packet);
        }
        self.send(there, false);
        count
    }

    fn send(&mut self, mut batch: Batch, out: bool) {
        let port = if out { &mut self.uplink } else { &mut self.tap };
        let offloads = port.info().offloads;
        let mut fitted = Batch::new();
        let mut send = |pool: &mut Pool, fitted: &mut Batch| {
            port.tx(pool, fitted).unwrap();
            fitted.drain(..).for_each(|packet| pool.free(packet));
        };
        for packet in batch.drain(..) {
            let _ = fit(packet, offloads, &mut self.pool, &mut |pool: &mut Pool, packet| {
                fitted.push(packet);
                if fitted.is_full() {
                    send(pool, &mut fitted);
                }
            });
        }
        send(&mut self.pool, &mut fitted);
    }
}

/// Adds outer headers, as the switch does. False for packets that cannot be sent.
pub(crate) fn encapsulate(packet: &mut Packet, template: &Template) -> bool {
    let key = HashKey::new(3);
    let Ok(parsed) = parse(packet.bytes(), &key) else { return false };
    let offload = packet.offload;
    let partial = offload
        .csum_partial
        .then_some(PartialChecksum { start: offload.csum_start, offset: offload.csum_offset });
    let facts = InnerFacts { gso: offload.is_gso(), partial, ..InnerFacts::new(&parsed, &key) };
    packet.push_front(template.len());
    packet.offload.shift(template.len() as i32);
    template.encap(&facts, packet.bytes_mut()).is_ok()
}

/// Removes outer headers.
pub(crate) fn decapsulate(packet: &mut Packet, len: usize) {
    packet.pull_front(len);
    // The metadata described the outer header, and nothing remains to be done.
    if usize::from(packet.offload.csum_start) < len {
        packet.offload = Offload::default();
    }
    packet.offload.shift(-(len as i32));
    packet.offload.csum_valid = false;
}
