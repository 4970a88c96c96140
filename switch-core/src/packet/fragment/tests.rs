use proptest::prelude::*;

use super::super::testkit::{Shape, be, inspect, shape};
use super::*;
use crate::packet::{Offload, PoolConfig};

fn fragments(packet: Packet, mtu: usize) -> Result<Vec<Packet>, SegmentError> {
    let mut pieces = Vec::new();
    let mut pool = Pool::new(PoolConfig { small: 2048, large: 64 });
    let result = fragment_v4(packet, mtu, &mut pool, &mut |_: &mut Pool, p| pieces.push(p));
    match result {
        Ok(count) => assert_eq!(count, pieces.len()),
        Err(error) => assert_eq!(error.produced, pieces.len()),
    }
    result?;
    Ok(pieces)
}

/// Reassembles fragments in any order, and returns the whole packet's IPv4 payload. `None` if there
/// are holes or overlaps.
fn reassembled(pieces: &[Packet], l3: usize) -> Option<Vec<u8>> {
    let mut parts: Vec<_> = pieces
        .iter()
        .map(|piece| {
            let ip = &piece.bytes()[l3..];
            let field = be(&ip[6..]);
            let header = usize::from(ip[0] & 15) * 4;
            let end = be(&ip[2..]) as usize;
            ((field & 0x1fff) as usize * 8, field & 0x2000 != 0, &ip[header..end])
        })
        .collect();
    parts.sort_by_key(|part| part.0);
    let mut whole = Vec::new();
    let last = parts.len() - 1;
    for (n, (offset, more, data)) in parts.into_iter().enumerate() {
        if offset != whole.len() || more == (n == last) {
            return None;
        }
        whole.extend(data);
    }
    Some(whole)
}

fn udp(payload: usize) -> Shape {
    Shape {
        v4: true,
        tcp: false,
        tags: 1,
        extra: 0,
        tcp_options: 0,
        tcp_flags: 0,
        id: 77,
        seq: 0,
        payload: (0..payload).map(|n| n as u8).collect(),
    }
}

fn unfinished(shape: &Shape) -> Packet {
    let mut packet = Packet::from_frame(&shape.frame());
    packet.offload = shape.partial();
    packet
}

#[test]
fn options_without_the_copied_bit_stay_with_the_first() {
    // Timestamp (68, not copied, 4 bytes), security (130, copied, 3 bytes), end.
    let mut shape = udp(2000);
    shape.extra = 2;
    let mut packet = unfinished(&shape);
    let options = [68, 4, 5, 0, 130, 3, 9, 0];
    packet.bytes_mut()[38..46].copy_from_slice(&options);
    finish_ipv4(packet.bytes_mut(), 18, 28);
    let pieces = fragments(packet, 1000).unwrap();
    assert_eq!(pieces[0].bytes()[18..19], [0x47]);
    assert_eq!(pieces[0].bytes()[38..46], options);
    for piece in &pieces[1..] {
        assert_eq!(piece.bytes()[18..19], [0x46]);
        assert_eq!(piece.bytes()[38..42], [130, 3, 9, 0]);
    }
    assert_eq!(reassembled(&pieces, 18).unwrap().len(), 2008);
}

#[test]
fn a_fragment_is_cut_further() {
    let pieces = fragments(unfinished(&udp(4000)), 1500).unwrap();
    assert_eq!(pieces.len(), 3);
    let mut again = Vec::new();
    for piece in pieces {
        again.extend(fragments(Packet::from_frame(piece.bytes()), 600).unwrap());
    }
    again.reverse();
    let whole = reassembled(&again, 18).unwrap();
    assert_eq!(whole[8..], udp(4000).payload);
}

#[test]
fn packets_that_must_not_be_fragmented_are_refused() {
    let refused = |packet, mtu| fragments(packet, mtu).unwrap_err();
    let error = |reason| SegmentError::new(reason, 0);
    let mut packet = unfinished(&udp(2000));
    packet.bytes_mut()[24] = 0x40;
    assert_eq!(refused(packet, 1500), error(DropReason::MtuExceeded), "don't fragment");
    assert_eq!(refused(unfinished(&udp(2000)), 67), error(DropReason::MtuExceeded));
    let v6 = Shape { v4: false, ..udp(2000) };
    assert_eq!(refused(unfinished(&v6), 1500), error(DropReason::MtuExceeded));
    let mut packet = unfinished(&udp(2000));
    packet.bytes_mut()[18] = 0x44;
    assert_eq!(refused(packet, 1500), error(DropReason::Ipv4HeaderLength));
    for options in [[130, 9, 0, 0], [130, 1, 0, 0], [130, 0, 0, 0], [1, 1, 1, 130]] {
        let mut packet = unfinished(&Shape { extra: 1, ..udp(2000) });
        packet.bytes_mut()[38..42].copy_from_slice(&options);
        assert_eq!(refused(packet, 1500), error(DropReason::Ipv4Options), "{options:?}");
    }
    let mut packet = Packet::from_frame(&udp(2000).frame());
    packet.bytes_mut()[24..26].copy_from_slice(&[0x1f, 0xff]);
    assert_eq!(refused(packet, 1500), error(DropReason::FragmentLength));
}

#[test]
fn an_exhausted_pool_says_how_far_it_came() {
    let mut pool = Pool::new(PoolConfig { small: 2, large: 1 });
    let mut kept = Vec::new();
    let packet = unfinished(&udp(4000));
    let result = fragment_v4(packet, 1000, &mut pool, &mut |_: &mut Pool, p| kept.push(p));
    assert_eq!(result, Err(SegmentError::new(DropReason::PoolExhausted, 2)));
    assert_eq!(kept.len(), 2);
}

proptest! {
    #[test]
    fn fragments_are_the_packet_in_pieces(
        mut shape in shape(9000),
        mtu in 68usize..9000,
        seed in any::<bool>(),
    ) {
        shape.v4 = true;
        let l3 = shape.l3();
        let mut pieces = fragments(unfinished(&shape), mtu).unwrap();
        for piece in &pieces {
            let header = usize::from(piece.bytes()[l3] & 15) * 4;
            prop_assert!(piece.len() - l3 <= mtu.max(header + 8));
            prop_assert_eq!(&piece.bytes()[..l3], &shape.frame()[..l3]);
            let sum: u32 = piece.bytes()[l3..l3 + header].chunks(2).map(be).sum();
            prop_assert_eq!(sum % 0xffff, 0, "header checksum");
            prop_assert_eq!(be(&piece.bytes()[l3 + 4..]), u32::from(shape.id));
            prop_assert_eq!(piece.offload.csum_partial, false);
        }
        if seed {
            pieces.reverse();
        }
        // The reassembled packet under the original header: its checksums verify.
        let mut frame = shape.frame()[..shape.l4()].to_vec();
        frame.extend(reassembled(&pieces, l3).unwrap());
        prop_assert_eq!(inspect(&frame).payload, shape.payload);
    }

    #[test]
    fn gso_packets_are_segmented_first(mut shape in shape(9000), size in 500u16..3000) {
        shape.v4 = true;
        let pieces = fragments(shape.packet(size), 1000).unwrap();
        let (mut payload, l3) = (Vec::<u8>::new(), shape.l3());
        let mut rest = &pieces[..];
        while !rest.is_empty() {
            let count = 1 + rest
                .iter()
                .position(|piece| be(&piece.bytes()[l3 + 6..]) & 0x2000 == 0)
                .unwrap();
            let whole = reassembled(&rest[..count], l3).unwrap();
            payload.extend(&whole[shape.payload_at() - shape.l4()..]);
            rest = &rest[count..];
        }
        prop_assert_eq!(payload, shape.payload);
    }

    #[test]
    fn nonsense_is_survived(
        mut shape in shape(400),
        noise in prop::collection::vec((12usize..60, any::<u8>()), 0..6),
        mtu in 0usize..300,
        cut in 0usize..500,
    ) {
        shape.v4 = true;
        let mut packet = Packet::from_frame(&shape.frame());
        for (at, byte) in noise {
            if let Some(place) = packet.bytes_mut().get_mut(at) {
                *place = byte;
            }
        }
        packet.truncate(cut);
        packet.offload = Offload::default();
        let _ = fragments(packet, mtu);
    }
}
