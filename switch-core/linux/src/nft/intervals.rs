//! The address ranges of a set as disjoint intervals, updated range by range: the cost of a change does not depend on
//! the number of ranges. Intervals of a set must not overlap, and ranges may.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use podswitch_wire::cidr::Cidr;

/// First and last address.
pub(super) type Interval = (u128, u128);

/// Ranges of one address family.
#[derive(Clone, Debug, Default)]
pub(super) struct Intervals {
    ranges: BTreeSet<Interval>,
    /// The addresses that are in any range: the last address by the first, neither overlapping nor adjacent.
    merged: BTreeMap<u128, u128>,
}

/// How the merged intervals change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct IntervalChange {
    pub(super) removed: BTreeSet<Interval>,
    pub(super) added: BTreeSet<Interval>,
}

impl Intervals {
    /// Those of `ranges` that are of one family.
    pub(super) fn of(ranges: &[Cidr], is_ipv4: bool) -> Self {
        let of_family = ranges.iter().filter(|range| range.address().is_ipv4() == is_ipv4);
        let merged = intervals(ranges, is_ipv4).into_iter().collect();
        Self { ranges: of_family.map(ends).collect(), merged }
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.merged.is_empty()
    }

    /// The merged intervals, in order.
    pub(super) fn merged(&self) -> impl Iterator<Item = Interval> {
        self.merged.iter().map(|(first, last)| (*first, *last))
    }

    /// The change from these to `other`.
    pub(super) fn change_to(&self, other: &Self) -> IntervalChange {
        let is_in = |intervals: &Self, (first, last)| intervals.merged.get(&first) == Some(&last);
        IntervalChange {
            removed: self.merged().filter(|interval| !is_in(other, *interval)).collect(),
            added: other.merged().filter(|interval| !is_in(self, *interval)).collect(),
        }
    }

    /// Adds a range.
    pub(super) fn add(&mut self, range: &Cidr, change: &mut IntervalChange) {
        let (mut first, mut last) = ends(range);
        if !self.ranges.insert((first, last)) {
            return;
        }
        let before = self.merged.range(..=first).next_back().map(|(a, b)| (*a, *b));
        let mut joined: Vec<Interval> =
            before.into_iter().filter(|(_, end)| end.saturating_add(1) >= first).collect();
        if joined.iter().any(|(_, end)| *end >= last) {
            return;
        }
        let later = (Bound::Excluded(first), Bound::Included(last.saturating_add(1)));
        joined.extend(self.merged.range(later).map(|(a, b)| (*a, *b)));
        for interval in joined {
            (first, last) = (first.min(interval.0), last.max(interval.1));
            self.drop_interval(interval, change);
        }
        self.new_interval((first, last), change);
    }

    /// Removes a range.
    pub(super) fn remove(&mut self, range: &Cidr, change: &mut IntervalChange) {
        let (first, last) = ends(range);
        if !self.ranges.remove(&(first, last)) || self.is_in_larger(range) {
            return;
        }
        let Some((&start, &end)) = self.merged.range(..=first).next_back() else { return };
        let nested = self.ranges.range((first, 0)..=(last, u128::MAX)).copied();
        let left = (start < first).then(|| (start, first - 1));
        let right = (last < end).then(|| (last + 1, end));
        let rest = merge(left.into_iter().chain(nested).chain(right));
        self.drop_interval((start, end), change);
        rest.into_iter().for_each(|interval| self.new_interval(interval, change));
    }

    /// Whether another range has all addresses of `range`. Two ranges are nested or disjoint.
    fn is_in_larger(&self, range: &Cidr) -> bool {
        (0..range.prefix()).any(|prefix| {
            let larger = Cidr::new(masked(range.address(), prefix), prefix);
            larger.is_some_and(|larger| self.ranges.contains(&ends(&larger)))
        })
    }

    fn drop_interval(&mut self, interval: Interval, change: &mut IntervalChange) {
        self.merged.remove(&interval.0);
        if !change.added.remove(&interval) {
            change.removed.insert(interval);
        }
    }

    fn new_interval(&mut self, interval: Interval, change: &mut IntervalChange) {
        self.merged.insert(interval.0, interval.1);
        if !change.removed.remove(&interval) {
            change.added.insert(interval);
        }
    }
}

/// The addresses of one family in `ranges`, as sorted disjoint intervals.
pub(super) fn intervals(ranges: &[Cidr], is_ipv4: bool) -> Vec<Interval> {
    let of_family = ranges.iter().filter(|range| range.address().is_ipv4() == is_ipv4);
    let mut sorted: Vec<Interval> = of_family.map(ends).collect();
    sorted.sort_unstable();
    merge(sorted)
}

/// Joins sorted intervals that overlap or are adjacent.
fn merge(sorted: impl IntoIterator<Item = Interval>) -> Vec<Interval> {
    let mut merged: Vec<Interval> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn ends(range: &Cidr) -> Interval {
    match range.address() {
        IpAddr::V4(a) => {
            let first = u32::from(a);
            let span = u32::MAX.checked_shr(range.prefix().into()).unwrap_or(0);
            (first.into(), (first | span).into())
        }
        IpAddr::V6(a) => {
            let first = u128::from(a);
            (first, first | u128::MAX.checked_shr(range.prefix().into()).unwrap_or(0))
        }
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shr(prefix.into()).map_or(u32::MAX, |host| !host);
            IpAddr::V4((u32::from(a) & mask).into())
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shr(prefix.into()).map_or(u128::MAX, |host| !host);
            IpAddr::V6((u128::from(a) & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few addresses, so that ranges are nested, adjacent, equal and at the end of the address space.
    fn range() -> impl Strategy<Value = Cidr> {
        let v4 = (0..64_u32, 26..=32_u8)
            .prop_map(|(low, prefix)| (u32::MAX - low, prefix))
            .prop_map(|(address, prefix)| {
                Cidr::new(masked(IpAddr::V4(address.into()), prefix), prefix).expect("a range")
            });
        let v6 = (0..64_u128, 121..=128_u8).prop_map(|(low, prefix)| {
            Cidr::new(masked(IpAddr::V6(low.into()), prefix), prefix).expect("a range")
        });
        prop_oneof![
            8 => v4,
            8 => v6,
            1 => Just("0.0.0.0/0".parse().expect("a range")),
            1 => Just("::/0".parse().expect("a range")),
        ]
    }

    proptest! {
        #[test]
        fn changes_lead_to_the_intervals_of_the_whole(
            batches in prop::collection::vec(
                prop::collection::vec((prop::bool::ANY, range()), 1..6), 1..16,
            ),
        ) {
            let mut ranges: BTreeSet<Cidr> = BTreeSet::new();
            let mut both = [true, false].map(|is_ipv4| (is_ipv4, Intervals::default()));
            for batch in batches {
                let mut changes = [IntervalChange::default(), IntervalChange::default()];
                let before = both.clone();
                for (is_added, range) in batch {
                    let family = usize::from(!range.address().is_ipv4());
                    let (intervals, change) = (&mut both[family].1, &mut changes[family]);
                    match is_added {
                        true => { ranges.insert(range); intervals.add(&range, change); }
                        false => { ranges.remove(&range); intervals.remove(&range, change); }
                    }
                }
                let all: Vec<Cidr> = ranges.iter().copied().collect();
                for (family, (is_ipv4, now)) in both.iter().enumerate() {
                    let whole = Intervals::of(&all, *is_ipv4);
                    prop_assert_eq!(&now.merged, &whole.merged);
                    prop_assert_eq!(&now.ranges, &whole.ranges);
                    prop_assert_eq!(&changes[family], &before[family].1.change_to(now));
                }
            }
        }
    }
}
