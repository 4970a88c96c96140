//! A worker's flow table: exact match from flow key to entry, designed for bursts.
//!
//! The index holds buckets of one cache line: eight 16-bit tags, eight entry numbers, and a count of
//! overflowed entries. An entry is one more cache line: key, sender, and the ID of a plan that it
//! shares with all flows to the same next hop. Only translated flows have a plan of their own, on a
//! third cache line. Entries are in one array that grows without moving.
//!
//! A burst is looked up in steps, so that the cache misses of its packets overlap:
//! [`FlowTable::prefetch`] for every packet, then [`FlowTable::candidate`] (prefetches the entry),
//! then [`FlowTable::prefetch_plan`], then [`FlowTable::hit`].
//!
//! Packets of flows that are only routed, and are not TCP, are counted in the entry. Their connection
//! is updated once a second, or when the sweep visits the entry.
//!
//! Used by one worker thread; nothing here is shared.

mod line;
mod lookup;
mod presence;
mod revalidation;
mod shared_plans;
mod sweep;

use podswitch_wire::flow_key::{FlowKey, HashKey};

use super::connection::ConnectionRef;
use super::incremental_index::IncrementalIndex;
use crate::action::Plan;
use crate::invalidation::Groups;
use line::{Line, Seen};
pub use lookup::{Flow, Follow, Hit, LookupMiss};
use presence::Presence;
pub use revalidation::Revalidations;
use shared_plans::SharedPlans;
pub use sweep::PendingCounts;

const NONE: u32 = u32::MAX;
/// Buckets of an empty table.
const SMALLEST_INDEX: usize = 64;
/// Load at which the index grows, in eighths. It may be higher than in the connection table's shards. A small index
/// matters more here, because every packet reads it.
const MAX_LOAD: usize = 6;
/// Number of entries for which memory for own plans is allocated at a time.
const OWN_PLANS_PER_CHUNK: usize = 1024;

type Chunk<T> = Option<Box<[T; OWN_PLANS_PER_CHUNK]>>;

/// The data that the worker stores about one direction of a connection.
#[derive(Clone, Copy, Debug)]
pub struct FlowEntry {
    /// The key of its packets, as they are received.
    pub key: FlowKey,
    /// Source MAC address or VTEP (high 48 bits) and ingress port (low 16): packets of another
    /// sender with the same key do not hit.
    pub sender: u64,
    /// The connection, and the direction.
    pub connection: ConnectionRef,
    /// The addresses on which `plan` depends.
    pub groups: Groups,
    /// Second of the last hit, for expiry of the entry.
    pub last_seen: u32,
    /// The plan for its packets.
    pub plan: Plan,
}

/// Limits and hash key of a flow table.
#[derive(Clone, Copy, Debug)]
pub struct FlowTableConfig {
    /// Maximum number of entries (directions of connections).
    pub entries: usize,
    /// Secret hash key of this process.
    pub hash_key: HashKey,
}

/// See the module's description.
pub struct FlowTable {
    index: IncrementalIndex,
    lines: Vec<Line>,
    /// Connection of each line; none if the line is free.
    connections: Vec<ConnectionRef>,
    plans: SharedPlans,
    /// Own plans by entry number, in chunks that are allocated when first needed.
    own_plans: Vec<Chunk<Plan>>,
    /// The dependencies of own plans, at the same indices. The dependencies of a shared plan follow from the entry's
    /// key.
    own_groups: Vec<Chunk<Groups>>,
    presence: Presence,
    revalidations: Revalidations,
    pending: Vec<PendingCounts>,
    /// Free entry numbers.
    free: Vec<u32>,
    limit: usize,
    hash_key: HashKey,
    /// The entry that the sweep visited last.
    sweep: usize,
}

/// Identifies an entry until it is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryId(u32);

impl EntryId {
    /// No entry.
    pub const NONE: EntryId = EntryId(NONE);

    /// Whether this is no entry.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.0 == NONE
    }
}

impl FlowTable {
    /// An empty table.
    pub fn new(config: FlowTableConfig) -> Self {
        let limit = config.entries.clamp(1, NONE as usize - 1);
        Self {
            index: IncrementalIndex::new(SMALLEST_INDEX, MAX_LOAD),
            // Address space for all entries is reserved. Memory is used as entries are written, and no
            // entry ever moves.
            lines: Vec::with_capacity(limit),
            connections: Vec::with_capacity(limit),
            plans: SharedPlans::new(),
            own_plans: Vec::new(),
            own_groups: Vec::new(),
            presence: Presence::new(),
            revalidations: Revalidations::default(),
            pending: Vec::new(),
            free: Vec::new(),
            limit,
            hash_key: config.hash_key,
            sweep: 0,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.lines.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the table is so full that idle entries should be removed early.
    pub fn is_under_pressure(&self) -> bool {
        self.len() * 8 >= self.limit * 7
    }

    /// Inserts an entry with a plan of the [current](Self::begin) epoch. Replaces an entry with the
    /// same key. `None` if the table is full.
    pub fn insert(&mut self, hash: u64, entry: &FlowEntry) -> Option<EntryId> {
        let Some(id) = self.search(hash, &entry.key) else {
            return self.insert_absent(hash, entry);
        };
        if !self.plans.is_current(self.lines[id.0 as usize].plan) {
            self.revalidations.reevaluated += 1;
        }
        self.flush_counts(id);
        self.write(id, entry);
        Some(id)
    }

    /// [`insert`](Self::insert) for a key that has no entry according to [`find`](Self::find).
    pub fn insert_absent(&mut self, hash: u64, entry: &FlowEntry) -> Option<EntryId> {
        debug_assert!(self.search(hash, &entry.key).is_none(), "{} has an entry", entry.key);
        let id = self.take_number()?;
        self.write(id, entry);
        let (lines, hash_key) = (&self.lines, &self.hash_key);
        self.index.insert(hash, id.0, |number| lines[number as usize].key.hash(hash_key));
        Some(id)
    }

    #[inline]
    fn write(&mut self, id: EntryId, entry: &FlowEntry) {
        // Translation differs from flow to flow. So do dependencies that the key does not show.
        let is_own = entry.plan.is_translation() || entry.groups != Groups::of_key(&entry.key);
        let plan = if is_own { self.plans.own() } else { self.plans.share(&entry.plan) };
        if plan.is_own() {
            self.set_own_plan(id, &entry.plan, &entry.groups);
        }
        self.presence.add(&entry.groups);
        let FlowEntry { key, sender, last_seen, .. } = *entry;
        let (seen, tail) = match Line::must_follow(&key, plan) {
            true => (Seen::followed(last_seen), entry.connection.parts()),
            false => (Seen::unfollowed(last_seen), [0; 2]),
        };
        self.lines[id.0 as usize] = Line { key, sender, plan, seen, tail };
        self.connections[id.0 as usize] = entry.connection;
    }

    /// Not inlined: the compiler would reserve stack space for a chunk, and probe it page by page for
    /// every entry.
    #[inline(never)]
    fn set_own_plan(&mut self, id: EntryId, plan: &Plan, groups: &Groups) {
        let (chunk, index) =
            (id.0 as usize / OWN_PLANS_PER_CHUNK, id.0 as usize % OWN_PLANS_PER_CHUNK);
        if self.own_plans.len() <= chunk {
            self.own_plans.resize_with(chunk + 1, || None);
            self.own_groups.resize_with(chunk + 1, || None);
        }
        self.own_plans[chunk].get_or_insert_with(boxed)[index] = *plan;
        self.own_groups[chunk].get_or_insert_with(boxed)[index] = *groups;
    }

    fn take_number(&mut self) -> Option<EntryId> {
        if let Some(number) = self.free.pop() {
            return Some(EntryId(number));
        }
        if self.lines.len() >= self.limit {
            return None;
        }
        self.lines.push(Line::free());
        self.connections.push(ConnectionRef::NONE);
        Some(EntryId(self.lines.len() as u32 - 1))
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: EntryId) {
        if !self.connections[id.0 as usize].is_none() {
            self.remove_hashed(id, self.lines[id.0 as usize].key.hash(&self.hash_key));
        }
    }

    fn remove_hashed(&mut self, id: EntryId, hash: u64) {
        self.flush_counts(id);
        self.connections[id.0 as usize] = ConnectionRef::NONE;
        self.lines[id.0 as usize].clear();
        self.index.remove(hash, id.0);
        self.free.push(id.0);
    }

    /// Migrates up to `buckets` buckets of a growing index, so that growth ends without new flows too.
    #[inline]
    pub fn migrate(&mut self, buckets: usize) {
        let (lines, hash_key) = (&self.lines, &self.hash_key);
        self.index.migrate(buckets, |number| lines[number as usize].key.hash(hash_key));
    }

    /// Whether entries are still to be [migrated](Self::migrate).
    pub fn is_growing(&self) -> bool {
        self.index.is_growing()
    }
}

/// A chunk of default values, created on the heap.
fn boxed<T: Copy + Default>() -> Box<[T; OWN_PLANS_PER_CHUNK]> {
    let all = vec![T::default(); OWN_PLANS_PER_CHUNK].into_boxed_slice();
    all.try_into().unwrap_or_else(|_| unreachable!("the slice has this length"))
}

#[cfg(test)]
mod tests;
