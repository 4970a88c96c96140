//! Plans that many flows share: the next hop, without anything that depends on the flow. An entry
//! refers to one by a [`PlanId`], which is valid for one generation of the table, so that comparing
//! the generation also shows whether the entry is valid.
//!
//! A generation spans all consecutive epochs that changed nothing any flow of the worker depends on.
//! The plans themselves are kept over several generations, for entries that turn out to be
//! unaffected, until an epoch changes everything.

use hashbrown::HashTable;

use crate::action::{Plan, PlanFlags};
use crate::id::Epoch;

/// Low bits of a [`PlanId`]: index of the plan. The bits above: the generation.
const INDEX_BITS: u32 = 13;
/// Maximum number of shared plans. If there is no room for a flow's plan, the flow gets a plan of
/// its own.
const MAX_PLANS: usize = 1 << INDEX_BITS;
/// With more plans than this, the next generation begins without any: some may be unused by now.
const CLEAR_ABOVE: usize = MAX_PLANS / 2;
/// Plans that are found without a lookup in the index.
const RECENT: usize = 256;
/// Generations that a [`PlanId`] can tell apart.
const GENERATIONS: u32 = 1 << (32 - INDEX_BITS);
/// Number of generations whose entries may still be valid.
const KEPT: usize = 64;

/// Refers to a plan: a shared one, or the entry's own. Valid in one generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PlanId(u32);

impl PlanId {
    fn new(generation: u32, index: u32) -> Self {
        Self(generation << INDEX_BITS | index)
    }

    #[inline(always)]
    fn index(self) -> usize {
        self.0 as usize % MAX_PLANS
    }

    #[inline(always)]
    fn generation(self) -> u32 {
        self.0 >> INDEX_BITS
    }

    /// Whether it refers to the entry's own plan, in any generation.
    #[inline(always)]
    pub(super) fn is_own(self) -> bool {
        self.index() == 0
    }
}

/// The plan that a valid [`PlanId`] refers to.
pub(super) enum PlanRef<'a> {
    /// This plan.
    Shared(&'a Plan),
    /// The entry's own plan.
    Own,
    /// None: the ID is of an earlier generation.
    Stale,
}

/// The plans of one generation.
pub(super) struct SharedPlans {
    /// Number of this generation, below [`GENERATIONS`].
    generation: u32,
    /// Number of generations before this one that had the same plans; below [`KEPT`].
    kept: u32,
    /// The last epoch of each of those, by generation.
    until: [Epoch; KEPT],
    /// The first stands for an entry's own plan; no packet fits its MTU.
    plans: Vec<Plan>,
    index: HashTable<u32>,
    /// Plans that were shared recently, by hash. Index 0: none.
    recent: Box<[(Identity, u32); RECENT]>,
    epoch: Option<Epoch>,
}

/// The fields that distinguish shared plans. All other fields have the same value in every shared
/// plan.
type Identity = [u64; 3];

#[inline]
fn identity(plan: &Plan) -> Identity {
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
fn hash([a, b, c]: Identity) -> u64 {
    let (a, b) = (a ^ 0x9e37_79b9_7f4a_7c15, b ^ c.rotate_left(16) ^ 0xd1b5_4a32_d192_ed03);
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ (wide >> 64) as u64
}

impl SharedPlans {
    pub(super) fn new() -> Self {
        let plans = vec![Plan::default()];
        let (until, recent) = ([Epoch(0); KEPT], Box::new([([0; 3], 0); RECENT]));
        Self { generation: 0, kept: 0, until, plans, index: HashTable::new(), recent, epoch: None }
    }

    /// The latest epoch of this generation.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Extends this generation to `epoch`.
    pub(super) fn extend_to(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
    }

    /// Begins a generation with `epoch`. `clear`: no plan of earlier generations is kept. Returns
    /// true when the generation numbers wrap: the caller must then remove every entry before the
    /// table is used again.
    #[must_use]
    pub(super) fn begin(&mut self, epoch: Epoch, clear: bool) -> bool {
        if let (Some(before), false) = (self.epoch, clear || self.plans.len() > CLEAR_ABOVE) {
            self.until[self.generation as usize % KEPT] = before;
            self.kept = (self.kept + 1).min(KEPT as u32 - 1);
        } else {
            self.kept = 0;
            self.plans.truncate(1);
            self.index.clear();
            self.recent.fill(([0; 3], 0));
        }
        self.epoch = Some(epoch);
        self.generation = (self.generation + 1) % GENERATIONS;
        self.generation == 0
    }

    /// The last epoch in which a plan ID of an earlier generation was valid, if its plan is still
    /// there.
    #[inline]
    pub(super) fn valid_until(&self, id: PlanId) -> Option<Epoch> {
        let generation = id.generation();
        let age = self.generation.wrapping_sub(generation);
        (1..=self.kept).contains(&age).then(|| self.until[generation as usize % KEPT])
    }

    /// The ID of the same plan in this generation.
    #[inline]
    pub(super) fn renewed(&self, id: PlanId) -> PlanId {
        PlanId::new(self.generation, id.index() as u32)
    }

    #[inline]
    pub(super) fn is_of(&self, epoch: Epoch) -> bool {
        self.epoch == Some(epoch)
    }

    /// The ID that refers to an entry's own plan.
    #[inline]
    pub(super) fn own(&self) -> PlanId {
        PlanId::new(self.generation, 0)
    }

    /// The ID of the [shared part](Plan::shared) of a plan without translation; if there is no room
    /// for it, [`own`](Self::own).
    pub(super) fn share(&mut self, plan: &Plan) -> PlanId {
        let wanted = identity(plan);
        let hash_of = hash(wanted);
        let (recent, index) = self.recent[hash_of as usize % RECENT];
        let [a, b, c] = wanted;
        if index != 0 && (recent[0] ^ a) | (recent[1] ^ b) | (recent[2] ^ c) == 0 {
            debug_assert_eq!(plan.shared(), Some(self.plans[index as usize]));
            return PlanId::new(self.generation, index);
        }
        let is_same = |index: &u32| identity(&self.plans[*index as usize]) == wanted;
        let index = match self.index.find(hash_of, is_same).copied() {
            Some(index) => index,
            None if self.plans.len() < MAX_PLANS => {
                let Some(plan) = plan.shared() else { return self.own() };
                let index = self.plans.len() as u32;
                self.plans.push(plan);
                let plans = &self.plans;
                let rehash = |&index: &u32| hash(identity(&plans[index as usize]));
                self.index.insert_unique(hash_of, index, rehash);
                index
            }
            None => return self.own(),
        };
        self.recent[hash_of as usize % RECENT] = (wanted, index);
        PlanId::new(self.generation, index)
    }

    /// Whether the ID is of this generation.
    #[inline(always)]
    pub(super) fn is_current(&self, id: PlanId) -> bool {
        id.generation() == self.generation
    }

    /// The shared plan that `id` refers to, for a packet of `length` bytes (not 0), if the plan only
    /// routes (no tunnel) and the packet fits its MTU. Whether `id` is of this generation is not
    /// checked.
    #[inline(always)]
    pub(super) fn routed(&self, id: PlanId, length: u32) -> Option<&Plan> {
        // The MTU of an entry's own plan, and of a plan with a tunnel, is 0 here: see `Plan::shared`.
        let plan = self.plans.get(id.index())?;
        (length <= u32::from(plan.mtu)).then_some(plan)
    }

    #[inline]
    pub(super) fn get(&self, id: PlanId) -> PlanRef<'_> {
        if !self.is_current(id) {
            return PlanRef::Stale;
        }
        match self.plans.get(id.index()) {
            Some(plan) if !id.is_own() => PlanRef::Shared(plan),
            Some(_) => PlanRef::Own,
            None => PlanRef::Stale,
        }
    }
}
