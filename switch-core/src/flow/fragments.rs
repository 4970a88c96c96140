//! Virtual reassembly: the fragments of a datagram are held, the packets themselves, until all
//! of them are there in whatever order they came, and are then let go together, so that either
//! the whole datagram goes on, judged by its first fragment, or nothing of it (threats T-F1 to
//! T-F5).
//!
//! Called by the engine on a worker's thread for packets that parse as fragments, and once a
//! poll to expire. One store serves all workers, since the fragments of a datagram may arrive at
//! different ones; the engine locks it. Never joins, cuts or changes a packet, and never frees
//! one: what ends is handed back with its reason, so that received = sent + consumed + dropped
//! holds. The packets in it are in no worker's pool.
//!
//! Memory is bounded by one sum of bytes, in which buffers, records and refused datagrams are
//! all paid. When it is used up, the oldest datagram of whoever holds most makes room ("longest
//! queue drop"), so that somebody who sends first fragments only (threat T-C6) throws out his own.

mod accounts;
mod datagram;

use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use podswitch_wire::flow_key::{Family, FlowKey, HashKey};
use podswitch_wire::parse::{Fragment as Place, Parsed};

use self::accounts::{Accounts, Link};
use self::datagram::{Added, Datagram, Extent};
use crate::action::DropReason;
use crate::id::PortId;
use crate::packet::{HEADROOM, Packet, Pool};
use crate::time::Instant;

/// Bounds of the fragment store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentConfig {
    /// Bytes of memory that held packets and the records about them may take.
    pub bytes: usize,
    /// The most fragments of one datagram.
    pub fragments: usize,
    /// How long a datagram may take to become whole, from its first fragment to arrive; and how
    /// long a refused one is remembered.
    pub timeout: Duration,
}

impl Default for FragmentConfig {
    /// 4 MiB, as Linux's `ipfrag_high_thresh`: some 1,600 fragments in small buffers, well
    /// under half of a pool's. 64 fragments: the longest datagram takes 54 at IPv6's smallest MTU
    /// of 1280, 45 at 1500. Five seconds: RFC 791, 1122 and 8200 give the destination 15
    /// to 120, which it still has; but fragments leave their sender back to back, and in five
    /// seconds a sender of 13,000 fragmented datagrams a second comes round to the same IPv4
    /// identification (RFC 4963), so that what is left from a loss would spoil a good one.
    fn default() -> Self {
        Self { bytes: 4 << 20, fragments: 64, timeout: Duration::from_secs(5) }
    }
}

/// A fragment and how it parsed.
#[derive(Debug)]
pub struct Fragment {
    /// The packet, as it was handed in.
    pub packet: Packet,
    /// Its parse, as it was handed in.
    pub parsed: Parsed,
}

/// What comes back from the store; the caller's scratch space, which it empties after each call.
#[derive(Debug, Default)]
pub struct Released {
    /// All fragments of one whole datagram, in the order of their offsets: the first holds the
    /// layer-4 header, and its flow key is that of all.
    pub whole: Vec<Fragment>,
    /// Fragments that end here, each with its reason.
    pub dropped: Vec<(Packet, DropReason)>,
}

/// What became of a fragment that was put in. Whatever it is, [`Released::dropped`] may hold
/// fragments of other datagrams that had to make room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Held until the rest arrives.
    Held,
    /// It completed its datagram, all of which is in [`Released::whole`].
    Whole,
    /// It is in [`Released::dropped`]; what was held of its datagram too, if that is refused.
    Dropped,
}

/// The store of fragments.
#[derive(Debug)]
pub struct Fragments {
    config: FragmentConfig,
    secret: HashKey,
    /// Index of `slots` by key.
    table: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    accounts: Accounts,
    held: usize,
}

/// Which datagram a fragment belongs to, and the port that it came in by: no port can add to
/// what another began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    flow: FlowKey,
    ingress: PortId,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    hash: u64,
    since: Instant,
    state: State,
    link: Link,
}

#[derive(Debug)]
enum State {
    Free,
    Collecting(Datagram),
    /// Every fragment that still comes is dropped with this reason (RFC 5722 §4).
    Refused(DropReason),
}

/// What a datagram's record costs beside its fragments, in bytes.
const RECORD: usize = size_of::<Slot>() + 128;

impl Fragments {
    /// An empty store. `secret` keeps others from choosing keys that collide (threat T-C4).
    pub fn new(config: FragmentConfig, secret: HashKey) -> Self {
        Self {
            config,
            secret,
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            accounts: Accounts::new(config.bytes),
            held: 0,
        }
    }

    /// Puts in one fragment. `account` says who is charged for it: the port's number for pods
    /// and the node, the source's `limit::address_key` where many senders that cannot forge
    /// their addresses share a port (the tunnel).
    pub fn insert(
        &mut self,
        packet: Packet,
        parsed: &Parsed,
        account: u64,
        now: Instant,
        out: &mut Released,
    ) -> Outcome {
        if parsed.fragment == Place::Whole {
            out.whole.push(Fragment { packet, parsed: *parsed });
            return Outcome::Whole;
        }
        let Some(extent) = Extent::of(packet.bytes(), parsed) else {
            out.dropped.push((packet, DropReason::FragmentLength));
            return Outcome::Dropped;
        };
        let cost = RECORD + datagram::cost(&packet);
        while !self.accounts.has_room(cost) {
            match self.accounts.oldest_of_heaviest() {
                Some(slot) => self.end(slot, DropReason::FragmentLimit, out),
                None => {
                    out.dropped.push((packet, DropReason::FragmentLimit));
                    return Outcome::Dropped;
                }
            }
        }
        let slot = self.find_or_create(&packet, parsed, account, now);
        self.add(slot, Fragment { packet, parsed: *parsed }, extent, now, out)
    }

    fn add(
        &mut self,
        index: u32,
        fragment: Fragment,
        extent: Extent,
        now: Instant,
        out: &mut Released,
    ) -> Outcome {
        let limit = self.config.fragments;
        let slot = &mut self.slots[index as usize];
        let datagram = match &mut slot.state {
            State::Collecting(datagram) => datagram,
            refused_or_free => {
                let reason = match refused_or_free {
                    State::Refused(reason) => *reason,
                    _ => DropReason::FragmentLimit,
                };
                out.dropped.push((fragment.packet, reason));
                return Outcome::Dropped;
            }
        };
        let cost = datagram::cost(&fragment.packet);
        match datagram.add(fragment, extent, limit) {
            Added::Held => {
                self.held += 1;
                self.accounts.charge(&mut slot.link, cost);
                Outcome::Held
            }
            Added::Whole => {
                let held = datagram.release(&mut out.whole);
                self.held -= held - 1;
                self.remove(index);
                Outcome::Whole
            }
            Added::Duplicate(packet) => {
                out.dropped.push((packet, DropReason::FragmentOverlap));
                Outcome::Dropped
            }
            Added::Refused(packet, reason) => {
                self.held -= datagram.drop_all(reason, out);
                out.dropped.push((packet, reason));
                slot.state = State::Refused(reason);
                slot.since = now;
                self.accounts.renew(index, &mut self.slots, RECORD);
                Outcome::Dropped
            }
        }
    }

    /// Ends datagrams that have had their time, `budget` at most, with
    /// [`DropReason::FragmentTimeout`]. Returns how many there were, refused ones that are
    /// forgotten among them; called once a poll.
    pub fn expire(&mut self, now: Instant, budget: usize, out: &mut Released) -> usize {
        for done in 0..budget {
            let Some(oldest) = self.accounts.oldest() else { return done };
            let slot = &self.slots[oldest as usize];
            if now.since(slot.since) < self.config.timeout {
                return done;
            }
            self.end(oldest, DropReason::FragmentTimeout, out);
        }
        budget
    }

    /// When [`expire`](Self::expire) next has something to do; `None` when the store is empty.
    pub fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.accounts.oldest()?;
        Some(self.slots[oldest as usize].since + self.config.timeout)
    }

    /// Ends everything that is held, with `reason`: the input ended, or the port went away with
    /// the worker.
    pub fn drain(&mut self, reason: DropReason, out: &mut Released) {
        while let Some(oldest) = self.accounts.oldest() {
            self.end(oldest, reason, out);
        }
    }

    /// Ends what is held from `port`, which was detached: its number may come back as another's.
    pub fn drain_port(&mut self, port: PortId, out: &mut Released) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.key.ingress == port && !matches!(slot.state, State::Free) {
                self.end(index as u32, DropReason::PortDown, out);
            }
        }
    }

    /// Fragments held: received, and not yet ended.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Datagrams on record, refused ones among them.
    pub fn datagrams(&self) -> usize {
        self.table.len()
    }

    /// Bytes of memory in use, of [`FragmentConfig::bytes`].
    pub fn bytes(&self) -> usize {
        self.accounts.used()
    }

    fn find_or_create(
        &mut self,
        packet: &Packet,
        parsed: &Parsed,
        account: u64,
        now: Instant,
    ) -> u32 {
        let flow = datagram_key(parsed);
        let key = Key { flow, ingress: packet.ingress };
        let hash = flow.hash(&self.secret);
        let slots = &mut self.slots;
        let entry = self.table.entry(
            hash,
            |index| slots[*index as usize].key == key,
            |index| slots[*index as usize].hash,
        );
        let vacant = match entry {
            Entry::Occupied(found) => return *found.get(),
            Entry::Vacant(vacant) => vacant,
        };
        let state = State::Collecting(Datagram::default());
        let slot = Slot { key, hash, since: now, state, link: Link::default() };
        let index = match self.free.pop() {
            Some(index) => {
                slots[index as usize] = slot;
                index
            }
            None => {
                slots.push(slot);
                (slots.len() - 1) as u32
            }
        };
        vacant.insert(index);
        self.accounts.open(index, &mut self.slots, account, RECORD);
        index
    }

    /// Ends a datagram: what is held of it is dropped, and its record goes.
    fn end(&mut self, index: u32, reason: DropReason, out: &mut Released) {
        if let State::Collecting(datagram) = &mut self.slots[index as usize].state {
            self.held -= datagram.drop_all(reason, out);
        }
        self.remove(index);
    }

    fn remove(&mut self, index: u32) {
        self.accounts.close(index, &mut self.slots);
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        if let Ok(entry) = self.table.find_entry(slot.hash, |found| *found == index) {
            entry.remove();
        }
        self.free.push(index);
    }
}

/// What RFC 791 and RFC 8200 §4.5 tell datagrams apart by, in the shape of a flow key: the
/// identification stands in the ports. IPv6 does not count the protocol, which the first
/// fragment knows and later ones need not.
fn datagram_key(parsed: &Parsed) -> FlowKey {
    let proto = match parsed.key.family {
        Family::V4 => parsed.key.proto,
        Family::V6 => 0,
    };
    let src_port = (parsed.fragment_id >> 16) as u16;
    let dst_port = parsed.fragment_id as u16;
    FlowKey { proto, src_port, dst_port, ..parsed.key }
}

/// Moves a fragment out of a buffer that is much larger than it needs, so that what is paid for
/// is what is used: ports receive into buffers for super-frames. For the caller to do before
/// [`Fragments::insert`].
pub fn compact(packet: Packet, pool: &mut Pool) -> Packet {
    let small = HEADROOM + Pool::SMALL;
    if packet.buffer_len() <= small.max(2 * (HEADROOM + packet.len())) {
        return packet;
    }
    let fitting = match packet.len() {
        0..=Pool::SMALL => pool.alloc_for(packet.len()),
        len => Some(Packet::with_capacity(len)),
    };
    let Some(mut copy) = fitting else { return packet };
    copy.fill(packet.bytes());
    copy.offload = packet.offload;
    copy.ingress = packet.ingress;
    copy.set_via(packet.via());
    copy.origin = packet.origin;
    copy.mark = packet.mark;
    pool.free(packet);
    copy
}

#[cfg(test)]
mod tests;
