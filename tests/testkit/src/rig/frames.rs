//! Frames built byte by byte, valid unless a test says otherwise; shares no code with the builders
//! of the crate.

use std::net::IpAddr;

use podswitch_wire::addr::Mac;

pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
}

/// The frame with an 802.1Q tag.
pub fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tci.to_be_bytes(), &frame[12..]].concat()
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The sum of RFC 1071 over `parts`, each padded to an even length.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for word in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |&b| u32::from(b));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of a layer-4 message with its pseudo-header; ICMPv4 has no pseudo-header.
pub fn l4_checksum(src: IpAddr, dst: IpAddr, protocol: u8, message: &[u8]) -> u16 {
    if protocol == 1 {
        return checksum(&[message]);
    }
    let len = (message.len() as u32).to_be_bytes();
    checksum(&[&bytes(src), &bytes(dst), &len, &[0, protocol], message])
}

/// A network-layer packet of either family. `fragment`: identification, offset in bytes, more.
pub fn ip(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ttl: u8,
    fragment: Option<(u32, u16, bool)>,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = (20 + payload.len()) as u16;
            let (id, field) = match fragment {
                None => (0, 0),
                Some((id, offset, more)) => (id as u16, (offset / 8) | (u16::from(more) << 13)),
            };
            packet.extend([0x45, 0]);
            packet.extend(total.to_be_bytes());
            packet.extend(id.to_be_bytes());
            packet.extend(field.to_be_bytes());
            packet.extend([ttl, protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let extra = if fragment.is_some() { 8 } else { 0 };
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(((payload.len() + extra) as u16).to_be_bytes());
            packet.extend([if fragment.is_some() { 44 } else { protocol }, ttl]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
            if let Some((id, offset, more)) = fragment {
                packet.extend([protocol, 0]);
                packet.extend((offset | u16::from(more)).to_be_bytes());
                packet.extend(id.to_be_bytes());
            }
        }
        _ => panic!("two families"),
    }
    packet.extend(payload);
    packet
}

pub fn ethertype(address: IpAddr) -> u16 {
    if address.is_ipv4() { 0x0800 } else { 0x86dd }
}

/// A UDP datagram with its checksum.
pub fn udp(src: IpAddr, dst: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(ports.0.to_be_bytes());
    message.extend(ports.1.to_be_bytes());
    message.extend(((8 + payload.len()) as u16).to_be_bytes());
    message.extend([0, 0]);
    message.extend(payload);
    // Zero would mean that there is no checksum (RFC 768).
    let sum = match l4_checksum(src, dst, 17, &message) {
        0 => 0xffff,
        sum => sum,
    };
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    message
}

/// A TCP segment with its checksum.
pub fn tcp(
    src: IpAddr,
    dst: IpAddr,
    ports: (u16, u16),
    (seq, ack, flags): (u32, u32, u8),
    payload: &[u8],
) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(ports.0.to_be_bytes());
    message.extend(ports.1.to_be_bytes());
    message.extend(seq.to_be_bytes());
    message.extend(ack.to_be_bytes());
    message.extend([5 << 4, flags, 0xfa, 0, 0, 0, 0, 0]);
    message.extend(payload);
    let sum = l4_checksum(src, dst, 6, &message);
    message[16..18].copy_from_slice(&sum.to_be_bytes());
    message
}

/// An ICMP message of the addresses' family, with its checksum; `head` is type and code.
pub fn icmp(src: IpAddr, dst: IpAddr, head: [u8; 2], rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = [&head[..], &[0, 0], &rest, body].concat();
    let sum = l4_checksum(src, dst, icmp_protocol(src), &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

pub fn icmp_protocol(family: IpAddr) -> u8 {
    if family.is_ipv4() { 1 } else { 58 }
}

/// An ARP packet: operation 1 is a request, 2 a reply.
pub fn arp(operation: u8, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender.0.0);
    packet.extend(sender.1);
    packet.extend(target.0.0);
    packet.extend(target.1);
    packet
}

/// The datagram `message` in fragments that carry `cuts` bytes each (multiples of 8); the last one
/// carries the remaining bytes.
pub fn fragments(
    (src, dst): (IpAddr, IpAddr),
    protocol: u8,
    id: u32,
    message: &[u8],
    cuts: &[usize],
) -> Vec<Vec<u8>> {
    let mut at = 0;
    let mut pieces = Vec::new();
    for cut in cuts.iter().copied().chain([message.len()]) {
        let end = (at + cut).min(message.len());
        let place = Some((id, at as u16, end < message.len()));
        pieces.push(ip(src, dst, protocol, 64, place, &message[at..end]));
        at = end;
    }
    pieces
}
