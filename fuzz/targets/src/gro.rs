//! TCP streams in segments, plain or in tunnel packets, some damaged or out of order: packets that GRO merged are
//! segmented into the same frames again, those of each flow in the same order.
//!
//! Input: a byte for the tunnel, then five bytes for each segment (see [`Source::next`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use podswitch_core::packet::{BATCH, Batch, Packet, Pool, PoolConfig, coalesce, segment};
use podswitch_testkit::rig::frames;
use podswitch_vxlan::header::Vni;
use podswitch_vxlan::template::{InnerFacts, Outer, Template, UdpChecksum};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;

use crate::pieces::Pieces;

const KEY: HashKey = HashKey::new(1);
/// The UDP port of tunnels.
const PORT: u16 = 4789;
/// Bytes of Ethernet, IPv4, UDP and VXLAN headers.
const TUNNEL: usize = 50;

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    let mut pieces = Pieces::new(input);
    let template = match pieces.byte() % 3 {
        0 => None,
        1 => Some(tunnel(UdpChecksum::Zero)),
        _ => Some(tunnel(UdpChecksum::Computed)),
    };
    let mut source = Source { sequence: [7; 4], id: 0xfff0 };
    let mut sent = Vec::new();
    while !pieces.is_empty() && sent.len() < BATCH {
        let frame = source.next(&mut pieces);
        sent.extend(match &template {
            None => Some(frame),
            Some(template) => wrapped(template, &frame),
        });
    }
    check(&sent, template.is_some());
}

fn check(sent: &[Vec<u8>], is_tunnelled: bool) {
    let mut pool = Pool::new(PoolConfig::default());
    let mut batch: Batch = sent.iter().map(|frame| Packet::from_frame(frame)).collect();
    let merged = coalesce(&mut batch, Some(PORT), &mut pool);
    assert_eq!(batch.len(), sent.len() - merged);
    let mut got = Vec::new();
    for packet in batch {
        if packet.offload.is_gso() {
            let parsed = parse(packet.bytes(), &KEY).expect("a merged packet parses");
            assert_eq!(packet.offload.check(&parsed), Ok(()));
        }
        segment(packet, &mut pool, &mut |pool: &mut Pool, piece: Packet| {
            got.push(piece.bytes().to_vec());
            pool.free(piece);
        })
        .expect("a merged packet can be segmented");
    }
    assert_eq!(flows(&got, is_tunnelled), flows(sent, is_tunnelled));
}

/// Frames by flow, in order, without the fields that GRO may change.
fn flows(list: &[Vec<u8>], is_tunnelled: bool) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for frame in list {
        let mut frame = frame.clone();
        forget_identification(&mut frame);
        let inner = if is_tunnelled { TUNNEL } else { 0 };
        if is_tunnelled {
            forget_identification(&mut frame[inner..]);
        }
        let flow = match frame.get(inner + 12..inner + 14) {
            Some([0x08, 0]) => frame.get(inner + 26..inner + 38),
            Some([0x86, 0xdd]) => frame.get(inner + 22..inner + 58),
            _ => None,
        };
        flows.entry(flow.unwrap_or_default().to_vec()).or_default().push(frame);
    }
    flows
}

/// The IPv4 identification has no meaning in packets that may not be fragmented (RFC 6864 §4.1).
fn forget_identification(frame: &mut [u8]) {
    if frame.len() >= 34 && frame[12..14] == [8, 0] && frame[20] & 0xe0 == 0x40 {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
}

fn tunnel(checksum: UdpChecksum) -> Template {
    let (a, b) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let ethernet = Some((Mac([2; 6]), Mac([4; 6])));
    let outer = Outer { ethernet, checksum, ..Outer::new(a, b, Vni::MAX) };
    Template::new(&outer).expect("a good tunnel")
}

fn wrapped(template: &Template, frame: &[u8]) -> Option<Vec<u8>> {
    let inner = parse(frame, &KEY).ok()?;
    let mut packet = vec![0; template.len()];
    packet.extend_from_slice(frame);
    template.encap(&InnerFacts::new(&inner, &KEY), &mut packet).ok()?;
    Some(packet)
}

/// Senders of TCP segments.
struct Source {
    sequence: [u32; 4],
    id: u16,
}

impl Source {
    /// Byte 0: flow (two bits), IPv6, may be fragmented, damaged, out of order, ends in PSH, in FIN.
    /// Byte 1: length of the payload. Bytes 2 to 4: the position and kind of the damage.
    fn next(&mut self, pieces: &mut Pieces<'_>) -> Vec<u8> {
        let (what, len) = (pieces.byte(), usize::from(pieces.byte()));
        let (at, damage) = (usize::from(pieces.u16()), pieces.byte());
        let flow = usize::from(what & 3);
        let addresses: [IpAddr; 2] = match what & 4 {
            0 => [[10, 1, 0, 10].into(), [10, 1, 0, 11].into()],
            _ => ["fd00::a".parse().expect("one"), "fd00::b".parse().expect("one")],
        };
        let sequence = &mut self.sequence[flow];
        if what & 0x20 != 0 {
            *sequence = sequence.wrapping_add(u32::from(damage));
        }
        let flags = 0x10 | (what >> 3 & 8) | (what >> 7);
        let payload: Vec<u8> = (0..len).map(|n| (n * 7 / 8) as u8).collect();
        let ports = (1000 + flow as u16, 80);
        let [from, to] = addresses;
        let message = frames::tcp(from, to, ports, (*sequence, 5, flags), &payload);
        *sequence = sequence.wrapping_add(len as u32);
        let mut packet = frames::ip(from, to, 6, 64, None, &message);
        if from.is_ipv4() {
            packet[4..6].copy_from_slice(&self.id.to_be_bytes());
            self.id = self.id.wrapping_add(1);
            packet[6] = if what & 8 == 0 { 0x40 } else { 0 };
            packet[10..12].fill(0);
            let sum = frames::checksum(&[&packet[..20]]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let ethertype = frames::ethertype(from);
        let mut frame = frames::ethernet(Mac([2; 6]), Mac([4; 6]), ethertype, &packet);
        if what & 0x10 != 0 {
            let at = at % frame.len();
            frame[at] ^= damage;
        }
        frame
    }
}
