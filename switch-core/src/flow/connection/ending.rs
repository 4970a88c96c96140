//! The end of connections, several at a time. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::Relaxed;

use super::slot::is_over;
use super::tracker::Tracker;
use super::{CHUNK, ConnectionRef, IndexHash};
use crate::prefetch::prefetch;

/// Slots that are examined, and ended, under one lock. A chunk is a multiple of it, and belongs to
/// one shard.
const GROUP: usize = if CHUNK < 32 { CHUNK } else { 32 };

impl Tracker {
    /// Ends a connection: removes both keys from the index and frees the slot. False if it had ended
    /// already.
    pub fn end(&self, connection: ConnectionRef) -> bool {
        let number = connection.slot >> 1;
        let claimed = self.slot(number).is_some_and(|slot| slot.claim(connection.generation));
        if claimed {
            self.end_claimed(&[number]);
        }
        claimed
    }

    /// Ends connections that have timed out among the slots `from..from + count`. Each worker sweeps
    /// its own share. Under `pressure`, connections that are closed, not yet established or without
    /// a reply end after [`PRESSURE_SECS`](super::PRESSURE_SECS): RFC 5382 REQ-5 and RFC 4787 allow
    /// that (T-C5). Returns how many ended.
    pub fn sweep(&self, from: usize, count: usize, now_secs: u32, pressure: bool) -> usize {
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
            self.end_claimed(&over[..many]);
            ended += many;
            at = stop;
        }
        ended
    }

    /// Removes connections that the caller has claimed from the index, and releases what they held.
    /// All are of one chunk.
    fn end_claimed(&self, numbers: &[u32]) {
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
            // Another connection may have the port only when the index leads to it no more.
            if slot.facts.has_lease() {
                self.nat.release(&slot.facts.pinned(|| self.reply_facts(number)));
            }
            let account = slot.facts.account();
            if account != charged.0 {
                self.discharge(charged.0, charged.1);
                charged = (account, 0);
            }
            charged.1 += 1;
            shard.free.push(number);
        }
        drop(shard);
        self.discharge(charged.0, charged.1);
        self.live.fetch_sub(numbers.len() as u32, Relaxed);
    }
}
