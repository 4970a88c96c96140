//! The whole switch against the real kernel: pods in their own namespaces, real sockets, the
//! workers' own threads.

use podswitch_testkit::net;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use net::{ip, pod};
use podswitch_core::config::{Attachment, Config, Endpoint, LocalNode, PortConfig, PortRole};
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::id::Cookie;
use podswitch_linux::NetNs;
use podswitch_linux::attach::{TapOptions, attach_tap};
use podswitch_policy::rule::{Labels, Workload};

const PODS: [[&str; 2]; 2] = [["10.9.0.2", "fd09::2"], ["10.9.0.3", "fd09::3"]];

struct Rig {
    control: ControlPlane,
    pods: Vec<NetNs>,
}

fn rig(workers: usize) -> Rig {
    let mut control = ControlPlane::new(Options::default());
    control.set_workers(workers).unwrap();
    let mut config = Config {
        node: LocalNode { name: "n".into(), ..LocalNode::default() },
        ..Config::default()
    };
    let mut pods = Vec::new();
    for (n, addresses) in PODS.iter().enumerate() {
        let ns = NetNs::anonymous().unwrap();
        let interface = pod(addresses);
        let options = TapOptions { multi_queue: workers > 1, ..TapOptions::default() };
        let device = attach_tap(&ns, &interface, options).unwrap();
        let port = control.attach(Box::new(device)).unwrap();
        config.ports.push(PortConfig { port, role: PortRole::Pod });
        config.endpoints.push(Arc::new(Endpoint {
            cookie: Cookie::new(format!("Pod/test/p{n}")),
            workload: Workload {
                namespace: "test".into(),
                name: format!("p{n}").into(),
                labels: Labels::default(),
                addresses: addresses.iter().map(|a| ip(a)).collect(),
                ports: Vec::new(),
                host_network: false,
            },
            node: "n".into(),
            attachment: Some(Attachment { port, mac: interface.mac, mtu: 1400 }),
            precedence: Default::default(),
        }));
        pods.push(ns);
    }
    let epoch = control.apply(&config).unwrap();
    control.wait(epoch, Duration::from_secs(5)).unwrap();
    Rig { control, pods }
}

fn echo_udp(rig: &Rig, size: usize, server: IpAddr, client: IpAddr) {
    let socket = rig.pods[1].enter(|| UdpSocket::bind((server, 5000))).unwrap().unwrap();
    let asking = rig.pods[0].enter(|| UdpSocket::bind((client, 0))).unwrap().unwrap();
    for s in [&socket, &asking] {
        s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    let question: Vec<u8> = (0..size).map(|i| i as u8).collect();
    asking.send_to(&question, (server, 5000)).unwrap();
    let mut buffer = vec![0; 70_000];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((from.ip(), &buffer[..len]), (client, &question[..]));
    socket.send_to(&buffer[..len], from).unwrap();
    let (len, from) = asking.recv_from(&mut buffer).unwrap();
    assert_eq!((from.ip(), &buffer[..len]), (server, &question[..]));
}

fn stream_tcp(rig: &Rig, megabytes: usize, server: IpAddr) -> Duration {
    let listener = rig.pods[1].enter(|| TcpListener::bind((server, 5001))).unwrap().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 17];
        let mut total = 0;
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break total,
                n => total += n,
            }
        }
    });
    let clock = podswitch_core::time::Clock::start();
    let address = SocketAddr::from((server, 5001));
    let mut stream = rig.pods[0]
        .enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))
        .unwrap()
        .unwrap();
    let block = vec![7; 1 << 20];
    for _ in 0..megabytes {
        stream.write_all(&block).unwrap();
    }
    drop(stream);
    assert_eq!(reader.join().unwrap(), megabytes << 20);
    Duration::from_nanos(clock.now().as_nanos())
}

fn everything(workers: usize) {
    let rig = rig(workers);
    let [clients, servers] = PODS;
    for (client, server) in clients.into_iter().zip(servers) {
        let (client, server) = (ip(client), ip(server));
        echo_udp(&rig, 100, server, client);
        // Larger than the MTU: the kernel fragments it, and the switch holds the fragments until
        // all have arrived.
        echo_udp(&rig, 9_000, server, client);
        let took = stream_tcp(&rig, 256, server);
        println!("{workers} worker(s), {server}: 256 MiB in {took:?}");
    }
    let counters: Vec<_> = rig.control.workers().map(|w| w.counters.clone()).collect();
    let dropped: u64 = counters.iter().map(|c| c.dropped_total()).sum();
    for c in &counters {
        for &reason in podswitch_core::action::DropReason::ALL {
            if c.dropped(reason) > 0 {
                println!("dropped {}: {}", reason.name(), c.dropped(reason));
            }
        }
    }
    assert!(dropped < 100, "{dropped} frames dropped");
}

#[test]
fn pods_communicate_through_real_sockets() {
    podswitch_testkit::require_tap!();
    everything(1);
}

#[test]
fn pods_communicate_through_two_workers() {
    podswitch_testkit::require_tap!();
    everything(2);
}
