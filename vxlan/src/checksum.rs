//! The Internet checksum (RFC 1071) over what the tunnel adds.

/// One's complement sum of `bytes` as big-endian words, not folded, the last odd octet padded
/// with zero. Takes up to 2^49 octets without overflow.
#[inline]
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    // Four octets a step into 64 bits: carries gather in the upper half and are folded at the
    // end, which the compiler turns into vector code.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = words.iter().fold(0u64, |t, w| t + u64::from(u32::from_be_bytes(*w)));
    let (pairs, odd) = rest.as_chunks::<2>();
    for pair in pairs {
        total += u64::from(u16::from_be_bytes(*pair));
    }
    if let [last] = odd {
        total += u64::from(*last) << 8;
    }
    total
}

/// The sum folded to 16 bits with end-around carry.
#[inline]
pub(crate) const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A checksum after one word that it covers changed (RFC 1624 equation 3).
#[inline]
pub(crate) const fn update16(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}
