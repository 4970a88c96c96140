use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;
use proptest::prelude::*;

use super::super::testkit::{inspect, shape};
use super::*;
use crate::action::DropReason;
use crate::packet::{Offload, PoolConfig};

fn pool() -> Pool {
    Pool::new(PoolConfig::default())
}

/// Calls `fit` and collects its results.
fn fitted(packet: Packet, offloads: Offloads) -> Result<Vec<Packet>, SegmentError> {
    let mut pieces = Vec::new();
    let (fits, before) = (is_fit(&packet, offloads), packet.offload);
    let count = fit(packet, offloads, &mut pool(), &mut |_: &mut Pool, p| pieces.push(p))?;
    assert_eq!(count, pieces.len());
    let as_it_was = count == 1 && pieces[0].offload == before;
    assert_eq!(fits, as_it_was);
    Ok(pieces)
}

#[test]
fn a_computed_zero_is_sent_as_all_ones_by_udp_only() {
    // The sum over the covered bytes is ffff, so its complement is zero.
    for (offset, expected) in [(6, [0xff, 0xff]), (16, [0, 0])] {
        let mut packet = Packet::from_frame(&[0; 60]);
        packet.bytes_mut()[34..36].copy_from_slice(&[0xff, 0xff]);
        packet.offload = Offload {
            csum_partial: true,
            csum_start: 34,
            csum_offset: offset,
            ..Offload::default()
        };
        finish_checksum(&mut packet).unwrap();
        let field = 34 + usize::from(offset);
        assert_eq!(packet.bytes()[field..field + 2], expected);
        assert!(packet.offload.csum_valid && !packet.offload.csum_partial);
    }
}

#[test]
fn a_field_outside_the_frame_is_refused() {
    for (start, offset) in [(50, 16), (59, 0), (60, 0), (60, 6), (54, 8), (60, 8), (65_535, 65_535)]
    {
        let mut packet = Packet::from_frame(&[7; 60]);
        packet.offload.csum_partial = true;
        (packet.offload.csum_start, packet.offload.csum_offset) = (start, offset);
        let before = packet.bytes().to_vec();
        assert_eq!(finish_checksum(&mut packet), Err(DropReason::OffloadInvalid));
        assert_eq!(packet.bytes(), before);
        let error = fitted(packet, Offloads::NONE).unwrap_err();
        assert_eq!(error, SegmentError::new(DropReason::OffloadInvalid, 0));
    }
}

/// An SCTP INIT, padded to 60 bytes; CRC32c computed bit by bit from its definition.
#[test]
fn sctp_gets_its_crc32c_on_every_port() {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 132, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 8, 1, 2, 3, 4]);
    let plain = frame[34..].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    });
    frame.extend([0xee; 6]);
    let mut packet = Packet::from_frame(&frame);
    packet.bytes_mut()[42..46].copy_from_slice(&[9; 4]);
    packet.offload =
        Offload { csum_partial: true, csum_start: 34, csum_offset: 8, ..Offload::default() };
    let pieces = fitted(packet, Offloads::ALL).unwrap();
    assert_eq!(pieces[0].bytes()[42..46], (!plain).to_le_bytes());
    assert!(!pieces[0].offload.csum_partial);
}

proptest! {
    #[test]
    fn finished_checksums_verify(shape in shape(200), padding in 0usize..20) {
        let mut frame = shape.frame();
        frame.resize(frame.len() + padding, 0xa5);
        let mut packet = Packet::from_frame(&frame);
        packet.offload = shape.partial();
        prop_assert_eq!(packet.offload.check(&parse(&frame, &HashKey::new(1)).unwrap()), Ok(()));
        finish_checksum(&mut packet).unwrap();
        prop_assert_eq!(inspect(packet.bytes()).payload, shape.payload.clone());
        let done = packet.bytes().to_vec();
        finish_checksum(&mut packet).unwrap();
        prop_assert_eq!(packet.bytes(), &done[..], "finishing twice changes nothing");
    }

    #[test]
    fn a_port_gets_packets_that_it_supports(
        shape in shape(3000),
        size in 100u16..1500,
        gso in any::<bool>(),
        takes in any::<[bool; 4]>(),
    ) {
        let [checksum, tso4, tso6, uso] = takes;
        let offloads = Offloads { checksum, tso4, tso6, uso, tunnel: false };
        let mut packet = shape.packet(size);
        if !gso {
            packet.offload = shape.partial();
        }
        let parsed = parse(packet.bytes(), &HashKey::new(1)).unwrap();
        let largest = largest_l3(&packet, &parsed);
        prop_assert_eq!(packet.offload.check(&parsed), Ok(()));
        let segmentation = match shape.gso_type() {
            GsoType::TcpV4 => tso4,
            GsoType::TcpV6 => tso6,
            _ => uso,
        };
        let pieces = fitted(packet, offloads).unwrap();
        if gso && checksum && segmentation {
            prop_assert_eq!(pieces.len(), 1);
            prop_assert_eq!(pieces[0].bytes(), shape.frame());
            prop_assert!(pieces[0].offload.is_gso());
        } else {
            let mut payload = Vec::new();
            let mut longest = 0;
            for mut piece in pieces {
                prop_assert!(!piece.offload.is_gso());
                prop_assert_eq!(piece.offload.csum_partial, checksum);
                finish_checksum(&mut piece).unwrap();
                let inspected = inspect(piece.bytes());
                payload.extend(inspected.payload);
                longest = longest.max(inspected.ip_len);
            }
            prop_assert_eq!(&payload, &shape.payload);
            prop_assert_eq!(longest, largest);
        }
    }
}
