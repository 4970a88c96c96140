//! The connection table: an index from key to connection, and the slots behind it. Compiled a second
//! time by `model.rs` with the atomics and locks of a model checker: it takes them, and its
//! dimensions, from its parent module.

#![allow(
    clippy::disallowed_types,
    reason = "shard mutexes are taken on a miss and at the end of a connection, never on a hit"
)]

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::OnceLock;

use crossbeam::utils::CachePadded;
use podswitch_wire::flow_key::FlowKey;

use super::facts::ReplyFacts;
use super::slot::{Lane, Slot};
use super::sync::{AtomicU32, Mutex, MutexGuard};
use super::{
    Account, CHUNK, ConnectionRef, Direction, ENDS, IndexHash, Known, PORTS, SHARDS, SOURCES,
    TrackerConfig,
};
use crate::flow::chunk::{Chunk, Chunks};
use crate::flow::incremental_index::{BUCKET_BYTES, IncrementalIndex};
use crate::id::PortId;
use crate::nat::ports::NatPorts;
use crate::prefetch::{prefetch, prefetch_address};

/// Buckets of a shard's index at first.
const SMALLEST_INDEX: usize = 4;
/// Load at which a shard's index grows, in eighths. Lower than that of the flow tables: an
/// overflowed bucket would be searched under the shard's lock.
const MAX_LOAD: usize = 5;

/// The data behind one lock.
pub(super) struct Shard {
    /// From [`IndexHash`] to slot number times two, plus one for the reply key of a translated
    /// connection. A connection without translation has one entry for both directions.
    pub(super) index: IncrementalIndex,
    /// Free slots of this shard.
    pub(super) free: Vec<u32>,
    /// Chunks of this shard. Their slots are used for connections whose original key belongs to it.
    pub(super) chunks: Vec<u32>,
}

impl Default for Shard {
    fn default() -> Self {
        let index = IncrementalIndex::new(SMALLEST_INDEX, MAX_LOAD);
        Self { index, free: Vec::new(), chunks: Vec::new() }
    }
}

/// Location of a shard's index in memory, for prefetch without the shard's lock. May be out of date,
/// which costs a useless prefetch. So these are plain atomics in the model, too.
#[derive(Default)]
struct IndexLocation {
    base: AtomicUsize,
    mask: AtomicUsize,
}

/// See the module's description.
pub struct Tracker {
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    locations: Box<[IndexLocation]>,
    pub(super) chunks: Box<[OnceLock<Chunk<Slot>>]>,
    /// Reply keys of the translated connections, for each chunk that has any.
    pub(super) replies: Box<[OnceLock<Chunk<ReplyFacts>>]>,
    /// The source of the memory for both.
    pub(super) memory: Chunks<Slot, ReplyFacts>,
    pub(super) chunks_made: AtomicU32,
    pub(super) live: CachePadded<AtomicU32>,
    by_account: Box<[AtomicU32]>,
    /// Connections of the sources behind VTEPs.
    pub(super) by_source: Box<[AtomicU32]>,
    /// SNAT ports of the connections.
    pub(super) nat: NatPorts,
    pub(super) config: TrackerConfig,
}

impl core::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tracker").field("live", &self.len()).finish_non_exhaustive()
    }
}

impl Tracker {
    /// An empty table.
    pub fn new(config: TrackerConfig) -> Self {
        Self::with_memory(config, Chunks::on_heap())
    }

    /// An empty table with memory for its slots.
    pub(super) fn with_memory(config: TrackerConfig, memory: Chunks<Slot, ReplyFacts>) -> Self {
        let chunks = Self::most_chunks(config.connections);
        Self {
            shards: (0..SHARDS).map(|_| CachePadded::new(Mutex::default())).collect(),
            locations: (0..SHARDS).map(|_| IndexLocation::default()).collect(),
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            replies: (0..chunks).map(|_| OnceLock::new()).collect(),
            memory,
            chunks_made: AtomicU32::new(0),
            live: CachePadded::new(AtomicU32::new(0)),
            by_account: (0..PORTS + ENDS).map(|_| AtomicU32::new(0)).collect(),
            by_source: (0..SOURCES).map(|_| AtomicU32::new(0)).collect(),
            nat: NatPorts::default(),
            config,
        }
    }

    /// The maximum number of chunks of a table for this many connections. Each chunk belongs to one
    /// shard, so every shard may have one that is partly used.
    pub(super) fn most_chunks(connections: u32) -> usize {
        (connections as usize).div_ceil(CHUNK) + SHARDS
    }

    /// Number of live connections.
    pub fn len(&self) -> usize {
        self.live.load(Relaxed) as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The SNAT ports. A port is leased before the connection that uses it is created; the end of
    /// the connection releases it.
    pub fn nat(&self) -> &NatPorts {
        &self.nat
    }

    /// Connections that `port` originated, without those from the tunnel.
    pub fn originated(&self, port: PortId) -> u32 {
        self.charged(Account::of(port, None))
    }

    /// Connections that are charged to an account.
    pub fn charged(&self, account: Account) -> u32 {
        self.count_of(account).map_or(0, |n| n.load(Relaxed))
    }

    pub(super) fn count_of(&self, account: Account) -> Option<&AtomicU32> {
        self.by_account.get(account.index(PORTS))
    }

    pub(super) fn shard_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize % SHARDS
    }

    pub(super) fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The hash by which the index finds connections with the key `key`, whose own hash is `hash`.
    #[inline]
    pub fn index_hash(&self, key: &FlowKey, hash: u64) -> IndexHash {
        IndexHash(if key.is_leading() { hash } else { key.reversed().hash(&self.config.hash_key) })
    }

    pub(super) fn index_hash_of(&self, key: &FlowKey) -> IndexHash {
        self.index_hash(key, key.hash(&self.config.hash_key))
    }

    /// The hash of an entry of the index.
    fn hash_of_entry(&self, entry: u32) -> u64 {
        let number = entry >> 1;
        let of_reply = (entry & 1 == 1).then(|| self.reply_facts(number)).flatten();
        let hash = match of_reply {
            Some(reply) => Some(&reply.index_hash),
            None => self.slot(number).map(|slot| &slot.facts.index_hash),
        };
        hash.map_or(0, |hash| hash.load(Relaxed))
    }

    /// The chunk that contains a slot.
    #[inline]
    pub(super) fn chunk_of(&self, number: u32) -> Option<&[Slot]> {
        self.chunks.get(number as usize / CHUNK)?.get().map(|chunk| &**chunk)
    }

    #[inline]
    pub(super) fn slot(&self, number: u32) -> Option<&Slot> {
        self.chunk_of(number)?.get(number as usize % CHUNK)
    }

    pub(super) fn reply_facts(&self, number: u32) -> Option<&ReplyFacts> {
        let number = number as usize;
        self.replies.get(number / CHUNK)?.get()?.get(number % CHUNK)
    }

    #[inline]
    pub(super) fn lane(&self, connection: ConnectionRef) -> Option<&Lane> {
        let slot = self.slot(connection.slot >> 1)?;
        let lane = &slot.lanes[(connection.slot & 1) as usize];
        (lane.generation.load(Relaxed) == connection.generation).then_some(lane)
    }

    /// Prefetches what a hit on `connection` reads and writes.
    #[inline]
    pub fn prefetch(&self, connection: ConnectionRef) {
        if let Some(slot) = self.slot(connection.slot >> 1) {
            prefetch(&slot.lanes[(connection.slot & 1) as usize]);
        }
    }

    /// Prefetches what [`find`](Self::find) reads. Takes no lock.
    #[inline]
    pub fn prefetch_index(&self, hash: IndexHash) {
        let IndexLocation { base, mask } = &self.locations[self.shard_of(hash.0)];
        let bucket = hash.0 as usize & mask.load(Relaxed);
        prefetch_address(base.load(Relaxed).wrapping_add(bucket * BUCKET_BYTES));
    }

    /// The connection of packets with this key. If there is none, a slot for a new one is
    /// prefetched: most likely it is created next.
    #[inline]
    pub fn find(&self, hash: IndexHash, key: &FlowKey) -> Option<Known> {
        let shard = self.lock(self.shard_of(hash.0));
        let found = self.find_known(&shard, hash, key);
        if found.is_none()
            && let Some(slot) = shard.free.last().and_then(|number| self.slot(*number))
        {
            slot.lanes.iter().for_each(prefetch);
            prefetch(&slot.facts);
        }
        found
    }

    /// Inserts an entry into the shard's index.
    pub(super) fn index_insert(&self, shard: &mut Shard, hash: IndexHash, entry: u32) {
        if shard.index.insert(hash.0, entry, |entry| self.hash_of_entry(entry)) {
            let [base, mask] = shard.index.location();
            let location = &self.locations[self.shard_of(hash.0)];
            location.base.store(base, Relaxed);
            location.mask.store(mask, Relaxed);
        }
    }

    #[inline]
    pub(super) fn find_known(
        &self,
        shard: &Shard,
        hash: IndexHash,
        key: &FlowKey,
    ) -> Option<Known> {
        let (number, direction) = self.find_slot(shard, hash, key)?;
        self.known(number, direction)
    }

    /// Slot and direction of the connection that `key` belongs to. A connection that is being ended
    /// is not found.
    #[inline]
    pub(super) fn find_slot(
        &self,
        shard: &Shard,
        hash: IndexHash,
        key: &FlowKey,
    ) -> Option<(u32, Direction)> {
        let mut found = None;
        shard.index.get(hash.0, |entry| {
            found = self.direction(entry >> 1, key);
            found.is_some()
        });
        found
    }

    /// Which direction of a slot's connection `key` is. The caller holds the lock of a shard whose
    /// index leads to the slot.
    #[inline(never)]
    fn direction(&self, number: u32, key: &FlowKey) -> Option<(u32, Direction)> {
        let slot = self.slot(number)?;
        let direction = slot.facts.direction(key, || self.reply_facts(number))?;
        (slot.generation() & 1 == 1).then_some((number, direction))
    }

    /// The connection of a slot, if the slot is in use. The caller holds the lock of a shard whose
    /// index leads to the slot.
    #[inline(never)]
    pub(super) fn known(&self, number: u32, direction: Direction) -> Option<Known> {
        let slot = self.slot(number)?;
        let generation = slot.generation();
        let connection = ConnectionRef {
            slot: number << 1 | u32::from(direction == Direction::Reply),
            generation,
        };
        let pinned = || slot.facts.pinned(|| self.reply_facts(number));
        (generation & 1 == 1).then(|| Known { connection, pinned: pinned() })
    }

    /// The connection that `key` belongs to.
    pub fn find_key(&self, key: &FlowKey) -> Option<Known> {
        self.find(self.index_hash_of(key), key)
    }

    /// Whether `key` belongs to a connection.
    pub fn is_taken(&self, key: &FlowKey) -> bool {
        self.find_key(key).is_some()
    }

    /// Whether the connection has not ended.
    #[inline]
    pub fn is_alive(&self, connection: ConnectionRef) -> bool {
        self.lane(connection).is_some()
    }

    /// Number of entries in the index.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).index.len()).sum()
    }

    /// Number of free slots.
    #[cfg(test)]
    pub(super) fn spare(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).free.len()).sum()
    }

    /// The maximum number of connections.
    pub fn limit(&self) -> usize {
        self.config.connections as usize
    }

    /// Number of slots that exist, the range that [`sweep`](Self::sweep) covers.
    pub fn slots(&self) -> usize {
        (self.chunks_made.load(Relaxed) as usize).min(self.chunks.len()) * CHUNK
    }

    /// Whether the table is so full that short-lived connections should be ended early.
    pub fn is_under_pressure(&self) -> bool {
        self.live.load(Relaxed) as u64 * 8 >= u64::from(self.config.connections) * 7
    }
}
