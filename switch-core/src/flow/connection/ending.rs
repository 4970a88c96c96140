//! How connections end: at once, many at a time. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::Relaxed;

use super::slot::{Worth, is_over, worth};
use super::tracker::Tracker;
use super::{CHUNK, Charge, ConnectionRef, Place};
use crate::prefetch::prefetch;

/// Slots looked at, and at most ended, under one lock. A chunk is a multiple: its slots are of one
/// shard.
const TOGETHER: usize = if CHUNK < 32 { CHUNK } else { 32 };

/// The most slots that one search for something to end looks at, and of those in use.
const RECLAIM_SLOTS: usize = 4096;
const RECLAIM_USED: usize = 256;

impl Tracker {
    /// Ends a connection: both keys leave the index, the slot is free for another. False: it has
    /// ended already.
    pub fn end(&self, connection: ConnectionRef) -> bool {
        let number = connection.slot >> 1;
        let claimed = self.slot(number).is_some_and(|slot| slot.claim(connection.generation));
        if claimed {
            self.end_claimed(&[number]);
        }
        claimed
    }

    /// Ends a connection that gives way to another: one that is over, or that nobody has answered for
    /// `patience` seconds. `None`: unanswered ones stay. False: it stays.
    pub fn give_way(
        &self,
        connection: ConnectionRef,
        patience: Option<u32>,
        now_secs: u32,
    ) -> bool {
        let Some(slot) = self.slot(connection.slot >> 1) else { return false };
        let goes = match worth(slot, now_secs) {
            (Worth::Over, _) => true,
            (Worth::Unproven, idle) => patience.is_some_and(|patience| idle >= patience),
            (Worth::Live, _) => false,
        };
        goes && self.end(connection)
    }

    /// Makes room for a new connection that would be charged like `charge`, or for any. Looks at a
    /// limited number of slots from `from` on: ends what is over and what nobody has answered for a
    /// second, or if there is neither, one that nobody has answered. Returns how many ended, and where
    /// the next search begins.
    pub fn reclaim(&self, from: usize, charge: Option<&Charge>, now_secs: u32) -> (usize, usize) {
        let (mut ended, mut young, mut used) = (0, None, 0);
        let (mut at, end) = (from, (from + RECLAIM_SLOTS).min(self.slots()));
        while at < end && used < RECLAIM_USED {
            let stop = end.min((at / TOGETHER + 1) * TOGETHER);
            let Some(chunk) = self.chunks.get(at / CHUNK).and_then(|chunk| chunk.get()) else {
                break;
            };
            let first = at / CHUNK * CHUNK;
            let (mut over, mut many) = ([0; TOGETHER], 0);
            for (slot, number) in chunk[at - first..stop - first].iter().zip(at as u32..) {
                let generation = slot.generation();
                if generation & 1 == 0 {
                    continue;
                }
                used += 1;
                let (worth, idle) = worth(slot, now_secs);
                if worth == Worth::Live
                    || charge.is_some_and(|charge| !self.is_charged(&slot.facts, charge))
                {
                    continue;
                }
                if worth == Worth::Unproven && idle == 0 {
                    young.get_or_insert(ConnectionRef { slot: number << 1, generation });
                } else if slot.claim(generation) {
                    over[many] = number;
                    many += 1;
                }
            }
            self.end_claimed(&over[..many]);
            ended += many;
            at = stop;
        }
        if let Some(connection) = young.filter(|_| ended == 0) {
            ended += usize::from(self.end(connection));
        }
        (ended, if at < self.slots() { at } else { 0 })
    }

    /// Ends what has been idle too long among the slots `from..from + count`. Each worker looks
    /// after its own share. Under `pressure` closed, embryonic and unreplied connections go after
    /// [`PRESSURE_SECS`](super::PRESSURE_SECS) (RFC 5382 REQ-5 and RFC 4787 leave that to need; T-C5).
    pub fn sweep(&self, from: usize, count: usize, now_secs: u32, pressure: bool) -> usize {
        let (mut at, end, mut ended) = (from, from + count, 0);
        while at < end {
            let stop = end.min((at / TOGETHER + 1) * TOGETHER);
            let Some(chunk) = self.chunks.get(at / CHUNK).and_then(|chunk| chunk.get()) else {
                break;
            };
            let first = at / CHUNK * CHUNK;
            let (mut over, mut many) = ([0; TOGETHER], 0);
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

    /// Takes connections that the caller has claimed, all of one chunk, out of the index, and gives
    /// back all that they had.
    fn end_claimed(&self, numbers: &[u32]) {
        let Some(chunk) = numbers.first().and_then(|number| self.chunk_of(*number)) else { return };
        let at = |number: u32| chunk.get(number as usize % CHUNK);
        let slots = || numbers.iter().filter_map(|&number| Some((number, at(number)?)));
        let Some((_, first)) = slots().next() else { return };
        let home = self.shard_of(first.facts.place.load(Relaxed));
        let answers = || {
            let translated = slots().filter(|(_, slot)| slot.facts.is_translated());
            translated.filter_map(|(number, _)| {
                let place = self.answer(number)?.place.load(Relaxed);
                Some((number, place))
            })
        };
        let mut translated = false;
        for (_, slot) in slots() {
            self.prefetch_place(Place(slot.facts.place.load(Relaxed)));
            translated |= slot.facts.is_translated();
        }
        if translated {
            answers().for_each(|(_, place)| self.prefetch_place(Place(place)));
            for (number, place) in answers() {
                self.lock(self.shard_of(place)).index.remove(place, number << 1 | 1);
            }
        }
        let mut shard = self.lock(home);
        // Neighbours in the table are often of one origin.
        let mut charged = (first.facts.account(), 0);
        for (number, slot) in slots() {
            shard.index.remove(slot.facts.place.load(Relaxed), number << 1);
            // Only now that nothing leads to the port any more may another connection have it.
            if slot.facts.has_lease() {
                self.nat.release(&slot.facts.pinned(|| self.answer(number)));
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
            shard.free.push(number);
        }
        drop(shard);
        self.discharge(charged.0, charged.1);
        self.live.fetch_sub(numbers.len() as u32, Relaxed);
    }
}
