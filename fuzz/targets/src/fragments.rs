//! Any packet cut into IPv4 fragments: each fragment fits the MTU, and reassembled they are the
//! packet.
//!
//! Input: the MTU, a byte that says whether the IPv4 header is corrected first, and the frame.

use podswitch_core::action::DropReason;
use podswitch_core::packet::{Packet, Pool, PoolConfig, fragment_v4};
use podswitch_testkit::rig::frames::checksum;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Network, ParseError, parse};

use crate::pieces::Pieces;

const KEY: HashKey = HashKey::new(1);
/// In bytes (RFC 9293 §3.1: a data offset of 15 words).
const LONGEST_TCP_HEADER: usize = 60;

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    let mut pieces = Pieces::new(input);
    let mtu = usize::from(pieces.u16() % 1600);
    let repair = pieces.byte();
    let mut frame = pieces.rest().to_vec();
    if repair & 1 == 1 {
        put_right(&mut frame, repair);
    }
    let mut pool = Pool::new(PoolConfig::default());
    let mut out = Vec::new();
    let cut = fragment_v4(Packet::from_frame(&frame), mtu, &mut pool, &mut |pool: &mut Pool, p| {
        out.push(p.bytes().to_vec());
        pool.free(p);
    });
    match cut {
        Err(error) => {
            assert!(mtu >= 68 || error.reason == DropReason::MtuExceeded || out.is_empty())
        }
        Ok(count) => {
            assert_eq!(count, out.len());
            if let Ok(parsed) = parse(&frame, &KEY)
                && parsed.network == Network::Ipv4
            {
                let l3 = usize::from(parsed.l3);
                together(&frame[l3..parsed.end as usize], &out, l3, mtu);
            }
        }
    }
}

/// Makes the frame an IPv4 packet that may be fragmented, as long as the frame, with or without
/// options.
fn put_right(frame: &mut Vec<u8>, repair: u8) {
    let options = usize::from(repair >> 1 & 3) * 4;
    frame.resize(frame.len().max(34 + options), 0);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45 + (options / 4) as u8;
    let len = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    if repair & 0x80 == 0 {
        // A whole packet.
        frame[20..22].fill(0);
    }
    frame[24..26].fill(0);
    let sum = checksum(&[&frame[14..34 + options]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// The header fields of a packet or a fragment.
struct Fragment<'a> {
    payload: &'a [u8],
    /// Length of the IPv4 header in bytes.
    header: usize,
    /// In bytes.
    offset: usize,
    more: bool,
}

fn read(packet: &[u8]) -> Fragment<'_> {
    let header = usize::from(packet[0] & 15) * 4;
    let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let field = u16::from_be_bytes([packet[6], packet[7]]);
    let offset = usize::from(field & 0x1fff) * 8;
    Fragment { payload: &packet[header..len], header, offset, more: field & 0x2000 != 0 }
}

fn together(packet: &[u8], out: &[Vec<u8>], l3: usize, mtu: usize) {
    let whole = read(packet);
    let mut payload = Vec::new();
    for (number, frame) in out.iter().enumerate() {
        // Behind the packet there may be padding.
        let len = u16::from_be_bytes([frame[l3 + 2], frame[l3 + 3]]);
        assert!(usize::from(len) <= mtu, "fragment {number}: {len} bytes");
        let piece = read(&frame[l3..]);
        let parsed = parse(frame, &KEY);
        // A link whose MTU is smaller than the IPv4 header plus the longest TCP header splits TCP
        // headers. Except for the last one, fragments end at a multiple of eight bytes.
        let is_cut = parsed == Err(ParseError::FragmentTiny) && number == 0;
        let room = mtu.saturating_sub(piece.header) & !7;
        assert!(
            parsed.is_ok() || is_cut && room < LONGEST_TCP_HEADER,
            "fragment {number}: {parsed:?}"
        );
        assert_eq!(piece.offset, whole.offset + payload.len(), "fragment {number}");
        assert_eq!(piece.more, whole.more || number + 1 < out.len());
        payload.extend_from_slice(piece.payload);
    }
    assert_eq!(payload, whole.payload);
}
