//! Prefetch for a burst's first packets: the memory that their evaluation will read is prefetched
//! for all of them before the first is evaluated, so that the cache misses overlap. The results of
//! the lookups are kept as [`Hints`]. Makes no decisions.

use core::hint::black_box;

use arrayvec::ArrayVec;
use podswitch_policy::service::table::Prefetched;
use podswitch_wire::flow_key::{FlowKey, to_bytes};

use super::Engine;
use crate::flow::connection::IndexHash;
use crate::flow::table::EntryId;
use crate::packet::BATCH;
use crate::resolve::Hints;
use crate::snapshot::Snapshot;

/// Facts about a packet that missed.
#[derive(Clone, Copy, Default)]
pub(super) struct MissInfo<'a, 's> {
    /// The worker's table has no entry with its key.
    pub(super) is_absent: bool,
    pub(super) lookups: Option<&'a Lookups<'s>>,
}

/// Lookups made in advance for one packet.
pub(super) struct Lookups<'s> {
    /// The packet's index in the burst.
    packet: u8,
    /// Hash of its key in the connection table's index.
    pub(super) index_hash: IndexHash,
    pub(super) hints: Hints<'s>,
}

/// The lookups for a burst, in packet order.
#[derive(Default)]
pub(super) struct BurstLookups<'s> {
    list: ArrayVec<Lookups<'s>, BATCH>,
    /// The number of lookups whose packets have been processed.
    done: usize,
}

impl<'s> BurstLookups<'s> {
    /// The lookups of packet `packet`. Must be called in packet order.
    #[inline]
    pub(super) fn of(&mut self, packet: usize) -> Option<&Lookups<'s>> {
        while self.list.get(self.done).is_some_and(|l| usize::from(l.packet) < packet) {
            self.done += 1;
        }
        self.list.get(self.done).filter(|l| usize::from(l.packet) == packet)
    }
}

impl Engine {
    /// Makes the lookups for all packets of the burst, from packet `from` on, that are `eligible`
    /// for the fast path and have no candidate entry.
    #[inline(never)]
    pub(super) fn prefetch_misses<'s>(
        &self,
        snapshot: &'s Snapshot,
        from: usize,
        eligible: u64,
        candidates: &[EntryId; BATCH],
        lookups: &mut BurstLookups<'s>,
    ) {
        let tracker = &self.shared.tracker;
        let mut keys: ArrayVec<FlowKey, BATCH> = ArrayVec::new();
        let mut packets: ArrayVec<(u8, IndexHash), BATCH> = ArrayVec::new();
        for (i, candidate) in candidates.iter().enumerate().skip(from) {
            if eligible & 1 << i == 0 || !candidate.is_none() {
                continue;
            }
            let parsed = &self.parsed[i];
            let index_hash = tracker.index_hash(&parsed.key, parsed.hash);
            tracker.prefetch_index(index_hash);
            keys.push(parsed.key);
            packets.push((i as u8, index_hash));
        }
        let Some(first) = keys.first().filter(|_| keys.len() > 1) else { return };
        let mut frontends = [Prefetched::default(); BATCH];
        snapshot.services.prefetch(&keys, &mut frontends[..keys.len()]);
        // The packets of a burst nearly always have one sender.
        let mut client = snapshot.policy.party(first.src_addr());
        for ((key, frontend), (packet, index_hash)) in keys.iter().zip(frontends).zip(packets) {
            let mut receiver = key.dst_addr();
            if let Some(backend) = frontend.backend() {
                receiver = backend.ip();
                let (dst, dst_port) = (to_bytes(receiver).0, backend.port());
                let reply = FlowKey { dst, dst_port, ..*key }.reversed();
                let hash = reply.hash(&self.shared.hash_key);
                tracker.prefetch_index(tracker.index_hash(&reply, hash));
            }
            let sender = key.src_addr();
            if client.address() != sender {
                client = snapshot.policy.party(sender);
            }
            let backend = snapshot.policy.party(receiver);
            black_box(snapshot.policy.prefetch(&backend));
            let to = snapshot.endpoints.get(&receiver);
            let hints = Hints { frontend, client, backend, to };
            lookups.list.push(Lookups { packet, index_hash, hints });
        }
    }
}
