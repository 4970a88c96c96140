use proptest::prelude::*;
use wire::flow_key::proto;
use wire::parse::parse;

use super::*;
use crate::packet::{Origin, PoolConfig};

const SECRET: u128 = 0x1234_5678_9abc_def0;
const SECOND: Duration = Duration::from_secs(1);

fn secret() -> HashKey {
    HashKey::new(SECRET)
}

/// One cut of a datagram.
#[derive(Clone, Debug)]
struct Cut {
    v6: bool,
    source: u8,
    id: u32,
    offset: usize,
    more: bool,
    data: Vec<u8>,
}

impl Cut {
    fn frame(&self) -> Vec<u8> {
        let field = (self.offset as u16) | u16::from(self.more);
        let mut f = vec![0xee; 6];
        f.extend([0x0a, 0x58, 0, 0, 0, self.source]);
        if self.v6 {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend((self.data.len() as u16 + 8).to_be_bytes());
            f.extend([44, 64]);
            f.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.source]);
            f.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            f.extend([proto::UDP, 0]);
            f.extend(field.to_be_bytes());
            f.extend(self.id.to_be_bytes());
        } else {
            let field = field >> 3 | u16::from(self.more) << 13;
            let mut ip = vec![0x45, 0];
            ip.extend((self.data.len() as u16 + 20).to_be_bytes());
            ip.extend((self.id as u16).to_be_bytes());
            ip.extend(field.to_be_bytes());
            ip.extend([64, proto::UDP, 0, 0, 10, 0, 0, self.source, 10, 0, 1, 0]);
            let sum: u32 = ip.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
            let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            f.extend([0x08, 0x00]);
            f.extend(ip);
        }
        f.extend(&self.data);
        f
    }

    fn last(mut self) -> Self {
        self.more = false;
        self
    }

    fn end(&self) -> usize {
        self.offset + self.data.len()
    }
}

/// Octet `at` of a datagram whose first eight are a UDP header.
fn octet(at: usize) -> u8 {
    match at {
        0..8 => [0x0f, 0xa0, 0, 53, 0, 200, 0, 0][at],
        _ => (at * 7 + at / 256) as u8,
    }
}

fn cut(v6: bool, id: u32, offset: usize, len: usize) -> Cut {
    let data = (offset..offset + len).map(octet).collect();
    Cut { v6, source: 5, id, offset, more: true, data }
}

struct Bed {
    store: Fragments,
    pool: Pool,
    out: Released,
    now: Instant,
}

impl Bed {
    fn new(config: FragmentConfig) -> Self {
        Self {
            store: Fragments::new(config, secret()),
            pool: Pool::new(PoolConfig { small: 4096, large: 64 }),
            out: Released::default(),
            now: Instant::from_secs(1000),
        }
    }

    fn put(&mut self, cut: &Cut) -> Outcome {
        self.put_frame(&cut.frame(), PortId(u16::from(cut.source)))
    }

    fn put_frame(&mut self, frame: &[u8], ingress: PortId) -> Outcome {
        let parsed = parse(frame, &secret()).expect("a test's frame must parse");
        let mut packet = self.pool.alloc_for(frame.len()).unwrap();
        packet.set_len(frame.len());
        packet.bytes_mut().copy_from_slice(frame);
        packet.ingress = ingress;
        let account = u64::from(ingress.0);
        self.store.insert(packet, &parsed, account, self.now, &mut self.pool, &mut self.out)
    }

    /// Takes what was released: offsets and data of the whole, reasons of the dropped.
    fn take(&mut self) -> (Vec<(u16, Vec<u8>)>, Vec<DropReason>) {
        let whole = self.out.whole.drain(..).map(|fragment| {
            let piece = offset_and_data(&fragment);
            self.pool.free(fragment.packet);
            piece
        });
        let whole = whole.collect();
        let dropped = self.out.dropped.drain(..).map(|(packet, reason)| {
            self.pool.free(packet);
            reason
        });
        (whole, dropped.collect())
    }

    fn expire(&mut self) -> usize {
        self.store.expire(self.now, usize::MAX, &mut self.out)
    }
}

fn offset_and_data(fragment: &Fragment) -> (u16, Vec<u8>) {
    let Fragment { packet, parsed } = fragment;
    let data = Extent::of(packet.bytes(), parsed).unwrap().data as usize;
    (parsed.fragment_offset, packet.bytes()[data..parsed.end as usize].to_vec())
}

fn bed() -> Bed {
    Bed::new(FragmentConfig::default())
}

fn is_whole(whole: &[(u16, Vec<u8>)], len: usize) -> bool {
    let mut at = 0;
    for (offset, data) in whole {
        if usize::from(*offset) != at {
            return false;
        }
        at += data.len();
    }
    let joined: Vec<u8> = whole.iter().flat_map(|(_, data)| data.clone()).collect();
    joined == (0..len).map(octet).collect::<Vec<u8>>()
}

#[test]
fn any_order() {
    for v6 in [false, true] {
        let pieces = [cut(v6, 1, 0, 16), cut(v6, 1, 16, 32), cut(v6, 1, 48, 5).last()];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut bed = bed();
            assert_eq!(bed.put(&pieces[order[0]]), Outcome::Held);
            assert_eq!(bed.put(&pieces[order[1]]), Outcome::Held);
            assert_eq!(bed.store.held(), 2);
            assert_eq!(bed.take(), (vec![], vec![]));
            assert_eq!(bed.put(&pieces[order[2]]), Outcome::Whole);
            let first = &bed.out.whole[0].parsed;
            assert_eq!((first.key.src_port, first.key.dst_port), (4000, 53));
            let (whole, dropped) = bed.take();
            assert!(is_whole(&whole, 53) && dropped.is_empty());
            let store = &bed.store;
            assert_eq!((store.held(), store.datagrams(), store.octets()), (0, 0, 0));
            assert_eq!(bed.pool.outstanding(), (0, 0));
        }
    }
}

#[test]
fn the_longest_datagram_in_the_smallest_pieces_that_ipv6_needs() {
    let mut bed = bed();
    let (piece, total) = (1232, 65_527);
    let mut offset = 0;
    loop {
        let len = piece.min(total - offset);
        let mut next = cut(true, 9, offset, len);
        offset += len;
        if offset == total {
            next.more = false;
            assert_eq!(bed.put(&next), Outcome::Whole);
            break;
        }
        assert_eq!(bed.put(&next), Outcome::Held);
    }
    assert!(is_whole(&bed.take().0, total));
}

#[test]
fn exact_duplicates_spoil_nothing() {
    for v6 in [false, true] {
        let mut bed = bed();
        let (first, last) = (cut(v6, 1, 0, 16), cut(v6, 1, 16, 8).last());
        assert_eq!(bed.put(&first), Outcome::Held);
        assert_eq!(bed.put(&first), Outcome::Dropped);
        assert_eq!(bed.take(), (vec![], vec![DropReason::FragmentOverlap]));
        assert_eq!(bed.put(&last), Outcome::Whole);
        assert!(is_whole(&bed.take().0, 24));
    }
}

#[test]
fn overlap_ends_the_datagram_and_what_still_comes_of_it() {
    for v6 in [false, true] {
        let other_ports = {
            let mut first = cut(v6, 1, 0, 16);
            first.data[3] = 22;
            first
        };
        let spoilers = [
            cut(v6, 1, 8, 16),        // over the end of the first
            cut(v6, 1, 24, 16),       // over the start of the last
            cut(v6, 1, 0, 24),        // over all of the first
            cut(v6, 1, 8, 8),         // inside the first
            other_ports,              // in place of the first, other ports
            cut(v6, 1, 40, 8),        // beyond the end
            cut(v6, 1, 16, 8).last(), // an earlier end
            cut(v6, 1, 48, 8).last(), // a later end
            cut(v6, 1, 32, 8),        // the last, and more to follow
        ];
        for spoiler in spoilers {
            let mut bed = bed();
            bed.put(&cut(v6, 1, 0, 16));
            bed.put(&cut(v6, 1, 32, 8).last());
            assert_eq!(bed.put(&spoiler), Outcome::Dropped, "{spoiler:?}");
            assert_eq!(bed.take(), (vec![], vec![DropReason::FragmentOverlap; 3]));
            assert_eq!((bed.store.held(), bed.store.datagrams()), (0, 1));
            // The rest, and all of it once more: nothing passes while it is remembered.
            for late in [cut(v6, 1, 16, 16), cut(v6, 1, 0, 16), cut(v6, 1, 16, 24).last()] {
                bed.now = bed.now + SECOND;
                assert_eq!(bed.put(&late), Outcome::Dropped);
                assert_eq!(bed.take(), (vec![], vec![DropReason::FragmentOverlap]));
            }
            bed.now = bed.now + 2 * SECOND;
            assert_eq!((bed.expire(), bed.store.datagrams()), (1, 0));
            bed.put(&cut(v6, 1, 0, 16));
            assert_eq!(bed.put(&cut(v6, 1, 16, 8).last()), Outcome::Whole);
        }
    }
}

#[test]
fn a_refused_datagram_is_remembered_from_its_refusal() {
    let mut bed = bed();
    bed.put(&cut(true, 1, 0, 16));
    bed.now = bed.now + 4 * SECOND;
    bed.put(&cut(true, 2, 0, 16));
    bed.put(&cut(true, 1, 8, 16));
    bed.now = bed.now + 4 * SECOND;
    assert_eq!(bed.expire(), 0);
    bed.now = bed.now + SECOND;
    assert_eq!((bed.expire(), bed.store.datagrams()), (2, 0));
}

#[test]
fn too_many_pieces() {
    let mut bed = bed();
    for i in 0..64 {
        assert_eq!(bed.put(&cut(false, 1, i * 16, 8)), Outcome::Held);
    }
    assert_eq!(bed.put(&cut(false, 1, 64 * 16, 8)), Outcome::Dropped);
    assert_eq!(bed.take().1, [DropReason::FragmentLimit; 65]);
    assert_eq!(bed.put(&cut(false, 1, 8, 8)), Outcome::Dropped);
    assert_eq!(bed.take().1, [DropReason::FragmentLimit]);
}

#[test]
fn datagrams_are_told_apart() {
    let mut bed = bed();
    let first = cut(false, 1, 0, 16);
    assert_eq!(bed.put(&first), Outcome::Held);
    let last = cut(false, 1, 16, 8).last();
    let mut other_proto = last.frame();
    other_proto[14 + 9] = proto::SCTP;
    let sum = u16::from_be_bytes([other_proto[24], other_proto[25]]);
    let sum = sum.wrapping_sub(u16::from(proto::SCTP - proto::UDP));
    other_proto[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(bed.put_frame(&other_proto, PortId(5)), Outcome::Held);
    assert_eq!(bed.put(&Cut { id: 2, ..last.clone() }), Outcome::Held);
    assert_eq!(bed.put(&Cut { source: 6, ..last.clone() }), Outcome::Held);
    assert_eq!(bed.put(&Cut { v6: true, ..last.clone() }), Outcome::Held);
    // From another port: what one begins no other can finish.
    assert_eq!(bed.put_frame(&last.frame(), PortId(9)), Outcome::Held);
    assert_eq!(bed.store.datagrams(), 6);
    assert_eq!(bed.put(&last), Outcome::Whole);
}

/// In IPv6 only the first fragment knows the upper protocol when extension headers were cut too,
/// and those count as data.
#[test]
fn extension_headers_behind_the_fragment_header() {
    let mut data = vec![proto::UDP, 0, 1, 4, 0, 0, 0, 0];
    data.extend([0x0f, 0xa0, 0, 53, 0, 24, 0, 0]);
    let mut first = Cut { v6: true, source: 5, id: 3, offset: 0, more: true, data }.frame();
    first[54] = 60;
    let mut last = cut(true, 3, 16, 8).last().frame();
    last[54] = 60;
    let (one, two) = (parse(&first, &secret()).unwrap(), parse(&last, &secret()).unwrap());
    assert_ne!(one.key.proto, two.key.proto);
    assert_eq!(steering_hash(&one, &secret()), steering_hash(&two, &secret()));
    for frames in [[&first, &last], [&last, &first]] {
        let mut bed = bed();
        assert_eq!(bed.put_frame(frames[0], PortId(5)), Outcome::Held);
        assert_eq!(bed.put_frame(frames[1], PortId(5)), Outcome::Whole);
        let offsets: Vec<u16> = bed.take().0.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, [0, 16]);
    }
}

#[test]
fn time_runs_out() {
    let mut bed = bed();
    assert_eq!(bed.store.next_expiry(), None);
    bed.put(&cut(false, 1, 0, 16));
    bed.put(&cut(false, 1, 32, 8));
    bed.now = bed.now + SECOND;
    bed.put(&cut(true, 2, 0, 16));
    // The time counts from the first to arrive; later ones do not extend it.
    bed.now = bed.now + 3 * SECOND;
    bed.put(&cut(false, 1, 40, 8));
    assert_eq!(bed.expire(), 0);
    bed.now = bed.now + SECOND;
    assert_eq!(bed.store.next_expiry(), Some(bed.now));
    assert_eq!(bed.expire(), 1);
    assert_eq!(bed.take(), (vec![], vec![DropReason::FragmentTimeout; 3]));
    assert_eq!((bed.store.held(), bed.store.datagrams()), (1, 1));
    bed.now = bed.now + 10 * SECOND;
    for id in 10..20 {
        bed.put(&cut(false, id, 0, 8));
    }
    bed.now = bed.now + 10 * SECOND;
    let store = &mut bed.store;
    assert_eq!(store.expire(bed.now, 4, &mut bed.out), 4);
    assert_eq!(store.expire(bed.now, 4, &mut bed.out), 4);
    assert_eq!(store.expire(bed.now, 4, &mut bed.out), 3);
    assert_eq!(store.octets(), 0);
}

#[test]
fn drained_at_the_end_and_when_a_port_goes() {
    let mut bed = bed();
    for source in 1..=4 {
        bed.put(&Cut { source, ..cut(true, 1, 0, 16) });
        bed.put(&Cut { source, ..cut(true, 1, 24, 8) });
    }
    bed.store.drain_port(PortId(2), &mut bed.out);
    assert_eq!(bed.take().1, [DropReason::PortDown; 2]);
    bed.store.drain(DropReason::EndOfInput, &mut bed.out);
    assert_eq!(bed.take().1, [DropReason::EndOfInput; 6]);
    assert_eq!((bed.store.held(), bed.store.octets()), (0, 0));
    bed.store.drain_port(PortId(1), &mut bed.out);
    assert_eq!(bed.take().1, []);
}

#[test]
fn a_flood_throws_out_its_own() {
    let mut bed = bed();
    let limit = FragmentConfig::default().octets;
    let (mut flooded, mut dropped) = (0, 0);
    let victim = |id, offset, len| Cut { source: 7, ..cut(false, id, offset, len) };
    for id in 0..50 {
        assert_eq!(bed.put(&victim(id, 0, 1480)), Outcome::Held);
    }
    for id in 0..100_000u32 {
        bed.put(&cut(true, id, 0, 1232));
        flooded += 1;
        let (whole, reasons) = bed.take();
        assert!(whole.is_empty());
        assert!(reasons.iter().all(|reason| *reason == DropReason::FragmentLimit));
        dropped += reasons.len();
        assert!(bed.store.octets() <= limit);
        assert_eq!(bed.store.held(), 50 + flooded - dropped);
    }
    assert!(bed.pool.outstanding().0 < 2000, "most of the pool is left to others");
    for id in 0..50 {
        assert_eq!(bed.put(&victim(id, 1480, 100).last()), Outcome::Whole);
    }
    // The flooder's own latest can still become whole.
    assert_eq!(bed.put(&cut(true, 99_999, 1232, 8).last()), Outcome::Whole);
}

#[test]
fn refused_datagrams_are_paid_for_too() {
    let config = FragmentConfig { octets: 256 << 10, ..FragmentConfig::default() };
    let mut bed = Bed::new(config);
    for id in 0..10_000 {
        bed.put(&cut(true, id, 0, 16));
        bed.put(&cut(true, id, 8, 16));
        bed.take();
        assert!(bed.store.octets() <= config.octets);
    }
    assert_eq!(bed.store.held(), 0);
    assert!(bed.store.datagrams() * RECORD <= config.octets);
}

#[test]
fn a_store_too_small_for_anything_refuses() {
    let mut bed = Bed::new(FragmentConfig { octets: 1000, ..FragmentConfig::default() });
    assert_eq!(bed.put(&cut(true, 1, 0, 16)), Outcome::Dropped);
    assert_eq!(bed.take().1, [DropReason::FragmentLimit]);
}

#[test]
fn fragments_leave_buffers_that_are_too_large_for_them() {
    let mut bed = bed();
    for len in [1480, 8952] {
        let frame = cut(true, len as u32, 0, len).frame();
        let parsed = parse(&frame, &secret()).unwrap();
        let mut packet = bed.pool.alloc_for(Pool::LARGE).unwrap();
        packet.set_len(frame.len());
        packet.bytes_mut().copy_from_slice(&frame);
        packet.ingress = PortId(3);
        packet.offload.csum_valid = true;
        packet.origin = Origin::Copy;
        packet.mark = 77;
        bed.store.insert(packet, &parsed, 3, bed.now, &mut bed.pool, &mut bed.out);
    }
    assert_eq!(bed.pool.outstanding(), (1, 0));
    assert!(bed.store.octets() < 15_000);
    bed.store.drain(DropReason::EndOfInput, &mut bed.out);
    for (packet, _) in &bed.out.dropped {
        assert_eq!((packet.ingress, packet.headroom()), (PortId(3), HEADROOM));
        assert!(packet.offload.csum_valid);
        assert_eq!((packet.origin, packet.mark), (Origin::Copy, 77));
    }
}

#[test]
fn what_is_no_fragment_goes_straight_through() {
    let mut bed = bed();
    let atomic = cut(true, 1, 0, 200).last();
    assert_eq!(bed.put(&atomic), Outcome::Whole);
    assert_eq!(bed.out.whole.len(), 1);
    assert_eq!(bed.store.datagrams(), 0);
}

/// The obvious way: a map of octets.
#[derive(Default)]
struct Plain {
    octets: Vec<Option<u8>>,
    seen: Vec<(usize, Vec<u8>, bool)>,
    total: Option<usize>,
    refused: bool,
}

impl Plain {
    fn put(&mut self, cut: &Cut) -> Outcome {
        if self.refused {
            return Outcome::Dropped;
        }
        let this = (cut.offset, cut.data.clone(), cut.more);
        if self.seen.contains(&this) {
            return Outcome::Dropped;
        }
        self.octets.resize(self.octets.len().max(cut.end()), None);
        let overlaps = self.octets[cut.offset..cut.end()].iter().any(Option::is_some);
        let beyond = self.seen.iter().any(|(at, data, _)| !cut.more && at + data.len() > cut.end());
        let moved = self.total.is_some_and(|t| cut.end() > t || (cut.end() == t) == cut.more);
        if overlaps || beyond || moved {
            self.refused = true;
            return Outcome::Dropped;
        }
        for (i, octet) in cut.data.iter().enumerate() {
            self.octets[cut.offset + i] = Some(*octet);
        }
        self.seen.push(this);
        if !cut.more {
            self.total = Some(cut.end());
        }
        let there = self.total.is_some_and(|t| self.octets[..t].iter().all(Option::is_some));
        if there {
            *self = Self::default();
            return Outcome::Whole;
        }
        Outcome::Held
    }
}

/// Units of eight octets at which a datagram of `units` is cut, and the order of the pieces.
fn split(units: usize) -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    prop::collection::btree_set(1..units, 1..8).prop_flat_map(move |at| {
        let points: Vec<usize> = [0].into_iter().chain(at).chain([units]).collect();
        let order: Vec<usize> = (0..points.len() - 1).collect();
        (Just(points), Just(order).prop_shuffle())
    })
}

proptest! {
    /// Every split in every order, some pieces twice: the datagram comes out whole, in order,
    /// once.
    #[test]
    fn whole_whatever_the_order(
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
                prop_assert_eq!(first.fragment, Place::First);
                prop_assert_eq!((first.key.src_port, first.key.dst_port), (4000, 53));
            }
        }
        prop_assert_eq!(came_whole, 1);
        let ended = bed.out.whole.len() + bed.out.dropped.len();
        prop_assert_eq!(ended + bed.store.held(), put);
    }

    /// Any fragments in any order, overlaps and wrong ends and changed octets among them: the
    /// store does what the map of octets does, whole or nothing, and loses no packet.
    #[test]
    fn agrees_with_a_map_of_octets(
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
                prop_assert_eq!(usize::from(offset), at, "in order, without holes");
                at += data.len();
            }
            prop_assert_eq!(bed.store.held() + forwarded, put);
        }
        bed.now = bed.now + 60 * SECOND;
        bed.expire();
        prop_assert_eq!(bed.take().1.len() + forwarded, put);
        prop_assert_eq!((bed.store.octets(), bed.store.datagrams()), (0, 0));
        prop_assert_eq!(bed.pool.outstanding(), (0, 0));
    }

    /// Many senders, a store that is far too small: the bound holds, nothing is lost.
    #[test]
    fn bounds_hold(
        puts in prop::collection::vec((1u8..6, 0u32..12, 0usize..4, any::<bool>(), 0u64..3), 1..300),
    ) {
        let config = FragmentConfig { octets: 20_000, fragments: 3, timeout: 5 * SECOND };
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
            prop_assert!(bed.store.octets() <= config.octets);
            prop_assert_eq!(bed.store.held() + ended, put);
        }
        bed.store.drain(DropReason::EndOfInput, &mut bed.out);
        prop_assert_eq!(bed.take().1.len() + ended, put);
        prop_assert_eq!((bed.store.octets(), bed.store.datagrams()), (0, 0));
    }
}
