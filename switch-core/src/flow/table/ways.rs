//! Answers that many flows share: the next hop and nothing else. An entry names one by its
//! number, which is good for one epoch, so that its number also says whether it is of this one.

use hashbrown::HashTable;

use crate::action::{Plan, PlanFlags};
use crate::id::Epoch;

/// Low bits of a number: which way. The bits above: which epoch.
const BITS: u32 = 13;
/// The most ways of one epoch. What finds no room has its plan for itself.
const LIMIT: usize = 1 << BITS;
/// Ways that are at hand without a look into the index.
const RECENT: usize = 256;
/// Epochs that can be told apart.
const EPOCHS: u32 = 1 << (32 - BITS);

/// The ways of one epoch.
pub(super) struct Ways {
    /// The epochs of this table counted, below [`EPOCHS`].
    turn: u32,
    /// The first stands for "the plan is the entry's own".
    ways: Vec<Plan>,
    index: HashTable<u32>,
    /// Ways handed out lately, by their hash.
    recent: [u16; RECENT],
    epoch: Option<Epoch>,
}

/// What an entry's way number says.
pub(super) enum Lead<'a> {
    /// This plan.
    Shared(&'a Plan),
    /// The entry has a plan of its own.
    Own,
    /// Nothing: the entry is of another epoch.
    Stale,
}

fn hash(plan: &Plan) -> u64 {
    let [a, b, c, d, e, f, ..] = plan.macs;
    let mac = u64::from_be_bytes([a, b, c, d, e, f, 0, 0]);
    let rest = u64::from(plan.out.0) << 32 | u64::from(plan.mtu) << 16 | u64::from(plan.flags.0);
    let wide = u128::from(mac ^ 0x9e37_79b9_7f4a_7c15) * u128::from(rest ^ 0xd1b5_4a32_d192_ed03);
    (wide as u64) ^ (wide >> 64) as u64
}

/// Whether the number, of whatever epoch, says that an entry's plan is its own.
#[inline(always)]
pub(super) fn is_own(number: u32) -> bool {
    number.is_multiple_of(LIMIT as u32)
}

impl Ways {
    pub(super) fn new() -> Self {
        let ways = vec![Plan::default()];
        Self { turn: 0, ways, index: HashTable::new(), recent: [0; RECENT], epoch: None }
    }

    /// From now on `epoch` is the one: ways of any other are no more. True: all numbers have been
    /// used once, and the caller must forget every entry before they are used again.
    #[must_use]
    pub(super) fn begin(&mut self, epoch: Epoch) -> bool {
        self.epoch = Some(epoch);
        self.ways.truncate(1);
        self.index.clear();
        self.recent = [0; RECENT];
        self.turn = (self.turn + 1) % EPOCHS;
        self.turn == 0
    }

    #[inline]
    pub(super) fn is_of(&self, epoch: Epoch) -> bool {
        self.epoch == Some(epoch)
    }

    /// The number that says that an entry's plan is its own.
    #[inline]
    pub(super) fn own(&self) -> u32 {
        self.turn << BITS
    }

    /// The number of a plan that flows can share; where that has no room, [`own`](Self::own).
    pub(super) fn share(&mut self, plan: &Plan) -> u32 {
        let hash_of = hash(plan);
        let recent = self.recent[hash_of as usize % RECENT];
        if recent != 0 && self.ways[usize::from(recent)] == *plan {
            return self.own() | u32::from(recent);
        }
        let found = self.index.find(hash_of, |&way| self.ways[way as usize] == *plan).copied();
        let way = match found {
            Some(way) => way,
            None if self.ways.len() < LIMIT => {
                let way = self.ways.len() as u32;
                self.ways.push(*plan);
                let ways = &self.ways;
                self.index.insert_unique(hash_of, way, |&way| hash(&ways[way as usize]));
                way
            }
            None => return self.own(),
        };
        self.recent[hash_of as usize % RECENT] = way as u16;
        self.own() | way
    }

    /// Whether a number is of this epoch.
    #[inline(always)]
    pub(super) fn is_now(&self, number: u32) -> bool {
        number >> BITS == self.turn
    }

    /// The shared plan of this epoch that a number names, if it names one that rewrites headers
    /// and no more.
    #[inline(always)]
    pub(super) fn shared(&self, number: u32) -> Option<&Plan> {
        if !self.is_now(number) || is_own(number) {
            return None;
        }
        // Nothing that takes a tunnel packet's headers, too.
        self.ways.get(number as usize % LIMIT).filter(|plan| !plan.flags.has(PlanFlags::ENCAP))
    }

    #[inline]
    pub(super) fn lead(&self, number: u32) -> Lead<'_> {
        if !self.is_now(number) {
            return Lead::Stale;
        }
        match self.ways.get(number as usize % LIMIT) {
            Some(plan) if !is_own(number) => Lead::Shared(plan),
            Some(_) => Lead::Own,
            None => Lead::Stale,
        }
    }
}
