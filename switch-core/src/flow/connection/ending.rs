//! The end of connections, several at a time. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::Relaxed;

use super::slot::{EvictionClass, is_over, worth};
use super::tracker::Tracker;
use super::{CHUNK, Charge, ConnectionRef, IndexHash, OnEnd};
use crate::prefetch::prefetch;

/// Slots that are examined, and ended, under one lock. A chunk is a multiple of it, and belongs to
/// one shard.
const GROUP: usize = if CHUNK < 32 { CHUNK } else { 32 };

/// Maximum number of slots that one search for a connection to end examines, and maximum number of used slots among
/// them.
const RECLAIM_SLOTS: usize = 4096;
const RECLAIM_USED: usize = 256;

impl Tracker {
    /// Ends a connection: removes both keys from the index and frees the slot. False if it had ended
    /// already. `on_end` is notified with its last state, here and below.
    pub fn end(&self, connection: ConnectionRef, on_end: &mut impl OnEnd) -> bool {
        let number = connection.slot >> 1;
        let claimed = self.slot(number).is_some_and(|slot| slot.claim(connection.generation));
        if claimed {
            self.end_claimed(&[number], on_end);
        }
        claimed
    }

    /// Ends a connection in favour of another if it is over, or if it is unproven and has been idle for
    /// `patience` seconds. `None`: unproven ones stay. False: it was not ended.
    pub fn evict(
        &self,
        connection: ConnectionRef,
        patience: Option<u32>,
        now_secs: u32,
        on_end: &mut impl OnEnd,
    ) -> bool {
        let Some(slot) = self.slot(connection.slot >> 1) else { return false };
        let goes = match worth(slot, now_secs) {
            (EvictionClass::Over, _) => true,
            (EvictionClass::Unproven, idle) => patience.is_some_and(|patience| idle >= patience),
            (EvictionClass::Live, _) => false,
        };
        goes && self.end(connection, on_end)
    }

    /// Makes room for a new connection that would be charged like `charge`, or for any new connection. Examines a
    /// limited number of slots from `from` on. Ends the connections that are over, and those that are unproven and were
    /// idle for a second. If there are none, it ends one unproven connection. Returns how many ended, and where the
    /// next search begins.
    pub fn reclaim(
        &self,
        from: usize,
        charge: Option<&Charge>,
        now_secs: u32,
        on_end: &mut impl OnEnd,
    ) -> (usize, usize) {
        let (mut ended, mut young, mut used) = (0, None, 0);
        let (mut at, end) = (from, (from + RECLAIM_SLOTS).min(self.slots()));
        while at < end && used < RECLAIM_USED {
            let stop = end.min((at / GROUP + 1) * GROUP);
            let Some(chunk) = self.chunks.get(at / CHUNK).and_then(|chunk| chunk.get()) else {
                break;
            };
            let first = at / CHUNK * CHUNK;
            let (mut over, mut many) = ([0; GROUP], 0);
            for (slot, number) in chunk[at - first..stop - first].iter().zip(at as u32..) {
                let generation = slot.generation();
                if generation & 1 == 0 {
                    continue;
                }
                used += 1;
                let (worth, idle) = worth(slot, now_secs);
                if worth == EvictionClass::Live
                    || charge.is_some_and(|charge| !self.is_charged(&slot.facts, charge))
                {
                    continue;
                }
                if worth == EvictionClass::Unproven && idle == 0 {
                    young.get_or_insert(ConnectionRef { slot: number << 1, generation });
                } else if slot.claim(generation) {
                    over[many] = number;
                    many += 1;
                }
            }
            self.end_claimed(&over[..many], on_end);
            ended += many;
            at = stop;
        }
        if let Some(connection) = young.filter(|_| ended == 0) {
            ended += usize::from(self.end(connection, on_end));
        }
        (ended, if at < self.slots() { at } else { 0 })
    }

    /// Ends connections that have timed out among the slots `from..from + count`. Each worker sweeps
    /// its own share. Under `pressure`, connections that are closed, not yet established or without
    /// a reply end after [`PRESSURE_SECS`](super::PRESSURE_SECS): RFC 5382 REQ-5 and RFC 4787 allow
    /// that (T-C5). Returns how many ended.
    pub fn sweep(
        &self,
        from: usize,
        count: usize,
        now_secs: u32,
        pressure: bool,
        on_end: &mut impl OnEnd,
    ) -> usize {
        let (mut at, end, mut ended) = (from, from + count, 0);
        while at < end {
            let stop = end.min((at / GROUP + 1) * GROUP);
            let Some(chunk) = self.chunks.get(at / CHUNK).and_then(|chunk| chunk.get()) else {
                break;
            };
            let first = at / CHUNK * CHUNK;
            let (mut over, mut many) = ([0; GROUP], 0);
            for (slot, number) in chunk[at - first..stop - first].iter().zip(at as u32..) {
                let generation = slot.generation();
                if generation & 1 == 1
                    && is_over(slot, now_secs, pressure)
                    && slot.claim(generation)
                {
                    prefetch(&slot.facts);
                    over[many] = number;
                    many += 1;
                }
            }
            self.end_claimed(&over[..many], on_end);
            ended += many;
            at = stop;
        }
        ended
    }

    /// Removes connections that the caller has claimed from the index, and releases what they held.
    /// All are of one chunk.
    fn end_claimed(&self, numbers: &[u32], on_end: &mut impl OnEnd) {
        let Some(chunk) = numbers.first().and_then(|number| self.chunk_of(*number)) else { return };
        let at = |number: u32| chunk.get(number as usize % CHUNK);
        let slots = || numbers.iter().filter_map(|&number| Some((number, at(number)?)));
        let Some((_, first)) = slots().next() else { return };
        let home = self.shard_of(first.facts.index_hash.load(Relaxed));
        let replies = || {
            let translated = slots().filter(|(_, slot)| slot.facts.is_translated());
            translated.filter_map(|(number, _)| {
                let hash = self.reply_facts(number)?.index_hash.load(Relaxed);
                Some((number, hash))
            })
        };
        let mut translated = false;
        for (_, slot) in slots() {
            self.prefetch_index(IndexHash(slot.facts.index_hash.load(Relaxed)));
            translated |= slot.facts.is_translated();
        }
        if translated {
            replies().for_each(|(_, hash)| self.prefetch_index(IndexHash(hash)));
            for (number, hash) in replies() {
                self.lock(self.shard_of(hash)).index.remove(hash, number << 1 | 1);
            }
        }
        let mut shard = self.lock(home);
        // Neighbouring slots often have the same account.
        let mut charged = (first.facts.account(), 0);
        for (number, slot) in slots() {
            shard.index.remove(slot.facts.index_hash.load(Relaxed), number << 1);
            // Another connection may get the port only after the index no longer leads to this one.
            if slot.facts.has_lease() {
                self.nat.release(&slot.facts.pinned(|| self.reply_facts(number)));
            }
            if let Some(end) = slot.facts.origin_end() {
                self.discharge_source(&slot.facts.original(), end);
            }
            let account = slot.facts.account();
            if account != charged.0 {
                self.discharge(charged.0, charged.1);
                charged = (account, 0);
            }
            charged.1 += 1;
            // Its slot is not used again before it is freed.
            on_end.ended(|| self.info(number));
            shard.free.push(number);
        }
        drop(shard);
        self.discharge(charged.0, charged.1);
        self.live.fetch_sub(numbers.len() as u32, Relaxed);
    }
}
