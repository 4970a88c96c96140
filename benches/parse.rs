//! Parsing alone, compared with other libraries. Two tasks, each with 1,024 different frames in
//! turn (those of `mix` in random order), so that the processor can learn neither branches nor
//! addresses:
//!
//! * `parse/*`: everything that a switch must know before it can look a flow up: key, hash of the
//!   key, verified IPv4 header checksum, TTL, TCP flags, offsets of payload and end. This library
//!   does it in one call. The others parse Ethernet, IP and TCP or UDP with the checked functions
//!   that they recommend, verify the checksum with their own functions (etherparse and pnet: by
//!   computing it), and compute the same hash.
//! * `reach/*`: addresses and ports only; nothing is verified beyond what the library always
//!   verifies. This library uses its header views.
//!
//! `cargo bench --bench parse`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use podswitch_benches::cpu_time::CpuTime;
use podswitch_wire::flow_key::{Family, FlowKey, HashKey, proto, v4_bytes};
use podswitch_wire::parse::{Network, Parsed, ethertype, parse_into};

const FRAMES: usize = 1024;
const BURST: usize = 64;
const SEED: u128 = 0x0123_4567_89ab_cdef;

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

/// A frame of 64 bytes, or the few more bytes that IPv6 and TCP need.
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
    // 64 bytes on the wire are 60 in memory; the remaining bytes are payload.
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

/// Frames in one buffer at a stride of two cache lines.
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

/// Writes the parsed values to their destination: with `VERIFY` the record that a switch keeps of a
/// frame (except some fields that only this library fills), otherwise the key. All libraries write
/// in place: returning the values would cost each of them up to 10 ns more. `segment` is the
/// layer-4 packet.
#[inline(always)]
fn fill<const VERIFY: bool>(
    found: &mut Parsed,
    frame: &[u8],
    key: FlowKey,
    segment: &[u8],
    upper: Upper,
    ttl: u8,
    hash_key: &HashKey,
) {
    if !VERIFY {
        found.key = key;
        return;
    }
    let l4 = segment.as_ptr() as usize - frame.as_ptr() as usize;
    let (network, ethertype) = match key.family {
        Family::V4 => (Network::Ipv4, ethertype::IPV4),
        Family::V6 => (Network::Ipv6, ethertype::IPV6),
    };
    *found = Parsed {
        key,
        hash: key.hash(hash_key),
        end: (l4 + segment.len()) as u32,
        l3: 14,
        l4: l4 as u16,
        payload: (l4 + upper.header_len) as u16,
        ethertype,
        network,
        ttl,
        tcp_flags: upper.flags,
        ..Parsed::default()
    };
}

/// The fields of the layer-4 header.
#[derive(Clone, Copy)]
struct Upper {
    src: u16,
    dst: u16,
    header_len: usize,
    flags: u8,
}

fn key(family: Family, src: [u8; 16], dst: [u8; 16], proto: u8, upper: Upper) -> FlowKey {
    FlowKey { src, dst, src_port: upper.src, dst_port: upper.dst, proto, family, zone: 0 }
}

fn with_etherparse<const VERIFY: bool>(
    frame: &[u8],
    hash_key: &HashKey,
    found: &mut Parsed,
) -> Option<()> {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (proto, upper) = match packet.transport? {
        TransportSlice::Tcp(tcp) => {
            let (src, dst) = (tcp.source_port(), tcp.destination_port());
            let flags = tcp.header_slice()[13];
            (proto::TCP, Upper { src, dst, header_len: tcp.header_len(), flags })
        }
        TransportSlice::Udp(udp) => {
            let (src, dst) = (udp.source_port(), udp.destination_port());
            (proto::UDP, Upper { src, dst, header_len: 8, flags: 0 })
        }
        _ => return None,
    };
    let (key, segment, ttl) = match packet.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            if VERIFY && header.to_header().calc_header_checksum() != header.header_checksum() {
                return None;
            }
            let (src, dst) = (header.source_addr(), header.destination_addr());
            let key = key(Family::V4, v4_bytes(src), v4_bytes(dst), proto, upper);
            (key, ip.payload().payload, header.ttl())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let key = key(Family::V6, header.source(), header.destination(), proto, upper);
            (key, ip.payload().payload, header.hop_limit())
        }
        _ => return None,
    };
    fill::<VERIFY>(found, frame, key, segment, upper, ttl, hash_key);
    Some(())
}

fn with_pnet<const VERIFY: bool>(
    frame: &[u8],
    hash_key: &HashKey,
    found: &mut Parsed,
) -> Option<()> {
    use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
    use pnet_packet::{ipv4, ipv6::Ipv6Packet, tcp::TcpPacket, udp::UdpPacket};
    fn upper(proto: u8, segment: &[u8]) -> Option<Upper> {
        match proto {
            proto::TCP => {
                let tcp = TcpPacket::new(segment)?;
                let header_len = usize::from(tcp.get_data_offset()) * 4;
                let (src, dst) = (tcp.get_source(), tcp.get_destination());
                Some(Upper { src, dst, header_len, flags: tcp.get_flags() })
            }
            proto::UDP => {
                let udp = UdpPacket::new(segment)?;
                let (src, dst) = (udp.get_source(), udp.get_destination());
                Some(Upper { src, dst, header_len: 8, flags: 0 })
            }
            _ => None,
        }
    }
    let ethernet = EthernetPacket::new(frame)?;
    let packet = frame.get(14..)?;
    match ethernet.get_ethertype() {
        EtherTypes::Ipv4 => {
            let ip = ipv4::Ipv4Packet::new(packet)?;
            if VERIFY && ipv4::checksum(&ip) != ip.get_checksum() {
                return None;
            }
            let (header_len, total) = (ip.get_header_length() * 4, ip.get_total_length());
            let segment = packet.get(usize::from(header_len)..usize::from(total))?;
            let proto = ip.get_next_level_protocol().0;
            let upper = upper(proto, segment)?;
            let (src, dst) = (v4_bytes(ip.get_source()), v4_bytes(ip.get_destination()));
            let key = key(Family::V4, src, dst, proto, upper);
            fill::<VERIFY>(found, frame, key, segment, upper, ip.get_ttl(), hash_key);
        }
        EtherTypes::Ipv6 => {
            let ip = Ipv6Packet::new(packet)?;
            let segment = packet.get(40..40 + usize::from(ip.get_payload_length()))?;
            let proto = ip.get_next_header().0;
            let upper = upper(proto, segment)?;
            let (src, dst) = (ip.get_source().octets(), ip.get_destination().octets());
            let key = key(Family::V6, src, dst, proto, upper);
            fill::<VERIFY>(found, frame, key, segment, upper, ip.get_hop_limit(), hash_key);
        }
        _ => return None,
    }
    Some(())
}

fn with_smoltcp<const VERIFY: bool>(
    frame: &[u8],
    hash_key: &HashKey,
    found: &mut Parsed,
) -> Option<()> {
    use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};
    use smoltcp::wire::{TcpPacket, UdpPacket};
    fn upper(proto: IpProtocol, segment: &[u8]) -> Option<Upper> {
        match proto {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(segment).ok()?;
                let (src, dst) = (tcp.src_port(), tcp.dst_port());
                // The library has a getter for each flag; this is the byte that they read.
                let flags = segment[13];
                Some(Upper { src, dst, header_len: usize::from(tcp.header_len()), flags })
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(segment).ok()?;
                let (src, dst) = (udp.src_port(), udp.dst_port());
                Some(Upper { src, dst, header_len: 8, flags: 0 })
            }
            _ => None,
        }
    }
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let packet = &frame[14..];
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            if VERIFY && !ip.verify_checksum() {
                return None;
            }
            let segment = &packet[usize::from(ip.header_len())..usize::from(ip.total_len())];
            let proto = ip.next_header();
            let upper = upper(proto, segment)?;
            let (src, dst) = (v4_bytes(ip.src_addr()), v4_bytes(ip.dst_addr()));
            let key = key(Family::V4, src, dst, proto.into(), upper);
            fill::<VERIFY>(found, frame, key, segment, upper, ip.hop_limit(), hash_key);
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let segment = &packet[40..ip.total_len()];
            let proto = ip.next_header();
            let upper = upper(proto, segment)?;
            let (src, dst) = (ip.src_addr().octets(), ip.dst_addr().octets());
            let key = key(Family::V6, src, dst, proto.into(), upper);
            fill::<VERIFY>(found, frame, key, segment, upper, ip.hop_limit(), hash_key);
        }
        _ => return None,
    }
    Some(())
}

/// This library's header views, called one by one, in the way that smoltcp's are used.
fn with_views(frame: &[u8], hash_key: &HashKey, found: &mut Parsed) -> Option<()> {
    use podswitch_wire::{ethernet, ipv4, ipv6, tcp, udp};
    fn upper(proto: u8, segment: &[u8]) -> Option<Upper> {
        match proto {
            proto::TCP => {
                let tcp = tcp::Packet::new_checked(segment).ok()?;
                let (src, dst) = (tcp.src_port(), tcp.dst_port());
                Some(Upper { src, dst, header_len: tcp.header_len(), flags: tcp.flags() })
            }
            proto::UDP => {
                let udp = udp::Packet::new_checked(segment).ok()?;
                let (src, dst) = (udp.src_port(), udp.dst_port());
                Some(Upper { src, dst, header_len: 8, flags: 0 })
            }
            _ => None,
        }
    }
    let ethernet = ethernet::Frame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        ethertype::IPV4 => {
            let ip = ipv4::Packet::new_checked(ethernet.payload()).ok()?;
            let upper = upper(ip.protocol(), ip.payload())?;
            let (src, dst) = (v4_bytes(ip.src()), v4_bytes(ip.dst()));
            let key = key(Family::V4, src, dst, ip.protocol(), upper);
            fill::<false>(found, frame, key, ip.payload(), upper, ip.ttl(), hash_key);
        }
        ethertype::IPV6 => {
            let ip = ipv6::Packet::new_checked(ethernet.payload()).ok()?;
            let upper = upper(ip.next_header(), ip.payload())?;
            let (src, dst) = (ip.src().octets(), ip.dst().octets());
            let key = key(Family::V6, src, dst, ip.next_header(), upper);
            fill::<false>(found, frame, key, ip.payload(), upper, ip.hop_limit(), hash_key);
        }
        _ => return None,
    }
    Some(())
}

/// One library with one set of frames; the results are left in memory, as for a burst.
fn measure(
    criterion: &mut Criterion<CpuTime>,
    group: &str,
    (name, frames): &(&str, Frames),
    parse: impl Fn(&[u8], &HashKey, &mut Parsed) -> Option<()>,
) {
    let hash_key = &black_box(HashKey::new(SEED));
    for frame in frames.iter() {
        let expected = podswitch_wire::parse::parse(frame, hash_key).unwrap();
        let mut found = Parsed::default();
        assert!(parse(frame, hash_key, &mut found).is_some());
        assert_eq!(found.key, expected.key, "{group}");
        if group.starts_with("parse") {
            // Only this library checks for these.
            found.traffic_class = expected.traffic_class;
            found.dont_fragment = expected.dont_fragment;
            assert_eq!(found, expected, "{group}");
        }
    }
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function(*name, |bencher| {
        let mut burst = [Parsed::default(); BURST];
        bencher.iter(|| {
            let mut good = 0_usize;
            for (at, frame) in frames.iter().enumerate() {
                let slot = &mut burst[at % BURST];
                good += usize::from(parse(frame, hash_key, slot).is_some());
                if at % BURST == BURST - 1 {
                    black_box(&mut burst);
                }
            }
            good
        });
    });
    group.finish();
}

fn parsers(criterion: &mut Criterion<CpuTime>) {
    let mix = Frames::new(|random| KINDS[(random.next() % 4) as usize].1);
    let mut sets: Vec<_> =
        KINDS.iter().map(|&(name, kind)| (name, Frames::new(|_| kind))).collect();
    sets.insert(0, ("mix", mix));
    for set in &sets {
        let c = &mut *criterion;
        measure(c, "parse/podswitch", set, |f, key, found| parse_into(f, key, found).ok());
        measure(c, "parse/etherparse", set, with_etherparse::<true>);
        measure(c, "parse/pnet", set, with_pnet::<true>);
        measure(c, "parse/smoltcp", set, with_smoltcp::<true>);
        measure(c, "reach/podswitch", set, with_views);
        measure(c, "reach/etherparse", set, with_etherparse::<false>);
        measure(c, "reach/pnet", set, with_pnet::<false>);
        measure(c, "reach/smoltcp", set, with_smoltcp::<false>);
    }
}

fn config() -> Criterion<CpuTime> {
    let second = std::time::Duration::from_secs(1);
    Criterion::default().with_measurement(CpuTime).warm_up_time(second / 2).measurement_time(second)
}

criterion_group! { name = benches; config = config(); targets = parsers }
criterion_main!(benches);
