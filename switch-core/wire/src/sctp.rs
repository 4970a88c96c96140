//! The SCTP common header and its chunks (RFC 9260 §3).

use crate::view::{Malformed, array, be16, be32, view};

/// Length of the common header in bytes.
pub const HEADER_LEN: usize = 12;

/// Chunk types that change the state of an association.
pub mod chunk {
    /// Payload data.
    pub const DATA: u8 = 0;
    /// Initiation.
    pub const INIT: u8 = 1;
    /// Initiation acknowledgment.
    pub const INIT_ACK: u8 = 2;
    /// Heartbeat request.
    pub const HEARTBEAT: u8 = 4;
    /// Heartbeat acknowledgment.
    pub const HEARTBEAT_ACK: u8 = 5;
    /// Abort.
    pub const ABORT: u8 = 6;
    /// Shutdown.
    pub const SHUTDOWN: u8 = 7;
    /// Shutdown acknowledgment.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// State cookie.
    pub const COOKIE_ECHO: u8 = 10;
    /// Cookie acknowledgment.
    pub const COOKIE_ACK: u8 = 11;
    /// Shutdown complete.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

view! {
    /// An SCTP packet.
    Packet, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.len() < HEADER_LEN { Err(Malformed::Truncated) } else { Ok(()) }
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

    /// Verification tag: the receiver's, zero in a packet with an INIT chunk.
    #[inline]
    pub fn verification_tag(&self) -> u32 {
        be32(self.bytes(), 4)
    }

    /// CRC32c in the field's byte order (see [`sctp_checksum`](crate::checksum::sctp_checksum)).
    #[inline]
    pub fn checksum(&self) -> [u8; 4] {
        array(self.bytes(), 8)
    }

    /// The chunks in order.
    #[inline]
    pub fn chunks(&self) -> Chunks<'_> {
        Chunks { rest: &self.bytes()[HEADER_LEN..] }
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

    /// Sets the verification tag.
    #[inline]
    pub fn set_verification_tag(&mut self, tag: u32) {
        self.put(4, tag.to_be_bytes());
    }

    /// Sets the checksum.
    #[inline]
    pub fn set_checksum(&mut self, checksum: [u8; 4]) {
        self.put(8, checksum);
    }
}

/// A chunk of an SCTP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk<'a> {
    /// Chunk type (see [`chunk`]).
    pub kind: u8,
    /// Flags; their meaning depends on the type.
    pub flags: u8,
    /// The chunk's content, without header and padding.
    pub value: &'a [u8],
}

/// Chunks of an SCTP packet in order. Ends at the first malformed one.
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        let [kind, flags, a, b, ..] = *self.rest else {
            return None;
        };
        let len = usize::from(u16::from_be_bytes([a, b]));
        let value = self.rest.get(4..len)?;
        // Chunks are padded to four bytes. The last chunk may lack its padding.
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Chunk { kind, flags, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// COOKIE ECHO of five bytes (and padding) with DATA behind it.
    const PACKET: [u8; 30] = [
        0x80, 0x44, 0x00, 0x50, 0xd2, 0x6a, 0xc1, 0xe5, 0x01, 0x02, 0x03, 0x04, 0x0a, 0x00, 0x00,
        0x09, 1, 2, 3, 4, 5, 0, 0, 0, 0x00, 0x03, 0x00, 0x06, 8, 9,
    ];

    #[test]
    fn reads_and_writes_every_field() {
        let packet = Packet::new_checked(&PACKET[..]).unwrap();
        assert_eq!((packet.src_port(), packet.dst_port()), (32836, 80));
        assert_eq!((packet.verification_tag(), packet.checksum()), (0xd26a_c1e5, [1, 2, 3, 4]));
        let chunks: Vec<_> = packet.chunks().collect();
        let cookie = Chunk { kind: chunk::COOKIE_ECHO, flags: 0, value: &[1, 2, 3, 4, 5] };
        let data = Chunk { kind: chunk::DATA, flags: 3, value: &[8, 9] };
        assert_eq!(chunks, [cookie, data]);
        let mut bytes = PACKET;
        bytes[..12].fill(0);
        let mut built = Packet::new_unchecked(bytes);
        built.set_src_port(packet.src_port());
        built.set_dst_port(packet.dst_port());
        built.set_verification_tag(packet.verification_tag());
        built.set_checksum(packet.checksum());
        assert_eq!(built.into_inner(), PACKET);
    }

    #[test]
    fn malformed_chunks_end_the_list() {
        let count = |chunks: &[u8]| {
            let bytes = [&PACKET[..12], chunks].concat();
            Packet::new_checked(&bytes[..]).unwrap().chunks().count()
        };
        assert_eq!(count(&[1, 0, 0, 3, 0]), 0);
        assert_eq!(count(&[1, 0, 0, 9, 0, 0, 0, 0]), 0);
        assert_eq!(count(&[1, 0, 0]), 0);
        assert_eq!(count(&[1, 0, 0, 4, 6, 0, 0, 4]), 2);
    }
}
