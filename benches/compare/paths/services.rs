//! The Services that a client reaches the server through, the same over every path: cluster IPs and
//! their endpoints, whatever puts them in force.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Family, Pod};

/// Endpoints of each Service.
pub(crate) const ENDPOINTS: usize = 4;
/// Addresses of the server's pod that they are taken from. Many, so that a client's ports do not
/// run out: each address of the server is another space of them.
const ADDRESSES: usize = 64;

/// What a Service's port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As rules write it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// So many Services, each with a TCP port and [`ENDPOINTS`] endpoints; the first also has a UDP port with one
/// endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Services {
    pub(crate) count: usize,
}

/// A port of a Service of one family.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) number: usize,
    pub(super) protocol: Protocol,
    /// Cluster IP and port.
    pub(super) at: SocketAddr,
    pub(super) endpoints: Vec<SocketAddr>,
}

impl Port {
    /// `namespace/name:port`, as kube-proxy calls it.
    pub(super) fn name(&self) -> String {
        format!("compare/s{}:{}", self.number, self.protocol.name())
    }
}

impl Services {
    /// Addresses that the server has besides its own.
    pub(super) fn server_addresses() -> Vec<IpAddr> {
        let of = |family| (1..ADDRESSES).map(move |number| backend(family, number));
        of(Family::V4).chain(of(Family::V6)).collect()
    }

    /// Every port of every Service.
    pub(super) fn ports(self, server: &Pod, family: Family) -> Vec<Port> {
        let address = |number| match number {
            0 => server.address(family),
            _ => backend(family, number),
        };
        let tcp = (0..self.count).map(|number| Port {
            number,
            protocol: Protocol::Tcp,
            at: self.target(Protocol::Tcp, family, number),
            endpoints: (0..ENDPOINTS)
                .map(|k| SocketAddr::new(address((number * ENDPOINTS + k) % ADDRESSES), 8080))
                .collect(),
        });
        let udp = Port {
            number: 0,
            protocol: Protocol::Udp,
            at: self.target(Protocol::Udp, family, 0),
            endpoints: vec![SocketAddr::new(address(0), 8053)],
        };
        tcp.chain([udp]).collect()
    }

    /// The cluster IP and port of Service `number`, modulo the number of Services, for clients.
    pub(super) fn target(self, protocol: Protocol, family: Family, number: usize) -> SocketAddr {
        match protocol {
            Protocol::Tcp => SocketAddr::new(cluster_ip(family, number % self.count), 80),
            Protocol::Udp => SocketAddr::new(cluster_ip(family, 0), 53),
        }
    }

    /// What the server binds to: all its addresses, or for UDP, whose answers must come from the
    /// address that was asked, the one.
    pub(super) fn listen(self, server: &Pod, protocol: Protocol, family: Family) -> SocketAddr {
        match protocol {
            Protocol::Tcp => SocketAddr::new(family.unspecified(), 8080),
            Protocol::Udp => SocketAddr::new(server.address(family), 8053),
        }
    }
}

/// What holds all cluster IPs of a family.
pub(super) fn range(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.96.0.0/16",
        Family::V6 => "fd96::/112",
    }
}

fn cluster_ip(family: Family, number: usize) -> IpAddr {
    // From 1 on: 5,000 fit 16 bits.
    let low = number as u16 + 1;
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, (low >> 8) as u8, low as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, low).into(),
    }
}

fn backend(family: Family, number: usize) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 78, 0, 100 + number as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 0x100 + number as u16).into(),
    }
}
