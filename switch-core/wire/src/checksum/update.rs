//! Incremental update by equation 3 of RFC 1624: `HC' = ~(~HC + ~m + m')`. Unlike equation 2 of RFC
//! 1141 it never turns one representation of zero into the other.

use super::{Sum, sum16, words32};

/// What a rewrite adds to the sum over a packet: old words subtracted, new ones added. Computed
/// once for a flow and applied to each of its packets. Deltas of several fields add up.
///
/// A layer-4 checksum needs the delta of the addresses (pseudo-header) and of the ports. A
/// [partial](Delta::apply_partial) one needs that of the addresses only. The IPv4 header checksum
/// needs that of the addresses and of other changed header fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(u16);

impl Delta {
    /// No change.
    pub const NONE: Delta = Delta(0);

    /// One 16-bit word changed.
    #[inline]
    pub const fn u16(old: u16, new: u16) -> Self {
        Self(Sum(!old as u32 + new as u32).fold())
    }

    /// Two words at an even offset changed: an IPv4 address, or both ports.
    #[inline]
    pub const fn u32(old: u32, new: u32) -> Self {
        Self(Sum(words32(!old) + words32(new)).fold())
    }

    /// A 16-byte address changed: IPv6, or IPv4 followed by zeros (as in a flow key).
    #[inline]
    pub fn addr16(old: &[u8; 16], new: &[u8; 16]) -> Self {
        let taken_out = 8 * 0xffff - sum16(old);
        Self(Sum(taken_out + sum16(new)).fold())
    }

    /// Both changes.
    #[inline]
    pub const fn and(self, other: Self) -> Self {
        Self(Sum(self.0 as u32 + other.0 as u32).fold())
    }

    /// The reverse change.
    #[inline]
    pub const fn inverse(self) -> Self {
        Self(!self.0)
    }

    /// The checksum after the change (TCP, ICMP, IPv4 header).
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        !Sum(!checksum as u32 + self.0 as u32).fold()
    }

    /// The IPv4 header checksum after the change and a decrement of TTL, which is `~m + m'` =
    /// 0xfeff in the word of TTL and protocol.
    #[inline]
    pub const fn apply_hop(self, checksum: u16) -> u16 {
        !Sum(!checksum as u32 + self.0 as u32 + 0xfeff).fold()
    }

    /// A UDP checksum after the change. Zero means that there is none and stays zero. A checksum
    /// that becomes zero is sent as 0xffff (RFC 768).
    #[inline]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        match checksum {
            0 => 0,
            _ => match self.apply(checksum) {
                0 => 0xffff,
                changed => changed,
            },
        }
    }

    /// A partial checksum field after the change. It holds the folded sum of the pseudo-header, not
    /// complemented. Everything else is summed when it is completed, so `self` must be the delta of
    /// the addresses alone.
    #[inline]
    pub const fn apply_partial(self, field: u16) -> u16 {
        Sum(field as u32 + self.0 as u32).fold()
    }
}

/// `checksum` after one 16-bit word changed.
#[inline]
pub const fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    Delta::u16(old, new).apply(checksum)
}

/// `checksum` after two words at an even offset changed.
#[inline]
pub const fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    Delta::u32(old, new).apply(checksum)
}

/// `checksum` after a 16-byte address changed.
#[inline]
pub fn update_addr16(checksum: u16, old: &[u8; 16], new: &[u8; 16]) -> u16 {
    Delta::addr16(old, new).apply(checksum)
}
