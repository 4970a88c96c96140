//! Answers that many flows share: the next hop and nothing else. An entry names one by its
//! number, which is good for one turn, so that its number also says whether it holds. A turn is as
//! many epochs as changed nothing that any of the worker's flows depends on. Ways themselves stay from turn
//! to turn, for the entries that are found to be as they were, until an epoch changes everything.

use hashbrown::HashTable;

use crate::action::{Plan, PlanFlags};
use crate::id::Epoch;

/// Low bits of a number: which way. The bits above: which turn.
const BITS: u32 = 13;
/// The most ways. What finds no room has its plan for itself.
const LIMIT: usize = 1 << BITS;
/// So many, and the next turn begins without any: some may be nobody's by now.
const PLENTY: usize = LIMIT / 2;
/// Ways that are at hand without a look into the index.
const RECENT: usize = 256;
/// Turns that can be told apart.
const TURNS: u32 = 1 << (32 - BITS);
/// Turns whose entries may yet hold.
const KEPT: usize = 64;

/// The ways of one turn.
pub(super) struct Ways {
    /// The turns of this table counted, below [`TURNS`].
    turn: u32,
    /// Turns before this one that had the same ways; below [`KEPT`].
    kept: u32,
    /// The last epoch of each of those, by turn.
    until: [Epoch; KEPT],
    /// The first stands for "the plan is the entry's own"; no packet fits it.
    ways: Vec<Plan>,
    index: HashTable<u32>,
    /// Ways handed out lately, by their hash; of none the number is 0.
    recent: Box<[(Words, u32); RECENT]>,
    epoch: Option<Epoch>,
}

/// What an entry's way number says.
pub(super) enum Lead<'a> {
    /// This plan.
    Shared(&'a Plan),
    /// The entry has a plan of its own.
    Own,
    /// Nothing: the entry is of another turn.
    Stale,
}

/// What tells one shared plan from another; all else of it is as in any.
type Words = [u64; 3];

#[inline]
fn words(plan: &Plan) -> Words {
    let [a, b, c, d, e, f, g, h, low @ ..] = plan.macs;
    let mtu = if plan.flags.has(PlanFlags::ENCAP) { 0 } else { plan.mtu };
    let rest = u64::from(plan.out.0) << 32 | u64::from(mtu) << 48;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from(u32::from_ne_bytes(low)) | rest,
        u64::from(plan.flags.0) | u64::from(plan.tunnel) << 16,
    ]
}

#[inline]
fn hash([a, b, c]: Words) -> u64 {
    let (a, b) = (a ^ 0x9e37_79b9_7f4a_7c15, b ^ c.rotate_left(16) ^ 0xd1b5_4a32_d192_ed03);
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ (wide >> 64) as u64
}

/// Whether the number, of whatever turn, says that an entry's plan is its own.
#[inline(always)]
pub(super) fn is_own(number: u32) -> bool {
    number.is_multiple_of(LIMIT as u32)
}

impl Ways {
    pub(super) fn new() -> Self {
        let ways = vec![Plan::default()];
        let (until, recent) = ([Epoch(0); KEPT], Box::new([([0; 3], 0); RECENT]));
        Self { turn: 0, kept: 0, until, ways, index: HashTable::new(), recent, epoch: None }
    }

    /// The epoch that the turn has come to.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The turn goes on in `epoch`.
    pub(super) fn go_on(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
    }

    /// Another turn begins with `epoch`. `afresh`: the ways of those before are no more. True: all
    /// numbers have been used once, and the caller must forget every entry before they are used
    /// again.
    #[must_use]
    pub(super) fn begin(&mut self, epoch: Epoch, afresh: bool) -> bool {
        if let (Some(before), false) = (self.epoch, afresh || self.ways.len() > PLENTY) {
            self.until[self.turn as usize % KEPT] = before;
            self.kept = (self.kept + 1).min(KEPT as u32 - 1);
        } else {
            self.kept = 0;
            self.ways.truncate(1);
            self.index.clear();
            self.recent.fill(([0; 3], 0));
        }
        self.epoch = Some(epoch);
        self.turn = (self.turn + 1) % TURNS;
        self.turn == 0
    }

    /// The last epoch in which a number of an earlier turn was good, if its way is still there.
    #[inline]
    pub(super) fn until(&self, number: u32) -> Option<Epoch> {
        let turn = number >> BITS;
        let age = self.turn.wrapping_sub(turn);
        (1..=self.kept).contains(&age).then(|| self.until[turn as usize % KEPT])
    }

    /// The number of the same way in this turn.
    #[inline]
    pub(super) fn renewed(&self, number: u32) -> u32 {
        self.own() | (number % LIMIT as u32)
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

    /// The number of what flows can [share](Plan::shared) of a plan that translates nothing; where
    /// that has no room, [`own`](Self::own).
    pub(super) fn share(&mut self, plan: &Plan) -> u32 {
        let wanted = words(plan);
        let hash_of = hash(wanted);
        let (what, way) = self.recent[hash_of as usize % RECENT];
        let [a, b, c] = wanted;
        if way != 0 && (what[0] ^ a) | (what[1] ^ b) | (what[2] ^ c) == 0 {
            debug_assert_eq!(plan.shared(), Some(self.ways[way as usize]));
            return self.own() | way;
        }
        let same = |way: &u32| words(&self.ways[*way as usize]) == wanted;
        let way = match self.index.find(hash_of, same).copied() {
            Some(way) => way,
            None if self.ways.len() < LIMIT => {
                let Some(plan) = plan.shared() else { return self.own() };
                let way = self.ways.len() as u32;
                self.ways.push(plan);
                let ways = &self.ways;
                self.index.insert_unique(hash_of, way, |&way| hash(words(&ways[way as usize])));
                way
            }
            None => return self.own(),
        };
        self.recent[hash_of as usize % RECENT] = (wanted, way);
        self.own() | way
    }

    /// Whether a number is of this turn.
    #[inline(always)]
    pub(super) fn is_now(&self, number: u32) -> bool {
        number >> BITS == self.turn
    }

    /// The shared plan of this turn that a number names, if it names one that rewrites headers
    /// and no more and that a packet of `length` bytes, not zero, fits.
    #[inline(always)]
    pub(super) fn shared(&self, number: u32, length: u32) -> Option<&Plan> {
        // Nothing fits what stands for plans of entries' own, nor a tunnel; see `Plan::shared`.
        let plan = self.ways.get(number as usize % LIMIT)?;
        (self.is_now(number) && length <= u32::from(plan.mtu)).then_some(plan)
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
