//! `hit/*`: what a packet costs whose flow is known, reception and transmission by memory ports
//! included. 64-byte packets, flows visited in a scattered order over the whole table.

#[path = "support/cpu_time.rs"]
mod cpu_time;

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cpu_time::CpuTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use policy::rule::{
    Labels, NetworkPolicy, Peer, Peers, PortRule, Ports, Protocol, Rule, Selector, Workload,
};
use switch_core::config::{
    Attachment, BridgeDomain, Config, Endpoint, LocalNode, PortConfig, PortRole, Vlans,
};
use switch_core::control::{ControlPlane, Options};
use switch_core::engine::Limits;
use switch_core::id::{Cookie, PortId};
use switch_core::packet::BATCH;
use switch_core::port::memory::Circle;
use switch_core::port::{Device, Offloads, Port, PortInfo};
use switch_core::time::Instant;
use switch_core::worker::Worker;
use wire::addr::Mac;

const GATEWAY: [u8; 6] = [0xee; 6];

/// A device whose single end was made beforehand.
struct Once(PortInfo, Option<Circle>);

impl Device for Once {
    fn open(&mut self, _index: usize, _workers: usize) -> std::io::Result<Box<dyn Port>> {
        let port = self.1.take().ok_or(std::io::ErrorKind::AlreadyExists)?;
        Ok(Box::new(port))
    }

    fn info(&self) -> PortInfo {
        self.0.clone()
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
    })
}

fn routed() -> Config {
    Config {
        node: LocalNode { name: "n".into(), ..LocalNode::default() },
        ports: (0..2).map(|n| PortConfig { port: PortId(n), role: PortRole::Pod }).collect(),
        endpoints: (0..2).map(endpoint).collect(),
        ..Config::default()
    }
}

fn bridged() -> Config {
    let role = || PortRole::Bridge { domain: "b".into(), vlans: Vlans::default() };
    let bridge = BridgeDomain { name: "b".into(), ageing_secs: 300, learn_limit: 1 << 20 };
    Config {
        ports: (0..2).map(|n| PortConfig { port: PortId(n), role: role() }).collect(),
        bridges: vec![Arc::new(bridge)],
        ..Config::default()
    }
}

/// As [`routed`], with `count` policies; the second pod's lets the first one in.
fn policed(count: usize) -> Config {
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

/// The `i`-th of `count` in an order without neighbours.
fn scattered(count: usize) -> impl Iterator<Item = usize> {
    let step = (count / 2 + count / 7) | 1;
    let step = (step..).find(|s| gcd(*s, count) == 1).unwrap_or(1);
    (0..count).map(move |i| (i * step) % count)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn udp(flow: usize, v6: bool) -> Vec<u8> {
    let ports = ((flow % 60_000) as u16 + 1024, (flow / 60_000) as u16 + 1);
    let ethernet = PacketBuilder::ethernet2(mac(0), GATEWAY);
    let mut frame = Vec::new();
    match (address(0, v6), address(1, v6)) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ethernet
            .ipv4(a.octets(), b.octets(), 64)
            .udp(ports.0, ports.1)
            .write(&mut frame, &[0; 18])
            .unwrap(),
        (IpAddr::V6(a), IpAddr::V6(b)) => ethernet
            .ipv6(a.octets(), b.octets(), 64)
            .udp(ports.0, ports.1)
            .write(&mut frame, &[0; 2])
            .unwrap(),
        _ => unreachable!("both of one family"),
    }
    frame
}

fn tcp(flow: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(0), GATEWAY)
        .ipv4([10, 1, 0, 0], [10, 1, 0, 1], 64)
        .tcp((flow % 60_000) as u16 + 1024, (flow / 60_000) as u16 + 1, 1, 1000)
        .ack(5)
        .write(&mut frame, &[0; 6])
        .unwrap();
    frame
}

fn plain(n: usize) -> Vec<u8> {
    let mut frame = vec![0; 64];
    frame[..6].copy_from_slice(&[2, 1, 0, 0, 0, 0]);
    frame[6..12].copy_from_slice(&[2, 0, 0, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

/// The frame that the receiver of `frame` would answer with: all addresses and ports turned
/// round. Checksums hold, since their sum is the same.
fn answer(frame: &[u8]) -> Vec<u8> {
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
    if frame[23] == 6 {
        // Acknowledges what came, and is acknowledged by what comes again.
        back[l4 + 4..l4 + 8].copy_from_slice(&frame[l4 + 8..l4 + 12]);
        back[l4 + 8..l4 + 12].copy_from_slice(&7u32.to_be_bytes());
    }
    back
}

struct Rig {
    worker: Worker,
    _control: ControlPlane,
    now: Instant,
}

fn rig(config: &Config, frames: Vec<Vec<u8>>) -> Rig {
    let limits = Limits {
        connections: 5 << 20,
        connections_per_port: u32::MAX,
        flows: 5 << 20,
        fdb: 1 << 21,
    };
    let mut control = ControlPlane::new(Options { limits, ..Options::default() });
    let info = PortInfo { name: "circle".into(), mac: None, mtu: 1500, offloads: Offloads::ALL };
    let count = frames.len();
    // The second port answers once: the bridge learns where it is, TCP sides settle.
    let back: Vec<Vec<u8>> = frames.iter().map(|frame| answer(frame)).collect();
    for frames in [frames, back] {
        let circle = Circle::new(info.clone(), frames);
        control.attach(Box::new(Once(info.clone(), Some(circle)))).unwrap();
    }
    let mut worker = control.add_worker().unwrap();
    control.apply(config).unwrap();
    let now = Instant::from_secs(1);
    for _ in 0..=count / BATCH {
        worker.poll(now);
    }
    control.detach(PortId(1)).unwrap();
    let sink = Circle::new(info.clone(), Vec::<Vec<u8>>::new());
    control.attach(Box::new(Once(info, Some(sink)))).unwrap();
    for _ in 0..=count / BATCH {
        worker.poll(now);
    }
    Rig { worker, _control: control, now }
}

fn measure(
    c: &mut Criterion<CpuTime>,
    name: &str,
    config: &Config,
    make: impl Fn(usize) -> Vec<u8>,
) {
    let mut group = c.benchmark_group(format!("hit/{name}"));
    group.throughput(Throughput::Elements(BATCH as u64));
    for (count, label) in [(1, "1"), (1_000, "1k"), (100_000, "100k"), (1_000_000, "1M")] {
        let mut rig = rig(config, scattered(count).map(&make).collect());
        group.bench_function(BenchmarkId::from_parameter(label), |b| {
            b.iter(|| black_box(rig.worker.poll(rig.now)));
        });
        let counters = rig.worker.handle().counters.clone();
        assert_eq!(
            counters.received.get(),
            counters.forwarded.get() + counters.dropped_total(),
            "every frame is accounted for"
        );
    }
    group.finish();
}

/// `hit/policy/N`: 1,000 flows under N policies.
fn measure_policies(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("hit/policy");
    group.throughput(Throughput::Elements(BATCH as u64));
    for count in [10, 1_000, 10_000] {
        let frames = scattered(1_000).map(|n| udp(n, false)).collect();
        let mut rig = rig(&policed(count), frames);
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| black_box(rig.worker.poll(rig.now)));
        });
        let counters = rig.worker.handle().counters.clone();
        assert_eq!(counters.dropped_total(), 0, "the policies let every packet through");
    }
    group.finish();
}

fn hit(c: &mut Criterion<CpuTime>) {
    measure_policies(c);
    measure(c, "l3", &routed(), |n| udp(n, false));
    measure(c, "l3_ipv6", &routed(), |n| udp(n, true));
    measure(c, "l3_tcp", &routed(), tcp);
    measure(c, "l2", &bridged(), plain);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    targets = hit
}
criterion_main!(benches);
