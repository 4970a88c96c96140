//! The TCP header (RFC 9293 §3.1) and its options.

use crate::view::{Malformed, be16, be32, view};

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 20;

view! {
    /// A TCP segment.
    Packet, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    let header = bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
    match usize::from(header[12] >> 4) * 4 {
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

    /// Sequence number of the first byte (of SYN, if that is set).
    #[inline]
    pub fn sequence(&self) -> u32 {
        be32(self.bytes(), 4)
    }

    /// Next sequence number expected from the other side, if ACK is set.
    #[inline]
    pub fn acknowledgment(&self) -> u32 {
        be32(self.bytes(), 8)
    }

    /// Length of the header with its options, in bytes.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes()[12] >> 4) * 4
    }

    /// Flags, see [`tcp_flags`](crate::parse::tcp_flags).
    #[inline]
    pub fn flags(&self) -> u8 {
        self.bytes()[13]
    }

    /// Window, not scaled.
    #[inline]
    pub fn window(&self) -> u16 {
        be16(self.bytes(), 14)
    }

    /// Checksum.
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.bytes(), 16)
    }

    /// Urgent pointer.
    #[inline]
    pub fn urgent(&self) -> u16 {
        be16(self.bytes(), 18)
    }

    /// The options in order.
    #[inline]
    pub fn options(&self) -> Options<'_> {
        Options { rest: &self.bytes()[HEADER_LEN..self.header_len()] }
    }

    /// Everything behind the header.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[self.header_len()..]
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

    /// Sets the sequence number.
    #[inline]
    pub fn set_sequence(&mut self, number: u32) {
        self.put(4, number.to_be_bytes());
    }

    /// Sets the acknowledgment number.
    #[inline]
    pub fn set_acknowledgment(&mut self, number: u32) {
        self.put(8, number.to_be_bytes());
    }

    /// Sets the header's length in bytes, a multiple of 4 from 20 to 60; reserved bits are
    /// cleared.
    #[inline]
    pub fn set_header_len(&mut self, len: usize) {
        self.put(12, [((len / 4) << 4) as u8]);
    }

    /// Sets the flags.
    #[inline]
    pub fn set_flags(&mut self, flags: u8) {
        self.put(13, [flags]);
    }

    /// Sets the window.
    #[inline]
    pub fn set_window(&mut self, window: u16) {
        self.put(14, window.to_be_bytes());
    }

    /// Sets the checksum.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        self.put(16, checksum.to_be_bytes());
    }

    /// Sets the urgent pointer.
    #[inline]
    pub fn set_urgent(&mut self, pointer: u16) {
        self.put(18, pointer.to_be_bytes());
    }
}

/// An option of a TCP header (IANA tcp-parameters).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TcpOption<'a> {
    /// Maximum segment size in bytes, as its sender wants to receive (RFC 9293 §3.7.1).
    MaxSegmentSize(u16),
    /// Window scale of the sender, not validated; a value above 14 is treated as 14 (RFC 7323
    /// §2.3).
    WindowScale(u8),
    /// Selective acknowledgments may be sent (RFC 2018).
    SackPermitted,
    /// Timestamp and echoed timestamp (RFC 7323 §3).
    Timestamps(u32, u32),
    /// Any other option, or one of those above with a wrong length.
    Other {
        /// Option kind.
        kind: u8,
        /// The content behind kind and length.
        data: &'a [u8],
    },
}

/// Options of a TCP header in order, without padding. Ends at the first malformed one.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Options<'a> {
    /// An option list from its bytes, which need not be well formed.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Options<'a> {
    type Item = TcpOption<'a>;

    fn next(&mut self) -> Option<TcpOption<'a>> {
        loop {
            match *self.rest {
                // No operation.
                [1, ref rest @ ..] => self.rest = rest,
                // End of the list, or no bytes left.
                [0, ..] | [] => return None,
                [kind, len, ..] if len >= 2 => {
                    let (option, rest) = self.rest.split_at_checked(usize::from(len))?;
                    self.rest = rest;
                    return Some(read_option(kind, &option[2..]));
                }
                _ => return None,
            }
        }
    }
}

fn read_option(kind: u8, data: &[u8]) -> TcpOption<'_> {
    match (kind, data) {
        (2, [a, b]) => TcpOption::MaxSegmentSize(u16::from_be_bytes([*a, *b])),
        (3, [shift]) => TcpOption::WindowScale(*shift),
        (4, []) => TcpOption::SackPermitted,
        (8, data) if data.len() == 8 => TcpOption::Timestamps(be32(data, 0), be32(data, 4)),
        _ => TcpOption::Other { kind, data },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::tcp_flags::SYN;
    use std::vec::Vec;

    /// The SYN of a Linux client.
    const SYN_SEGMENT: [u8; 40] = [
        0xc3, 0x50, 0x01, 0xbb, 0x11, 0x22, 0x33, 0x44, 0x00, 0x00, 0x00, 0x00, 0xa0, 0x02, 0xfa,
        0xf0, 0x12, 0x34, 0x00, 0x00, 0x02, 0x04, 0x05, 0xb4, 0x04, 0x02, 0x08, 0x0a, 0x00, 0x00,
        0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x03, 0x03, 0x07,
    ];

    #[test]
    fn reads_every_field() {
        let packet = Packet::new_checked(&SYN_SEGMENT[..]).unwrap();
        assert_eq!((packet.src_port(), packet.dst_port()), (50000, 443));
        assert_eq!((packet.sequence(), packet.acknowledgment()), (0x1122_3344, 0));
        assert_eq!((packet.header_len(), packet.flags(), packet.window()), (40, SYN, 64240));
        assert_eq!((packet.checksum(), packet.urgent()), (0x1234, 0));
        let options: Vec<_> = packet.options().collect();
        assert_eq!(
            options,
            [
                TcpOption::MaxSegmentSize(1460),
                TcpOption::SackPermitted,
                TcpOption::Timestamps(0x1000, 0),
                TcpOption::WindowScale(7)
            ]
        );
        assert!(packet.payload().is_empty());
    }

    #[test]
    fn writes_every_field() {
        let mut bytes = [0; 40];
        bytes[20..].copy_from_slice(&SYN_SEGMENT[20..]);
        let mut packet = Packet::new_unchecked(bytes);
        packet.set_src_port(50000);
        packet.set_dst_port(443);
        packet.set_sequence(0x1122_3344);
        packet.set_acknowledgment(0);
        packet.set_header_len(40);
        packet.set_flags(SYN);
        packet.set_window(64240);
        packet.set_checksum(0x1234);
        packet.set_urgent(0);
        assert_eq!(packet.into_inner(), SYN_SEGMENT);
    }

    #[test]
    fn malformed_options_end_the_list() {
        let list = |bytes: &[u8]| Options::new(bytes).count();
        assert_eq!(list(&[2, 4, 5, 0xb4, 0, 3, 3, 7]), 1);
        assert_eq!(list(&[2, 0, 3, 3, 7]), 0);
        assert_eq!(list(&[1, 1, 2, 5, 5, 0xb4]), 0);
        assert_eq!(list(&[1, 4]), 0);
        // A known kind with a wrong length is not interpreted.
        let other = TcpOption::Other { kind: 2, data: &[5] };
        assert_eq!(Options::new(&[2, 3, 5]).next(), Some(other));
    }

    #[test]
    fn refuses_impossible_offsets() {
        let with = |byte: u8| {
            let mut segment = SYN_SEGMENT;
            segment[12] = byte;
            Packet::new_checked(segment).map(|_| ())
        };
        assert_eq!(with(0x40), Err(Malformed::Length));
        assert_eq!(with(0xb0), Err(Malformed::Truncated));
        assert_eq!(with(0x50), Ok(()));
    }
}
