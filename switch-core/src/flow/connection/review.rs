//! Connections that a change of the state denies, or whose pod it removed. They are recorded as ended at once, but
//! their slots are kept until they time out: the slot denies their packets in the connection's own direction. If
//! another change allows them again, they continue and count as opened again.

use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::tracker::Tracker;
use super::{CHUNK, ConnectionInfo, ConnectionRef, OpenedAt};

/// Number of slots that are read under one lock.
const GROUP: usize = 32;

impl Tracker {
    /// Calls `each` for the connections in the slots `from..from + count`, except those already recorded as ended.
    pub fn review(&self, from: usize, count: usize, mut each: impl FnMut(ConnectionInfo)) {
        let (mut at, end) = (from, (from + count).min(self.slots()));
        while at < end {
            let stop = end.min((at / GROUP + 1) * GROUP);
            for info in self.infos_between(at, stop) {
                each(info);
            }
            at = stop;
        }
    }

    /// The same for the slots of one chunk.
    fn infos_between(&self, from: usize, to: usize) -> ArrayVec<ConnectionInfo, GROUP> {
        let chunk = self.chunks.get(from / CHUNK).and_then(|chunk| chunk.get());
        let base = from / CHUNK * CHUNK;
        let slots = chunk.and_then(|chunk| chunk.get(from - base..to - base)).unwrap_or_default();
        let in_use = || slots.iter().zip(from as u32..).filter(|(s, _)| s.generation() & 1 == 1);
        let Some((first, _)) = in_use().next() else { return ArrayVec::new() };
        // While the lock is held, no slot of the shard is opened again. All slots of a chunk belong to one shard.
        let _held = self.lock(self.shard_of(first.facts.index_hash.load(Relaxed)));
        let listed = in_use().filter(|(slot, _)| !slot.facts.is_recorded());
        listed.filter_map(|(_, number)| self.info(number)).collect()
    }

    /// Marks the connection as recorded as ended, and returns its last state. `None`: it has ended, or is marked
    /// already.
    pub fn record_end(&self, connection: ConnectionRef) -> Option<ConnectionInfo> {
        self.with_recorded(connection, false, |number| self.info(number))
    }

    /// Removes the mark, because the connection continues. False if it was not marked.
    pub fn resume(&self, connection: ConnectionRef, at: OpenedAt) -> bool {
        let Some(slot) = self.slot(connection.slot >> 1) else { return false };
        if !slot.facts.is_recorded() {
            return false;
        }
        let resumed = self.with_recorded(connection, true, |number| {
            self.slot(number)?.set_opened(at);
            Some(())
        });
        resumed.is_some()
    }

    /// Calls `f` with the slot if its mark is as `expected`, and inverts the mark.
    fn with_recorded<T>(
        &self,
        connection: ConnectionRef,
        expected: bool,
        f: impl FnOnce(u32) -> Option<T>,
    ) -> Option<T> {
        let number = connection.slot >> 1;
        let slot = self.slot(number)?;
        let _held = self.lock(self.shard_of(slot.facts.index_hash.load(Relaxed)));
        let is_same = slot.generation() == connection.generation;
        if !is_same || slot.facts.is_recorded() != expected {
            return None;
        }
        let result = f(number);
        slot.facts.set_recorded(!expected);
        result
    }
}
