//! Connections that survive a restart: the memory in which the table keeps its slots may be shared memory that the next
//! process opens.
//!
//! The slots are written in the same way as on the heap; nothing is added to the packet path. The layout: a [`Header`],
//! then for each chunk its slots and their reply keys. The next process does not use the memory of the previous one: it
//! opens the connections again in a table of its own ([`Tracker::restore`]). A slot is open while its generation is
//! odd. The generation is stored after the facts, so a process that is killed while it writes leaves no half-written
//! connection.

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_vxlan::vtep::VtepIndex;

use super::cast::{cast, cast_shared};
use super::facts::ReplyFacts;
use super::header::Header;
use super::slot::{EvictionClass, Slot, is_over, worth};
use super::tracker::Tracker;
use super::{CHUNK, ConnectionRef, Created, PORTS, Pinned, SHARDS, TrackerConfig};
use crate::flow::chunk::Chunks;
use crate::id::PortId;

/// "PSWCONN" and a zero byte.
const MAGIC: u64 = u64::from_le_bytes(*b"PSWCONN\0");
/// Increased with every change of the layout of [`Header`], `Slot`, `Facts` or `ReplyFacts`, or of the meaning of their
/// values.
const VERSION: u32 = 1;
/// Bytes reserved for the header.
const HEADER_BYTES: usize = size_of::<Header>().next_multiple_of(CHUNK_BYTES);
const SLOT_BYTES: usize = CHUNK * size_of::<Slot>();
const CHUNK_BYTES: usize = SLOT_BYTES + CHUNK * size_of::<ReplyFacts>();

/// Why memory cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MemoryError {
    /// It is not aligned to a page, or shorter than [`memory_size`].
    Unfit,
    /// It holds no connections, or was not completed.
    Empty,
    /// It was written by another version.
    Version(u32),
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit => f.write_str("memory of a wrong size"),
            Self::Empty => f.write_str("no connections in it"),
            Self::Version(version) => {
                write!(f, "connections in format {version}, this is format {VERSION}")
            }
        }
    }
}

impl std::error::Error for MemoryError {}

/// Bytes of memory for the connection table of a switch with these limits.
pub fn memory_size(connections: u32) -> usize {
    HEADER_BYTES + Tracker::most_chunks(connections) * CHUNK_BYTES
}

/// Shared memory for the slots of the connection table. All bytes are zero at first.
#[derive(Debug)]
pub struct SlotMemory {
    /// The memory, of [`memory_size`] bytes, aligned to a page.
    pub bytes: &'static mut [u8],
    /// Current value of the system's monotonic clock.
    pub monotonic: Duration,
}

/// Operations of the table on the caller's memory, besides opening connections in it.
#[derive(Debug)]
pub(crate) struct Kept {
    header: &'static Header,
}

impl Kept {
    /// Names a port.
    pub(crate) fn set_name(&self, port: PortId, name: &str) {
        self.header.set_name(port, name);
    }

    /// The number of bytes at the beginning of the memory that must be allocated so that so many `connections` can be
    /// opened and `spare` more chunks be used, and the argument for [`Tracker::allow`] after that.
    pub(crate) fn wanted(&self, connections: usize, spare: u32) -> (usize, u32) {
        // Each shard has chunks of its own.
        let opened = match u32::try_from(connections.div_ceil(CHUNK)).unwrap_or(u32::MAX) {
            0 => 0,
            chunks => chunks.saturating_add(SHARDS as u32),
        };
        let spare = spare.saturating_add(opened);
        let all = self.header.chunks.load(Relaxed);
        let chunks = self.header.used.load(Relaxed).saturating_add(spare).min(all);
        (HEADER_BYTES + chunks as usize * CHUNK_BYTES, chunks)
    }
}

impl Tracker {
    /// An empty table whose slots lie in `memory`.
    pub(crate) fn in_memory(
        config: TrackerConfig,
        memory: SlotMemory,
    ) -> Result<(Self, Kept), MemoryError> {
        let SlotMemory { bytes, monotonic } = memory;
        let chunks = Self::most_chunks(config.connections);
        let (header, rest) = bytes.split_at_mut_checked(HEADER_BYTES).ok_or(MemoryError::Unfit)?;
        let header = header_of(header).ok_or(MemoryError::Unfit)?;
        let mut places = Vec::with_capacity(chunks);
        for chunk in rest.chunks_exact_mut(CHUNK_BYTES).take(chunks) {
            let (slots, replies) = chunk.split_at_mut(SLOT_BYTES);
            let slots: &mut [Slot] = cast(slots).ok_or(MemoryError::Unfit)?;
            let replies: &mut [ReplyFacts] = cast(replies).ok_or(MemoryError::Unfit)?;
            places.push((Some(slots), Some(replies)));
        }
        if places.len() < chunks {
            return Err(MemoryError::Unfit);
        }
        header.version.store(VERSION, Relaxed);
        header.chunks.store(chunks as u32, Relaxed);
        header.used.store(0, Relaxed);
        header.clock.store(u64::try_from(monotonic.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        header.magic.store(MAGIC, Relaxed);
        let table = Self::with_memory(config, Chunks::in_memory(places, &header.used));
        Ok((table, Kept { header }))
    }

    /// Allows the use of the first `chunks` chunks of the caller's memory, which are allocated now. Further connections
    /// are stored on the heap and do not survive a restart.
    pub(crate) fn allow(&self, chunks: u32) {
        self.memory.allow(chunks);
    }

    /// Opens a connection of an earlier process again, with its state.
    fn restore(&self, pinned: &Pinned, was: &Slot, last_seen: u32) -> Opening {
        if !self.nat.restore(pinned) {
            return Opening::Refused;
        }
        let created = match self.create(pinned, last_seen) {
            Ok(Created::New(connection)) => connection,
            refused => {
                self.nat.release(pinned);
                return if refused.is_err() { Opening::Refused } else { Opening::Exists };
            }
        };
        self.copy_lanes(created, was, last_seen);
        Opening::Opened(created)
    }

    /// Gives a connection the state that it has in the slot of an earlier process.
    pub(super) fn copy_lanes(&self, connection: ConnectionRef, was: &Slot, last_seen: u32) {
        for (connection, was) in [connection, connection.reversed()].into_iter().zip(&was.lanes) {
            if let Some(lane) = self.lane(connection) {
                lane.copy_from(was);
                lane.last_seen.store(last_seen, Relaxed);
            }
        }
    }
}

/// The outcome of opening a connection of an earlier process again.
pub(super) enum Opening {
    Opened(ConnectionRef),
    /// The client, or an earlier call, has opened it.
    Exists,
    /// Another client has its ports, a limit is lower than it was, or its node does not exist.
    Refused,
    /// It has ended or timed out.
    Over,
}

/// The place in this process of what a connection was received on.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    Port(PortId),
    /// Behind the tunnel. Returns the VTEP of a client's node, if there is one.
    Tunnel(&'a dyn Fn(IpAddr) -> Option<VtepIndex>),
}

fn header_of(bytes: &mut [u8]) -> Option<&Header> {
    cast::<Header>(bytes.get_mut(..size_of::<Header>())?)?.first()
}

/// Memory with the connections of an earlier process, for reading.
pub trait SavedMemory: Send {
    /// Its words, aligned to a page. The earlier process may still change them.
    fn words(&self) -> &[AtomicU64];
}

impl fmt::Debug for dyn SavedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SavedMemory")
    }
}

/// Connections of an earlier process that are not restored yet.
#[derive(Debug)]
pub struct Saved {
    memory: Box<dyn SavedMemory>,
    /// By the name of the port on which the client's packets were received.
    by_port: HashMap<String, Vec<u32>>,
    /// Connections of clients behind the tunnel.
    tunnelled: Vec<u32>,
    /// Start of the earlier process's clock, in nanoseconds of the system's monotonic clock.
    clock: u64,
    lost: usize,
}

/// The result of restoring saved connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// They are open again.
    pub restored: usize,
    /// They cannot be restored: the client's port or node does not exist, another connection has their ports, or a
    /// limit is reached.
    pub lost: usize,
    /// They wait until the client's port is attached.
    pub waiting: usize,
}

impl Saved {
    /// Finds the connections in the memory of an earlier process that does not change it any more.
    ///
    /// # Errors
    /// It is not such memory, or it was written by another version.
    pub fn read(memory: Box<dyn SavedMemory>) -> Result<Self, MemoryError> {
        let mut saved = Self::open(memory)?;
        let names: Vec<Option<String>> =
            (0..PORTS).map(|port| saved.name(PortId(port as u16))).collect();
        for number in 0..saved.used() * CHUNK as u32 {
            let Some((slot, _)) = saved.slot(number) else { break };
            if slot.generation() & 1 == 0 {
                continue;
            }
            let (origin, is_tunnelled) = (slot.facts.origin(), slot.facts.origin_end().is_some());
            let name = names.get(origin.index()).and_then(|name| name.as_deref());
            saved.wait(number, is_tunnelled, name);
        }
        Ok(saved)
    }

    /// As [`read`](Self::read), without looking for connections.
    pub(super) fn open(memory: Box<dyn SavedMemory>) -> Result<Self, MemoryError> {
        let saved =
            Self { memory, by_port: HashMap::new(), tunnelled: Vec::new(), clock: 0, lost: 0 };
        let header = saved.header().ok_or(MemoryError::Unfit)?;
        if header.magic.load(Relaxed) != MAGIC {
            return Err(MemoryError::Empty);
        }
        let version = header.version.load(Relaxed);
        if version != VERSION {
            return Err(MemoryError::Version(version));
        }
        let room = (saved.memory.words().len() * 8 - HEADER_BYTES) / CHUNK_BYTES;
        if header.chunks.load(Relaxed) as usize > room {
            return Err(MemoryError::Unfit);
        }
        let clock = header.clock.load(Relaxed);
        Ok(Self { clock, ..saved })
    }

    fn header(&self) -> Option<&Header> {
        let words = self.memory.words().get(..HEADER_BYTES / 8)?;
        cast_shared::<Header>(words.get(..size_of::<Header>() / 8)?)?.first()
    }

    /// Number of chunks in use. At most as many as the memory has room for.
    pub(super) fn used(&self) -> u32 {
        let room = (self.memory.words().len() * 8).saturating_sub(HEADER_BYTES) / CHUNK_BYTES;
        self.header().map_or(0, |header| header.used.load(Relaxed)).min(room as u32)
    }

    /// The name of a port of the earlier process.
    pub(super) fn name(&self, port: PortId) -> Option<String> {
        self.header()?.name(port)
    }

    /// The slots of a chunk, and their reply keys.
    pub(super) fn chunk(&self, chunk: u32) -> Option<(&[Slot], &[ReplyFacts])> {
        let from = HEADER_BYTES.checked_add((chunk as usize).checked_mul(CHUNK_BYTES)?)?;
        let words = self.memory.words().get(from / 8..from.checked_add(CHUNK_BYTES)? / 8)?;
        let (slots, replies) = words.split_at_checked(SLOT_BYTES / 8)?;
        Some((cast_shared(slots)?, cast_shared(replies)?))
    }

    /// A slot and its reply key.
    pub(super) fn slot(&self, number: u32) -> Option<(&Slot, &ReplyFacts)> {
        let (slots, replies) = self.chunk(number / CHUNK as u32)?;
        let at = number as usize % CHUNK;
        Some((slots.get(at)?, replies.get(at)?))
    }

    /// Keeps a connection for a later [`restore`](Self::restore).
    pub(super) fn wait(&mut self, number: u32, is_tunnelled: bool, name: Option<&str>) {
        match name {
            _ if is_tunnelled => self.tunnelled.push(number),
            Some(name) => self.by_port.entry_ref(name).or_default().push(number),
            None => self.lost += 1,
        }
    }

    /// Number of connections that cannot be restored. Zero at the next call.
    pub(super) fn take_lost(&mut self) -> usize {
        std::mem::take(&mut self.lost)
    }

    /// Seconds by which the earlier process's clock is ahead of one that starts at `clock`.
    pub(super) fn older(&self, clock: u64) -> u32 {
        let older = u32::try_from(clock.saturating_sub(self.clock) / 1_000_000_000);
        older.unwrap_or(u32::MAX)
    }

    /// Opens the connection of a slot again.
    pub(super) fn reopen(
        tracker: &Tracker,
        (slot, reply): (&Slot, &ReplyFacts),
        origin: Origin<'_>,
        (older, now_secs): (u32, u32),
    ) -> Opening {
        // Connections that are over, or have timed out since, are not restored.
        if worth(slot, 0).0 == EvictionClass::Over
            || is_over(slot, now_secs.saturating_add(older), false)
        {
            return Opening::Over;
        }
        let mut pinned = slot.facts.pinned(|| Some(reply));
        match origin {
            Origin::Port(port) => pinned.origin = port,
            Origin::Tunnel(reach) => match reach(pinned.original.src_addr()) {
                Some(end) => pinned.origin_end = Some(end),
                None => return Opening::Refused,
            },
        }
        tracker.restore(&pinned, slot, slot.last_seen().saturating_sub(older))
    }

    /// Number of connections that are not restored yet.
    pub fn len(&self) -> usize {
        self.by_port.values().map(Vec::len).sum::<usize>() + self.tunnelled.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Restores the connections of clients whose ports are known, and of clients behind the tunnel if `reach` is given.
    /// `reach`: returns the VTEP of a client's node. `clock`: start of this process's clock, in time of the system's
    /// monotonic clock. `now_secs`: the current second of this process's clock.
    pub(crate) fn restore(
        &mut self,
        tracker: &Tracker,
        ports: &HashMap<String, PortId>,
        reach: Option<&dyn Fn(IpAddr) -> Option<VtepIndex>>,
        (clock, now_secs): (u64, u32),
    ) -> Restored {
        let clocks = (self.older(clock), now_secs);
        let mut result = Restored { lost: self.take_lost(), ..Restored::default() };
        let mut open = |saved: &Self, number: u32, origin: Origin<'_>| {
            let Some(slot) = saved.slot(number) else { return };
            match Self::reopen(tracker, slot, origin, clocks) {
                Opening::Opened(_) => result.restored += 1,
                Opening::Refused => result.lost += 1,
                Opening::Exists | Opening::Over => {}
            }
        };
        let known: Vec<_> = self.by_port.extract_if(|name, _| ports.contains_key(name)).collect();
        for (name, numbers) in known {
            let Some(port) = ports.get(&name) else { continue };
            numbers.into_iter().for_each(|number| open(self, number, Origin::Port(*port)));
        }
        if let Some(reach) = reach {
            for number in std::mem::take(&mut self.tunnelled) {
                open(self, number, Origin::Tunnel(reach));
            }
        }
        result.waiting = self.len();
        result
    }
}
