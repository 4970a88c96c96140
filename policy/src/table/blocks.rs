//! Maps an address to the port table of the rules whose ipBlocks contain it.

use core::net::IpAddr;

use podswitch_wire::cidr::Cidr;

use super::line::Line;

/// No table: no CIDR contains the address.
pub(crate) const NO_TABLE: u32 = LEAF - 1;

/// Marks a node's word as a table; without it, it is the number of another node.
const LEAF: u32 = 1 << 31;

/// Address bits that one node decides.
const STRIDE: u8 = 4;

// The CIDRs of one stage are compiled to a tree of 16-way nodes of one cache line each. A word is
// the number of another node, or `LEAF` and the number of a port table. A look-up takes at most 8
// loads for IPv4 and 32 for IPv6, however many CIDRs there are, and one or two for the single CIDR
// of most policies, because bits common to all CIDRs are skipped.

/// The root of a family's tree.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Root {
    /// The first node; 0: no CIDR.
    pub(crate) node: u32,
    /// The number of leading bits that all CIDRs share.
    pub(crate) skip: u32,
    /// The shared bits, left-aligned.
    pub(crate) head: u128,
}

/// A CIDR, and the table of the addresses of which it is the longest matching CIDR.
struct Entry {
    bits: u128,
    length: u8,
    table: u32,
}

/// An address in the uppermost bits.
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

/// Appends the trees of both families. The input is each distinct CIDR with the table for addresses
/// of which it is the longest matching CIDR, [`NO_TABLE`] if there is none.
pub(crate) fn write_ranges(run: &mut Vec<Line>, ranges: &[(Cidr, u32)]) -> [Root; 2] {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (range, table) in ranges {
        let bits = left_aligned(range.address());
        let list = if range.address().is_ipv4() { &mut v4 } else { &mut v6 };
        list.push(Entry { bits, length: range.prefix(), table: *table });
    }
    [write_tree(run, v4), write_tree(run, v6)]
}

/// The table of an address, [`NO_TABLE`] if no CIDR contains it.
#[inline]
pub(crate) fn table_of(run: &[Line], root: Root, address: IpAddr) -> u32 {
    let bits = left_aligned(address);
    if root.node == 0 || (bits ^ root.head).leading_zeros() < root.skip {
        return NO_TABLE;
    }
    let (mut rest, mut node) = (bits << root.skip, root.node);
    while let Some(Line(entries)) = run.get(node as usize) {
        let entry = entries[(rest >> (128 - STRIDE)) as usize];
        if entry & LEAF != 0 {
            return entry & !LEAF;
        }
        node = entry;
        rest <<= STRIDE;
    }
    NO_TABLE
}

/// Appends the nodes of one family.
fn write_tree(run: &mut Vec<Line>, mut entries: Vec<Entry>) -> Root {
    entries.sort_by_key(|e| (e.bits, e.length));
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
        return Root::default();
    };
    let common = (first.bits ^ last.bits).leading_zeros() as u8;
    let shortest = entries.iter().map(|e| e.length).min().unwrap_or(0);
    // At least one node: if all bits were skipped, no node could decide.
    let skip = common.min(shortest).min(128 - STRIDE) / STRIDE * STRIDE;
    let head = head(first.bits, skip);
    let node = write_node(run, &entries, head, skip, NO_TABLE);
    Root { node, skip: u32::from(skip), head }
}

/// Appends the node that decides the bits after the first `depth` of `bits`, and those below it.
/// `entries`: the CIDRs within or around it. `around`: the table where none of them applies.
fn write_node(nodes: &mut Vec<Line>, entries: &[Entry], bits: u128, depth: u8, around: u32) -> u32 {
    let number = nodes.len();
    nodes.push(Line([0; 16]));
    let below = depth + STRIDE;
    for child in 0..16 {
        let child_bits = bits | child << (128 - below);
        let covers = |e: &&Entry| e.length <= below && head(child_bits, e.length) == e.bits;
        let longest = entries.iter().filter(covers).max_by_key(|e| e.length);
        let table = longest.map_or(around, |e| e.table);
        let from = entries.partition_point(|e| e.bits < child_bits);
        let inside = entries[from..].partition_point(|e| head(e.bits, below) == child_bits);
        let inside = &entries[from..from + inside];
        let deeper = inside.iter().any(|e| e.length > below);
        nodes[number].0[child as usize] =
            if deeper { write_node(nodes, inside, child_bits, below, table) } else { table | LEAF };
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
            let mut run = vec![Line([0; 16])];
            let roots = write_ranges(&mut run, &rows);
            for address in ask.into_iter().chain(ranges.iter().map(Cidr::address)) {
                let got = table_of(&run, roots[usize::from(address.is_ipv6())], address);
                prop_assert_eq!(got, plain.get(address).copied().unwrap_or(NO_TABLE));
            }
        }
    }

    #[test]
    fn one_range_is_one_node() {
        for text in ["10.1.2.0/24", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8", "::1/128", "::/0"] {
            let range: Cidr = text.parse().unwrap();
            let mut run = vec![Line([0; 16])];
            let roots = write_ranges(&mut run, &[(range, 7)]);
            assert_eq!(run.len(), 2, "{text}");
            let root = roots[usize::from(range.address().is_ipv6())];
            assert_eq!(table_of(&run, root, range.address()), 7, "{text}");
        }
    }
}
