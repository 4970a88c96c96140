//! The index from key to connection, and the slots behind it. Compiled a second time by
//! `model.rs`, with locks and atomics that are watched: it takes them, and its dimensions, from
//! the module that it stands in.

#![allow(
    clippy::disallowed_types,
    reason = "shard mutexes are taken on a miss and at the end of a connection, never on a hit"
)]

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::OnceLock;

use crossbeam::utils::CachePadded;
use podswitch_vxlan::vtep::EndIndex;
use podswitch_wire::flow_key::{FlowKey, proto};

use super::facts::{Answer, Facts};
use super::slot::{Lane, Slot};
use super::sync::{AtomicU32, Mutex, MutexGuard};
use super::{
    Account, CHUNK, Charge, ConnectionInfo, ConnectionRef, Created, Direction, ENDS, Known, PORTS,
    Pinned, Place, Refused, SHARDS, SOURCES, TrackerConfig,
};
use crate::flow::growing::Growing;
use crate::flow::nat::NatPorts;
use crate::flow::table::index::Bucket;
use crate::id::PortId;
use crate::prefetch::{prefetch, prefetch_address};

/// Bytes of a bucket of the index.
const BUCKET: usize = size_of::<Bucket>();

/// What is behind one lock.
#[derive(Default)]
pub(super) struct Shard {
    /// Slot numbers times two by place, see [`Tracker::place`]; plus one for the reply of a
    /// connection that is translated. Any other connection is there once for both directions.
    pub(super) index: Growing,
    /// Slots of this shard that are free.
    pub(super) free: Vec<u32>,
    /// Chunks of this shard: a slot is used for connections whose original key belongs here.
    chunks: Vec<u32>,
}

/// See [`Tracker::hints`]. Plain atomics also where others are watched: what they say decides nothing.
#[derive(Default)]
struct Hint {
    base: AtomicUsize,
    mask: AtomicUsize,
}

/// See the module's description.
pub struct Tracker {
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    /// Where each shard's index is in memory, to bring parts of it near without its lock; may be of
    /// an index that is gone.
    hints: Box<[Hint]>,
    pub(super) chunks: Box<[OnceLock<Box<[Slot]>>]>,
    /// Replies of the translated connections of each chunk, if it has any.
    answers: Box<[OnceLock<Box<[Answer]>>]>,
    chunks_made: AtomicU32,
    pub(super) live: CachePadded<AtomicU32>,
    by_account: Box<[AtomicU32]>,
    /// Connections of the sources behind tunnel ends.
    by_source: Box<[AtomicU32]>,
    /// Ports that connections were given in place of their clients'.
    pub(super) nat: NatPorts,
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
            hints: (0..SHARDS).map(|_| Hint::default()).collect(),
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            answers: (0..chunks).map(|_| OnceLock::new()).collect(),
            chunks_made: AtomicU32::new(0),
            live: CachePadded::new(AtomicU32::new(0)),
            by_account: (0..PORTS + ENDS).map(|_| AtomicU32::new(0)).collect(),
            by_source: (0..SOURCES).map(|_| AtomicU32::new(0)).collect(),
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

    /// Connections that `port` originated, those through tunnels apart.
    pub fn originated(&self, port: PortId) -> u32 {
        self.charged(Account::of(port, None))
    }

    /// Connections that are charged to an account.
    pub fn charged(&self, account: Account) -> u32 {
        self.count_of(account).map_or(0, |n| n.load(Relaxed))
    }

    fn count_of(&self, account: Account) -> Option<&AtomicU32> {
        self.by_account.get(account.index(PORTS))
    }

    pub(super) fn shard_of(&self, place: u64) -> usize {
        (place >> 32) as usize % SHARDS
    }

    pub(super) fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Where the connections of `key`, whose hash is `hash`, are in the index.
    #[inline]
    pub fn place(&self, key: &FlowKey, hash: u64) -> Place {
        Place(if key.is_leading() { hash } else { key.reversed().hash(&self.config.hash_key) })
    }

    fn place_of(&self, key: &FlowKey) -> Place {
        self.place(key, key.hash(&self.config.hash_key))
    }

    /// Where an entry of the index is in it.
    fn place_of_entry(&self, entry: u32) -> u64 {
        let number = entry >> 1;
        let of_reply = (entry & 1 == 1).then(|| self.answer(number)).flatten();
        let place = match of_reply {
            Some(answer) => Some(&answer.place),
            None => self.slot(number).map(|slot| &slot.facts.place),
        };
        place.map_or(0, |place| place.load(Relaxed))
    }

    /// The chunk that a slot is of.
    #[inline]
    pub(super) fn chunk_of(&self, number: u32) -> Option<&[Slot]> {
        self.chunks.get(number as usize / CHUNK)?.get().map(|chunk| &**chunk)
    }

    #[inline]
    pub(super) fn slot(&self, number: u32) -> Option<&Slot> {
        self.chunk_of(number)?.get(number as usize % CHUNK)
    }

    pub(super) fn answer(&self, number: u32) -> Option<&Answer> {
        let number = number as usize;
        self.answers.get(number / CHUNK)?.get()?.get(number % CHUNK)
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
            prefetch(&slot.lanes[(connection.slot & 1) as usize]);
        }
    }

    /// Brings near what [`find`](Self::find) will look at. Takes no lock.
    #[inline]
    pub fn prefetch_place(&self, place: Place) {
        let Hint { base, mask } = &self.hints[self.shard_of(place.0)];
        let bucket = place.0 as usize & mask.load(Relaxed);
        prefetch_address(base.load(Relaxed).wrapping_add(bucket * BUCKET));
    }

    /// The connection that packets with this key belong to. Where there is none one will be made,
    /// most likely: its slot is brought near.
    #[inline]
    pub fn find(&self, place: Place, key: &FlowKey) -> Option<Known> {
        let shard = self.lock(self.shard_of(place.0));
        let found = self.known_in(&shard, place, key);
        if found.is_none()
            && let Some(slot) = shard.free.last().and_then(|number| self.slot(*number))
        {
            slot.lanes.iter().for_each(prefetch);
            prefetch(&slot.facts);
        }
        found
    }

    fn enter(&self, shard: &mut Shard, place: Place, entry: u32) {
        if shard.index.insert(place.0, entry, |entry| self.place_of_entry(entry)) {
            let [base, mask] = shard.index.whereabouts();
            let hint = &self.hints[self.shard_of(place.0)];
            hint.base.store(base, Relaxed);
            hint.mask.store(mask, Relaxed);
        }
    }

    #[inline]
    fn known_in(&self, shard: &Shard, place: Place, key: &FlowKey) -> Option<Known> {
        let (number, direction) = self.find_in(shard, place, key)?;
        self.known(number, direction)
    }

    /// The slot of the connection that `key` is a direction of, unless it is about to go.
    #[inline]
    fn find_in(&self, shard: &Shard, place: Place, key: &FlowKey) -> Option<(u32, Direction)> {
        let mut found = None;
        shard.index.get(place.0, |entry| {
            found = self.direction(entry >> 1, key);
            found.is_some()
        });
        found
    }

    /// Which direction of a slot's connection `key` is. The lock of a shard is held that leads to it.
    #[inline(never)]
    fn direction(&self, number: u32, key: &FlowKey) -> Option<(u32, Direction)> {
        let slot = self.slot(number)?;
        let direction = slot.facts.direction(key, || self.answer(number))?;
        (slot.generation() & 1 == 1).then_some((number, direction))
    }

    /// The connection of a slot, if it is used. The lock of a shard is held that leads to it.
    #[inline(never)]
    fn known(&self, number: u32, direction: Direction) -> Option<Known> {
        let slot = self.slot(number)?;
        let generation = slot.generation();
        let connection = ConnectionRef {
            slot: number << 1 | u32::from(direction == Direction::Reply),
            generation,
        };
        let is_used = generation & 1 == 1;
        is_used.then(|| Known { connection, pinned: slot.facts.pinned(|| self.answer(number)) })
    }

    /// The connection that `key` is a direction of.
    pub fn known_by(&self, key: &FlowKey) -> Option<Known> {
        self.find(self.place_of(key), key)
    }

    /// Whether `key` is taken as a direction of some connection.
    pub fn is_taken(&self, key: &FlowKey) -> bool {
        self.known_by(key).is_some()
    }

    /// Makes the connection `pinned`, or finds the one that is already there for its original
    /// key. Both directions are in the index when this returns.
    ///
    /// # Errors
    /// [`Refused`] says which bound was hit; nothing was changed.
    pub fn create(&self, pinned: &Pinned, now_secs: u32) -> Result<Created, Refused> {
        self.create_at(self.place_of(&pinned.original), pinned, now_secs)
    }

    /// As [`create`](Self::create), where the place of the original key is known.
    ///
    /// # Errors
    /// As `create`.
    #[inline]
    pub fn create_at(
        &self,
        place: Place,
        pinned: &Pinned,
        now_secs: u32,
    ) -> Result<Created, Refused> {
        // All counts are taken before the connection can be seen, and so ended, by others.
        self.charge(pinned)?;
        let reply = pinned.original.reversed();
        let made = if pinned.reply == reply {
            self.create_plain(place, pinned, &reply, now_secs)
        } else {
            self.create_translated(place, pinned, now_secs)
        };
        if !matches!(made, Ok(Created::New(_))) {
            self.live.fetch_sub(1, Relaxed);
            self.discharge_all(pinned);
        }
        made
    }

    /// One place for both directions, and one lock.
    #[inline]
    fn create_plain(
        &self,
        place: Place,
        pinned: &Pinned,
        reply: &FlowKey,
        now_secs: u32,
    ) -> Result<Created, Refused> {
        let mut home = self.lock(self.shard_of(place.0));
        if home.index.may_have(place.0) {
            if let Some(known) = self.known_in(&home, place, &pinned.original) {
                return Ok(Created::Existing(known));
            }
            if self.find_in(&home, place, reply).is_some() {
                return Err(Refused::Collision);
            }
        }
        let number = self.take_slot(&mut home).ok_or(Refused::Full)?;
        let connection = self.open(number, pinned, place, now_secs).ok_or(Refused::Full)?;
        self.enter(&mut home, place, number << 1);
        Ok(Created::New(connection))
    }

    fn create_translated(
        &self,
        place: Place,
        pinned: &Pinned,
        now_secs: u32,
    ) -> Result<Created, Refused> {
        let reply_place = self.place_of(&pinned.reply);
        let [first, second] = [place, reply_place].map(|place| self.shard_of(place.0));
        // Always the lower shard first, so that two workers never wait for each other.
        let mut low = self.lock(first.min(second));
        let mut high = (first != second).then(|| self.lock(first.max(second)));
        let (home, other) = match &mut high {
            None => (&mut *low, None),
            Some(high) if first < second => (&mut *low, Some(&mut **high)),
            Some(high) => (&mut **high, Some(&mut *low)),
        };
        if let Some(known) = self.known_in(home, place, &pinned.original) {
            return Ok(Created::Existing(known));
        }
        let reply_shard = other.as_deref().unwrap_or(home);
        if self.find_in(reply_shard, reply_place, &pinned.reply).is_some() {
            return Err(Refused::Collision);
        }
        let number = self.take_slot(home).ok_or(Refused::Full)?;
        self.answer_for(number).ok_or(Refused::Full)?.store(&pinned.reply, reply_place.0);
        let connection = self.open(number, pinned, place, now_secs).ok_or(Refused::Full)?;
        self.enter(home, place, number << 1);
        self.enter(other.unwrap_or(home), reply_place, number << 1 | 1);
        Ok(Created::New(connection))
    }

    /// Counts one more connection in the table, of its account and its source.
    #[inline]
    fn charge(&self, pinned: &Pinned) -> Result<(), Refused> {
        let TrackerConfig { connections, per_port, .. } = self.config;
        let account = pinned.account();
        let free = connections.saturating_sub(self.live.load(Relaxed));
        if free == 0 {
            return Err(Refused::Full);
        }
        let share = per_port.min(free);
        if self.count_of(account).is_some_and(|count| !take_below(count, share)) {
            return Err(Refused::Limit(Charge { account, source: None }));
        }
        if let Some(end) = pinned.origin_end {
            let others = self.charged(account).saturating_sub(1);
            let share = per_port.saturating_sub(others);
            let source = self.source_of(&pinned.original, end);
            if self.by_source.get(source).is_some_and(|count| !take_below(count, share)) {
                self.discharge(account, 1);
                return Err(Refused::Limit(Charge { account, source: Some(source as u32) }));
            }
        }
        if !take_below(&self.live, connections) {
            self.discharge_all(pinned);
            return Err(Refused::Full);
        }
        Ok(())
    }

    /// Counts one less of the account and the source of a connection that is not made after all.
    fn discharge_all(&self, pinned: &Pinned) {
        self.discharge(pinned.account(), 1);
        if let Some(end) = pinned.origin_end {
            self.discharge_source(&pinned.original, end);
        }
    }

    /// Counts so many less.
    pub(super) fn discharge(&self, account: Account, connections: u32) {
        if let Some(n) = self.count_of(account) {
            n.fetch_sub(connections, Relaxed);
        }
    }

    pub(super) fn discharge_source(&self, original: &FlowKey, end: EndIndex) {
        if let Some(n) = self.by_source.get(self.source_of(original, end)) {
            n.fetch_sub(1, Relaxed);
        }
    }

    /// Which count is that of the source of packets with this key that come through a tunnel.
    fn source_of(&self, original: &FlowKey, end: EndIndex) -> usize {
        let FlowKey { src, family, .. } = *original;
        let [src_port, dst_port] = [end.0 as u16, (end.0 >> 16) as u16];
        let key = FlowKey { src, family, src_port, dst_port, ..FlowKey::default() };
        key.hash(&self.config.hash_key) as usize % SOURCES
    }

    /// Whether a connection is charged to the same account, or source, as another.
    pub(super) fn is_charged(&self, facts: &Facts, charge: &Charge) -> bool {
        facts.account() == charge.account
            && charge.source.is_none_or(|source| {
                let its = |end| self.source_of(&facts.original(), end) as u32 == source;
                facts.origin_end().is_some_and(its)
            })
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
        cell.get_or_init(|| (0..CHUNK).map(|_| Slot::new()).collect());
        shard.chunks.push(chunk as u32);
        let base = (chunk * CHUNK) as u32;
        shard.free.extend((base + 1..base + CHUNK as u32).rev());
        Some(base)
    }

    /// Where the reply of a translated connection in a slot stands.
    fn answer_for(&self, number: u32) -> Option<&Answer> {
        let number = number as usize;
        let cell = self.answers.get(number / CHUNK)?;
        cell.get_or_init(|| (0..CHUNK).map(|_| Answer::new()).collect()).get(number % CHUNK)
    }

    #[inline]
    fn open(
        &self,
        number: u32,
        pinned: &Pinned,
        place: Place,
        now_secs: u32,
    ) -> Option<ConnectionRef> {
        let slot = self.slot(number)?;
        slot.facts.store(pinned, place.0);
        let generation = slot.open(pinned.original.proto, now_secs);
        Some(ConnectionRef { slot: number << 1, generation })
    }

    /// Whether the connection is still the one that `connection` was made for.
    #[inline]
    pub fn is_alive(&self, connection: ConnectionRef) -> bool {
        self.lane(connection).is_some()
    }

    /// Entries of the index.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).index.len()).sum()
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

    /// Whether the table is so full that short-lived state should go early.
    pub fn is_under_pressure(&self) -> bool {
        self.live.load(Relaxed) as u64 * 8 >= u64::from(self.config.connections) * 7
    }

    /// Every connection alive, chunk by chunk; not a snapshot of one moment.
    pub fn list(&self, mut each: impl FnMut(ConnectionInfo)) {
        for shard in 0..SHARDS {
            for place in 0.. {
                let Some(chunk) = self.lock(shard).chunks.get(place).copied() else { break };
                for k in self.known_of(shard, chunk) {
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

    fn known_of(&self, shard: usize, chunk: u32) -> Vec<Known> {
        // While it is held no slot of the shard begins another connection.
        let _held = self.lock(shard);
        let base = chunk * CHUNK as u32;
        let numbers = base..base + CHUNK as u32;
        numbers.filter_map(|number| self.known(number, Direction::Original)).collect()
    }
}

/// Counts one more, unless that would be more than `limit`.
fn take_below(count: &AtomicU32, limit: u32) -> bool {
    count.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).is_ok()
}
