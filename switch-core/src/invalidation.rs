//! Records by address when the dependencies of flows changed last. If a worker has evaluated a flow, and nothing about
//! its addresses has changed since, it need not evaluate the flow again.
//!
//! Addresses fall into groups by a hash. For each group, the last epoch is kept that changed one of its addresses. Two
//! addresses of one group are invalidated together: that costs an additional evaluation, never a wrong result. Each
//! snapshot has all groups, so a worker may skip any number of snapshots.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_policy::affected::AffectedAddresses;
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
    /// The number of groups.
    pub const COUNT: usize = CHUNK * CHUNKS;

    /// The group of an address in a key's form. The hash is not secret: a person who finds addresses that share a group
    /// can only make flows of these be evaluated more often.
    #[inline]
    pub fn of(address: &[u8; 16]) -> Self {
        let word = u128::from_ne_bytes(*address);
        let (a, b) = (word as u64, (word >> 64) as u64);
        let wide = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd1b5_4a32_d192_ed03);
        let mixed = (wide as u64) ^ (wide >> 64) as u64;
        // Addresses that differ in one byte of IPv4 differ only in the low part of one product.
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

/// The groups of all addresses on which a flow's verdict and plan depend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Groups(pub [Group; 4]);

impl Groups {
    /// The groups of a flow that is not translated, the same in both directions.
    #[inline]
    pub fn of_key(key: &FlowKey) -> Self {
        let [a, b] = ends(key);
        Self([a, b, a, b])
    }

    /// The groups of both directions of a connection. `original` is the key of the client's packets, `reply` that of
    /// the backend's.
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
    /// The latest change of any group.
    newest: u32,
    /// Number of epochs since the one that invalidated everything.
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

/// The effect on a worker's flows of the changes from one epoch to another.
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

    /// Adds the changes of `epoch`.
    pub fn invalidate(&mut self, epoch: Epoch, affected: AffectedAddresses) {
        if self.everything == epoch {
            return;
        }
        let (Some(age), AffectedAddresses::Listed(addresses)) = (self.age(epoch), affected) else {
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

    /// The effect of the epochs after `epoch` on the groups that are `present`.
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
            // Of 4,000 random groups among 65,536, about 120 are hit more than once.
            assert!(groups.len() > 3700, "{} groups at a step of {step}", groups.len());
        }
    }

    /// So both directions have the same dependencies.
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
        last.invalidate(Epoch(1), AffectedAddresses::Listed(vec![address(1)]));
        assert_eq!(last.since(Epoch(0), |_| true), Affected::All);
        let groups = Groups([Group::from(address(2)); 4]);
        assert!(!last.is_valid_since(Epoch(0), &groups));
    }

    proptest! {
        /// Compared with a simple list of changes and their epochs.
        #[test]
        fn reports_changes_since_an_epoch(
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
                        last.invalidate(Epoch(epoch), AffectedAddresses::Listed(list));
                    }
                    None => {
                        everything = epoch;
                        last.invalidate(Epoch(epoch), AffectedAddresses::All);
                    }
                }
                let groups: Vec<Group> = asked.iter().map(|n| Group::from(address(*n))).collect();
                for since in 0..=epoch {
                    let affected =
                        |g: &Group| plain.get(&g.index()).is_some_and(|last| *last > since);
                    let none = since >= everything && !groups.iter().any(affected);
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
