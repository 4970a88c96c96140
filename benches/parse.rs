//! Parsing alone, beside other libraries: frame in, addresses, ports and protocol out.
//!
//! Each library walks Ethernet, IP and TCP or UDP by the checked way it recommends and fills a
//! flow key with what it found. Ours does more in the same call: it verifies the IPv4 header
//! checksum, compares all lengths, and hashes the key. 1,024 different frames are taken in turn,
//! those of `mix` in random order, so that neither branches nor addresses can be learnt.
//!
//! `cargo bench --bench parse`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use wire::flow_key::{Family, FlowKey, HashKey, v4_octets};

const FRAMES: usize = 1024;

/// SplitMix64: the same frames in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[derive(Clone, Copy)]
struct Kind {
    v6: bool,
    tcp: bool,
}

const KINDS: [(&str, Kind); 4] = [
    ("ipv4_tcp", Kind { v6: false, tcp: true }),
    ("ipv4_udp", Kind { v6: false, tcp: false }),
    ("ipv6_tcp", Kind { v6: true, tcp: true }),
    ("ipv6_udp", Kind { v6: true, tcp: false }),
];

/// A frame of 64 octets, or the few more that IPv6 and TCP need.
fn frame(kind: Kind, random: &mut Random) -> Vec<u8> {
    let (a, b, ports) = (random.next(), random.next(), random.next());
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = if kind.v6 {
        let address = |x: u64| (0xfd_u128 << 120 | u128::from(x)).to_be_bytes();
        builder.ipv6(address(a), address(b), 64)
    } else {
        builder.ipv4((a as u32).to_be_bytes(), (b as u32).to_be_bytes(), 64)
    };
    let (src, dst) = (ports as u16, (ports >> 16) as u16);
    let mut frame = Vec::new();
    // 64 octets on the wire are 60 in memory; what is left of them is payload.
    let headers = 14 + if kind.v6 { 40 } else { 20 } + if kind.tcp { 20 } else { 8 };
    let payload = [0; 64].get(headers..60).map_or(0, <[u8]>::len);
    let payload = vec![0; payload];
    if kind.tcp {
        builder.tcp(src, dst, 1, 1024).ack(1).write(&mut frame, &payload).unwrap();
    } else {
        builder.udp(src, dst).write(&mut frame, &payload).unwrap();
    }
    frame
}

/// Frames side by side at a stride of two cache lines.
struct Frames(Vec<([u8; 128], usize)>);

impl Frames {
    fn new(mut kind: impl FnMut(&mut Random) -> Kind) -> Self {
        let mut random = Random(1);
        let build = |_| {
            let kind = kind(&mut random);
            let frame = frame(kind, &mut random);
            let mut slot = [0; 128];
            slot[..frame.len()].copy_from_slice(&frame);
            (slot, frame.len())
        };
        Self((0..FRAMES).map(build).collect())
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(slot, len)| &slot[..*len])
    }
}

fn key(family: Family, addresses: ([u8; 16], [u8; 16]), proto: u8, ports: (u16, u16)) -> FlowKey {
    let ((src, dst), (src_port, dst_port)) = (addresses, ports);
    FlowKey { src, dst, src_port, dst_port, proto, family, zone: 0 }
}

fn with_etherparse(frame: &[u8]) -> Option<FlowKey> {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (proto, ports) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (6, (tcp.source_port(), tcp.destination_port())),
        TransportSlice::Udp(udp) => (17, (udp.source_port(), udp.destination_port())),
        _ => return None,
    };
    match packet.net? {
        NetSlice::Ipv4(ip) => {
            let (src, dst) = (ip.header().source_addr(), ip.header().destination_addr());
            Some(key(Family::V4, (v4_octets(src), v4_octets(dst)), proto, ports))
        }
        NetSlice::Ipv6(ip) => {
            Some(key(Family::V6, (ip.header().source(), ip.header().destination()), proto, ports))
        }
        _ => None,
    }
}

fn with_pnet(frame: &[u8]) -> Option<FlowKey> {
    use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
    use pnet_packet::{Packet, ip::IpNextHeaderProtocol, ip::IpNextHeaderProtocols};
    use pnet_packet::{ipv4::Ipv4Packet, ipv6::Ipv6Packet, tcp::TcpPacket, udp::UdpPacket};
    fn ports(proto: IpNextHeaderProtocol, segment: &[u8]) -> Option<(u16, u16)> {
        match proto {
            IpNextHeaderProtocols::Tcp => {
                let tcp = TcpPacket::new(segment)?;
                Some((tcp.get_source(), tcp.get_destination()))
            }
            IpNextHeaderProtocols::Udp => {
                let udp = UdpPacket::new(segment)?;
                Some((udp.get_source(), udp.get_destination()))
            }
            _ => None,
        }
    }
    let ethernet = EthernetPacket::new(frame)?;
    match ethernet.get_ethertype() {
        EtherTypes::Ipv4 => {
            let ip = Ipv4Packet::new(ethernet.payload())?;
            let proto = ip.get_next_level_protocol();
            let ports = ports(proto, ip.payload())?;
            let addresses = (v4_octets(ip.get_source()), v4_octets(ip.get_destination()));
            Some(key(Family::V4, addresses, proto.0, ports))
        }
        EtherTypes::Ipv6 => {
            let ip = Ipv6Packet::new(ethernet.payload())?;
            let proto = ip.get_next_header();
            let ports = ports(proto, ip.payload())?;
            let addresses = (ip.get_source().octets(), ip.get_destination().octets());
            Some(key(Family::V6, addresses, proto.0, ports))
        }
        _ => None,
    }
}

fn with_smoltcp(frame: &[u8]) -> Option<FlowKey> {
    use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};
    use smoltcp::wire::{TcpPacket, UdpPacket};
    fn ports(proto: IpProtocol, segment: &[u8]) -> Option<(u16, u16)> {
        match proto {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(segment).ok()?;
                Some((tcp.src_port(), tcp.dst_port()))
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(segment).ok()?;
                Some((udp.src_port(), udp.dst_port()))
            }
            _ => None,
        }
    }
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            let proto = ip.next_header();
            let ports = ports(proto, ip.payload())?;
            let addresses = (v4_octets(ip.src_addr()), v4_octets(ip.dst_addr()));
            Some(key(Family::V4, addresses, proto.into(), ports))
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            let proto = ip.next_header();
            let ports = ports(proto, ip.payload())?;
            let addresses = (ip.src_addr().octets(), ip.dst_addr().octets());
            Some(key(Family::V6, addresses, proto.into(), ports))
        }
        _ => None,
    }
}

/// One library over one set of frames, after a look that it finds what the frames hold.
fn measure<T>(
    criterion: &mut Criterion,
    library: &str,
    (name, frames): &(&str, Frames),
    parse: impl Fn(&[u8]) -> T,
    key_of: impl Fn(&T) -> Option<FlowKey>,
) {
    for frame in frames.iter() {
        let expected = wire::parse::parse(frame, &HashKey::new(0)).unwrap().key;
        assert_eq!(key_of(&parse(frame)), Some(expected), "{library} finds another key");
    }
    let mut group = criterion.benchmark_group(format!("parse/{library}"));
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function(*name, |bencher| {
        bencher.iter(|| {
            for frame in frames.iter() {
                black_box(parse(frame));
            }
        });
    });
    group.finish();
}

fn parsers(criterion: &mut Criterion) {
    let hash_key = black_box(HashKey::new(0x0123_4567_89ab_cdef));
    let mix = Frames::new(|random| KINDS[(random.next() % 4) as usize].1);
    let mut sets: Vec<_> =
        KINDS.iter().map(|&(name, kind)| (name, Frames::new(|_| kind))).collect();
    sets.insert(0, ("mix", mix));
    for set in &sets {
        let ours = |frame: &[u8]| wire::parse::parse(frame, &hash_key);
        measure(criterion, "podswitch", set, ours, |parsed| Some(parsed.as_ref().ok()?.key));
        measure(criterion, "etherparse", set, with_etherparse, |key| *key);
        measure(criterion, "pnet", set, with_pnet, |key| *key);
        measure(criterion, "smoltcp", set, with_smoltcp, |key| *key);
    }
}

fn config() -> Criterion {
    let second = std::time::Duration::from_secs(1);
    Criterion::default().warm_up_time(second).measurement_time(2 * second)
}

criterion_group! { name = benches; config = config(); targets = parsers }
criterion_main!(benches);
