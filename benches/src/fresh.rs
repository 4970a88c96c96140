//! First packets of connections, with policies, in a cluster of 150,000 pods: the input of `miss`
//! and `instructions`.
//!
//! Every packet is a TCP SYN that belongs to no connection yet. Policies isolate both its ends, so
//! policy is evaluated at both ends and allows the packet; the connection is created and times out.
//! Time is virtual and passes so fast that the tables stay at some 400,000 connections. The senders
//! are up to 4,000 pods of this node that policies isolate. They take turns to send to all pods to
//! which they are allowed to send, each packet to another pod than the one before. With Services,
//! half of them send to all Services whose backends are the pods of the other half that they may
//! reach.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use etherparse::PacketBuilder;
use podswitch_core::config::{
    Attachment, Config, Endpoint, Gateway, LocalNode, PortConfig, PortRole,
};
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::engine::Limits;
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::packet::{Batch, Pool};
use podswitch_core::port::{Device, Offloads, Port, PortInfo};
use podswitch_core::time::Instant;
use podswitch_core::worker::Worker;
use podswitch_policy::rule::{Labels, Namespace};
use podswitch_policy::service::model::{
    Endpoint as Backend, EndpointSlice, Service, ServicePort, SlicePort, family_of,
};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;

use crate::world;

/// Maximum number of pods of this node; the switch has a few more ports.
const LOCAL: usize = 4_000;
/// Frames that a port receives in its turn, and number of ports that have a turn in one poll.
pub const BURST: usize = 16;
pub const WINDOW: usize = 250;
/// Virtual time from poll to poll. An unanswered connection times out after 240 s, and a sweep that
/// takes 100 polls for one round removes it. So about 100 polls' worth of connections are live.
const STEP: Duration = Duration::from_secs(10);
/// Number of polls until as many connections end as begin.
const SETTLED: usize = 250;
/// First source port of the clients.
const FIRST_PORT: u16 = 1024;
/// Number of backends of each Service if packets are sent to pods.
const PODS_OF_OTHERS: usize = 20;
/// Period with which the world's labels repeat.
const TEAMS: usize = 50;

/// Pods of one app in one namespace that policies isolate, by their numbers in the world.
struct Group {
    namespace: usize,
    app: usize,
    pods: Vec<usize>,
}

/// The case that is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// Policies in force.
    pub policies: usize,
    /// Services in force.
    pub services: usize,
    /// Packets are sent to the Services, otherwise directly to pods.
    pub via_service: bool,
    pub workers: usize,
}

impl Case {
    /// This number of policies and Services, packets directly to pods, one worker.
    pub fn of(objects: usize) -> Self {
        Self { policies: objects, services: objects, via_service: false, workers: 1 }
    }

    /// The same, with packets to the Services.
    pub fn via_service(objects: usize) -> Self {
        Self { via_service: true, ..Self::of(objects) }
    }
}

/// The first groups that the policies isolate, with as many pods of each as there is room for.
fn groups(policies: usize) -> Vec<Group> {
    let count = policies.min(world::NAMESPACES * world::APPS).min(LOCAL);
    let each = (LOCAL / count).min(world::PODS / world::NAMESPACES / world::APPS);
    let group = |number: usize| {
        let (namespace, app) = (number % world::NAMESPACES, number / world::NAMESPACES);
        let pod = |place: usize| namespace + world::NAMESPACES * (app + world::APPS * place);
        Group { namespace, app, pods: (0..each).map(pod).collect() }
    };
    (0..count).map(group).collect()
}

/// Whether pods of `from` may connect to the named port of pods of `to`, by the second ingress
/// rule and the last egress rule of their policies.
fn may_connect(from: &Group, to: &Group) -> bool {
    from.app == to.app && from.namespace % TEAMS == to.namespace % TEAMS
}

/// Pods that may all connect to each other's named port, and those of them that are clients. The
/// rest are backends.
struct Circle {
    pods: Vec<usize>,
    clients: usize,
}

/// Groups combined by the pods to which they may connect. If backends are needed, half of each are
/// clients, otherwise all are.
fn circles(groups: &[Group], backends: bool) -> Vec<Circle> {
    let mut circles: Vec<(&Group, Circle)> = Vec::new();
    for group in groups {
        let at = circles.iter().position(|(first, _)| may_connect(group, first));
        let at = at.unwrap_or_else(|| {
            circles.push((group, Circle { pods: Vec::new(), clients: 0 }));
            circles.len() - 1
        });
        circles[at].1.pods.extend(&group.pods);
    }
    let halved = |(_, circle): (_, Circle)| {
        let clients = if backends { circle.pods.len() / 2 } else { circle.pods.len() };
        Circle { clients, ..circle }
    };
    circles.into_iter().map(halved).collect()
}

/// Addresses of a Service.
fn cluster_ips(service: usize) -> [IpAddr; 2] {
    let v4 = 0x0a60_0000 + service as u32 + 1;
    let v6 = 0xfd60_u128 << 112 | (service as u128 + 1);
    [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())]
}

/// Port of the Services.
const PORT: u16 = 80;
/// The port that the world names `http`.
const TARGET: u16 = 8080;

/// Service `number`, and its slices: the backends belong to one circle, and the circles alternate.
fn service(number: usize, circles: &[Circle]) -> (Arc<Service>, [Arc<EndpointSlice>; 2]) {
    let name = format!("s{number}");
    let ips = cluster_ips(number);
    let mut service = Service::cluster_ip("bench", &name, ips);
    service.ports = vec![ServicePort::tcp("", PORT)];
    let circle = &circles[number % circles.len()];
    let slice = |family: usize| {
        let ready = |pod: &usize| Backend::ready(world::pod_addresses(*pod)[family]).on("here");
        Arc::new(EndpointSlice {
            namespace: "bench".into(),
            name: format!("{name}-{family}").into(),
            service: name.as_str().into(),
            family: family_of(ips[family]),
            ports: vec![SlicePort::tcp("", TARGET)],
            endpoints: circle.pods[circle.clients..].iter().map(ready).collect(),
        })
    };
    (Arc::new(service), [slice(0), slice(1)])
}

fn mac(port: usize) -> Mac {
    let [high, low] = (port as u16).to_be_bytes();
    Mac([0x0a, 0x58, 0, 0, high, low])
}

fn config(case: Case, local: &[usize], circles: &[Circle]) -> Config {
    let mut port_of = vec![None; world::PODS];
    for (port, pod) in local.iter().enumerate() {
        port_of[*pod] = Some(port);
    }
    let endpoint = |number: usize| {
        let pod = world::pod(number);
        let attachment = port_of[number].map(|port| Attachment {
            port: PortId(port as u16),
            mac: mac(port),
            mtu: 1500,
        });
        Arc::new(Endpoint {
            cookie: Cookie::new(pod.cookie),
            workload: pod.workload,
            node: if attachment.is_some() { "here".into() } else { pod.node },
            attachment,
            precedence: Default::default(),
        })
    };
    let namespace = |number: usize| {
        let team = format!("t{}", number % TEAMS);
        let labels: Labels = [("team", team.as_str())].into_iter().collect();
        Arc::new(Namespace { name: format!("ns{number}").into(), labels })
    };
    let port = |number: usize| PortConfig { port: PortId(number as u16), role: PortRole::Pod };
    let services: Vec<_> = match circles.iter().any(|circle| circle.clients < circle.pods.len()) {
        true => (0..case.services).map(|n| service(n, circles)).collect(),
        // Backends other than these pods.
        false => {
            let others: Vec<_> = (0..PODS_OF_OTHERS).map(|n| world::PODS - 1 - n).collect();
            let other = Circle { pods: others, clients: 0 };
            (0..case.services).map(|n| service(n, std::slice::from_ref(&other))).collect()
        }
    };
    Config {
        node: LocalNode { name: "here".into(), ..LocalNode::default() },
        ports: (0..local.len()).map(port).collect(),
        endpoints: (0..world::PODS).map(endpoint).collect(),
        namespaces: (0..world::NAMESPACES).map(namespace).collect(),
        policies: (0..case.policies).map(|n| Arc::new(world::network_policy(n))).collect(),
        slices: services.iter().flat_map(|(_, slices)| slices.clone()).collect(),
        services: services.into_iter().map(|(service, _)| service).collect(),
        ..Config::default()
    }
}

/// The ports whose turn it is, and the family.
#[derive(Default)]
struct Turn {
    first: AtomicUsize,
    v6: AtomicBool,
}

/// A port on which every frame begins a connection: the source port increases with every frame.
struct Fresh {
    info: PortInfo,
    turn: Arc<Turn>,
    own: usize,
    /// Ports that take turns.
    ports: usize,
    /// One frame for each peer, IPv4 and IPv6. Empty: this port has no turn.
    frames: Arc<[Vec<Vec<u8>>; 2]>,
    next: usize,
    source_port: u16,
    /// Number of workers, which divide the source ports among them.
    workers: u16,
}

impl Fresh {
    /// Offset of the TCP header by family.
    const L4: [usize; 2] = [34, 54];

    fn info(own: usize) -> PortInfo {
        PortInfo { name: format!("fresh{own}"), mac: None, mtu: 1500, offloads: Offloads::ALL }
    }
}

impl Port for Fresh {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let family = usize::from(self.turn.v6.load(Relaxed));
        let frames = &self.frames[family];
        let behind = self.own + self.ports - self.turn.first.load(Relaxed) % self.ports;
        if frames.is_empty() || behind % self.ports >= WINDOW {
            return Ok(0);
        }
        for _ in 0..BURST {
            self.next = (self.next + 1) % frames.len();
            let next = self.source_port.checked_add(self.workers);
            self.source_port = next.unwrap_or(FIRST_PORT + self.source_port % self.workers);
            let frame = &frames[self.next];
            let mut packet = pool.alloc_for(frame.len()).expect("a buffer");
            packet.fill(frame);
            // The lower half of the sequence number compensates for it in the checksum.
            let l4 = Self::L4[family];
            packet.bytes_mut()[l4..l4 + 2].copy_from_slice(&self.source_port.to_be_bytes());
            packet.bytes_mut()[l4 + 6..l4 + 8].copy_from_slice(&(!self.source_port).to_be_bytes());
            batch.push(packet);
        }
        Ok(BURST)
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let count = batch.len();
        batch.drain(..).for_each(|packet| pool.free(packet));
        Ok(count)
    }

    fn info(&self) -> &PortInfo {
        &self.info
    }
}

/// A pod's device.
struct Pod {
    turn: Arc<Turn>,
    own: usize,
    ports: usize,
    frames: Arc<[Vec<Vec<u8>>; 2]>,
}

impl Device for Pod {
    fn open(&mut self, index: usize, workers: usize) -> io::Result<Box<dyn Port>> {
        Ok(Box::new(Fresh {
            info: self.info(),
            turn: Arc::clone(&self.turn),
            own: self.own,
            ports: self.ports,
            frames: Arc::clone(&self.frames),
            next: self.own + index * 7,
            source_port: FIRST_PORT + index as u16,
            workers: workers as u16,
        }))
    }

    fn info(&self) -> PortInfo {
        Fresh::info(self.own)
    }
}

/// A SYN from source port 0 with the right checksum.
fn syn(from: (usize, IpAddr), (to, to_port): (IpAddr, u16)) -> Vec<u8> {
    let (port, address) = from;
    let ethernet = PacketBuilder::ethernet2(mac(port).0, Gateway::default().mac.0);
    let mut frame = Vec::new();
    match (address, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ethernet
            .ipv4(a.octets(), b.octets(), 64)
            .tcp(0, to_port, 0xffff, 65_535)
            .syn()
            .write(&mut frame, &[]),
        (IpAddr::V6(a), IpAddr::V6(b)) => ethernet
            .ipv6(a.octets(), b.octets(), 64)
            .tcp(0, to_port, 0xffff, 65_535)
            .syn()
            .write(&mut frame, &[]),
        _ => unreachable!("both of one family"),
    }
    .expect("a vector takes it");
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Workers for which every packet is the first of a connection, and whose tables are filled.
pub struct Rig {
    pub workers: Vec<Worker>,
    control: ControlPlane,
    turn: Arc<Turn>,
    ports: usize,
    /// Seconds.
    now: Arc<AtomicU64>,
}

/// One poll by a worker other than the first, with the same ports.
pub fn follow(worker: &mut Worker, now: &AtomicU64) -> usize {
    worker.poll(Instant::from_secs(now.load(Relaxed)))
}

impl Rig {
    /// Creates the rig for `case`.
    pub fn new(case: Case) -> Self {
        let groups = groups(case.policies);
        let circles = circles(&groups, case.via_service);
        let clients = circles.iter().enumerate().flat_map(|(at, circle)| {
            circle.pods[..circle.clients].iter().map(move |pod| (*pod, Some(at)))
        });
        let backends = circles
            .iter()
            .flat_map(|circle| circle.pods[circle.clients..].iter().map(|pod| (*pod, None)));
        let pods: Vec<(usize, Option<usize>)> = clients.chain(backends).collect();
        let ports = pods.iter().filter(|(_, circle)| circle.is_some()).count();
        let limits = Limits {
            connections: 1 << 20,
            connections_per_port: u32::MAX,
            flows: 1 << 20,
            ..Limits::default()
        };
        let mut control = ControlPlane::new(Options {
            limits,
            hash_key: Some(HashKey::new(7)),
            ..Options::default()
        });
        let turn = Arc::new(Turn::default());
        for (own, (pod, circle)) in pods.iter().enumerate() {
            let frames = [0, 1].map(|family| {
                let from = (own, world::pod_addresses(*pod)[family]);
                let Some(at) = *circle else { return Vec::new() };
                if case.via_service {
                    let own = (at..case.services).step_by(circles.len());
                    own.map(|n| syn(from, (cluster_ips(n)[family], PORT))).collect()
                } else {
                    let others = circles[at].pods.iter().filter(|peer| *peer != pod);
                    let to = |peer: &usize| (world::pod_addresses(*peer)[family], TARGET);
                    others.map(|peer| syn(from, to(peer))).collect()
                }
            });
            let frames = Arc::new(frames);
            let pod = Pod { turn: Arc::clone(&turn), own, ports, frames };
            let id = control.attach(Box::new(pod)).expect("a free port");
            assert_eq!(id.index(), own);
        }
        let workers = (0..case.workers).map(|_| control.add_worker().expect("a worker")).collect();
        let local: Vec<usize> = pods.iter().map(|(pod, _)| *pod).collect();
        control.apply(&config(case, &local, &circles)).expect("a good configuration");
        let mut rig = Self { workers, control, turn, ports, now: Arc::new(AtomicU64::new(1)) };
        for _ in 0..SETTLED {
            rig.poll();
            let (_, others) = rig.workers.split_at_mut(1);
            for worker in others {
                follow(worker, &rig.now);
            }
        }
        rig
    }

    /// Sets the family of further frames: IPv6 or IPv4.
    pub fn set_v6(&self, v6: bool) {
        self.turn.v6.store(v6, Relaxed);
    }

    /// Number of packets per poll.
    pub fn packets(&self) -> usize {
        WINDOW.min(self.ports) * BURST
    }

    /// One poll of the first worker, with the next ports.
    pub fn poll(&mut self) -> usize {
        let (now, turn, ports) = (&self.now, &self.turn, self.ports);
        poll_next(&mut self.workers[0], now, turn, ports)
    }

    /// Runs `first` with a poll of the first worker while the others are equally busy.
    pub fn beside_others(&mut self, first: impl FnOnce(&mut dyn FnMut() -> usize)) {
        let Self { workers, turn, ports, now, .. } = self;
        let stop = AtomicBool::new(false);
        let (one, others) = workers.split_at_mut(1);
        std::thread::scope(|scope| {
            for other in others {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        std::hint::black_box(follow(other, now));
                    }
                });
            }
            first(&mut || poll_next(&mut one[0], now, turn, *ports));
            stop.store(true, Relaxed);
        });
    }

    /// Checks that every frame so far was the first of a connection, and was forwarded.
    pub fn check(&self) {
        for worker in &self.workers {
            let counters = &worker.handle().counters;
            let received = counters.received.get();
            assert_eq!(counters.misses.get(), received, "every packet is a connection's first");
            assert_eq!(counters.forwarded.get(), received, "and is allowed");
        }
        let live = self.control.shared().tracker.len();
        assert!((100_000..900_000).contains(&live), "{live} connections live");
    }
}

fn poll_next(worker: &mut Worker, now: &AtomicU64, turn: &Turn, ports: usize) -> usize {
    let seconds = now.load(Relaxed) + STEP.as_secs();
    now.store(seconds, Relaxed);
    turn.first.store((turn.first.load(Relaxed) + WINDOW) % ports, Relaxed);
    worker.poll(Instant::from_secs(seconds))
}
