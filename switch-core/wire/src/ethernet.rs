//! Ethernet II (IEEE 802.3 §3): destination, source, EtherType.

use crate::addr::Mac;
use crate::view::{Malformed, array, be16, view};

/// Length of the header without tags, in bytes.
pub const HEADER_LEN: usize = 14;

view! {
    /// An Ethernet frame without its check sequence.
    Frame, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.len() < HEADER_LEN { Err(Malformed::Truncated) } else { Ok(()) }
}

impl<T: AsRef<[u8]>> Frame<T> {
    /// Destination address.
    #[inline]
    pub fn dst(&self) -> Mac {
        Mac(array(self.bytes(), 0))
    }

    /// Source address.
    #[inline]
    pub fn src(&self) -> Mac {
        Mac(array(self.bytes(), 6))
    }

    /// EtherType of the content, or of the first tag if there is one. A value below 0x0600 is the
    /// length of an 802.3 frame.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        be16(self.bytes(), 12)
    }

    /// Everything behind the header: tags, packet, padding.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[HEADER_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Frame<T> {
    /// Sets the destination address.
    #[inline]
    pub fn set_dst(&mut self, mac: Mac) {
        self.put(0, mac.0);
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src(&mut self, mac: Mac) {
        self.put(6, mac.0);
    }

    /// Sets the EtherType.
    #[inline]
    pub fn set_ethertype(&mut self, ethertype: u16) {
        self.put(12, ethertype.to_be_bytes());
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

    const FRAME: [u8; 16] =
        [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x08, 0x06, 0xaa, 0xbb];

    #[test]
    fn reads_and_writes_every_field() {
        let frame = Frame::new_checked(&FRAME[..]).unwrap();
        assert_eq!(frame.dst(), Mac::BROADCAST);
        assert_eq!(frame.src(), Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!((frame.ethertype(), frame.payload()), (0x0806, &[0xaa, 0xbb][..]));
        let mut built = Frame::new_unchecked([0; 16]);
        built.set_dst(frame.dst());
        built.set_src(frame.src());
        built.set_ethertype(frame.ethertype());
        built.payload_mut().copy_from_slice(frame.payload());
        assert_eq!(built.into_inner(), FRAME);
        assert_eq!(Frame::new_checked(&FRAME[..13]), Err(Malformed::Truncated));
    }
}
