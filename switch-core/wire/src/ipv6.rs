//! The IPv6 header and its chain of extension headers (RFC 8200).

use core::net::Ipv6Addr;

use crate::view::{Malformed, array, be16, be32, view};

/// Length of the header in bytes, extension headers not counted.
pub const HEADER_LEN: usize = 40;

/// Next-header values of extension headers (IANA ipv6-parameters).
pub mod extension {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Encapsulating security payload: encrypted, so the chain cannot be followed.
    pub const ESP: u8 = 50;
    /// No next header.
    pub const AUTHENTICATION: u8 = 51;
    /// Nothing follows.
    pub const NO_NEXT_HEADER: u8 = 59;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

view! {
    /// An IPv6 packet; bytes beyond its payload length are padding.
    Packet, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    let header = bytes.first_chunk::<HEADER_LEN>().ok_or(Malformed::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(Malformed::Kind);
    }
    let total = HEADER_LEN + usize::from(be16(header, 4));
    if total > bytes.len() { Err(Malformed::Truncated) } else { Ok(()) }
}

impl<T: AsRef<[u8]>> Packet<T> {
    /// Version field, 6.
    #[inline]
    pub fn version(&self) -> u8 {
        self.bytes()[0] >> 4
    }

    /// Traffic class: DSCP and, in the lowest two bits, ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (be16(self.bytes(), 0) >> 4) as u8
    }

    /// Flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        be32(self.bytes(), 0) & 0x000f_ffff
    }

    /// Length of everything behind this header, extension headers included, in bytes.
    #[inline]
    pub fn payload_len(&self) -> u16 {
        be16(self.bytes(), 4)
    }

    /// Type of the next header: an extension header or the upper layer.
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.bytes()[6]
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.bytes()[7]
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes(), 8))
    }

    /// Destination address.
    #[inline]
    pub fn dst(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes(), 24))
    }

    /// Everything behind the header and before padding, extension headers included.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[HEADER_LEN..HEADER_LEN + usize::from(self.payload_len())]
    }

    /// The extension headers, one after another.
    #[inline]
    pub fn extension_headers(&self) -> ExtensionHeaders<'_> {
        ExtensionHeaders::new(self.next_header(), self.payload())
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Packet<T> {
    /// Sets version 6, traffic class and flow label at once.
    #[inline]
    pub fn set_version_class_label(&mut self, class: u8, label: u32) {
        let word = 6 << 28 | u32::from(class) << 20 | label & 0x000f_ffff;
        self.put(0, word.to_be_bytes());
    }

    /// Sets the traffic class alone.
    #[inline]
    pub fn set_traffic_class(&mut self, class: u8) {
        self.put_bits(0, 0x0f, class >> 4);
        self.put_bits(1, 0xf0, class << 4);
    }

    /// Sets the length of everything behind this header, in bytes.
    #[inline]
    pub fn set_payload_len(&mut self, len: u16) {
        self.put(4, len.to_be_bytes());
    }

    /// Sets the type of the next header.
    #[inline]
    pub fn set_next_header(&mut self, next: u8) {
        self.put(6, [next]);
    }

    /// Sets the hop limit.
    #[inline]
    pub fn set_hop_limit(&mut self, limit: u8) {
        self.put(7, [limit]);
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src(&mut self, address: Ipv6Addr) {
        self.put(8, address.octets());
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst(&mut self, address: Ipv6Addr) {
        self.put(24, address.octets());
    }

    /// Everything behind the header and before padding, mutable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let range = HEADER_LEN..HEADER_LEN + usize::from(self.payload_len());
        &mut self.bytes.as_mut()[range]
    }
}

/// An extension header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExtensionHeader<'a> {
    /// Its type (see [`extension`]).
    pub kind: u8,
    /// The type of what follows it.
    pub next_header: u8,
    /// The whole header, beginning with the next-header byte. At least 8 bytes.
    pub bytes: &'a [u8],
}

impl ExtensionHeader<'_> {
    /// Offset in bytes, more-fragments bit and identification, if it is a fragment header.
    pub fn fragment(&self) -> Option<(u16, bool, u32)> {
        if self.kind != extension::FRAGMENT {
            return None;
        }
        let field = be16(self.bytes, 2);
        Some((field & 0xfff8, field & 1 != 0, be32(self.bytes, 4)))
    }
}

/// Extension headers in order. Ends at the upper layer, at a truncated header, and behind a
/// fragment header with a non-zero offset, because payload data follows that header. It validates
/// nothing; [`parse`](crate::parse::parse) does.
#[derive(Clone, Debug)]
pub struct ExtensionHeaders<'a> {
    next: u8,
    rest: &'a [u8],
    ended: bool,
}

impl<'a> ExtensionHeaders<'a> {
    /// The chain in `payload` that begins with a header of kind `next`.
    pub fn new(next: u8, payload: &'a [u8]) -> Self {
        Self { next, rest: payload, ended: false }
    }

    /// The position of the iteration: the next-header value and the bytes behind the headers
    /// returned so far. At the end these are the upper layer's protocol and packet.
    pub fn remainder(&self) -> (u8, &'a [u8]) {
        (self.next, self.rest)
    }
}

impl<'a> Iterator for ExtensionHeaders<'a> {
    type Item = ExtensionHeader<'a>;

    fn next(&mut self) -> Option<ExtensionHeader<'a>> {
        if self.ended {
            return None;
        }
        let kind = self.next;
        let head = self.rest.first_chunk::<8>()?;
        let units = usize::from(head[1]);
        let len = match kind {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => (units + 1) * 8,
            extension::FRAGMENT => 8,
            // In units of 4 bytes less 2 (RFC 4302 §2.2).
            extension::AUTHENTICATION if units > 0 => (units + 2) * 4,
            _ => return None,
        };
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.next = head[0];
        self.rest = rest;
        let header = ExtensionHeader { kind, next_header: head[0], bytes };
        self.ended = header.fragment().is_some_and(|(offset, _, _)| offset != 0);
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Hop-by-hop (router alert), fragment (first, more follow), then four bytes of UDP; two
    /// bytes of padding.
    const PACKET: [u8; 62] = [
        0x6b, 0x91, 0x23, 0x45, 0x00, 0x14, 0x00, 0x40, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 1, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x2c, 0x00, 0x05, 0x02, 0, 0,
        0x01, 0x00, 0x11, 0x00, 0x00, 0x01, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 0xee, 0xee,
    ];

    #[test]
    fn reads_every_field_and_follows_the_chain() {
        let packet = Packet::new_checked(&PACKET[..]).unwrap();
        assert_eq!((packet.version(), packet.traffic_class()), (6, 0xb9));
        assert_eq!((packet.flow_label(), packet.payload_len()), (0x1_2345, 20));
        assert_eq!((packet.next_header(), packet.hop_limit()), (0, 64));
        assert_eq!(packet.src(), "fd00::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(packet.dst(), "fd00::2".parse::<Ipv6Addr>().unwrap());
        let mut chain = packet.extension_headers();
        let headers: Vec<_> = chain.by_ref().collect();
        assert_eq!(headers[0].bytes, &PACKET[40..48]);
        assert_eq!((headers[0].kind, headers[0].fragment()), (extension::HOP_BY_HOP, None));
        assert_eq!(headers[1].fragment(), Some((0, true, 0xdead_beef)));
        assert_eq!((headers.len(), chain.remainder()), (2, (17, &[1, 2, 3, 4][..])));
    }

    #[test]
    fn writes_every_field() {
        let mut bytes = PACKET;
        bytes[..40].fill(0);
        let mut packet = Packet::new_unchecked(bytes);
        packet.set_version_class_label(0, 0x1_2345);
        packet.set_traffic_class(0xb9);
        packet.set_payload_len(20);
        packet.set_next_header(0);
        packet.set_hop_limit(64);
        packet.set_src("fd00::1".parse().unwrap());
        packet.set_dst("fd00::2".parse().unwrap());
        assert_eq!(packet.into_inner(), PACKET);
        packet.payload_mut().fill(9);
        assert_eq!(packet.payload(), [9; 20]);
    }

    #[test]
    fn data_behind_a_later_fragments_header_is_not_parsed() {
        let later = [60, 0, 0, 0x09, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 0];
        let mut chain = ExtensionHeaders::new(extension::FRAGMENT, &later);
        assert_eq!(chain.next().unwrap().fragment(), Some((8, true, 1)));
        assert_eq!((chain.next(), chain.remainder()), (None, (60, &later[8..])));
    }

    #[test]
    fn a_chain_that_is_cut_off_ends() {
        for len in 0..16 {
            let long = [60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let mut chain = ExtensionHeaders::new(extension::DESTINATION, &long[..len]);
            assert_eq!(chain.next(), None, "{len}");
        }
        assert_eq!(Packet::new_checked(&PACKET[..59]), Err(Malformed::Truncated));
        assert_eq!(Packet::new_checked(&PACKET[..39]), Err(Malformed::Truncated));
    }
}
