//! Ones' complement sums (RFC 1071), used by both [`parse`](crate::parse) and
//! [`checksum`](crate::checksum).

use core::ops::Add;

/// A ones' complement sum of bytes that begin at an even offset of a packet. It is not yet folded
/// or complemented.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sum(pub(crate) u32);

impl Sum {
    /// The empty sum.
    pub const ZERO: Sum = Sum(0);

    /// One 16-bit word in host order.
    #[inline]
    pub const fn word(value: u16) -> Self {
        Self(value as u32)
    }

    /// The sum folded to 16 bits, with all carries added.
    #[inline]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// The checksum: the complement of the folded sum.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Whether the bytes, including their checksum field, are intact.
    #[inline]
    pub const fn holds(self) -> bool {
        self.fold() == 0xffff
    }
}

impl Add for Sum {
    type Output = Sum;

    #[inline]
    fn add(self, other: Self) -> Self {
        Self(u32::from(self.fold()) + u32::from(other.fold()))
    }
}

/// The sum over `bytes`. An odd last byte is padded with a zero (RFC 1071 §1).
#[inline]
pub fn sum(bytes: &[u8]) -> Sum {
    // Words are added eight bytes at a time in native byte order: the ones' complement sum is the
    // same in either order, except that its two bytes are swapped (RFC 1071 §2 B). There are two
    // wide accumulators, so that the additions do not wait for each other and no carry is lost.
    let (pairs, rest) = bytes.as_chunks::<16>();
    let (mut even, mut odd) = (0_u128, 0_u128);
    for pair in pairs {
        let both = u128::from_ne_bytes(*pair);
        even += both & u128::from(u64::MAX);
        odd += both >> 64;
    }
    let mut last = [0; 16];
    last[..rest.len()].copy_from_slice(rest);
    let both = u128::from_ne_bytes(last);
    fold_wide(even + odd + (both & u128::from(u64::MAX)) + (both >> 64))
}

/// Converts a sum of native-order words of any width to one of words in network order.
#[inline]
fn fold_wide(wide: u128) -> Sum {
    let (low, carry) = (wide as u64).overflowing_add((wide >> 64) as u64);
    let sum = low + u64::from(carry);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    Sum(u32::from(Sum(sum as u32).fold().to_be()))
}

/// Whether the ones' complement sum over an IPv4 header without options, of version 4, is all ones
/// (RFC 1071). It is computed in native byte order, which changes only the order of the result's
/// bytes.
#[inline(always)]
pub fn ipv4_header_holds(header: &[u8; 20]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    // 2¹⁶ is 1 modulo 0xffff, so folding does not change the remainder, and the remainder of all
    // ones is 0. (An all-zero header has the remainder 0 too, but its version is not 4.)
    sum.is_multiple_of(0xffff)
}

/// The sum of the IPv4 pseudo-header (RFC 9293 §3.1, RFC 768). `len`: length of the layer-4 header
/// and everything behind it, in bytes.
#[inline]
pub fn pseudo_v4(src: [u8; 4], dst: [u8; 4], proto: u8, len: u16) -> Sum {
    let addresses = words32(u32::from_be_bytes(src)) + words32(u32::from_be_bytes(dst));
    Sum(addresses + u32::from(proto) + u32::from(len))
}

/// The sum of the IPv6 pseudo-header (RFC 8200 §8.1); `len` as for [`pseudo_v4`].
#[inline]
pub fn pseudo_v6(src: &[u8; 16], dst: &[u8; 16], proto: u8, len: u32) -> Sum {
    Sum(sum16(src) + sum16(dst) + u32::from(proto) + words32(len))
}

#[inline]
pub(crate) const fn words32(value: u32) -> u32 {
    (value >> 16) + (value & 0xffff)
}

/// The sum of the eight words of an address, not folded: at most 8 × 0xffff.
#[inline]
pub(crate) fn sum16(address: &[u8; 16]) -> u32 {
    let (words, _) = address.as_chunks::<2>();
    words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum()
}
