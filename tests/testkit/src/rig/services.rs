//! Services for the rig's switch, packets to them, and the packets that left.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podswitch_core::config::{Cidr, Config};
use podswitch_policy::rule::Protocol;
use podswitch_policy::service::model::{
    Endpoint, EndpointSlice, Service, ServicePort, SlicePort, family_of,
};
use podswitch_wire::checksum::{sctp_checksum, verify_l4};
use podswitch_wire::flow_key::{FlowKey, HashKey, proto};
use podswitch_wire::parse::{Parsed, parse, tcp_flags};

use super::frames::{ip, tcp, udp};
use super::{HOST, Switch, addresses};

pub const FAMILIES: [usize; 2] = [0, 1];
pub const SYN: u8 = tcp_flags::SYN;
pub const ACK: u8 = tcp_flags::ACK;
pub const RST: u8 = tcp_flags::RST;

pub fn vip(family: usize) -> IpAddr {
    ["10.96.0.10", "fd00:96::10"][family].parse().unwrap()
}

pub fn second_vip(family: usize) -> IpAddr {
    ["10.96.0.11", "fd00:96::11"][family].parse().unwrap()
}

pub fn node(family: usize) -> IpAddr {
    ["192.168.0.1", "fd00:1::1"][family].parse().unwrap()
}

pub fn gateway(family: usize) -> IpAddr {
    ["169.254.1.1", "fe80::1"][family].parse().unwrap()
}

pub fn outside(family: usize) -> IpAddr {
    ["203.0.113.7", "2001:db8::7"][family].parse().unwrap()
}

pub fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// A Service with a TCP, a UDP and an SCTP port 80 → 8080, at both families' addresses.
pub fn service(name: &str, vip: impl Fn(usize) -> IpAddr) -> Service {
    let port = |protocol, name: &str| ServicePort { protocol, ..ServicePort::tcp(name, 80) };
    Service {
        ports: vec![port(Protocol::Tcp, "t"), port(Protocol::Udp, "u"), port(Protocol::Sctp, "s")],
        ..Service::cluster_ip("default", name, [vip(0), vip(1)])
    }
}

/// Pods as backends, all ready and on this node.
pub fn slice(service: &str, family: usize, backends: &[usize]) -> EndpointSlice {
    let port = |protocol, name: &str| SlicePort { protocol, ..SlicePort::tcp(name, 8080) };
    EndpointSlice {
        namespace: "default".into(),
        name: format!("{service}-{family}").into(),
        service: service.into(),
        family: family_of(vip(family)),
        ports: vec![port(Protocol::Tcp, "t"), port(Protocol::Udp, "u"), port(Protocol::Sctp, "s")],
        endpoints: backends
            .iter()
            .map(|&b| Endpoint::ready(addresses(b)[family]).on("n1"))
            .collect(),
    }
}

pub fn config_with(services: Vec<Service>, backends: &[usize]) -> Config {
    let slices = services
        .iter()
        .flat_map(|s| FAMILIES.map(|f| Arc::new(slice(&s.name.name, f, backends))))
        .collect();
    Config {
        services: services.into_iter().map(Arc::new).collect(),
        slices,
        service_cidrs: vec![cidr("10.96.0.0/16"), cidr("fd00:96::/112")],
        ..super::config()
    }
}

pub fn config(backends: &[usize]) -> Config {
    config_with(vec![service("web", vip)], backends)
}

pub fn sctp(ports: (u16, u16)) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet[..2].copy_from_slice(&ports.0.to_be_bytes());
    packet[2..4].copy_from_slice(&ports.1.to_be_bytes());
    packet.extend([1, 0, 0, 4]);
    let sum = sctp_checksum(&packet).unwrap();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// A packet of protocol `proto`; TCP is a SYN.
pub fn packet(protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let ports = (from.1, to.1);
    let message = match protocol {
        proto::TCP => tcp(from.0, to.0, ports, (100, 0, SYN), &[]),
        proto::UDP => udp(from.0, to.0, ports, b"question"),
        _ => sctp(ports),
    };
    ip(from.0, to.0, protocol, 64, None, &message)
}

pub fn segment(from: SocketAddr, to: SocketAddr, tcp_fields: (u32, u32, u8)) -> Vec<u8> {
    let message = tcp(from.ip(), to.ip(), (from.port(), to.port()), tcp_fields, &[]);
    ip(from.ip(), to.ip(), proto::TCP, 64, None, &message)
}

pub fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// The only frame that left by `port`, parsed, with valid checksums.
#[track_caller]
pub fn one(switch: &mut Switch, port: usize) -> (Vec<u8>, Parsed) {
    let mut frames = switch.recv(port);
    assert_eq!(frames.len(), 1, "by port {port}; drops: {:?}", switch.dropped());
    let frame = frames.remove(0);
    let parsed = parse(&frame, &HashKey::new(1)).expect("parses");
    assert!(verify_l4(&frame, &parsed), "checksum: {:?}", parsed.key);
    (frame, parsed)
}

#[track_caller]
pub fn ends(key: &FlowKey, from: SocketAddr, to: SocketAddr) {
    assert_eq!(at(key.src_addr(), key.src_port), from, "source");
    assert_eq!(at(key.dst_addr(), key.dst_port), to, "destination");
}

#[track_caller]
pub fn quiet(switch: &mut Switch) {
    for port in 0..=HOST {
        assert_eq!(switch.recv(port).len(), 0, "port {port}");
    }
}
