//! Weighted Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): selects one of several
//! backends or equal-cost next hops for a flow.
//!
//! Tables are built by the control plane and read on the slow path; a look-up is one multiplication
//! and one load. The result depends only on the set of backends, their weights, the table size and
//! the cluster key: not on their order, the node, or earlier tables.

use core::cmp::Reverse;
use core::net::{IpAddr, SocketAddr};
use std::collections::BinaryHeap;
use std::sync::Arc;

use podswitch_wire::flow_key::{FlowKey, HashKey, to_bytes};

/// Default table sizes: primes, each at least a hundred times the largest number of backends it is
/// used for, so that shares are within 1 % of each other (S18). The sizes are far apart, because
/// changing from one to the next redistributes a Service's connections.
const LADDER: [u32; 10] =
    [1_009, 2_503, 5_003, 10_007, 25_013, 50_021, 100_003, 250_007, 500_009, 1_000_003];

/// The largest table size that can be configured.
pub const MAX_SIZE: u32 = 5_000_011;

/// The largest number of backends in one table.
pub const MAX_BACKENDS: usize = 1 << 16;

/// The table size for a number of backends: a prime of at least a hundred slots for each, up to
/// 10,000 backends; above, the largest size.
pub fn default_size(backends: usize) -> u32 {
    let wanted = u32::try_from(backends.saturating_mul(100)).unwrap_or(u32::MAX);
    let rung = LADDER.partition_point(|size| *size < wanted);
    LADDER[rung.min(LADDER.len() - 1)]
}

/// The upper half of the product spreads the hash evenly over any number of slots.
#[inline]
fn slot_of(hash: u64, slots: usize) -> usize {
    ((u128::from(hash) * slots as u128) >> 64) as usize
}

/// Whether `n` is a prime number.
pub fn is_prime(n: u32) -> bool {
    if n < 4 {
        return n >= 2;
    }
    let divisors = (3..).step_by(2).take_while(|d| u64::from(*d) * u64::from(*d) <= u64::from(n));
    !n.is_multiple_of(2) && divisors.into_iter().all(|d: u32| !n.is_multiple_of(d))
}

/// The name that identifies a backend on every node.
pub trait Identity: Ord {
    /// A hash of that name under the cluster key.
    fn digest(&self, cluster_key: &HashKey) -> u64;
}

impl Identity for SocketAddr {
    fn digest(&self, cluster_key: &HashKey) -> u64 {
        let (src, family) = to_bytes(self.ip());
        FlowKey { src, src_port: self.port(), family, ..FlowKey::default() }.hash(cluster_key)
    }
}

impl Identity for IpAddr {
    fn digest(&self, cluster_key: &HashKey) -> u64 {
        SocketAddr::new(*self, 0).digest(cluster_key)
    }
}

/// Why a table cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MaglevError {
    /// The size is not prime, or above [`MAX_SIZE`].
    #[error("{0} is not a table size: it must be a prime of at most {MAX_SIZE}")]
    Size(u32),
    /// More backends than [`MAX_BACKENDS`].
    #[error("{0} backends: a table holds at most {MAX_BACKENDS}")]
    TooMany(usize),
}

/// A compiled selection among backends. A clone shares the slots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Maglev {
    slots: Slots,
}

/// Indices of backends, no wider than necessary, because there are thousands of tables.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Slots {
    /// At most one backend: nothing to select.
    One(Option<u16>),
    Narrow(Arc<[u8]>),
    Wide(Arc<[u16]>),
}

impl Default for Slots {
    fn default() -> Self {
        Self::One(None)
    }
}

impl Maglev {
    /// A table of `size` slots over `backends`, each an identity with its weight. A backend's share
    /// is proportional to its weight; with weight 0 it has none. Duplicates count once. The order
    /// does not matter.
    ///
    /// # Errors
    /// [`MaglevError`].
    pub fn new<I: Identity>(
        backends: &[(I, u16)],
        size: u32,
        cluster_key: &HashKey,
    ) -> Result<Self, MaglevError> {
        if backends.len() > MAX_BACKENDS {
            return Err(MaglevError::TooMany(backends.len()));
        }
        if size > MAX_SIZE || !is_prime(size) {
            return Err(MaglevError::Size(size));
        }
        let mut order: Vec<usize> = (0..backends.len()).filter(|i| backends[*i].1 > 0).collect();
        order.sort_by(|a, b| backends[*a].0.cmp(&backends[*b].0));
        order.dedup_by(|a, b| backends[*a].0 == backends[*b].0);
        if let [] | [_] = order[..] {
            return Ok(Self { slots: Slots::One(order.first().map(|i| *i as u16)) });
        }
        let walks: Vec<Walk> =
            order.iter().map(|i| Walk::new(backends[*i].0.digest(cluster_key), size)).collect();
        let weights: Vec<u16> = order.iter().map(|i| backends[*i].1).collect();
        let filled = if weights.iter().all(|w| *w == weights[0]) {
            fill(walks, size, (0..order.len()).cycle())
        } else {
            fill(walks, size, Turns::new(&weights))
        };
        let index = |place: &u16| order[usize::from(*place)];
        let slots = if backends.len() <= 1 << 8 {
            Slots::Narrow(filled.iter().map(|place| index(place) as u8).collect())
        } else {
            Slots::Wide(filled.iter().map(|place| index(place) as u16).collect())
        };
        Ok(Self { slots })
    }

    /// The backend of a flow with this hash: an index into the list that the table was built from.
    /// `None` if there is none. The hash must be under the cluster key.
    #[inline]
    pub fn pick(&self, hash: u64) -> Option<u16> {
        match &self.slots {
            Slots::One(one) => *one,
            Slots::Narrow(slots) => slots.get(slot_of(hash, slots.len())).map(|i| u16::from(*i)),
            Slots::Wide(slots) => slots.get(slot_of(hash, slots.len())).copied(),
        }
    }

    /// Whether there is no backend.
    #[inline]
    pub fn is_empty(&self) -> bool {
        matches!(self.slots, Slots::One(None))
    }

    /// The slot of a hash, for explanations.
    pub fn slot(&self, hash: u64) -> usize {
        slot_of(hash, self.size())
    }

    /// Number of slots; 1 if there is nothing to select.
    pub fn size(&self) -> usize {
        match &self.slots {
            Slots::One(_) => 1,
            Slots::Narrow(slots) => slots.len(),
            Slots::Wide(slots) => slots.len(),
        }
    }

    /// The backend of every slot.
    pub fn slots(&self) -> impl Iterator<Item = u16> {
        let (one, narrow, wide) = match &self.slots {
            Slots::One(one) => (*one, &[][..], &[][..]),
            Slots::Narrow(slots) => (None, &slots[..], &[][..]),
            Slots::Wide(slots) => (None, &[][..], &slots[..]),
        };
        one.into_iter().chain(narrow.iter().map(|i| u16::from(*i))).chain(wide.iter().copied())
    }

    /// Bytes of the table on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.slots {
            Slots::One(_) => 0,
            Slots::Narrow(slots) => slots.len(),
            Slots::Wide(slots) => slots.len() * 2,
        }
    }
}

/// One backend's preference list: a permutation of the slots, visited one by one.
struct Walk {
    at: u32,
    skip: u32,
}

impl Walk {
    fn new(digest: u64, size: u32) -> Self {
        // Two independent numbers from one digest (steps of SplitMix64's output function).
        let offset = mix(digest) % u64::from(size);
        let skip = mix(digest ^ 0x9e37_79b9_7f4a_7c15) % u64::from(size - 1).max(1) + 1;
        Self { at: offset as u32, skip: skip as u32 }
    }

    #[inline]
    fn next(&mut self, size: u32) -> usize {
        let slot = self.at;
        // Both are below 2^24, so the sum does not overflow.
        let next = self.at + self.skip;
        self.at = if next >= size { next - size } else { next };
        slot as usize
    }
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The paper's Populate: backends alternate, each taking the first free slot of its list.
fn fill(mut walks: Vec<Walk>, size: u32, mut turns: impl Iterator<Item = usize>) -> Vec<u16> {
    let mut slots = vec![0; size as usize];
    let mut taken = vec![0u64; slots.len().div_ceil(64)];
    for _ in 0..size {
        // There is always a next turn. A walk visits every slot, so it finds a free one while one
        // exists.
        let Some(who) = turns.next() else { break };
        loop {
            let slot = walks[who].next(size);
            let bit = 1 << (slot % 64);
            if taken[slot / 64] & bit == 0 {
                taken[slot / 64] |= bit;
                slots[slot] = who as u16;
                break;
            }
        }
    }
    slots
}

/// Turns in proportion to weights: the k-th turn of a backend with weight w is at time k / w; ties
/// go to the one that sorts first.
struct Turns {
    heap: BinaryHeap<Reverse<Turn>>,
}

#[derive(PartialEq, Eq)]
struct Turn {
    count: u64,
    weight: u64,
    who: usize,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        // Compares a/b with c/d as a·d with c·b; counts are below 2^24 and weights below 2^16.
        let (ours, theirs) = (self.count * other.weight, other.count * self.weight);
        ours.cmp(&theirs).then(self.who.cmp(&other.who))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Turns {
    fn new(weights: &[u16]) -> Self {
        let first = |(who, weight): (usize, &u16)| {
            Reverse(Turn { count: 1, weight: u64::from(*weight), who })
        };
        Self { heap: weights.iter().enumerate().map(first).collect() }
    }
}

impl Iterator for Turns {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let mut top = self.heap.peek_mut()?;
        let who = top.0.who;
        top.0.count += 1;
        Some(who)
    }
}

#[cfg(test)]
mod tests;
