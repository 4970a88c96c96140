//! A smoltcp TCP/IP stack on a memory port, with one address, like a pod's.

use podswitch_core::port::memory::MemoryEnd;
use podswitch_wire::addr::Mac;
use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};

/// The switch's memory port as a smoltcp device.
pub(crate) struct Phy(pub(crate) MemoryEnd);

pub(crate) struct Rx(Vec<u8>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Tx<'a>(&'a MemoryEnd);

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = self.0.buffer(len);
        let result = f(packet.bytes_mut());
        // A full queue loses the frame, as a wire would; TCP retransmits it.
        let _ = self.0.send(packet);
        result
    }
}

impl Device for Phy {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.0.recv_frame()?), Tx(&self.0)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Tx<'_>> {
        Some(Tx(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// An interface with `address`. To smoltcp all peers are on the link: the switch answers its ARP
/// requests for any of them.
pub(crate) fn interface(phy: &mut Phy, mac: Mac, address: Ipv4Address) -> Interface {
    let config = Config::new(EthernetAddress(mac.0).into());
    let mut interface = Interface::new(config, phy, Instant::ZERO);
    interface.update_ip_addrs(|list| {
        list.push(IpCidr::new(address.into(), 24)).expect("room for one address");
    });
    interface
}
