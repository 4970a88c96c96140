//! A worker's own flow table: exact match from flow key to entry, made for batches.
//!
//! The index holds buckets of one cache line: eight 16-bit tags, eight entry numbers, and how
//! many keys passed the bucket by because it was full. An entry is one line more: key, sender, and
//! the number of an answer that it shares with all flows that go the same way; only where
//! packets are translated has an entry an answer of its own, on a second line. Entries
//! lie in one array that grows without moving.
//!
//! A batch is looked up in steps, so that the memory latencies of its packets
//! overlap: [`FlowTable::prefetch`] for every packet, then [`FlowTable::candidate`] (which
//! prefetches the entry), then [`FlowTable::approach`] (which prefetches the entry's own answer),
//! then [`FlowTable::look`].
//!
//! Packets of flows whose connection need not hear of each (see [`Follow`]) are counted in the
//! entry, and the connection is told once a second or when the sweep comes by.
//!
//! The index doubles in small steps: each insertion and each poll move a few buckets, so that no
//! packet waits for a rehash. Used by one worker thread; nothing here is shared.

pub(super) mod index;
mod presence;
mod renewal;
mod ways;

use arrayvec::ArrayVec;
use podswitch_wire::flow_key::{FlowKey, HashKey, proto};

use crate::action::Plan;
use crate::prefetch::{prefetch, prefetch_address};
use crate::snapshot::{Groups, LastTouched};

use super::connection::ConnectionRef;
use index::Index;
use presence::Presence;
pub use renewal::Renewals;
use ways::{Lead, Ways, is_own};

const NONE: u32 = u32::MAX;
/// Sender of entries that are free: no port has such a number.
const NOBODY: u64 = u64::MAX;
/// Buckets that each insertion moves while the index grows. Growth begins at 3/4 load of the old
/// index, doubling; moving at least 1 bucket (6 entries) an insertion ends long before the next.
const MOVE_PER_INSERT: usize = 4;
/// Entries that the sweep looks at together, so that its waits for main memory overlap.
const TOGETHER: usize = 32;
/// Own answers are made room for in so many at a time.
const PLANS: usize = 1024;

/// What the worker remembers of one direction of a connection.
#[derive(Clone, Copy, Debug)]
pub struct FlowEntry {
    /// The key, as packets of this direction have it when they come in.
    pub key: FlowKey,
    /// Source MAC (high 48 bits) and ingress port (low 16): a hit is more than a 5-tuple.
    pub sender: u64,
    /// The connection, and which direction of it this is.
    pub connection: ConnectionRef,
    /// What `plan` depends on.
    pub groups: Groups,
    /// Second of the last hit, for expiry of the entry itself.
    pub last_seen: u32,
    /// The derived answer.
    pub plan: Plan,
}

/// An entry as packets meet it: one cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line {
    key: FlowKey,
    sender: u64,
    /// Number of the answer; see [`Ways`].
    way: u32,
    /// Second in which the connection was last told, or followed.
    last_seen: u32,
    /// Of a flow that is followed: the connection. Of others: packets and bytes since the
    /// connection was told.
    tail: [u32; 2],
}

const _: () = assert!(size_of::<Line>() == 64);

/// So many of something, made on the heap.
fn made<T: Copy>(what: T) -> Box<[T; PLANS]> {
    let all = vec![what; PLANS].into_boxed_slice();
    all.try_into().unwrap_or_else(|_| unreachable!("it has this length"))
}

/// Whether the connection must hear of each packet; `tail` is then the connection.
#[inline]
fn is_followed(line: &Line) -> bool {
    line.key.proto == proto::TCP || is_own(line.way)
}

/// Packets and bytes of a connection that has yet to be told of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Untold {
    /// Whose.
    pub connection: ConnectionRef,
    /// Packets.
    pub packets: u32,
    /// Bytes.
    pub bytes: u32,
}

/// Who must hear of a packet that hit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// The entry has counted it; that is all.
    Counted,
    /// The connection, of each packet: TCP has windows to follow, and where packets are translated
    /// nothing may pass that the connection no longer stands for.
    Each(ConnectionRef),
    /// The connection, of this packet and those before: a second has gone by.
    Tell(Untold),
}

/// How large a flow table may grow and what it hashes with.
#[derive(Clone, Copy, Debug)]
pub struct FlowTableConfig {
    /// The most entries (directions of connections).
    pub entries: usize,
    /// Secret hash key of this process.
    pub hash_key: HashKey,
}

/// See the module's description.
pub struct FlowTable {
    index: Index,
    /// The index before it grew, with the next bucket to move.
    old: Option<(Index, usize)>,
    lines: Vec<Line>,
    /// Whose each line is; none where it is free.
    connections: Vec<ConnectionRef>,
    ways: Ways,
    /// Own answers, by entry number; made where one is needed.
    plans: Vec<Option<Box<[Plan; PLANS]>>>,
    /// What these depend on, in the same places. What shared answers do their flows' keys say.
    groups: Vec<Option<Box<[Groups; PLANS]>>>,
    presence: Presence,
    renewals: Renewals,
    untold: Vec<Untold>,
    /// Entry numbers free for use.
    free: Vec<u32>,
    limit: usize,
    hash_key: HashKey,
    sweep: usize,
}

/// A number that names an entry until it is removed.
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

/// Why no entry holds for a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// There is none of its key.
    Absent,
    /// It is another sender's, or what its answer depends on was changed.
    Other,
}

impl FlowTable {
    /// An empty table.
    pub fn new(config: FlowTableConfig) -> Self {
        let limit = config.entries.clamp(1, NONE as usize - 1);
        Self {
            index: Index::new(64),
            old: None,
            // Reserved, not touched: pages are taken as entries come, and none is ever moved.
            lines: Vec::with_capacity(limit),
            connections: Vec::with_capacity(limit),
            ways: Ways::new(),
            plans: Vec::new(),
            groups: Vec::new(),
            presence: Presence::new(),
            renewals: Renewals::default(),
            untold: Vec::new(),
            free: Vec::new(),
            limit,
            hash_key: config.hash_key,
            sweep: 0,
        }
    }

    /// Entries in use.
    pub fn len(&self) -> usize {
        self.lines.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the table is so full that entries should go early.
    pub fn is_under_pressure(&self) -> bool {
        self.len() * 8 >= self.limit * 7
    }

    /// First step: brings the bucket near.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Second step: the likely entry by its tag, brought near; none if there is none in the home
    /// bucket. Certain only after [`look`](Self::look) compared the key.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> EntryId {
        match self.index.candidate(hash) {
            Some(number) => {
                let at = number as usize * size_of::<Line>();
                prefetch_address(self.lines.as_ptr().addr().wrapping_add(at));
                EntryId(number)
            }
            None => EntryId::NONE,
        }
    }

    /// Third step: brings near what a hit on the likely entry will touch besides: its own answer;
    /// and names the connection, if that hears of each packet, for its lane to be brought near.
    #[inline(always)]
    pub fn approach(&self, candidate: EntryId) -> Option<ConnectionRef> {
        let line = self.lines.get(candidate.0 as usize)?;
        if !is_followed(line) {
            return None;
        }
        if is_own(line.way)
            && let Some(plan) = self.own_plan(candidate)
        {
            prefetch(plan);
        }
        Some(ConnectionRef::from_parts(line.tail))
    }

    /// Fourth step: the entry of `key`, by its candidate if that is the one, else searched for. What
    /// was a candidate may have been removed since.
    ///
    /// # Errors
    /// [`Unfit`].
    #[inline(always)]
    pub fn look(
        &mut self,
        candidate: EntryId,
        hash: u64,
        key: &FlowKey,
        sender: u64,
        touched: &LastTouched,
    ) -> Result<EntryId, Unfit> {
        if let Some(line) = self.lines.get(candidate.0 as usize)
            && line.key == *key
            && line.sender == sender
            && self.ways.is_now(line.way)
        {
            return Ok(candidate);
        }
        self.look_again(candidate, hash, key, sender, touched)
    }

    #[inline(never)]
    fn look_again(
        &mut self,
        candidate: EntryId,
        hash: u64,
        key: &FlowKey,
        sender: u64,
        touched: &LastTouched,
    ) -> Result<EntryId, Unfit> {
        let is_it = |line: &Line| line.key == *key && line.sender == sender;
        let found = match self.lines.get(candidate.0 as usize).is_some_and(is_it) {
            true => Some(candidate),
            false => self.search(hash, key),
        };
        let Some(id) = found else { return Err(Unfit::Absent) };
        let line = &self.lines[id.0 as usize];
        let stale = !self.ways.is_now(line.way);
        if line.sender != sender || stale && !self.keep(id, touched) {
            return Err(Unfit::Other);
        }
        Ok(id)
    }

    /// Third and fourth step in one for nearly every packet that no connection need hear of: counts it
    /// in the likely entry, if that is its flow's, and gives the answer that its flow shares. `length` is
    /// that of its network-layer packet, and not zero. None, and nothing counted: [`look`](Self::look)
    /// and [`hit`](Self::hit) know more.
    #[inline(always)]
    pub fn pass(
        &mut self,
        candidate: EntryId,
        key: &FlowKey,
        sender: u64,
        (length, bytes): (u32, u32),
        seconds: u32,
    ) -> Option<&Plan> {
        let line = self.lines.get_mut(candidate.0 as usize)?;
        // What tells the flows that are for others to take stands first.
        let plan = self.ways.shared(line.way, length)?;
        let is_its = line.key == *key && line.sender == sender;
        if !is_its || line.last_seen != seconds || line.key.proto == proto::TCP {
            return None;
        }
        let [packets, so_far] = line.tail;
        let total = so_far.checked_add(bytes)?;
        // Every packet has bytes, so those run over first.
        line.tail = [packets.wrapping_add(1), total];
        Some(plan)
    }

    /// The same for packets of TCP, with the connection that must hear of this one.
    #[inline(always)]
    pub fn pass_tcp(
        &mut self,
        candidate: EntryId,
        key: &FlowKey,
        sender: u64,
        length: u32,
        seconds: u32,
    ) -> Option<(&Plan, ConnectionRef)> {
        let line = self.lines.get_mut(candidate.0 as usize)?;
        let plan = self.ways.shared(line.way, length)?;
        if line.key != *key || line.sender != sender || line.key.proto != proto::TCP {
            return None;
        }
        if line.last_seen != seconds {
            line.last_seen = seconds;
        }
        Some((plan, ConnectionRef::from_parts(line.tail)))
    }

    /// Last step: the answer, with who must hear of this packet of `bytes` bytes; none, and
    /// nothing counted, if the entry's answer is of another turn or the packet does not fit its way.
    #[inline]
    pub fn hit(
        &mut self,
        id: EntryId,
        bytes: usize,
        seconds: u32,
        fits: impl FnOnce(&Plan) -> bool,
    ) -> Option<(&Plan, Follow)> {
        let at = id.0 as usize;
        let line = self.lines.get_mut(at)?;
        let plan = match self.ways.lead(line.way) {
            Lead::Stale => return None,
            Lead::Shared(plan) => plan,
            Lead::Own => &self.plans.get(at / PLANS)?.as_deref()?[at % PLANS],
        };
        if !fits(plan) {
            return None;
        }
        if is_followed(line) {
            if line.last_seen != seconds {
                line.last_seen = seconds;
            }
            return Some((plan, Follow::Each(ConnectionRef::from_parts(line.tail))));
        }
        let [packets, so_far] = line.tail;
        // Longer than any frame: counted as that.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX / 2);
        if line.last_seen == seconds
            && let Some(total) = so_far.checked_add(bytes)
        {
            line.tail = [packets.wrapping_add(1), total];
            return Some((plan, Follow::Counted));
        }
        line.last_seen = seconds;
        line.tail = [1, bytes];
        let connection = self.connections[at];
        Some((plan, Follow::Tell(Untold { connection, packets, bytes: so_far })))
    }

    fn own_plan(&self, id: EntryId) -> Option<&Plan> {
        let at = id.0 as usize;
        Some(&self.plans.get(at / PLANS)?.as_deref()?[at % PLANS])
    }

    /// Not in line, and made on the heap: what is on the stack here would be probed page by page for
    /// every entry.
    #[inline(never)]
    fn set_own_plan(&mut self, id: EntryId, plan: &Plan, groups: &Groups) {
        let at = id.0 as usize;
        if self.plans.len() <= at / PLANS {
            self.plans.resize_with(at / PLANS + 1, || None);
            self.groups.resize_with(at / PLANS + 1, || None);
        }
        let some = self.plans[at / PLANS].get_or_insert_with(|| made(Plan::default()));
        some[at % PLANS] = *plan;
        let some = self.groups[at / PLANS].get_or_insert_with(|| made(Groups::default()));
        some[at % PLANS] = *groups;
    }

    /// The entry of a key, of whatever sender and turn.
    #[inline(never)]
    fn search(&self, hash: u64, key: &FlowKey) -> Option<EntryId> {
        let same = |e: u32| self.lines[e as usize].key == *key;
        if let Some(number) = self.index.get(hash, same) {
            return Some(EntryId(number));
        }
        let (old, _) = self.old.as_ref()?;
        old.get(hash, same).map(EntryId)
    }

    /// Puts an entry in that the epoch [begun](Self::begin) last gave its answer, in place of one with
    /// the same key. `None`: the table is full.
    pub fn insert(&mut self, hash: u64, entry: &FlowEntry) -> Option<EntryId> {
        let Some(id) = self.search(hash, &entry.key) else {
            return self.insert_absent(hash, entry);
        };
        if !self.ways.is_now(self.lines[id.0 as usize].way) {
            self.renewals.judged += 1;
        }
        self.settle_counts(id);
        self.write(id, entry);
        Some(id)
    }

    /// As [`insert`](Self::insert) of a key that has no entry: [`look`](Self::look) said so, and none
    /// was put in since.
    pub fn insert_absent(&mut self, hash: u64, entry: &FlowEntry) -> Option<EntryId> {
        debug_assert!(self.search(hash, &entry.key).is_none(), "{} has an entry", entry.key);
        let id = self.take_number()?;
        self.write(id, entry);
        self.grow_if_due();
        self.index.insert(hash, id.0);
        self.settle(MOVE_PER_INSERT);
        Some(id)
    }

    #[inline]
    fn write(&mut self, id: EntryId, entry: &FlowEntry) {
        // Translation is the flow's alone; so is what is not to be seen of its key.
        let alone = entry.plan.is_translation() || entry.groups != Groups::of_key(&entry.key);
        let way = if alone { self.ways.own() } else { self.ways.share(&entry.plan) };
        if is_own(way) {
            self.set_own_plan(id, &entry.plan, &entry.groups);
        }
        self.presence.enter(&entry.groups);
        let FlowEntry { key, sender, last_seen, .. } = *entry;
        let mut line = Line { key, sender, way, last_seen, tail: [0; 2] };
        if is_followed(&line) {
            line.tail = entry.connection.parts();
        }
        self.lines[id.0 as usize] = line;
        self.connections[id.0 as usize] = entry.connection;
    }

    fn take_number(&mut self) -> Option<EntryId> {
        if let Some(number) = self.free.pop() {
            return Some(EntryId(number));
        }
        if self.lines.len() >= self.limit {
            return None;
        }
        let key = FlowKey::default();
        let line = Line { key, sender: NOBODY, way: 0, last_seen: 0, tail: [0; 2] };
        self.lines.push(line);
        self.connections.push(ConnectionRef::NONE);
        Some(EntryId(self.lines.len() as u32 - 1))
    }

    /// Takes what the entry has counted into `untold`.
    fn settle_counts(&mut self, id: EntryId) {
        let line = &mut self.lines[id.0 as usize];
        if is_followed(line) {
            return;
        }
        let [packets, bytes] = core::mem::take(&mut line.tail);
        if packets != 0 {
            let connection = self.connections[id.0 as usize];
            self.untold.push(Untold { connection, packets, bytes });
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: EntryId) {
        if !self.connections[id.0 as usize].is_none() {
            self.remove_hashed(id, self.lines[id.0 as usize].key.hash(&self.hash_key));
        }
    }

    fn remove_hashed(&mut self, id: EntryId, hash: u64) {
        self.settle_counts(id);
        self.connections[id.0 as usize] = ConnectionRef::NONE;
        self.lines[id.0 as usize].sender = NOBODY;
        if !self.index.remove(hash, id.0)
            && let Some((old, _)) = &mut self.old
        {
            old.remove(hash, id.0);
        }
        self.free.push(id.0);
    }

    /// Moves up to `buckets` of a growing index, so that growth ends also when no flow comes.
    #[inline]
    pub fn settle(&mut self, buckets: usize) {
        if self.old.is_some() {
            self.migrate(buckets);
        }
    }

    /// Looks at up to `budget` entries, going round, and removes those that `ended` picks by
    /// connection and second of the last hit. What the others have counted is to be told. `near` is told
    /// of connections that `ended` will soon be asked about.
    pub fn sweep(
        &mut self,
        budget: usize,
        near: impl Fn(ConnectionRef),
        mut ended: impl FnMut(ConnectionRef, u32) -> bool,
    ) {
        let mut left = budget.min(self.lines.len());
        while left > 0 {
            let first = if self.sweep + 1 >= self.lines.len() { 0 } else { self.sweep + 1 };
            if first == 0 {
                self.presence.turn_over();
            }
            let group = first..self.lines.len().min(first + left.min(TOGETHER));
            left -= group.len();
            self.sweep = group.end - 1;
            self.connections[group.clone()].iter().for_each(|connection| near(*connection));
            let mut over: ArrayVec<(EntryId, u64), TOGETHER> = ArrayVec::new();
            for at in group {
                let connection = self.connections[at];
                if connection.is_none() {
                    continue;
                }
                let (id, line) = (EntryId(at as u32), &self.lines[at]);
                if ended(connection, line.last_seen) {
                    let hash = line.key.hash(&self.hash_key);
                    self.index.prefetch(hash);
                    over.push((id, hash));
                } else {
                    self.settle_counts(id);
                    self.presence.stay(&self.groups_of(id));
                }
            }
            for (id, hash) in over {
                self.remove_hashed(id, hash);
            }
        }
    }

    /// What connections are still to be told.
    pub fn untold(&mut self) -> impl Iterator<Item = Untold> {
        self.untold.drain(..)
    }

    fn grow_if_due(&mut self) {
        let slots = self.index.buckets() * index::SLOTS;
        if self.old.is_none() && self.len() * 4 > slots * 3 {
            let grown = Index::new(self.index.buckets() * 2);
            self.old = Some((core::mem::replace(&mut self.index, grown), 0));
        }
    }

    /// Moves up to `budget` buckets of the old index into the new one.
    fn migrate(&mut self, budget: usize) {
        let Some((old, next)) = &mut self.old else { return };
        for _ in 0..budget {
            if *next == old.buckets() {
                self.old = None;
                return;
            }
            // Entries are left where they are in the old bucket chain's accounting: the old
            // index is only searched, and what moved is found in the new one first.
            for number in old.numbers(*next) {
                let hash = self.lines[number as usize].key.hash(&self.hash_key);
                old.remove(hash, number);
                self.index.insert(hash, number);
            }
            *next += 1;
        }
    }
}

#[cfg(test)]
mod tests;
