//! Packets that the switch answers itself: ARP, neighbour discovery, pings of the gateway, ICMP
//! errors and TCP resets.
//!
//! Called by the engine on a worker's thread, for frames that are off the hit path. Each judge
//! looks at one frame and says what becomes of it; each builder writes one frame into a buffer of
//! the worker's pool. Nothing here keeps state but the limiter that the caller owns, learns
//! an address, looks up a route or transmits: an answer leaves by the port that asked, or is
//! routed by the caller like any other packet.

pub mod arp;
pub mod icmp;
pub mod nd;
pub mod tcp;
#[cfg(test)]
mod testing;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_wire::addr::Mac;
use podswitch_wire::parse::{Network, Parsed};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet,
};

use crate::config::Gateway;
use crate::packet::{Packet, Pool};

/// TTL and hop limit of packets that the switch originates.
const HOP_LIMIT: u8 = 64;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Who stands behind a port, as far as ARP and neighbour discovery must know.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The neighbour's MAC address.
    pub mac: Mac,
    /// The neighbour's IPv4 addresses.
    pub ipv4: &'a [Ipv4Addr],
    /// The neighbour's IPv6 addresses; link-local ones need not be among them.
    pub ipv6: &'a [Ipv6Addr],
    /// What the switch is to the neighbour.
    pub gateway: &'a Gateway,
    /// How far the neighbour is believed.
    pub trust: Trust,
}

/// How far a neighbour is believed about its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// A pod: it has the addresses of its binding, and IPv6 link-local ones, and no other
    /// (threats T-S1, T-S2).
    Bound,
    /// The node's own stack: it may have addresses that we do not know of, but none of those
    /// that the switch answers for.
    Node,
}

/// Why a packet is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// The rules forbid an answer to such a packet.
    Forbidden,
    /// As many answers as the limits allow were sent lately.
    RateLimited,
    /// The checksum of the packet to be answered is wrong.
    BadChecksum,
    /// The pool has no buffer.
    NoBuffer,
}

/// Link-layer source and destination of a frame.
fn macs(frame: &[u8]) -> Option<(Mac, Mac)> {
    let (dst, rest) = frame.split_first_chunk::<6>()?;
    let src = rest.first_chunk::<6>()?;
    Some((Mac(*src), Mac(*dst)))
}

/// An answer's frame: the Ethernet header is written, `len` bytes behind it are for the caller,
/// every one of them (the buffer holds what it held before).
fn ethernet(
    pool: &mut Pool,
    src: Mac,
    dst: Mac,
    protocol: EthernetProtocol,
    len: usize,
) -> Option<Packet> {
    let mut packet = pool.alloc_for(ETHERNET + len)?;
    packet.set_len(ETHERNET + len);
    let mut frame = EthernetFrame::new_unchecked(packet.bytes_mut());
    frame.set_src_addr(EthernetAddress(src.0));
    frame.set_dst_addr(EthernetAddress(dst.0));
    frame.set_ethertype(protocol);
    Some(packet)
}

/// Whom an IP answer is from and to.
#[derive(Clone, Copy, Debug)]
struct Way {
    src_mac: Mac,
    dst_mac: Mac,
    src: IpAddr,
    dst: IpAddr,
}

impl Way {
    /// Back to where `packet` came from, from the address that it was sent to. `None`: RFC 1812
    /// §4.3.2.7 and RFC 4443 §2.4 (e) forbid an answer for its addresses or its place in the
    /// datagram.
    fn back(packet: &Packet, parsed: &Parsed) -> Option<Self> {
        let (src_mac, dst_mac) = macs(packet.bytes())?;
        let is_ip = matches!(parsed.network, Network::Ipv4 | Network::Ipv6);
        let (src, dst) = (parsed.key.src_addr(), parsed.key.dst_addr());
        let fit = is_ip
            && src_mac.is_unicast()
            && dst_mac.is_unicast()
            && is_one_host(src)
            && is_one_host(dst);
        fit.then_some(Self { src_mac: dst_mac, dst_mac: src_mac, src: dst, dst: src })
    }

    /// A frame with its Ethernet and IP headers written, for `len` bytes of `protocol` at the
    /// offset that is returned with it. `None`: no buffer, or source and destination of
    /// different families.
    fn packet(
        &self,
        pool: &mut Pool,
        protocol: IpProtocol,
        traffic_class: u8,
        len: usize,
    ) -> Option<(Packet, usize)> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let total = u16::try_from(IPV4 + len).ok()?;
                let (src_mac, dst_mac) = (self.src_mac, self.dst_mac);
                let mut packet =
                    ethernet(pool, src_mac, dst_mac, EthernetProtocol::Ipv4, IPV4 + len)?;
                let mut ip = Ipv4Packet::new_unchecked(&mut packet.bytes_mut()[ETHERNET..]);
                ip.set_version(4);
                ip.set_header_len(IPV4 as u8);
                ip.set_dscp(traffic_class >> 2);
                ip.set_ecn(traffic_class & 3);
                ip.set_total_len(total);
                // An atomic datagram: it needs no identification (RFC 6864 §4.1).
                ip.set_ident(0);
                ip.clear_flags();
                ip.set_dont_frag(true);
                ip.set_frag_offset(0);
                ip.set_hop_limit(HOP_LIMIT);
                ip.set_next_header(protocol);
                ip.set_src_addr(src);
                ip.set_dst_addr(dst);
                ip.fill_checksum();
                Some((packet, ETHERNET + IPV4))
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let payload = u16::try_from(len).ok()?;
                let (src_mac, dst_mac) = (self.src_mac, self.dst_mac);
                let mut packet =
                    ethernet(pool, src_mac, dst_mac, EthernetProtocol::Ipv6, IPV6 + len)?;
                let mut ip = Ipv6Packet::new_unchecked(&mut packet.bytes_mut()[ETHERNET..]);
                ip.set_version(6);
                ip.set_traffic_class(traffic_class);
                ip.set_flow_label(0);
                ip.set_payload_len(payload);
                ip.set_next_header(protocol);
                ip.set_hop_limit(HOP_LIMIT);
                ip.set_src_addr(src);
                ip.set_dst_addr(dst);
                Some((packet, ETHERNET + IPV6))
            }
            _ => None,
        }
    }
}

/// Whether an address names a single host that may send and be sent to: not unspecified,
/// loopback, multicast, broadcast or reserved (RFC 1812 §4.3.2.7, §5.3.7; RFC 4443 §2.4 (e.6)).
fn is_one_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !matches!(a.octets(), [0 | 127 | 224..=255, ..]),
        IpAddr::V6(a) => !a.is_unspecified() && !a.is_loopback() && !a.is_multicast(),
    }
}

/// fe80::/64 (RFC 4291 §2.5.6).
fn is_link_local(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [0xfe80, 0, 0, 0, ..])
}
