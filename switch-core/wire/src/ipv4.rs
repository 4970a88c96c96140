//! The IPv4 header (RFC 791).

use core::net::Ipv4Addr;

use crate::checksum;
use crate::view::{Malformed, array, be16, view};

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 20;

view! {
    /// An IPv4 packet; bytes beyond its total length are padding.
    Packet, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    let header = bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
    if header[0] >> 4 != 4 {
        return Err(Malformed::Kind);
    }
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(be16(header, 2));
    if header_len < HEADER_LEN || total_len < header_len {
        return Err(Malformed::Length);
    }
    if total_len > bytes.len() { Err(Malformed::Truncated) } else { Ok(()) }
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Version field, 4.
    #[inline]
    pub fn version(&self) -> u8 {
        self.bytes()[0] >> 4
    }

    /// Length of the header with its options, in bytes.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes()[0] & 0x0f) * 4
    }

    /// Type of service: DSCP and, in the lowest two bits, ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        self.bytes()[1]
    }

    /// Length of header and payload, in bytes.
    #[inline]
    pub fn total_len(&self) -> u16 {
        be16(self.bytes(), 2)
    }

    /// Identification, which all fragments of a datagram share.
    #[inline]
    pub fn identification(&self) -> u16 {
        be16(self.bytes(), 4)
    }

    /// "Don't fragment".
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.bytes()[6] & 0x40 != 0
    }

    /// "More fragments".
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.bytes()[6] & 0x20 != 0
    }

    /// Offset of the payload within the datagram's payload, in bytes.
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        (be16(self.bytes(), 6) & 0x1fff) * 8
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.bytes()[8]
    }

    /// Protocol of the payload.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.bytes()[9]
    }

    /// Header checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.bytes(), 10)
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.bytes(), 12))
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.bytes(), 16))
    }

    /// The option list, padding included.
    #[inline]
    pub fn options(&self) -> &[u8] {
        &self.bytes()[HEADER_LEN..self.header_len()]
    }

    /// Everything behind the header and before padding.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[self.header_len()..usize::from(self.total_len())]
    }

    /// Whether the header checksum is right.
    #[inline]
    pub fn verify_checksum(&self) -> bool {
        checksum::sum(&self.bytes()[..self.header_len()]).holds()
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Writes version 4 and the header's length in bytes, a multiple of 4 from 20 to 60.
    #[inline]
    pub fn set_version_and_header_len(&mut self, header_len: usize) {
        self.put(0, [0x40 | (header_len / 4) as u8 & 0x0f]);
    }

    /// Sets type of service.
    #[inline]
    pub fn set_traffic_class(&mut self, class: u8) {
        self.put(1, [class]);
    }

    /// Sets the length of header and payload, in bytes.
    #[inline]
    pub fn set_total_len(&mut self, len: u16) {
        self.put(2, len.to_be_bytes());
    }

    /// Sets the identification.
    #[inline]
    pub fn set_identification(&mut self, identification: u16) {
        self.put(4, identification.to_be_bytes());
    }

    /// Sets both fragment flags and the offset, in bytes and rounded down to a multiple of 8.
    #[inline]
    pub fn set_fragment(&mut self, dont_fragment: bool, more_fragments: bool, offset: u16) {
        let flags = u16::from(dont_fragment) << 14 | u16::from(more_fragments) << 13;
        self.put(6, (flags | (offset / 8)).to_be_bytes());
    }

    /// Sets the time to live.
    #[inline]
    pub fn set_ttl(&mut self, ttl: u8) {
        self.put(8, [ttl]);
    }

    /// Sets the payload's protocol.
    #[inline]
    pub fn set_protocol(&mut self, protocol: u8) {
        self.put(9, [protocol]);
    }

    /// Sets the header checksum.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        self.put(10, checksum.to_be_bytes());
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src(&mut self, address: Ipv4Addr) {
        self.put(12, address.octets());
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst(&mut self, address: Ipv4Addr) {
        self.put(16, address.octets());
    }

    /// Computes and writes the header checksum.
    #[inline]
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let checksum = checksum::sum(&self.bytes()[..self.header_len()]).checksum();
        self.set_checksum(checksum);
    }

    /// Everything behind the header and before padding, mutable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let range = self.header_len()..usize::from(self.total_len());
        &mut self.bytes.as_mut()[range]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A router alert option (RFC 2113) before four bytes of payload and two of padding.
    const PACKET: [u8; 30] = [
        0x46, 0xc0, 0x00, 0x1c, 0x12, 0x34, 0x40, 0x00, 0x01, 0x02, 0xe7, 0xd0, 0x0a, 0x00, 0x00,
        0x01, 0xe0, 0x00, 0x00, 0x16, 0x94, 0x04, 0x00, 0x00, 1, 2, 3, 4, 0xee, 0xee,
    ];

    #[test]
    fn reads_every_field() {
        let packet = Packet::new_checked(&PACKET[..]).unwrap();
        assert_eq!((packet.version(), packet.header_len(), packet.total_len()), (4, 24, 28));
        assert_eq!((packet.traffic_class(), packet.identification()), (0xc0, 0x1234));
        assert!(packet.dont_fragment() && !packet.more_fragments());
        assert_eq!((packet.fragment_offset(), packet.ttl(), packet.protocol()), (0, 1, 2));
        assert_eq!(packet.src(), Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(packet.dst(), Ipv4Addr::new(224, 0, 0, 22));
        assert_eq!((packet.options(), packet.payload()), (&PACKET[20..24], &PACKET[24..28]));
        assert!(packet.verify_checksum());
    }

    #[test]
    fn writes_every_field() {
        let mut bytes = [0; 30];
        bytes[20..].copy_from_slice(&PACKET[20..]);
        let mut packet = Packet::new_unchecked(bytes);
        packet.set_version_and_header_len(24);
        packet.set_traffic_class(0xc0);
        packet.set_total_len(28);
        packet.set_identification(0x1234);
        packet.set_fragment(true, false, 0);
        packet.set_ttl(1);
        packet.set_protocol(2);
        packet.set_src(Ipv4Addr::new(10, 0, 0, 1));
        packet.set_dst(Ipv4Addr::new(224, 0, 0, 22));
        packet.fill_checksum();
        assert_eq!(packet.into_inner(), PACKET);
        packet.set_fragment(false, true, 1480);
        assert_eq!((packet.more_fragments(), packet.fragment_offset()), (true, 1480));
        packet.payload_mut().fill(7);
        assert_eq!(packet.payload(), [7; 4]);
    }

    #[test]
    fn refuses_impossible_lengths() {
        let with = |at: usize, byte: u8| {
            let mut packet = PACKET;
            packet[at] = byte;
            Packet::new_checked(packet).map(|_| ())
        };
        assert_eq!(with(0, 0x66), Err(Malformed::Kind));
        assert_eq!(with(0, 0x44), Err(Malformed::Length));
        assert_eq!(with(3, 23), Err(Malformed::Length));
        assert_eq!(with(3, 31), Err(Malformed::Truncated));
        assert_eq!(with(3, 30), Ok(()));
    }
}
