//! The addresses that a change affects. Everything compiled in this crate is looked up by address,
//! so verdicts about all other addresses remain valid.

use std::net::IpAddr;

/// Above this number of addresses a change counts as affecting all.
const LIMIT: usize = 8192;

/// Addresses that a change affects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AffectedAddresses {
    /// These addresses; one may be listed several times.
    Listed(Vec<IpAddr>),
    /// All addresses.
    All,
}

impl Default for AffectedAddresses {
    /// None.
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

impl Extend<IpAddr> for AffectedAddresses {
    fn extend<I: IntoIterator<Item = IpAddr>>(&mut self, addresses: I) {
        for address in addresses {
            let Self::Listed(list) = self else { return };
            if list.len() >= LIMIT {
                *self = Self::All;
                return;
            }
            list.push(address);
        }
    }
}

impl AffectedAddresses {
    /// The union of both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        match other {
            Self::Listed(list) => self.extend(list),
            Self::All => self = Self::All,
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_addresses_count_as_all() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut affected = AffectedAddresses::default();
        affected.extend([address; LIMIT]);
        assert_eq!(affected, AffectedAddresses::Listed(vec![address; LIMIT]));
        assert_eq!(affected.clone().and(AffectedAddresses::default()), affected);
        assert_eq!(affected.and(AffectedAddresses::Listed(vec![address])), AffectedAddresses::All);
        assert_eq!(
            AffectedAddresses::default().and(AffectedAddresses::All),
            AffectedAddresses::All
        );
    }
}
