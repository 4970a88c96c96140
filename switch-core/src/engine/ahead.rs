//! What a burst's first packets will ask for is brought near for all of them before the first is
//! judged, so that the waits for main memory overlap; and kept, so that it need not be looked up again.
//! Decides nothing.

use core::hint::black_box;

use arrayvec::ArrayVec;
use podswitch_policy::service::table::Looked;
use podswitch_wire::flow_key::{FlowKey, to_bytes};

use super::Engine;
use crate::flow::connection::Place;
use crate::flow::table::EntryId;
use crate::packet::BATCH;
use crate::resolve::Likely;
use crate::snapshot::Snapshot;

/// What is known of a packet that did not hit.
#[derive(Clone, Copy, Default)]
pub(super) struct Ahead<'a, 's> {
    /// The worker's table has no entry of its key.
    pub(super) absent: bool,
    pub(super) note: Option<&'a Note<'s>>,
}

/// What was read ahead of one packet.
pub(super) struct Note<'s> {
    /// Its number in the burst.
    at: u8,
    /// Where its key is in the tracker.
    pub(super) place: Place,
    pub(super) likely: Likely<'s>,
}

/// Those of a burst, in order.
#[derive(Default)]
pub(super) struct Notes<'s> {
    list: ArrayVec<Note<'s>, BATCH>,
    /// How many are of packets that are done with.
    done: usize,
}

impl<'s> Notes<'s> {
    /// That of packet `at`. Asked for in order.
    #[inline]
    pub(super) fn of(&mut self, at: usize) -> Option<&Note<'s>> {
        while self.list.get(self.done).is_some_and(|note| usize::from(note.at) < at) {
            self.done += 1;
        }
        self.list.get(self.done).filter(|note| usize::from(note.at) == at)
    }
}

impl Engine {
    /// `plain` has a bit for each packet of the burst that is looked up, `ids` what was found for it;
    /// those before `from` are done with.
    #[inline(never)]
    pub(super) fn read_ahead<'s>(
        &self,
        snapshot: &'s Snapshot,
        from: usize,
        plain: u64,
        ids: &[EntryId; BATCH],
        notes: &mut Notes<'s>,
    ) {
        let tracker = &self.shared.tracker;
        let mut keys: ArrayVec<FlowKey, BATCH> = ArrayVec::new();
        let mut places: ArrayVec<(u8, Place), BATCH> = ArrayVec::new();
        for (i, id) in ids.iter().enumerate().skip(from) {
            if plain & 1 << i == 0 || !id.is_none() {
                continue;
            }
            let parsed = &self.parsed[i];
            let place = tracker.place(&parsed.key, parsed.hash);
            tracker.prefetch_place(place);
            keys.push(parsed.key);
            places.push((i as u8, place));
        }
        let Some(first) = keys.first().filter(|_| keys.len() > 1) else { return };
        let mut looked = [Looked::default(); BATCH];
        snapshot.services.read_ahead(&keys, &mut looked[..keys.len()]);
        // A burst is nearly always one sender's.
        let mut client = snapshot.policy.party(first.src_addr());
        for ((key, service), (at, place)) in keys.iter().zip(looked).zip(places) {
            let mut towards = key.dst_addr();
            if let Some(backend) = service.backend() {
                towards = backend.ip();
                let (dst, dst_port) = (to_bytes(towards).0, backend.port());
                let reply = FlowKey { dst, dst_port, ..*key }.reversed();
                tracker.prefetch_place(tracker.place(&reply, reply.hash(&self.shared.hash_key)));
            }
            let from = key.src_addr();
            if client.address() != from {
                client = snapshot.policy.party(from);
            }
            let backend = snapshot.policy.party(towards);
            black_box(snapshot.policy.read_ahead(&backend));
            let to = snapshot.endpoints.get(&towards);
            let likely = Likely { service, client, backend, to };
            notes.list.push(Note { at, place, likely });
        }
    }
}
