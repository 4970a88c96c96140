//! Maps protocol and port to a rule's rank.

use super::line::Line;

/// A rank that no rule has: nothing matches.
pub(crate) const NO_RULE: u32 = CHILD - 1;

/// Marks a value as the number of another line.
const CHILD: u32 = 1 << 31;

/// Intervals of one line.
const WIDTH: usize = 8;

/// Protocol and port as one number, in the order of the tables: TCP, UDP, SCTP by port, then
/// everything else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PortKey(u32);

impl PortKey {
    /// Protocols without ports, ICMP included, which only rules without ports match (N10).
    pub(crate) const OTHER: Self = Self(3 << 16);

    #[inline]
    pub(crate) const fn new(protocol: u8, port: u16) -> Self {
        use podswitch_wire::flow_key::proto::{SCTP, TCP, UDP};
        let protocol: u32 = match protocol {
            TCP => 0,
            UDP => 1,
            SCTP => 2,
            _ => return Self::OTHER,
        };
        Self(protocol << 16 | port as u32)
    }

    /// The number.
    pub(crate) const fn number(self) -> u32 {
        self.0
    }
}

// A port table is a tree of cache lines. A line divides its keys into up to eight intervals. The
// first eight words are the intervals' first keys (the first is not above any key that reaches the
// line, unused ones are above all). The others hold the value of each interval: the lowest rank of
// the matching rules, or `CHILD` and the number of a line that divides it further. One level
// suffices for the few ports that most rules name; six if every port of every protocol has its own
// rule.

const BLANK: Line = {
    let mut words = [i32::MAX as u32; 2 * WIDTH];
    let mut at = WIDTH;
    while at < 2 * WIDTH {
        words[at] = NO_RULE;
        at += 1;
    }
    Line(words)
};

/// Lowest rank for a key in the table beginning at line `root`; [`NO_RULE`] if there is no such
/// line.
#[inline]
pub(crate) fn rank(run: &[Line], mut root: u32, key: PortKey) -> u32 {
    while let Some(Line(words)) = run.get(root as usize) {
        // All compared at once and counted: no branch to mispredict. Keys fit an `i32`.
        let starts = &words[..WIDTH];
        let below: u32 = starts.iter().map(|start| u32::from(*start as i32 <= key.0 as i32)).sum();
        let value = words[WIDTH + (below as usize).wrapping_sub(1) % WIDTH];
        if value & CHILD == 0 {
            return value;
        }
        root = value & !CHILD;
    }
    NO_RULE
}

/// Appends several tables, each given by its intervals (first key and rank, from key 0 on). The
/// root of the first is the next line of the run, and so on.
pub(crate) fn write_tables(run: &mut Vec<Line>, tables: &[Vec<(u32, u32)>]) {
    let first = run.len();
    run.resize(first + tables.len(), BLANK);
    for (root, intervals) in (first..).zip(tables) {
        write_line(run, root, intervals);
    }
}

/// Writes a line, and those below it behind the last.
fn write_line(run: &mut Vec<Line>, at: usize, intervals: &[(u32, u32)]) {
    let each = if intervals.len() <= WIDTH {
        1
    } else {
        // Full lines below, so that the tree has minimal depth.
        WIDTH.pow((intervals.len() - 1).ilog(WIDTH))
    };
    for (slot, part) in intervals.chunks(each).enumerate() {
        let value = match *part {
            [(_, rank)] => rank,
            _ => {
                let child = run.len();
                run.push(BLANK);
                write_line(run, child, part);
                child as u32 | CHILD
            }
        };
        run[at].0[slot] = part[0].0;
        run[at].0[WIDTH + slot] = value;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(intervals: &[(u32, u32)], key: u32) -> u32 {
        intervals.iter().rev().find(|(start, _)| *start <= key).map_or(NO_RULE, |(_, rank)| *rank)
    }

    fn table(few: bool) -> impl Strategy<Value = Vec<(u32, u32)>> {
        let most = if few { 9 } else { 700 };
        prop::collection::btree_set(1..=PortKey::OTHER.0, 0..most)
            .prop_map(|starts| [0].into_iter().chain(starts).zip(100..).collect())
    }

    proptest! {
        #[test]
        fn finds_the_interval(
            tables in prop::collection::vec(prop::bool::ANY.prop_flat_map(table), 1..6),
            ask in prop::collection::vec(0..=PortKey::OTHER.0, 40),
        ) {
            let mut lines = vec![BLANK];
            write_tables(&mut lines, &tables);
            for (root, intervals) in tables.iter().enumerate() {
                let near = intervals.iter().flat_map(|(s, _)| [s.saturating_sub(1), *s, s + 1]);
                for key in ask.iter().copied().chain(near) {
                    prop_assert_eq!(rank(&lines, root as u32 + 1, PortKey(key)), plain(intervals, key));
                }
            }
            prop_assert_eq!(rank(&lines, lines.len() as u32, PortKey(0)), NO_RULE);
        }
    }

    #[test]
    fn every_port_its_own_interval() {
        let all: Vec<(u32, u32)> = (0..=PortKey::OTHER.0).zip(0..).collect();
        let mut lines = Vec::new();
        write_tables(&mut lines, &[all]);
        for key in [0, 1, 65535, 65536, 131_071, 196_607, 196_608] {
            assert_eq!(rank(&lines, 0, PortKey(key)), key);
        }
    }

    #[test]
    fn keys_keep_protocols_apart() {
        assert!(PortKey::new(6, 65535) < PortKey::new(17, 0));
        assert!(PortKey::new(132, 65535) < PortKey::new(1, 80));
        assert_eq!(PortKey::new(58, 7), PortKey::OTHER);
    }
}
