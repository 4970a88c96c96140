//! Two pods or two bridged ports, and flows between them that the switch knows: the input of `hit`
//! and `instructions`.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use etherparse::PacketBuilder;
use podswitch_core::config::{
    Attachment, BridgeDomain, Config, Endpoint, LocalNode, PortConfig, PortRole, RemoteNode,
    TunnelConfig, Vlans, VtepMac,
};
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::engine::Limits;
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::packet::{BATCH, Batch, Pool};
use podswitch_core::port::memory::FrameLoop;
use podswitch_core::port::{Device, Offloads, Port, PortInfo};
use podswitch_core::time::Instant;
use podswitch_core::worker::Worker;
use podswitch_policy::rule::{
    Labels, NetworkPolicy, Peer, Peers, PortRule, Ports, Protocol, Rule, Selector, Workload,
};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;

pub const GATEWAY: [u8; 6] = [0xee; 6];

/// A device with a port for each worker, created beforehand.
pub struct Ends<P>(pub PortInfo, pub Vec<Option<P>>);

impl<P: Port + 'static> Device for Ends<P> {
    fn open(&mut self, index: usize, _workers: usize) -> io::Result<Box<dyn Port>> {
        let end = self.1.get_mut(index).and_then(Option::take);
        Ok(Box::new(end.ok_or(io::ErrorKind::AlreadyExists)?))
    }

    fn info(&self) -> PortInfo {
        self.0.clone()
    }
}

/// Replies to every flow in the first rounds, so that addresses are learned and TCP connections are
/// established. Later it discards all frames.
struct Answers {
    circle: FrameLoop,
    left: usize,
}

impl Port for Answers {
    #[inline]
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        self.left -= 1;
        self.circle.rx(pool, batch)
    }

    #[inline]
    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        self.circle.tx(pool, batch)
    }

    fn info(&self) -> &PortInfo {
        self.circle.info()
    }
}

fn mac(n: u8) -> [u8; 6] {
    [0x0a, 0x58, 10, 1, 0, n]
}

fn address(n: u8, v6: bool) -> IpAddr {
    if v6 {
        let mut a = [0; 16];
        (a[0], a[15]) = (0xfd, n);
        IpAddr::from(a)
    } else {
        IpAddr::from([10, 1, 0, n])
    }
}

fn endpoint(n: u8) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        cookie: Cookie::new(format!("Pod/bench/p{n}")),
        workload: Workload {
            namespace: "bench".into(),
            name: format!("p{n}").into(),
            labels: Labels::default(),
            addresses: vec![address(n, false), address(n, true)],
            ports: Vec::new(),
            host_network: false,
        },
        node: "n".into(),
        attachment: Some(Attachment { port: PortId(n.into()), mac: Mac(mac(n)), mtu: 1500 }),
        precedence: Default::default(),
    })
}

pub fn routed() -> Config {
    Config {
        node: LocalNode { name: "n".into(), ..LocalNode::default() },
        ports: (0..2).map(|n| PortConfig { port: PortId(n), role: PortRole::Pod }).collect(),
        endpoints: (0..2).map(endpoint).collect(),
        ..Config::default()
    }
}

pub fn bridged() -> Config {
    let role = || PortRole::Bridge { domain: "b".into(), vlans: Vlans::default() };
    let bridge = BridgeDomain { name: "b".into(), ageing_secs: 300, learn_limit: 1 << 20 };
    Config {
        ports: (0..2).map(|n| PortConfig { port: PortId(n), role: role() }).collect(),
        bridges: vec![Arc::new(bridge)],
        ..Config::default()
    }
}

/// As [`routed`], with `count` policies; one of the second pod's policies allows the first pod.
pub fn policed(count: usize) -> Config {
    let policy = |n: usize| {
        let label = |n: usize| Labels::new([("n".into(), n.to_string().into())]);
        Arc::new(NetworkPolicy {
            cookie: format!("NetworkPolicy/bench/{n}").into(),
            namespace: "bench".into(),
            name: n.to_string().into(),
            pods: Selector::of_labels(label(n + 1)),
            ingress: Some(vec![Rule {
                peers: Peers::AnyOf(vec![Peer::Selectors {
                    pods: Some(Selector::of_labels(label(n))),
                    namespaces: None,
                }]),
                ports: Ports::AnyOf(vec![PortRule::Every(Protocol::Udp)]),
            }]),
            egress: None,
        })
    };
    let mut config = routed();
    config.policies = (0..count).map(policy).collect();
    for (n, endpoint) in config.endpoints.iter_mut().enumerate() {
        let mut labelled = (**endpoint).clone();
        labelled.workload.labels = Labels::new([("n".into(), n.to_string().into())]);
        *endpoint = Arc::new(labelled);
    }
    config
}

/// MAC address of node `n` on the underlay, and of its VTEP.
fn node_mac(n: u8) -> Mac {
    Mac([0x0a, 0x58, 192, 168, 0, n])
}

fn vtep(n: u8) -> Mac {
    Mac([0x0e, 0x58, 192, 168, 0, n])
}

fn node_address(n: u8) -> [u8; 4] {
    [192, 168, 0, n]
}

/// As [`routed`], but pod `far` is on another node, and its port the uplink.
pub fn overlay(far: u8) -> Config {
    let mut config = routed();
    config.node.addresses = vec![node_address(1).into()];
    config.node.vtep.ipv4 = vtep(1);
    config.ports[usize::from(far)].role =
        PortRole::Uplink { mac: node_mac(1), mtu: 1500, tunnel: true, direct: false };
    let mut endpoint = (*config.endpoints[usize::from(far)]).clone();
    (endpoint.node, endpoint.attachment) = ("m".into(), None);
    config.endpoints[usize::from(far)] = Arc::new(endpoint);
    config.nodes.push(Arc::new(RemoteNode {
        cookie: Cookie::new("Node/m"),
        name: "m".into(),
        labels: Labels::default(),
        addresses: vec![node_address(2).into()],
        pod_cidrs: Vec::new(),
        vtep: VtepMac { ipv4: vtep(2), ipv6: None },
        underlay_mac: node_mac(2),
        precedence: Default::default(),
    }));
    config.tunnel = Some(TunnelConfig::default());
    config
}

/// A frame of a pod as the other node's switch sends it through the tunnel.
pub fn tunnelled(frame: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0, 0, 1, 0];
    payload.extend([vtep(1).0, vtep(2).0].concat());
    payload.extend(&frame[12..]);
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(node_mac(2).0, node_mac(1).0)
        .ipv4(node_address(2), node_address(1), 64)
        .udp(50_000, 4789)
        .write(&mut packet, &payload)
        .expect("fits");
    // Without a UDP checksum, as kernels send over IPv4.
    packet[40..42].fill(0);
    packet
}

/// The `i`-th of `count` numbers, in an order in which successive numbers are not neighbours.
pub fn scattered(count: usize) -> impl Iterator<Item = usize> {
    let step = (count / 2 + count / 7) | 1;
    let step = (step..).find(|s| gcd(*s, count) == 1).unwrap_or(1);
    (0..count).map(move |i| (i * step) % count)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The ports of a flow: unique for each flow, and never the tunnel's.
fn ports(flow: usize) -> (u16, u16) {
    ((flow % 60_000) as u16 + 5000, (flow / 60_000) as u16 + 1)
}

/// A datagram from the first pod to the second: 60 bytes, over IPv6 64.
pub fn udp(flow: usize, v6: bool) -> Vec<u8> {
    let (from, to) = ports(flow);
    let ethernet = PacketBuilder::ethernet2(mac(0), GATEWAY);
    let mut frame = Vec::new();
    match (address(0, v6), address(1, v6)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ethernet
            .ipv4(a.octets(), b.octets(), 64)
            .udp(from, to)
            .write(&mut frame, &[0; 18])
            .unwrap(),
        (IpAddr::V6(a), IpAddr::V6(b)) => ethernet
            .ipv6(a.octets(), b.octets(), 64)
            .udp(from, to)
            .write(&mut frame, &[0; 2])
            .unwrap(),
        _ => unreachable!("both of one family"),
    }
    frame
}

/// A segment of an established connection, as [`udp`].
pub fn tcp(flow: usize, v6: bool) -> Vec<u8> {
    let (from, to) = ports(flow);
    let ethernet = PacketBuilder::ethernet2(mac(0), GATEWAY);
    let mut frame = Vec::new();
    match (address(0, v6), address(1, v6)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ethernet
            .ipv4(a.octets(), b.octets(), 64)
            .tcp(from, to, 1, 1000)
            .ack(5)
            .write(&mut frame, &[0; 6])
            .unwrap(),
        (IpAddr::V6(a), IpAddr::V6(b)) => ethernet
            .ipv6(a.octets(), b.octets(), 64)
            .tcp(from, to, 1, 1000)
            .ack(5)
            .write(&mut frame, &[])
            .unwrap(),
        _ => unreachable!("both of one family"),
    }
    frame
}

/// A frame that only a bridge forwards, from station `n`.
pub fn plain(n: usize) -> Vec<u8> {
    let mut frame = vec![0; 64];
    frame[..6].copy_from_slice(&[2, 1, 0, 0, 0, 0]);
    frame[6..12].copy_from_slice(&[2, 0, 0, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// The reply to `frame`, with all addresses and ports exchanged. The checksums remain valid, since
/// the sums do not change.
pub fn answer(frame: &[u8]) -> Vec<u8> {
    let mut back = frame.to_vec();
    let turn = |back: &mut Vec<u8>, at: usize, len: usize| {
        let (a, b) = back[at..at + 2 * len].split_at_mut(len);
        a.swap_with_slice(b);
    };
    let l4 = match frame[12..14] {
        [0x08, 0x00] => {
            turn(&mut back, 26, 4);
            34
        }
        [0x86, 0xdd] => {
            turn(&mut back, 22, 16);
            54
        }
        _ => {
            turn(&mut back, 0, 6);
            return back;
        }
    };
    turn(&mut back, l4, 2);
    back[..6].copy_from_slice(&GATEWAY);
    back[6..12].copy_from_slice(&mac(1));
    let next_header = if l4 == 34 { 23 } else { 20 };
    if frame[next_header] == 6 {
        // Acknowledges the received segment, and is acknowledged by the next one.
        back[l4 + 4..l4 + 8].copy_from_slice(&frame[l4 + 8..l4 + 12]);
        back[l4 + 8..l4 + 12].copy_from_slice(&7u32.to_be_bytes());
    }
    back
}

/// A switch with room for all flows, and a fixed key, so that every run is the same.
pub fn control_plane() -> ControlPlane {
    let limits = Limits {
        connections: 5 << 20,
        connections_per_port: u32::MAX,
        flows: 5 << 20,
        fdb: 1 << 21,
    };
    let hash_key = Some(HashKey::new(7));
    ControlPlane::new(Options { limits, hash_key, ..Options::default() })
}

/// The properties of the ports.
pub fn port_info(name: &str) -> PortInfo {
    PortInfo { name: name.into(), mac: None, mtu: 1500, offloads: Offloads::ALL }
}

/// Workers whose tables contain all flows, and which receive only packets of them.
pub struct Rig {
    pub workers: Vec<Worker>,
    pub now: Instant,
    pub control: ControlPlane,
    /// Packets that missed while the rig was created.
    missed: u64,
}

impl Rig {
    /// Port 0 receives `frames` repeatedly, each worker its share. The switch forwards them to
    /// port 1.
    ///
    /// # Panics
    /// If a packet is dropped.
    pub fn new(config: &Config, frames: &[Vec<u8>], workers: usize) -> Self {
        Self::answered(config, frames, workers, answer)
    }

    /// As [`new`](Self::new), with the reply that each frame gets.
    ///
    /// # Panics
    /// If a packet is dropped.
    pub fn answered(
        config: &Config,
        frames: &[Vec<u8>],
        workers: usize,
        answer: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Self {
        let mut control = control_plane();
        control.apply(config).expect("a good configuration");
        let info = port_info("circle");
        let share = |worker: usize| frames.iter().skip(worker).step_by(workers);
        let rounds = frames.len() / workers / BATCH + 1;
        let asks = (0..workers).map(|n| Some(FrameLoop::new(info.clone(), share(n)))).collect();
        let answers = (0..workers).map(|n| {
            let circle = FrameLoop::new(info.clone(), share(n).map(|frame| answer(frame)));
            Some(Answers { circle, left: rounds })
        });
        let answers = Ends(info.clone(), answers.collect());
        Self::settled(control, Box::new(Ends(info, asks)), Box::new(answers), workers, 3 * rounds)
    }

    /// Port 0 and port 1 with these devices; each worker is polled this many times.
    ///
    /// # Panics
    /// If a worker cannot be made.
    pub fn settled(
        mut control: ControlPlane,
        first: Box<dyn Device>,
        second: Box<dyn Device>,
        workers: usize,
        polls: usize,
    ) -> Self {
        control.attach(first).expect("a free port");
        control.attach(second).expect("a free port");
        let made: Result<Vec<_>, _> = (0..workers).map(|_| control.add_worker()).collect();
        let mut rig = Self {
            workers: made.expect("workers"),
            now: Instant::from_secs(1),
            control,
            missed: 0,
        };
        for worker in &mut rig.workers {
            for _ in 0..polls {
                worker.poll(rig.now);
            }
        }
        rig.missed = rig.misses();
        rig
    }

    fn misses(&self) -> u64 {
        self.workers.iter().map(|w| w.handle().counters.misses.get()).sum()
    }

    /// Checks that every packet since the rig was created hit, and that none was ever dropped.
    pub fn check(&self) {
        for worker in &self.workers {
            let counters = &worker.handle().counters;
            assert_eq!(counters.dropped_total(), 0, "no packet is dropped");
            assert_eq!(counters.received.get(), counters.forwarded.get(), "all are accounted for");
        }
        assert_eq!(self.misses(), self.missed, "every packet belongs to a known flow");
    }
}
