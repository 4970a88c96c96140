//! Known answers, and incremental updates compared with full computation.

use super::*;
use crate::flow_key::HashKey;
use crate::parse::{Parsed, parse};
use proptest::prelude::*;
use std::vec::Vec;

/// RFC 1071 implemented word by word, without optimization.
fn plain(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn rfc_1071_example() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(sum(&bytes).fold(), 0xddf2);
    assert_eq!(sum(&[]).fold(), 0);
    assert_eq!(sum(&[0xff; 65_535]).fold(), plain(&[0xff; 65_535]));
}

#[test]
fn rfc_1624_example() {
    // §4: a field goes from 0x5555 to 0x3285 under the checksum 0xdd2f; the result is 0x0000.
    assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    assert_eq!(Delta::NONE.apply(0xffff), 0xffff);
}

#[test]
fn crc32c_known_answers() {
    // RFC 3720 appendix B.4.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    let rising: Vec<u8> = (0..32).collect();
    assert_eq!(crc32c(&rising), 0x46dd_794e);
}

#[test]
fn udp_zero_rules() {
    let change = Delta::u16(0x1234, 0x4321);
    assert_eq!(change.apply_udp(0), 0);
    // A change after which the checksum is zero.
    let to_zero = Delta::u16(0, 0x5555);
    assert_eq!(to_zero.apply(0x5555), 0);
    assert_eq!(to_zero.apply_udp(0x5555), 0xffff);
}

proptest! {
    #[test]
    fn sum_is_the_plain_sum(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(sum(&bytes).fold(), plain(&bytes));
    }

    #[test]
    fn sums_add_up(
        a in prop::collection::vec(any::<u8>(), 0..60),
        b in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let a = if a.len() % 2 == 0 { &a[..] } else { &a[1..] };
        let both = [a, &b].concat();
        prop_assert_eq!((sum(a) + sum(&b)).fold(), sum(&both).fold());
    }

    #[test]
    fn incremental_is_recomputed(
        mut bytes in prop::collection::vec(any::<u8>(), 40..80),
        word: u16, two: u32, address: [u8; 16],
    ) {
        // The bytes contain no checksum field.
        bytes[39] |= 1;
        let before = sum(&bytes).checksum();
        let old_word = u16::from_be_bytes([bytes[2], bytes[3]]);
        let old_two = u32::from_be_bytes(bytes[4..8].try_into().unwrap());
        let old_address: [u8; 16] = bytes[8..24].try_into().unwrap();
        bytes[2..4].copy_from_slice(&word.to_be_bytes());
        bytes[4..8].copy_from_slice(&two.to_be_bytes());
        bytes[8..24].copy_from_slice(&address);
        let after = sum(&bytes).checksum();

        let stepwise = update_u16(before, old_word, word);
        let stepwise = update_u32(stepwise, old_two, two);
        let stepwise = update_addr16(stepwise, &old_address, &address);
        prop_assert_eq!(stepwise, after);

        let delta = Delta::u16(old_word, word)
            .and(Delta::u32(old_two, two))
            .and(Delta::addr16(&old_address, &address));
        prop_assert_eq!(delta.apply(before), after);
        prop_assert_eq!(delta.inverse().apply(after), before);
        prop_assert_eq!(delta.apply_partial(!before), !after);
    }

    #[test]
    fn sctp_ports_update_is_recomputed(
        mut packet in prop::collection::vec(any::<u8>(), 12..200), new: [u8; 4], damage: u32,
    ) {
        let old: [u8; 4] = packet[..4].try_into().unwrap();
        let before = sctp_checksum(&packet).unwrap();
        packet[..4].copy_from_slice(&new);
        let after = sctp_checksum(&packet).unwrap();
        prop_assert_eq!(sctp_update(before, packet.len(), old, new), after);
        // A wrong checksum stays wrong by the same amount.
        let damaged = (u32::from_le_bytes(before) ^ damage).to_le_bytes();
        let updated = u32::from_le_bytes(sctp_update(damaged, packet.len(), old, new));
        prop_assert_eq!(updated ^ damage, u32::from_le_bytes(after));
    }

    #[test]
    fn filled_and_finished_frames_verify(
        protocol in prop::sample::select(&[1_u8, 6, 17, 58, 132][..]),
        v6: bool, payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let (mut frame, parsed) = frame(v6, protocol, &payload);
        frame.extend_from_slice(&[0xa5; 7]);
        fill_l4(&mut frame, &parsed);
        prop_assert!(verify_l4(&frame, &parsed));
        let field = l4_checksum_offset(protocol, parsed.key.family);
        if let Some(field) = field {
            let at = usize::from(parsed.l4) + field;
            let right = [frame[at], frame[at + 1]];
            frame[at] ^= 0x40;
            prop_assert!(!verify_l4(&frame, &parsed));
            if matches!(protocol, 6 | 17) {
                let len = parsed.end - u32::from(parsed.l4);
                let pseudo = pseudo_l4(&parsed.key, len).fold();
                frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
                prop_assert!(is_partial(&frame, &parsed));
                let end = parsed.end as usize;
                prop_assert!(finish_partial(&mut frame[..end], usize::from(parsed.l4), field));
                prop_assert!(verify_l4(&frame, &parsed));
                let other_zero = frame[at..at + 2] == [0xff; 2] && right == [0; 2];
                prop_assert!(other_zero || frame[at..at + 2] == right);
            }
        }
    }
}

/// A frame with an all-zero layer-4 header (except for lengths) before `payload`.
fn frame(v6: bool, protocol: u8, payload: &[u8]) -> (Vec<u8>, Parsed) {
    let mut segment = [0; 20];
    segment[1] = 9;
    segment[3] = 7;
    match protocol {
        6 => segment[12] = 0x50,
        17 => segment[4..6].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes()),
        1 | 58 => segment[0] = 128,
        _ => {}
    }
    let len = 20 + payload.len() as u16;
    let mut frame = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1].to_vec();
    if v6 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend_from_slice(&len.to_be_bytes());
        frame.extend_from_slice(&[protocol, 64]);
        frame.extend_from_slice(&[0xfd; 16]);
        frame.extend_from_slice(&[0xfc; 16]);
    } else {
        frame.extend_from_slice(&[8, 0, 0x45, 0]);
        frame.extend_from_slice(&(20 + len).to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let checksum = sum(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    }
    frame.extend_from_slice(&segment);
    frame.extend_from_slice(payload);
    let parsed = parse(&frame, &HashKey::new(0)).unwrap();
    (frame, parsed)
}
