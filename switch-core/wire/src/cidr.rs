//! Address ranges.

use core::fmt;
use core::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr};

/// An address range in canonical form: no bits set beyond the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// A range from an address in it and the length of its prefix; host bits are cleared.
    /// `None` if the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(a) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(a) & mask))
            }
            IpAddr::V6(a) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(a) & mask))
            }
            _ => return None,
        };
        Some(Self { address, prefix })
    }

    /// The range of one address.
    pub fn host(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The range's first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` lies in the range; never across families.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self::new(address, self.prefix).is_some_and(|c| c == *self)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CidrParseError {
    /// The text has no `/`.
    NoPrefix,
    /// The part before the `/` is not an IP address.
    Address,
    /// The part after the `/` is not a prefix length of that family.
    Prefix,
}

impl From<AddrParseError> for CidrParseError {
    fn from(_: AddrParseError) -> Self {
        Self::Address
    }
}

impl fmt::Display for CidrParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPrefix => "no prefix length: an address range is written ADDRESS/LENGTH",
            Self::Address => "the part before the '/' is not an IP address",
            Self::Prefix => "the prefix length is not a number from 0 to the address's bits",
        })
    }
}

impl core::error::Error for CidrParseError {}

impl core::str::FromStr for Cidr {
    type Err = CidrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').ok_or(CidrParseError::NoPrefix)?;
        let address: IpAddr = address.parse()?;
        let plain = !prefix.is_empty()
            && prefix.bytes().all(|b| b.is_ascii_digit())
            && (prefix.len() == 1 || !prefix.starts_with('0'));
        if !plain {
            return Err(CidrParseError::Prefix);
        }
        let prefix = prefix.parse().map_err(|_| CidrParseError::Prefix)?;
        Self::new(address, prefix).ok_or(CidrParseError::Prefix)
    }
}
