//! CRC32c (Castagnoli), SCTP's checksum, by tables that the compiler builds.

/// The polynomial 0x1EDC6F41 with its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `TABLES[n][octet]`: the CRC of `octet` followed by `n` zero octets, so that eight octets are
/// taken in one step.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut octet = 0;
    while octet < 256 {
        let mut crc = octet as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][octet] = crc;
        octet += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut octet = 0;
        while octet < 256 {
            let before: u32 = tables[n - 1][octet];
            tables[n][octet] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            octet += 1;
        }
        n += 1;
    }
    tables
}

/// Takes `octets` into the register `crc`.
fn feed(mut crc: u32, octets: &[u8]) -> u32 {
    let at = |table: usize, octet: u32| TABLES[table][(octet & 0xff) as usize];
    let (chunks, rest) = octets.as_chunks::<8>();
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
    for octet in rest {
        crc = (crc >> 8) ^ at(0, crc ^ u32::from(*octet));
    }
    crc
}

/// CRC32c of `octets`.
pub fn crc32c(octets: &[u8]) -> u32 {
    !feed(!0, octets)
}

/// The checksum of an SCTP packet as its four octets stand at offset 8, whatever stands there
/// now. `None` if `packet` is shorter than the common header.
pub fn sctp_checksum(packet: &[u8]) -> Option<[u8; 4]> {
    let (header, chunks) = packet.split_first_chunk::<12>()?;
    let crc = feed(feed(feed(!0, &header[..8]), &[0; 4]), chunks);
    // The register's lowest octet goes first (RFC 9260 appendix A).
    Some((!crc).to_le_bytes())
}

/// The checksum field of an SCTP packet of `len` octets after the four octets of its ports
/// changed from `old` to `new`. Costs the same for every length, and what was a wrong checksum
/// stays one: a packet damaged before translation is not made good by it.
pub fn sctp_update(checksum: [u8; 4], len: usize, old: [u8; 4], new: [u8; 4]) -> [u8; 4] {
    // A CRC is linear: the old one differs from the new one by the CRC, from a zero register, of
    // what the packets differ by, which is four octets and then nothing but zeros.
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

/// `SQUARES[n]`: x to the 8 × 2ⁿ, what 2ⁿ zero octets multiply a register by.
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

/// What `zeros` octets of zero multiply a register by.
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
