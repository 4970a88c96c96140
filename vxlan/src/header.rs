//! The VXLAN header (RFC 7348 §5): a view over eight bytes.
//!
//! Called on the packet path by [`template`](crate::template) and [`decap`](crate::decap). After
//! [`Header::new_checked`] has accepted its bytes no accessor panics.

use core::fmt;

/// A VXLAN Network Identifier of 24 bits. Larger values cannot be represented.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier.
    pub const MAX: Vni = Vni(0x00ff_ffff);

    /// An identifier from its number. `None` above 24 bits.
    #[inline]
    pub const fn new(number: u32) -> Option<Self> {
        if number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The identifier as three bytes of the header.
    #[inline]
    pub const fn to_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }

    /// The identifier in three bytes of a header.
    #[inline]
    pub const fn from_bytes(bytes: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]))
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vni({})", self.0)
    }
}

/// The number does not fit into 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a VNI: a VNI is a number from 0 to 16777215")]
pub struct VniError(pub u32);

impl TryFrom<u32> for Vni {
    type Error = VniError;

    fn try_from(number: u32) -> Result<Self, VniError> {
        Self::new(number).ok_or(VniError(number))
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> u32 {
        vni.0
    }
}

/// The bytes end before the header does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the VXLAN header is truncated")]
pub struct Truncated;

/// Length of the header in bytes.
pub const LEN: usize = 8;

/// The I flag: the VNI is valid. It must be set (RFC 7348 §5).
pub const FLAG_VNI: u8 = 0x08;

mod field {
    use core::ops::{Range, RangeFrom};

    pub(super) const FLAGS: usize = 0;
    pub(super) const RESERVED_1: Range<usize> = 1..4;
    pub(super) const VNI: Range<usize> = 4..7;
    pub(super) const RESERVED_2: usize = 7;
    pub(super) const PAYLOAD: RangeFrom<usize> = super::LEN..;
}

/// A view over a VXLAN header and the frame behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<T: AsRef<[u8]>> {
    buffer: T,
}

impl<T: AsRef<[u8]>> Header<T> {
    /// A view without checks: accessors may panic.
    #[inline]
    pub const fn new_unchecked(buffer: T) -> Self {
        Self { buffer }
    }

    /// A view over bytes that hold at least a header. No accessor of it panics.
    ///
    /// # Errors
    /// [`Truncated`] if there are fewer than eight bytes. The caller must check the I flag.
    #[inline]
    pub fn new_checked(buffer: T) -> Result<Self, Truncated> {
        if buffer.as_ref().len() < LEN { Err(Truncated) } else { Ok(Self { buffer }) }
    }

    /// The bytes.
    #[inline]
    pub fn into_inner(self) -> T {
        self.buffer
    }

    /// All eight flag bits, reserved ones included.
    #[inline]
    pub fn flags(&self) -> u8 {
        self.buffer.as_ref()[field::FLAGS]
    }

    /// Whether the I flag is set and the VNI therefore valid. All other bits are reserved and
    /// ignored.
    #[inline]
    pub fn has_vni(&self) -> bool {
        self.flags() & FLAG_VNI != 0
    }

    /// The VNI field; meaningless unless [`has_vni`](Self::has_vni).
    #[inline]
    pub fn vni(&self) -> Vni {
        let b = &self.buffer.as_ref()[field::VNI];
        Vni::from_bytes([b[0], b[1], b[2]])
    }

    /// Whether every reserved bit is zero, as required on transmission.
    #[inline]
    pub fn is_canonical(&self) -> bool {
        let b = self.buffer.as_ref();
        b[field::FLAGS] == FLAG_VNI && b[field::RESERVED_1] == [0; 3] && b[field::RESERVED_2] == 0
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Header<&'a T> {
    /// The encapsulated Ethernet frame, without frame check sequence.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.buffer.as_ref()[field::PAYLOAD]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Header<T> {
    /// Writes a whole header: the I flag, `vni`, and zero in every reserved bit.
    #[inline]
    pub fn fill(&mut self, vni: Vni) {
        self.buffer.as_mut()[..LEN].copy_from_slice(&bytes(vni));
    }

    /// Sets the VNI and leaves the rest.
    #[inline]
    pub fn set_vni(&mut self, vni: Vni) {
        self.buffer.as_mut()[field::VNI].copy_from_slice(&vni.to_bytes());
    }

    /// Sets all eight flag bits.
    #[inline]
    pub fn set_flags(&mut self, flags: u8) {
        self.buffer.as_mut()[field::FLAGS] = flags;
    }
}

/// The header for `vni` as sent: I flag set, every reserved bit zero.
#[inline]
pub const fn bytes(vni: Vni) -> [u8; LEN] {
    let [a, b, c] = vni.to_bytes();
    [FLAG_VNI, 0, 0, 0, a, b, c, 0]
}

impl<T: AsRef<[u8]>> fmt::Display for Header<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.has_vni() {
            write!(f, "VXLAN vni={}", self.vni())
        } else {
            write!(f, "VXLAN flags={:#04x} without VNI", self.flags())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7348 figure 1 with VNI 0xabcdef, and the same with every reserved bit set.
    const CANONICAL: [u8; 8] = [0x08, 0, 0, 0, 0xab, 0xcd, 0xef, 0];
    const RESERVED: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0xab, 0xcd, 0xef, 0xff];

    #[test]
    fn vni_has_24_bits() {
        assert_eq!(Vni::new(0xff_ffff), Some(Vni::MAX));
        assert_eq!(Vni::new(0x100_0000), None);
        assert_eq!(Vni::try_from(u32::MAX), Err(VniError(u32::MAX)));
        assert_eq!(Vni::from_bytes(Vni::MAX.to_bytes()), Vni::MAX);
        assert_eq!(Vni::new(7).map(u32::from), Some(7));
    }

    #[test]
    fn reads_and_writes() {
        let header = Header::new_checked(&CANONICAL[..]).unwrap();
        assert!(header.has_vni() && header.is_canonical());
        assert_eq!(header.vni().get(), 0xab_cdef);
        assert_eq!(header.to_string(), "VXLAN vni=11259375");
        assert!(header.payload().is_empty());

        let mut buffer = RESERVED;
        let mut header = Header::new_checked(&mut buffer[..]).unwrap();
        header.fill(Vni(0xab_cdef));
        assert_eq!(buffer, CANONICAL);
    }

    #[test]
    fn reserved_bits_are_ignored_on_receipt() {
        let header = Header::new_checked(&RESERVED[..]).unwrap();
        assert!(header.has_vni() && !header.is_canonical());
        assert_eq!(header.vni().get(), 0xab_cdef);
        let mut without = RESERVED;
        Header::new_unchecked(&mut without[..]).set_flags(!FLAG_VNI);
        assert!(!Header::new_unchecked(&without[..]).has_vni());
    }

    #[test]
    fn cut_off_at_every_byte() {
        for len in 0..LEN {
            assert_eq!(Header::new_checked(&CANONICAL[..len]), Err(Truncated));
        }
        let mut long = CANONICAL.to_vec();
        long.push(0x55);
        assert_eq!(Header::new_checked(&long[..]).unwrap().payload(), [0x55]);
    }
}
