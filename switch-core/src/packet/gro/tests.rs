use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;
use proptest::prelude::*;

use super::super::testkit::{Shape, inspect, shape, tunnelled};
use super::*;
use crate::packet::layout::put_be16;
use crate::packet::{Offload, PoolConfig, finish_checksum, segment};

/// The UDP port of tunnels in these tests.
const TUNNEL: u16 = 8080;

fn pool() -> Pool {
    Pool::new(PoolConfig::default())
}

fn tcp(v4: bool, payload: usize) -> Shape {
    Shape {
        v4,
        tcp: true,
        tags: 0,
        extra: 0,
        tcp_options: 3,
        tcp_flags: 0x10,
        id: 0xfffe,
        seq: u32::MAX - 100,
        payload: (0..payload).map(|n| (n * 7 / 8) as u8).collect(),
    }
}

/// The packets that a GRO packet consists of.
fn pieces(packet: Packet, pool: &mut Pool) -> Vec<Packet> {
    let mut pieces = Vec::new();
    segment(packet, pool, &mut |_: &mut Pool, piece| pieces.push(piece)).unwrap();
    pieces
}

fn frames(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().map(|packet| packet.bytes().to_vec()).collect()
}

/// Merges the packets, checks the results, and segments them again.
fn there_and_back(packets: Vec<Packet>, pool: &mut Pool) -> (usize, Vec<Vec<u8>>) {
    let mut batch: Batch = packets.into_iter().collect();
    let before = batch.len();
    let merged = coalesce(&mut batch, Some(TUNNEL), pool);
    assert_eq!(batch.len(), before - merged);
    let whole = batch.len();
    let mut cut = Vec::new();
    for packet in batch {
        if packet.offload.is_gso() {
            let parsed = parse(packet.bytes(), &HashKey::new(1)).unwrap();
            assert_eq!(packet.offload.check(&parsed), Ok(()));
        }
        cut.extend(frames(&pieces(packet, pool)));
    }
    (whole, cut)
}

#[test]
fn segments_of_one_stream_become_one_packet() {
    for v4 in [true, false] {
        let mut pool = pool();
        let cut = pieces(tcp(v4, 9_500).packet(1000), &mut pool);
        let before = frames(&cut);
        let mut batch: Batch = cut.into_iter().collect();
        assert_eq!(coalesce(&mut batch, None, &mut pool), 9);
        let offload = batch[0].offload;
        assert_eq!((offload.gso_size, offload.csum_partial), (1000, true));
        let packet = batch.pop().unwrap();
        assert_eq!(frames(&pieces(packet, &mut pool)), before);
    }
}

#[test]
fn segments_that_differ_are_not_merged() {
    // Offsets in an IPv4 packet: IP header at 14, TCP at 34.
    type Change = (&'static str, fn(&mut [u8]));
    let changes: [Change; 16] = [
        ("destination MAC", |f| f[5] ^= 1),
        ("TOS", |f| f[15] ^= 1),
        ("identification", |f| f[19] ^= 8),
        ("fragment", |f| f[20] = 0x20),
        ("TTL", |f| f[22] -= 1),
        ("source", |f| f[29] ^= 1),
        ("port", |f| f[35] ^= 1),
        ("sequence", |f| f[41] ^= 1),
        ("acknowledgement", |f| f[45] ^= 1),
        ("reserved bits", |f| f[46] |= 2),
        ("SYN", |f| f[47] |= 0x02),
        ("FIN", |f| f[47] |= 0x01),
        ("URG", |f| f[47] |= 0x20),
        ("ECE", |f| f[47] |= 0x40),
        ("window", |f| f[49] ^= 1),
        ("option", |f| f[60] ^= 3),
    ];
    for (what, change) in changes {
        let mut pool = pool();
        let mut cut = pieces(tcp(true, 3_000).packet(1000), &mut pool);
        let frame = cut[1].bytes_mut();
        change(frame);
        frame[24..26].fill(0);
        let checksum = sum(&frame[14..34]).checksum();
        put_be16(frame, 24, checksum);
        let parsed = parse(frame, &HashKey::new(1)).unwrap();
        podswitch_wire::checksum::fill_l4(frame, &parsed);
        let before = frames(&cut);
        let (whole, after) = there_and_back(cut, &mut pool);
        assert_eq!((whole, after), (3, before), "{what}");
    }
}

#[test]
fn a_wrong_checksum_is_kept() {
    for at in [60, 200, 50, 24] {
        for tunnel in [false, true] {
            let mut pool = pool();
            let shape = tcp(true, 3_000);
            let whole =
                if tunnel { tunnelled(&shape, 1000, true, true) } else { shape.packet(1000) };
            let mut cut = pieces(whole, &mut pool);
            let at = if tunnel { at + 50 } else { at };
            cut[1].bytes_mut()[at] ^= 0x10;
            cut.iter_mut().for_each(|packet| packet.offload = Offload::default());
            let before = frames(&cut);
            let (whole, after) = there_and_back(cut, &mut pool);
            assert_eq!((whole, after), (3, before), "byte {at}");
        }
    }
}

/// The outer checksum is verified although the inner one is right.
#[test]
fn a_wrong_outer_checksum_is_kept() {
    for v4 in [true, false] {
        let mut pool = pool();
        let mut cut = pieces(tunnelled(&tcp(true, 3_000), 1000, v4, true), &mut pool);
        let udp = if v4 { 34 } else { 54 };
        cut[2].bytes_mut()[udp + 6] ^= 1;
        cut.iter_mut().for_each(|packet| packet.offload = Offload::default());
        let before = frames(&cut);
        let (whole, after) = there_and_back(cut, &mut pool);
        assert_eq!(whole, 2);
        assert_eq!(after[2], before[2]);
    }
}

#[test]
fn nothing_overtakes_within_a_flow() {
    let mut pool = pool();
    let mut cut = pieces(tcp(true, 4_000).packet(1000), &mut pool);
    // An acknowledgment of the same flow, a fragment of an unknown flow, another flow.
    let ack = Packet::from_frame(&tcp(true, 0).frame());
    let mut fragment = Packet::from_frame(&tcp(true, 100).frame());
    fragment.bytes_mut()[20] = 0x20;
    for between in [ack, fragment] {
        let mut batch = vec![];
        for (n, packet) in cut.iter().enumerate() {
            if n == 2 {
                batch.push(Packet::from_frame(between.bytes()));
            }
            batch.push(Packet::from_frame(packet.bytes()));
        }
        let before = frames(&batch);
        assert_eq!(there_and_back(batch, &mut pool), (3, before));
    }
    let other = Shape { v4: false, ..tcp(true, 500) };
    let mut other = Packet::from_frame(&other.frame());
    finish_checksum(&mut other).unwrap();
    cut.insert(2, other);
    assert_eq!(there_and_back(cut, &mut pool).0, 2, "between segments of another flow");
}

#[test]
fn push_and_a_short_segment_end_a_run() {
    let mut pool = pool();
    let shape = Shape { tcp_flags: 0x18, ..tcp(true, 2_500) };
    let first = pieces(shape.packet(1000), &mut pool);
    let next = Shape { id: 1, seq: shape.seq.wrapping_add(2_500), ..tcp(true, 2_000) };
    let second = pieces(next.packet(1000), &mut pool);
    let all: Vec<_> = first.into_iter().chain(second).collect();
    let before = frames(&all);
    assert_eq!(there_and_back(all, &mut pool), (2, before));
}

/// Packets that must not be fragmented need not increment their identification.
#[test]
fn equal_identifications_merge_if_they_have_no_meaning() {
    for (fragment_flags, expected) in [(0x40, 1), (0, 3)] {
        let mut pool = pool();
        let mut cut = pieces(tcp(true, 3_000).packet(1000), &mut pool);
        for packet in &mut cut {
            let frame = packet.bytes_mut();
            frame[18..22].copy_from_slice(&[0, 0, fragment_flags, 0]);
            finish_ipv4(frame, 14, 20);
        }
        assert_eq!(there_and_back(cut, &mut pool).0, expected);
    }
}

#[test]
fn without_a_buffer_packets_stay_unchanged() {
    let mut pool = Pool::new(PoolConfig { small: 16, large: 0 });
    let cut = pieces(tcp(true, 5_000).packet(1000), &mut pool);
    let before = frames(&cut);
    assert_eq!(there_and_back(cut, &mut pool), (5, before));
}

/// Partial checksums are merged without verification.
#[test]
fn segments_with_partial_checksums_are_merged() {
    let mut pool = pool();
    let whole = tcp(true, 3_000);
    let mut all = Vec::new();
    for n in 0..3 {
        let shape = Shape {
            id: whole.id.wrapping_add(n),
            seq: whole.seq.wrapping_add(u32::from(n) * 1000),
            payload: whole.payload[usize::from(n) * 1000..][..1000].to_vec(),
            ..whole.clone()
        };
        let mut packet = shape.packet(0);
        packet.offload = shape.partial();
        all.push(packet);
    }
    let (count, cut) = there_and_back(all, &mut pool);
    assert_eq!(count, 1);
    let payload: Vec<u8> = cut.iter().flat_map(|frame| inspect(frame).payload).collect();
    assert_eq!(payload, whole.payload);
}

#[derive(Clone, Debug)]
struct Flow {
    shape: Shape,
    size: u16,
    /// Behind an outer IPv4 (true) or IPv6 header, with a checksum or without.
    tunnel: Option<(bool, bool)>,
}

fn flow() -> impl Strategy<Value = Flow> {
    let flags = prop::sample::select(vec![0x10u8, 0x18, 0x50, 0x11, 0x90, 0x00, 0x14]);
    (shape(12_000), 300u16..1400, any::<Option<(bool, bool)>>(), flags, 0usize..3).prop_map(
        |(mut shape, size, tunnel, flags, plain)| {
            shape.tcp_flags = flags;
            if plain > 0 {
                shape.tcp = true;
                (shape.tags, shape.extra) = (0, 0);
            }
            Flow { shape, size, tunnel }
        },
    )
}

proptest! {
    /// For any packets in any order: segmented again, each flow has the same packets in the same
    /// order.
    #[test]
    fn cutting_undoes_merging(
        flows in prop::collection::vec(flow(), 1..4),
        order in prop::collection::vec(0usize..4, 64),
    ) {
        let mut pool = pool();
        let mut queues: Vec<std::collections::VecDeque<Packet>> = Vec::new();
        for (n, flow) in flows.iter().enumerate() {
            let whole = match flow.tunnel {
                Some((v4, checksum)) => tunnelled(&flow.shape, flow.size, v4, checksum),
                None => flow.shape.packet(flow.size),
            };
            let mut cut = pieces(whole, &mut pool);
            for packet in &mut cut {
                packet.mark = n as u32;
                packet.offload = Offload::default();
            }
            queues.push(cut.into());
        }
        let mut packets = Vec::new();
        for pick in order {
            let pick = pick % queues.len();
            packets.extend(queues[pick].pop_front());
        }
        let of = |packets: &[(u32, Vec<u8>)], n: usize| -> Vec<Vec<u8>> {
            packets.iter().filter(|p| p.0 == n as u32).map(|p| p.1.clone()).collect()
        };
        let before: Vec<_> = packets.iter().map(|p| (p.mark, p.bytes().to_vec())).collect();
        let mut batch: Batch = packets.into_iter().collect();
        coalesce(&mut batch, Some(TUNNEL), &mut pool);
        let mut after = Vec::new();
        for packet in batch {
            let mark = packet.mark;
            after.extend(pieces(packet, &mut pool).iter().map(|p| (mark, p.bytes().to_vec())));
        }
        for n in 0..flows.len() {
            prop_assert_eq!(of(&after, n), of(&before, n));
        }
    }

    /// For any bytes: no panic, and no packet is lost.
    #[test]
    fn nonsense_is_survived(
        flow in flow(),
        noise in prop::collection::vec((0usize..8, 0usize..130, any::<u8>()), 0..12),
        cut_at in prop::collection::vec((0usize..8, 0usize..200), 0..3),
    ) {
        let mut pool = pool();
        let whole = match flow.tunnel {
            Some((v4, checksum)) => tunnelled(&flow.shape, flow.size, v4, checksum),
            None => flow.shape.packet(flow.size),
        };
        let mut all = pieces(whole, &mut pool);
        for (n, at, byte) in noise {
            let n = n % all.len();
            if let Some(place) = all[n].bytes_mut().get_mut(at) {
                *place = byte;
            }
        }
        for (n, len) in cut_at {
            let n = n % all.len();
            all[n].truncate(len);
        }
        all.truncate(64);
        let mut batch: Batch = all.into_iter().collect();
        let before = batch.len();
        let merged = coalesce(&mut batch, Some(TUNNEL), &mut pool);
        prop_assert_eq!(batch.len() + merged, before);
    }
}
