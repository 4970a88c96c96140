//! What a burst's first packets will ask for is brought near for all of them before the first is
//! judged, so that the waits for main memory overlap.

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
        let missed = |i: &usize| plain & 1 << i != 0 && ids[*i].is_none();
        let mut left = (from..BATCH).filter(missed);
        let Some(first) = left.next() else { return };
        let tracker = &self.shared.tracker;
        let mut read = 0;
        for parsed in left.map(|i| &self.parsed[i]) {
            tracker.prefetch_place(tracker.place(&parsed.key, parsed.hash));
            let destination = parsed.key.dst_addr();
            read += snapshot.policy.read_ahead(destination);
            read += u32::from(snapshot.endpoints.contains_key(&destination));
        }
        let _ = (first, core::hint::black_box(read));
    }
}
