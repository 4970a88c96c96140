//! Owners of what only one object can have: an address, a node port, a range, a network namespace.
//! All claims are kept, sorted by rank, so that the next claimant becomes the owner when the first
//! is deleted.

use std::collections::BTreeMap;
use std::hash::Hash;

use hashbrown::HashMap;
use podswitch_core::id::Cookie;
use podswitch_wire::cidr::Cidr;

use crate::read::Rank;

/// One object's claim. The smallest one wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    rank: std::cmp::Reverse<Rank>,
    object: Cookie,
}

/// Claims of one kind.
#[derive(Debug)]
pub(super) struct Claims<K>(HashMap<K, Vec<Claim>>);

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Claims<K> {
    /// Adds a claim. Returns the object that lost ownership, if any.
    pub(super) fn add(&mut self, key: K, rank: Rank, object: &Cookie) -> Option<Cookie> {
        let claim = Claim { rank: std::cmp::Reverse(rank), object: object.clone() };
        let list = self.0.entry(key).or_insert_with(|| Vec::with_capacity(1));
        let at = list.binary_search(&claim).unwrap_or_else(|at| at);
        list.insert(at, claim);
        (at == 0).then(|| list.get(1).map(|claim| claim.object.clone())).flatten()
    }

    /// Adds a claim after all others, regardless of rank: the first claimant keeps ownership.
    pub(super) fn add_last(&mut self, key: K, object: &Cookie) {
        let claim = Claim { rank: std::cmp::Reverse(Rank::default()), object: object.clone() };
        self.0.entry(key).or_insert_with(|| Vec::with_capacity(1)).push(claim);
    }

    /// Removes a claim. Returns the object that gained ownership, if any.
    pub(super) fn remove(&mut self, key: &K, object: &Cookie) -> Option<Cookie> {
        let list = self.0.get_mut(key)?;
        let at = list.iter().position(|claim| claim.object == *object)?;
        list.remove(at);
        let next = list.first().filter(|_| at == 0).map(|claim| claim.object.clone());
        if list.is_empty() {
            self.0.remove(key);
        }
        next
    }

    /// The owner.
    pub(super) fn owner(&self, key: &K) -> Option<&Cookie> {
        Some(&self.0.get(key)?.first()?.object)
    }

    /// All claimants.
    pub(super) fn claimants(&self, key: &K) -> impl Iterator<Item = &Cookie> {
        self.0.get(key).into_iter().flatten().map(|claim| &claim.object)
    }
}

/// Claims of ranges, which must not overlap.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<Cidr, Vec<Claim>>);

impl Ranges {
    /// Adds a claim.
    pub(super) fn add(&mut self, range: Cidr, rank: Rank, object: &Cookie) {
        let claim = Claim { rank: std::cmp::Reverse(rank), object: object.clone() };
        let list = self.0.entry(range).or_default();
        let at = list.binary_search(&claim).unwrap_or_else(|at| at);
        list.insert(at, claim);
    }

    /// Removes a claim.
    pub(super) fn remove(&mut self, range: Cidr, object: &Cookie) {
        let Some(list) = self.0.get_mut(&range) else { return };
        list.retain(|claim| claim.object != *object);
        if list.is_empty() {
            self.0.remove(&range);
        }
    }

    /// All other objects with an overlapping range.
    pub(super) fn others(&self, range: Cidr, object: &Cookie) -> Vec<Cookie> {
        let others = self.overlapping(range).filter(|(_, claim)| claim.object != *object);
        others.map(|(_, claim)| claim.object.clone()).collect()
    }

    /// The first object of higher rank than `object` with an overlapping range. It excludes this
    /// range.
    pub(super) fn before(
        &self,
        range: Cidr,
        rank: Rank,
        object: &Cookie,
    ) -> Option<(Cidr, &Cookie)> {
        let own = Claim { rank: std::cmp::Reverse(rank), object: object.clone() };
        let before = self.overlapping(range).filter(|(_, claim)| **claim < own);
        let first = before.min_by_key(|(_, claim)| *claim)?;
        Some((first.0, &first.1.object))
    }

    fn overlapping(&self, range: Cidr) -> impl Iterator<Item = (Cidr, &Claim)> {
        let holders = (0..range.prefix()).filter_map(move |prefix| {
            let holder = Cidr::new(network(range, prefix), prefix)?;
            self.0.get_key_value(&holder)
        });
        // Sorted by address, then prefix: subranges follow the range itself.
        let within =
            self.0.range(range..).take_while(move |(other, _)| range.contains(other.address()));
        holders.chain(within).flat_map(|(other, list)| list.iter().map(|claim| (*other, claim)))
    }
}

/// The network address of the range with that prefix length that contains `range`.
fn network(range: Cidr, prefix: u8) -> std::net::IpAddr {
    match range.address() {
        std::net::IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            std::net::Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        std::net::IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}
