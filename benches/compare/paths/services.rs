//! The Services through which a client reaches the server, the same for every path: cluster IPs and
//! their endpoints, independent of the implementation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Family, Pod};

/// Endpoints of each Service.
pub(crate) const ENDPOINTS: usize = 4;
/// Addresses of the server's pod that the endpoints use. There are many, so that a client does not
/// run out of ports: each server address has its own range of them.
const ADDRESSES: usize = 64;

/// The protocol of a Service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The name in rules.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// This number of Services, each with a TCP port and [`ENDPOINTS`] endpoints; the first one also
/// has a UDP port with one endpoint.
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
    /// `namespace/name:port`, the form that kube-proxy uses.
    pub(super) fn name(&self) -> String {
        format!("compare/s{}:{}", self.number, self.protocol.name())
    }
}

impl Services {
    /// Additional addresses of the server.
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

    /// The address to which the server binds. For UDP it is the one endpoint address, because
    /// replies must come from the address that the request was sent to; otherwise all addresses.
    pub(super) fn listen(self, server: &Pod, protocol: Protocol, family: Family) -> SocketAddr {
        match protocol {
            Protocol::Tcp => SocketAddr::new(family.unspecified(), 8080),
            Protocol::Udp => SocketAddr::new(server.address(family), 8053),
        }
    }
}

/// The network of all cluster IPs of a family.
pub(super) fn range(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.96.0.0/16",
        Family::V6 => "fd96::/112",
    }
}

fn cluster_ip(family: Family, number: usize) -> IpAddr {
    // Starts at 1: 5,000 fit into 16 bits.
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
