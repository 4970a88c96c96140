//! The UDP header (RFC 768).

use crate::view::{Malformed, be16, view};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;

view! {
    /// A UDP datagram; bytes beyond its length are padding.
    Packet, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    let header = bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
    match usize::from(be16(header, 4)) {
        0..HEADER_LEN => Err(Malformed::Length),
        len if len > bytes.len() => Err(Malformed::Truncated),
        _ => Ok(()),
    }
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Source port.
    #[inline]
    pub fn src_port(&self) -> u16 {
        be16(self.bytes(), 0)
    }

    /// Destination port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        be16(self.bytes(), 2)
    }

    /// Length of header and payload in bytes. In a first fragment it is that of the whole datagram.
    #[inline]
    pub fn len(&self) -> u16 {
        be16(self.bytes(), 4)
    }

    /// Whether there is no payload.
    #[inline]
    pub fn is_empty(&self) -> bool {
        usize::from(self.len()) == HEADER_LEN
    }

    /// Checksum; zero if there is none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.bytes(), 6)
    }

    /// Everything behind the header, up to the length.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[HEADER_LEN..usize::from(self.len())]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets the source port.
    #[inline]
    pub fn set_src_port(&mut self, port: u16) {
        self.put(0, port.to_be_bytes());
    }

    /// Sets the destination port.
    #[inline]
    pub fn set_dst_port(&mut self, port: u16) {
        self.put(2, port.to_be_bytes());
    }

    /// Sets the length of header and payload in bytes.
    #[inline]
    pub fn set_len(&mut self, len: u16) {
        self.put(4, len.to_be_bytes());
    }

    /// Sets the checksum.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        self.put(6, checksum.to_be_bytes());
    }

    /// Everything behind the header, mutable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let range = HEADER_LEN..usize::from(self.len());
        &mut self.bytes.as_mut()[range]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: [u8; 12] =
        [0xbf, 0x00, 0x00, 0x35, 0x00, 0x0c, 0x12, 0x4d, 0xaa, 0x00, 0x00, 0xff];

    #[test]
    fn reads_and_writes_every_field() {
        let packet = Packet::new_checked(&DATAGRAM[..]).unwrap();
        assert_eq!((packet.src_port(), packet.dst_port()), (48896, 53));
        assert_eq!((packet.len(), packet.checksum(), packet.is_empty()), (12, 0x124d, false));
        assert_eq!(packet.payload(), [0xaa, 0, 0, 0xff]);
        let mut built = Packet::new_unchecked([0; 12]);
        built.set_src_port(packet.src_port());
        built.set_dst_port(packet.dst_port());
        built.set_len(packet.len());
        built.set_checksum(packet.checksum());
        built.payload_mut().copy_from_slice(packet.payload());
        assert_eq!(built.into_inner(), DATAGRAM);
    }

    #[test]
    fn refuses_impossible_lengths() {
        let with_len = |len: u8| {
            let mut datagram = DATAGRAM;
            datagram[5] = len;
            Packet::new_checked(datagram).map(|packet| packet.payload().len())
        };
        assert_eq!(with_len(7), Err(Malformed::Length));
        assert_eq!(with_len(8), Ok(0));
        assert_eq!(with_len(13), Err(Malformed::Truncated));
        assert_eq!(Packet::new_checked(&DATAGRAM[..7]), Err(Malformed::Truncated));
    }
}
