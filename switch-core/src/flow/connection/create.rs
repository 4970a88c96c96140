//! Creation of connections. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::{Relaxed, Release};
use core::sync::atomic::fence;

use podswitch_vxlan::vtep::VtepIndex;
use podswitch_wire::flow_key::FlowKey;

use super::facts::{Facts, ReplyFacts};
use super::slot::Slot;
use super::sync::AtomicU32;
use super::tracker::{Shard, Tracker};
use super::{
    Account, CHUNK, Charge, ConnectionRef, Created, IndexHash, OpenedAt, Pinned, Refused, SOURCES,
    TrackerConfig,
};

impl Tracker {
    /// Creates the connection `pinned`, or finds the existing one with its original key. Both
    /// directions are in the index when this returns.
    ///
    /// # Errors
    /// [`Refused`] says which limit was reached; nothing was changed.
    pub fn create(&self, pinned: &Pinned, now_secs: u32) -> Result<Created, Refused> {
        let at = OpenedAt::second(now_secs);
        self.create_at(self.index_hash_of(&pinned.original), pinned, at)
    }

    /// As [`create`](Self::create). `hash`: the index hash of the original key. `at`: the time, and the
    /// snapshot that allowed it.
    ///
    /// # Errors
    /// As `create`.
    #[inline]
    pub fn create_at(
        &self,
        hash: IndexHash,
        pinned: &Pinned,
        at: OpenedAt,
    ) -> Result<Created, Refused> {
        // All counts are raised first: once the connection is in the index, others can find it and end it.
        self.charge(pinned)?;
        let reply = pinned.original.reversed();
        let created = if pinned.reply == reply {
            self.create_untranslated(hash, pinned, &reply, at)
        } else {
            self.create_translated(hash, pinned, at)
        };
        if !matches!(created, Ok(Created::New(_))) {
            self.live.fetch_sub(1, Relaxed);
            self.discharge_all(pinned);
        }
        created
    }

    /// A connection without translation: one index entry for both directions, and one lock.
    #[inline]
    fn create_untranslated(
        &self,
        hash: IndexHash,
        pinned: &Pinned,
        reply: &FlowKey,
        at: OpenedAt,
    ) -> Result<Created, Refused> {
        let mut home = self.lock(self.shard_of(hash.0));
        if home.index.may_have(hash.0) {
            if let Some(known) = self.find_known(&home, hash, &pinned.original) {
                return Ok(Created::Existing(known));
            }
            if self.find_slot(&home, hash, reply).is_some() {
                return Err(Refused::Collision);
            }
        }
        let number = self.take_slot(&mut home).ok_or(Refused::Full)?;
        let connection = self.open(number, pinned, hash, at).ok_or(Refused::Full)?;
        self.index_insert(&mut home, hash, number << 1);
        Ok(Created::New(connection))
    }

    /// A translated connection: one index entry for each direction, maybe in two shards.
    fn create_translated(
        &self,
        hash: IndexHash,
        pinned: &Pinned,
        at: OpenedAt,
    ) -> Result<Created, Refused> {
        let reply_hash = self.index_hash_of(&pinned.reply);
        let [first, second] = [hash, reply_hash].map(|hash| self.shard_of(hash.0));
        // The lower shard is always locked first, so that workers cannot deadlock.
        let mut low = self.lock(first.min(second));
        let mut high = (first != second).then(|| self.lock(first.max(second)));
        let (home, other) = match &mut high {
            None => (&mut *low, None),
            Some(high) if first < second => (&mut *low, Some(&mut **high)),
            Some(high) => (&mut **high, Some(&mut *low)),
        };
        if let Some(known) = self.find_known(home, hash, &pinned.original) {
            return Ok(Created::Existing(known));
        }
        let reply_shard = other.as_deref().unwrap_or(home);
        if self.find_slot(reply_shard, reply_hash, &pinned.reply).is_some() {
            return Err(Refused::Collision);
        }
        let number = self.take_slot(home).ok_or(Refused::Full)?;
        self.reply_facts_for(number).ok_or(Refused::Full)?.store(&pinned.reply, reply_hash.0);
        let connection = self.open(number, pinned, hash, at).ok_or(Refused::Full)?;
        self.index_insert(home, hash, number << 1);
        self.index_insert(other.unwrap_or(home), reply_hash, number << 1 | 1);
        Ok(Created::New(connection))
    }

    /// Adds one connection to the counts of its account, its source and the table, unless one of them
    /// has reached its limit.
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

    /// Removes a connection that was not created from the counts of its account and source.
    fn discharge_all(&self, pinned: &Pinned) {
        self.discharge(pinned.account(), 1);
        if let Some(end) = pinned.origin_end {
            self.discharge_source(&pinned.original, end);
        }
    }

    pub(super) fn discharge_source(&self, original: &FlowKey, end: VtepIndex) {
        if let Some(n) = self.by_source.get(self.source_of(original, end)) {
            n.fetch_sub(1, Relaxed);
        }
    }

    /// The count for the source of packets with this key from a VTEP.
    fn source_of(&self, original: &FlowKey, end: VtepIndex) -> usize {
        let FlowKey { src, family, .. } = *original;
        let [src_port, dst_port] = [end.0 as u16, (end.0 >> 16) as u16];
        let key = FlowKey { src, family, src_port, dst_port, ..FlowKey::default() };
        key.hash(&self.config.hash_key) as usize % SOURCES
    }

    /// Whether a connection is charged to the account, or source, of `charge`.
    pub(super) fn is_charged(&self, facts: &Facts, charge: &Charge) -> bool {
        facts.account() == charge.account
            && charge.source.is_none_or(|source| {
                let its = |end| self.source_of(&facts.original(), end) as u32 == source;
                facts.origin_end().is_some_and(its)
            })
    }

    /// Removes connections from an account.
    pub(super) fn discharge(&self, account: Account, connections: u32) {
        if let Some(n) = self.count_of(account) {
            n.fetch_sub(connections, Relaxed);
        }
    }

    /// Takes a free slot, of a new chunk if necessary. `None`: all chunks exist already.
    fn take_slot(&self, shard: &mut Shard) -> Option<u32> {
        // Another process that copies the table without a lock sees the end of the slot's last connection before the
        // facts of the next one. No instruction on x86.
        fence(Release);
        if let Some(number) = shard.free.pop() {
            return Some(number);
        }
        let chunk = self.chunks_made.fetch_add(1, Relaxed) as usize;
        let Some(cell) = self.chunks.get(chunk) else {
            self.chunks_made.fetch_sub(1, Relaxed);
            return None;
        };
        let new = || (0..CHUNK).map(|_| Slot::new()).collect();
        cell.get_or_init(|| self.memory.slots(chunk, new));
        shard.chunks.push(chunk as u32);
        let base = (chunk * CHUNK) as u32;
        shard.free.extend((base + 1..base + CHUNK as u32).rev());
        Some(base)
    }

    /// Where the reply key of a translated connection is stored.
    fn reply_facts_for(&self, number: u32) -> Option<&ReplyFacts> {
        let number = number as usize;
        let chunk = number / CHUNK;
        let cell = self.replies.get(chunk)?;
        let new = || (0..CHUNK).map(|_| ReplyFacts::new()).collect();
        cell.get_or_init(|| self.memory.replies(chunk, new)).get(number % CHUNK)
    }

    /// Stores the facts of a connection in its slot, and opens the slot.
    #[inline]
    fn open(
        &self,
        number: u32,
        pinned: &Pinned,
        hash: IndexHash,
        at: OpenedAt,
    ) -> Option<ConnectionRef> {
        let slot = self.slot(number)?;
        slot.facts.store(pinned, hash.0);
        let generation = slot.open(pinned.original.proto, at);
        Some(ConnectionRef { slot: number << 1, generation })
    }
}

/// Increments a count that is below `limit`; false if it is not.
fn take_below(count: &AtomicU32, limit: u32) -> bool {
    count.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).is_ok()
}
