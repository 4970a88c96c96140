//! The table itself. Compiled a second time by `model.rs`, with atomics that are watched: it takes
//! them, and its dimensions, from the module that it stands in.

use std::time::Duration;

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{FlowKey, HashKey};

use super::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use super::{PORTS, SLOTS_PER_ENTRY, WAYS};
use crate::id::PortId;
use crate::time::Instant;

/// A bridge domain together with a VLAN in it: a number that whoever compiles the snapshot gives
/// to each pair that is in use, so that the same MAC address in two VLANs is two stations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Domain(pub u16);

/// How much is learnt from a port, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Seconds after which an address that was not seen again is forgotten (up to one second
    /// more). Zero: nothing is learnt.
    pub ageing_secs: u32,
    /// The most addresses learnt from one port, over all domains.
    pub limit: u32,
}

/// What a frame taught.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learn {
    /// Nothing new; this is what nearly every frame does.
    Known,
    /// The address was not there.
    New,
    /// The address was seen at another port before.
    Moved {
        /// That port.
        from: PortId,
    },
    /// Not learnt: the address is static, at another port.
    Pinned,
    /// Not learnt: the port has taught as many addresses as it may, or learning is off. What
    /// was known of the address before stays.
    LimitReached,
    /// Not learnt: the address's row is full.
    TableFull,
    /// Not learnt: no unicast address.
    NotUnicast,
}

/// One entry, as [`Fdb::dump`] shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Domain and VLAN.
    pub domain: Domain,
    /// The address.
    pub mac: Mac,
    /// The port that it is at.
    pub port: PortId,
    /// Time until it is forgotten; `None`: static.
    pub expires_in: Option<Duration>,
}

/// The forwarding database.
#[derive(Debug)]
pub struct Fdb {
    slots: Box<[Slot]>,
    /// Addresses learnt from each port.
    learnt: Box<[AtomicU32]>,
    /// Where the next sweep goes on.
    cursor: AtomicUsize,
    secret: [u64; 2],
}

#[derive(Debug)]
struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

const _: () = assert!(PORTS <= 1 << PORT_BITS);
const PORT_BITS: u32 = 12;
const EXPIRY_BITS: u32 = 30;
const EXPIRY_MASK: u32 = (1 << EXPIRY_BITS) - 1;
/// Longest ageing, in seconds: a quarter of what the expiry counts, so that before and after
/// can be told apart when it comes round.
const MAX_AGEING: u32 = 1 << (EXPIRY_BITS - 2);
const GENERATION_SHIFT: u32 = 2 + EXPIRY_BITS + PORT_BITS;

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free = 0,
    /// Somebody is writing the key.
    Busy = 1,
    Learnt = 2,
    Static = 3,
}

/// A slot's value word.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value(u64);

impl Value {
    fn new(generation: u32, state: State, port: PortId, expiry: u32) -> Self {
        Self(
            u64::from(generation) << GENERATION_SHIFT
                | u64::from(port.0) << (2 + EXPIRY_BITS)
                | u64::from(expiry & EXPIRY_MASK) << 2
                | state as u64,
        )
    }

    fn state(self) -> State {
        match self.0 & 3 {
            0 => State::Free,
            1 => State::Busy,
            2 => State::Learnt,
            _ => State::Static,
        }
    }

    fn generation(self) -> u32 {
        (self.0 >> GENERATION_SHIFT) as u32
    }

    fn port(self) -> PortId {
        PortId((self.0 >> (2 + EXPIRY_BITS)) as u16 & ((1 << PORT_BITS) - 1))
    }

    fn expiry(self) -> u32 {
        (self.0 >> 2) as u32 & EXPIRY_MASK
    }

    fn free(self) -> Self {
        Self::new(self.generation(), State::Free, PortId(0), 0)
    }

    /// Whether it is an entry, expired or not.
    fn is_entry(self) -> bool {
        matches!(self.state(), State::Learnt | State::Static)
    }

    /// Seconds left, zero when expired; `None` for entries that never expire.
    fn left(self, now: u32) -> Option<u32> {
        match self.state() {
            State::Static => None,
            _ => {
                let left = self.expiry().wrapping_sub(now) & EXPIRY_MASK;
                Some(if left > 2 * MAX_AGEING { 0 } else { left })
            }
        }
    }

    fn is_expired(self, now: u32) -> bool {
        self.left(now) == Some(0)
    }
}

/// The present as an expiry counts it.
fn seconds(now: Instant) -> u32 {
    now.as_secs() as u32 & EXPIRY_MASK
}

impl Slot {
    fn load(&self) -> Value {
        Value(self.value.load(Ordering::Acquire))
    }

    /// The slot's value if it holds `key`; the argument why it can be trusted stands at the
    /// head of `fdb.rs`.
    fn read(&self, key: u64) -> Option<Value> {
        // What is another's now was not this key's at whatever time the caller knows of.
        if self.key.load(Ordering::Relaxed) != key {
            return None;
        }
        let before = self.load();
        if !before.is_entry() || self.key.load(Ordering::Acquire) != key {
            return None;
        }
        let after = self.load();
        (after.is_entry() && after.generation() == before.generation()).then_some(after)
    }

    /// The slot's key and value, whatever they are.
    fn snapshot(&self) -> Option<(u64, Value)> {
        let before = self.load();
        let key = self.key.load(Ordering::Acquire);
        let after = self.load();
        let whole =
            before.is_entry() && after.is_entry() && after.generation() == before.generation();
        whole.then_some((key, after))
    }

    /// Replaces `old`, if that is what the slot still holds.
    fn replace(&self, old: Value, new: Value) -> bool {
        self.value.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

impl Fdb {
    /// A table for `entries` addresses: at least four times as many slots of 16 bytes, allocated
    /// here and never again, so that a row of 16 holds four on average and next to none is
    /// full. `secret` chooses the rows.
    pub fn new(entries: usize, secret: &HashKey) -> Self {
        let rows = (SLOTS_PER_ENTRY * entries).div_ceil(WAYS).next_power_of_two();
        let slot = |_| Slot { key: AtomicU64::new(0), value: AtomicU64::new(0) };
        let word = |proto| FlowKey { proto, ..FlowKey::default() }.hash(secret);
        Self {
            slots: (0..rows * WAYS).map(slot).collect(),
            learnt: (0..PORTS).map(|_| AtomicU32::new(0)).collect(),
            cursor: AtomicUsize::new(0),
            secret: [word(1), word(2) | 1],
        }
    }

    /// Brings near where `mac` stands, if it is known.
    #[inline]
    pub fn prefetch(&self, domain: Domain, mac: Mac) {
        // Rows are a quarter full at most, and filled from the front.
        let row = self.row(key(domain, mac));
        for line in row.chunks(64 / size_of::<Slot>()).take(2) {
            crate::prefetch::prefetch(&line[0]);
        }
    }

    /// The port that `mac` is at; `None` if that is not known, or was too long ago.
    #[inline]
    pub fn lookup(&self, domain: Domain, mac: Mac, now: Instant) -> Option<PortId> {
        let key = key(domain, mac);
        let now = seconds(now);
        let value = self.row(key).iter().find_map(|slot| slot.read(key))?;
        (!value.is_expired(now)).then(|| value.port())
    }

    /// Takes note that `mac` was seen at `port`. Stores nothing if that is known and was noted
    /// within this second.
    ///
    /// The caller passes on what it may: frames from ports that are members of the domain.
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
        // One more than asked, for the part of a second that has passed already.
        let expiry = (now + bounds.ageing_secs.min(MAX_AGEING) + 1) & EXPIRY_MASK;
        for slot in self.row(key) {
            while let Some(value) = slot.read(key) {
                if value.state() == State::Static {
                    return if value.port() == port { Learn::Known } else { Learn::Pinned };
                }
                if value.port() == port && value.expiry() == expiry {
                    return Learn::Known;
                }
                if let Some(learnt) = self.renew(slot, value, port, expiry, bounds, now) {
                    return learnt;
                }
            }
        }
        self.insert(key, port, bounds, expiry, now)
    }

    /// Renews or moves an entry. `None` if somebody else changed it meanwhile.
    fn renew(
        &self,
        slot: &Slot,
        old: Value,
        port: PortId,
        expiry: u32,
        bounds: Bounds,
        now: u32,
    ) -> Option<Learn> {
        let new = Value::new(old.generation(), State::Learnt, port, expiry);
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
        if self.take_slot(key, State::Learnt, port, expiry, now) {
            return Learn::New;
        }
        self.give_back(port);
        Learn::TableFull
    }

    /// Takes a free or expired slot of the key's row and publishes the entry in it; false if
    /// there is none. Afterwards the key is there once.
    fn take_slot(&self, key: u64, state: State, port: PortId, expiry: u32, now: u32) -> bool {
        for slot in self.row(key) {
            let old = slot.load();
            let vacant = match old.state() {
                State::Free => true,
                State::Learnt => old.is_expired(now),
                State::Busy | State::Static => false,
            };
            let generation =
                old.generation().wrapping_add(1) & ((1 << (64 - GENERATION_SHIFT)) - 1);
            if !vacant || !slot.replace(old, Value::new(generation, State::Busy, port, 0)) {
                continue;
            }
            if old.state() == State::Learnt {
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

    /// Frees all entries of `key` but one: the static one if there is one, else the first.
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
            // Without a static one, only what stands behind the first: one that appeared in
            // front of it since is the first to whoever put it there, and two who each free
            // the other's would leave none.
            if at == kept || (pinned.is_none() && at < kept) {
                continue;
            }
            while let Some(value) = slot.read(key) {
                // One that became static since the choice was made is not for others to free.
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
        if freed && value.state() == State::Learnt {
            self.give_back(value.port());
        }
        freed
    }

    /// Pins `mac` to `port`, whatever was known of it: never learnt anew, never forgotten, in
    /// nobody's limit. False if the address is no unicast one or its row is full. For the
    /// control plane, one thread at a time.
    pub fn set_static(&self, domain: Domain, mac: Mac, port: PortId, now: Instant) -> bool {
        if !mac.is_unicast() || port.index() >= PORTS {
            return false;
        }
        let key = key(domain, mac);
        for slot in self.row(key) {
            while let Some(old) = slot.read(key) {
                let new = Value::new(old.generation(), State::Static, port, 0);
                if slot.replace(old, new) {
                    if old.state() == State::Learnt {
                        self.give_back(old.port());
                    }
                    self.keep_one(key);
                    return true;
                }
            }
        }
        self.take_slot(key, State::Static, port, 0, seconds(now))
    }

    /// Forgets `mac`, learnt or static; false if it was not there.
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

    /// Forgets what `keep` says no to; returns how many. Goes through the whole table: for the
    /// control plane. What workers learn meanwhile may stay.
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

    /// Forgets every address at `port`, static ones too; returns how many. For a port that has
    /// gone, after the workers stopped receiving from it.
    pub fn flush_port(&self, port: PortId) -> usize {
        self.retain(Instant::ZERO, |entry| entry.port != port)
    }

    /// Frees what has expired among the next `budget` slots; returns how many. A worker calls
    /// this once a poll; between them they come round.
    pub fn sweep(&self, now: Instant, budget: usize) -> usize {
        let now = seconds(now);
        let budget = budget.min(self.slots.len());
        let start = self.cursor.fetch_add(budget, Ordering::Relaxed);
        let slots = (start..start + budget).map(|at| &self.slots[at & (self.slots.len() - 1)]);
        let expired = |slot: &&Slot| {
            let value = slot.load();
            value.state() == State::Learnt && value.is_expired(now) && self.free(slot, value)
        };
        slots.filter(expired).count()
    }

    /// Slots that there are, for [`sweep`](Self::sweep) to go round.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Every entry that has not expired, in no order. Goes through the whole table.
    pub fn dump(&self, now: Instant) -> Vec<Entry> {
        let now = seconds(now);
        let entries = self.slots.iter().filter_map(Slot::snapshot);
        entries.filter(|(_, v)| !v.is_expired(now)).map(|(k, v)| entry(k, v, now)).collect()
    }

    /// Addresses learnt from `port` that are still there.
    pub fn learnt(&self, port: PortId) -> u32 {
        self.learnt.get(port.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn row(&self, key: u64) -> &[Slot] {
        // Twice: addresses often count up, and one multiplication leaves them in step.
        let [a, b] = self.secret;
        let hash = fold(fold(key ^ a, b) ^ b, a | 1);
        let start = (hash as usize).wrapping_mul(WAYS) & (self.slots.len() - 1);
        &self.slots[start..start + WAYS]
    }

    /// Counts one more address for `port`, unless that would be more than `limit`.
    fn reserve(&self, port: PortId, limit: u32) -> bool {
        let more = |count| (count < limit).then_some(count + 1);
        let count = &self.learnt[port.index()];
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, port: PortId) {
        self.learnt[port.index()].fetch_sub(1, Ordering::Relaxed);
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// The key word; never zero for a unicast address.
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
