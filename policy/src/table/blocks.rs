//! From an address to the row of rules whose ipBlocks hold it.

use core::net::IpAddr;
use std::sync::Arc;

use wire::cidr::Cidr;

/// A row that stands for "no ipBlock holds the address".
pub(crate) const NO_ROW: u32 = LEAF - 1;

/// Marks an entry of a node as a row; without it the entry is the number of another node.
const LEAF: u32 = 1 << 31;

/// Bits of address that one node decides.
const STRIDE: u8 = 4;

/// The ranges of one stage, compiled to a tree of 16-way nodes, a cache line each: at most 8
/// loads for IPv4 and 32 for IPv6 however many ranges there are, one or two for the single range
/// that most policies name, since bits common to all ranges are skipped.
///
/// The first node is no node but says where each family's tree begins, see [`Root`].
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockTrie {
    nodes: Option<Arc<[Node]>>,
}

/// Entries are the number of another node, or a row and [`LEAF`].
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Node([u32; 16]);

/// Where a family's tree begins, eight words: the number of its first node (0: no range at all),
/// how many leading bits all ranges have in common, and these bits.
struct Root {
    node: u32,
    skip: u8,
    head: u128,
}

impl Root {
    fn write(&self, words: &mut [u32]) {
        words[0] = self.node;
        words[1] = u32::from(self.skip);
        for (word, shift) in words[4..8].iter_mut().zip([96, 64, 32, 0]) {
            *word = (self.head >> shift) as u32;
        }
    }

    #[inline]
    fn read(words: &[u32]) -> Self {
        let head = words[4..8].iter().fold(0, |head, word| head << 32 | u128::from(*word));
        Self { node: words[0], skip: words[1] as u8, head }
    }
}

/// A range and the row of the addresses of which it is the longest range.
struct Entry {
    bits: u128,
    length: u8,
    row: u32,
}

/// An address in the topmost bits.
#[inline]
fn left_aligned(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The first `length` bits, `length` at most 128.
fn head(bits: u128, length: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl BlockTrie {
    /// From each distinct range and the row of addresses of which it is the longest range.
    pub(crate) fn new(rows: impl IntoIterator<Item = (Cidr, u32)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (range, row) in rows {
            let bits = left_aligned(range.address());
            let list = if range.address().is_ipv4() { &mut v4 } else { &mut v6 };
            list.push(Entry { bits, length: range.prefix(), row });
        }
        if v4.is_empty() && v6.is_empty() {
            return Self::default();
        }
        let mut nodes = vec![Node([0; 16])];
        let roots = [write_tree(&mut nodes, v4), write_tree(&mut nodes, v6)];
        for (root, words) in roots.iter().zip(nodes[0].0.chunks_mut(8)) {
            root.write(words);
        }
        Self { nodes: Some(nodes.into()) }
    }

    /// The row of an address, [`NO_ROW`] if no range holds it.
    #[inline]
    pub(crate) fn row(&self, address: IpAddr) -> u32 {
        let Some(nodes) = &self.nodes else { return NO_ROW };
        let bits = left_aligned(address);
        let at = if address.is_ipv4() { 0 } else { 8 };
        let root = Root::read(&nodes[0].0[at..at + 8]);
        let outside = (bits ^ root.head).leading_zeros() < u32::from(root.skip);
        if outside || root.node == 0 {
            return NO_ROW;
        }
        let (mut rest, mut node) = (bits << root.skip, root.node);
        loop {
            let entry = nodes[node as usize].0[(rest >> (128 - STRIDE)) as usize];
            if entry & LEAF != 0 {
                return entry & !LEAF;
            }
            node = entry;
            rest <<= STRIDE;
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.nodes.as_ref().map_or(0, |nodes| size_of_val(&**nodes) + 2 * size_of::<usize>())
    }
}

/// Appends the nodes of one family.
fn write_tree(nodes: &mut Vec<Node>, mut entries: Vec<Entry>) -> Root {
    entries.sort_by_key(|e| (e.bits, e.length));
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Root { node: 0, skip: 0, head: 0 };
    };
    let common = (first.bits ^ last.bits).leading_zeros() as u8;
    let shortest = entries.iter().map(|e| e.length).min().unwrap_or(0);
    // One node at least: a skip of all bits would leave nothing to decide.
    let skip = common.min(shortest).min(128 - STRIDE) / STRIDE * STRIDE;
    let head = head(first.bits, skip);
    Root { node: write_node(nodes, &entries, head, skip, NO_ROW), skip, head }
}

/// Appends the node that decides the bits after the first `depth` of `bits`, and those below it;
/// `entries` are the ranges within it or around it, `around` the row that holds where none does.
fn write_node(nodes: &mut Vec<Node>, entries: &[Entry], bits: u128, depth: u8, around: u32) -> u32 {
    let number = nodes.len();
    nodes.push(Node([0; 16]));
    let below = depth + STRIDE;
    for child in 0..16 {
        let child_bits = bits | child << (128 - below);
        let covers = |e: &&Entry| e.length <= below && head(child_bits, e.length) == e.bits;
        let longest = entries.iter().filter(covers).max_by_key(|e| e.length);
        let row = longest.map_or(around, |e| e.row);
        let from = entries.partition_point(|e| e.bits < child_bits);
        let inside = entries[from..].partition_point(|e| head(e.bits, below) == child_bits);
        let inside = &entries[from..from + inside];
        let deeper = inside.iter().any(|e| e.length > below);
        nodes[number].0[child as usize] =
            if deeper { write_node(nodes, inside, child_bits, below, row) } else { row | LEAF };
    }
    number as u32
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::prefix::PrefixMap;

    fn v4() -> impl Strategy<Value = IpAddr> {
        (0u32..4, 0u32..4, 0u32..16)
            .prop_map(|(a, b, c)| Ipv4Addr::from(a << 30 | b << 22 | c << 4 | c).into())
    }

    fn v6() -> impl Strategy<Value = IpAddr> {
        (0u128..4, 0u128..4, 0u128..16)
            .prop_map(|(a, b, c)| Ipv6Addr::from(a << 126 | b << 64 | c << 4 | c).into())
    }

    fn range() -> impl Strategy<Value = Cidr> {
        let cut = |(a, n)| Cidr::new(a, n).unwrap();
        prop_oneof![(v4(), 0u8..=32).prop_map(cut), (v6(), 0u8..=128).prop_map(cut)]
    }

    proptest! {
        #[test]
        fn agrees_with_the_longest_prefix(
            ranges in prop::collection::btree_set(range(), 0..40),
            ask in prop::collection::vec(prop_oneof![v4(), v6()], 60),
        ) {
            let rows: Vec<_> = ranges.iter().copied().zip(0u32..).collect();
            let plain: PrefixMap<u32> = rows.iter().copied().collect();
            let trie = BlockTrie::new(rows);
            for address in ask.into_iter().chain(ranges.iter().map(Cidr::address)) {
                prop_assert_eq!(trie.row(address), plain.get(address).copied().unwrap_or(NO_ROW));
            }
        }
    }

    #[test]
    fn one_range_is_one_node() {
        for text in ["10.1.2.0/24", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "::1/128", "::/0"] {
            let range: Cidr = text.parse().unwrap();
            let trie = BlockTrie::new([(range, 7)]);
            assert_eq!(trie.nodes.as_ref().map(|n| n.len()), Some(2), "{text}");
            assert_eq!(trie.row(range.address()), 7, "{text}");
        }
    }
}
