//! Listing of connections. Compiled a second time by `model.rs`.

use core::sync::atomic::Ordering::Relaxed;

use podswitch_wire::flow_key::proto;

use super::tracker::Tracker;
use super::{CHUNK, ConnectionInfo, Direction, Known, SHARDS};

impl Tracker {
    /// Calls `each` for every live connection, chunk by chunk. Not a consistent snapshot: connections
    /// open and end meanwhile.
    pub fn list(&self, mut each: impl FnMut(ConnectionInfo)) {
        for shard in 0..SHARDS {
            for at in 0.. {
                let Some(chunk) = self.lock(shard).chunks.get(at).copied() else { break };
                for k in self.known_of(shard, chunk) {
                    let lanes = [self.lane(k.connection), self.lane(k.connection.reversed())];
                    let [Some(a), Some(b)] = lanes else { continue };
                    let is_tcp = k.pinned.original.proto == proto::TCP;
                    each(ConnectionInfo {
                        pinned: k.pinned,
                        packets: [a.packets.load(Relaxed), b.packets.load(Relaxed)],
                        bytes: [a.bytes.load(Relaxed), b.bytes.load(Relaxed)],
                        tcp: is_tcp.then(|| [a.side().state, b.side().state]),
                        opened_at: a.opened_at.load(Relaxed),
                        last_seen: a.last_seen.load(Relaxed).max(b.last_seen.load(Relaxed)),
                    });
                }
            }
        }
    }

    /// The connections of one chunk.
    fn known_of(&self, shard: usize, chunk: u32) -> Vec<Known> {
        // While the lock is held, no slot of the shard is opened again.
        let _held = self.lock(shard);
        let base = chunk * CHUNK as u32;
        let numbers = base..base + CHUNK as u32;
        numbers.filter_map(|number| self.known(number, Direction::Original)).collect()
    }
}
