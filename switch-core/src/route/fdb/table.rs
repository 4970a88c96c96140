//! The table. Compiled a second time by `model.rs`, with the atomics of a model checker: it takes them,
//! and its dimensions, from its parent module.

use std::time::Duration;

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{FlowKey, HashKey};

use super::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use super::slot::{EXPIRY_MASK, GENERATION_SHIFT, MAX_AGEING, Slot, State, Value, seconds};
use super::{PORTS, SLOTS_PER_ENTRY, WAYS};
use crate::id::PortId;
use crate::time::Instant;

/// Number of a pair of bridge domain and VLAN, assigned when the snapshot is compiled. The same MAC
/// address in two VLANs is two stations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Domain(pub u16);

/// Limits of learning from a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Seconds after which an address that is not seen again is forgotten (up to one second later). 0:
    /// nothing is learned.
    pub ageing_secs: u32,
    /// Most addresses learned from one port, over all domains.
    pub limit: u32,
}

/// The result of [`Fdb::learn`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learn {
    /// The address was known at this port. The usual case.
    Known,
    /// The address is new.
    New,
    /// The address was known at another port.
    Moved {
        /// That port.
        from: PortId,
    },
    /// Not learned: the address is static, at another port.
    Pinned,
    /// Not learned: the limit of the port is reached, or learning is off. An existing entry stays.
    LimitReached,
    /// Not learned: the address's row is full.
    TableFull,
    /// Not learned: not a unicast address.
    NotUnicast,
}

/// An entry, as [`Fdb::dump`] lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Domain and VLAN.
    pub domain: Domain,
    /// The address.
    pub mac: Mac,
    /// Its port.
    pub port: PortId,
    /// Time until it expires; `None` for a static entry.
    pub expires_in: Option<Duration>,
}

/// The forwarding database.
#[derive(Debug)]
pub struct Fdb {
    slots: Box<[Slot]>,
    /// Number of addresses learned from each port.
    learned: Box<[AtomicU32]>,
    /// Where the next sweep continues.
    cursor: AtomicUsize,
    secret: [u64; 2],
}

impl Fdb {
    /// A table for `entries` addresses: at least four times as many slots of 16 bytes, allocated here.
    /// So a row of 16 slots has four entries on average, and is almost never full. `secret` is the
    /// hash key.
    pub fn new(entries: usize, secret: &HashKey) -> Self {
        let rows = (SLOTS_PER_ENTRY * entries).div_ceil(WAYS).next_power_of_two();
        let slot = |_| Slot { key: AtomicU64::new(0), value: AtomicU64::new(0) };
        let word = |proto| FlowKey { proto, ..FlowKey::default() }.hash(secret);
        Self {
            slots: (0..rows * WAYS).map(slot).collect(),
            learned: (0..PORTS).map(|_| AtomicU32::new(0)).collect(),
            cursor: AtomicUsize::new(0),
            secret: [word(1), word(2) | 1],
        }
    }

    /// Prefetches the entry of `mac`.
    #[inline]
    pub fn prefetch(&self, domain: Domain, mac: Mac) {
        // Rows are at most a quarter full on average, and filled from the front.
        let row = self.row(key(domain, mac));
        for line in row.chunks(64 / size_of::<Slot>()).take(2) {
            crate::prefetch::prefetch(&line[0]);
        }
    }

    /// The port of `mac`; `None` if it is not known, or has expired.
    #[inline]
    pub fn lookup(&self, domain: Domain, mac: Mac, now: Instant) -> Option<PortId> {
        let key = key(domain, mac);
        let now = seconds(now);
        let value = self.row(key).iter().find_map(|slot| slot.read(key))?;
        (!value.is_expired(now)).then(|| value.port())
    }

    /// Learns that `mac` was seen at `port`. Stores nothing if that is known and was stored within this
    /// second.
    ///
    /// The caller has checked that the port is a member of the domain.
    #[inline]
    pub fn learn(
        &self,
        domain: Domain,
        mac: Mac,
        port: PortId,
        bounds: Bounds,
        now: Instant,
    ) -> Learn {
        if !mac.is_unicast() {
            return Learn::NotUnicast;
        }
        if bounds.ageing_secs == 0 || port.index() >= PORTS {
            return Learn::LimitReached;
        }
        let key = key(domain, mac);
        let now = seconds(now);
        // One more, for the part of the current second that has passed.
        let expiry = (now + bounds.ageing_secs.min(MAX_AGEING) + 1) & EXPIRY_MASK;
        for slot in self.row(key) {
            while let Some(value) = slot.read(key) {
                if value.state() == State::Static {
                    return if value.port() == port { Learn::Known } else { Learn::Pinned };
                }
                if value.port() == port && value.expiry() == expiry {
                    return Learn::Known;
                }
                if let Some(result) = self.renew(slot, value, port, expiry, bounds, now) {
                    return result;
                }
            }
        }
        self.insert(key, port, bounds, expiry, now)
    }

    /// Refreshes or moves an entry. `None` if another thread changed it meanwhile.
    #[inline]
    fn renew(
        &self,
        slot: &Slot,
        old: Value,
        port: PortId,
        expiry: u32,
        bounds: Bounds,
        now: u32,
    ) -> Option<Learn> {
        let new = Value::new(old.generation(), State::Learned, port, expiry);
        if old.port() == port {
            let known = if old.is_expired(now) { Learn::New } else { Learn::Known };
            return slot.replace(old, new).then_some(known);
        }
        if !self.reserve(port, bounds.limit) {
            return Some(Learn::LimitReached);
        }
        if slot.replace(old, new) {
            self.give_back(old.port());
            let expired = old.is_expired(now);
            return Some(if expired { Learn::New } else { Learn::Moved { from: old.port() } });
        }
        self.give_back(port);
        None
    }

    #[cold]
    fn insert(&self, key: u64, port: PortId, bounds: Bounds, expiry: u32, now: u32) -> Learn {
        if !self.reserve(port, bounds.limit) {
            return Learn::LimitReached;
        }
        if self.take_slot(key, State::Learned, port, expiry, now) {
            return Learn::New;
        }
        self.give_back(port);
        Learn::TableFull
    }

    /// Takes a free or expired slot of the key's row and publishes the entry in it; false if there is
    /// none. Afterwards the key has one entry.
    fn take_slot(&self, key: u64, state: State, port: PortId, expiry: u32, now: u32) -> bool {
        for slot in self.row(key) {
            let old = slot.load();
            let vacant = match old.state() {
                State::Free => true,
                State::Learned => old.is_expired(now),
                State::Busy | State::Static => false,
            };
            let generation =
                old.generation().wrapping_add(1) & ((1 << (64 - GENERATION_SHIFT)) - 1);
            if !vacant || !slot.replace(old, Value::new(generation, State::Busy, port, 0)) {
                continue;
            }
            if old.state() == State::Learned {
                self.give_back(old.port());
            }
            slot.key.store(key, Ordering::Release);
            let value = Value::new(generation, state, port, expiry);
            slot.value.store(value.0, Ordering::Release);
            self.keep_one(key);
            return true;
        }
        false
    }

    /// Frees all entries of `key` but one: the static one if there is one, otherwise the first.
    fn keep_one(&self, key: u64) {
        fence(Ordering::SeqCst);
        let row = self.row(key);
        let holds = |slot: &Slot| slot.read(key).map(Value::state);
        let pinned = row.iter().position(|slot| holds(slot) == Some(State::Static));
        let Some(kept) = pinned.or_else(|| row.iter().position(|slot| holds(slot).is_some()))
        else {
            return;
        };
        for (at, slot) in row.iter().enumerate() {
            // Without a static entry, only entries behind the first are freed. If an entry has appeared before it since
            // then, the thread that created that entry treats it as the first. If two threads freed each other's entry,
            // none would be left.
            if at == kept || (pinned.is_none() && at < kept) {
                continue;
            }
            while let Some(value) = slot.read(key) {
                // An entry that has become static since must not be freed.
                let spared = value.state() == State::Static && pinned.is_none();
                if spared || self.free(slot, value) {
                    break;
                }
            }
        }
    }

    /// Frees a slot that holds `value`; false if it no longer does.
    fn free(&self, slot: &Slot, value: Value) -> bool {
        let freed = slot.replace(value, value.free());
        if freed && value.state() == State::Learned {
            self.give_back(value.port());
        }
        freed
    }

    /// Makes a static entry for `mac` at `port`, which replaces any other: it is not changed by
    /// learning, does not expire, and counts in no limit. False if the address is not unicast or its
    /// row is full. For the control plane, one thread at a time.
    pub fn set_static(&self, domain: Domain, mac: Mac, port: PortId, now: Instant) -> bool {
        if !mac.is_unicast() || port.index() >= PORTS {
            return false;
        }
        let key = key(domain, mac);
        for slot in self.row(key) {
            while let Some(old) = slot.read(key) {
                let new = Value::new(old.generation(), State::Static, port, 0);
                if slot.replace(old, new) {
                    if old.state() == State::Learned {
                        self.give_back(old.port());
                    }
                    self.keep_one(key);
                    return true;
                }
            }
        }
        self.take_slot(key, State::Static, port, 0, seconds(now))
    }

    /// Removes the entry of `mac`, learned or static; false if there was none.
    pub fn remove(&self, domain: Domain, mac: Mac) -> bool {
        let key = key(domain, mac);
        let mut found = false;
        for slot in self.row(key) {
            while let Some(value) = slot.read(key) {
                found |= self.free(slot, value);
            }
        }
        found
    }

    /// Removes all entries for which `keep` returns false; returns their number. Scans the whole table, so it is for
    /// the control plane. Entries that workers learn during the scan may stay.
    pub fn retain(&self, now: Instant, mut keep: impl FnMut(&Entry) -> bool) -> usize {
        let now = seconds(now);
        let mut removed = 0;
        for slot in &self.slots {
            while let Some((key, value)) = slot.snapshot() {
                if keep(&entry(key, value, now)) {
                    break;
                }
                if self.free(slot, value) {
                    removed += 1;
                    break;
                }
            }
        }
        removed
    }

    /// Removes all entries of `port`, static ones too; returns their number. For a port that was
    /// detached, after the workers have stopped receiving from it.
    pub fn flush_port(&self, port: PortId) -> usize {
        self.retain(Instant::ZERO, |entry| entry.port != port)
    }

    /// Frees expired entries among the next `budget` slots; returns their number. The workers call it
    /// in turn, and together cover the table.
    pub fn sweep(&self, now: Instant, budget: usize) -> usize {
        let now = seconds(now);
        let budget = budget.min(self.slots.len());
        let start = self.cursor.fetch_add(budget, Ordering::Relaxed);
        let slots = (start..start + budget).map(|at| &self.slots[at & (self.slots.len() - 1)]);
        let expired = |slot: &&Slot| {
            let value = slot.load();
            value.state() == State::Learned && value.is_expired(now) && self.free(slot, value)
        };
        slots.filter(expired).count()
    }

    /// Number of slots, which [`sweep`](Self::sweep) covers.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// All entries that have not expired, in no particular order. Scans the whole table.
    pub fn dump(&self, now: Instant) -> Vec<Entry> {
        let now = seconds(now);
        let entries = self.slots.iter().filter_map(Slot::snapshot);
        entries.filter(|(_, v)| !v.is_expired(now)).map(|(k, v)| entry(k, v, now)).collect()
    }

    /// Number of addresses learned from `port` that have not been removed.
    pub fn learned(&self, port: PortId) -> u32 {
        self.learned.get(port.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    #[inline]
    fn row(&self, key: u64) -> &[Slot] {
        // Two rounds: one multiplication leaves consecutive addresses in regular steps.
        let [a, b] = self.secret;
        let hash = fold(fold(key ^ a, b) ^ b, a | 1);
        let start = (hash as usize).wrapping_mul(WAYS) & (self.slots.len() - 1);
        &self.slots[start..start + WAYS]
    }

    /// Counts one more address for `port`, unless `limit` is reached.
    fn reserve(&self, port: PortId, limit: u32) -> bool {
        let more = |count| (count < limit).then_some(count + 1);
        let count = &self.learned[port.index()];
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, port: PortId) {
        self.learned[port.index()].fetch_sub(1, Ordering::Relaxed);
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// The key word; never zero for a unicast address.
#[inline]
fn key(domain: Domain, mac: Mac) -> u64 {
    mac.to_u64() << 16 | u64::from(domain.0)
}

fn entry(key: u64, value: Value, now: u32) -> Entry {
    let [a, b, c, d, e, f, domain @ ..] = key.to_be_bytes();
    Entry {
        domain: Domain(u16::from_be_bytes(domain)),
        mac: Mac([a, b, c, d, e, f]),
        port: value.port(),
        expires_in: value.left(now).map(|left| Duration::from_secs(left.into())),
    }
}
