//! Parsing alone, beside other libraries. Two questions, each put to 1,024 different frames in
//! turn (those of `mix` in random order), so that neither branches nor addresses can be learnt:
//!
//! * `parse/*`: what a switch must know before it can look a flow up. Key, hash of the key, IPv4
//!   header checksum verified, TTL, TCP flags, offsets of payload and end. Ours is one call; the
//!   others walk Ethernet, IP and TCP or UDP by the checked way they recommend, verify the checksum
//!   by what they bring (etherparse and pnet: by computing it), and the same hash is taken.
//! * `reach/*`: addresses and ports only, nothing verified that the library does not insist on.
//!   Ours are the header views.
//!
//! `cargo bench --bench parse`

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use wire::flow_key::{Family, FlowKey, HashKey, proto, v4_octets};
use wire::parse::Parsed;

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

/// What was found of a frame. `VERIFY` asks the question of `parse`, otherwise it is `reach`'s
/// and only the key is filled.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Found {
    key: FlowKey,
    hash: u64,
    end: u32,
    payload: u16,
    ttl: u8,
    tcp_flags: u8,
}

impl Found {
    fn new(
        family: Family,
        (src, dst): ([u8; 16], [u8; 16]),
        proto: u8,
        (src_port, dst_port): (u16, u16),
    ) -> Self {
        let key = FlowKey { src, dst, src_port, dst_port, proto, family, zone: 0 };
        Self { key, ..Self::default() }
    }

    /// Fills in what `parse` asks beyond the key. `segment` is the layer-4 packet, `header_len` the
    /// length of its header.
    fn complete(
        self,
        frame: &[u8],
        segment: &[u8],
        header_len: usize,
        ttl: u8,
        flags: u8,
        hash_key: &HashKey,
    ) -> Self {
        let start = segment.as_ptr() as usize - frame.as_ptr() as usize;
        Self {
            hash: self.key.hash(hash_key),
            end: (start + segment.len()) as u32,
            payload: (start + header_len) as u16,
            ttl,
            tcp_flags: flags,
            ..self
        }
    }
}

fn with_etherparse<const VERIFY: bool>(frame: &[u8], hash_key: &HashKey) -> Option<Found> {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (proto, ports, header_len, flags) = match packet.transport? {
        TransportSlice::Tcp(tcp) => {
            let ports = (tcp.source_port(), tcp.destination_port());
            (proto::TCP, ports, tcp.header_len(), tcp.header_slice()[13])
        }
        TransportSlice::Udp(udp) => (proto::UDP, (udp.source_port(), udp.destination_port()), 8, 0),
        _ => return None,
    };
    let (found, segment, ttl) = match packet.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            if VERIFY && header.to_header().calc_header_checksum() != header.header_checksum() {
                return None;
            }
            let addresses = (v4_octets(header.source_addr()), v4_octets(header.destination_addr()));
            let found = Found::new(Family::V4, addresses, proto, ports);
            (found, ip.payload().payload, header.ttl())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let addresses = (header.source(), header.destination());
            let found = Found::new(Family::V6, addresses, proto, ports);
            (found, ip.payload().payload, header.hop_limit())
        }
        _ => return None,
    };
    if !VERIFY {
        return Some(found);
    }
    Some(found.complete(frame, segment, header_len, ttl, flags, hash_key))
}

fn with_pnet<const VERIFY: bool>(frame: &[u8], hash_key: &HashKey) -> Option<Found> {
    use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
    use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
    use pnet_packet::{ipv4, ipv6::Ipv6Packet, tcp::TcpPacket, udp::UdpPacket};
    type Upper = ((u16, u16), usize, u8);
    fn upper(proto: IpNextHeaderProtocol, segment: &[u8]) -> Option<Upper> {
        match proto {
            IpNextHeaderProtocols::Tcp => {
                let tcp = TcpPacket::new(segment)?;
                let len = usize::from(tcp.get_data_offset()) * 4;
                Some(((tcp.get_source(), tcp.get_destination()), len, tcp.get_flags()))
            }
            IpNextHeaderProtocols::Udp => {
                let udp = UdpPacket::new(segment)?;
                Some(((udp.get_source(), udp.get_destination()), 8, 0))
            }
            _ => None,
        }
    }
    let ethernet = EthernetPacket::new(frame)?;
    let packet = frame.get(14..)?;
    let (found, segment, upper, ttl) = match ethernet.get_ethertype() {
        EtherTypes::Ipv4 => {
            let ip = ipv4::Ipv4Packet::new(packet)?;
            if VERIFY && ipv4::checksum(&ip) != ip.get_checksum() {
                return None;
            }
            let (header_len, total) = (ip.get_header_length() * 4, ip.get_total_length());
            let segment = packet.get(usize::from(header_len)..usize::from(total))?;
            let upper = upper(ip.get_next_level_protocol(), segment)?;
            let addresses = (v4_octets(ip.get_source()), v4_octets(ip.get_destination()));
            let proto = ip.get_next_level_protocol().0;
            (Found::new(Family::V4, addresses, proto, upper.0), segment, upper, ip.get_ttl())
        }
        EtherTypes::Ipv6 => {
            let ip = Ipv6Packet::new(packet)?;
            let segment = packet.get(40..40 + usize::from(ip.get_payload_length()))?;
            let upper = upper(ip.get_next_header(), segment)?;
            let addresses = (ip.get_source().octets(), ip.get_destination().octets());
            let proto = ip.get_next_header().0;
            (Found::new(Family::V6, addresses, proto, upper.0), segment, upper, ip.get_hop_limit())
        }
        _ => return None,
    };
    if !VERIFY {
        return Some(found);
    }
    Some(found.complete(frame, segment, upper.1, ttl, upper.2, hash_key))
}

fn with_smoltcp<const VERIFY: bool>(frame: &[u8], hash_key: &HashKey) -> Option<Found> {
    use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet};
    use smoltcp::wire::{TcpPacket, UdpPacket};
    type Upper = ((u16, u16), usize, u8);
    fn upper(proto: IpProtocol, segment: &[u8]) -> Option<Upper> {
        match proto {
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(segment).ok()?;
                // The flags have a getter each; this is the octet that they look at.
                let ports = (tcp.src_port(), tcp.dst_port());
                Some((ports, usize::from(tcp.header_len()), segment[13]))
            }
            IpProtocol::Udp => {
                let udp = UdpPacket::new_checked(segment).ok()?;
                Some(((udp.src_port(), udp.dst_port()), 8, 0))
            }
            _ => None,
        }
    }
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let packet = &frame[14..];
    let (found, segment, upper, ttl) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            if VERIFY && !ip.verify_checksum() {
                return None;
            }
            let segment = &packet[usize::from(ip.header_len())..usize::from(ip.total_len())];
            let upper = upper(ip.next_header(), segment)?;
            let addresses = (v4_octets(ip.src_addr()), v4_octets(ip.dst_addr()));
            let proto = ip.next_header().into();
            (Found::new(Family::V4, addresses, proto, upper.0), segment, upper, ip.hop_limit())
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let segment = &packet[40..ip.total_len()];
            let upper = upper(ip.next_header(), segment)?;
            let addresses = (ip.src_addr().octets(), ip.dst_addr().octets());
            let proto = ip.next_header().into();
            (Found::new(Family::V6, addresses, proto, upper.0), segment, upper, ip.hop_limit())
        }
        _ => return None,
    };
    if !VERIFY {
        return Some(found);
    }
    Some(found.complete(frame, segment, upper.1, ttl, upper.2, hash_key))
}

/// Ours by hand, header by header, as one would use smoltcp's.
fn with_views(frame: &[u8]) -> Option<Found> {
    use wire::parse::ethertype;
    use wire::{ethernet, ipv4, ipv6, tcp, udp};
    fn ports(proto: u8, segment: &[u8]) -> Option<(u16, u16)> {
        match proto {
            proto::TCP => {
                let tcp = tcp::Packet::new_checked(segment).ok()?;
                Some((tcp.src_port(), tcp.dst_port()))
            }
            proto::UDP => {
                let udp = udp::Packet::new_checked(segment).ok()?;
                Some((udp.src_port(), udp.dst_port()))
            }
            _ => None,
        }
    }
    let ethernet = ethernet::Frame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        ethertype::IPV4 => {
            let ip = ipv4::Packet::new_checked(ethernet.payload()).ok()?;
            let ports = ports(ip.protocol(), ip.payload())?;
            let addresses = (v4_octets(ip.src()), v4_octets(ip.dst()));
            Some(Found::new(Family::V4, addresses, ip.protocol(), ports))
        }
        ethertype::IPV6 => {
            let ip = ipv6::Packet::new_checked(ethernet.payload()).ok()?;
            let ports = ports(ip.next_header(), ip.payload())?;
            let addresses = (ip.src().octets(), ip.dst().octets());
            Some(Found::new(Family::V6, addresses, ip.next_header(), ports))
        }
        _ => None,
    }
}

/// One library over one set of frames; what it found is left in memory, as a burst's is.
fn measure(
    criterion: &mut Criterion,
    group: &str,
    (name, frames): &(&str, Frames),
    parse: impl Fn(&[u8], &mut Found) -> bool,
) {
    let hash_key = HashKey::new(SEED);
    for frame in frames.iter() {
        let parsed = wire::parse::parse(frame, &hash_key).unwrap();
        let expected = if group.starts_with("reach") {
            Found { key: parsed.key, ..Found::default() }
        } else {
            summary(&parsed)
        };
        let mut found = Found::default();
        assert!(parse(frame, &mut found) && found == expected, "{group} finds something else");
    }
    let mut group = criterion.benchmark_group(group);
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function(*name, |bencher| {
        let mut burst = [Found::default(); BURST];
        bencher.iter(|| {
            let mut good = 0_usize;
            for (at, frame) in frames.iter().enumerate() {
                good += usize::from(parse(frame, &mut burst[at % BURST]));
                if at % BURST == BURST - 1 {
                    black_box(&mut burst);
                }
            }
            good
        });
    });
    group.finish();
}

fn summary(p: &Parsed) -> Found {
    Found {
        key: p.key,
        hash: p.hash,
        end: p.end,
        payload: p.payload,
        ttl: p.ttl,
        tcp_flags: p.tcp_flags,
    }
}

/// Adapts what gives a value to what is measured.
fn store(parse: impl Fn(&[u8]) -> Option<Found>) -> impl Fn(&[u8], &mut Found) -> bool {
    move |frame, found| match parse(frame) {
        Some(value) => {
            *found = value;
            true
        }
        None => false,
    }
}

fn parsers(criterion: &mut Criterion) {
    let key = &black_box(HashKey::new(SEED));
    let mix = Frames::new(|random| KINDS[(random.next() % 4) as usize].1);
    let mut sets: Vec<_> =
        KINDS.iter().map(|&(name, kind)| (name, Frames::new(|_| kind))).collect();
    sets.insert(0, ("mix", mix));
    for set in &sets {
        ours(criterion, set, key);
        let c = &mut *criterion;
        measure(c, "parse/etherparse", set, store(|f| with_etherparse::<true>(f, key)));
        measure(c, "parse/pnet", set, store(|f| with_pnet::<true>(f, key)));
        measure(c, "parse/smoltcp", set, store(|f| with_smoltcp::<true>(f, key)));
        measure(c, "reach/podswitch", set, store(with_views));
        measure(c, "reach/etherparse", set, store(|f| with_etherparse::<false>(f, key)));
        measure(c, "reach/pnet", set, store(|f| with_pnet::<false>(f, key)));
        measure(c, "reach/smoltcp", set, store(|f| with_smoltcp::<false>(f, key)));
    }
}

/// Ours writes its own, larger record.
fn ours(criterion: &mut Criterion, (name, frames): &(&str, Frames), key: &HashKey) {
    let mut group = criterion.benchmark_group("parse/podswitch");
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function(*name, |bencher| {
        let mut burst = [Parsed::default(); BURST];
        bencher.iter(|| {
            let mut good = 0_usize;
            for (at, frame) in frames.iter().enumerate() {
                let slot = &mut burst[at % BURST];
                good += usize::from(wire::parse::parse_into(frame, key, slot).is_ok());
                if at % BURST == BURST - 1 {
                    black_box(&mut burst);
                }
            }
            good
        });
    });
    group.finish();
}

fn config() -> Criterion {
    let second = std::time::Duration::from_secs(1);
    Criterion::default().warm_up_time(second / 2).measurement_time(second)
}

criterion_group! { name = benches; config = config(); targets = parsers }
criterion_main!(benches);
