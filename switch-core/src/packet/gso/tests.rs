use proptest::prelude::*;

use super::super::testkit::{Shape, be, inspect, shape, tunnelled};
use super::*;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;

use crate::id::PortId;
use crate::packet::{Origin, PoolConfig, fit, largest_l3};
use crate::port::Offloads;

fn segments(packet: Packet, pool: &mut Pool) -> Result<Vec<Packet>, SegmentError> {
    let mut pieces = Vec::new();
    let result = segment(packet, pool, &mut |_: &mut Pool, piece| pieces.push(piece));
    match result {
        Ok(count) => assert_eq!(count, pieces.len()),
        Err(error) => assert_eq!(error.produced, pieces.len()),
    }
    result?;
    Ok(pieces)
}

fn tcp(payload: usize) -> Shape {
    Shape {
        v4: true,
        tcp: true,
        tags: 0,
        extra: 0,
        tcp_options: 3,
        tcp_flags: 0x99,
        id: 0xffff,
        seq: u32::MAX - 100,
        payload: (0..payload).map(|n| n as u8).collect(),
    }
}

#[test]
fn flags_and_numbers_of_tcp_segments() {
    let mut packet = tcp(2500).packet(1000);
    packet.offload.ecn = true;
    (packet.ingress, packet.mark, packet.origin) = (PortId(7), 9, Origin::Originated);
    let mut pool = Pool::new(PoolConfig::default());
    let pieces = segments(packet, &mut pool).unwrap();
    let got: Vec<_> = pieces
        .iter()
        .map(|piece| {
            let inspected = inspect(piece.bytes());
            (inspected.payload.len(), inspected.seq, inspected.id, inspected.flags)
        })
        .collect();
    // FIN 01, PSH 08, ACK 10, CWR 80.
    let expected =
        [(1000, u32::MAX - 100, 0xffff, 0x90), (1000, 899, 0, 0x10), (500, 1899, 1, 0x19)];
    assert_eq!(got, expected);
    assert!(pieces.iter().all(|piece| piece.ingress == PortId(7) && piece.offload.csum_valid));
    assert!(pieces.iter().all(|piece| piece.mark == 9));
    let origins: Vec<_> = pieces.iter().map(|piece| piece.origin).collect();
    assert_eq!(origins, [Origin::Originated, Origin::Copy, Origin::Copy]);
    assert_eq!(pool.outstanding(), (3, 0));
    for piece in pieces {
        pool.free(piece);
    }
    assert_eq!(pool.outstanding(), (0, 0));
}

#[test]
fn without_the_ecn_mark_every_segment_keeps_cwr() {
    let pieces = segments(tcp(2500).packet(1000), &mut Pool::new(PoolConfig::default())).unwrap();
    assert!(pieces.iter().all(|piece| inspect(piece.bytes()).flags & CWR != 0));
}

#[test]
fn an_exhausted_pool_says_how_far_it_came() {
    let mut pool = Pool::new(PoolConfig { small: 2, large: 1 });
    let mut packet = pool.alloc_for(60_000).unwrap();
    let shape = tcp(2500);
    packet.fill(&shape.frame());
    packet.offload = shape.packet(1000).offload;
    let error = segments(packet, &mut pool).unwrap_err();
    assert_eq!(error, SegmentError::new(DropReason::PoolExhausted, 2));
    assert_eq!(pool.outstanding(), (2, 0), "the GSO packet went back");
}

#[test]
fn contradictory_metadata_is_refused() {
    type Break = fn(&mut Packet);
    let breaks: [(&str, Break); 12] = [
        ("protocol in the header", |p| p.bytes_mut()[23] = 47),
        ("version", |p| {
            let shape = Shape { v4: false, ..tcp(2500) };
            *p = shape.packet(1000);
            p.offload.gso_type = GsoType::TcpV4;
        }),
        ("size", |p| p.offload.gso_size = 0),
        ("no checksum", |p| p.offload.csum_partial = false),
        ("family", |p| p.offload.gso_type = GsoType::TcpV6),
        ("protocol", |p| p.offload.gso_type = GsoType::UdpL4),
        ("start", |p| p.offload.csum_start += 2),
        ("field", |p| p.offload.csum_offset = 6),
        ("fragment", |p| p.bytes_mut()[20] = 0x20),
        ("data offset", |p| p.bytes_mut()[46] = 0x40),
        ("cut off", |p| p.truncate(50)),
        ("not IP", |p| p.bytes_mut()[12] = 9),
    ];
    for (what, broken) in breaks {
        let mut packet = tcp(2500).packet(1000);
        broken(&mut packet);
        let mut pool = Pool::new(PoolConfig::default());
        let got = segments(packet, &mut pool).map(|pieces| pieces.len());
        assert_eq!(got, Err(SegmentError::new(DropReason::OffloadInvalid, 0)), "{what}");
    }
    let tiny = segments(tcp(2500).packet(1), &mut Pool::new(PoolConfig::default()));
    assert_eq!(tiny.map(|p| p.len()), Err(SegmentError::new(DropReason::OffloadInvalid, 0)));
}

proptest! {
    /// The concatenated payloads are the original payload, every header is as if the segments had
    /// been sent one by one, and only fields that must differ differ.
    #[test]
    fn segments_are_the_packets_of_the_gso_packet(
        shape in shape(20_000),
        size in 16u16..3000,
        padding in 0usize..9,
    ) {
        prop_assume!(shape.payload.len() / usize::from(size) < Offload::MAX_SEGMENTS);
        let mut packet = shape.packet(size);
        let mut frame = packet.bytes().to_vec();
        frame.resize(frame.len() + padding, 0xa5);
        let offload = packet.offload;
        let mut pool = Pool::new(PoolConfig { small: 2048, large: 512 });
        packet = pool.alloc_for(frame.len()).unwrap();
        packet.fill(&frame);
        packet.offload = offload;
        let pieces = segments(packet, &mut pool).unwrap();
        let count = shape.payload.len().div_ceil(usize::from(size)).max(1);
        prop_assert_eq!(pieces.len(), count);
        let mut payload = Vec::new();
        for (n, piece) in pieces.into_iter().enumerate() {
            let inspected = inspect(piece.bytes());
            if shape.tcp {
                prop_assert_eq!(inspected.seq, shape.seq.wrapping_add(payload.len() as u32));
            }
            if shape.v4 {
                prop_assert_eq!(inspected.id, shape.id.wrapping_add(n as u16));
            }
            prop_assert!(n + 1 == count || inspected.payload.len() == usize::from(size));
            payload.extend(inspected.payload);
            let (l3, l4) = (shape.l3(), shape.l4());
            prop_assert_eq!(&piece.bytes()[..l3], &frame[..l3]);
            prop_assert_eq!(&piece.bytes()[l3 + 12..l4], &frame[l3 + 12..l4], "IP options");
            prop_assert_eq!(&piece.bytes()[l4..l4 + 4], &frame[l4..l4 + 4], "ports");
            pool.free(piece);
        }
        prop_assert_eq!(&payload, &shape.payload);
        prop_assert_eq!(pool.outstanding(), (0, 0));
    }

    #[test]
    fn a_tunnelled_gso_packet_is_segmented_by_its_inner_protocol(
        mut inner in shape(6000),
        size in 100u16..1500,
        outer_v4 in any::<bool>(),
        checksum in any::<bool>(),
        taken in any::<bool>(),
    ) {
        inner.tcp = true;
        let packet = tunnelled(&inner, size, outer_v4, checksum);
        prop_assert!(is_tunnelled(&packet));
        let parsed = parse(packet.bytes(), &HashKey::new(1)).unwrap();
        prop_assert_eq!(packet.offload.check(&parsed), Ok(()));
        let (l3, udp) = (14, if outer_v4 { 34 } else { 54 });
        let largest = largest_l3(&packet, &parsed);
        let mut pieces = Vec::new();
        // The port supports UDP segmentation: it gets UDP GSO packets, which the receiver segments
        // again.
        let offloads = if taken { Offloads { tunnel: false, ..Offloads::ALL } } else { Offloads::NONE };
        let mut pool = Pool::new(PoolConfig::default());
        let count = inner.payload.len().div_ceil(size.into()).max(1);
        fit(packet, offloads, &mut pool, &mut |pool: &mut Pool, piece| {
            assert!(taken || !piece.offload.is_gso());
            let parsed = parse(piece.bytes(), &HashKey::new(1)).unwrap();
            assert_eq!(piece.offload.check(&parsed), Ok(()));
            segment(piece, pool, &mut |_: &mut Pool, p| pieces.push(p)).unwrap();
        })
        .unwrap();
        prop_assert_eq!(pieces.len(), count);
        // Segmentation of UDP gives every packet a checksum.
        let checksum = checksum || taken && count > 1;
        let (mut payload, mut longest) = (Vec::new(), 0);
        for (n, piece) in pieces.iter().enumerate() {
            let frame = piece.bytes();
            prop_assert_eq!(be(&frame[udp + 4..]) as usize, frame.len() - udp);
            if checksum {
                let outer = inspect(frame);
                prop_assert!(!outer_v4 || outer.id == 5 + n as u16);
            } else {
                prop_assert_eq!(be(&frame[udp + 6..]), 0, "a missing checksum stays missing");
            }
            longest = longest.max(frame.len() - l3);
            payload.extend(inspect(&frame[udp + 16..]).payload);
        }
        prop_assert_eq!(&payload, &inner.payload);
        prop_assert_eq!(longest, largest);
    }

    /// For any metadata over any bytes: an error or packets, never a panic, and no buffer is lost.
    #[test]
    fn nonsense_is_survived(
        shape in shape(300),
        noise in prop::collection::vec((0usize..120, any::<u8>()), 0..6),
        size in any::<u16>(),
        start in 0u16..130,
        offset in prop::sample::select(vec![16u16, 6, 8, 0, 60000]),
        kind in prop::sample::select(vec![GsoType::TcpV4, GsoType::TcpV6, GsoType::UdpL4]),
        cut in 0usize..400,
        sound in any::<bool>(),
    ) {
        let mut packet = shape.packet(size);
        for (at, byte) in noise {
            if let Some(place) = packet.bytes_mut().get_mut(at) {
                *place = byte;
            }
        }
        packet.truncate(cut);
        if !sound {
            packet.offload.gso_type = kind;
            packet.offload.csum_start = start;
            packet.offload.csum_offset = offset;
        }
        let mut pool = Pool::new(PoolConfig::default());
        if let Ok(pieces) = segments(packet, &mut pool) {
            for piece in pieces {
                pool.free(piece);
            }
        }
    }
}
