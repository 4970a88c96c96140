use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;
use proptest::prelude::*;

use super::*;
use crate::id::PortId;
use crate::time::Instant;

const D: Domain = Domain(1);
const BOUNDS: Bounds = Bounds { ageing_secs: 300, limit: 1000 };
const START: Instant = Instant::from_secs(1_700_000_000);

fn fdb(entries: usize) -> Fdb {
    Fdb::new(entries, &HashKey::new(42))
}

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 0, a, b, c, d])
}

fn after(secs: u64) -> Instant {
    START + Duration::from_secs(secs)
}

#[test]
fn learns_moves_and_separates_domains() {
    let fdb = fdb(64);
    let (one, two) = (PortId(1), PortId(2));
    assert_eq!(fdb.lookup(D, mac(1), START), None);
    assert_eq!(fdb.learn(D, mac(1), one, BOUNDS, START), Learn::New);
    assert_eq!(fdb.learn(D, mac(1), one, BOUNDS, START), Learn::Known);
    assert_eq!(fdb.lookup(D, mac(1), START), Some(one));
    assert_eq!(fdb.lookup(D, mac(2), START), None);
    assert_eq!(fdb.lookup(Domain(2), mac(1), START), None);
    assert_eq!(fdb.learn(Domain(2), mac(1), two, BOUNDS, START), Learn::New);
    assert_eq!(fdb.learn(D, mac(1), two, BOUNDS, START), Learn::Moved { from: one });
    assert_eq!(fdb.lookup(D, mac(1), START), Some(two));
    assert_eq!((fdb.learned(one), fdb.learned(two)), (0, 2));
    assert!(fdb.remove(D, mac(1)) && !fdb.remove(D, mac(1)));
    assert_eq!((fdb.lookup(D, mac(1), START), fdb.learned(two)), (None, 1));
}

#[test]
fn group_and_zero_addresses_are_never_learned() {
    let fdb = fdb(64);
    for bad in [Mac::BROADCAST, Mac::ZERO, Mac([1, 0, 0x5e, 0, 0, 1]), Mac([0x33; 6])] {
        assert_eq!(fdb.learn(D, bad, PortId(1), BOUNDS, START), Learn::NotUnicast);
        assert!(!fdb.set_static(D, bad, PortId(1), START));
        assert_eq!(fdb.lookup(D, bad, START), None);
    }
    let beyond = PortId(PortId::MAX_PORTS as u16);
    assert_eq!(fdb.learn(D, mac(1), beyond, BOUNDS, START), Learn::LimitReached);
    assert!(!fdb.set_static(D, mac(1), beyond, START));
    assert_eq!(fdb.learned(beyond), 0);
    let last = PortId(PortId::MAX_PORTS as u16 - 1);
    assert_eq!(fdb.learn(D, mac(1), last, BOUNDS, START), Learn::New);
    assert_eq!(fdb.lookup(D, mac(1), START), Some(last));
}

#[test]
fn addresses_expire() {
    let fdb = fdb(64);
    fdb.learn(D, mac(1), PortId(1), BOUNDS, START);
    fdb.learn(D, mac(2), PortId(1), BOUNDS, START);
    assert_eq!(fdb.learn(D, mac(2), PortId(1), BOUNDS, after(200)), Learn::Known);
    assert!(fdb.lookup(D, mac(1), after(300)).is_some());
    // Expired entries are not found, even before the sweep.
    assert_eq!(fdb.lookup(D, mac(1), after(301)), None);
    assert!(fdb.lookup(D, mac(2), after(301)).is_some());
    assert_eq!(fdb.dump(after(301)).len(), 1);
    assert_eq!(fdb.learned(PortId(1)), 2);
    assert_eq!(fdb.sweep(after(301), usize::MAX), 1);
    assert_eq!(fdb.learned(PortId(1)), 1);
    assert_eq!(fdb.learn(D, mac(1), PortId(1), BOUNDS, after(301)), Learn::New);
    // Expired and seen again before the sweep: the entry is new, and counted once.
    assert_eq!(fdb.learn(D, mac(1), PortId(1), BOUNDS, after(900)), Learn::New);
    assert_eq!(fdb.learn(D, mac(2), PortId(2), BOUNDS, after(900)), Learn::New);
    assert_eq!((fdb.learned(PortId(1)), fdb.learned(PortId(2))), (1, 1));
    let never = Bounds { ageing_secs: 0, ..BOUNDS };
    assert_eq!(fdb.learn(D, mac(9), PortId(1), never, START), Learn::LimitReached);
}

#[test]
fn the_sweep_covers_the_table_in_steps() {
    let fdb = fdb(128);
    for i in 0..200 {
        fdb.learn(D, mac(i), PortId(1), BOUNDS, START);
    }
    let mut swept = 0;
    for _ in 0..512 / 32 {
        swept += fdb.sweep(after(1000), 32);
    }
    assert_eq!((swept, fdb.learned(PortId(1))), (200, 0));
}

#[test]
fn expiry_survives_the_wrap_of_its_clock() {
    let fdb = fdb(64);
    // Two seconds before 2^30, where the expiry wraps.
    let late = Instant::from_secs((1 << 30) - 2);
    let bounds = Bounds { ageing_secs: 10, ..BOUNDS };
    fdb.learn(D, mac(1), PortId(1), bounds, late);
    let at = |secs| late + Duration::from_secs(secs);
    for secs in [0, 1, 2, 3, 10] {
        assert_eq!(fdb.lookup(D, mac(1), at(secs)), Some(PortId(1)), "after {secs} s");
    }
    assert_eq!(fdb.lookup(D, mac(1), at(11)), None);
    let forever = Bounds { ageing_secs: u32::MAX, ..BOUNDS };
    fdb.learn(D, mac(2), PortId(1), forever, late);
    assert_eq!(fdb.lookup(D, mac(2), at(1 << 28)), Some(PortId(1)));
    assert_eq!(fdb.lookup(D, mac(2), at((1 << 28) + 1)), None);
    // Time that runs backwards a little does not make an entry expire.
    assert_eq!(fdb.lookup(D, mac(2), late - Duration::from_secs(5)), Some(PortId(1)));
}

#[test]
fn the_limit_of_a_port_holds() {
    let fdb = fdb(1024);
    let ten = Bounds { limit: 10, ..BOUNDS };
    let (greedy, other) = (PortId(1), PortId(2));
    for i in 0..1_000_000 {
        let learned = fdb.learn(D, mac(i), greedy, ten, START);
        assert_eq!(learned, if i < 10 { Learn::New } else { Learn::LimitReached });
    }
    assert_eq!((fdb.learned(greedy), fdb.dump(START).len()), (10, 10));
    assert_eq!(fdb.learn(D, mac(5), greedy, ten, after(10)), Learn::Known);
    // At the limit, addresses of other ports do not move to this one.
    assert_eq!(fdb.learn(D, mac(77), other, ten, START), Learn::New);
    assert_eq!(fdb.learn(D, mac(77), greedy, ten, START), Learn::LimitReached);
    assert_eq!(fdb.lookup(D, mac(77), START), Some(other));
    // An address that moves away makes room.
    assert_eq!(fdb.learn(D, mac(3), other, ten, START), Learn::Moved { from: greedy });
    assert_eq!(fdb.learn(D, mac(1000), greedy, ten, START), Learn::New);
}

#[test]
fn a_full_table_learns_nothing_and_forgets_nothing() {
    let fdb = fdb(4);
    let outcomes: Vec<Learn> =
        (0..1000).map(|i| fdb.learn(D, mac(i), PortId(1), BOUNDS, START)).collect();
    assert_eq!(outcomes[..16], [Learn::New; 16]);
    assert!(outcomes[16..].iter().all(|outcome| *outcome == Learn::TableFull));
    assert_eq!(fdb.learned(PortId(1)), 16);
    assert!((0..16).all(|i| fdb.lookup(D, mac(i), START) == Some(PortId(1))));
    assert!(!fdb.set_static(D, mac(500), PortId(2), START));
    // Expired entries make room at once.
    assert_eq!(fdb.learn(D, mac(500), PortId(2), BOUNDS, after(400)), Learn::New);
    assert_eq!((fdb.learned(PortId(1)), fdb.learned(PortId(2))), (15, 1));
}

#[test]
fn holds_its_capacity() {
    let unlimited = Bounds { limit: u32::MAX, ..BOUNDS };
    for seed in 0..20 {
        let fdb = Fdb::new(10_000, &HashKey::new(seed));
        for i in 0..10_000 {
            let learned = fdb.learn(Domain(i as u16 % 7), mac(i), PortId(1), unlimited, START);
            assert_eq!(learned, Learn::New, "address {i}, seed {seed}");
        }
    }
}

#[test]
fn static_entries() {
    let fdb = fdb(64);
    fdb.learn(D, mac(1), PortId(1), BOUNDS, START);
    assert!(fdb.set_static(D, mac(1), PortId(3), START));
    assert!(fdb.set_static(D, mac(2), PortId(3), START));
    assert_eq!((fdb.learned(PortId(1)), fdb.learned(PortId(3))), (0, 0));
    assert_eq!(fdb.learn(D, mac(1), PortId(1), BOUNDS, START), Learn::Pinned);
    assert_eq!(fdb.learn(D, mac(1), PortId(3), BOUNDS, START), Learn::Known);
    let much_later = after(1 << 29);
    assert_eq!(fdb.sweep(much_later, usize::MAX), 0);
    assert_eq!(fdb.lookup(D, mac(2), much_later), Some(PortId(3)));
    assert!(fdb.set_static(D, mac(2), PortId(4), START));
    assert_eq!(fdb.lookup(D, mac(2), START), Some(PortId(4)));
    assert!(fdb.remove(D, mac(2)));
    assert_eq!(fdb.learn(D, mac(2), PortId(1), BOUNDS, START), Learn::New);
}

#[test]
fn dump_flush_and_retain() {
    let fdb = fdb(64);
    fdb.learn(D, mac(1), PortId(1), BOUNDS, START);
    fdb.learn(Domain(9), mac(2), PortId(2), BOUNDS, START);
    fdb.set_static(D, mac(3), PortId(1), START);
    let mut dump = fdb.dump(after(100));
    dump.sort_by_key(|entry| entry.mac);
    let left = Some(Duration::from_secs(201));
    let entry = |domain, number, port, expires_in| Entry {
        domain: Domain(domain),
        mac: mac(number),
        port: PortId(port),
        expires_in,
    };
    assert_eq!(dump, [entry(1, 1, 1, left), entry(9, 2, 2, left), entry(1, 3, 1, None)]);
    assert_eq!(fdb.flush_port(PortId(1)), 2);
    assert_eq!(fdb.dump(START), [entry(9, 2, 2, Some(Duration::from_secs(301)))]);
    assert_eq!(fdb.retain(START, |entry| entry.domain != Domain(9)), 1);
    assert_eq!((fdb.dump(START).len(), fdb.learned(PortId(2))), (0, 0));
}

/// Threads that learn, move, sweep and flush at random. Each address has two ports of its own, so a wrong
/// result is recognised.
#[test]
fn many_threads() {
    const ADDRESSES: u32 = 64;
    let fdb = fdb(16);
    let port_of = |address: u32, odd: bool| PortId((address * 2 + u32::from(odd)) as u16);
    std::thread::scope(|scope| {
        for worker in 0..4u32 {
            let fdb = &fdb;
            scope.spawn(move || {
                let mut random = 0x9e37_79b9u32.wrapping_mul(worker + 1);
                for step in 0..50_000u64 {
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    let address = random >> 8 & (ADDRESSES - 1);
                    let now = after(step / 100);
                    match random & 0xf {
                        0..8 => {
                            if let Some(port) = fdb.lookup(D, mac(address), now) {
                                assert_eq!(u32::from(port.0) / 2, address);
                            }
                        }
                        8..14 => {
                            let port = port_of(address, random & 0x80 != 0);
                            let brief = Bounds { ageing_secs: 20, limit: 1 };
                            fdb.learn(D, mac(address), port, brief, now);
                        }
                        14 => _ = fdb.sweep(now, 4),
                        _ if random & 0xf0 == 0 => _ = fdb.flush_port(port_of(address, false)),
                        _ => _ = fdb.remove(D, mac(address)),
                    }
                }
            });
        }
    });
    let entries = fdb.dump(START);
    let distinct: BTreeSet<Mac> = entries.iter().map(|entry| entry.mac).collect();
    assert_eq!(distinct.len(), entries.len(), "an address has one entry");
    fdb.retain(START, |_| false);
    assert!((0..ADDRESSES * 2).all(|port| fdb.learned(PortId(port as u16)) == 0));
}

#[derive(Clone, Debug)]
enum Step {
    Learn(u16, u32, u16),
    Lookup(u16, u32),
    Static(u16, u32, u16),
    Remove(u16, u32),
    FlushPort(u16),
    Sweep(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (domain, address, port) = (0u16..3, 0u32..6, 0u16..4);
    prop_oneof![
        6 => (domain.clone(), address.clone(), port.clone()).prop_map(|(d, a, p)| Step::Learn(d, a, p)),
        4 => (domain.clone(), address.clone()).prop_map(|(d, a)| Step::Lookup(d, a)),
        1 => (domain.clone(), address.clone(), port.clone()).prop_map(|(d, a, p)| Step::Static(d, a, p)),
        1 => (domain, address).prop_map(|(d, a)| Step::Remove(d, a)),
        1 => port.prop_map(Step::FlushPort),
        2 => (1usize..100).prop_map(Step::Sweep),
        3 => (1u64..25).prop_map(Step::Wait),
    ]
}

proptest! {
    /// The table behaves like a map with expiry times.
    #[test]
    fn agrees_with_a_map(steps in prop::collection::vec(step(), 1..200)) {
        let fdb = fdb(128);
        let bounds = Bounds { ageing_secs: 30, limit: u32::MAX };
        // Port, and the second of expiry; none for a static entry.
        let mut plain: HashMap<(u16, u32), (u16, Option<u64>)> = HashMap::new();
        let mut secs = 0u64;
        let alive = |until: &Option<u64>, secs: u64| until.is_none_or(|until| secs < until);
        for step in steps {
            let now = after(secs);
            match step {
                Step::Learn(d, a, p) => {
                    let known = plain.get(&(d, a)).copied().filter(|(_, until)| alive(until, secs));
                    let expected = match known {
                        Some((at, _)) if at == p => Learn::Known,
                        Some((_, None)) => Learn::Pinned,
                        Some((at, _)) => Learn::Moved { from: PortId(at) },
                        None => Learn::New,
                    };
                    if !matches!(known, Some((_, None))) {
                        plain.insert((d, a), (p, Some(secs + 31)));
                    }
                    prop_assert_eq!(fdb.learn(Domain(d), mac(a), PortId(p), bounds, now), expected);
                }
                Step::Lookup(d, a) => {
                    let expected = plain.get(&(d, a)).filter(|(_, until)| alive(until, secs));
                    let expected = expected.map(|(port, _)| PortId(*port));
                    prop_assert_eq!(fdb.lookup(Domain(d), mac(a), now), expected);
                }
                Step::Static(d, a, p) => {
                    plain.insert((d, a), (p, None));
                    prop_assert!(fdb.set_static(Domain(d), mac(a), PortId(p), now));
                }
                Step::Remove(d, a) => {
                    plain.remove(&(d, a));
                    fdb.remove(Domain(d), mac(a));
                }
                Step::FlushPort(p) => {
                    plain.retain(|_, (port, _)| *port != p);
                    fdb.flush_port(PortId(p));
                }
                Step::Sweep(budget) => _ = fdb.sweep(now, budget),
                Step::Wait(more) => secs += more,
            }
            plain.retain(|_, (_, until)| alive(until, secs));
            prop_assert_eq!(fdb.dump(after(secs)).len(), plain.len());
        }
        fdb.sweep(after(secs), usize::MAX);
        for port in 0..4 {
            let learned = plain.values().filter(|(p, until)| *p == port && until.is_some()).count();
            prop_assert_eq!(fdb.learned(PortId(port)) as usize, learned);
        }
    }
}
