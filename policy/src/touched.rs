//! Which addresses a change concerns: all that is compiled here is asked by address, so that what
//! was judged about other addresses holds as it did.

use std::net::IpAddr;

/// More addresses than this are not worth telling apart.
const LIMIT: usize = 8192;

/// Addresses that a change concerns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// These, with repetitions.
    Addresses(Vec<IpAddr>),
    /// Any.
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
    /// What concerns either.
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
