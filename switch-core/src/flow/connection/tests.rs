//! The connection table compared with ordinary maps.

use std::collections::HashMap;

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::{Family, FlowKey, HashKey, proto};
use proptest::prelude::*;

use super::*;

const HASH: HashKey = HashKey::new(5);

fn key(n: u8, protocol: u8) -> FlowKey {
    let [mut src, mut dst] = [[0; 16]; 2];
    (src[0], dst[0]) = (10, 20);
    let ports = (u16::from(n), 80);
    FlowKey {
        src,
        dst,
        src_port: ports.0,
        dst_port: ports.1,
        proto: protocol,
        family: Family::V6,
        zone: 0,
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Original key, whether reversed, another key's reply (translation), origin port.
    Create(u8, bool, Option<u8>, u16),
    End(u8, bool),
    Find(u8, bool),
    Touch(u8, bool),
    Pass(u32),
    Sweep(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let n = || 0u8..40;
    prop_oneof![
        6 => (n(), any::<bool>(), prop::option::weighted(0.2, n()), 0u16..4)
            .prop_map(|(n, back, to, port)| Op::Create(n, back, to, port)),
        2 => (n(), any::<bool>()).prop_map(|(n, back)| Op::End(n, back)),
        3 => (n(), any::<bool>()).prop_map(|(n, back)| Op::Find(n, back)),
        3 => (n(), any::<bool>()).prop_map(|(n, back)| Op::Touch(n, back)),
        1 => (1u32..60).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Sweep),
    ]
}

/// The expected connections, by the key of each direction: facts, second of the last packet, whether a
/// reply was seen.
#[derive(Default)]
struct Plain {
    by_key: HashMap<FlowKey, usize>,
    connections: HashMap<usize, (Pinned, u32, bool)>,
    next: usize,
}

impl Plain {
    fn create(
        &mut self,
        pinned: &Pinned,
        now: u32,
        limits: (usize, usize),
    ) -> Result<bool, Refused> {
        let own = self.connections.values().filter(|c| c.0.origin == pinned.origin).count();
        let free = limits.0 - self.connections.len();
        if free == 0 {
            return Err(Refused::Full);
        }
        if own >= limits.1.min(free) {
            return Err(Refused::Limit(Charge { account: pinned.account(), source: None }));
        }
        if self.by_key.contains_key(&pinned.original) {
            return Ok(false);
        }
        if self.by_key.contains_key(&pinned.reply) {
            return Err(Refused::Collision);
        }
        self.by_key.insert(pinned.original, self.next);
        self.by_key.insert(pinned.reply, self.next);
        self.connections.insert(self.next, (*pinned, now, false));
        self.next += 1;
        Ok(true)
    }

    fn end(&mut self, number: usize) {
        if let Some((pinned, ..)) = self.connections.remove(&number) {
            self.by_key.remove(&pinned.original);
            self.by_key.remove(&pinned.reply);
        }
    }

    fn sweep(&mut self, now: u32, pressure: bool) -> usize {
        let over = |c: &(Pinned, u32, bool)| {
            now - c.1 >= 120 || pressure && !c.2 && now - c.1 >= PRESSURE_SECS
        };
        let list: Vec<usize> =
            self.connections.iter().filter(|(_, c)| over(c)).map(|(&n, _)| n).collect();
        list.iter().for_each(|&n| self.end(n));
        list.len()
    }
}

fn directed(n: u8, back: bool) -> FlowKey {
    let key = key(n, proto::UDP);
    if back { key.reversed() } else { key }
}

proptest! {
    #[test]
    fn agrees_with_plain_maps(ops in prop::collection::vec(op(), 1..300)) {
        let limits = (30, 12);
        let (connections, per_port) = (limits.0 as u32, limits.1 as u32);
        let tracker = Tracker::new(TrackerConfig { connections, per_port, hash_key: HASH });
        let mut plain = Plain::default();
        let mut now = 1000;
        for op in ops {
            match op {
                Op::Create(n, back, to, port) => {
                    let original = directed(n, back);
                    let reply = directed(to.unwrap_or(n), !back);
                    let pinned = Pinned { reply, ..Pinned::new(original, PortId(port)) };
                    let wanted = plain.create(&pinned, now, limits);
                    let got = tracker.create(&pinned, now);
                    prop_assert_eq!(got.map(|c| matches!(c, Created::New(_))), wanted);
                }
                Op::End(n, back) | Op::Find(n, back) | Op::Touch(n, back) => {
                    let key = directed(n, back);
                    let found = tracker.find(tracker.index_hash(&key, key.hash(&HASH)), &key);
                    let wanted = plain.by_key.get(&key).copied();
                    prop_assert_eq!(found.is_some(), wanted.is_some());
                    prop_assert_eq!(tracker.is_taken(&key), wanted.is_some());
                    let (Some(known), Some(number)) = (found, wanted) else { continue };
                    prop_assert_eq!(known.pinned, plain.connections[&number].0);
                    let reply = known.connection.direction() == Direction::Reply;
                    prop_assert_eq!(reply, known.pinned.original != key);
                    if matches!(op, Op::End(..)) {
                        prop_assert!(tracker.end(known.connection, &mut ()));
                        prop_assert!(!tracker.end(known.connection, &mut ()));
                        prop_assert!(!tracker.record(known.connection.reversed(), 1, now));
                        plain.end(number);
                    } else if matches!(op, Op::Touch(..)) {
                        prop_assert!(tracker.record(known.connection, 1, now));
                        if let Some(c) = plain.connections.get_mut(&number) {
                            (c.1, c.2) = (now, c.2 || reply);
                        }
                    }
                }
                Op::Pass(seconds) => now += seconds,
                Op::Sweep(pressure) => {
                    let ended = tracker.sweep(0, tracker.slots(), now, pressure, &mut ());
                    prop_assert_eq!(ended, plain.sweep(now, pressure));
                }
            }
            prop_assert_eq!(tracker.len(), plain.connections.len());
            prop_assert_eq!(tracker.spare() + tracker.len(), tracker.slots());
        }
        let mut listed = 0;
        tracker.list(|info| {
            listed += 1;
            assert!(plain.connections.values().any(|c| c.0 == info.pinned && c.1 == info.last_seen));
        });
        prop_assert_eq!(listed, plain.connections.len());
        for port in 0..4 {
            let own = plain.connections.values().filter(|c| c.0.origin == PortId(port)).count();
            prop_assert_eq!(tracker.originated(PortId(port)) as usize, own);
        }
    }
}

/// Filled, emptied and filled again with other connections: the whole capacity is available each time.
#[test]
fn the_whole_table_can_be_reused() {
    let limit = 3000;
    let config = TrackerConfig { connections: limit, per_port: limit, hash_key: HASH };
    let tracker = Tracker::new(config);
    for round in 0..20u16 {
        let pinned = |n: u16| {
            let original = FlowKey { src_port: n, zone: round, dst_port: 1, ..key(0, proto::UDP) };
            let plain = Pinned::new(original, PortId(n));
            // With one entry in the index, or two.
            let reply = FlowKey { src: [7; 16], ..plain.reply };
            if n % 3 == round % 3 { Pinned { reply, ..plain } } else { plain }
        };
        for n in 0..limit as u16 {
            assert!(matches!(tracker.create(&pinned(n), 1), Ok(Created::New(_))), "{round} {n}");
        }
        assert!(tracker.is_under_pressure());
        let one_more = tracker.create(&pinned(limit as u16), 1);
        assert!(matches!(one_more, Err(Refused::Full)));
        assert_eq!(tracker.sweep(0, tracker.slots(), 1000, false, &mut ()), limit as usize);
        assert!(tracker.is_empty());
        assert_eq!(tracker.entries(), 0);
    }
    // Memory is bounded by the limit and the partly used chunks of the shards.
    assert!(tracker.slots() <= 3000 + SHARDS * CHUNK + CHUNK);
}

/// Facts are packed into words, and unpacked unchanged.
#[test]
fn facts_are_stored_unchanged() {
    let config = TrackerConfig { connections: 100, per_port: 100, hash_key: HASH };
    let tracker = Tracker::new(config);
    let nats = [SourceNat::Kept, SourceNat::Connection, SourceNat::Endpoint];
    for (n, source_nat) in nats.into_iter().cycle().take(60).enumerate() {
        let v4 = n % 2 == 0;
        let mut original = key(n as u8, if v4 { proto::TCP } else { proto::ICMPV6 });
        original.family = if v4 { Family::V4 } else { Family::V6 };
        original.zone = 0xa5c3 ^ n as u16;
        (original.src[15], original.dst_port) = (u8::from(!v4) * 0xfe, 0xff00 + n as u16);
        let reply = FlowKey { src: [n as u8; 16], src_port: 0xfedc, ..original.reversed() };
        let pinned = Pinned {
            reply,
            origin: PortId(4095 - n as u16),
            origin_mac: Mac([0xfe, 1, 2, 3, 4, n as u8]),
            source_nat,
            ..Pinned::new(original, PortId(0))
        };
        let pinned =
            if n % 5 == 0 { Pinned { reply: original.reversed(), ..pinned } } else { pinned };
        assert!(matches!(tracker.create(&pinned, 1), Ok(Created::New(_))));
        for key in [&pinned.original, &pinned.reply] {
            let hash = tracker.index_hash(key, key.hash(&HASH));
            assert_eq!(tracker.find(hash, key).map(|known| known.pinned), Some(pinned));
        }
    }
    tracker.list(|info| assert!(tracker.is_taken(&info.pinned.reply)));
}

/// The reply key of a connection of a host with itself, with equal ports, is its original key.
#[test]
fn a_connection_may_be_its_own_reply() {
    let config = TrackerConfig { connections: 10, per_port: 10, hash_key: HASH };
    let tracker = Tracker::new(config);
    let original =
        FlowKey { src: [1; 16], dst: [1; 16], src_port: 7, dst_port: 7, ..key(0, proto::UDP) };
    let pinned = Pinned { reply: original, ..Pinned::new(original, PortId(0)) };
    let Ok(Created::New(new)) = tracker.create(&pinned, 1) else { panic!("new") };
    assert!(matches!(tracker.create(&pinned, 1), Ok(Created::Existing(_))));
    assert!(tracker.end(new, &mut ()));
    assert!(!tracker.is_taken(&original));
    assert_eq!(tracker.spare(), tracker.slots());
}

/// A receiver that stops reading closes its window. The sender, with more data in flight than was seen
/// here, aborts with a reset at its own sequence number.
#[test]
fn a_reset_inside_a_window_that_closed_since_is_accepted() {
    use super::super::tcp::{Segment, SegmentCheck};
    use podswitch_wire::parse::tcp_flags::{ACK, RST, SYN};

    let limits = TrackerConfig { connections: 10, per_port: 10, hash_key: HASH };
    let table = Tracker::new(limits);
    let original = key(1, proto::TCP);
    let pinned = Pinned::new(original, PortId(0));
    let Ok(Created::New(new)) = table.create(&pinned, 1) else { panic!("a new connection") };
    let (sender, receiver) = (new, new.reversed());
    let segment = |flags, seq: u32, len: u32, ack, window| Segment {
        seq,
        end: seq + len,
        ack,
        window,
        flags,
    };
    let control = |side, s: &Segment| table.control_segment(side, s, None, 60, 1);
    assert_eq!(control(sender, &segment(SYN, 100, 1, 0, 9000)), Some(SegmentCheck::Fits));
    assert_eq!(control(receiver, &segment(SYN | ACK, 500, 1, 101, 9000)), Some(SegmentCheck::Fits));
    assert!(table.record_segment(sender, &segment(ACK, 101, 1000, 501, 9000), 60, 1));
    assert!(table.record_segment(receiver, &segment(ACK, 501, 0, 1101, 0), 60, 1), "closed");
    let beyond = segment(RST, 1101 + 9001, 0, 0, 0);
    assert_eq!(control(sender, &beyond), Some(SegmentCheck::OutOfWindow));
    assert_eq!(control(sender, &segment(RST, 1101 + 8000, 0, 0, 0)), Some(SegmentCheck::Fits));
}
