//! Internet checksum and CRC32c over whole stretches of a frame, for finishing what a sender
//! left to the hardware.
//!
//! Sums are kept in the machine's byte order: the ones' complement sum does not mind (RFC 1071
//! §2B), and the folded sum is stored as it is read, with `from_ne_bytes` and `to_ne_bytes`.

/// Ones' complement sum of `data`, an odd last octet padded with zero, not yet folded.
#[inline]
pub(super) fn sum(data: &[u8]) -> u64 {
    let (blocks, rest) = data.as_chunks::<32>();
    let mut lanes = [0u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let (pairs, odd) = rest.as_chunks::<2>();
    for pair in pairs {
        total += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [last] = odd {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// The sum in sixteen bits.
#[inline]
pub(super) fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// A host-order value of the header as [`sum`] sees it.
#[inline]
pub(super) fn word(value: u16) -> u64 {
    u64::from(u16::from_ne_bytes(value.to_be_bytes()))
}

/// CRC32c (RFC 9260 appendix A) of the three stretches one after the other.
pub(super) fn crc32c(parts: [&[u8]; 3]) -> u32 {
    let mut crc = !0u32;
    for octet in parts.into_iter().flatten() {
        crc = CRC_TABLE[usize::from(crc as u8 ^ octet)] ^ (crc >> 8);
    }
    !crc
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_sums() {
        // RFC 1071 §3: the example sums to ddf2.
        let folded = fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]));
        assert_eq!(folded.to_ne_bytes(), [0xdd, 0xf2]);
        assert_eq!(fold(u64::MAX), 0xffff);
        // RFC 3720 B.4 and the usual check value.
        assert_eq!(crc32c([b"1234", b"", b"56789"]), 0xe306_9283);
        assert_eq!(crc32c([&[0; 32], b"", b""]), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn sum_is_that_of_the_16_bit_words(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut plain = 0u32;
            for pair in data.chunks(2) {
                plain += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            }
            while plain > 0xffff {
                plain = (plain & 0xffff) + (plain >> 16);
            }
            prop_assert_eq!(u32::from(u16::from_be_bytes(fold(sum(&data)).to_ne_bytes())), plain);
        }
    }
}
