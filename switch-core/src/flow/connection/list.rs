//! Listing of connections. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::Relaxed;

use podswitch_wire::flow_key::proto;

use super::tracker::Tracker;
use super::{CHUNK, ConnectionInfo, ConnectionRef, SHARDS};

impl Tracker {
    /// Calls `each` for every live connection, chunk by chunk. Not a consistent snapshot: connections
    /// open and end meanwhile.
    pub fn list(&self, mut each: impl FnMut(ConnectionInfo)) {
        for shard in 0..SHARDS {
            for at in 0.. {
                let Some(chunk) = self.lock(shard).chunks.get(at).copied() else { break };
                self.infos_of(shard, chunk).into_iter().for_each(&mut each);
            }
        }
    }

    /// The connections of one chunk.
    fn infos_of(&self, shard: usize, chunk: u32) -> Vec<ConnectionInfo> {
        // While the lock is held, no slot of the shard is opened again.
        let _held = self.lock(shard);
        let base = chunk * CHUNK as u32;
        let in_use = |number: &u32| self.slot(*number).is_some_and(|s| s.generation() & 1 == 1);
        let numbers = base..base + CHUNK as u32;
        numbers.filter(in_use).filter_map(|number| self.info(number)).collect()
    }

    /// The state of the connection in a slot. The caller holds the lock of the slot's shard, and the slot is in
    /// use or was claimed by the caller and not freed yet.
    pub(super) fn info(&self, number: u32) -> Option<ConnectionInfo> {
        let slot = self.slot(number)?;
        let [a, b] = &slot.lanes;
        let pinned = slot.facts.pinned(|| self.reply_facts(number));
        // Claiming made an odd generation even.
        let generation = slot.generation().wrapping_sub(1) | 1;
        let is_tcp = pinned.original.proto == proto::TCP;
        Some(ConnectionInfo {
            connection: ConnectionRef { slot: number << 1, generation },
            pinned,
            opened: slot.opened(),
            packets: [a.packets.load(Relaxed), b.packets.load(Relaxed)],
            bytes: [a.bytes.load(Relaxed), b.bytes.load(Relaxed)],
            tcp: is_tcp.then(|| [a.side().state, b.side().state]),
            is_recorded: slot.facts.is_recorded(),
            is_resumed: slot.facts.is_resumed(),
            last_seen: a.last_seen.load(Relaxed).max(b.last_seen.load(Relaxed)),
        })
    }
}
