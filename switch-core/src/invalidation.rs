//! When what flows depend on changed last, by address. A worker that has evaluated a flow, and finds
//! that nothing about its addresses changed since, need not evaluate it again.
//!
//! Addresses fall into groups by a hash. For each group the last epoch is kept that changed anything
//! about one of its addresses. Two addresses of one group are invalidated together: that costs an
//! evaluation, never a wrong answer. Each snapshot has all of it, so it does not matter how many
//! snapshots a worker skipped.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_policy::touched::Touched;
use podswitch_wire::flow_key::{FlowKey, to_bytes};

use crate::id::Epoch;

/// Groups of one chunk, and chunks.
const CHUNK: usize = 256;
const CHUNKS: usize = 256;

/// A group of addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(transparent)]
pub struct Group(u16);

impl Group {
    /// How many there are.
    pub const COUNT: usize = CHUNK * CHUNKS;

    /// The group of an address in a key's form. The hash is no secret: a person who finds addresses
    /// that share a group has flows of these evaluated more often.
    #[inline]
    pub fn of(address: &[u8; 16]) -> Self {
        let word = u128::from_ne_bytes(*address);
        let (a, b) = (word as u64, (word >> 64) as u64);
        let wide = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd1b5_4a32_d192_ed03);
        let mixed = (wide as u64) ^ (wide >> 64) as u64;
        // What differs in one byte of IPv4 lies low in one product only.
        Self((mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16)
    }

    /// As a table index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<IpAddr> for Group {
    fn from(address: IpAddr) -> Self {
        Self::of(&to_bytes(address).0)
    }
}

/// The groups of all addresses that a flow's treatment depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Groups(pub [Group; 4]);

impl Groups {
    /// Of a flow that is not translated, the same in both directions.
    #[inline]
    pub fn of_key(key: &FlowKey) -> Self {
        let [a, b] = ends(key);
        Self([a, b, a, b])
    }

    /// Of both directions of a connection, by their keys: what the client sends, and what the backend
    /// answers.
    pub fn of_connection(original: &FlowKey, reply: &FlowKey) -> Self {
        let ([a, b], [c, d]) = (ends(original), ends(reply));
        Self([a, b, c, d])
    }
}

/// The groups of both ends, in order.
#[inline]
fn ends(key: &FlowKey) -> [Group; 2] {
    let (a, b) = (Group::of(&key.src), Group::of(&key.dst));
    if a <= b { [a, b] } else { [b, a] }
}

#[derive(Debug)]
struct Chunk {
    /// The latest of all.
    newest: u32,
    /// In epochs since the one that invalidated everything.
    last: [u32; CHUNK],
}

const UNCHANGED: Chunk = Chunk { newest: 0, last: [0; CHUNK] };

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Invalidation {
    /// The last epoch that invalidated everything.
    everything: Epoch,
    chunks: Arc<[Arc<Chunk>]>,
}

/// Which of a worker's flows the changes from one epoch to another affect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Affected {
    /// None of them.
    None,
    /// Some may be.
    Some,
    /// All of them.
    All,
}

impl Invalidation {
    /// An epoch that invalidates everything.
    pub fn everything(epoch: Epoch) -> Self {
        let chunk = Arc::new(UNCHANGED);
        Self { everything: epoch, chunks: (0..CHUNKS).map(|_| chunk.clone()).collect() }
    }

    /// Adds what `epoch` changes.
    pub fn invalidate(&mut self, epoch: Epoch, touched: Touched) {
        if self.everything == epoch {
            return;
        }
        let (Some(age), Touched::Addresses(addresses)) = (self.age(epoch), touched) else {
            *self = Self::everything(epoch);
            return;
        };
        if addresses.is_empty() {
            return;
        }
        let mut chunks: Vec<Arc<Chunk>> = self.chunks.to_vec();
        for group in addresses.into_iter().map(Group::from) {
            let shared = &mut chunks[group.index() / CHUNK];
            if Arc::get_mut(shared).is_none() {
                *shared = Arc::new(Chunk { newest: shared.newest, last: shared.last });
            }
            if let Some(chunk) = Arc::get_mut(shared) {
                chunk.newest = age;
                chunk.last[group.index() % CHUNK] = age;
            }
        }
        self.chunks = chunks.into();
    }

    /// Whether nothing about these groups changed since `epoch`.
    #[inline]
    pub fn is_valid_since(&self, epoch: Epoch, groups: &Groups) -> bool {
        let Some(age) = self.age(epoch) else { return false };
        let Groups(groups) = groups;
        groups.iter().all(|group| self.last(*group) <= age)
    }

    /// What the epochs after `epoch` affect, of the groups that are `present`.
    pub fn since(&self, epoch: Epoch, present: impl Fn(Group) -> bool) -> Affected {
        let Some(age) = self.age(epoch) else { return Affected::All };
        let later = self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.newest > age);
        for (at, chunk) in later {
            let groups = (at * CHUNK..).zip(&chunk.last).filter(|(_, last)| **last > age);
            if groups.into_iter().any(|(group, _)| present(Group(group as u16))) {
                return Affected::Some;
            }
        }
        Affected::None
    }

    /// Epochs from the one that invalidated everything to `epoch`; `None` if `epoch` is older.
    #[inline]
    fn age(&self, epoch: Epoch) -> Option<u32> {
        epoch.0.checked_sub(self.everything.0)
    }

    #[inline]
    fn last(&self, group: Group) -> u32 {
        self.chunks.get(group.index() / CHUNK).map_or(u32::MAX, |c| c.last[group.index() % CHUNK])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn address(n: u32) -> IpAddr {
        match n % 2 {
            0 => IpAddr::from((0x0a00_0000 + n).to_be_bytes()),
            _ => IpAddr::from(((0xfd00 << 112) + u128::from(n)).to_be_bytes()),
        }
    }

    #[test]
    fn neighbours_are_in_different_groups() {
        for step in [1, 2, 256, 512, 1 << 16] {
            let groups: HashSet<usize> =
                (0..4000).map(|n| Group::from(address(n * step)).index()).collect();
            // Of 4,000 at random among 65,536, some 120 meet another.
            assert!(groups.len() > 3700, "{} groups at a step of {step}", groups.len());
        }
    }

    /// So both have an answer that others share.
    #[test]
    fn both_directions_depend_on_the_same() {
        for n in (0..1000).step_by(2) {
            let (src, dst) = (to_bytes(address(n)), to_bytes(address(n + 2000)));
            let (src, dst, family) = (src.0, dst.0, src.1);
            let original =
                FlowKey { src, dst, src_port: 7, dst_port: 80, proto: 17, family, zone: 0 };
            let reply = original.reversed();
            let groups = Groups::of_connection(&original, &reply);
            assert_eq!([Groups::of_key(&original), Groups::of_key(&reply)], [groups; 2]);
        }
    }

    #[test]
    fn an_epoch_that_wraps_invalidates_everything() {
        let mut last = Invalidation::everything(Epoch(u32::MAX));
        last.invalidate(Epoch(1), Touched::Addresses(vec![address(1)]));
        assert_eq!(last.since(Epoch(0), |_| true), Affected::All);
        let groups = Groups([Group::from(address(2)); 4]);
        assert!(!last.is_valid_since(Epoch(0), &groups));
    }

    proptest! {
        /// Against a plain list of what changed when.
        #[test]
        fn tells_what_changed_since(
            steps in prop::collection::vec(
                prop_oneof![
                    9 => prop::collection::vec(0u32..300, 0..4).prop_map(Some),
                    1 => Just(None),
                ],
                1..40,
            ),
            asked in prop::collection::vec(0u32..300, 4),
        ) {
            let mut last = Invalidation::everything(Epoch(1));
            let mut plain: HashMap<usize, u32> = HashMap::new();
            let (mut everything, mut epoch) = (1, 1);
            for step in steps {
                epoch += 1;
                match step {
                    Some(list) => {
                        let list: Vec<IpAddr> = list.into_iter().map(address).collect();
                        plain.extend(list.iter().map(|a| (Group::from(*a).index(), epoch)));
                        last.invalidate(Epoch(epoch), Touched::Addresses(list));
                    }
                    None => {
                        everything = epoch;
                        last.invalidate(Epoch(epoch), Touched::Everything);
                    }
                }
                let groups: Vec<Group> = asked.iter().map(|n| Group::from(address(*n))).collect();
                for since in 0..=epoch {
                    let touched =
                        |g: &Group| plain.get(&g.index()).is_some_and(|last| *last > since);
                    let none = since >= everything && !groups.iter().any(touched);
                    let four = Groups([groups[0], groups[1], groups[2], groups[3]]);
                    prop_assert_eq!(last.is_valid_since(Epoch(since), &four), none);
                    let want = match (since < everything, none) {
                        (true, _) => Affected::All,
                        (_, true) => Affected::None,
                        _ => Affected::Some,
                    };
                    prop_assert_eq!(last.since(Epoch(since), |g| groups.contains(&g)), want);
                }
            }
        }
    }
}
