//! A switch with memory ports, polled by the test in virtual time.
#![allow(clippy::disallowed_types, reason = "an observer tells the test what was dropped")]

pub mod frames;
pub mod overlay;
pub mod random;
pub mod services;
pub mod traffic;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use etherparse::PacketBuilder;
use podswitch_core::action::DropReason;
use podswitch_core::config::{
    Attachment, BridgeDomain, Cidr, Config, Endpoint, LocalNode, PortConfig, PortRole,
};
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::engine::{Dropped, Observer};
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::packet::Packet;
use podswitch_core::port::Offloads;
use podswitch_core::port::memory::{self, MemoryEnd};
use podswitch_core::stats::WorkerCounters;
use podswitch_core::time::Instant;
use podswitch_core::worker::Worker;
use podswitch_policy::rule::{
    Labels, NetworkPolicy, Peers, PortRule, Ports, Protocol, Rule, Selector, Workload,
};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;

pub const GATEWAY: Mac = Mac([0xee; 6]);
pub const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xfe]);
pub const HOST: usize = 3;

/// Three pods (ports 0 to 2), the node's port (3), virtual time.
pub struct Switch {
    pub control: ControlPlane,
    pub workers: Vec<Worker>,
    pub ends: Vec<MemoryEnd>,
    pub now: Instant,
    pub drops: Arc<Mutex<Vec<(u16, DropReason)>>>,
}

struct Collect(Arc<Mutex<Vec<(u16, DropReason)>>>);

impl Observer for Collect {
    fn dropped(&mut self, drop: &Dropped<'_>) {
        self.0.lock().unwrap().push((drop.trace.ingress.0, drop.reason));
    }
}

pub fn pod_mac(n: usize) -> Mac {
    Mac([0x0a, 0x58, 10, 1, 0, 10 + n as u8])
}

pub fn pod_v4(n: usize) -> [u8; 4] {
    [10, 1, 0, 10 + n as u8]
}

pub fn pod_v6(n: usize) -> [u8; 16] {
    let mut a = [0; 16];
    a[0] = 0xfd;
    a[15] = 10 + n as u8;
    a
}

pub fn config() -> Config {
    let endpoint = |n: usize| {
        Arc::new(Endpoint {
            cookie: Cookie::new(format!("Pod/default/p{n}")),
            workload: Workload {
                namespace: "default".into(),
                name: format!("p{n}").into(),
                labels: Labels::default(),
                addresses: vec![IpAddr::from(pod_v4(n)), IpAddr::from(pod_v6(n))],
                ports: Vec::new(),
                host_network: false,
            },
            node: "n1".into(),
            attachment: Some(Attachment { port: PortId(n as u16), mac: pod_mac(n), mtu: 1500 }),
            precedence: Default::default(),
        })
    };
    let port = |n: u16, role| PortConfig { port: PortId(n), role };
    Config {
        node: LocalNode {
            name: "n1".into(),
            addresses: vec!["192.168.0.1".parse().unwrap(), "fd00:1::1".parse().unwrap()],
            pod_cidrs: vec!["10.1.0.0/24".parse::<Cidr>().unwrap()],
            ..LocalNode::default()
        },
        ports: vec![
            port(0, PortRole::Pod),
            port(1, PortRole::Pod),
            port(2, PortRole::Pod),
            port(3, PortRole::Host { mac: HOST_MAC, mtu: 1500 }),
        ],
        endpoints: (0..3).map(endpoint).collect(),
        ..Config::default()
    }
}

impl Switch {
    pub fn new(config: &Config) -> Self {
        Self::with_workers(config, 1)
    }

    pub fn with_workers(config: &Config, workers: usize) -> Self {
        Self::with(config, workers, Options::default())
    }

    pub fn with(config: &Config, workers: usize, options: Options) -> Self {
        let options = Options { hash_key: Some(HashKey::new(7)), ..options };
        Self::with_control(ControlPlane::new(options), config, workers)
    }

    /// As [`with`](Self::with), for a control plane that may already have ports. The ports of the configuration, and
    /// those up to the node's port, are attached as the next ones; the configuration is not applied.
    pub fn unpublished(mut control: ControlPlane, config: &Config, workers: usize) -> Self {
        let mut ends = Vec::new();
        let last = config.ports.iter().map(|p| p.port.index()).max().unwrap_or(0);
        for n in 0..=last.max(HOST) {
            let (device, end) = memory::pair(format!("port{n}"), 4096, Offloads::ALL);
            control.attach(Box::new(device)).unwrap();
            ends.push(end);
        }
        let workers: Vec<Worker> = (0..workers).map(|_| control.add_worker().unwrap()).collect();
        let drops = Arc::new(Mutex::new(Vec::new()));
        control.observe(|_| Some(Box::new(Collect(drops.clone()))));
        Self { control, workers, ends, now: Instant::from_secs(100), drops }
    }

    fn with_control(control: ControlPlane, config: &Config, workers: usize) -> Self {
        let mut switch = Self::unpublished(control, config, workers);
        switch.control.apply(config).unwrap();
        switch
    }

    /// Sends one frame into `port` and polls worker 0.
    pub fn send(&mut self, port: usize, frame: &[u8]) {
        self.send_by(0, port, frame);
    }

    /// As [`send`](Self::send), with another worker.
    pub fn send_by(&mut self, worker: usize, port: usize, frame: &[u8]) {
        self.ends[port].send_frame(frame).unwrap();
        self.workers[worker].poll(self.now);
    }

    /// Every frame that left by `port`.
    pub fn recv(&mut self, port: usize) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.ends[port].recv_frame()).collect()
    }

    /// Drops since the last call, as (ingress port, reason).
    pub fn dropped(&mut self) -> Vec<(u16, DropReason)> {
        std::mem::take(&mut self.drops.lock().unwrap())
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        for worker in &mut self.workers {
            worker.poll(self.now);
        }
    }

    /// Lets `seconds` pass, with as many polls as the tables' sweeps need for a whole round.
    pub fn pass_slowly(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            let rest = Duration::from_nanos(end.as_nanos() - self.now.as_nanos());
            // Sweeps take ten seconds for a round. Time before that can be skipped without missing an event.
            let leap = rest.saturating_sub(Duration::from_secs(11));
            self.pass(leap.max(Duration::from_millis(100)).min(rest));
        }
    }

    /// Sends a packet with its offload metadata and polls worker 0.
    pub fn send_packet(&mut self, port: usize, packet: Packet) {
        self.ends[port].send(packet).unwrap();
        self.workers[0].poll(self.now);
    }

    /// Publishes `config` with an additional change that invalidates all flows but changes no verdict: no earlier plan
    /// is valid any more.
    pub fn forget(&mut self, config: &Config) {
        let name = format!("idle{}", self.control.snapshot().epoch).into();
        let idle = BridgeDomain { name, ageing_secs: 300, learn_limit: 1 };
        let mut config = config.clone();
        config.bridges.push(Arc::new(idle));
        self.control.apply(&config).unwrap();
    }

    /// The sum of a counter over all workers.
    pub fn count(&self, of: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.control.workers().map(|w| of(&w.counters)).fold(0, u64::wrapping_add)
    }

    /// Checks received = forwarded + consumed + dropped, over all workers, once nothing is held.
    pub fn assert_adds_up(&self) {
        let received = self.count(|c| c.received.get());
        let forwarded = self.count(|c| c.forwarded.get());
        let consumed = self.count(|c| c.consumed.get());
        let dropped = self.count(|c| c.dropped_total());
        assert_eq!(
            received,
            forwarded + consumed + dropped,
            "received = forwarded {forwarded} + consumed {consumed} + dropped {dropped}"
        );
    }
}

pub fn udp4(from: usize, to: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    udp4_ttl(from, to, ports, payload, 64)
}

pub fn udp4_ttl(from: usize, to: [u8; 4], ports: (u16, u16), payload: &[u8], ttl: u8) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(pod_mac(from).0, GATEWAY.0)
        .ipv4(pod_v4(from), to, ttl)
        .udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

pub fn udp6(from: usize, to: [u8; 16], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(pod_mac(from).0, GATEWAY.0)
        .ipv6(pod_v6(from), to, 64)
        .udp(ports.0, ports.1);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

pub struct Tcp {
    pub seq: u32,
    pub ack: Option<u32>,
    pub flags: &'static str,
    pub payload: usize,
}

pub fn tcp4(from: usize, to: usize, ports: (u16, u16), tcp: &Tcp) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2(pod_mac(from).0, GATEWAY.0)
        .ipv4(pod_v4(from), pod_v4(to), 64)
        .tcp(ports.0, ports.1, tcp.seq, 64_000);
    if let Some(ack) = tcp.ack {
        builder = builder.ack(ack);
    }
    for flag in tcp.flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'F' => builder.fin(),
            'R' => builder.rst(),
            'P' => builder.psh(),
            other => panic!("no TCP flag {other}"),
        };
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![0x55; tcp.payload]).unwrap();
    frame
}

/// Corrects the checksums of an IPv4 frame after its fields were changed.
pub fn fix_ipv4(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = podswitch_wire::checksum::sum(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let parsed = podswitch_wire::parse::parse(frame, &HashKey::new(1)).expect("parses");
    podswitch_wire::checksum::fill_l4(frame, &parsed);
}

/// The addresses of pod `n`: IPv4, IPv6.
pub fn addresses(n: usize) -> [IpAddr; 2] {
    [pod_v4(n).into(), pod_v6(n).into()]
}

/// A network-layer packet in a frame from the neighbour of `port` to the gateway.
pub fn framed(port: usize, packet: &[u8]) -> Vec<u8> {
    let from = if port == HOST { HOST_MAC } else { pod_mac(port) };
    let ethertype = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    frames::ethernet(GATEWAY, from, ethertype, packet)
}

/// Sets the MTU of pod `n`.
pub fn set_mtu(config: &mut Config, n: usize, mtu: u16) {
    let mut endpoint = (*config.endpoints[n]).clone();
    if let Some(attachment) = &mut endpoint.attachment {
        attachment.mtu = mtu;
    }
    config.endpoints[n] = Arc::new(endpoint);
}

/// Isolates every pod's ingress; UDP from any source to `ports` is allowed.
pub fn allow_udp(config: &mut Config, ports: &[u16]) {
    let port = |&port| PortRule::Range { protocol: Protocol::Udp, first: port, last: port };
    let rule = Rule { peers: Peers::Any, ports: Ports::AnyOf(ports.iter().map(port).collect()) };
    config.policies.push(Arc::new(NetworkPolicy {
        cookie: "NetworkPolicy/default/udp".into(),
        namespace: "default".into(),
        name: "udp".into(),
        pods: Selector::everything(),
        ingress: Some(vec![rule]),
        egress: None,
    }));
}
