//! Random traffic of every kind that a switch may receive, and the states that it goes through.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::{BridgeDomain, Config, PortConfig, PortRole, Vlans};
use podswitch_core::id::PortId;
use podswitch_core::packet::{GsoType, Offload, Packet, Pool};
use podswitch_policy::rule::{NetworkPolicy, Selector};
use podswitch_wire::addr::Mac;

use super::random::Rng;
use super::*;

/// Three pods, the node and a bridge.
pub const PORTS: usize = 7;
const OUTSIDE: [u8; 4] = [8, 8, 8, 8];

fn bridge(port: u16, untagged: Option<u16>, tagged: &[u16]) -> PortConfig {
    let vlans = Vlans { untagged, tagged: tagged.to_vec() };
    PortConfig { port: PortId(port), role: PortRole::Bridge { domain: "lan".into(), vlans } }
}

/// Pods, the node and a bridge domain of three ports with two VLANs.
pub fn whole() -> Config {
    let mut config = config();
    let domain = BridgeDomain { name: "lan".into(), ageing_secs: 30, learn_limit: 6 };
    config.bridges.push(Arc::new(domain));
    config.ports.extend([
        bridge(4, Some(1), &[]),
        bridge(5, Some(2), &[1]),
        bridge(6, None, &[1, 2]),
    ]);
    config
}

/// States that the switch goes through.
pub fn states() -> Vec<Config> {
    let mut isolated = whole();
    isolated.policies.push(Arc::new(NetworkPolicy {
        cookie: "NetworkPolicy/default/deny".into(),
        namespace: "default".into(),
        name: "deny".into(),
        pods: Selector::everything(),
        ingress: Some(Vec::new()),
        egress: None,
    }));
    let mut small = whole();
    for (n, mtu) in [(0, 1280), (2, 1300)] {
        let mut endpoint = (*small.endpoints[n]).clone();
        if let Some(attachment) = &mut endpoint.attachment {
            attachment.mtu = mtu;
        }
        small.endpoints[n] = Arc::new(endpoint);
    }
    let mut fewer = whole();
    fewer.endpoints.remove(1);
    fewer.ports.retain(|p| p.port != PortId(1) && p.port != PortId(5));
    let mut other = whole();
    other.ports.retain(|p| p.port.0 < 4);
    other.ports.extend([
        bridge(4, Some(2), &[1]),
        bridge(5, Some(1), &[]),
        bridge(6, Some(2), &[]),
    ]);
    vec![whole(), isolated, small, fewer, other]
}

/// A frame in a buffer as pools have them, so that they count it.
fn pooled(frame: &[u8]) -> Packet {
    let small = frame.len() <= Pool::SMALL;
    let mut packet = Packet::with_capacity(if small { Pool::SMALL } else { Pool::LARGE });
    packet.fill(frame);
    packet
}

/// A source of frames.
pub struct Traffic {
    pub rng: Rng,
    /// Fragments that are sent later.
    pieces: Vec<(usize, Vec<u8>)>,
}

impl Traffic {
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), pieces: Vec::new() }
    }

    fn address(&mut self, v4: bool, own: Option<usize>) -> IpAddr {
        let n = own.unwrap_or_else(|| self.rng.below(8));
        match (v4, n) {
            (true, 0..=2) => pod_v4(n).into(),
            (false, 0..=2) => pod_v6(n).into(),
            (true, 3) => [192, 168, 0, 1].into(),
            (false, 3) => "fd00:1::1".parse().unwrap(),
            (true, 4) => OUTSIDE.into(),
            (false, 4) => "2001:db8::8".parse().unwrap(),
            (true, 5) => [169, 254, 1, 1].into(),
            (false, 5) => "fe80::1".parse().unwrap(),
            (true, 6) => [10, 1, 0, 77].into(),
            (false, 6) => "fe80::77".parse().unwrap(),
            (true, _) => {
                (*self.rng.pick(&[[127, 0, 0, 1], [224, 0, 0, 5], [0; 4], [255; 4]])).into()
            }
            (false, _) => {
                (*self.rng.pick(&["::1", "ff02::1", "::", "::ffff:10.1.0.10"])).parse().unwrap()
            }
        }
    }

    fn mac_of(port: usize) -> Mac {
        match port {
            0..=2 => pod_mac(port),
            HOST => HOST_MAC,
            _ => Mac([2, 0, 0, 0, 1, port as u8]),
        }
    }

    /// A layer-4 message, with its protocol.
    fn message(&mut self, src: IpAddr, dst: IpAddr) -> (u8, Vec<u8>) {
        let len = *self.rng.pick(&[0, 1, 30, 600, 1400, 1460, 1473, 3000]);
        let mut payload = vec![0; len];
        self.rng.fill(&mut payload);
        let ports = (1000 + self.rng.below(4) as u16, *self.rng.pick(&[53, 80, 68, 546]));
        let ports = if self.rng.chance(50) { ports } else { (ports.1, ports.0) };
        match self.rng.below(8) {
            0..=2 => (17, frames::udp(src, dst, ports, &payload)),
            3 | 4 => {
                let flags = *self.rng.pick(&[0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14, 0, 0x3f, 3]);
                let (seq, ack) = (self.rng.below(5000) as u32, self.rng.below(5000) as u32);
                (6, frames::tcp(src, dst, ports, (seq, ack, flags), &payload))
            }
            5 => {
                let echo = if src.is_ipv4() { [8, 0] } else { [128, 135] };
                let head =
                    if self.rng.chance(70) { [echo[0], 0] } else { [self.rng.next() as u8, 0] };
                let rest = [0, self.rng.below(4) as u8, 0, 1];
                (frames::icmp_protocol(src), frames::icmp(src, dst, head, rest, &payload))
            }
            6 => {
                let quoted = frames::udp(dst, src, (ports.1, ports.0), b"quoted");
                let quote = frames::ip(dst, src, 17, 60, None, &quoted);
                let head = if src.is_ipv4() { [3, 3] } else { [1, 4] };
                (frames::icmp_protocol(src), frames::icmp(src, dst, head, [0; 4], &quote))
            }
            _ => (self.rng.next() as u8, payload),
        }
    }

    fn neighbour(&mut self, port: usize) -> Vec<u8> {
        let own = if self.rng.chance(70) { Some(port.min(3)) } else { None };
        let from = Self::mac_of(port);
        if self.rng.chance(50) {
            let IpAddr::V4(ip) = self.address(true, own) else { unreachable!() };
            let IpAddr::V4(target) = self.address(true, None) else { unreachable!() };
            let operation = 1 + self.rng.below(2) as u8;
            let arp = frames::arp(operation, (from, ip.octets()), (Mac::ZERO, target.octets()));
            return frames::ethernet(Mac::BROADCAST, from, 0x0806, &arp);
        }
        let src = self.address(false, own);
        let target = self.address(false, None);
        let IpAddr::V6(bytes) = target else { unreachable!() };
        let kind = 130 + self.rng.below(14) as u8;
        let body = [&bytes.octets()[..], &[1, 1], &from.0].concat();
        let message = frames::icmp(src, target, [kind, 0], [0; 4], &body);
        let packet = frames::ip(src, target, 58, 255, None, &message);
        frames::ethernet(GATEWAY, from, 0x86dd, &packet)
    }

    fn bridged(&mut self, port: usize) -> Vec<u8> {
        let mac = |n: usize| Mac([2, 0, 0, 0, 2, n as u8]);
        let to = match self.rng.below(10) {
            0 => Mac::BROADCAST,
            1 => Mac([1, 0x80, 0xc2, 0, 0, self.rng.below(16) as u8]),
            _ => mac(self.rng.below(12)),
        };
        let from = if self.rng.chance(90) { mac(self.rng.below(12)) } else { Self::mac_of(port) };
        let payload = vec![port as u8; self.rng.below(1500)];
        let frame = frames::ethernet(to, from, 0x0800, &payload);
        match self.rng.below(4) {
            0 => frame,
            1 => frames::tagged(&frame, self.rng.next() as u16),
            _ => frames::tagged(&frame, 0xe000 | self.rng.below(4) as u16),
        }
    }

    fn routed(&mut self, port: usize) -> Vec<u8> {
        let v4 = self.rng.chance(50);
        let own = if port == HOST { 3 + self.rng.below(2) } else { port };
        let own = if self.rng.chance(90) { Some(own) } else { None };
        let (src, dst) = (self.address(v4, own), self.address(v4, None));
        let (protocol, message) = self.message(src, dst);
        let mac = Self::mac_of(port);
        let frame = |packet: &[u8]| frames::ethernet(GATEWAY, mac, frames::ethertype(src), packet);
        if self.rng.chance(15) {
            let id = self.rng.below(50) as u32;
            let cuts = [8 * (1 + self.rng.below(40)), 8 * (1 + self.rng.below(80))];
            let pieces = frames::fragments((src, dst), protocol, id, &message, &cuts);
            self.pieces.extend(pieces.iter().map(|p| (port, frame(p))));
            self.rng.shuffle(&mut self.pieces);
        }
        let ttl = *self.rng.pick(&[64, 64, 64, 64, 2, 1, 0, 255]);
        frame(&frames::ip(src, dst, protocol, ttl, None, &message))
    }

    /// Damages a frame, and sometimes corrects its IPv4 checksum.
    pub fn spoil(&mut self, frame: &mut Vec<u8>) {
        match self.rng.below(5) {
            0 => frame.truncate(self.rng.below(frame.len() + 1)),
            1 => frame.extend(vec![0; self.rng.below(100)]),
            2 => {
                for _ in 0..1 + self.rng.below(4) {
                    let at = self.rng.below(frame.len());
                    frame[at] ^= 1 << self.rng.below(8);
                }
            }
            3 => {
                let len = self.rng.below(frame.len());
                self.rng.fill(&mut frame[..len]);
            }
            _ => *frame = frames::tagged(frame, self.rng.next() as u16),
        }
        if frame.len() >= 34 && self.rng.chance(50) {
            frame[24..26].fill(0);
            let sum = frames::checksum(&[&frame[14..34]]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }

    fn offload(&mut self, frame: &[u8]) -> Offload {
        let sane = self.rng.chance(60);
        let protocol = frame.get(23).copied().unwrap_or(0);
        let gso = [GsoType::None, GsoType::TcpV4, GsoType::TcpV6, GsoType::UdpL4];
        let gso_type = match (sane, protocol) {
            (true, 6) => GsoType::TcpV4,
            (true, 17) => *self.rng.pick(&[GsoType::None, GsoType::UdpL4]),
            _ => *self.rng.pick(&gso),
        };
        Offload {
            gso_type,
            csum_partial: sane || self.rng.chance(50),
            gso_size: if sane { 500 } else { *self.rng.pick(&[0, 1, 536, 1448, 65535]) },
            csum_start: if sane { 34 } else { self.rng.below(1600) as u16 },
            csum_offset: if sane && protocol == 6 { 16 } else { 6 },
            ..Offload::default()
        }
    }

    /// The next frame, and the port on which it is received.
    #[expect(clippy::should_implement_trait, reason = "an endless iterator is not useful here")]
    pub fn next(&mut self) -> (usize, Packet) {
        if self.rng.chance(30)
            && let Some((port, frame)) = self.pieces.pop()
        {
            return (port, pooled(&frame));
        }
        let port = self.rng.below(PORTS);
        let mut frame = match (port, self.rng.below(10)) {
            (4.., _) => self.bridged(port),
            (_, 0 | 1) => self.neighbour(port),
            _ => self.routed(port),
        };
        if self.rng.chance(15) {
            self.spoil(&mut frame);
        }
        let mut packet = pooled(&frame);
        if self.rng.chance(10) {
            packet.offload = self.offload(&frame);
        }
        (port, packet)
    }
}
