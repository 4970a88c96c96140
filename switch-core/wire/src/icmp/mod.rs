//! ICMP for both families (RFC 792, RFC 4443): a header of eight bytes, then data that depends on
//! the type. Neighbour discovery has its own views in [`nd`].

pub mod nd;

use crate::view::{Malformed, array, be16, be32, view};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;

/// Types and codes of ICMPv4 (IANA icmp-parameters).
pub mod v4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Timestamp request.
    pub const TIMESTAMP_REQUEST: u8 = 13;
    /// Timestamp reply.
    pub const TIMESTAMP_REPLY: u8 = 14;
    /// Code of unreachable: network.
    pub const CODE_NETWORK: u8 = 0;
    /// Code of unreachable: host.
    pub const CODE_HOST: u8 = 1;
    /// Code of unreachable: protocol.
    pub const CODE_PROTOCOL: u8 = 2;
    /// Code of unreachable: port.
    pub const CODE_PORT: u8 = 3;
    /// Code of unreachable: fragmentation needed, and "don't fragment" set.
    pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
    /// Code of unreachable: administratively prohibited.
    pub const CODE_PROHIBITED: u8 = 13;
}

/// Types and codes of ICMPv6 (IANA icmpv6-parameters).
pub mod v6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Code of unreachable: no route.
    pub const CODE_NO_ROUTE: u8 = 0;
    /// Code of unreachable: administratively prohibited.
    pub const CODE_PROHIBITED: u8 = 1;
    /// Code of unreachable: address.
    pub const CODE_ADDRESS: u8 = 3;
    /// Code of unreachable: port.
    pub const CODE_PORT: u8 = 4;
}

view! {
    /// An ICMP message of either family.
    Packet, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.len() < HEADER_LEN { Err(Malformed::Truncated) } else { Ok(()) }
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Message type (see [`v4`] and [`v6`]).
    #[inline]
    pub fn kind(&self) -> u8 {
        self.bytes()[0]
    }

    /// Message code.
    #[inline]
    pub fn code(&self) -> u8 {
        self.bytes()[1]
    }

    /// Checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.bytes(), 2)
    }

    /// The second half of the header, uninterpreted.
    #[inline]
    pub fn rest(&self) -> [u8; 4] {
        array(self.bytes(), 4)
    }

    /// Identifier of an echo or timestamp message.
    #[inline]
    pub fn identifier(&self) -> u16 {
        be16(self.bytes(), 4)
    }

    /// Sequence number of an echo or timestamp message.
    #[inline]
    pub fn sequence(&self) -> u16 {
        be16(self.bytes(), 6)
    }

    /// Next-hop MTU in bytes of "fragmentation needed" (RFC 1191 §4).
    #[inline]
    pub fn mtu_v4(&self) -> u16 {
        be16(self.bytes(), 6)
    }

    /// MTU in bytes of "packet too big" (RFC 4443 §3.2).
    #[inline]
    pub fn mtu_v6(&self) -> u32 {
        be32(self.bytes(), 4)
    }

    /// Everything behind the header; in an error message the quoted packet.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the type.
    #[inline]
    pub fn set_kind(&mut self, kind: u8) {
        self.put(0, [kind]);
    }

    /// Sets the code.
    #[inline]
    pub fn set_code(&mut self, code: u8) {
        self.put(1, [code]);
    }

    /// Sets the checksum.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        self.put(2, checksum.to_be_bytes());
    }

    /// Sets the second half of the header.
    #[inline]
    pub fn set_rest(&mut self, rest: [u8; 4]) {
        self.put(4, rest);
    }

    /// Sets the identifier of an echo or timestamp message.
    #[inline]
    pub fn set_identifier(&mut self, identifier: u16) {
        self.put(4, identifier.to_be_bytes());
    }

    /// Sets the next-hop MTU of "fragmentation needed".
    #[inline]
    pub fn set_mtu_v4(&mut self, mtu: u16) {
        self.put(6, mtu.to_be_bytes());
    }

    /// Sets the MTU of "packet too big".
    #[inline]
    pub fn set_mtu_v6(&mut self, mtu: u32) {
        self.put(4, mtu.to_be_bytes());
    }

    /// Everything behind the header, mutable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes.as_mut()[HEADER_LEN..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_every_field() {
        let bytes = [8, 0, 0x12, 0x34, 0xab, 0xcd, 0x00, 0x07, 0x61, 0x62];
        let packet = Packet::new_checked(&bytes[..]).unwrap();
        assert_eq!((packet.kind(), packet.code(), packet.checksum()), (8, 0, 0x1234));
        assert_eq!((packet.identifier(), packet.sequence()), (0xabcd, 7));
        assert_eq!((packet.mtu_v4(), packet.mtu_v6()), (7, 0xabcd_0007));
        assert_eq!(packet.payload(), b"ab");
        let mut built = Packet::new_unchecked([0xff; 10]);
        built.set_kind(8);
        built.set_code(0);
        built.set_checksum(0x1234);
        built.set_rest(packet.rest());
        built.payload_mut().copy_from_slice(b"ab");
        assert_eq!(built.into_inner(), bytes);
        built.set_mtu_v6(1280);
        assert_eq!(built.mtu_v6(), 1280);
        built.set_rest([0; 4]);
        built.set_mtu_v4(1500);
        built.set_identifier(3);
        assert_eq!((built.identifier(), built.mtu_v4()), (3, 1500));
        assert_eq!(Packet::new_checked(&bytes[..7]), Err(Malformed::Truncated));
    }
}
