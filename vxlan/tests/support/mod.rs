//! Shared by the tests: frames built and parsed by `etherparse`, as an independent implementation.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::net::IpAddr;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use podswitch_wire::flow_key::FlowKey;
use podswitch_wire::parse::{Fragment, Network, Parsed};

/// A frame of the kernel's captures.
pub(crate) struct Captured {
    pub(crate) vni: u32,
    pub(crate) inside: String,
    pub(crate) frame: Vec<u8>,
}

/// Frames that Linux VXLAN devices sent; the head of the file describes them.
pub(crate) fn kernel_frames() -> Vec<Captured> {
    let lines = include_str!("../data/kernel.txt").lines();
    let frames = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let mut parts = line.split('|');
        let vni = parts.next().unwrap().parse().unwrap();
        let inside = parts.next().unwrap().to_owned();
        Captured { vni, inside, frame: from_hex(parts.next().unwrap()) }
    });
    frames.collect()
}

/// Bytes from hexadecimal text.
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let byte = |i| u8::from_str_radix(&text[i..i + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

/// A parse of a whole, well-formed frame by `etherparse`, in our terms.
pub(crate) fn dissect(frame: &[u8]) -> Parsed {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    let mut parsed = Parsed { end: frame.len() as u32, ..Parsed::default() };
    let (src, dst, proto): (IpAddr, IpAddr, u8) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            parsed.network = Network::Ipv4;
            parsed.traffic_class = header.dcp().value() << 2 | header.ecn().value();
            parsed.ttl = header.ttl();
            parsed.dont_fragment = header.dont_fragment();
            if header.is_fragmenting_payload() {
                parsed.fragment = if header.fragments_offset().value() == 0 {
                    Fragment::First
                } else {
                    Fragment::Later
                };
            }
            (header.source_addr().into(), header.destination_addr().into(), header.protocol().0)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            parsed.network = Network::Ipv6;
            parsed.traffic_class = header.traffic_class();
            parsed.ttl = header.hop_limit();
            parsed.dont_fragment = true;
            let upper = ip.payload().ip_number.0;
            (header.source_addr().into(), header.destination_addr().into(), upper)
        }
        _ => {
            parsed.network = Network::Other;
            return parsed;
        }
    };
    let (ports, l4) = match &sliced.transport {
        Some(TransportSlice::Udp(udp)) => {
            ((udp.source_port(), udp.destination_port()), Some(udp.slice()))
        }
        Some(TransportSlice::Tcp(tcp)) => {
            ((tcp.source_port(), tcp.destination_port()), Some(tcp.slice()))
        }
        _ => ((0, 0), None),
    };
    parsed.l3 = 14;
    if let Some(l4) = l4 {
        parsed.l4 = (l4.as_ptr() as usize - frame.as_ptr() as usize) as u16;
        parsed.payload = parsed.l4 + if proto == 17 { 8 } else { u16::from(l4[12] >> 4) * 4 };
    }
    parsed.key = FlowKey::new(src, dst, proto, ports.0, ports.1).expect("one family");
    parsed
}

/// A UDP frame from one address to another.
pub(crate) fn udp_frame(src: IpAddr, dst: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let builder = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => builder.ipv4(s.octets(), d.octets(), 64),
        (IpAddr::V6(s), IpAddr::V6(d)) => builder.ipv6(s.octets(), d.octets(), 64),
        _ => panic!("one family"),
    };
    let mut frame = Vec::new();
    builder.udp(ports.0, ports.1).write(&mut frame, payload).unwrap();
    frame
}

/// Whether the UDP checksum of a whole frame is right, zero excluded; by `etherparse`.
pub(crate) fn udp_checksum_is_right(frame: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = sliced.transport else { return false };
    let header = udp.to_header();
    let expected = match sliced.net.unwrap() {
        NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()),
        NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload()),
        _ => panic!("no network layer"),
    };
    expected == Ok(header.checksum)
}
