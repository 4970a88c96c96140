//! Random datagrams, compared with a simple reference.

use proptest::prelude::*;

use super::*;

/// The reference: a map of bytes.
#[derive(Default)]
struct Plain {
    bytes: Vec<Option<u8>>,
    seen: Vec<(usize, Vec<u8>, bool)>,
    total: Option<usize>,
    rejected: bool,
}

impl Plain {
    fn put(&mut self, cut: &Cut) -> Outcome {
        if self.rejected {
            return Outcome::Dropped;
        }
        let this = (cut.offset, cut.data.clone(), cut.more);
        if self.seen.contains(&this) {
            return Outcome::Dropped;
        }
        self.bytes.resize(self.bytes.len().max(cut.end()), None);
        let overlaps = self.bytes[cut.offset..cut.end()].iter().any(Option::is_some);
        let beyond = self.seen.iter().any(|(at, data, _)| !cut.more && at + data.len() > cut.end());
        let moved = self.total.is_some_and(|t| cut.end() > t || (cut.end() == t) == cut.more);
        if overlaps || beyond || moved {
            self.rejected = true;
            return Outcome::Dropped;
        }
        for (i, byte) in cut.data.iter().enumerate() {
            self.bytes[cut.offset + i] = Some(*byte);
        }
        self.seen.push(this);
        if !cut.more {
            self.total = Some(cut.end());
        }
        let there = self.total.is_some_and(|t| self.bytes[..t].iter().all(Option::is_some));
        if there {
            *self = Self::default();
            return Outcome::Whole;
        }
        Outcome::Held
    }
}

/// Boundaries, in units of eight bytes, at which a datagram of `units` is fragmented, and the order of
/// the fragments.
fn split(units: usize) -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    prop::collection::btree_set(1..units, 1..8).prop_flat_map(move |at| {
        let points: Vec<usize> = [0].into_iter().chain(at).chain([units]).collect();
        let order: Vec<usize> = (0..points.len() - 1).collect();
        (Just(points), Just(order).prop_shuffle())
    })
}

proptest! {
    /// Any split in any order, some fragments twice: the datagram is released once, complete and in
    /// order.
    #[test]
    fn datagrams_are_complete_in_any_order(
        v6 in any::<bool>(),
        (points, order) in split(40),
        tail in 0usize..8,
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let total = 40 * 8 - tail;
        let pieces: Vec<Cut> = points
            .windows(2)
            .map(|w| {
                let piece = cut(v6, 77, w[0] * 8, (w[1] * 8).min(total) - w[0] * 8);
                if w[1] == 40 { piece.last() } else { piece }
            })
            .collect();
        let mut sequence = order.clone();
        for index in again {
            let at = index.index(sequence.len());
            sequence.insert(at, sequence[at]);
        }
        let mut bed = bed();
        let mut came_whole = 0;
        let mut put = 0;
        for index in &sequence {
            put += 1;
            if bed.put(&pieces[*index]) == Outcome::Whole {
                came_whole += 1;
                let pieces: Vec<_> = bed.out.whole.iter().map(offset_and_data).collect();
                prop_assert!(is_whole(&pieces, total));
                let first = bed.out.whole[0].parsed;
                prop_assert_eq!(first.fragment, Position::First);
                prop_assert_eq!((first.key.src_port, first.key.dst_port), (4000, 53));
            }
        }
        prop_assert_eq!(came_whole, 1);
        let ended = bed.out.whole.len() + bed.out.dropped.len();
        prop_assert_eq!(ended + bed.store.held(), put);
    }

    /// Any fragments in any order, including overlaps, wrong ends and changed bytes: the store has the same result as
    /// the map of bytes, and loses no packet.
    #[test]
    fn agrees_with_a_map_of_bytes(
        v6 in any::<bool>(),
        cuts in prop::collection::vec(
            (0usize..6, 1usize..5, prop::bool::weighted(0.7), prop::bool::weighted(0.05)),
            1..40,
        ),
    ) {
        let mut bed = bed();
        let mut plain = Plain::default();
        let mut forwarded = 0;
        let mut put = 0;
        for (at, len, more, changed) in cuts {
            let mut next = cut(v6, 5, at * 8, len * 8);
            next.more = more;
            if changed {
                *next.data.last_mut().unwrap() ^= 0x55;
            }
            if at == 0 && !more {
                continue; // Not a fragment.
            }
            let frame = next.frame();
            if parse(&frame, &secret()).is_err() {
                continue;
            }
            put += 1;
            let expected = plain.put(&next);
            prop_assert_eq!(bed.put(&next), expected, "{:?}", next);
            let (whole, dropped) = bed.take();
            prop_assert_eq!(!whole.is_empty(), expected == Outcome::Whole);
            forwarded += whole.len() + dropped.len();
            let mut at = 0;
            for (offset, data) in whole {
                prop_assert_eq!(usize::from(offset), at, "in order, without gaps");
                at += data.len();
            }
            prop_assert_eq!(bed.store.held() + forwarded, put);
        }
        bed.now = bed.now + 60 * SECOND;
        bed.expire();
        prop_assert_eq!(bed.take().1.len() + forwarded, put);
        prop_assert_eq!((bed.store.bytes(), bed.store.datagrams()), (0, 0));
        prop_assert_eq!(bed.pool.outstanding(), (0, 0));
    }

    /// Many senders and a store that is far too small: the limit holds, and no packet is lost.
    #[test]
    fn bounds_hold(
        puts in prop::collection::vec((1u8..6, 0u32..12, 0usize..4, any::<bool>(), 0u64..3), 1..300),
    ) {
        let config = FragmentConfig { bytes: 20_000, fragments: 3, timeout: 5 * SECOND };
        let mut bed = Bed::new(config);
        let (mut put, mut ended) = (0, 0);
        for (source, id, at, more, secs) in puts {
            if at == 0 && !more {
                continue;
            }
            bed.now = bed.now + Duration::from_secs(secs);
            bed.put(&Cut { source, more, ..cut(true, id, at * 8, 8) });
            put += 1;
            bed.store.expire(bed.now, 2, &mut bed.out);
            let (whole, dropped) = bed.take();
            ended += whole.len() + dropped.len();
            prop_assert!(bed.store.bytes() <= config.bytes);
            prop_assert_eq!(bed.store.held() + ended, put);
        }
        bed.store.drain(DropReason::EndOfInput, &mut bed.out);
        prop_assert_eq!(bed.take().1.len() + ended, put);
        prop_assert_eq!((bed.store.bytes(), bed.store.datagrams()), (0, 0));
    }
}
