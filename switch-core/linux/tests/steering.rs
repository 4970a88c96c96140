//! Services at the node's own addresses, against the real kernel: packets that off-cluster clients
//! and the node itself send to them reach the switch with unchanged addresses, and its replies
//! reach the clients. All other packets stay in the node's stack.

use podswitch_testkit::net;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;
use net::{Peer, ip};
use podswitch_core::packet::{Batch, Packet};
use podswitch_core::port::Device;
use podswitch_linux::attach::{HostPort, HostPortConfig};
use podswitch_linux::netlink::{LinkSpec, Route, Rule};
use podswitch_linux::nft::{IngressDrop, L4Address};
use podswitch_linux::reserve::ReservedPorts;
use podswitch_linux::steer::{self, Steering, SteeringConfig};
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_wire::flow_key::{FlowKey, HashKey, proto};
use podswitch_wire::parse::parse;

/// The node, and a client off the cluster behind its NIC.
const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];
const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8:1::2"];
const BALANCER: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];
/// A node port.
const PORT: u16 = 30_080;

struct Rig {
    node: NetNs,
    client: NetNs,
    peer: Peer,
    /// Dropped before the port to which it steers.
    steering: Option<Steering>,
    port: HostPort,
}

fn service_addresses() -> Vec<L4Address> {
    let protocols = [proto::TCP, proto::UDP];
    let of = |address: &str, port| {
        let address = ip(address);
        protocols.map(|protocol| L4Address { address, protocol, port })
    };
    let node = NODE.iter().flat_map(|a| of(a, PORT));
    // A load balancer's address that the node itself has.
    node.chain(BALANCER.iter().flat_map(|a| of(a, 80))).collect()
}

fn config(service_addresses: Vec<L4Address>) -> SteeringConfig {
    SteeringConfig {
        sources: NODE.map(ip).to_vec(),
        service_addresses,
        ..SteeringConfig::default()
    }
}

impl Rig {
    fn new(before: impl FnOnce(&NetNs)) -> Self {
        let (node, client) = (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
        before(&node);
        let (mut near, mut far) = (Netlink::open(&node).unwrap(), Netlink::open(&client).unwrap());
        for ns in [&node, &client] {
            sysctl::set(ns, "net/ipv6/conf/default/dad_transmits", "0").unwrap();
        }
        near.add_veth(&LinkSpec::new("eth0").up(), &LinkSpec::new("eth0").up(), &client).unwrap();
        let (here, there) = (near.link("eth0").unwrap().index, far.link("eth0").unwrap().index);
        let lo = near.link("lo").unwrap().index;
        near.set_up(lo).unwrap();
        for (n, prefix) in [24, 64].into_iter().enumerate() {
            near.add_address(here, format!("{}/{prefix}", NODE[n]).parse().unwrap()).unwrap();
            far.add_address(there, format!("{}/{prefix}", CLIENT[n]).parse().unwrap()).unwrap();
            near.add_address(lo, ip(BALANCER[n]).into()).unwrap();
            far.wait_until_local(ip(CLIENT[n])).unwrap();
            near.wait_until_local(ip(NODE[n])).unwrap();
            let balancer = podswitch_wire::cidr::Cidr::host(ip(BALANCER[n]));
            far.add_route(&Route::to(balancer).via(ip(NODE[n])).link(there)).unwrap();
        }
        let config = HostPortConfig {
            node_addresses: NODE.map(ip).to_vec(),
            destinations: vec!["10.96.0.0/16".parse().unwrap(), "fd96::/112".parse().unwrap()],
            ..HostPortConfig::default()
        };
        let (port, mut device) = HostPort::open(&node, config).unwrap();
        let peer = Peer::new(device.open(0, 1).unwrap());
        let steering = Some(Steering::install(&node, self::config(service_addresses())).unwrap());
        Self { node, client, peer, steering, port }
    }

    /// The switch sends a packet to the node's stack.
    fn send(&mut self, packet: &[u8]) {
        let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        let frame = [&self.port.mac().0[..], &[0xee; 6], &ethertype, packet].concat();
        let mut batch = Batch::new();
        batch.push(Packet::from_frame(&frame));
        self.peer.port.tx(&mut self.peer.pool, &mut batch).unwrap();
        assert!(batch.is_empty());
    }

    /// A datagram from a socket in `from` reaches the switch unchanged, and the switch's reply
    /// reaches the socket. Returns the source port.
    #[track_caller]
    fn reaches_the_switch(&mut self, from: &NetNs, source: &str, to: SocketAddr, len: usize) {
        let socket = from.enter(|| UdpSocket::bind((ip(source), 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let own = socket.local_addr().unwrap();
        let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
        socket.send_to(&payload, to).unwrap();
        let wanted = FlowKey::new(own.ip(), to.ip(), proto::UDP, own.port(), to.port()).unwrap();
        assert!(
            self.peer.run_until(|frame| is_flow(frame, &wanted)),
            "{own} > {to} did not reach the switch"
        );
        let mut buffer = vec![0; 70_000];
        let (got, peer) = socket.recv_from(&mut buffer).expect("the switch's answer");
        assert_eq!((peer, &buffer[..got]), (to, &payload[..]));
    }
}

/// An IP packet with a datagram.
fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let builder = match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => panic!("of two families"),
    };
    let mut packet = Vec::new();
    builder.udp(from.1, to.1).write(&mut packet, payload).unwrap();
    packet
}

/// Whether a frame to the gateway has exactly these addresses and ports.
fn is_flow(frame: &[u8], wanted: &FlowKey) -> bool {
    frame[..6] == [0xee; 6]
        && parse(frame, &HashKey::new(1)).is_ok_and(|parsed| parsed.key == *wanted)
}

#[test]
fn node_ports_from_off_the_cluster_and_from_the_node() {
    podswitch_testkit::require_tap!();
    let mut rig = Rig::new(|_| {});
    for n in 0..2 {
        let to = SocketAddr::new(ip(NODE[n]), PORT);
        let (client, node) = (rig.client.clone(), rig.node.clone());
        rig.reaches_the_switch(&client, CLIENT[n], to, 100);
        rig.reaches_the_switch(&node, NODE[n], to, 100);
        // At a load balancer's address that the node has as well, and at a cluster IP.
        let balancer = SocketAddr::new(ip(BALANCER[n]), 80);
        rig.reaches_the_switch(&client, CLIENT[n], balancer, 100);
        rig.reaches_the_switch(&node, NODE[n], balancer, 100);
        let cluster_ip = SocketAddr::new(ip(["10.96.0.10", "fd96::10"][n]), 80);
        let unbound = ["0.0.0.0", "::"][n];
        let socket = node.enter(|| UdpSocket::bind((ip(unbound), 0))).unwrap().unwrap();
        node.enter(|| socket.connect(cluster_ip)).unwrap().unwrap();
        assert_eq!(socket.local_addr().unwrap().ip(), ip(NODE[n]), "the node's InternalIP");
        rig.reaches_the_switch(&node, NODE[n], cluster_ip, 100);
    }
}

/// A strict reverse path check for all interfaces, as some distributions have it.
#[test]
fn with_a_strict_reverse_path_check() {
    podswitch_testkit::require_tap!();
    for setting in ["1", "2"] {
        let mut rig =
            Rig::new(|node| sysctl::set(node, "net/ipv4/conf/all/rp_filter", setting).unwrap());
        let to = SocketAddr::new(ip(NODE[0]), PORT);
        let (client, node) = (rig.client.clone(), rig.node.clone());
        rig.reaches_the_switch(&client, CLIENT[0], to, 100);
        rig.reaches_the_switch(&node, NODE[0], to, 100);
    }
}

/// Only the first fragment has ports: the others follow its connection.
#[test]
fn fragments_follow() {
    podswitch_testkit::require_tap!();
    let mut rig = Rig::new(|_| {});
    let client = rig.client.clone();
    let socket = client.enter(|| UdpSocket::bind((ip(CLIENT[0]), 5000))).unwrap().unwrap();
    socket.send_to(&[7; 4000], (ip(NODE[0]), PORT)).unwrap();
    let mut bytes = 0;
    rig.peer.echo = false;
    let all = rig.peer.run_until(|frame| {
        let to_node = frame[12..14] == [8, 0] && frame[30..34] == [192, 0, 2, 1];
        bytes +=
            if to_node { usize::from(u16::from_be_bytes([frame[16], frame[17]])) - 20 } else { 0 };
        bytes == 4008
    });
    assert!(all, "{bytes} bytes of 4008");
}

/// Packets to ports without a Service stay in the node's own stack.
#[test]
fn the_nodes_own_ports_are_not_steered() {
    podswitch_testkit::require_tap!();
    let rig = Rig::new(|_| {});
    for n in 0..2 {
        for (server, port) in [(NODE[n], 8080), (BALANCER[n], 8081)] {
            let listener =
                rig.node.enter(|| TcpListener::bind((ip(server), port))).unwrap().unwrap();
            for ns in [&rig.client, &rig.node] {
                let address = SocketAddr::new(ip(server), port);
                let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(5));
                let mut stream = ns.enter(connect).unwrap().expect("connected");
                let (mut served, _) = listener.accept().unwrap();
                served.write_all(b"own").unwrap();
                let mut buffer = [0; 3];
                stream.read_exact(&mut buffer).unwrap();
            }
        }
    }
}

/// An ICMP error about a packet that the switch sent from the node's address goes to the switch:
/// path MTU discovery of node ports depends on it.
#[test]
fn icmp_errors_follow_their_connections() {
    podswitch_testkit::require_tap!();
    let mut rig = Rig::new(|_| {});
    rig.peer.echo = true;
    let client = rig.client.clone();
    let socket = client.enter(|| UdpSocket::bind((ip(CLIENT[0]), 0))).unwrap().unwrap();
    let own = socket.local_addr().unwrap();
    socket.send_to(b"gone soon", (ip(NODE[0]), PORT)).unwrap();
    drop(socket);
    // No socket expects the reply: the client's kernel reports that to the node's address.
    let is_error = |frame: &[u8]| {
        frame[12..14] == [8, 0]
            && frame[23] == proto::ICMP
            && frame[34..36] == [3, 3]
            && frame[26..30] == [192, 0, 2, 2]
            && frame[54..58] == [192, 0, 2, 1]
            && frame[62..66] == [PORT.to_be_bytes(), own.port().to_be_bytes()].concat()[..]
    };
    assert!(rig.peer.run_until(is_error), "no ICMP error");
}

/// The switch sends a client to a server of the node itself with the client's own address. The
/// server sees that address, and its replies go to the switch, as do the errors of its kernel about
/// a closed port.
#[test]
fn a_server_of_the_node_replies_through_the_switch() {
    podswitch_testkit::require_tap!();
    let mut rig = Rig::new(|_| {});
    let server = |n: usize, port| L4Address { address: ip(NODE[n]), protocol: proto::UDP, port };
    let servers = (0..2).flat_map(|n| [server(n, 9090), server(n, 9091)]).collect();
    let steering = rig.steering.as_mut().unwrap();
    steering.update(1500, NODE.map(ip).to_vec(), (service_addresses(), servers)).unwrap();
    rig.peer.echo = false;
    for n in 0..2 {
        let (client, node) = (ip(CLIENT[n]), ip(NODE[n]));
        let socket = rig.node.enter(|| UdpSocket::bind((node, 9090))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        rig.send(&udp((client, 5000), (node, 9090), b"question"));
        let mut buffer = [0; 16];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"question"[..], SocketAddr::new(client, 5000)));
        socket.send_to(b"answer", from).unwrap();
        let wanted = FlowKey::new(node, client, proto::UDP, 9090, 5000).unwrap();
        assert!(rig.peer.run_until(|frame| is_flow(frame, &wanted)), "the answer");
        // Nobody listens there.
        rig.send(&udp((client, 5001), (node, 9091), b"question"));
        let icmp = [proto::ICMP, proto::ICMPV6][n];
        let is_error = |frame: &[u8]| {
            let parsed = parse(frame, &HashKey::new(1));
            parsed.is_ok_and(|p| p.key.proto == icmp && p.key.dst_addr() == client)
        };
        assert!(rig.peer.run_until(is_error), "port unreachable");
    }
    // Connections of other clients to the same server do not go to the switch.
    let socket = rig.node.enter(|| UdpSocket::bind((ip(NODE[0]), 9090))).unwrap().unwrap();
    let asks = rig.client.enter(|| UdpSocket::bind((ip(CLIENT[0]), 0))).unwrap().unwrap();
    for socket in [&socket, &asks] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    asks.send_to(b"x", (ip(NODE[0]), 9090)).unwrap();
    let (_, from) = socket.recv_from(&mut [0; 4]).unwrap();
    socket.send_to(b"y", from).unwrap();
    asks.recv_from(&mut [0; 4]).expect("directly from the node");
}

/// A host port at 127.0.0.1 or ::1, from the node's own processes.
#[test]
fn loopback_is_steered_for_the_nodes_own_processes() {
    podswitch_testkit::require_tap!();
    let mut rig = Rig::new(|node| {
        let mut netlink = Netlink::open(node).unwrap();
        let lo = netlink.link("lo").unwrap().index;
        netlink.set_up(lo).unwrap();
    });
    let front = |address| L4Address { address: ip(address), protocol: proto::UDP, port: 8053 };
    let service_addresses = ["127.0.0.1", "::1"].map(front).to_vec();
    let steering = rig.steering.as_mut().unwrap();
    steering.update(1500, NODE.map(ip).to_vec(), (service_addresses, Vec::new())).unwrap();
    assert!(steering.take_loopback_failure().is_none());
    let node = rig.node.clone();
    for (f, loopback) in ["127.0.0.1", "::1"].into_iter().enumerate() {
        let to = SocketAddr::new(ip(loopback), 8053);
        for source in [loopback, NODE[f]] {
            rig.reaches_the_switch(&node, source, to, 100);
        }
    }
    // From any address of the node, at any address of the node.
    let front = L4Address { address: ip(NODE[1]), ..front("::1") };
    let steering = rig.steering.as_mut().unwrap();
    let service_addresses = vec![front, L4Address { address: ip("::1"), ..front }];
    steering.update(1500, NODE.map(ip).to_vec(), (service_addresses, Vec::new())).unwrap();
    rig.reaches_the_switch(&node, "::1", SocketAddr::new(ip(NODE[1]), 8053), 100);
    // Others may remove what delivers replies at ::1.
    let steering = rig.steering.as_mut().unwrap();
    assert_eq!(steering.reconcile().unwrap(), Vec::<String>::new());
    IngressDrop::remove(&node, "podswitch-loopback").unwrap();
    assert_eq!(steering.reconcile().unwrap(), ["delivery of packets from ::1"]);
    rig.reaches_the_switch(&node, "::1", SocketAddr::new(ip("::1"), 8053), 100);
    // Without a host port there it is removed: then there is nothing that a reconciliation puts back.
    let steering = rig.steering.as_mut().unwrap();
    steering.update(1500, NODE.map(ip).to_vec(), (Vec::new(), Vec::new())).unwrap();
    assert_eq!(steering.reconcile().unwrap(), Vec::<String>::new());
}

/// Services are added and removed; addresses that no longer belong to a Service go to the node
/// again.
#[test]
fn updates_and_the_end() {
    podswitch_testkit::require_tap!();
    let mut before = Vec::new();
    let mut rig = Rig::new(|node| before = rules(node));
    let (client, node) = (rig.client.clone(), rig.node.clone());
    let to = SocketAddr::new(ip(NODE[0]), PORT);
    rig.reaches_the_switch(&client, CLIENT[0], to, 10);
    // Many addresses, in more than one message.
    let many = (1..=3000).map(|port| L4Address { address: ip(NODE[0]), protocol: 17, port });
    let steering = rig.steering.as_mut().unwrap();
    steering
        .update(
            1500,
            NODE.map(ip).to_vec(),
            (many.chain(service_addresses()).collect(), Vec::new()),
        )
        .unwrap();
    rig.reaches_the_switch(&client, CLIENT[0], SocketAddr::new(ip(NODE[0]), 2999), 10);
    rig.reaches_the_switch(&client, CLIENT[0], to, 10);
    let steering = rig.steering.as_mut().unwrap();
    steering.update(1500, NODE.map(ip).to_vec(), (Vec::new(), Vec::new())).unwrap();
    let server = node.enter(|| UdpSocket::bind(to)).unwrap().unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for ns in [&client, &node] {
        let socket = ns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.send_to(b"x", to).unwrap();
        server.recv_from(&mut [0; 4]).expect("the node's own");
    }
    rig.steering.take().unwrap().stop().unwrap();
    assert_eq!(rules(&node), before);
}

fn rules(ns: &NetNs) -> Vec<Rule> {
    Netlink::open(ns).unwrap().rules().unwrap()
}

/// A killed run leaves routing rules: the next one accepts them and restores everything at its end.
#[test]
fn rules_of_a_killed_run_are_taken_over() {
    podswitch_testkit::require_tap!();
    let mut before = Vec::new();
    let left = |node: &NetNs| {
        before = rules(node);
        let mut netlink = Netlink::open(node).unwrap();
        for is_ipv6 in [false, true] {
            let SteeringConfig { mark, table, .. } = SteeringConfig::default();
            let mark = Some((mark, mark));
            let ours = Rule { is_ipv6, priority: 80, table, mark, ..Rule::default() };
            let local = Rule { is_ipv6, priority: 81, table: 255, ..Rule::default() };
            netlink.add_rule(&ours).unwrap();
            netlink.add_rule(&local).unwrap();
            netlink.delete_rule(&Rule { priority: 0, ..local }).unwrap();
        }
    };
    let mut rig = Rig::new(left);
    let (client, node) = (rig.client.clone(), rig.node.clone());
    rig.reaches_the_switch(&client, CLIENT[1], SocketAddr::new(ip(NODE[1]), PORT), 10);
    rig.reaches_the_switch(&node, NODE[0], SocketAddr::new(ip(NODE[0]), PORT), 10);
    drop(rig.steering.take());
    assert_eq!(rules(&node), before);
    // And again, with a clean start.
    drop(Steering::install(&node, config(service_addresses())).unwrap());
    assert_eq!(rules(&node), before);
    // A run that leaves its rules to the next one, twice.
    for _ in 0..2 {
        let mut left = Steering::install(&node, config(service_addresses())).unwrap();
        left.leave_in_force();
        drop(left);
        assert_ne!(rules(&node), before);
    }
    drop(Steering::install(&node, config(service_addresses())).unwrap());
    assert_eq!(rules(&node), before);
    let mut left = Steering::install(&node, config(service_addresses())).unwrap();
    left.leave_in_force();
    drop(left);
    steer::forget(&node).unwrap();
    assert_eq!(rules(&node), before);
}

#[test]
fn ports_are_reserved_and_given_back() {
    podswitch_testkit::require_tap!();
    let ns = NetNs::anonymous().unwrap();
    let setting = "net/ipv4/ip_local_reserved_ports";
    drop(ReservedPorts::reserve(&ns, &[30_000..=32_767]).unwrap());
    assert_eq!(sysctl::get(&ns, setting).unwrap(), "", "as it was");
    sysctl::set(&ns, setting, "8080").unwrap();
    let reserved = ReservedPorts::reserve(&ns, &[30_000..=32_767, 44_000..=65_535]).unwrap();
    let again = ReservedPorts::reserve(&ns, &[30_000..=32_767, 44_000..=65_535]).unwrap();
    drop(again);
    assert_eq!(sysctl::get(&ns, setting).unwrap(), "8080,30000-32767,44000-65535");
    sysctl::set(&ns, "net/ipv4/ip_local_port_range", "43990 44010").unwrap();
    let lo = Netlink::open(&ns).unwrap().link("lo").unwrap().index;
    Netlink::open(&ns).unwrap().set_up(lo).unwrap();
    let sockets: Vec<_> =
        (0..5).map(|_| ns.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap()).collect();
    let picked = sockets.iter().map(|s| s.local_addr().unwrap().port());
    assert!(picked.into_iter().all(|port| port < 44_000));
    drop(reserved);
    assert_eq!(sysctl::get(&ns, setting).unwrap(), "8080");
}
