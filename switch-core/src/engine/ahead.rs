//! What a burst's first packets will ask for is brought near for all of them before the first is
//! judged, so that the waits for main memory overlap. Decides nothing.

use core::hint::black_box;

use wire::flow_key::{FlowKey, to_octets};

use super::Engine;
use crate::flow::table::EntryId;
use crate::packet::BATCH;
use crate::snapshot::Snapshot;

impl Engine {
    /// `plain` has a bit for each packet of the burst that is looked up, `ids` what was found for it;
    /// those before `from` are done with.
    #[inline(never)]
    pub(super) fn read_ahead(
        &self,
        snapshot: &Snapshot,
        from: usize,
        plain: u64,
        ids: &[EntryId; BATCH],
    ) {
        let tracker = &self.shared.tracker;
        let (mut keys, mut count) = ([FlowKey::default(); BATCH], 0);
        let missed = |i: &usize| plain & 1 << i != 0 && ids[*i].is_none();
        for (key, i) in keys.iter_mut().zip((from..BATCH).filter(missed)) {
            let parsed = &self.parsed[i];
            *key = parsed.key;
            tracker.prefetch_place(tracker.place(key, parsed.hash));
            count += 1;
        }
        if count < 2 {
            return;
        }
        let (keys, mut backends) = (&keys[..count], [None; BATCH]);
        snapshot.services.read_ahead(keys, &mut backends[..count]);
        for (key, backend) in keys.iter().zip(backends) {
            let mut towards = key.dst_addr();
            if let Some(backend) = backend {
                towards = backend.ip();
                let (dst, dst_port) = (to_octets(towards).0, backend.port());
                let reply = FlowKey { dst, dst_port, ..*key }.reversed();
                tracker.prefetch_place(tracker.place(&reply, reply.hash(&self.shared.hash_key)));
            }
            black_box(snapshot.policy.read_ahead(towards));
            black_box(snapshot.endpoints.contains_key(&towards));
        }
    }
}
