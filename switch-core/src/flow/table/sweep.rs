//! Expiry of flow entries, and the packet counts that they hold.

use arrayvec::ArrayVec;

use super::{EntryId, FlowTable};
use crate::flow::connection::ConnectionRef;

/// Entries that the sweep examines together, so that their cache misses overlap.
const GROUP: usize = 32;

/// Packets and bytes that were counted in an entry and not yet in its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingCounts {
    /// The connection.
    pub connection: ConnectionRef,
    /// Packets.
    pub packets: u32,
    /// Bytes.
    pub bytes: u32,
}

impl FlowTable {
    /// Examines up to `budget` entries, continuing where the last call ended, and removes those for which `is_over`
    /// (connection, second of the last update modulo 2^31) returns true. The counts of all others become
    /// [pending](Self::take_pending). `prefetch` is called with connections for which `is_over` will be called soon.
    pub fn sweep(
        &mut self,
        budget: usize,
        prefetch: impl Fn(ConnectionRef),
        mut is_over: impl FnMut(ConnectionRef, u32) -> bool,
    ) {
        let mut left = budget.min(self.lines.len());
        while left > 0 {
            let first = if self.sweep + 1 >= self.lines.len() { 0 } else { self.sweep + 1 };
            if first == 0 {
                self.presence.end_round();
            }
            let group = first..self.lines.len().min(first + left.min(GROUP));
            left -= group.len();
            self.sweep = group.end - 1;
            self.connections[group.clone()].iter().for_each(|connection| prefetch(*connection));
            let mut over: ArrayVec<(EntryId, u64), GROUP> = ArrayVec::new();
            for at in group {
                let connection = self.connections[at];
                if connection.is_none() {
                    continue;
                }
                let (id, line) = (EntryId(at as u32), &self.lines[at]);
                if is_over(connection, line.seen.seconds()) {
                    let hash = line.key.hash(&self.hash_key);
                    self.index.prefetch(hash);
                    over.push((id, hash));
                } else {
                    self.flush_counts(id);
                    self.presence.visited(&self.groups_of(id));
                }
            }
            for (id, hash) in over {
                self.remove_hashed(id, hash);
            }
        }
    }

    /// Moves the counts of an entry to `pending`.
    pub(super) fn flush_counts(&mut self, id: EntryId) {
        let line = &mut self.lines[id.0 as usize];
        if line.is_followed() {
            return;
        }
        let [packets, bytes] = core::mem::take(&mut line.tail);
        if packets != 0 {
            let connection = self.connections[id.0 as usize];
            self.pending.push(PendingCounts { connection, packets, bytes });
        }
    }

    /// Reverts the result [`Follow::Flush`](super::Follow::Flush) because the connection has ended: the packet is not
    /// counted, and the earlier packets become [pending](Self::take_pending).
    #[cold]
    #[inline(never)]
    pub fn give_back(&mut self, id: EntryId, counts: PendingCounts) {
        let line = &mut self.lines[id.0 as usize];
        if !line.is_followed() {
            line.tail = [0; 2];
        }
        if counts.packets != 0 {
            self.pending.push(counts);
        }
    }

    /// Makes all counts [pending](Self::take_pending).
    pub fn flush_all(&mut self) {
        for number in 0..self.lines.len() {
            if !self.connections[number].is_none() {
                self.flush_counts(EntryId(number as u32));
            }
        }
    }

    /// Takes the counts that connections must be updated with.
    pub fn take_pending(&mut self) -> impl Iterator<Item = PendingCounts> {
        self.pending.drain(..)
    }
}
