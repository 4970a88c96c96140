//! Reads bytes at known offsets of a header.

/// A 16-bit number at offset `at`, which is a constant in every use.
#[inline(always)]
pub(super) fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// `M` bytes at offset `at`, which is a constant in every use.
#[inline(always)]
pub(super) fn array<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    let mut array = [0; M];
    array.copy_from_slice(&bytes[at..at + M]);
    array
}
