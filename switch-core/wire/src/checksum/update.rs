//! Incremental update by equation 3 of RFC 1624: `HC' = ~(~HC + ~m + m')`, which unlike equation
//! 2 of RFC 1141 never turns a checksum into the other zero.

use super::{Sum, sum16, words32};

/// What a rewrite adds to the sum over a packet: old words taken out, new ones put in. Computed
/// once for a flow, applied to each of its packets; deltas of several fields add up.
///
/// A layer-4 checksum needs the delta of the addresses (pseudo-header) and of the ports, one
/// that is [partial](Delta::apply_partial) of the addresses only, and the IPv4 header's that of
/// the addresses and of the other header fields changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(u16);

impl Delta {
    /// Nothing was changed.
    pub const NONE: Delta = Delta(0);

    /// One 16-bit word was changed.
    #[inline]
    pub const fn u16(old: u16, new: u16) -> Self {
        Self(Sum(!old as u32 + new as u32).fold())
    }

    /// Two words that stand at an even place were changed: an IPv4 address, both ports.
    #[inline]
    pub const fn u32(old: u32, new: u32) -> Self {
        Self(Sum(words32(!old) + words32(new)).fold())
    }

    /// An address in 16 bytes was changed: IPv6, or IPv4 with zeros behind (as in a flow key).
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

    /// The change that takes this one back.
    #[inline]
    pub const fn inverse(self) -> Self {
        Self(!self.0)
    }

    /// The checksum after the change (TCP, ICMP, IPv4 header).
    #[inline]
    pub const fn apply(self, checksum: u16) -> u16 {
        !Sum(!checksum as u32 + self.0 as u32).fold()
    }

    /// The IPv4 header checksum after the change and a TTL that went down by one, which is
    /// `~m + m'` = 0xfeff in the word of TTL and protocol.
    #[inline]
    pub const fn apply_hop(self, checksum: u16) -> u16 {
        !Sum(!checksum as u32 + self.0 as u32 + 0xfeff).fold()
    }

    /// A UDP checksum after the change: zero means that there is none and stays, and a checksum
    /// that comes to zero is sent as 0xffff (RFC 768).
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

    /// A partial ("offloaded") checksum field after the change. It holds the folded sum of the
    /// pseudo-header, not complemented; whoever finishes it sums everything else, so `self` must
    /// be the delta of the addresses alone.
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

/// `checksum` after two words that stand at an even place changed.
#[inline]
pub const fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    Delta::u32(old, new).apply(checksum)
}

/// `checksum` after an address in 16 bytes changed.
#[inline]
pub fn update_addr16(checksum: u16, old: &[u8; 16], new: &[u8; 16]) -> u16 {
    Delta::addr16(old, new).apply(checksum)
}
