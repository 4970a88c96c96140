//! Configuration of the tunnel's sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::handover::Inherited;

/// Socket buffer limit, as the kernel accounts memory.
pub(super) const BUFFER: i32 = 8 << 20;

/// Configuration of the tunnel's sockets.
#[derive(Clone, Debug)]
pub struct UdpTunnelConfig {
    /// This node's tunnel address over IPv4.
    pub v4: Option<Ipv4Addr>,
    /// This node's tunnel address over IPv6.
    pub v6: Option<Ipv6Addr>,
    /// UDP port of the tunnel, 4789 by assignment.
    pub port: u16,
    /// Largest outer IP packet, in bytes. `None`: the MTU of the interface that has the address.
    pub mtu: Option<u32>,
    /// MTU of pods, in bytes. A peer's GSO packet is segmented to it where the kernel reports no
    /// segment size. `None`: the underlay's MTU less the outer headers.
    pub inner_mtu: Option<u16>,
    /// TTL or hop limit of sent packets.
    pub ttl: u8,
    /// Routers may fragment tunnel packets over IPv4. (RFC 7348 §4.3: they should not.)
    pub fragmentable: bool,
    /// Number of source ports for each family, at most 1,024: they let the underlay spread flows.
    pub senders: usize,
    /// GSO packets are sent unsegmented where the outgoing interface can segment tunnelled packets
    /// (Linux 6.17). They follow the node's routes and neighbours, but bypass its packet filters.
    /// Otherwise they are segmented into datagrams here.
    pub tunnel_gso: bool,
    /// Sockets that another process handed over are used instead of new ones.
    pub inherited: Inherited,
}

impl UdpTunnelConfig {
    /// A tunnel with the first address of each family: port 4789, DF set, TTL 64, 64 source ports.
    pub fn new(addresses: &[IpAddr]) -> Self {
        Self {
            v4: addresses.iter().find_map(|a| if let IpAddr::V4(a) = a { Some(*a) } else { None }),
            v6: addresses.iter().find_map(|a| if let IpAddr::V6(a) = a { Some(*a) } else { None }),
            port: podswitch_vxlan::template::PORT,
            mtu: None,
            inner_mtu: None,
            ttl: 64,
            fragmentable: false,
            senders: 64,
            tunnel_gso: true,
            inherited: Inherited::default(),
        }
    }

    /// Both addresses, if there are two.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}
