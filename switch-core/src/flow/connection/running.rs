//! The connections of a switch that hands its node over, copied while it forwards: all of them before it stops, and only
//! what has changed since while nobody forwards.
//!
//! The generation of a slot shows whether its connection is still the same. It is read before and after the facts, so a
//! slot that is used again meanwhile is not copied half. The state of a connection changes with its packets: it is copied
//! again at the end, if there was a packet since the first pass.

use std::net::IpAddr;
use std::sync::atomic::{Ordering::Acquire, fence};

use hashbrown::HashMap;
use podswitch_vxlan::vtep::VtepIndex;

use super::saved::{Opening, Origin, Restored, Saved, SavedMemory};
use super::tracker::Tracker;
use super::{CHUNK, ConnectionRef, MemoryError};
use crate::id::PortId;

impl Tracker {
    /// Ends all connections, because those of another process take their place. No packet is in process.
    pub(crate) fn end_all(&self) {
        for number in 0..self.slots() as u32 {
            let generation = self.slot(number).map_or(0, |slot| slot.generation());
            if generation & 1 == 1 {
                self.end(ConnectionRef { slot: number << 1, generation }, &mut ());
            }
        }
    }
}

/// A packet may be in process for so many seconds since its time was read.
const IN_PROCESS: u32 = 1;

/// Connections of a process that still runs, in its memory.
#[derive(Debug)]
pub struct Running {
    memory: Saved,
    /// By the number of the slot there.
    copies: Vec<Copied>,
    /// Second of the other process's clock in which the first pass began.
    since: Option<u32>,
}

/// What was copied from a slot.
#[derive(Clone, Copy, Debug)]
struct Copied {
    /// The slot's generation. Zero: nothing.
    generation: u32,
    /// The connection in this process.
    connection: ConnectionRef,
    /// The slot's packets, as a sum.
    packets: u64,
}

impl Copied {
    const NOTHING: Self = Self { generation: 0, connection: ConnectionRef::NONE, packets: 0 };
}

/// Where this process has what connections were received on, and its clock.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    /// Ports by name.
    pub(crate) ports: &'a HashMap<String, PortId>,
    /// Returns the VTEP of a client's node.
    pub(crate) reach: &'a dyn Fn(IpAddr) -> Option<VtepIndex>,
    /// Start of this process's clock, in nanoseconds of the system's monotonic clock.
    pub(crate) clock: u64,
    /// The current second of this process's clock.
    pub(crate) now_secs: u32,
}

impl Running {
    /// Finds the memory of a process that runs.
    ///
    /// # Errors
    /// It is not such memory, or it was written by another version.
    pub fn open(memory: Box<dyn SavedMemory>) -> Result<Self, MemoryError> {
        Ok(Self { memory: Saved::open(memory)?, copies: Vec::new(), since: None })
    }

    /// Most connections that it can have.
    pub fn most(&self) -> usize {
        self.memory.used() as usize * CHUNK
    }

    /// Ends the copies of connections that have ended, and opens those that are new. Returns how many slots had changed
    /// since the last pass.
    pub(crate) fn copy(&mut self, tracker: &Tracker, places: Places<'_>) -> usize {
        let changed = self.end_changed(tracker, places, |_, _| {});
        self.open_all(tracker, places, &changed);
        changed.len()
    }

    /// The last pass; the other process does not change its memory any more. The connections of clients whose ports are
    /// not attached here are left in the result, to be restored later.
    pub(crate) fn complete(mut self, tracker: &Tracker, places: Places<'_>) -> (Saved, Restored) {
        let (older, since) = (self.memory.older(places.clock), self.since.unwrap_or_default());
        let changed = self.end_changed(tracker, places, |slot, copied| {
            let last_seen = slot.last_seen();
            if last_seen >= since || slot.packets() != copied.packets {
                tracker.copy_lanes(copied.connection, slot, last_seen.saturating_sub(older));
            }
        });
        let lost = self.open_all(tracker, places, &changed);
        for number in changed {
            let Some((slot, _)) = self.memory.slot(number) else { break };
            let (origin, is_tunnelled) = (slot.facts.origin(), slot.facts.origin_end().is_some());
            let name = self.memory.name(origin);
            if name.as_ref().is_some_and(|name| places.ports.contains_key(name)) || is_tunnelled {
                continue;
            }
            self.memory.wait(number, is_tunnelled, name.as_deref());
        }
        let restored = self.copies.iter().filter(|copied| copied.generation != 0).count();
        let waiting = self.memory.len();
        let lost = lost + self.memory.take_lost();
        (self.memory, Restored { restored, lost, waiting })
    }

    /// Ends the copies of connections that have ended. Returns the slots with connections that are not copied, and calls
    /// `each` for those that are.
    fn end_changed(
        &mut self,
        tracker: &Tracker,
        places: Places<'_>,
        each: impl Fn(&super::slot::Slot, &Copied),
    ) -> Vec<u32> {
        let since = self.memory.older(places.clock).saturating_add(places.now_secs);
        self.since.get_or_insert(since.saturating_sub(IN_PROCESS));
        let used = self.memory.used();
        self.copies.resize(self.copies.len().max(used as usize * CHUNK), Copied::NOTHING);
        let mut changed = Vec::new();
        for (chunk, copies) in (0..used).zip(self.copies.chunks_mut(CHUNK)) {
            let Some((slots, _)) = self.memory.chunk(chunk) else { break };
            for ((slot, copied), number) in slots.iter().zip(copies).zip(chunk * CHUNK as u32..) {
                let generation = slot.generation();
                let is_open = generation & 1 == 1;
                if is_open && copied.generation == generation {
                    each(slot, copied);
                    continue;
                }
                if copied.generation != 0 {
                    tracker.end(copied.connection, &mut ());
                    *copied = Copied::NOTHING;
                }
                if is_open {
                    changed.push(number);
                }
            }
        }
        changed
    }

    /// Opens the connections of slots. Returns how many cannot be opened.
    fn open_all(&mut self, tracker: &Tracker, places: Places<'_>, slots: &[u32]) -> usize {
        let clocks = (self.memory.older(places.clock), places.now_secs);
        let mut ports: HashMap<PortId, Option<PortId>> = HashMap::new();
        let mut refused = 0;
        for &number in slots {
            let Some((slot, reply)) = self.memory.slot(number) else { break };
            let (generation, packets) = (slot.generation(), slot.packets());
            let origin = if slot.facts.origin_end().is_some() {
                Origin::Tunnel(places.reach)
            } else {
                let port = slot.facts.origin();
                let find = || places.ports.get(&self.memory.name(port)?).copied();
                match *ports.entry(port).or_insert_with(find) {
                    Some(port) => Origin::Port(port),
                    None => continue,
                }
            };
            match Saved::reopen(tracker, (slot, reply), origin, clocks) {
                Opening::Opened(connection) => {
                    fence(Acquire);
                    if generation & 1 == 1 && slot.generation() == generation {
                        self.copies[number as usize] = Copied { generation, connection, packets };
                    } else {
                        // It has ended meanwhile, and the slot may hold half of another one.
                        tracker.end(connection, &mut ());
                    }
                }
                Opening::Refused => refused += 1,
                Opening::Exists | Opening::Over => {}
            }
        }
        refused
    }
}
