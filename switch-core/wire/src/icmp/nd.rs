//! Neighbour discovery (RFC 4861): solicitations and advertisements of neighbours and routers,
//! redirects, and the options they carry. Views begin at the ICMPv6 type.
//! `new_checked` refuses a message that is too short, of another type, or with a malformed option
//! list (length zero or beyond the message), as §6.1 and §7.1 demand. The caller checks hop limit,
//! code, checksum and addresses, because that needs the enclosing packet.

use core::net::Ipv6Addr;

use super::v6;
use crate::addr::Mac;
use crate::view::{Malformed, array, be16, be32, view};

/// Neighbour advertisement flag: the sender is a router.
pub const ROUTER: u8 = 0x80;
/// Neighbour advertisement flag: it answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// Neighbour advertisement flag: it replaces the cached entry.
pub const OVERRIDE: u8 = 0x20;

view! {
    /// A neighbour solicitation (§4.3).
    NeighbourSolicitation, check_solicitation
}

view! {
    /// A neighbour advertisement (§4.4).
    NeighbourAdvertisement, check_advertisement
}

view! {
    /// A router solicitation (§4.1).
    RouterSolicitation, check_router_solicitation
}

view! {
    /// A router advertisement (§4.2).
    RouterAdvertisement, check_router_advertisement
}

view! {
    /// A redirect (§4.5).
    Redirect, check_redirect
}

fn check_solicitation(bytes: &[u8]) -> Result<(), Malformed> {
    check(bytes, v6::NEIGHBOUR_SOLICITATION, 24)
}

fn check_advertisement(bytes: &[u8]) -> Result<(), Malformed> {
    check(bytes, v6::NEIGHBOUR_ADVERTISEMENT, 24)
}

fn check_router_solicitation(bytes: &[u8]) -> Result<(), Malformed> {
    check(bytes, v6::ROUTER_SOLICITATION, 8)
}

fn check_router_advertisement(bytes: &[u8]) -> Result<(), Malformed> {
    check(bytes, v6::ROUTER_ADVERTISEMENT, 16)
}

fn check_redirect(bytes: &[u8]) -> Result<(), Malformed> {
    check(bytes, v6::REDIRECT, 40)
}

fn check(bytes: &[u8], kind: u8, fixed: usize) -> Result<(), Malformed> {
    let mut options = bytes.get(fixed..).ok_or(Malformed::Truncated)?;
    if bytes[0] != kind {
        return Err(Malformed::Kind);
    }
    while !options.is_empty() {
        let [_, units, ..] = *options else {
            return Err(Malformed::Truncated);
        };
        if units == 0 {
            return Err(Malformed::Length);
        }
        options = options.get(usize::from(units) * 8..).ok_or(Malformed::Truncated)?;
    }
    Ok(())
}

impl<T: AsRef<[u8]>> NeighbourSolicitation<T> {
    /// The address to be resolved.
    #[inline]
    pub fn target(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes(), 8))
    }

    /// The options.
    #[inline]
    pub fn options(&self) -> Options<'_> {
        Options { rest: &self.bytes()[24..] }
    }
}

impl<T: AsRef<[u8]>> NeighbourAdvertisement<T> {
    /// [`ROUTER`], [`SOLICITED`], [`OVERRIDE`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.bytes()[4] & (ROUTER | SOLICITED | OVERRIDE)
    }

    /// The address that the sender announces.
    #[inline]
    pub fn target(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes(), 8))
    }

    /// The options.
    #[inline]
    pub fn options(&self) -> Options<'_> {
        Options { rest: &self.bytes()[24..] }
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> NeighbourAdvertisement<T> {
    /// Writes type and code, and clears checksum, flags and reserved bits.
    #[inline]
    pub fn set_header(&mut self) {
        self.put(0, [v6::NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Sets the flags.
    #[inline]
    pub fn set_flags(&mut self, flags: u8) {
        self.put_bits(4, ROUTER | SOLICITED | OVERRIDE, flags);
    }

    /// Sets the address that the sender announces.
    #[inline]
    pub fn set_target(&mut self, address: Ipv6Addr) {
        self.put(8, address.octets());
    }

    /// Writes the target's MAC address as the first option.
    #[inline]
    pub fn set_target_mac(&mut self, mac: Mac) {
        self.put(24, [2, 1]);
        self.put(26, mac.0);
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> NeighbourSolicitation<T> {
    /// Writes type and code, and clears checksum and reserved bits.
    #[inline]
    pub fn set_header(&mut self) {
        self.put(0, [v6::NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// Sets the address to be resolved.
    #[inline]
    pub fn set_target(&mut self, address: Ipv6Addr) {
        self.put(8, address.octets());
    }

    /// Writes the requester's MAC address as the first option.
    #[inline]
    pub fn set_source_mac(&mut self, mac: Mac) {
        self.put(24, [1, 1]);
        self.put(26, mac.0);
    }
}

impl<T: AsRef<[u8]>> RouterSolicitation<T> {
    /// The options.
    #[inline]
    pub fn options(&self) -> Options<'_> {
        Options { rest: &self.bytes()[8..] }
    }
}

impl<T: AsRef<[u8]>> RouterAdvertisement<T> {
    /// Hop limit for hosts to use; 0: unspecified.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.bytes()[4]
    }

    /// "Managed" (0x80), "other configuration" (0x40), and those that later RFCs added.
    #[inline]
    pub fn flags(&self) -> u8 {
        self.bytes()[5]
    }

    /// Seconds for which the sender is a default router; 0: it is not a default router.
    #[inline]
    pub fn lifetime(&self) -> u16 {
        be16(self.bytes(), 6)
    }

    /// Milliseconds for which a neighbour counts as reachable; 0: unspecified.
    #[inline]
    pub fn reachable_time(&self) -> u32 {
        be32(self.bytes(), 8)
    }

    /// Milliseconds between solicitations; 0: unspecified.
    #[inline]
    pub fn retransmit_time(&self) -> u32 {
        be32(self.bytes(), 12)
    }

    /// The options.
    #[inline]
    pub fn options(&self) -> Options<'_> {
        Options { rest: &self.bytes()[16..] }
    }
}

impl<T: AsRef<[u8]>> Redirect<T> {
    /// The better first hop.
    #[inline]
    pub fn target(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes(), 8))
    }

    /// The destination for which it is better.
    #[inline]
    pub fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.bytes(), 24))
    }

    /// The options.
    #[inline]
    pub fn options(&self) -> Options<'_> {
        Options { rest: &self.bytes()[40..] }
    }
}

/// An option of a neighbour discovery message (§4.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NdOption<'a> {
    /// The sender's MAC address.
    SourceMac(Mac),
    /// The target's MAC address.
    TargetMac(Mac),
    /// MTU of the link in bytes.
    Mtu(u32),
    /// A prefix (§4.6.2).
    Prefix {
        /// Its address.
        prefix: Ipv6Addr,
        /// Its length in bits, not validated.
        prefix_len: u8,
        /// "On-link" (0x80) and "autonomous" (0x40).
        flags: u8,
        /// Seconds for which it is valid; all ones means forever.
        valid: u32,
        /// Seconds for which addresses from it are preferred.
        preferred: u32,
    },
    /// Any other option, or one of those above with a wrong length.
    Other {
        /// Option type.
        kind: u8,
        /// The content behind type and length.
        data: &'a [u8],
    },
}

/// Options of a neighbour discovery message in order. Ends at the first malformed one; after
/// `new_checked` there is none.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Options<'a> {
    type Item = NdOption<'a>;

    fn next(&mut self) -> Option<NdOption<'a>> {
        let [kind, units, ..] = *self.rest else {
            return None;
        };
        if units == 0 {
            return None;
        }
        let (option, rest) = self.rest.split_at_checked(usize::from(units) * 8)?;
        self.rest = rest;
        Some(match (kind, units) {
            (1, 1) => NdOption::SourceMac(Mac(array(option, 2))),
            (2, 1) => NdOption::TargetMac(Mac(array(option, 2))),
            (3, 4) => NdOption::Prefix {
                prefix: Ipv6Addr::from(array::<16>(option, 16)),
                prefix_len: option[2],
                flags: option[3],
                valid: be32(option, 4),
                preferred: be32(option, 8),
            },
            (5, 1) => NdOption::Mtu(be32(option, 4)),
            _ => NdOption::Other { kind, data: &option[2..] },
        })
    }
}

#[cfg(test)]
mod tests;
