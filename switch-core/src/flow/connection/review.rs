//! Connections that a change of the state denies, or whose pod it removed. A record says at once that they have ended, but
//! their slot is kept until they time out: it denies their packets by the connection's own direction, and if another
//! change allows them again, they go on, as opened anew.

use core::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use super::tracker::Tracker;
use super::{CHUNK, ConnectionInfo, ConnectionRef, OpenedAt};

/// Slots that are read under one lock.
const GROUP: usize = 32;

impl Tracker {
    /// Calls `each` for the connections in the slots `from..from + count`, without those that a record says have ended.
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

    /// Those in slots of one chunk.
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

    /// Notes that a record says that the connection has ended, and returns its last state. `None`: it has ended, or there
    /// is a record already.
    pub fn record_end(&self, connection: ConnectionRef) -> Option<ConnectionInfo> {
        self.with_recorded(connection, false, |number| self.info(number))
    }

    /// Whether a record says that the connection has ended.
    #[inline]
    pub fn is_recorded(&self, connection: ConnectionRef) -> bool {
        self.slot(connection.slot >> 1).is_some_and(|slot| slot.facts.is_recorded())
    }

    /// Notes that the connection goes on. False if no record said that it had ended.
    pub fn resume(&self, connection: ConnectionRef, at: OpenedAt) -> bool {
        let resumed = self.with_recorded(connection, true, |number| {
            self.slot(number)?.set_opened(at);
            Some(())
        });
        resumed.is_some()
    }

    /// Calls `f` with the slot if the note in it is as `expected`, and inverts the note.
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
