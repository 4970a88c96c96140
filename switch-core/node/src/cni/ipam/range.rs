//! A range of addresses to allocate.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_wire::cidr::Cidr;

/// Addresses of a subnet that pods may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressRange {
    subnet: Cidr,
    first: u128,
    last: u128,
    /// The gateway of a configuration, which is never allocated.
    reserved: Option<u128>,
}

impl AddressRange {
    /// All addresses of a subnet that pods may have. The first two are excluded: the subnet's own
    /// address, which Flannel nodes use, and the one that bridges use as gateway; for IPv4 also the
    /// last one, the broadcast address. From a subnet of four addresses or fewer, all are
    /// allocated.
    pub fn of(subnet: Cidr) -> Self {
        let begin = number(subnet.address());
        let bits = if subnet.address().is_ipv4() { 32 } else { 128 };
        let size = match bits - subnet.prefix() {
            128 => u128::MAX,
            host => (1_u128 << host) - 1,
        };
        let mut range =
            Self { subnet, first: begin, last: begin.saturating_add(size), reserved: None };
        if size > 3 {
            range.first += 2;
            range.last -= u128::from(subnet.address().is_ipv4());
        }
        range
    }

    /// Excludes addresses before `first` and after `last`. Returns whether any is left.
    #[must_use]
    pub(in crate::cni) fn limit(&mut self, first: Option<IpAddr>, last: Option<IpAddr>) -> bool {
        self.first = first.map_or(self.first, number);
        self.last = last.map_or(self.last, number);
        self.first <= self.last
    }

    /// Excludes a gateway.
    pub(in crate::cni) fn reserve(&mut self, gateway: Option<IpAddr>) {
        self.reserved = gateway.map(number);
    }

    /// The family.
    pub fn is_ipv6(&self) -> bool {
        self.subnet.address().is_ipv6()
    }

    /// Number of addresses that may be allocated.
    pub(super) fn size(&self) -> u128 {
        let reserved = self.reserved.is_some_and(|value| (self.first..=self.last).contains(&value));
        (self.last - self.first).saturating_add(1).saturating_sub(u128::from(reserved))
    }

    /// Whether an address may be allocated.
    pub fn contains(&self, address: IpAddr) -> bool {
        let value = number(address);
        address.is_ipv6() == self.is_ipv6()
            && (self.first..=self.last).contains(&value)
            && self.reserved != Some(value)
    }

    /// The addresses from an offset on, each with its offset.
    pub(super) fn from(self, offset: u128) -> impl Iterator<Item = (u128, IpAddr)> {
        let mut next = self.first.checked_add(offset).filter(|value| *value <= self.last);
        std::iter::from_fn(move || {
            loop {
                let value = next?;
                next = value.checked_add(1).filter(|value| *value <= self.last);
                if self.reserved != Some(value) {
                    return Some((value - self.first, self.address(value)));
                }
            }
        })
    }

    fn address(&self, value: u128) -> IpAddr {
        match self.is_ipv6() {
            true => Ipv6Addr::from(value).into(),
            // A subnet of IPv4 has no addresses beyond 32 bits.
            false => Ipv4Addr::from(value as u32).into(),
        }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.address(self.first), self.address(self.last));
        write!(f, "{} ({first} to {last})", self.subnet)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}
