//! CRC32c (Castagnoli), the checksum of SCTP, with tables built at compile time.

/// The polynomial 0x1EDC6F41 with its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `TABLES[n][byte]`: the CRC of `byte` followed by `n` zero bytes, so that one step processes
/// eight bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before: u32 = tables[n - 1][byte];
            tables[n][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

/// Feeds `bytes` into the register `crc`.
fn feed(mut crc: u32, bytes: &[u8]) -> u32 {
    let at = |table: usize, byte: u32| TABLES[table][(byte & 0xff) as usize];
    let (chunks, rest) = bytes.as_chunks::<8>();
    for [a, b, c, d, e, f, g, h] in chunks {
        let low = crc ^ u32::from_le_bytes([*a, *b, *c, *d]);
        let high = u32::from_le_bytes([*e, *f, *g, *h]);
        crc = at(7, low)
            ^ at(6, low >> 8)
            ^ at(5, low >> 16)
            ^ at(4, low >> 24)
            ^ at(3, high)
            ^ at(2, high >> 8)
            ^ at(1, high >> 16)
            ^ at(0, high >> 24);
    }
    for byte in rest {
        crc = (crc >> 8) ^ at(0, crc ^ u32::from(*byte));
    }
    crc
}

/// CRC32c of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !feed(!0, bytes)
}

/// The checksum of an SCTP packet, in the byte order of the field at offset 8. The field's present
/// content is ignored. `None` if `packet` is shorter than the common header.
pub fn sctp_checksum(packet: &[u8]) -> Option<[u8; 4]> {
    let (header, chunks) = packet.split_first_chunk::<12>()?;
    let crc = feed(feed(feed(!0, &header[..8]), &[0; 4]), chunks);
    // The register's lowest byte goes first (RFC 9260 appendix A).
    Some((!crc).to_le_bytes())
}

/// The checksum field of an SCTP packet of `len` bytes after the four bytes of its ports change
/// from `old` to `new`. The cost does not depend on the length. A wrong checksum stays wrong:
/// translation does not hide that a packet was damaged before.
pub fn sctp_update(checksum: [u8; 4], len: usize, old: [u8; 4], new: [u8; 4]) -> [u8; 4] {
    // A CRC is linear: old and new differ by the CRC, from a zero register, of the difference of
    // the packets. That difference is four bytes followed by zeros.
    let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    let zeros = len.saturating_sub(4) as u64;
    let shifted = multiply(power(zeros), feed(0, &difference.to_le_bytes()));
    (u32::from_le_bytes(checksum) ^ shifted).to_le_bytes()
}

/// The product of two polynomials modulo CRC32c's, bits reversed (bit 31 is x⁰).
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 1 { (b >> 1) ^ POLYNOMIAL } else { b >> 1 };
        bit >>= 1;
    }
    product
}

/// `SQUARES[n]`: x to the power 8 × 2ⁿ, the factor of 2ⁿ zero bytes.
const SQUARES: [u32; 64] = {
    let mut squares = [0; 64];
    // x⁸
    let mut power = 1 << (31 - 8);
    let mut n = 0;
    while n < 64 {
        squares[n] = power;
        power = multiply(power, power);
        n += 1;
    }
    squares
};

/// The factor by which `zeros` zero bytes multiply a register.
fn power(zeros: u64) -> u32 {
    // x⁰
    let mut product = 1 << 31;
    for (n, square) in SQUARES.iter().enumerate().take((64 - zeros.leading_zeros()) as usize) {
        if zeros >> n & 1 == 1 {
            product = multiply(*square, product);
        }
    }
    product
}
