use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::parse;

use super::*;
use crate::packet::{Origin, PoolConfig};

mod properties;

const SECRET: u128 = 0x1234_5678_9abc_def0;
const SECOND: Duration = Duration::from_secs(1);

fn secret() -> HashKey {
    HashKey::new(SECRET)
}

/// One fragment of a datagram.
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

/// Byte `at` of a datagram whose first eight are a UDP header.
fn byte(at: usize) -> u8 {
    match at {
        0..8 => [0x0f, 0xa0, 0, 53, 0, 200, 0, 0][at],
        _ => (at * 7 + at / 256) as u8,
    }
}

fn cut(v6: bool, id: u32, offset: usize, len: usize) -> Cut {
    let data = (offset..offset + len).map(byte).collect();
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
        let packet = compact(packet, &mut self.pool);
        self.pool.forget(&packet);
        self.store.insert(packet, &parsed, account, self.now, &mut self.out)
    }

    /// Takes the released fragments: offsets and data of a complete datagram, reasons of dropped ones.
    fn take(&mut self) -> (Vec<(u16, Vec<u8>)>, Vec<DropReason>) {
        let whole = self.out.whole.drain(..).map(|fragment| {
            let piece = offset_and_data(&fragment);
            self.pool.adopt(&fragment.packet);
            self.pool.free(fragment.packet);
            piece
        });
        let whole = whole.collect();
        let dropped = self.out.dropped.drain(..).map(|(packet, reason)| {
            self.pool.adopt(&packet);
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
    joined == (0..len).map(byte).collect::<Vec<u8>>()
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
            assert_eq!((store.held(), store.datagrams(), store.bytes()), (0, 0, 0));
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
fn exact_duplicates_are_harmless() {
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
fn overlap_drops_the_datagram_and_its_later_fragments() {
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
            // The rest, and all fragments once more: nothing passes while the datagram is remembered.
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
fn a_rejected_datagram_is_remembered_from_its_rejection() {
    let mut bed = bed();
    bed.put(&cut(true, 1, 0, 16));
    bed.now = bed.now + 4 * SECOND;
    bed.put(&cut(true, 1, 8, 16));
    bed.now = bed.now + 4 * SECOND;
    assert_eq!(bed.expire(), 0);
    bed.now = bed.now + SECOND;
    assert_eq!((bed.expire(), bed.store.datagrams()), (1, 0));
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
fn datagrams_are_distinguished() {
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
    // From another port: a port cannot complete another port's datagram.
    assert_eq!(bed.put_frame(&last.frame(), PortId(9)), Outcome::Held);
    assert_eq!(bed.store.datagrams(), 6);
    assert_eq!(bed.put(&last), Outcome::Whole);
}

/// In IPv6 extension headers may be a part of the fragmented data. Then only the first fragment has the
/// upper-layer protocol.
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
    assert_eq!(datagram_key(&one), datagram_key(&two));
    for frames in [[&first, &last], [&last, &first]] {
        let mut bed = bed();
        assert_eq!(bed.put_frame(frames[0], PortId(5)), Outcome::Held);
        assert_eq!(bed.put_frame(frames[1], PortId(5)), Outcome::Whole);
        let offsets: Vec<u16> = bed.take().0.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, [0, 16]);
    }
}

#[test]
fn incomplete_datagrams_time_out() {
    let mut bed = bed();
    assert_eq!(bed.store.next_expiry(), None);
    bed.put(&cut(false, 1, 0, 16));
    bed.put(&cut(false, 1, 32, 8));
    bed.now = bed.now + SECOND;
    bed.put(&cut(true, 2, 0, 16));
    // The timeout counts from the first fragment that arrives; later ones do not extend it.
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
    assert_eq!(store.bytes(), 0);
}

#[test]
fn drained_at_the_end_and_when_a_port_is_detached() {
    let mut bed = bed();
    for source in 1..=4 {
        bed.put(&Cut { source, ..cut(true, 1, 0, 16) });
        bed.put(&Cut { source, ..cut(true, 1, 24, 8) });
    }
    bed.store.drain_port(PortId(2), &mut bed.out);
    assert_eq!(bed.take().1, [DropReason::PortDown; 2]);
    bed.store.drain(DropReason::EndOfInput, &mut bed.out);
    assert_eq!(bed.take().1, [DropReason::EndOfInput; 6]);
    assert_eq!((bed.store.held(), bed.store.bytes()), (0, 0));
    bed.store.drain_port(PortId(1), &mut bed.out);
    assert_eq!(bed.take().1, []);
}

#[test]
fn a_flood_drops_its_own_datagrams() {
    let mut bed = bed();
    let limit = FragmentConfig::default().bytes;
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
        assert!(bed.store.bytes() <= limit);
        assert_eq!(bed.store.held(), 50 + flooded - dropped);
    }
    for id in 0..50 {
        assert_eq!(bed.put(&victim(id, 1480, 100).last()), Outcome::Whole);
    }
    // The flooder's own latest datagram can still be completed.
    assert_eq!(bed.put(&cut(true, 99_999, 1232, 8).last()), Outcome::Whole);
}

#[test]
fn rejected_datagrams_are_charged_too() {
    let config = FragmentConfig { bytes: 256 << 10, ..FragmentConfig::default() };
    let mut bed = Bed::new(config);
    for id in 0..10_000 {
        bed.put(&cut(true, id, 0, 16));
        bed.put(&cut(true, id, 8, 16));
        bed.take();
        assert!(bed.store.bytes() <= config.bytes);
    }
    assert_eq!(bed.store.held(), 0);
    assert!(bed.store.datagrams() * RECORD <= config.bytes);
}

#[test]
fn a_store_that_is_too_small_drops_everything() {
    let mut bed = Bed::new(FragmentConfig { bytes: 1000, ..FragmentConfig::default() });
    assert_eq!(bed.put(&cut(true, 1, 0, 16)), Outcome::Dropped);
    assert_eq!(bed.take().1, [DropReason::FragmentLimit]);
}

#[test]
fn fragments_are_moved_out_of_buffers_that_are_too_large() {
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
        let packet = compact(packet, &mut bed.pool);
        bed.store.insert(packet, &parsed, 3, bed.now, &mut bed.out);
    }
    assert_eq!(bed.pool.outstanding(), (1, 0));
    assert!(bed.store.bytes() < 15_000);
    bed.store.drain(DropReason::EndOfInput, &mut bed.out);
    for (packet, _) in &bed.out.dropped {
        assert_eq!((packet.ingress, packet.headroom()), (PortId(3), HEADROOM));
        assert!(packet.offload.csum_valid);
        assert_eq!((packet.origin, packet.mark), (Origin::Copy, 77));
    }
}

#[test]
fn a_packet_that_is_no_fragment_is_released_at_once() {
    let mut bed = bed();
    let atomic = cut(true, 1, 0, 200).last();
    assert_eq!(bed.put(&atomic), Outcome::Whole);
    assert_eq!(bed.out.whole.len(), 1);
    assert_eq!(bed.store.datagrams(), 0);
}
