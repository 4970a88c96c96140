//! Two nodes connected by an underlay: each receives the frames that leave by the other's uplink.

use std::net::IpAddr;
use std::sync::Arc;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use podswitch_core::config::{
    Attachment, Cidr, Config, Endpoint, LocalNode, PortConfig, PortRole, RemoteNode, TunnelConfig,
    Underlay, VtepMac,
};
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::packet::Packet;
use podswitch_policy::rule::{Labels, Workload};
use podswitch_wire::addr::Mac;
use podswitch_wire::parse::parse;

use super::*;

/// The uplink's port number; pods are at 0 to 2, the node at [`HOST`].
pub const UPLINK: usize = 4;
pub const VXLAN: u16 = 4789;

/// Address of pod `i` of node `n`.
pub fn pod(n: usize, i: usize, v6: bool) -> IpAddr {
    if v6 {
        let mut a = [0; 16];
        (a[0], a[3], a[15]) = (0xfd, 1 + n as u8, 10 + i as u8);
        a.into()
    } else {
        [10, 1 + n as u8, 0, 10 + i as u8].into()
    }
}

pub fn ranges(n: usize) -> Vec<Cidr> {
    let v4 = format!("10.{}.0.0/24", 1 + n);
    let v6 = format!("fd00:{:x}::/64", 1 + n);
    vec![v4.parse().unwrap(), v6.parse().unwrap()]
}

pub fn node_address(n: usize, v6: bool) -> IpAddr {
    if v6 {
        format!("fd00:ffff::{}", 1 + n).parse().unwrap()
    } else {
        [192, 168, 0, 1 + n as u8].into()
    }
}

pub fn vtep(n: usize) -> Mac {
    Mac([0x0e, 0x58, 192, 168, 0, 1 + n as u8])
}

pub fn underlay_mac(n: usize) -> Mac {
    Mac([0x0a, 0x58, 192, 168, 0, 1 + n as u8])
}

pub fn mac_of_pod(n: usize, i: usize) -> Mac {
    Mac([0x0a, 0x58, 10, 1 + n as u8, 0, 10 + i as u8])
}

fn endpoint(n: usize, i: usize, here: bool) -> Arc<Endpoint> {
    let attachment = Attachment { port: PortId(i as u16), mac: mac_of_pod(n, i), mtu: 1450 };
    Arc::new(Endpoint {
        cookie: Cookie::new(format!("Pod/default/p{n}{i}")),
        workload: Workload {
            namespace: "default".into(),
            name: format!("p{n}{i}").into(),
            labels: Labels::default(),
            addresses: vec![pod(n, i, false), pod(n, i, true)],
            ports: Vec::new(),
            host_network: false,
        },
        node: format!("n{n}").into(),
        attachment: here.then_some(attachment),
        precedence: Default::default(),
    })
}

pub fn remote(n: usize) -> RemoteNode {
    RemoteNode {
        cookie: Cookie::new(format!("Node/n{n}")),
        name: format!("n{n}").into(),
        labels: Labels::default(),
        addresses: vec![node_address(n, false), node_address(n, true)],
        pod_cidrs: ranges(n),
        vtep: VtepMac { ipv4: vtep(n), ipv6: None },
        underlay_mac: underlay_mac(n),
        precedence: Default::default(),
    }
}

/// The configuration of node `n` of three.
pub fn node_config(n: usize, underlay: Underlay) -> Config {
    let port = |n: usize, role| PortConfig { port: PortId(n as u16), role };
    let local = remote(n);
    Config {
        node: LocalNode {
            name: local.name,
            addresses: local.addresses,
            pod_cidrs: local.pod_cidrs,
            vtep: local.vtep,
            underlay_mac: local.underlay_mac,
            ..LocalNode::default()
        },
        ports: vec![
            port(0, PortRole::Pod),
            port(1, PortRole::Pod),
            port(2, PortRole::Pod),
            port(HOST, PortRole::Host { mac: HOST_MAC, mtu: 1500 }),
            port(
                UPLINK,
                PortRole::Uplink { mac: underlay_mac(n), mtu: 1500, tunnel: true, direct: true },
            ),
        ],
        endpoints: (0..3).flat_map(|m| (0..3).map(move |i| endpoint(m, i, m == n))).collect(),
        nodes: (0..3).filter(|m| *m != n).map(|n| Arc::new(remote(n))).collect(),
        tunnel: Some(TunnelConfig { underlay, ..TunnelConfig::default() }),
        ..Config::default()
    }
}

/// Nodes 0 and 1.
pub struct Pair(pub [Switch; 2]);

impl Pair {
    pub fn new(underlay: Underlay) -> Self {
        Self([0, 1].map(|n| Switch::new(&node_config(n, underlay))))
    }

    /// A frame from pod `i` of node `n` to the gateway.
    pub fn send(&mut self, n: usize, i: usize, packet: &[u8]) {
        self.send_packet(n, i, Packet::from_frame(&from_pod(n, i, packet)));
    }

    pub fn send_packet(&mut self, n: usize, i: usize, packet: Packet) {
        self.0[n].send_packet(i, packet);
        self.carry();
    }

    /// Carries frames over the underlay until there are none; returns them.
    pub fn carry(&mut self) -> Vec<(usize, Vec<u8>)> {
        let mut carried = Vec::new();
        loop {
            let mut some = false;
            for n in 0..2 {
                while let Some(packet) = self.0[n].ends[UPLINK].recv() {
                    some = true;
                    carried.push((n, packet.bytes().to_vec()));
                    let mut copy = Packet::from_frame(packet.bytes());
                    copy.offload = packet.offload;
                    self.0[1 - n].send_packet(UPLINK, copy);
                }
            }
            if !some {
                return carried;
            }
        }
    }

    /// The frames that pod `i` of node `n` received.
    pub fn recv(&mut self, n: usize, i: usize) -> Vec<Vec<u8>> {
        self.0[n].recv(i)
    }

    pub fn assert_no_drops(&mut self) {
        for (n, switch) in self.0.iter_mut().enumerate() {
            assert_eq!(switch.dropped(), [], "at node {n}");
            switch.assert_adds_up();
        }
    }
}

/// A network-layer packet in a frame from pod `i` of node `n` to the gateway.
pub fn from_pod(n: usize, i: usize, packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    frames::ethernet(GATEWAY, mac_of_pod(n, i), ethertype, packet)
}

pub fn udp(src: IpAddr, dst: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    frames::ip(src, dst, 17, 64, None, &frames::udp(src, dst, ports, payload))
}

pub fn tcp(
    src: IpAddr,
    dst: IpAddr,
    ports: (u16, u16),
    head: (u32, u32, u8),
    payload: &[u8],
) -> Vec<u8> {
    frames::ip(src, dst, 6, 64, None, &frames::tcp(src, dst, ports, head, payload))
}

/// An echo request.
pub fn echo(src: IpAddr, dst: IpAddr, payload: &[u8], ttl: u8) -> Vec<u8> {
    let kind = if src.is_ipv4() { 8 } else { 128 };
    let message = frames::icmp(src, dst, [kind, 0], [0, 7, 0, 1], payload);
    frames::ip(src, dst, frames::icmp_protocol(src), ttl, None, &message)
}

/// The TTL or hop limit of a frame.
pub fn ttl(frame: &[u8]) -> u8 {
    parse(frame, &HashKey::new(1)).unwrap().ttl
}

/// Whether a frame parses and its layer-4 checksum is valid.
pub fn is_sound(frame: &[u8]) -> bool {
    parse(frame, &HashKey::new(1)).is_ok_and(|p| podswitch_wire::checksum::verify_l4(frame, &p))
}

/// A tunnel packet as an independent parser reads it.
#[derive(Debug)]
pub struct Seen {
    pub macs: (Mac, Mac),
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub traffic_class: u8,
    pub dont_fragment: bool,
    pub source_port: u16,
    pub port: u16,
    pub checksum: u16,
    pub checksum_holds: bool,
    pub vni: u32,
    pub inner: Vec<u8>,
}

/// Parses a tunnel packet with a parser that shares no code with ours.
pub fn dissect(frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).expect("an Ethernet frame");
    let Some(etherparse::LinkSlice::Ethernet2(link)) = &sliced.link else { panic!("Ethernet") };
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("UDP: {frame:02x?}") };
    let (source, destination, ttl, traffic_class, dont_fragment, holds) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let ip = ip.header();
            assert_eq!(ip.to_header().calc_header_checksum(), ip.header_checksum());
            let header = udp.to_header();
            let sum = header
                .calc_checksum_ipv4_raw(ip.source(), ip.destination(), udp.payload())
                .expect("a length");
            let holds = udp.checksum() == 0 || udp.checksum() == sum;
            let class = ip.dcp().value() << 2 | ip.ecn().value();
            let ends = (ip.source_addr().into(), ip.destination_addr().into());
            (ends.0, ends.1, ip.ttl(), class, ip.dont_fragment(), holds)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let ip = ip.header();
            let header = udp.to_header();
            let sum = header
                .calc_checksum_ipv6_raw(ip.source(), ip.destination(), udp.payload())
                .expect("a length");
            let ends: (IpAddr, IpAddr) = (ip.source_addr().into(), ip.destination_addr().into());
            (ends.0, ends.1, ip.hop_limit(), ip.traffic_class(), true, udp.checksum() == sum)
        }
        _ => panic!("neither family"),
    };
    let payload = udp.payload();
    assert_eq!(payload[0], 0x08, "only the I flag");
    assert_eq!((&payload[1..4], payload[7]), (&[0, 0, 0][..], 0), "reserved bits are zero");
    Seen {
        macs: (Mac(link.destination()), Mac(link.source())),
        source,
        destination,
        ttl,
        traffic_class,
        dont_fragment,
        source_port: udp.source_port(),
        port: udp.destination_port(),
        checksum: udp.checksum(),
        checksum_holds: holds,
        vni: u32::from_be_bytes([0, payload[4], payload[5], payload[6]]),
        inner: payload[8..].to_vec(),
    }
}

/// A tunnel packet built byte by byte.
#[derive(Clone)]
pub struct Tunnelled {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: u16,
    pub header: [u8; 8],
    pub inner: Vec<u8>,
    pub traffic_class: u8,
    /// Without a UDP checksum, as is usual over IPv4.
    pub bare: bool,
}

impl Tunnelled {
    /// From node `from` to node `to`, with the inner frame.
    pub fn new(from: usize, to: usize, v6: bool, inner: &[u8]) -> Self {
        Self {
            source: node_address(from, v6),
            destination: node_address(to, v6),
            port: VXLAN,
            header: [8, 0, 0, 0, 0, 0, 1, 0],
            inner: inner.to_vec(),
            traffic_class: 0,
            bare: !v6,
        }
    }

    /// The network-layer packet.
    pub fn packet(&self) -> Vec<u8> {
        let payload = [&self.header[..], &self.inner].concat();
        let mut message = frames::udp(self.source, self.destination, (50_000, self.port), &payload);
        if self.bare {
            message[6..8].fill(0);
        }
        let mut packet = frames::ip(self.source, self.destination, 17, 64, None, &message);
        set_class(&mut packet, self.traffic_class);
        packet
    }

    pub fn frame(&self) -> Vec<u8> {
        let to = if self.destination == node_address(1, self.source.is_ipv6()) { 1 } else { 0 };
        let ethertype = frames::ethertype(self.source);
        frames::ethernet(underlay_mac(to), underlay_mac(2), ethertype, &self.packet())
    }
}

/// Sets a packet's type of service or traffic class, and makes its header good again.
pub fn set_class(packet: &mut [u8], class: u8) {
    if packet[0] >> 4 == 4 {
        packet[1] = class;
        packet[10..12].fill(0);
        let sum = frames::checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[0] = 0x60 | class >> 4;
        packet[1] = packet[1] & 0x0f | class << 4;
    }
}

/// A frame inside the tunnel from node `from` to node `to`.
pub fn inner(from: usize, to: usize, packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    frames::ethernet(vtep(to), vtep(from), ethertype, packet)
}

/// The type of service or traffic class of a frame.
pub fn class(frame: &[u8]) -> u8 {
    parse(frame, &HashKey::new(1)).unwrap().traffic_class
}
