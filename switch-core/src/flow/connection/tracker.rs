//! The index from key to connection, and the slots behind it. Compiled a second time by
//! `model.rs`, with locks and atomics that are watched: it takes them, and its dimensions, from
//! the module that it stands in.

#![allow(
    clippy::disallowed_types,
    reason = "shard mutexes are taken on a miss and at the end of a connection, never on a hit"
)]

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::OnceLock;

use crossbeam::utils::CachePadded;
use hashbrown::HashTable;
use wire::flow_key::{FlowKey, proto};

use super::slot::{Lane, Slot, is_over};
use super::sync::{AtomicU32, Mutex, MutexGuard};
use super::{
    CHUNK, ConnectionInfo, ConnectionRef, Created, Direction, Known, PORTS, Pinned, Refused,
    SHARDS, TrackerConfig,
};
use crate::flow::nat::NatPorts;
use crate::id::PortId;

#[derive(Clone, Copy)]
struct Record {
    known: Known,
}

impl Record {
    fn key(&self) -> &FlowKey {
        match self.known.connection.direction() {
            Direction::Original => &self.known.pinned.original,
            Direction::Reply => &self.known.pinned.reply,
        }
    }
}

#[derive(Default)]
struct Shard {
    records: HashTable<Record>,
    /// Slots of this shard that are free.
    free: Vec<u32>,
}

/// See the module's description.
pub struct Tracker {
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    chunks: Box<[OnceLock<Box<[Slot]>>]>,
    chunks_made: AtomicU32,
    live: CachePadded<AtomicU32>,
    by_port: Box<[AtomicU32]>,
    /// Ports that connections were given in place of their clients'.
    nat: NatPorts,
    config: TrackerConfig,
}

impl core::fmt::Debug for Tracker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tracker").field("live", &self.len()).finish_non_exhaustive()
    }
}

impl Tracker {
    /// An empty table.
    pub fn new(config: TrackerConfig) -> Self {
        // A chunk belongs to one shard, so every shard may have one that is not full.
        let chunks = (config.connections as usize).div_ceil(CHUNK) + SHARDS;
        Self {
            shards: (0..SHARDS).map(|_| CachePadded::new(Mutex::default())).collect(),
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            chunks_made: AtomicU32::new(0),
            live: CachePadded::new(AtomicU32::new(0)),
            by_port: (0..PORTS).map(|_| AtomicU32::new(0)).collect(),
            nat: NatPorts::default(),
            config,
        }
    }

    /// Connections alive.
    pub fn len(&self) -> usize {
        self.live.load(Relaxed) as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ports of translated sources. Whoever makes a connection with one leases it before; it is
    /// given back when the connection ends.
    pub fn nat(&self) -> &NatPorts {
        &self.nat
    }

    /// Connections that `port` originated.
    pub fn originated(&self, port: PortId) -> u32 {
        self.by_port.get(port.index()).map_or(0, |n| n.load(Relaxed))
    }

    fn shard_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize % SHARDS
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[inline]
    fn slot(&self, number: u32) -> Option<&Slot> {
        let number = number as usize;
        self.chunks.get(number / CHUNK)?.get()?.get(number % CHUNK)
    }

    #[inline]
    pub(super) fn lane(&self, connection: ConnectionRef) -> Option<&Lane> {
        let slot = self.slot(connection.slot >> 1)?;
        let lane = &slot.lanes[(connection.slot & 1) as usize];
        (lane.generation.load(Relaxed) == connection.generation).then_some(lane)
    }

    /// Brings near what a hit on `connection` will touch.
    #[inline]
    pub fn prefetch(&self, connection: ConnectionRef) {
        if let Some(slot) = self.slot(connection.slot >> 1) {
            crate::prefetch::prefetch(&slot.lanes[(connection.slot & 1) as usize]);
        }
    }

    /// The connection that packets with this key belong to.
    pub fn find(&self, hash: u64, key: &FlowKey) -> Option<Known> {
        let shard = self.lock(self.shard_of(hash));
        shard.records.find(hash, |r| r.key() == key).map(|r| r.known)
    }

    /// Whether `key` is taken as a direction of some connection.
    pub fn is_taken(&self, key: &FlowKey) -> bool {
        self.find(key.hash(&self.config.hash_key), key).is_some()
    }

    /// Makes the connection `pinned`, or finds the one that is already there for its original
    /// key. Both directions are in the index when this returns.
    ///
    /// # Errors
    /// [`Refused`] says which bound was hit; nothing was changed.
    pub fn create(&self, pinned: &Pinned, now_secs: u32) -> Result<Created, Refused> {
        // Both counts are taken before the connection can be seen, and so ended, by others.
        let charge = self.by_port.get(pinned.origin.index());
        if charge.is_some_and(|n| !take_below(n, self.config.per_port)) {
            return Err(Refused::PortLimit);
        }
        let made = if take_below(&self.live, self.config.connections) {
            let hash = |key: &FlowKey| key.hash(&self.config.hash_key);
            let made =
                self.create_locked(pinned, [hash(&pinned.original), hash(&pinned.reply)], now_secs);
            if !matches!(made, Ok(Created::New(_))) {
                self.live.fetch_sub(1, Relaxed);
            }
            made
        } else {
            Err(Refused::Full)
        };
        if !matches!(made, Ok(Created::New(_)))
            && let Some(n) = charge
        {
            n.fetch_sub(1, Relaxed);
        }
        made
    }

    fn create_locked(
        &self,
        pinned: &Pinned,
        hashes: [u64; 2],
        now_secs: u32,
    ) -> Result<Created, Refused> {
        let [first, second] = hashes.map(|h| self.shard_of(h));
        // Always the lower shard first, so that two workers never wait for each other.
        let mut low = self.lock(first.min(second));
        let mut high = (first != second).then(|| self.lock(first.max(second)));
        let (home, mut other) = match &mut high {
            None => (&mut *low, None),
            Some(high) if first < second => (&mut *low, Some(&mut **high)),
            Some(high) => (&mut **high, Some(&mut *low)),
        };
        if let Some(found) = home.records.find(hashes[0], |r| *r.key() == pinned.original) {
            return Ok(Created::Existing(found.known));
        }
        let reply_shard = other.as_deref_mut().unwrap_or(&mut *home);
        if reply_shard.records.find(hashes[1], |r| *r.key() == pinned.reply).is_some() {
            return Err(Refused::Collision);
        }
        let number = self.take_slot(home).ok_or(Refused::Full)?;
        let known = self.open(number, pinned, hashes, now_secs);
        let rehash = |r: &Record| r.key().hash(&self.config.hash_key);
        home.records.insert_unique(hashes[0], Record { known }, rehash);
        let reversed = Known { connection: known.connection.reversed(), ..known };
        let reply_shard = other.unwrap_or(home);
        // A connection to oneself with equal ports is its own reply: one record is enough.
        if pinned.original != pinned.reply {
            reply_shard.records.insert_unique(hashes[1], Record { known: reversed }, rehash);
        }
        Ok(Created::New(known))
    }

    fn take_slot(&self, shard: &mut Shard) -> Option<u32> {
        if let Some(number) = shard.free.pop() {
            return Some(number);
        }
        let chunk = self.chunks_made.fetch_add(1, Relaxed) as usize;
        let Some(cell) = self.chunks.get(chunk) else {
            self.chunks_made.fetch_sub(1, Relaxed);
            return None;
        };
        cell.get_or_init(|| {
            (0..CHUNK).map(|_| Slot { lanes: [Lane::new(), Lane::new()] }).collect()
        });
        let base = (chunk * CHUNK) as u32;
        shard.free.extend((base + 1..base + CHUNK as u32).rev());
        Some(base)
    }

    fn open(&self, number: u32, pinned: &Pinned, hashes: [u64; 2], now_secs: u32) -> Known {
        let slot = self.slot(number).expect("a slot that was taken exists");
        let generation = slot.lanes[0].generation.load(Relaxed).wrapping_add(1) | 1;
        for (lane, hash) in slot.lanes.iter().zip(hashes) {
            lane.last_seen.store(now_secs, Relaxed);
            lane.state.store(0, Relaxed);
            lane.seq_end.store(0, Relaxed);
            lane.ack.store(0, Relaxed);
            lane.window.store(0, Relaxed);
            lane.scale.store(14, Relaxed);
            lane.settled.store(0, Relaxed);
            lane.packets.store(0, Relaxed);
            lane.bytes.store(0, Relaxed);
            lane.hash.store(hash, Relaxed);
            let about = u32::from(pinned.original.proto) | u32::from(pinned.origin.0) << 8;
            lane.about.store(about, Relaxed);
            lane.generation.store(generation, Release);
        }
        let connection = ConnectionRef { slot: number << 1, generation };
        Known { connection, pinned: *pinned }
    }

    /// Whether the connection is still the one that `connection` was made for.
    #[inline]
    pub fn is_alive(&self, connection: ConnectionRef) -> bool {
        self.lane(connection).is_some()
    }

    /// Ends a connection: both keys leave the index, the slot is free for another.
    pub fn end(&self, connection: ConnectionRef) -> bool {
        let Some(slot) = self.slot(connection.slot >> 1) else { return false };
        self.end_slot(connection.slot >> 1, slot, connection.generation)
    }

    fn end_slot(&self, number: u32, slot: &Slot, generation: u32) -> bool {
        let next = generation.wrapping_add(1);
        // Whoever moves the generation ends the connection; all others find it gone.
        let claimed =
            slot.lanes[0].generation.compare_exchange(generation, next, Acquire, Relaxed).is_ok();
        if !claimed {
            return false;
        }
        slot.lanes[1].generation.store(next, Release);
        let mut pinned = None;
        for lane in &slot.lanes {
            let hash = lane.hash.load(Relaxed);
            let mut shard = self.lock(self.shard_of(hash));
            let ours = |r: &Record| {
                r.known.connection.slot >> 1 == number
                    && r.known.connection.generation == generation
            };
            if let Ok(entry) = shard.records.find_entry(hash, ours) {
                pinned = Some(entry.remove().0.known.pinned);
            }
        }
        // Only now that nothing leads to the port any more may another connection have it.
        if let Some(pinned) = pinned {
            self.nat.release(&pinned);
        }
        let origin = slot.lanes[0].about.load(Relaxed) >> 8;
        let home = self.shard_of(slot.lanes[0].hash.load(Relaxed));
        self.lock(home).free.push(number);
        if let Some(n) = self.by_port.get(origin as usize) {
            n.fetch_sub(1, Relaxed);
        }
        self.live.fetch_sub(1, Relaxed);
        true
    }

    /// Slots that are free.
    #[cfg(test)]
    pub(super) fn spare(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).free.len()).sum()
    }

    /// Slots that exist, for [`sweep`](Self::sweep) to go round.
    pub fn slots(&self) -> usize {
        (self.chunks_made.load(Relaxed) as usize).min(self.chunks.len()) * CHUNK
    }

    /// Ends what has been idle too long among the slots `from..from + count`. Each worker looks
    /// after its own share. Under `pressure` closed, embryonic and unreplied connections go after
    /// [`PRESSURE_SECS`](super::PRESSURE_SECS) (RFC 5382 REQ-5 and RFC 4787 leave that to need; T-C5).
    pub fn sweep(&self, from: usize, count: usize, now_secs: u32, pressure: bool) -> usize {
        let mut ended = 0;
        for number in from..from + count {
            let Some(slot) = self.slot(number as u32) else { break };
            let generation = slot.lanes[0].generation.load(Acquire);
            if generation & 1 == 1 && is_over(slot, now_secs, pressure) {
                ended += usize::from(self.end_slot(number as u32, slot, generation));
            }
        }
        ended
    }

    /// Whether the table is so full that short-lived state should go early.
    pub fn is_under_pressure(&self) -> bool {
        self.live.load(Relaxed) as u64 * 8 >= u64::from(self.config.connections) * 7
    }

    /// Every connection alive, shard by shard; not a snapshot of one moment.
    pub fn list(&self, mut each: impl FnMut(ConnectionInfo)) {
        for shard in 0..SHARDS {
            let known: Vec<Known> = self
                .lock(shard)
                .records
                .iter()
                .map(|r| r.known)
                .filter(|k| k.connection.direction() == Direction::Original)
                .collect();
            for k in known {
                let lanes = [self.lane(k.connection), self.lane(k.connection.reversed())];
                let [Some(a), Some(b)] = lanes else { continue };
                let is_tcp = k.pinned.original.proto == proto::TCP;
                each(ConnectionInfo {
                    pinned: k.pinned,
                    packets: [a.packets.load(Relaxed), b.packets.load(Relaxed)],
                    bytes: [a.bytes.load(Relaxed), b.bytes.load(Relaxed)],
                    tcp: is_tcp.then(|| [a.side().state, b.side().state]),
                    last_seen: a.last_seen.load(Relaxed).max(b.last_seen.load(Relaxed)),
                });
            }
        }
    }
}

/// Counts one more, unless that would be more than `limit`.
fn take_below(count: &AtomicU32, limit: u32) -> bool {
    count.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).is_ok()
}
