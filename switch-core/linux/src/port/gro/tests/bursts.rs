//! A model of the kernel's buffers for every kind of sender: the port must return the packets that were sent.

use podswitch_vxlan::decap::{ChecksumState, DecapRules, decap};
use podswitch_wire::checksum::verify_l4;
use proptest::prelude::*;

use super::*;
use podswitch_core::packet::testkit::{Shape, inspect, shape};
use podswitch_core::packet::{finish_checksum, segment};

/// A VXLAN header.
const HEADER: [u8; 8] = [8, 0, 0, 0, 0, 0, 1, 0];

/// The packets that the port returns, with their inner frames as the engine gets them.
fn received(outer: &Outer, bytes: &[u8], size: usize, mtus: Mtus) -> Vec<Packet> {
    let mut pool = Pool::new(PoolConfig::default());
    let mut packet = Packet::with_capacity(bytes.len());
    packet.fill(bytes);
    let mut got = Vec::new();
    assert_eq!(outer.receive(packet, size, mtus, &mut pool, &mut |packet| got.push(packet)), 0);
    got.into_iter().map(opened).collect()
}

/// The frame without the outer headers, as after decapsulation.
fn opened(mut packet: Packet) -> Packet {
    let parsed = parse(packet.bytes(), &HashKey::new(1)).expect("outer headers");
    assert_eq!(packet.offload.check(&parsed), Ok(()));
    assert_eq!(parsed.end as usize, packet.len());
    let rules = DecapRules { inner_vlan: true, ..DecapRules::default() };
    let opened =
        decap(packet.bytes(), &parsed, ChecksumState::Good, &rules).expect("a tunnel packet");
    assert_eq!(
        (opened.start as usize, opened.end),
        (usize::from(parsed.payload) + VXLAN, parsed.end)
    );
    packet.pull_front(opened.start as usize);
    match packet.offload.csum_partial {
        true => packet.offload.shift(-(opened.start as i32)),
        false => packet.offload = Offload::default(),
    }
    if let Ok(inner) = parse(packet.bytes(), &HashKey::new(1)) {
        assert_eq!(packet.offload.check(&inner), Ok(()));
    }
    packet
}

/// The packets that these GSO packets consist of, with complete checksums.
fn finished(packets: Vec<Packet>) -> Vec<Vec<u8>> {
    let mut pool = Pool::new(PoolConfig { small: 70_000, large: 8 });
    let mut frames = Vec::new();
    for packet in packets {
        let out = &mut |pool: &mut Pool, piece: Packet| {
            frames.push(piece.bytes().to_vec());
            pool.free(piece);
        };
        segment(packet, &mut pool, out).expect("it can be segmented");
    }
    frames
}

/// The frame of a shape with its complete checksum.
fn whole(shape: &Shape) -> Vec<u8> {
    let mut packet = shape.packet(0);
    packet.offload = shape.partial();
    finish_checksum(&mut packet).unwrap();
    packet.bytes().to_vec()
}

fn datagram_of(frame: &[u8]) -> Vec<u8> {
    [&HEADER, frame].concat()
}

/// A tunnel packet with a frame from a pod that did not send it.
fn forged() -> Vec<u8> {
    let payload = b"forged".to_vec();
    let (tags, extra, tcp_options, tcp_flags, id, seq) = (0, 0, 0, 0, 0, 0);
    let shape =
        Shape { v4: true, tcp: false, tags, extra, tcp_options, tcp_flags, id, seq, payload };
    datagram_of(&whole(&shape))
}

/// Inserts a forged tunnel packet at every position where a wrong implementation might split. `head`: bytes of the
/// headers before.
fn forge(payload: &mut [u8], size: usize, head: usize) {
    let forged = forged();
    let cuts = (1..=payload.len() / size).flat_map(|n| [n * size, (n * size).saturating_sub(head)]);
    for at in cuts {
        if let Some(place) = payload.get_mut(at..at + forged.len()) {
            place.copy_from_slice(&forged);
        }
    }
}

fn udp(max: usize) -> impl Strategy<Value = Shape> {
    shape(max).prop_map(|shape| Shape { tcp: false, ..shape })
}

/// Payload sizes around the capacity of a small buffer.
fn any_udp() -> impl Strategy<Value = Shape> {
    prop_oneof![udp(300), udp(3_000), udp(30_000)]
}

proptest! {
    /// A VXLAN device or an injector passes a UDP GSO packet unsegmented, as one datagram.
    #[test]
    fn an_unsegmented_burst_arrives_as_its_datagrams(
        mut shape in any_udp(),
        size in prop_oneof![1usize..100, 100usize..2_000, 2_000usize..20_000],
        v4 in any::<bool>(),
        is_forged in any::<bool>(),
        mtu in 1_000usize..9_000,
    ) {
        prop_assume!(shape.payload.len() / size < Offload::MAX_SEGMENTS);
        if is_forged {
            let head = VXLAN + shape.payload_at();
            forge(&mut shape.payload, size, head);
        }
        let bytes = datagram_of(&shape.frame());
        // A packet that is not longer than its segments is not a GSO packet for the kernel.
        let told = if shape.payload.len() > size { size } else { 0 };
        let got = received(&outer(v4), &bytes, told, Mtus { underlay: mtu, inner: mtu });
        prop_assert_eq!(got.len(), 1);
        prop_assert_eq!(got[0].bytes(), &bytes[VXLAN..], "no byte is changed");
        let frames = finished(got);
        let datagrams: Vec<_> = match shape.payload.len() {
            0 => vec![&[][..]],
            _ => shape.payload.chunks(size).collect(),
        };
        prop_assert_eq!(frames.len(), datagrams.len());
        for (frame, datagram) in frames.iter().zip(datagrams) {
            prop_assert_eq!(inspect(frame).payload, datagram);
        }
    }

    /// Datagrams of equal length are merged, by the kernel or by their sender (UDP_SEGMENT).
    #[test]
    fn joined_datagrams_arrive_one_by_one(
        first in udp(2_000),
        count in 1usize..64,
        last in 0usize..2_000,
        v4 in any::<bool>(),
        is_finished in any::<bool>(),
        padding in 0usize..3,
        seed in any::<u8>(),
    ) {
        let payload = |n: usize, len| (0..len).map(|i| (i * 7 / 3 + n) as u8 ^ seed).collect();
        let len = first.payload.len();
        let mut shapes: Vec<Shape> =
            (0..count).map(|n| Shape { payload: payload(n, len), ..first.clone() }).collect();
        if last < len {
            shapes.push(Shape { payload: payload(count, last), ..first });
        }
        let frame = |shape: &Shape| match is_finished {
            true => whole(shape),
            false => shape.frame(),
        };
        let datagrams: Vec<Vec<u8>> = shapes
            .iter()
            .map(|shape| [datagram_of(&frame(shape)), vec![0xa5; padding]].concat())
            .collect();
        let bytes = datagrams.concat();
        prop_assume!(bytes.len() <= 65_507);
        let told = if datagrams.len() > 1 { datagrams[0].len() } else { 0 };
        let got = received(&outer(v4), &bytes, told, MTUS);
        prop_assert_eq!(got.len(), shapes.len());
        for ((packet, datagram), shape) in got.into_iter().zip(datagrams).zip(shapes) {
            prop_assert_eq!(packet.bytes(), &datagram[VXLAN..]);
            let mut packet = packet;
            let end = packet.len() - padding;
            packet.truncate(end);
            finish_checksum(&mut packet).unwrap();
            prop_assert_eq!(packet.bytes(), whole(&shape));
        }
    }

    /// TCP segments in merged datagrams are merged, and are the same when they are segmented again.
    #[test]
    fn joined_segments_are_merged_and_stay_the_same(
        stream in shape(20_000),
        size in 100u16..1_400,
        v4 in any::<bool>(),
    ) {
        let stream = Shape { tcp: true, tcp_flags: 0x10, ..stream };
        let frames = finished(vec![stream.packet(size)]);
        prop_assume!(frames.len() <= 128);
        let bytes = frames.iter().map(|frame| datagram_of(frame)).collect::<Vec<_>>().concat();
        let told = if frames.len() > 1 { VXLAN + frames[0].len() } else { 0 };
        let got = received(&outer(v4), &bytes, told, MTUS);
        prop_assert!(stream.tags + stream.extra > 0 || got.len() == 1);
        prop_assert_eq!(finished(got), frames);
    }

    /// A TCP GSO packet that is passed unsegmented has no segment size: it is segmented to the MTU.
    #[test]
    fn an_unsegmented_stream_stays_one_packet(
        stream in shape(40_000),
        v4 in any::<bool>(),
        mtu in 600usize..9_000,
    ) {
        let stream = Shape { tcp: true, ..stream };
        let bytes = datagram_of(&stream.frame());
        let got = received(&outer(v4), &bytes, 0, Mtus { underlay: 9_000, inner: mtu });
        prop_assert_eq!(got.len(), 1);
        prop_assert_eq!(got[0].bytes(), &bytes[VXLAN..]);
        let mut payload = Vec::new();
        for frame in finished(got) {
            let parsed = parse(&frame, &HashKey::new(1)).unwrap();
            prop_assert!(verify_l4(&frame, &parsed));
            prop_assert!(parsed.end as usize - usize::from(parsed.l3) <= mtu);
            payload.extend(inspect(&frame).payload);
        }
        prop_assert_eq!(payload, stream.payload);
    }

    /// One UDP datagram stays one, for any length, with a complete or a partial checksum.
    #[test]
    fn a_long_datagram_stays_one(shape in any_udp(), is_finished in any::<bool>(), v4 in any::<bool>()) {
        let frame = if is_finished { whole(&shape) } else { shape.frame() };
        let got = finished(received(&outer(v4), &datagram_of(&frame), 0, MTUS));
        prop_assert_eq!(got, vec![whole(&shape)]);
    }

    /// Any bytes with any segment size: no panic, and no invented frame.
    #[test]
    fn any_bytes(data in prop::collection::vec(any::<u8>(), 0..3_000)) {
        fuzz::receive(&data);
    }
}

/// CWR of a stream that was passed unsegmented: only the first segment has it, as its sender would have sent it (RFC
/// 3168 §6.1.2), unless it is a part of AccECN's counter (RFC 9768 §3.2.2), which all segments have.
#[test]
fn cwr_is_in_the_first_segment_or_counts_in_all() {
    const CWR: u8 = 0x80;
    const AE: u8 = 0x01;
    for (v4, tags) in [(true, 0), (false, 0), (true, 1), (false, 2)] {
        for (ecn, ae, is_signal) in [
            (Ecn::Ect0, 0, true),
            (Ecn::Ce, 0, true),
            (Ecn::Ect0, AE, false),
            (Ecn::Ce, AE, false),
            (Ecn::Ect1, 0, false),
            (Ecn::NotEct, 0, false),
        ] {
            let payload = vec![7; 5_000];
            let (extra, tcp_options, tcp_flags, id, seq) = (0, 3, 0x10 | CWR, 1, 1);
            let stream =
                Shape { v4, tcp: true, tags, extra, tcp_options, tcp_flags, id, seq, payload };
            let mut frame = stream.frame();
            let l3 = stream.l3();
            match v4 {
                true => {
                    frame[l3 + 1] = ecn as u8;
                    frame[l3 + 10..l3 + 12].fill(0);
                    let checksum = sum(&frame[l3..l3 + 20]).checksum();
                    frame[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
                }
                false => frame[l3 + 1] = (ecn as u8) << 4,
            }
            let l4 = usize::from(stream.partial().csum_start);
            frame[l4 + 12] |= ae;
            let got = received(&outer(v4), &datagram_of(&frame), 0, MTUS);
            assert_eq!(got[0].offload.ecn, is_signal, "{ecn:?} {ae}");
            let segments = finished(got);
            assert!(segments.len() > 3);
            for (n, segment) in segments.iter().enumerate() {
                let parsed = parse(segment, &HashKey::new(1)).unwrap();
                let has_cwr = parsed.tcp_flags & CWR != 0;
                assert_eq!(has_cwr, n == 0 || !is_signal, "{ecn:?} {ae} segment {n}");
                assert_eq!(segment[l4 + 12] & AE, ae);
                assert!(verify_l4(segment, &parsed));
            }
        }
    }
}
