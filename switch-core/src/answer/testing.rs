//! Frames and their parse, for the tests of this module.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Parsed, parse};

use super::{Binding, Trust};
use crate::config::Gateway;
use crate::packet::{Packet, Pool, PoolConfig};

pub(super) const POD_MAC: Mac = Mac([0x0a, 0x58, 10, 244, 1, 5]);
pub(super) const OTHER_MAC: Mac = Mac([0x0a, 0x58, 10, 244, 1, 6]);
pub(super) const POD4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
pub(super) const OTHER4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
pub(super) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 5);
pub(super) const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 6);

pub(super) fn gateway() -> Gateway {
    Gateway::default()
}

/// The pod's binding, or the node's with the same addresses.
pub(super) fn binding(gateway: &Gateway, trust: Trust) -> Binding<'_> {
    Binding { mac: POD_MAC, ipv4: &[POD4], ipv6: &[POD6], gateway, trust }
}

pub(super) fn pool() -> Pool {
    Pool::new(PoolConfig { small: 4, large: 2 })
}

/// A pool whose buffers are full of junk, so that tests notice a byte that is not written.
pub(super) fn dirty_pool() -> Pool {
    let mut pool = pool();
    for len in [Pool::SMALL, Pool::LARGE] {
        let mut packet = pool.alloc_for(len).unwrap();
        packet.spare_mut().fill(0xa5);
        pool.free(packet);
    }
    pool
}

pub(super) fn packet(frame: &[u8]) -> (Packet, Parsed) {
    let parsed = parse(frame, &HashKey::new(7)).expect("a test's frame must parse");
    (Packet::from_frame(frame), parsed)
}

/// An ARP frame as it appears on the wire.
pub(super) struct Arp {
    pub(super) eth_src: Mac,
    pub(super) eth_dst: Mac,
    pub(super) operation: u16,
    pub(super) sender_mac: Mac,
    pub(super) sender_ip: Ipv4Addr,
    pub(super) target_mac: Mac,
    pub(super) target_ip: Ipv4Addr,
}

impl Arp {
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut f = Vec::new();
        f.extend(self.eth_dst.0);
        f.extend(self.eth_src.0);
        f.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
        f.extend(self.operation.to_be_bytes());
        f.extend(self.sender_mac.0);
        f.extend(self.sender_ip.octets());
        f.extend(self.target_mac.0);
        f.extend(self.target_ip.octets());
        f
    }
}

/// An ICMPv6 frame with its checksum right: Ethernet, IPv6, then `body` behind the checksum.
pub(super) fn icmp6(
    eth: (Mac, Mac),
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    kind_code: [u8; 2],
    body: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(eth.1.0);
    frame.extend(eth.0.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(((body.len() + 4) as u16).to_be_bytes());
    frame.extend([58, hop_limit]);
    frame.extend(src.octets());
    frame.extend(dst.octets());
    frame.extend([kind_code[0], kind_code[1], 0, 0]);
    frame.extend(body);
    let sum = icmp6_checksum(&frame);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The checksum that an ICMPv6 message behind 54 bytes must have, with its field taken as zero. It
/// is summed word by word as RFC 1071 and RFC 8200 §8.1 say.
pub(super) fn icmp6_checksum(frame: &[u8]) -> u16 {
    let mut message = frame[54..].to_vec();
    message[2..4].fill(0);
    let mut pseudo = frame[22..54].to_vec();
    pseudo.extend((message.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    pseudo.extend(message);
    rfc1071(&pseudo)
}

/// Ones' complement sum of RFC 1071 word by word, inverted.
pub(super) fn rfc1071(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// UDP between two addresses of one family, sent to the gateway's MAC.
pub(super) fn udp(src: IpAddr, dst: IpAddr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let eth = PacketBuilder::ethernet2(POD_MAC.0, gateway().mac.0);
    let mut frame = Vec::new();
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            eth.ipv4(s.octets(), d.octets(), ttl).udp(4000, 53).write(&mut frame, payload).unwrap()
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            eth.ipv6(s.octets(), d.octets(), ttl).udp(4000, 53).write(&mut frame, payload).unwrap()
        }
        _ => panic!("families differ"),
    }
    frame
}
