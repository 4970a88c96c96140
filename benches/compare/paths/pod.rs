//! The pods.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_linux::netlink::{InterfaceAddress, LinkSpec, Route};
use podswitch_linux::{HostError, NetNs, Netlink, sysctl};
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use super::Family;
use crate::Outcome;

/// Largest network-layer packet within a node.
pub(super) const MTU: u32 = 1500;
/// The same for pods that are connected by a tunnel over a network with an MTU of 1500 bytes.
pub(super) const TUNNEL_MTU: u32 = 1450;

/// One end of a path. Its interface is `eth0`.
pub(crate) struct Pod {
    pub(crate) namespace: NetNs,
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// MAC address of the next hop to the other end.
    pub(crate) next_hop: Mac,
    /// Its additional addresses.
    pub(super) more: Vec<IpAddr>,
    /// Length of the on-link prefix, for each family.
    pub(super) on_link: [u8; 2],
    pub(super) mtu: u32,
}

impl Pod {
    /// Pod `number`, 0 or 1, on node `node`, without an interface yet. `next_hop`: the MAC address
    /// of the next hop; `None`: the other pod.
    pub(super) fn new(node: u8, number: u8, next_hop: Option<Mac>) -> Outcome<Self> {
        let mac = |number| Mac([0x0a, 0x58, 10, 78, node, number + 2]);
        let namespace = NetNs::anonymous().map_err(|e| e.to_string())?;
        // The timestamp distinguishes a reused port from the previous connection. So there must be
        // one clock for all addresses of the client (by default the kernel adds an offset for each
        // address).
        sysctl::set(&namespace, "net/ipv4/tcp_timestamps", "2").map_err(|e| e.to_string())?;
        Ok(Self {
            namespace,
            mac: mac(number),
            v4: Ipv4Addr::new(10, 78, node, number + 2),
            v6: Ipv6Addr::new(0xfd78, 0, 0, u16::from(node), 0, 0, 0, u16::from(number) + 2),
            next_hop: next_hop.unwrap_or(mac(1 - number)),
            more: Vec::new(),
            on_link: [24, 64],
            mtu: MTU,
        })
    }

    pub(super) fn pair(next_hop: Option<Mac>) -> Outcome<[Self; 2]> {
        Ok([Self::new(0, 0, next_hop)?, Self::new(0, 1, next_hop)?])
    }

    pub(crate) fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        [self.v4.into(), self.v6.into()].into_iter().chain(self.more.iter().copied()).collect()
    }

    /// Opens a socket in the pod's namespace. It stays there, no matter which thread uses it
    /// afterwards.
    pub(crate) fn open<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> Outcome<T> {
        self.namespace.enter(f).map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }

    /// The properties of its interface.
    pub(super) fn interface(&self) -> LinkSpec {
        LinkSpec::new("eth0").mac(self.mac).mtu(self.mtu).up()
    }

    /// Adds the addresses to its interface, and routes through `gateways`.
    pub(super) fn configure(&self, gateways: &[IpAddr]) -> Result<(), HostError> {
        let mut netlink = Netlink::open(&self.namespace)?;
        let index = netlink.link("eth0")?.index;
        for (address, prefix) in
            [IpAddr::from(self.v4), self.v6.into()].into_iter().zip(self.on_link)
        {
            let address = InterfaceAddress::new(address, prefix).expect("a prefix of the family");
            netlink.add_address(index, address)?;
        }
        for address in &self.more {
            netlink.add_address(index, InterfaceAddress::host(*address))?;
        }
        for gateway in gateways {
            let any = if gateway.is_ipv4() { Family::V4 } else { Family::V6 }.unspecified();
            let everywhere = Cidr::new(any, 0).expect("no bits fit any family");
            netlink.add_route(&Route::to(everywhere).via(*gateway).link(index))?;
        }
        for address in self.addresses() {
            // The check of the path shows whether it worked.
            let _ = netlink.wait_until_local(address);
        }
        Ok(())
    }
}
