//! Virtual reassembly: the fragments of a datagram are held, as packets, until all of them have arrived, in any order,
//! and are then released together. So the whole datagram is forwarded or dropped, as the evaluation of its first
//! fragment decides (threats T-F1 to T-F5).
//!
//! Called by the engine for packets that parse as fragments, and once per poll for timeouts. One
//! store serves all workers, since the fragments of a datagram may be received by different workers;
//! the engine locks it. The store never joins, splits, changes or frees a packet: it returns
//! fragments that end here, with a reason, so that received = forwarded + consumed + dropped holds.
//! Packets in the store belong to no worker's pool.
//!
//! Memory is bounded by a total in bytes, which includes buffers, records and rejected datagrams. When
//! it is reached, the oldest datagram of the account with the most memory is dropped ("longest queue
//! drop"). So a sender of first fragments only (threat T-C6) drops its own.

mod accounts;
mod datagram;
mod released;
mod slot;

use std::time::Duration;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use podswitch_wire::flow_key::{Family, FlowKey, HashKey};
use podswitch_wire::parse::{Fragment as Position, Parsed};

use self::accounts::Accounts;
use self::datagram::{Added, Datagram, Extent};
pub use self::released::{Fragment, Released};
use self::slot::{Key, Link, Slot, State};
use crate::action::DropReason;
use crate::id::PortId;
use crate::packet::{HEADROOM, Packet, Pool};
use crate::time::Instant;

/// Limits of the fragment store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentConfig {
    /// Most memory for held packets and their records, in bytes.
    pub bytes: usize,
    /// Most fragments of one datagram.
    pub fragments: usize,
    /// Time for a datagram to become complete, from the first fragment that arrives. Also how long a
    /// rejected datagram is remembered.
    pub timeout: Duration,
}

impl Default for FragmentConfig {
    /// 4 MiB, as Linux's `ipfrag_high_thresh`: about 1,600 fragments in small buffers, less than half of a pool. 64
    /// fragments: the longest datagram needs 54 at IPv6's smallest MTU of 1280, 45 at 1500. Five seconds: RFC 791, 1122
    /// and 8200 allow the destination 15 to 120 seconds, which are not affected by this. But a sender sends the
    /// fragments of a datagram back to back. A sender of 13,000 fragmented datagrams per second reuses an IPv4
    /// identification after five seconds (RFC 4963); an older incomplete datagram would then corrupt a complete one.
    fn default() -> Self {
        Self { bytes: 4 << 20, fragments: 64, timeout: Duration::from_secs(5) }
    }
}

/// The result of [`Fragments::insert`]. In any case [`Released::dropped`] may contain fragments of
/// other datagrams that were dropped to make room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The fragment is held until the rest arrives.
    Held,
    /// The datagram is complete, and in [`Released::whole`].
    Whole,
    /// The fragment is in [`Released::dropped`], and so are those of its datagram if that is rejected.
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

/// Memory for a datagram's record, without its fragments, in bytes.
const RECORD: usize = size_of::<Slot>() + 128;

impl Fragments {
    /// An empty store. With the hash key `secret` nobody can choose keys that collide (threat T-C4).
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

    /// Inserts a fragment. `account`: who is charged for its memory.
    pub fn insert(
        &mut self,
        packet: Packet,
        parsed: &Parsed,
        account: u64,
        now: Instant,
        out: &mut Released,
    ) -> Outcome {
        if parsed.fragment == Position::Whole {
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
            rejected_or_free => {
                let reason = match rejected_or_free {
                    State::Rejected(reason) => *reason,
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
            Added::Rejected(packet, reason) => {
                self.held -= datagram.drop_all(reason, out);
                out.dropped.push((packet, reason));
                slot.state = State::Rejected(reason);
                slot.since = now;
                self.accounts.renew(index, &mut self.slots, RECORD);
                Outcome::Dropped
            }
        }
    }

    /// Drops datagrams that have timed out, at most `budget`, with [`DropReason::FragmentTimeout`].
    /// Returns their number, including rejected datagrams that are forgotten. Called once per poll.
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

    /// When the next datagram times out; `None` if the store is empty.
    pub fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.accounts.oldest()?;
        Some(self.slots[oldest as usize].since + self.config.timeout)
    }

    /// Drops all held fragments with `reason`.
    pub fn drain(&mut self, reason: DropReason, out: &mut Released) {
        while let Some(oldest) = self.accounts.oldest() {
            self.end(oldest, reason, out);
        }
    }

    /// Drops all held fragments of `port`, which was detached: its number may be assigned to another
    /// port.
    pub fn drain_port(&mut self, port: PortId, out: &mut Released) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.key.ingress == port && !matches!(slot.state, State::Free) {
                self.end(index as u32, DropReason::PortDown, out);
            }
        }
    }

    /// Number of held fragments.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Number of datagrams, including rejected ones.
    pub fn datagrams(&self) -> usize {
        self.table.len()
    }

    /// Memory in use, in bytes; at most [`FragmentConfig::bytes`].
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

    /// Drops a datagram and removes its record.
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

/// The fields that identify a datagram (RFC 791, RFC 8200 §4.5), as a flow key with the identification in place of the
/// ports. For IPv6 the protocol is not included: later fragments need not have it.
fn datagram_key(parsed: &Parsed) -> FlowKey {
    let proto = match parsed.key.family {
        Family::V4 => parsed.key.proto,
        Family::V6 => 0,
    };
    let src_port = (parsed.fragment_id >> 16) as u16;
    let dst_port = parsed.fragment_id as u16;
    FlowKey { proto, src_port, dst_port, ..parsed.key }
}

/// Moves a fragment out of a buffer that is much larger than needed, such as a receive buffer for GRO packets, so that
/// the charged memory is really used. Call it before [`Fragments::insert`].
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
    copy.tag = packet.tag;
    pool.free(packet);
    copy
}

#[cfg(test)]
mod tests;
