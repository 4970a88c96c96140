//! A node with Services: flows of a pod to cluster IPs. Their backends are a pod on the same node
//! or, for `full`, pods of another node behind the tunnel, with policies that isolate the client.
//! TCP connections are opened with a complete handshake; their later packets are measured.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use etherparse::PacketBuilder;
use podswitch_core::config::{
    Attachment, Config, Endpoint, LocalNode, PortConfig, PortRole, RemoteNode, TunnelConfig,
    VtepMac,
};
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::packet::{BATCH, Batch, Pool};
use podswitch_core::port::memory::FrameLoop;
use podswitch_core::port::{Port, PortInfo};
use podswitch_policy::rule::{
    Labels, NetworkPolicy, Peer, Peers, PortRule, Ports, Protocol, Rule, Selector, Workload,
};
use podswitch_policy::service::model::{
    Endpoint as Backend, EndpointSlice, Service, ServicePort, SlicePort, family_of,
};
use podswitch_policy::service::table::{Lookup, Origin};
use podswitch_vxlan::template::{InnerFacts, Outer, Template};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{FlowKey, HashKey, proto};
use podswitch_wire::parse::parse;

use crate::rig::{Ends, Rig, control_plane, port_info};

pub const SERVICES: usize = 200;
const ENDPOINTS: usize = 25;
const GATEWAY: [u8; 6] = [0xee; 6];
const CLIENT: [u8; 6] = [0x0a, 0x58, 10, 1, 0, 2];
const SERVER: [u8; 6] = [0x0a, 0x58, 10, 1, 0, 3];
const UNDERLAY: [Mac; 2] = [Mac([0x0a, 0x58, 192, 168, 0, 1]), Mac([0x0a, 0x58, 192, 168, 0, 2])];
const VTEP: [Mac; 2] = [Mac([0x0e, 0x58, 192, 168, 0, 1]), Mac([0x0e, 0x58, 192, 168, 0, 2])];
const PORT: u16 = 80;
const TARGET: u16 = 8080;

/// The kind of connections of a figure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// Backends behind the tunnel, with policies; otherwise a pod of the same node, without
    /// policies.
    pub full: bool,
    pub v6: bool,
    pub tcp: bool,
}

fn wide(v6: bool, group: u8, number: usize) -> IpAddr {
    let [.., a, b] = (number as u32).to_be_bytes();
    if v6 {
        let mut bytes = [0; 16];
        (bytes[0], bytes[1], bytes[14], bytes[15]) = (0xfd, group, a, b);
        bytes.into()
    } else {
        [10, group, a, b].into()
    }
}

fn client(v6: bool) -> IpAddr {
    wide(v6, 1, 2)
}

fn vip(v6: bool, service: usize) -> IpAddr {
    wide(v6, 96, service + 1)
}

/// The backends of all Services are in one range; each Service has a part of it.
fn backend(full: bool, v6: bool, number: usize) -> IpAddr {
    wide(v6, if full { 2 } else { 3 }, number % (SERVICES * ENDPOINTS) + 1)
}

fn pod(name: String, addresses: Vec<IpAddr>, at: Option<(u16, [u8; 6])>) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        cookie: Cookie::new(format!("Pod/bench/{name}")),
        workload: Workload {
            namespace: "bench".into(),
            name: name.into(),
            labels: Labels::new([("app".into(), if at.is_some() { "a" } else { "b" }.into())]),
            addresses,
            ports: Vec::new(),
            host_network: false,
        },
        node: if at.is_some() { "n1" } else { "n2" }.into(),
        attachment: at.map(|(port, mac)| Attachment {
            port: PortId(port),
            mac: Mac(mac),
            mtu: 1450,
        }),
        precedence: Default::default(),
    })
}

/// `policies` for the client's egress and the servers' ingress; one of each allows the connections.
fn policies(count: usize) -> Vec<Arc<NetworkPolicy>> {
    let app = |name: &str| Selector::of_labels(Labels::new([("app".into(), name.into())]));
    let rule = |peer: &str, ports| {
        let peer = Peer::Selectors { pods: Some(app(peer)), namespaces: None };
        Rule { peers: Peers::AnyOf(vec![peer]), ports }
    };
    let open = || {
        let all = [Protocol::Tcp, Protocol::Udp].map(PortRule::Every);
        Ports::AnyOf(all.to_vec())
    };
    let policy = |n: usize| {
        let (name, other) = (format!("policy{n}"), format!("x{n}"));
        let allows = n == 0;
        Arc::new(NetworkPolicy {
            cookie: format!("NetworkPolicy/bench/{name}").into(),
            namespace: "bench".into(),
            name: name.into(),
            pods: if allows { Selector::everything() } else { app(&other) },
            ingress: Some(vec![rule("a", open())]),
            egress: Some(vec![rule(if allows { "b" } else { "c" }, open())]),
        })
    };
    (0..count).map(policy).collect()
}

fn config(full: bool) -> Config {
    let both = |of: &dyn Fn(bool) -> IpAddr| vec![of(false), of(true)];
    let ports = [(Protocol::Tcp, "t"), (Protocol::Udp, "u")];
    let service = |n: usize| {
        let port = |(protocol, name)| ServicePort { protocol, ..ServicePort::tcp(name, PORT) };
        let mut service =
            Service::cluster_ip("bench", &format!("s{n}"), [vip(false, n), vip(true, n)]);
        service.ports = ports.map(port).to_vec();
        Arc::new(service)
    };
    let slice = |n: usize, v6: bool| {
        let port = |(protocol, name)| SlicePort { protocol, ..SlicePort::tcp(name, TARGET) };
        let of = |i: usize| {
            Backend::ready(backend(full, v6, n * ENDPOINTS + i)).on(if full { "n2" } else { "n1" })
        };
        Arc::new(EndpointSlice {
            namespace: "bench".into(),
            name: format!("s{n}-{v6}").into(),
            service: format!("s{n}").into(),
            family: family_of(vip(v6, 0)),
            ports: ports.map(port).to_vec(),
            endpoints: (0..ENDPOINTS).map(of).collect(),
        })
    };
    let all = SERVICES * ENDPOINTS;
    let mut endpoints = vec![pod("client".into(), both(&client), Some((0, CLIENT)))];
    let second = if full {
        endpoints.extend(
            (0..all).map(|n| pod(format!("server{n}"), both(&|v6| backend(true, v6, n)), None)),
        );
        PortRole::Uplink { mac: UNDERLAY[0], mtu: 1500, tunnel: true, direct: false }
    } else {
        let addresses = (0..all).flat_map(|n| both(&|v6| backend(false, v6, n))).collect();
        endpoints.push(pod("server".into(), addresses, Some((1, SERVER))));
        PortRole::Pod
    };
    let node = RemoteNode {
        cookie: Cookie::new("Node/n2"),
        name: "n2".into(),
        labels: Labels::default(),
        addresses: vec![IpAddr::from([192, 168, 0, 2])],
        pod_cidrs: Vec::new(),
        vtep: VtepMac { ipv4: VTEP[1], ipv6: None },
        underlay_mac: UNDERLAY[1],
        precedence: Default::default(),
    };
    Config {
        node: LocalNode {
            name: "n1".into(),
            addresses: vec![IpAddr::from([192, 168, 0, 1])],
            vtep: VtepMac { ipv4: VTEP[0], ipv6: None },
            underlay_mac: UNDERLAY[0],
            ..LocalNode::default()
        },
        ports: vec![
            PortConfig { port: PortId(0), role: PortRole::Pod },
            PortConfig { port: PortId(1), role: second },
        ],
        endpoints,
        policies: if full { policies(100) } else { Vec::new() },
        services: (0..SERVICES).map(service).collect(),
        slices: (0..SERVICES).flat_map(|n| [slice(n, false), slice(n, true)]).collect(),
        nodes: if full { vec![Arc::new(node)] } else { Vec::new() },
        tunnel: full.then(TunnelConfig::default),
        ..Config::default()
    }
}

/// A frame of an end: TCP with sequence number, acknowledgment and SYN, or UDP.
fn frame(
    macs: ([u8; 6], [u8; 6]),
    (from, sport): (IpAddr, u16),
    (to, dport): (IpAddr, u16),
    tcp: Option<(u32, Option<u32>, bool)>,
) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(macs.0, macs.1);
    let ip = match (from, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ethernet.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => ethernet.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("both of one family"),
    };
    let mut frame = Vec::new();
    let written = match tcp {
        None => {
            ip.udp(sport, dport).write(&mut frame, &[0; 18][..if from.is_ipv4() { 18 } else { 2 }])
        }
        Some((seq, ack, syn)) => {
            let mut segment = ip.tcp(sport, dport, seq, 1000);
            segment = if syn { segment.syn() } else { segment };
            segment = if let Some(ack) = ack { segment.ack(ack) } else { segment };
            // A packet that opens a connection has no payload, so that the reply acknowledges all
            // of it.
            let data = if from.is_ipv4() && !syn { 6 } else { 0 };
            segment.write(&mut frame, &[0; 6][..data])
        }
    };
    written.expect("memory takes it");
    frame
}

/// The frames of one end: those of each stage for a number of polls, then those of the last stage
/// forever.
struct Script {
    stages: Vec<(FrameLoop, usize)>,
    info: PortInfo,
    at: usize,
}

impl Port for Script {
    #[inline]
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let last = self.stages.len() - 1;
        while self.at < last && self.stages[self.at].1 == 0 {
            self.at += 1;
        }
        let (circle, left) = &mut self.stages[self.at];
        *left = left.saturating_sub(1);
        circle.rx(pool, batch)
    }

    #[inline]
    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        self.stages[0].0.tx(pool, batch)
    }

    fn info(&self) -> &PortInfo {
        &self.info
    }
}

/// All frames that the ends send for one flow: the opening packet, the reply, and later data.
struct Frames {
    opening: Vec<u8>,
    answer: Vec<u8>,
    data: Vec<u8>,
}

/// Workers that know the flows numbered `flows`, divided among them, and then receive only their
/// client's packets.
pub fn rig(case: Case, flows: impl Iterator<Item = usize>, workers: usize) -> Rig {
    let config = config(case.full);
    let mut control = control_plane();
    control.apply(&config).expect("a good configuration");
    let snapshot = control.snapshot();
    let tunnel = {
        let outer = Outer::new(config_address(1), config_address(0), TunnelConfig::default().vni);
        let ethernet = Some((UNDERLAY[1], UNDERLAY[0]));
        Template::new(&Outer { ethernet, ..outer }).expect("a tunnel")
    };
    let frames: Vec<Frames> = flows
        .map(|flow| {
            let asks = (client(case.v6), (flow / SERVICES % 60_000) as u16 + 1024);
            let asked = (vip(case.v6, flow % SERVICES), PORT);
            let protocol = if case.tcp { proto::TCP } else { proto::UDP };
            let key = FlowKey::new(asks.0, asked.0, protocol, asks.1, asked.1).expect("one family");
            let Lookup::Backend(chosen) = snapshot.services.lookup(&key, Origin::InCluster) else {
                panic!("a Service with backends")
            };
            let answers = (chosen.backend().address, chosen.backend().port);
            let segment = |seq, ack, syn| case.tcp.then_some((seq, ack, syn));
            let mine = (CLIENT, GATEWAY);
            let theirs = if case.full { (VTEP[1].0, VTEP[0].0) } else { (SERVER, GATEWAY) };
            let answer = frame(theirs, answers, asks, segment(4, Some(1), true));
            Frames {
                opening: frame(mine, asks, asked, segment(0, None, true)),
                answer: if case.full { wrapped(&tunnel, &answer) } else { answer },
                data: frame(mine, asks, asked, segment(1, Some(5), false)),
            }
        })
        .collect();
    let info = port_info("script");
    let rounds = frames.len().div_ceil(workers) / BATCH + 1;
    let ends = |stages: &dyn Fn(usize) -> Vec<(FrameLoop, usize)>| {
        let port = |n| Some(Script { stages: stages(n), info: info.clone(), at: 0 });
        Box::new(Ends(info.clone(), (0..workers).map(port).collect()))
    };
    let circle = |n: usize, of: &dyn Fn(&Frames) -> Vec<u8>| {
        FrameLoop::new(info.clone(), frames.iter().skip(n).step_by(workers).map(of))
    };
    let nothing = || FrameLoop::new::<Vec<u8>>(info.clone(), []);
    let asks = ends(&|n| {
        let opening = circle(n, &|f| f.opening.clone());
        let data = circle(n, &|f| f.data.clone());
        vec![(opening, rounds), (nothing(), rounds), (data, usize::MAX)]
    });
    let answers = ends(&|n| {
        let answer = circle(n, &|f| f.answer.clone());
        vec![(nothing(), rounds), (answer, rounds), (nothing(), usize::MAX)]
    });
    Rig::settled(control, asks, answers, workers, 4 * rounds)
}

fn config_address(node: u8) -> IpAddr {
    [192, 168, 0, 1 + node].into()
}

fn wrapped(tunnel: &Template, inner: &[u8]) -> Vec<u8> {
    let key = HashKey::new(1);
    let facts = InnerFacts::new(&parse(inner, &key).expect("a whole frame"), &key);
    let mut packet = vec![0; tunnel.len()];
    packet.extend_from_slice(inner);
    tunnel.encap(&facts, &mut packet).expect("it fits");
    packet
}
