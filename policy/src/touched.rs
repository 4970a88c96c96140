//! The addresses that a change affects. Everything compiled in this crate is looked up by address,
//! so verdicts about all other addresses remain valid.

use std::net::IpAddr;

/// Above this number of addresses a change counts as affecting all.
const LIMIT: usize = 8192;

/// Addresses that a change affects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// These, with repetitions.
    Addresses(Vec<IpAddr>),
    /// All addresses.
    Everything,
}

impl Default for Touched {
    /// None.
    fn default() -> Self {
        Self::Addresses(Vec::new())
    }
}

impl Extend<IpAddr> for Touched {
    fn extend<I: IntoIterator<Item = IpAddr>>(&mut self, addresses: I) {
        for address in addresses {
            let Self::Addresses(list) = self else { return };
            if list.len() >= LIMIT {
                *self = Self::Everything;
                return;
            }
            list.push(address);
        }
    }
}

impl Touched {
    /// The union of both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        match other {
            Self::Addresses(list) => self.extend(list),
            Self::Everything => self = Self::Everything,
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_are_everything() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut touched = Touched::default();
        touched.extend([address; LIMIT]);
        assert_eq!(touched, Touched::Addresses(vec![address; LIMIT]));
        assert_eq!(touched.clone().and(Touched::default()), touched);
        assert_eq!(touched.and(Touched::Addresses(vec![address])), Touched::Everything);
        assert_eq!(Touched::default().and(Touched::Everything), Touched::Everything);
    }
}
