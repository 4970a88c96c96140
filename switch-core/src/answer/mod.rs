//! Protocols that the switch answers itself: ARP, neighbour discovery, pings of the gateway, ICMP
//! errors, TCP resets and datagrams.
//!
//! Called by the engine on a worker's thread, on the slow path. The `check` functions decide about
//! one received frame; the builders write one frame into a buffer of the worker's pool. Nothing here
//! learns addresses, looks up routes or transmits. The only state is the limiter, which the caller
//! owns.

pub mod arp;
pub mod icmp;
pub mod nd;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod udp;

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

/// The neighbour on a port, as ARP and neighbour discovery need it.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The neighbour's MAC address.
    pub mac: Mac,
    /// The neighbour's IPv4 addresses.
    pub ipv4: &'a [Ipv4Addr],
    /// The neighbour's IPv6 addresses; link-local ones need not be among them.
    pub ipv6: &'a [Ipv6Addr],
    /// The gateway that the neighbour sees.
    pub gateway: &'a Gateway,
    /// How far the neighbour is trusted.
    pub trust: Trust,
}

/// Which addresses a neighbour may claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// A pod: the addresses of its binding and IPv6 link-local addresses, no others (threats T-S1,
    /// T-S2).
    Bound,
    /// The node's own stack: any address except those that the switch answers for.
    Node,
}

/// Why a packet gets no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// A rule forbids an answer to this packet.
    Forbidden,
    /// The rate limit is reached.
    RateLimited,
    /// The packet's checksum is wrong.
    BadChecksum,
    /// The pool has no buffer.
    NoBuffer,
}

/// Source and destination MAC address of a frame.
fn macs(frame: &[u8]) -> Option<(Mac, Mac)> {
    let (dst, rest) = frame.split_first_chunk::<6>()?;
    let src = rest.first_chunk::<6>()?;
    Some((Mac(*src), Mac(*dst)))
}

/// A new frame with its Ethernet header. The caller must write all of the `len` bytes after it: they
/// have arbitrary values.
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

/// Source and destination of an IP answer.
#[derive(Clone, Copy, Debug)]
struct Addressing {
    src_mac: Mac,
    dst_mac: Mac,
    src: IpAddr,
    dst: IpAddr,
}

impl Addressing {
    /// From the destination of `packet` back to its source. `None` if RFC 1812 §4.3.2.7 and RFC 4443
    /// §2.4 (e) forbid an answer because of its addresses.
    fn reply_to(packet: &Packet, parsed: &Parsed) -> Option<Self> {
        let (src_mac, dst_mac) = macs(packet.bytes())?;
        let is_ip = matches!(parsed.network, Network::Ipv4 | Network::Ipv6);
        let (src, dst) = (parsed.key.src_addr(), parsed.key.dst_addr());
        let may_answer = is_ip
            && src_mac.is_unicast()
            && dst_mac.is_unicast()
            && is_one_host(src)
            && is_one_host(dst);
        may_answer.then_some(Self { src_mac: dst_mac, dst_mac: src_mac, src: dst, dst: src })
    }

    /// A new frame with its Ethernet and IP headers, and the offset of `len` bytes for `protocol`.
    /// `None` if there is no buffer, or the address families differ.
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
                // An atomic datagram needs no identification (RFC 6864 §4.1).
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

/// Whether an address is that of a single host that can send and receive: not unspecified, loopback,
/// multicast, broadcast or reserved (RFC 1812 §4.3.2.7, §5.3.7; RFC 4443 §2.4 (e.6)).
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
