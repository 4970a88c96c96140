//! Connections, shared by all workers: whatever worker a packet of either direction arrives at,
//! it finds the same connection, and two first packets at once make one.
//!
//! Two parts. The *index* maps the key of each direction to the connection's pinned facts; it is
//! split into shards, each behind a mutex, and only touched when a worker meets a key that its
//! own flow table does not have (the miss path), and when connections end. The *slots* hold what
//! changes with packets (TCP sides, counters, last packet) as relaxed atomics, one cache line for
//! each direction, which the hit path reads and writes without any lock. See decision record
//! 0002 for what was weighed against it.
//!
//! A slot is used again under a new generation. A worker's entry remembers the generation, so an
//! entry of a connection that ended is a miss and never applies to another connection.

#![expect(
    clippy::disallowed_types,
    reason = "shard mutexes are taken on a miss and at the end of a connection, never on a hit"
)]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, MutexGuard, OnceLock};

use crossbeam::utils::CachePadded;
use hashbrown::HashTable;
use wire::flow_key::{FlowKey, HashKey, proto};

use crate::id::PortId;

use super::tcp::{self, Segment, Side, TcpState};

/// Slots are made this many at a time.
const CHUNK: usize = 256;
/// Enough that two workers seldom want the same one.
const SHARDS: usize = 64;

/// One direction of a connection, as a worker's entry remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionRef {
    /// Slot number times two, plus one for the reply direction.
    slot: u32,
    generation: u32,
}

impl ConnectionRef {
    /// No connection.
    pub const NONE: ConnectionRef = ConnectionRef { slot: u32::MAX, generation: 0 };

    /// Whether this is no connection.
    #[inline]
    pub const fn is_none(self) -> bool {
        self.slot == u32::MAX
    }

    /// The direction: from the originator, or the reply.
    #[inline]
    pub const fn direction(self) -> Direction {
        if self.slot & 1 == 0 { Direction::Original } else { Direction::Reply }
    }

    /// The other direction of the same connection.
    #[inline]
    pub const fn reversed(self) -> Self {
        Self { slot: self.slot ^ 1, generation: self.generation }
    }
}

/// Direction of a packet within its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Direction {
    /// As its first packet went.
    Original,
    /// The answers.
    Reply,
}

/// What never changes while the connection lives. Survives every configuration change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Key of the original direction as packets come in.
    pub original: FlowKey,
    /// Key of the reply direction as packets come in: the reverse of the original after
    /// translation.
    pub reply: FlowKey,
    /// Port by which the originator came in; limits are charged to it.
    pub origin: PortId,
}

impl Pinned {
    /// Whether packets are translated at all.
    #[inline]
    pub fn is_translated(&self) -> bool {
        self.reply != self.original.reversed()
    }
}

/// A connection found in the index, seen from one direction.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The connection and the direction of the key that was asked for.
    pub connection: ConnectionRef,
    /// Its pinned facts.
    pub pinned: Pinned,
}

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

/// What changes with the packets of one direction. One cache line.
#[repr(C, align(64))]
struct Lane {
    /// Odd while the slot is in use; the same in both lanes.
    generation: AtomicU32,
    /// Seconds.
    last_seen: AtomicU32,
    state: AtomicU32,
    seq_end: AtomicU32,
    ack: AtomicU32,
    window: AtomicU32,
    scale: AtomicU32,
    /// One while both sides are established and neither has closed: a plain segment then has
    /// nothing to say about the other side, whose lane need not be read.
    settled: AtomicU32,
    /// Protocol (low 8 bits), then the origin port; only of lane 0.
    about: AtomicU32,
    packets: AtomicU64,
    bytes: AtomicU64,
    /// Hash of this direction's key, to find its record.
    hash: AtomicU64,
}

const _: () = assert!(size_of::<Lane>() == 64);

impl Lane {
    const fn new() -> Self {
        Self {
            generation: AtomicU32::new(0),
            last_seen: AtomicU32::new(0),
            state: AtomicU32::new(0),
            seq_end: AtomicU32::new(0),
            ack: AtomicU32::new(0),
            window: AtomicU32::new(0),
            scale: AtomicU32::new(0),
            settled: AtomicU32::new(0),
            about: AtomicU32::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            hash: AtomicU64::new(0),
        }
    }

    fn side(&self) -> Side {
        Side {
            state: TcpState::from_raw(self.state.load(Relaxed)),
            seq_end: self.seq_end.load(Relaxed),
            ack: self.ack.load(Relaxed),
            window: self.window.load(Relaxed),
            scale: self.scale.load(Relaxed) as u8,
        }
    }

    /// One worker writes a lane at nearly every time; where two do, a count may be lost, which
    /// is worth the plain store.
    #[inline]
    fn count(&self, bytes: u64) {
        self.packets.store(self.packets.load(Relaxed).wrapping_add(1), Relaxed);
        self.bytes.store(self.bytes.load(Relaxed).wrapping_add(bytes), Relaxed);
    }

    #[inline]
    fn advance(&self, segment: &Segment) {
        let seen = self.seq_end.load(Relaxed);
        if tcp::seq_le(seen, segment.end) {
            self.seq_end.store(segment.end, Relaxed);
        }
        if segment.flags & wire::parse::tcp_flags::ACK != 0 {
            let acked = self.ack.load(Relaxed);
            if tcp::seq_le(acked, segment.ack) || acked == 0 {
                self.ack.store(segment.ack, Relaxed);
            }
            self.window.store(u32::from(segment.window) << self.scale.load(Relaxed), Relaxed);
        }
    }
}

struct Slot {
    lanes: [Lane; 2],
}

#[derive(Default)]
struct Shard {
    records: HashTable<Record>,
    /// Slots of this shard that are free.
    free: Vec<u32>,
}

/// Bounds of the connection table.
#[derive(Clone, Copy, Debug)]
pub struct TrackerConfig {
    /// The most connections in all.
    pub connections: u32,
    /// The most connections that one port may originate.
    pub per_port: u32,
    /// Secret hash key of this process; the same as the flow tables'.
    pub hash_key: HashKey,
}

/// Why a connection was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The table is full and nothing in it could go early.
    Full,
    /// The originating port has as many as it may.
    PortLimit,
    /// Another connection has the reply's key (a translation that collides).
    Collision,
}

/// What became of making a connection.
#[derive(Clone, Copy, Debug)]
pub enum Created {
    /// It is new.
    New(Known),
    /// Another worker, or the other direction, was first.
    Existing(Known),
}

/// A connection as `flows` lists it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Pinned facts.
    pub pinned: Pinned,
    /// Packets by direction.
    pub packets: [u64; 2],
    /// Octets by direction.
    pub bytes: [u64; 2],
    /// TCP states by direction; `None` for other protocols.
    pub tcp: Option<[TcpState; 2]>,
    /// Second of the last packet.
    pub last_seen: u32,
}

/// See the module's description.
pub struct Tracker {
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    chunks: Box<[OnceLock<Box<[Slot]>>]>,
    chunks_made: AtomicU32,
    live: CachePadded<AtomicU32>,
    by_port: Box<[AtomicU32]>,
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
            by_port: (0..PortId::MAX_PORTS).map(|_| AtomicU32::new(0)).collect(),
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
    fn lane(&self, connection: ConnectionRef) -> Option<&Lane> {
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

    /// A packet that is no TCP hit the connection. False: the connection has ended meanwhile.
    #[inline]
    pub fn touch(&self, connection: ConnectionRef, bytes: usize, now_secs: u32) -> bool {
        let Some(lane) = self.lane(connection) else { return false };
        if lane.last_seen.load(Relaxed) != now_secs {
            lane.last_seen.store(now_secs, Relaxed);
        }
        lane.count(bytes as u64);
        true
    }

    /// A TCP segment with neither SYN, FIN nor RST hit the connection. False: it has ended.
    #[inline]
    pub fn touch_tcp(
        &self,
        connection: ConnectionRef,
        segment: &Segment,
        bytes: usize,
        now_secs: u32,
    ) -> bool {
        let Some(lane) = self.lane(connection) else { return false };
        if lane.last_seen.load(Relaxed) != now_secs {
            lane.last_seen.store(now_secs, Relaxed);
        }
        lane.count(bytes as u64);
        if lane.settled.load(Relaxed) == 1 && tcp::seq_le(segment.seq, lane.seq_end.load(Relaxed)) {
            lane.advance(segment);
            return true;
        }
        self.plain_segment(connection, lane, segment);
        true
    }

    /// A plain segment that is not simply the next of an established side.
    #[inline(never)]
    fn plain_segment(&self, connection: ConnectionRef, lane: &Lane, segment: &Segment) {
        let Some(peer) = self.lane(connection.reversed()) else { return };
        let (own, other) = (lane.side(), peer.side());
        if own.state == TcpState::None {
            // Picked up in mid-stream: both ends know each other already.
            lane.state.fetch_max(TcpState::Established as u32, Relaxed);
            lane.seq_end.store(segment.end, Relaxed);
            lane.advance(segment);
        } else {
            let window = other.window.max(65_535);
            let limit = other.ack.wrapping_add(window);
            if other.ack == 0 || tcp::seq_le(segment.end, limit) {
                lane.advance(segment);
            }
        }
        self.acknowledge(peer, segment);
        let established = |l: &Lane| l.state.load(Relaxed) == TcpState::Established as u32;
        if established(lane) && established(peer) {
            lane.settled.store(1, Relaxed);
        }
    }

    /// What an acknowledgment says about the side that it acknowledges.
    fn acknowledge(&self, peer: &Lane, segment: &Segment) {
        if segment.flags & wire::parse::tcp_flags::ACK == 0 {
            return;
        }
        let side = peer.side();
        let next = match side.state {
            TcpState::SynSent if segment.ack == side.seq_end => TcpState::Established,
            TcpState::Closing if tcp::seq_le(side.seq_end, segment.ack) => TcpState::Closed,
            _ => return,
        };
        peer.state.fetch_max(next as u32, Relaxed);
    }

    /// A TCP segment with SYN, FIN or RST: judged against the window of the other side, and the
    /// states moved. `None`: the connection has ended.
    pub fn control_segment(
        &self,
        connection: ConnectionRef,
        segment: &Segment,
        scale: Option<u8>,
        bytes: usize,
        now_secs: u32,
    ) -> Option<tcp::Judgement> {
        use wire::parse::tcp_flags::{ACK, FIN, RST, SYN};
        let own = self.lane(connection)?;
        let peer = self.lane(connection.reversed())?;
        let judgement = tcp::judge(segment, &own.side(), &peer.side());
        if judgement != tcp::Judgement::Fits {
            return Some(judgement);
        }
        own.last_seen.store(now_secs, Relaxed);
        own.count(bytes as u64);
        own.settled.store(0, Relaxed);
        peer.settled.store(0, Relaxed);
        if segment.flags & RST != 0 {
            own.state.fetch_max(TcpState::Reset as u32, Relaxed);
            peer.state.fetch_max(TcpState::Reset as u32, Relaxed);
            return Some(judgement);
        }
        if segment.flags & SYN != 0 && own.state.load(Relaxed) > TcpState::SynSent as u32 {
            // Nothing that an end believes without a challenge (RFC 5961 §4): it moves nothing.
            return Some(judgement);
        }
        if segment.flags & SYN != 0 {
            // Window scaling is on only if both SYNs have the option; the first may yet be
            // taken back by the second (RFC 7323 §2.2).
            let agreed = if segment.flags & ACK != 0 && scale.is_none() {
                peer.scale.store(0, Relaxed);
                0
            } else {
                scale.unwrap_or(0)
            };
            own.scale.store(u32::from(agreed), Relaxed);
            own.state.fetch_max(TcpState::SynSent as u32, Relaxed);
            own.seq_end.store(segment.end, Relaxed);
            own.ack.store(if segment.flags & ACK != 0 { segment.ack } else { 0 }, Relaxed);
            own.window.store(u32::from(segment.window), Relaxed);
        } else {
            if own.state.load(Relaxed) == TcpState::None as u32 {
                own.state.fetch_max(TcpState::Established as u32, Relaxed);
                own.seq_end.store(segment.end, Relaxed);
            }
            own.advance(segment);
        }
        if segment.flags & FIN != 0 {
            own.state.fetch_max(TcpState::Closing as u32, Relaxed);
        }
        self.acknowledge(peer, segment);
        Some(judgement)
    }

    /// Whether the connection is still the one that `connection` was made for.
    #[inline]
    pub fn is_alive(&self, connection: ConnectionRef) -> bool {
        self.lane(connection).is_some()
    }

    /// States of both sides, this direction's first; `None` if it has ended.
    pub fn tcp_states(&self, connection: ConnectionRef) -> Option<[TcpState; 2]> {
        let own = self.lane(connection)?;
        let peer = self.lane(connection.reversed())?;
        Some([own.side().state, peer.side().state])
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
        for lane in &slot.lanes {
            let hash = lane.hash.load(Relaxed);
            let mut shard = self.lock(self.shard_of(hash));
            let ours = |r: &Record| {
                r.known.connection.slot >> 1 == number
                    && r.known.connection.generation == generation
            };
            if let Ok(entry) = shard.records.find_entry(hash, ours) {
                entry.remove();
            }
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

    /// Slots that exist, for [`sweep`](Self::sweep) to go round.
    pub fn slots(&self) -> usize {
        (self.chunks_made.load(Relaxed) as usize).min(self.chunks.len()) * CHUNK
    }

    /// Ends what has been idle too long among the slots `from..from + count`. Each worker looks
    /// after its own share. Under `pressure` closed, embryonic and unreplied connections go after
    /// [`PRESSURE_SECS`] (RFC 5382 REQ-5 and RFC 4787 leave that to need; T-C5).
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

/// Seconds that short-lived state may be idle when the table is nearly full.
pub const PRESSURE_SECS: u32 = 5;

/// Seconds of silence after which a connection without TCP states ends (RFC 4787 REQ-5: UDP two
/// minutes; RFC 5508 REQ-2: ICMP queries one minute).
fn datagram_idle_limit(protocol: u8) -> u32 {
    match protocol {
        proto::ICMP | proto::ICMPV6 => 60,
        proto::UDP => 120,
        proto::SCTP => 900,
        _ => 600,
    }
}

fn is_over(slot: &Slot, now_secs: u32, pressure: bool) -> bool {
    let [a, b] = &slot.lanes;
    let last = a.last_seen.load(Relaxed).max(b.last_seen.load(Relaxed));
    let idle = now_secs.saturating_sub(last);
    let protocol = (a.about.load(Relaxed) & 0xff) as u8;
    let (limit, short_lived) = if protocol == proto::TCP {
        let (x, y) = (a.side().state, b.side().state);
        let live = x == TcpState::Established && y == TcpState::Established;
        (tcp::idle_limit(x, y), !live)
    } else {
        (datagram_idle_limit(protocol), b.packets.load(Relaxed) == 0)
    };
    idle >= limit || pressure && short_lived && idle >= PRESSURE_SECS
}
