//! Rules' ports as intervals of port tables.

use std::sync::Arc;

use crate::rule::{NamedPort, PortRule, Ports, Protocol};
use crate::table::{NO_RULE, PortKey};

/// Keys of the ports from `first` to `last`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(super) struct Span {
    first: u32,
    last: u32,
}

/// The ports that a rule matches once its port names are resolved.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Reach {
    /// Every protocol and port.
    All,
    /// These intervals. Empty: matches nothing.
    Spans(Vec<Span>),
}

impl Reach {
    /// Numeric entries, and those of `names` that the rule mentions. Names that are not in `names`
    /// match nothing (N7).
    pub(super) fn new(ports: &Ports, names: &[NamedPort]) -> Self {
        let Ports::AnyOf(entries) = ports else { return Self::All };
        let mut spans = Vec::with_capacity(entries.len());
        for entry in entries {
            match entry {
                PortRule::Every(p) => spans.push(span(*p, 0, u16::MAX)),
                PortRule::Range { protocol, first, last } if first <= last => {
                    spans.push(span(*protocol, *first, *last));
                }
                PortRule::Range { .. } => {}
                PortRule::Named { protocol, name } => {
                    let meant = names.iter().filter(|n| n.name == *name);
                    let meant = meant.filter(|n| protocol.is_none_or(|p| p == n.protocol));
                    spans.extend(meant.map(|n| span(n.protocol, n.port, n.port)));
                }
            }
        }
        Self::Spans(spans)
    }
}

fn span(protocol: Protocol, first: u16, last: u16) -> Span {
    let key = |port| PortKey::new(protocol.number(), port).number();
    Span { first: key(first), last: key(last) }
}

/// The names among the entries.
pub(super) fn names(ports: &Ports) -> impl Iterator<Item = &Arc<str>> {
    let entries = match ports {
        Ports::Any => &[],
        Ports::AnyOf(entries) => entries.as_slice(),
    };
    entries.iter().filter_map(|entry| match entry {
        PortRule::Named { name, .. } => Some(name),
        _ => None,
    })
}

/// The lowest rank for each interval of keys, equal neighbours merged: first key and rank, from key
/// 0 on. `rules` by ascending rank.
pub(super) fn intervals(rules: &[(u32, Reach)]) -> Vec<(u32, u32)> {
    const END: u32 = PortKey::OTHER.number();
    const ALL: &[Span] = &[Span { first: 0, last: END }];
    let spans = |reach| match reach {
        &Reach::All => ALL,
        Reach::Spans(spans) => spans.as_slice(),
    };
    let mut starts = vec![0];
    for span in rules.iter().flat_map(|(_, reach)| spans(reach)) {
        starts.push(span.first);
        if span.last < END {
            starts.push(span.last + 1);
        }
    }
    starts.sort_unstable();
    starts.dedup();
    let mut ranks = vec![NO_RULE; starts.len()];
    // `next[i]`: an interval at or after `i` that may be unassigned, found with path halving, so
    // that intervals of lower ranks are skipped.
    let mut next: Vec<usize> = (0..=starts.len()).collect();
    for (rank, reach) in rules {
        for span in spans(reach) {
            let end = starts.partition_point(|start| *start <= span.last);
            let mut at = find(&mut next, starts.partition_point(|start| *start < span.first));
            while at < end {
                ranks[at] = *rank;
                next[at] = at + 1;
                at = find(&mut next, at);
            }
        }
    }
    let mut painted: Vec<(u32, u32)> = starts.into_iter().zip(ranks).collect();
    painted.dedup_by_key(|(_, rank)| *rank);
    painted
}

fn find(next: &mut [usize], mut at: usize) -> usize {
    while next[at] != at {
        next[at] = next[next[at]];
        at = next[at];
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reach() -> impl Strategy<Value = Reach> {
        let port = || prop_oneof![0u16..20, 250u16..260, 65530u16..=65535];
        let span = (prop::sample::select(Protocol::ALL.to_vec()), port(), port())
            .prop_map(|(protocol, a, b)| span(protocol, a.min(b), a.max(b)));
        prop_oneof![
            1 => Just(Reach::All),
            6 => prop::collection::vec(span, 0..4).prop_map(Reach::Spans),
        ]
    }

    proptest! {
        #[test]
        fn lowest_rank_wins(reaches in prop::collection::vec(reach(), 0..12)) {
            let rules: Vec<_> = (0u32..).zip(reaches).collect();
            let painted = intervals(&rules);
            prop_assert!(painted.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 != w[1].1));
            let ports = || (0..300).chain(65500..=65535);
            let all = [6, 17, 132].into_iter().flat_map(|p| ports().map(move |n| (p, n)));
            for (protocol, port) in all.chain([(1, 0), (58, 80)]) {
                let key = PortKey::new(protocol, port).number();
                let hit = |reach: &Reach| match reach {
                    Reach::All => true,
                    Reach::Spans(spans) => spans.iter().any(|s| s.first <= key && key <= s.last),
                };
                let want = rules.iter().find(|(_, r)| hit(r)).map_or(NO_RULE, |(rank, _)| *rank);
                let got = painted.iter().rev().find(|(start, _)| *start <= key).unwrap().1;
                prop_assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn a_range_stays_in_its_protocol() {
        let rules = [(0, Reach::Spans(vec![span(Protocol::Udp, 1, u16::MAX)]))];
        assert_eq!(intervals(&rules), [(0, NO_RULE), (0x1_0001, 0), (0x2_0000, NO_RULE)]);
        assert_eq!(intervals(&[]), [(0, NO_RULE)]);
    }
}
