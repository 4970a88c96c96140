//! Explicit congestion notification through the tunnel (RFC 6040, normal mode).
//!
//! Called on the packet path. Encapsulation copies the inner ECN field to the outer header (§4.1).
//! Decapsulation combines the two (§4.2) and writes the result to the inner header.

use podswitch_wire::checksum;

/// The two ECN bits of an IP header (RFC 3168 §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Ecn {
    /// The transport is not ECN-capable.
    #[default]
    NotEct = 0b00,
    /// ECN-capable transport, ECT(1).
    Ect1 = 0b01,
    /// ECN-capable transport, ECT(0).
    Ect0 = 0b10,
    /// Congestion experienced.
    Ce = 0b11,
}

/// The ECN bits of a traffic class byte.
pub const MASK: u8 = 0b11;

impl Ecn {
    /// The ECN field in an IPv4 type of service or IPv6 traffic class byte.
    #[inline]
    pub const fn from_traffic_class(byte: u8) -> Self {
        match byte & MASK {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }
}

/// The outer header is marked, and the inner packet's transport does not support ECN. The packet
/// must be dropped instead, to signal congestion by loss (RFC 6040 §4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the outer header is marked CE, and the inner packet is not ECN-capable")]
pub struct Unmarkable;

/// The ECN field of the decapsulated packet: figure 4 of RFC 6040.
///
/// # Errors
/// [`Unmarkable`]: outer CE over an inner packet that is not ECN-capable.
#[inline]
pub const fn decapsulate(outer: Ecn, inner: Ecn) -> Result<Ecn, Unmarkable> {
    match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => Err(Unmarkable),
        (Ecn::NotEct, _) => Ok(Ecn::NotEct),
        (Ecn::Ce, _) | (_, Ecn::Ce) => Ok(Ecn::Ce),
        (Ecn::Ect0, Ecn::Ect1) => Ok(Ecn::Ect1),
        (inner, _) => Ok(inner),
    }
}

/// Whether no current encapsulator produces this pair, so that it should be counted: the
/// combinations marked "(!!!)" in figure 4 of RFC 6040, including outer CE over Not-ECT.
#[inline]
pub const fn is_anomalous(outer: Ecn, inner: Ecn) -> bool {
    matches!((inner, outer), (Ecn::NotEct, Ecn::Ect0 | Ecn::Ect1 | Ecn::Ce) | (Ecn::Ce, Ecn::Ect1))
}

/// Combines the outer ECN field into the inner packet. `network`: its bytes from the IP header on.
/// The IPv4 header checksum is updated (RFC 1624). Packets other than IPv4 and IPv6 have no ECN
/// field and are left alone. Layer-4 checksums do not cover these bits.
///
/// # Errors
/// [`Unmarkable`]: the packet must be dropped. It is unchanged.
#[inline]
pub fn apply(outer: Ecn, network: &mut [u8]) -> Result<(), Unmarkable> {
    // The common case: not marked, or a mark would change nothing.
    if outer == Ecn::NotEct {
        return Ok(());
    }
    match network.first().map(|b| b >> 4) {
        Some(4) if network.len() >= 20 => {
            let old = network[1];
            let mark = decapsulate(outer, Ecn::from_traffic_class(old))?;
            let new = old & !MASK | mark as u8;
            if new != old {
                let sum = u16::from_be_bytes([network[10], network[11]]);
                let first = u16::from_be_bytes([network[0], old]);
                let sum = checksum::update_u16(sum, first, u16::from_be_bytes([network[0], new]));
                network[1] = new;
                network[10..12].copy_from_slice(&sum.to_be_bytes());
            }
        }
        // The traffic class spans two bytes: its low four bits start the second.
        Some(6) if network.len() >= 40 => {
            let old = network[1] >> 4;
            let mark = decapsulate(outer, Ecn::from_traffic_class(old))?;
            network[1] = network[1] & 0b1100_1111 | (mark as u8) << 4;
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Ecn::*;
    use super::*;

    /// RFC 6040 figure 4, row by row (arriving inner), columns Not-ECT, ECT(0), ECT(1), CE.
    const FIGURE_4: [(Ecn, [Option<Ecn>; 4]); 4] = [
        (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
        (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
        (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
        (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
    ];
    const COLUMNS: [Ecn; 4] = [NotEct, Ect0, Ect1, Ce];

    /// A header whose RFC 1071 sum is zero, DSCP 46.
    fn ipv4(ecn: Ecn) -> [u8; 20] {
        let mut h =
            [0x45, 0xb8 | ecn as u8, 0, 20, 1, 2, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum = checksum::sum(&h).checksum();
        h[10..12].copy_from_slice(&sum.to_be_bytes());
        h
    }

    #[test]
    fn sixteen_cases() {
        for (inner, row) in FIGURE_4 {
            for (outer, expected) in COLUMNS.into_iter().zip(row) {
                assert_eq!(
                    decapsulate(outer, inner).ok(),
                    expected,
                    "outer {outer:?} inner {inner:?}"
                );
            }
        }
        let odd = COLUMNS.iter().flat_map(|o| COLUMNS.iter().map(move |i| (*o, *i)));
        assert_eq!(odd.filter(|(o, i)| is_anomalous(*o, *i)).count(), 4);
    }

    #[test]
    fn sixteen_cases_applied_to_both_families() {
        for (inner, row) in FIGURE_4 {
            for (outer, expected) in COLUMNS.into_iter().zip(row) {
                let mut v4 = ipv4(inner);
                let before = v4;
                assert_eq!(apply(outer, &mut v4).is_ok(), expected.is_some());
                assert_eq!(v4, expected.map_or(before, ipv4), "outer {outer:?} inner {inner:?}");

                let mut v6 = [0xff; 40];
                v6[..2].copy_from_slice(&[0x6b, 0x8f | (inner as u8) << 4]);
                let before = v6;
                assert_eq!(apply(outer, &mut v6).is_ok(), expected.is_some());
                let mark = expected.unwrap_or(inner);
                assert_eq!(v6[1], 0x8f | (mark as u8) << 4);
                assert_eq!((v6[0], &v6[2..]), (before[0], &before[2..]));
            }
        }
    }

    #[test]
    fn non_ip_packets_are_left_unchanged() {
        for bytes in [&mut [][..], &mut [0x45; 19], &mut [0x60; 39], &mut [0xaa; 60]] {
            let before = bytes.to_vec();
            assert_eq!(apply(Ce, bytes), Ok(()));
            assert_eq!(bytes, before);
        }
    }
}
