//! First packets of connections, under policies over a cluster of 150,000 pods: what `miss` and
//! `instructions` measure.
//!
//! Every packet is a TCP SYN that belongs to no connection yet. Policies isolate both its ends, so
//! each is judged twice, and allowed; the connection is made, remembered and, in its time, ended: time
//! is virtual and passes so fast that the tables stay at some 400,000 connections. Pods of this
//! node that policies isolate, up to 4,000 of them, take turns to send to all that they may send
//! to, each packet to another than the one before.

#[path = "../policy/world.rs"]
#[allow(dead_code, reason = "the policy bench uses the rest")]
mod world;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use etherparse::PacketBuilder;
use policy::rule::{Labels, Namespace};
use switch_core::config::{Attachment, Config, Endpoint, Gateway, LocalNode, PortConfig, PortRole};
use switch_core::control::{ControlPlane, Options};
use switch_core::engine::Limits;
use switch_core::id::{Cookie, PortId};
use switch_core::packet::{Batch, Pool};
use switch_core::port::{Device, Offloads, Port, PortInfo};
use switch_core::time::Instant;
use switch_core::worker::Worker;
use wire::addr::Mac;
use wire::flow_key::HashKey;

/// Pods of this node at most; the switch has a few ports more.
const LOCAL: usize = 4_000;
/// Frames that a port receives when it is its turn, and ports whose turn it is in one poll.
pub(crate) const BURST: usize = 16;
pub(crate) const WINDOW: usize = 250;
/// Virtual time from poll to poll. A connection that was never answered ends after 240 s and is
/// found to have ended by a sweep that takes 100 polls to go round: some 100 polls' worth live.
const STEP: Duration = Duration::from_secs(10);
/// Polls until as many connections end as begin.
const SETTLED: usize = 250;
/// Where the world's labels repeat.
const TEAMS: usize = 50;

/// Pods of one app of one namespace that policies isolate, as numbers of the world.
struct Group {
    namespace: usize,
    app: usize,
    pods: Vec<usize>,
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

fn mac(port: usize) -> Mac {
    let [high, low] = (port as u16).to_be_bytes();
    Mac([0x0a, 0x58, 0, 0, high, low])
}

fn config(policies: usize, local: &[usize]) -> Config {
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
        })
    };
    let namespace = |number: usize| {
        let team = format!("t{}", number % TEAMS);
        let labels: Labels = [("team", team.as_str())].into_iter().collect();
        Arc::new(Namespace { name: format!("ns{number}").into(), labels })
    };
    let port = |number: usize| PortConfig { port: PortId(number as u16), role: PortRole::Pod };
    Config {
        node: LocalNode { name: "here".into(), ..LocalNode::default() },
        ports: (0..local.len()).map(port).collect(),
        endpoints: (0..world::PODS).map(endpoint).collect(),
        namespaces: (0..world::NAMESPACES).map(namespace).collect(),
        policies: (0..policies).map(|n| Arc::new(world::network_policy(n))).collect(),
        ..Config::default()
    }
}

/// Whose turn it is, and with which family.
#[derive(Default)]
struct Turn {
    first: AtomicUsize,
    v6: AtomicBool,
}

/// A port whose every frame begins a connection: source ports go up with every frame.
struct Fresh {
    info: PortInfo,
    turn: Arc<Turn>,
    own: usize,
    ports: usize,
    /// One frame for each peer, IPv4 and IPv6.
    frames: [Vec<Vec<u8>>; 2],
    next: usize,
    source_port: u16,
}

impl Fresh {
    /// Offset of the TCP header by family.
    const L4: [usize; 2] = [34, 54];

    fn new(turn: &Arc<Turn>, own: usize, ports: usize, frames: [Vec<Vec<u8>>; 2]) -> Self {
        let offloads = Offloads::ALL;
        let info = PortInfo { name: format!("fresh{own}"), mac: None, mtu: 1500, offloads };
        let (turn, next, source_port) = (Arc::clone(turn), own, 1024);
        Self { info, turn, own, ports, frames, next, source_port }
    }
}

impl Port for Fresh {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let behind = self.own + self.ports - self.turn.first.load(Relaxed);
        if behind % self.ports >= WINDOW {
            return Ok(0);
        }
        let family = usize::from(self.turn.v6.load(Relaxed));
        let frames = &self.frames[family];
        for _ in 0..BURST {
            self.next = (self.next + 1) % frames.len();
            self.source_port = self.source_port.checked_add(1).unwrap_or(1024);
            let frame = &frames[self.next];
            let mut packet = pool.alloc_for(frame.len()).expect("a buffer");
            packet.fill(frame);
            // The lower half of the sequence number makes up for it in the checksum.
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

/// A device with a single end, made beforehand.
struct Once(PortInfo, Option<Fresh>);

impl Device for Once {
    fn open(&mut self, _index: usize, _workers: usize) -> io::Result<Box<dyn Port>> {
        let port = self.1.take().ok_or(io::ErrorKind::AlreadyExists)?;
        Ok(Box::new(port))
    }

    fn info(&self) -> PortInfo {
        self.0.clone()
    }
}

/// A SYN from source port 0 to the port that the world names `http`, its checksum right.
fn syn(from: (usize, IpAddr), to: IpAddr) -> Vec<u8> {
    let (port, address) = from;
    let ethernet = PacketBuilder::ethernet2(mac(port).0, Gateway::default().mac.0);
    let mut frame = Vec::new();
    match (address, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ethernet
            .ipv4(a.octets(), b.octets(), 64)
            .tcp(0, 8080, 0xffff, 65_535)
            .syn()
            .write(&mut frame, &[]),
        (IpAddr::V6(a), IpAddr::V6(b)) => ethernet
            .ipv6(a.octets(), b.octets(), 64)
            .tcp(0, 8080, 0xffff, 65_535)
            .syn()
            .write(&mut frame, &[]),
        _ => unreachable!("both of one family"),
    }
    .expect("a vector takes it");
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A worker to which every packet is a connection's first, and whose tables are as full as they get.
pub(crate) struct Rig {
    pub(crate) worker: Worker,
    control: ControlPlane,
    turn: Arc<Turn>,
    ports: usize,
    now: Instant,
}

impl Rig {
    /// Under so many policies.
    pub(crate) fn new(policies: usize) -> Self {
        let groups = groups(policies);
        let local: Vec<usize> = groups.iter().flat_map(|g| g.pods.iter().copied()).collect();
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
        let mut own = 0;
        for group in &groups {
            let friends = groups.iter().filter(|other| may_connect(group, other));
            let peers: Vec<usize> = friends.flat_map(|g| g.pods.iter().copied()).collect();
            for pod in &group.pods {
                let frames = [0, 1].map(|family| {
                    let from = (own, world::pod_addresses(*pod)[family]);
                    let others = peers.iter().filter(|peer| *peer != pod);
                    others.map(|peer| syn(from, world::pod_addresses(*peer)[family])).collect()
                });
                let port = Fresh::new(&turn, own, local.len(), frames);
                let device = Once(port.info.clone(), Some(port));
                let id = control.attach(Box::new(device)).expect("a free port");
                assert_eq!(id.index(), own);
                own += 1;
            }
        }
        let worker = control.add_worker().expect("a worker");
        control.apply(&config(policies, &local)).expect("a good configuration");
        let mut rig = Self { worker, control, turn, ports: own, now: Instant::from_secs(1) };
        for _ in 0..SETTLED {
            rig.poll();
        }
        rig
    }

    /// Frames are of IPv6 from now on, or of IPv4.
    pub(crate) fn set_v6(&self, v6: bool) {
        self.turn.v6.store(v6, Relaxed);
    }

    /// One poll: the next ports have their turn.
    pub(crate) fn poll(&mut self) -> usize {
        self.now = self.now + STEP;
        let first = self.turn.first.load(Relaxed);
        self.turn.first.store((first + WINDOW) % self.ports, Relaxed);
        self.worker.poll(self.now)
    }

    /// Every frame so far was the first of a connection, and passed.
    pub(crate) fn check(&self) {
        let counters = &self.worker.handle().counters;
        let received = counters.received.get();
        assert_eq!(counters.misses.get(), received, "every packet is a connection's first");
        assert_eq!(counters.forwarded.get(), received, "and is allowed");
        let live = self.control.shared().tracker.len();
        assert!((100_000..900_000).contains(&live), "{live} connections live");
    }
}
