//! VLAN tags (IEEE 802.1Q §9): the four bytes that follow an EtherType of 0x8100 or 0x88a8.

use crate::view::{Malformed, be16, view};

/// Length of the tag behind its own EtherType, in bytes.
pub const TAG_LEN: usize = 4;

view! {
    /// A tag, beginning behind its own EtherType, and the rest of the frame.
    Tag, check
}

fn check(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.len() < TAG_LEN { Err(Malformed::Truncated) } else { Ok(()) }
}

impl<T: AsRef<[u8]>> Tag<T> {
    /// Tag control information: all of the fields below.
    #[inline]
    pub fn tci(&self) -> u16 {
        be16(self.bytes(), 0)
    }

    /// Priority code point, 0 to 7.
    #[inline]
    pub fn priority(&self) -> u8 {
        self.bytes()[0] >> 5
    }

    /// Drop eligible indicator.
    #[inline]
    pub fn drop_eligible(&self) -> bool {
        self.bytes()[0] & 0x10 != 0
    }

    /// VLAN identifier; 0: priority tag without an identifier; 4095: reserved.
    #[inline]
    pub fn vid(&self) -> u16 {
        self.tci() & 0x0fff
    }

    /// EtherType of the content.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        be16(self.bytes(), 2)
    }

    /// Everything behind the tag.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[TAG_LEN..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Tag<T> {
    /// Sets priority, drop eligibility and identifier at once.
    #[inline]
    pub fn set_tci(&mut self, tci: u16) {
        self.put(0, tci.to_be_bytes());
    }

    /// Sets the EtherType of the content.
    #[inline]
    pub fn set_ethertype(&mut self, ethertype: u16) {
        self.put(2, ethertype.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_every_field() {
        let bytes = [0xb0, 0x65, 0x86, 0xdd, 1];
        let tag = Tag::new_checked(&bytes[..]).unwrap();
        assert_eq!((tag.priority(), tag.drop_eligible(), tag.vid()), (5, true, 0x065));
        assert_eq!((tag.ethertype(), tag.payload()), (0x86dd, &[1][..]));
        let mut built = Tag::new_unchecked([0, 0, 0, 0, 1]);
        built.set_tci(tag.tci());
        built.set_ethertype(tag.ethertype());
        assert_eq!(built.into_inner(), bytes);
        assert_eq!(Tag::new_checked(&bytes[..3]), Err(Malformed::Truncated));
    }
}
