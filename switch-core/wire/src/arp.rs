//! ARP (RFC 826) for IPv4 over Ethernet, the only kind in a pod network.

use core::net::Ipv4Addr;

use crate::addr::Mac;
use crate::view::{Malformed, array, be16, view};

/// Length of the packet in bytes.
pub const PACKET_LEN: usize = 28;

/// Operation: who has the target address?
pub const REQUEST: u16 = 1;
/// Operation: the sender has it.
pub const REPLY: u16 = 2;

/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const PREFIX: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

view! {
    /// An ARP packet.
    Packet, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    match bytes.first_chunk::<PACKET_LEN>() {
        None => Err(Malformed::Truncated),
        Some(packet) if !packet.starts_with(&PREFIX) => Err(Malformed::Kind),
        Some(_) => Ok(()),
    }
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// [`REQUEST`], [`REPLY`], or another operation, which the switch ignores.
    #[inline]
    pub fn operation(&self) -> u16 {
        be16(self.bytes(), 6)
    }

    /// Sender's MAC address.
    #[inline]
    pub fn sender_mac(&self) -> Mac {
        Mac(array(self.bytes(), 8))
    }

    /// Sender's IPv4 address; 0.0.0.0 in a probe (RFC 5227).
    #[inline]
    pub fn sender_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.bytes(), 14))
    }

    /// Target's MAC address; meaningless in a request.
    #[inline]
    pub fn target_mac(&self) -> Mac {
        Mac(array(self.bytes(), 18))
    }

    /// Target's IPv4 address; equal to the sender's in a gratuitous packet.
    #[inline]
    pub fn target_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.bytes(), 24))
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Writes hardware and protocol type and the lengths of their addresses.
    #[inline]
    pub fn set_ethernet_ipv4(&mut self) {
        self.put(0, PREFIX);
    }

    /// Sets the operation.
    #[inline]
    pub fn set_operation(&mut self, operation: u16) {
        self.put(6, operation.to_be_bytes());
    }

    /// Sets the sender's MAC address.
    #[inline]
    pub fn set_sender_mac(&mut self, mac: Mac) {
        self.put(8, mac.0);
    }

    /// Sets the sender's IPv4 address.
    #[inline]
    pub fn set_sender_ip(&mut self, address: Ipv4Addr) {
        self.put(14, address.octets());
    }

    /// Sets the target's MAC address.
    #[inline]
    pub fn set_target_mac(&mut self, mac: Mac) {
        self.put(18, mac.0);
    }

    /// Sets the target's IPv4 address.
    #[inline]
    pub fn set_target_ip(&mut self, address: Ipv4Addr) {
        self.put(24, address.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply as Linux sends it.
    const REPLY_PACKET: [u8; 28] = [
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x02, 0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x05, 0x0a,
        0xf4, 0x01, 0x05, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xa9, 0xfe, 0x01, 0x01,
    ];

    #[test]
    fn reads_and_writes_every_field() {
        let packet = Packet::new_checked(&REPLY_PACKET[..]).unwrap();
        assert_eq!(packet.operation(), REPLY);
        assert_eq!(packet.sender_mac(), Mac([0x0a, 0x58, 0x0a, 0xf4, 1, 5]));
        assert_eq!(packet.sender_ip(), Ipv4Addr::new(10, 244, 1, 5));
        assert_eq!(packet.target_mac(), Mac([0xee; 6]));
        assert_eq!(packet.target_ip(), Ipv4Addr::new(169, 254, 1, 1));
        let mut built = Packet::new_unchecked([0; 28]);
        built.set_ethernet_ipv4();
        built.set_operation(packet.operation());
        built.set_sender_mac(packet.sender_mac());
        built.set_sender_ip(packet.sender_ip());
        built.set_target_mac(packet.target_mac());
        built.set_target_ip(packet.target_ip());
        assert_eq!(built.into_inner(), REPLY_PACKET);
    }

    #[test]
    fn refuses_other_than_ethernet_and_ipv4() {
        assert_eq!(Packet::new_checked(&REPLY_PACKET[..27]), Err(Malformed::Truncated));
        for at in 0..6 {
            let mut packet = REPLY_PACKET;
            packet[at] ^= 1;
            assert_eq!(Packet::new_checked(&packet[..]), Err(Malformed::Kind));
        }
    }
}
