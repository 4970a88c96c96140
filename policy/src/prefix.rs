//! Longest-prefix match over CIDRs of both families.
//!
//! Read on the slow path (routes, CIDRs of nodes), changed by the control plane. One hash table for
//! each prefix length in use, searched from the longest to the shortest: cheap for the few lengths
//! that a cluster uses, and bounded by 33 and 129 look-ups. Clones share what did not change (see
//! [`crate::cow`]).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podswitch_wire::cidr::Cidr;

use crate::cow::CowMap;

/// A map from CIDRs to values, looked up by address.
#[derive(Clone)]
pub struct PrefixMap<V> {
    v4: Lengths<u32, V>,
    v6: Lengths<u128, V>,
}

/// The tables of one family, longest prefix first; none of them is empty.
type Lengths<B, V> = Vec<(u8, CowMap<B, V>)>;

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

/// `bits` with all bits but the first `length` cleared.
#[inline]
fn head4(bits: u32, length: u8) -> u32 {
    bits & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

/// `bits` with all bits but the first `length` cleared.
#[inline]
fn head6(bits: u128, length: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn range4(bits: u32, length: u8) -> Option<Cidr> {
    Cidr::new(IpAddr::V4(Ipv4Addr::from(bits)), length)
}

fn range6(bits: u128, length: u8) -> Option<Cidr> {
    Cidr::new(IpAddr::V6(Ipv6Addr::from(bits)), length)
}

impl<V> PrefixMap<V> {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of CIDRs.
    pub fn len(&self) -> usize {
        let v4: usize = self.v4.iter().map(|(_, t)| t.len()).sum();
        let v6: usize = self.v6.iter().map(|(_, t)| t.len()).sum();
        v4 + v6
    }

    /// Whether there is no CIDR.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The value of the longest CIDR that contains `address`.
    #[inline]
    pub fn get(&self, address: IpAddr) -> Option<&V> {
        match address {
            IpAddr::V4(a) => {
                let bits = u32::from(a);
                self.v4.iter().find_map(|(length, table)| table.get(&head4(bits, *length)))
            }
            IpAddr::V6(a) => {
                let bits = u128::from(a);
                self.v6.iter().find_map(|(length, table)| table.get(&head6(bits, *length)))
            }
        }
    }

    /// The longest CIDR that contains `address`, and its value.
    pub fn longest(&self, address: IpAddr) -> Option<(Cidr, &V)> {
        self.matches(address).next()
    }

    /// Every CIDR that contains `address`, longest first.
    pub fn matches(&self, address: IpAddr) -> impl Iterator<Item = (Cidr, &V)> {
        let v4 = match address {
            IpAddr::V4(a) => Some(u32::from(a)),
            IpAddr::V6(_) => None,
        };
        let v6 = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(a) => Some(u128::from(a)),
        };
        let in_v4 = v4.into_iter().flat_map(move |bits| {
            self.v4.iter().filter_map(move |(length, table)| {
                let head = head4(bits, *length);
                Some((range4(head, *length)?, table.get(&head)?))
            })
        });
        let in_v6 = v6.into_iter().flat_map(move |bits| {
            self.v6.iter().filter_map(move |(length, table)| {
                let head = head6(bits, *length);
                Some((range6(head, *length)?, table.get(&head)?))
            })
        });
        in_v4.chain(in_v6)
    }

    /// The value of exactly this CIDR.
    pub fn exact(&self, range: &Cidr) -> Option<&V> {
        match range.address() {
            IpAddr::V4(a) => at(&self.v4, range.prefix())?.get(&u32::from(a)),
            IpAddr::V6(a) => at(&self.v6, range.prefix())?.get(&u128::from(a)),
        }
    }

    /// All CIDRs with their values: IPv4 first, longer prefixes first, otherwise unordered.
    pub fn iter(&self) -> impl Iterator<Item = (Cidr, &V)> {
        let v4 = self.v4.iter().flat_map(|(length, table)| {
            table.iter().filter_map(|(bits, value)| Some((range4(*bits, *length)?, value)))
        });
        let v6 = self.v6.iter().flat_map(|(length, table)| {
            table.iter().filter_map(|(bits, value)| Some((range6(*bits, *length)?, value)))
        });
        v4.chain(v6)
    }
}

impl<V: Clone> PrefixMap<V> {
    /// Sets the value of a CIDR and returns the previous one.
    pub fn insert(&mut self, range: Cidr, value: V) -> Option<V> {
        match range.address() {
            IpAddr::V4(a) => table_for(&mut self.v4, range.prefix()).insert(a.into(), value),
            IpAddr::V6(a) => table_for(&mut self.v6, range.prefix()).insert(a.into(), value),
        }
    }

    /// Removes a CIDR and returns its value.
    pub fn remove(&mut self, range: &Cidr) -> Option<V> {
        match range.address() {
            IpAddr::V4(a) => take(&mut self.v4, range.prefix(), u32::from(a)),
            IpAddr::V6(a) => take(&mut self.v6, range.prefix(), u128::from(a)),
        }
    }
}

/// The position of the table of `length` among those sorted from long to short, or where it
/// belongs.
fn place<B, V>(lengths: &Lengths<B, V>, length: u8) -> Result<usize, usize> {
    lengths.binary_search_by(|(have, _)| length.cmp(have))
}

fn at<B, V>(lengths: &Lengths<B, V>, length: u8) -> Option<&CowMap<B, V>> {
    place(lengths, length).ok().map(|i| &lengths[i].1)
}

fn table_for<B, V>(lengths: &mut Lengths<B, V>, length: u8) -> &mut CowMap<B, V> {
    let index = place(lengths, length).unwrap_or_else(|index| {
        lengths.insert(index, (length, CowMap::new()));
        index
    });
    &mut lengths[index].1
}

fn take<B, V>(lengths: &mut Lengths<B, V>, length: u8, bits: B) -> Option<V>
where
    B: core::hash::Hash + Eq + Clone,
    V: Clone,
{
    let index = place(lengths, length).ok()?;
    let value = lengths[index].1.remove(&bits)?;
    if lengths[index].1.is_empty() {
        lengths.remove(index);
    }
    Some(value)
}

impl<V: Clone> FromIterator<(Cidr, V)> for PrefixMap<V> {
    fn from_iter<I: IntoIterator<Item = (Cidr, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        for (range, value) in entries {
            map.insert(range, value);
        }
        map
    }
}

impl<V: fmt::Debug> fmt::Debug for PrefixMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn longest_prefix_wins_and_families_are_separate() {
        let map: PrefixMap<&str> = [
            ("0.0.0.0/0", "default"),
            ("10.0.0.0/8", "ten"),
            ("10.1.0.0/16", "ten-one"),
            ("10.1.2.3/32", "host"),
            ("::/0", "six"),
            ("fd00::/8", "ula"),
            ("fd00::1/128", "one"),
        ]
        .map(|(c, v)| (cidr(c), v))
        .into_iter()
        .collect();
        let got = |a| map.get(addr(a)).copied();
        assert_eq!(got("10.1.2.3"), Some("host"));
        assert_eq!(got("10.1.2.4"), Some("ten-one"));
        assert_eq!(got("10.2.0.0"), Some("ten"));
        assert_eq!(got("11.0.0.0"), Some("default"));
        assert_eq!(got("fd00::1"), Some("one"));
        assert_eq!(got("fd00::2"), Some("ula"));
        assert_eq!(got("::ffff:10.1.2.3"), Some("six"));
        let all: Vec<_> = map.matches(addr("10.1.2.3")).map(|(c, v)| (c.prefix(), *v)).collect();
        assert_eq!(all, [(32, "host"), (16, "ten-one"), (8, "ten"), (0, "default")]);
        assert_eq!(map.len(), 7);
    }

    #[test]
    fn emptied_lengths_are_not_searched() {
        let mut map = PrefixMap::new();
        map.insert(cidr("10.0.0.0/8"), 1);
        map.insert(cidr("10.0.0.0/9"), 2);
        assert_eq!(map.remove(&cidr("10.0.0.0/9")), Some(2));
        assert_eq!(map.remove(&cidr("10.0.0.0/9")), None);
        assert_eq!(map.v4.len(), 1);
        assert_eq!(map.get(addr("10.0.0.1")), Some(&1));
    }

    fn range() -> impl Strategy<Value = Cidr> {
        // Few distinct bits at the top and bottom, so that CIDRs nest.
        let v4 = (0u32..4, 0u32..8, 0u8..=32)
            .prop_map(|(high, low, n)| range4(high << 30 | low << 8 | low, n).unwrap());
        let v6 = (0u128..4, 0u128..8, 0u8..=128)
            .prop_map(|(high, low, n)| range6(high << 126 | low << 32 | low, n).unwrap());
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan(
            put in prop::collection::vec((range(), any::<u8>()), 0..60),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            ask in prop::collection::vec(range(), 1..40),
        ) {
            let mut list: Vec<(Cidr, u8)> = Vec::new();
            let mut map = PrefixMap::new();
            for (range, value) in put {
                list.retain(|(r, _)| *r != range);
                list.push((range, value));
                map.insert(range, value);
            }
            for index in gone {
                if !list.is_empty() {
                    let (range, value) = list.swap_remove(index.index(list.len()));
                    prop_assert_eq!(map.remove(&range), Some(value));
                }
            }
            prop_assert_eq!(map.len(), list.len());
            for address in ask.iter().map(Cidr::address) {
                let mut want: Vec<_> = list.iter().filter(|(r, _)| r.contains(address)).collect();
                want.sort_by_key(|(r, _)| core::cmp::Reverse(r.prefix()));
                let got: Vec<_> = map.matches(address).map(|(r, v)| (r, *v)).collect();
                prop_assert_eq!(&got, &want.iter().map(|e| **e).collect::<Vec<_>>());
                prop_assert_eq!(map.get(address).copied(), want.first().map(|(_, v)| *v));
            }
            for (range, value) in &list {
                prop_assert_eq!(map.exact(range), Some(value));
            }
        }
    }
}
