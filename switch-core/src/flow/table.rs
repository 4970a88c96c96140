//! A worker's own flow table: exact match from flow key to entry, made for batches.
//!
//! The index holds buckets of one cache line: eight 16-bit tags, eight entry numbers, and how
//! many keys passed the bucket by because it was full. Entries lie in one array that grows
//! without moving. A batch is looked up in steps, so that the memory latencies of its packets
//! overlap: [`FlowTable::prefetch`] for every packet, then [`FlowTable::candidate`] (which
//! prefetches the entry), then [`FlowTable::entry`].
//!
//! The index doubles in small steps: each insertion and each poll move a few buckets, so that no
//! packet waits for a rehash. Used by one worker thread; nothing here is shared.

use wire::flow_key::{FlowKey, HashKey};

use crate::action::Plan;
use crate::id::Epoch;
use crate::prefetch::prefetch;

use super::connection::ConnectionRef;

const SLOTS: usize = 8;
const NONE: u32 = u32::MAX;
/// Buckets that each insertion moves while the index grows. Growth begins at 3/4 load of the old
/// index, doubling; moving at least 1 bucket (6 entries) an insertion ends long before the next.
const MOVE_PER_INSERT: usize = 4;

#[derive(Clone)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u16; SLOTS],
    entries: [u32; SLOTS],
    /// Keys whose home or probe path this bucket is, and that stand further on.
    passed: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    const EMPTY: Bucket = Bucket { tags: [0; SLOTS], entries: [NONE; SLOTS], passed: 0 };
}

/// What the worker keeps of one direction of a connection: two cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct FlowEntry {
    /// The key, as packets of this direction have it when they come in.
    pub key: FlowKey,
    /// Source MAC (high 48 bits) and ingress port (low 16): a hit is more than a 5-tuple.
    pub sender: u64,
    /// The connection, and which direction of it this is.
    pub connection: ConnectionRef,
    /// Snapshot that `plan` was derived from.
    pub epoch: Epoch,
    /// Second of the last hit, for expiry of the entry itself.
    pub last_seen: u32,
    /// The derived answer.
    pub plan: Plan,
}

const _: () = assert!(size_of::<FlowEntry>() == 128);

struct Index {
    buckets: Box<[Bucket]>,
    mask: usize,
}

impl Index {
    fn new(buckets: usize) -> Self {
        let buckets = buckets.next_power_of_two();
        Self { buckets: vec![Bucket::EMPTY; buckets].into_boxed_slice(), mask: buckets - 1 }
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        hash as usize & self.mask
    }

    /// The first entry whose tag fits and which `same` accepts, with its bucket and slot.
    #[inline]
    fn find(&self, hash: u64, mut same: impl FnMut(u32) -> bool) -> Option<(usize, usize)> {
        let tag = tag_of(hash);
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let bucket = &self.buckets[at];
            for slot in 0..SLOTS {
                if bucket.tags[slot] == tag && same(bucket.entries[slot]) {
                    return Some((at, slot));
                }
            }
            if bucket.passed == 0 {
                return None;
            }
            at = (at + 1) & self.mask;
        }
        None
    }

    /// Puts an entry in. The index is never full: it grows at 3/4 load.
    fn insert(&mut self, hash: u64, entry: u32) {
        let mut at = self.home(hash);
        loop {
            let bucket = &mut self.buckets[at];
            if let Some(slot) = bucket.entries.iter().position(|&e| e == NONE) {
                bucket.tags[slot] = tag_of(hash);
                bucket.entries[slot] = entry;
                return;
            }
            bucket.passed += 1;
            at = (at + 1) & self.mask;
        }
    }

    fn remove(&mut self, hash: u64, entry: u32) -> bool {
        let Some((found, slot)) = self.find(hash, |e| e == entry) else { return false };
        self.buckets[found].entries[slot] = NONE;
        self.buckets[found].tags[slot] = 0;
        let mut at = self.home(hash);
        while at != found {
            self.buckets[at].passed -= 1;
            at = (at + 1) & self.mask;
        }
        true
    }
}

/// Tags are never zero, so that an empty slot fits nothing.
#[inline]
fn tag_of(hash: u64) -> u16 {
    (hash >> 48) as u16 | 1
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
    entries: Vec<FlowEntry>,
    /// Entry numbers free for use; an entry is free when its connection is none.
    free: Vec<u32>,
    limit: usize,
    hash_key: HashKey,
    sweep: usize,
}

/// A number that names an entry until it is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryId(u32);

impl FlowTable {
    /// An empty table.
    pub fn new(config: FlowTableConfig) -> Self {
        let limit = config.entries.clamp(1, NONE as usize - 1);
        Self {
            index: Index::new(64),
            old: None,
            // Reserved, not touched: pages are taken as entries come, and none is ever moved.
            entries: Vec::with_capacity(limit),
            free: Vec::new(),
            limit,
            hash_key: config.hash_key,
            sweep: 0,
        }
    }

    /// Entries in use.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
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
        prefetch(&self.index.buckets[self.index.home(hash)]);
    }

    /// Second step: the likely entry by its tag, brought near. Certain only after
    /// [`entry`](Self::entry) compared the key.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<EntryId> {
        let tag = tag_of(hash);
        let bucket = &self.index.buckets[self.index.home(hash)];
        for slot in 0..SLOTS {
            if bucket.tags[slot] == tag {
                let id = bucket.entries[slot];
                let entry = &self.entries[id as usize];
                prefetch(&entry.key);
                prefetch(&entry.plan);
                return Some(EntryId(id));
            }
        }
        None
    }

    /// Third step: the entry of `key`, by its candidate if that is the one, else searched for.
    #[inline]
    pub fn find(&self, candidate: Option<EntryId>, hash: u64, key: &FlowKey) -> Option<EntryId> {
        if let Some(id) = candidate
            && self.entries[id.0 as usize].key == *key
        {
            return Some(id);
        }
        self.search(hash, key)
    }

    #[inline(never)]
    fn search(&self, hash: u64, key: &FlowKey) -> Option<EntryId> {
        let same = |e: u32| self.entries[e as usize].key == *key;
        if let Some((at, slot)) = self.index.find(hash, same) {
            return Some(EntryId(self.index.buckets[at].entries[slot]));
        }
        let (old, _) = self.old.as_ref()?;
        let (at, slot) = old.find(hash, same)?;
        Some(EntryId(old.buckets[at].entries[slot]))
    }

    /// The entry.
    #[inline]
    pub fn entry(&self, id: EntryId) -> &FlowEntry {
        &self.entries[id.0 as usize]
    }

    /// The entry, to be changed. Its key must stay.
    #[inline]
    pub fn entry_mut(&mut self, id: EntryId) -> &mut FlowEntry {
        &mut self.entries[id.0 as usize]
    }

    /// Puts an entry in, in place of one with the same key. `None`: the table is full.
    pub fn insert(&mut self, hash: u64, entry: FlowEntry) -> Option<EntryId> {
        if let Some(id) = self.search(hash, &entry.key) {
            self.entries[id.0 as usize] = entry;
            return Some(id);
        }
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None if self.entries.len() < self.limit => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
            None => return None,
        };
        self.grow_if_due();
        self.index.insert(hash, number);
        self.migrate(MOVE_PER_INSERT);
        Some(EntryId(number))
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: EntryId) {
        let entry = &mut self.entries[id.0 as usize];
        if entry.connection.is_none() {
            return;
        }
        let hash = entry.key.hash(&self.hash_key);
        entry.connection = ConnectionRef::NONE;
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

    /// Looks at up to `budget` entries, going round, and removes those that `ended` picks.
    pub fn sweep(&mut self, budget: usize, mut ended: impl FnMut(&FlowEntry) -> bool) {
        for _ in 0..budget.min(self.entries.len()) {
            self.sweep = if self.sweep + 1 >= self.entries.len() { 0 } else { self.sweep + 1 };
            let entry = &self.entries[self.sweep];
            if !entry.connection.is_none() && ended(entry) {
                self.remove(EntryId(self.sweep as u32));
            }
        }
    }

    /// Every entry in use.
    pub fn iter(&self) -> impl Iterator<Item = &FlowEntry> {
        self.entries.iter().filter(|e| !e.connection.is_none())
    }

    fn grow_if_due(&mut self) {
        let slots = self.index.buckets.len() * SLOTS;
        if self.old.is_none() && self.len() * 4 > slots * 3 {
            let grown = Index::new(self.index.buckets.len() * 2);
            self.old = Some((core::mem::replace(&mut self.index, grown), 0));
        }
    }

    /// Moves up to `budget` buckets of the old index into the new one.
    fn migrate(&mut self, budget: usize) {
        let Some((old, next)) = &mut self.old else { return };
        for _ in 0..budget {
            if *next == old.buckets.len() {
                self.old = None;
                return;
            }
            // Entries are left where they are in the old bucket chain's accounting: the old
            // index is only searched, and what moved is found in the new one first.
            let numbers = old.buckets[*next].entries;
            for number in numbers.into_iter().filter(|&n| n != NONE) {
                let hash = self.entries[number as usize].key.hash(&self.hash_key);
                old.remove(hash, number);
                self.index.insert(hash, number);
            }
            *next += 1;
        }
    }
}

#[cfg(test)]
mod tests;
