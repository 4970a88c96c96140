//! Rules' ports to port tables.

use std::sync::{Arc, Weak};

use hashbrown::HashMap;

use crate::rule::{NamedPort, PortRule, Ports, Protocol};
use crate::table::{NO_RULE, PortMap, PortTable};

/// Ports of one protocol, `first` to `last`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(super) struct Span {
    protocol: usize,
    first: u16,
    last: u16,
}

/// What a rule matches once its names are resolved.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Reach {
    /// Every protocol and port.
    All,
    /// These. None: nothing.
    Spans(Vec<Span>),
}

impl Reach {
    /// The numbers that entries say themselves, and those of the names that `names` has; names
    /// that it does not have match nothing (N7).
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
    let protocol = match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    };
    Span { protocol, first, last }
}

/// Whether some entry is a name.
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

/// Port maps in use, each kept once.
#[derive(Debug, Default)]
pub(super) struct PortMaps {
    by_starts: HashMap<[Vec<u16>; 3], Weak<PortMap>>,
    /// Size at which dead entries are looked for next.
    purge_at: usize,
}

impl PortMaps {
    /// The table of these rules, each with its rank, ascending.
    pub(super) fn table(&mut self, rules: &[(u32, Reach)]) -> PortTable {
        let mut starts = [Vec::new(), Vec::new(), Vec::new()];
        let mut ranks = Vec::new();
        for (protocol, starts) in starts.iter_mut().enumerate() {
            let painted = paint(protocol, rules);
            starts.extend(painted.iter().skip(1).map(|(start, _)| *start));
            ranks.extend(painted.iter().map(|(_, rank)| *rank));
        }
        let all = rules.iter().find(|(_, reach)| *reach == Reach::All);
        ranks.push(all.map_or(NO_RULE, |(rank, _)| *rank));
        if ranks.iter().all(|rank| *rank == NO_RULE) {
            return PortTable::default();
        }
        PortTable::new(self.map(starts), ranks.into())
    }

    fn map(&mut self, starts: [Vec<u16>; 3]) -> Arc<PortMap> {
        if let Some(map) = self.by_starts.get(&starts).and_then(Weak::upgrade) {
            return map;
        }
        if self.by_starts.len() >= self.purge_at {
            self.by_starts.retain(|_, map| map.strong_count() > 0);
            self.purge_at = self.by_starts.len() * 2 + 64;
        }
        let map = Arc::new(PortMap::new(&starts));
        self.by_starts.insert(starts, Arc::downgrade(&map));
        map
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.by_starts.values().filter_map(Weak::upgrade).map(|map| map.heap_bytes()).sum()
    }
}

/// The lowest rank for each interval of a protocol's ports, equal neighbours joined: first port
/// and rank, from port 0 on.
fn paint(protocol: usize, rules: &[(u32, Reach)]) -> Vec<(u16, u32)> {
    let spans = |reach: &Reach| match reach {
        Reach::All => vec![(0, u16::MAX)],
        Reach::Spans(spans) => {
            let own = spans.iter().filter(|s| s.protocol == protocol);
            own.map(|s| (s.first, s.last)).collect()
        }
    };
    let mut starts = vec![0u16];
    for (_, reach) in rules {
        for (first, last) in spans(reach) {
            starts.push(first);
            starts.extend(last.checked_add(1));
        }
    }
    starts.sort_unstable();
    starts.dedup();
    let mut ranks = vec![NO_RULE; starts.len()];
    // `next[i]`: an interval at or after `i` that may be unpainted, found by halving paths, so
    // that lower ranks, painted first, are stepped over and not walked.
    let mut next: Vec<usize> = (0..=starts.len()).collect();
    for (rank, reach) in rules {
        for (first, last) in spans(reach) {
            let end = starts.partition_point(|s| *s <= last);
            let mut at = find(&mut next, starts.partition_point(|s| *s < first));
            while at < end {
                ranks[at] = *rank;
                next[at] = at + 1;
                at = find(&mut next, at);
            }
        }
    }
    let mut painted: Vec<(u16, u32)> = starts.into_iter().zip(ranks).collect();
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
    use crate::table::PortKey;

    fn reach() -> impl Strategy<Value = Reach> {
        let port = prop_oneof![0u16..20, 250u16..260, 65530u16..=65535];
        let span = (0usize..3, port.clone(), port).prop_map(|(protocol, a, b)| Span {
            protocol,
            first: a.min(b),
            last: a.max(b),
        });
        prop_oneof![
            1 => Just(Reach::All),
            6 => prop::collection::vec(span, 0..4).prop_map(Reach::Spans),
        ]
    }

    proptest! {
        #[test]
        fn lowest_rank_wins(reaches in prop::collection::vec(reach(), 0..12)) {
            let rules: Vec<_> = (0u32..).zip(reaches).collect();
            let mut maps = PortMaps::default();
            let table = maps.table(&rules);
            for protocol in 0..4 {
                for port in (0..300).chain(65500..=65535) {
                    let hit = |reach: &Reach| match reach {
                        Reach::All => true,
                        Reach::Spans(spans) => spans
                            .iter()
                            .any(|s| s.protocol == protocol && (s.first..=s.last).contains(&port)),
                    };
                    let want = rules.iter().find(|(_, r)| hit(r)).map_or(NO_RULE, |(rank, _)| *rank);
                    prop_assert_eq!(table.rank(PortKey { protocol, port }), want);
                }
            }
        }
    }

    #[test]
    fn equal_cuts_share_a_map() {
        let mut maps = PortMaps::default();
        let http = || Reach::Spans(vec![span(Protocol::Tcp, 80, 80)]);
        let (a, b) = (maps.table(&[(0, http())]), maps.table(&[(7, http())]));
        assert!(Arc::ptr_eq(a.map().unwrap(), b.map().unwrap()));
        assert!(maps.table(&[(0, Reach::Spans(vec![]))]).map().is_none());
    }
}
