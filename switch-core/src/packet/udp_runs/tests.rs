use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;
use proptest::prelude::*;

use super::super::testkit::{Shape, inspect, tunnelled};
use super::*;
use crate::packet::{Pool, PoolConfig, finish_checksum, segment};

fn udp(v4: bool, payload: usize, first: u8) -> Shape {
    Shape {
        v4,
        tcp: false,
        tags: 0,
        extra: 0,
        tcp_options: 0,
        tcp_flags: 0,
        id: 7,
        seq: 0,
        payload: (0..payload).map(|n| first.wrapping_add(n as u8)).collect(),
    }
}

/// The datagram with a partial checksum, as a pod's kernel sends it.
fn partial(shape: &Shape) -> Packet {
    let mut packet = Packet::from_frame(&shape.frame());
    packet.offload = shape.partial();
    packet
}

/// The datagram with a valid checksum that was not verified yet.
fn complete(shape: &Shape) -> Packet {
    let mut packet = partial(shape);
    finish_checksum(&mut packet).expect("a valid frame");
    packet.offload = Offload::default();
    packet
}

/// The packets that a receiver gets for a burst, and the number of writes.
fn sent(burst: &[Packet]) -> (Vec<Vec<u8>>, usize) {
    let mut pool = Pool::new(PoolConfig::default());
    let runs = UdpRuns::of(burst);
    let (mut frames, mut writes) = (Vec::new(), 0);
    for (at, packet) in burst.iter().enumerate() {
        if runs.as_ref().is_some_and(|runs| runs.continues(at)) {
            continue;
        }
        writes += 1;
        let mut whole = Packet::from_frame(packet.bytes());
        whole.offload = packet.offload;
        if let Some(run) = runs.as_ref().and_then(|runs| runs.run(burst, at)) {
            let mut head = [0; MAX_HEADERS];
            let (len, offload) = run.headers(&mut head);
            let mut frame = head[..len].to_vec();
            run.payloads().for_each(|payload| frame.extend(payload));
            whole = Packet::from_frame(&frame);
            whole.offload = offload;
            let parsed = parse(whole.bytes(), &HashKey::new(1)).expect("a sound frame");
            assert_eq!(whole.offload.check(&parsed), Ok(()));
            assert!(run.members().count() > 1);
        }
        segment(whole, &mut pool, &mut |_, piece: Packet| frames.push(piece.bytes().to_vec()))
            .expect("a valid packet");
    }
    (frames, writes)
}

/// The frame without the fields that the receiver's kernel sets for each segment: IPv4 identification and header
/// checksum.
fn without_id(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame[12..14] == [0x08, 0x00] {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    frame
}

fn finished(packet: &Packet) -> Vec<u8> {
    let mut whole = Packet::from_frame(packet.bytes());
    whole.offload = packet.offload;
    if whole.offload.csum_partial {
        finish_checksum(&mut whole).expect("a valid frame");
    }
    without_id(whole.bytes())
}

#[test]
fn datagrams_of_one_flow_are_one_write() {
    for (v4, make) in [
        (true, partial as fn(&Shape) -> Packet),
        (false, partial),
        (true, complete),
        (false, complete),
    ] {
        let lens = [18, 18, 18, 7];
        let burst: Vec<Packet> =
            lens.iter().enumerate().map(|(n, len)| make(&udp(v4, *len, n as u8))).collect();
        let (frames, writes) = sent(&burst);
        assert_eq!((frames.len(), writes), (4, 1), "v4 {v4}");
        for (frame, packet) in frames.iter().zip(&burst) {
            inspect(frame);
            assert_eq!(without_id(frame), finished(packet));
        }
        // A longer datagram begins a run of its own; a shorter one has ended the first run.
        let lens = [18, 18, 7, 18, 20, 20];
        let burst: Vec<Packet> = lens.iter().map(|len| make(&udp(v4, *len, 1))).collect();
        assert_eq!(sent(&burst).1, 3);
    }
}

#[test]
fn datagrams_that_differ_are_not_joined_or_overtaken() {
    // Offsets in an IPv4 packet: IP header at 14, UDP at 34.
    type Change = (&'static str, fn(&mut [u8]));
    let changes: [Change; 12] = [
        ("destination MAC", |f| f[5] ^= 1),
        ("source MAC", |f| f[11] ^= 1),
        ("DSCP", |f| f[15] ^= 4),
        ("ECN", |f| f[15] ^= 1),
        ("don't fragment", |f| f[20] ^= 0x40),
        ("TTL", |f| f[22] ^= 1),
        ("a fragment", |f| f[20] ^= 0x20),
        ("a later fragment", |f| f[21] ^= 1),
        ("a zero checksum", |f| f[40..42].fill(0)),
        ("UDP length", |f| f[39] -= 1),
        ("IP length", |f| f[17] -= 1),
        ("a wrong checksum", |f| f[41] ^= 1),
    ];
    for (what, change) in changes {
        let [a, mut b, c] = [0, 1, 2].map(|n| complete(&udp(true, 18, n)));
        change(b.bytes_mut());
        let burst = [a, b, c];
        assert!(UdpRuns::of(&burst).is_none(), "{what}");
    }
    let changes: [Change; 4] = [
        ("traffic class", |f| f[15] ^= 0x10),
        ("flow label", |f| f[17] ^= 1),
        ("hop limit", |f| f[21] ^= 1),
        ("a zero checksum", |f| f[60..62].fill(0)),
    ];
    for (what, change) in changes {
        let [a, mut b, c] = [0, 1, 2].map(|n| complete(&udp(false, 18, n)));
        change(b.bytes_mut());
        assert!(UdpRuns::of(&[a, b, c]).is_none(), "{what}");
    }
    // Tags, options, extension headers, no payload, and a datagram with another's partial checksum inside.
    for v4 in [true, false] {
        let others = [
            Shape { tags: 1, ..udp(v4, 18, 0) },
            Shape { extra: 1, ..udp(v4, 18, 0) },
            udp(v4, 0, 0),
        ];
        for shape in others {
            assert!(UdpRuns::of(&[partial(&shape), partial(&shape)]).is_none(), "{shape:?}");
        }
        let inside = || {
            let mut packet = tunnelled(&udp(v4, 18, 0), 18, true, true);
            (packet.offload.gso_type, packet.offload.gso_size) = (GsoType::None, 0);
            packet
        };
        assert!(UdpRuns::of(&[inside(), inside()]).is_none());
    }
}

#[test]
fn a_run_ends_at_the_longest_packet() {
    let burst: Vec<Packet> = (0..60).map(|n| partial(&udp(true, 1400, n))).collect();
    let (frames, writes) = sent(&burst);
    // 46 payloads of 1,400 bytes fit in 65,535 bytes minus the headers.
    assert_eq!((frames.len(), writes), (60, 2));
}

#[derive(Clone, Debug)]
struct Piece {
    v4: bool,
    flow: u8,
    len: usize,
    complete: bool,
    odd: u8,
}

fn piece() -> impl Strategy<Value = Piece> {
    (
        any::<bool>(),
        0_u8..12,
        prop_oneof![Just(18_usize), Just(64), 0_usize..80],
        any::<bool>(),
        0_u8..24,
    )
        .prop_map(|(v4, flow, len, complete, odd)| Piece { v4, flow, len, complete, odd })
}

impl Piece {
    fn packet(&self, number: usize) -> Packet {
        let mut shape = udp(self.v4, self.len, number as u8);
        shape.tcp = self.odd == 1;
        shape.tags = usize::from(self.odd == 2);
        shape.extra = usize::from(self.odd == 3);
        let mut packet = partial(&shape);
        let (l3, l4) = (shape.l3(), shape.l4());
        let frame = packet.bytes_mut();
        // Another source port, which the partial sum does not cover.
        frame[l4 + 1] = self.flow;
        if self.odd == 4 {
            frame[l3 + if self.v4 { 8 } else { 7 }] ^= 3;
            if self.v4 {
                finish_ipv4(frame, l3, 20 + 4 * shape.extra);
            }
        }
        if self.complete {
            finish_checksum(&mut packet).expect("a valid frame");
            packet.offload = Offload::default();
        }
        packet
    }
}

proptest! {
    #[test]
    fn every_datagram_arrives_unchanged_and_each_flow_in_order(
        pieces in prop::collection::vec(piece(), 0..BATCH),
    ) {
        let burst: Vec<Packet> = pieces.iter().enumerate().map(|(n, piece)| piece.packet(n)).collect();
        let (frames, writes) = sent(&burst);
        prop_assert!(writes <= burst.len());
        let flow = |frame: &[u8]| parse(frame, &HashKey::new(1)).map(|parsed| parsed.key).ok();
        let mut got: Vec<_> = frames.iter().map(|frame| (flow(frame), without_id(frame))).collect();
        let mut wanted: Vec<_> =
            burst.iter().map(|packet| (flow(packet.bytes()), finished(packet))).collect();
        // Stable sort: only the flows are grouped.
        let name = |pair: &(Option<podswitch_wire::flow_key::FlowKey>, Vec<u8>)| format!("{:?}", pair.0);
        got.sort_by_key(name);
        wanted.sort_by_key(name);
        prop_assert_eq!(got, wanted);
    }
}
