use std::collections::{BTreeMap, BTreeSet};

use podswitch_wire::cidr::Cidr;
use proptest::prelude::*;

use super::*;

const COOL_DOWN: Duration = Duration::from_secs(30);

fn key(number: usize) -> Key {
    Key { container: format!("c{number}"), interface: "eth0".into() }
}

fn range(text: &str) -> AddressRange {
    AddressRange::of(text.parse::<Cidr>().unwrap())
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn nobody(_: IpAddr) -> Option<String> {
    None
}

fn all(range: AddressRange) -> Vec<String> {
    range.from(0).map(|(_, address)| address.to_string()).collect()
}

#[test]
fn ranges_exclude_addresses_that_no_pod_may_have() {
    assert_eq!(
        all(range("10.1.0.0/29")),
        ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]
    );
    assert_eq!(all(range("10.1.0.4/30")), ["10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.7"]);
    assert_eq!(all(range("10.1.0.9/32")), ["10.1.0.9"]);
    assert_eq!(all(range("fd00::/125")).first().map(String::as_str), Some("fd00::2"));
    assert_eq!(all(range("fd00::/125")).last().map(String::as_str), Some("fd00::7"));
    for all in ["0.0.0.0/0", "::/0", "255.255.255.248/29", "ffff::/16"] {
        let range = range(all);
        assert!(range.from(0).take(3).all(|(_, address)| range.contains(address)), "{all}");
    }
    let mut limited = range("10.1.0.0/24");
    assert!(limited.limit(Some([10, 1, 0, 8].into()), Some([10, 1, 0, 10].into())));
    limited.reserve(Some([10, 1, 0, 9].into()));
    assert_eq!(all(limited), ["10.1.0.8", "10.1.0.10"]);
    assert!(!limited.contains([10, 1, 0, 9].into()) && !limited.contains([10, 1, 0, 11].into()));
    assert!(!limited.limit(Some([10, 1, 0, 11].into()), None));
    assert_eq!(range("10.1.0.0/29").to_string(), "10.1.0.0/29 (10.1.0.2 to 10.1.0.6)");
}

#[test]
fn never_used_addresses_go_first_then_the_longest_released() {
    let (mut pool, ranges) = (Pool::new(COOL_DOWN), [range("10.1.0.0/29")]);
    let give = |pool: &mut Pool, number: usize, now: u64| {
        pool.allocate(&key(number), &ranges, seconds(now), nobody).map(|a| a.to_string())
    };
    assert_eq!(give(&mut pool, 1, 0).unwrap(), "10.1.0.2");
    assert_eq!(give(&mut pool, 2, 0).unwrap(), "10.1.0.3");
    pool.release(&key(2), seconds(1));
    pool.release(&key(1), seconds(2));
    assert_eq!(give(&mut pool, 3, 100).unwrap(), "10.1.0.4", "never used");
    assert_eq!(give(&mut pool, 4, 100).unwrap(), "10.1.0.5");
    assert_eq!(give(&mut pool, 5, 100).unwrap(), "10.1.0.6");
    assert_eq!(give(&mut pool, 6, 100).unwrap(), "10.1.0.3", "released first");
    assert_eq!(give(&mut pool, 7, 100).unwrap(), "10.1.0.2");
    pool.release(&key(7), seconds(100));
    let refused = give(&mut pool, 8, 129).unwrap_err().to_string();
    let text = "no address is free in 10.1.0.0/29 (10.1.0.2 to 10.1.0.6): 4 are held, \
                1 were released a short time ago";
    assert_eq!(refused, text);
    assert_eq!(give(&mut pool, 8, 130).unwrap(), "10.1.0.2");
}

#[test]
fn addresses_in_use_elsewhere_are_skipped_and_allocated_later() {
    let (mut pool, ranges) = (Pool::new(COOL_DOWN), [range("10.1.0.4/30")]);
    let first: IpAddr = [10, 1, 0, 4].into();
    let is_first = |address: IpAddr| (address == first).then(|| "Pod/a/x".to_owned());
    for number in 1..4 {
        assert_ne!(pool.allocate(&key(number), &ranges, seconds(0), is_first), Ok(first));
    }
    assert!(pool.allocate(&key(4), &ranges, seconds(0), is_first).is_err());
    assert!(!pool.has_free(&ranges, seconds(0), is_first));
    assert!(pool.has_free(&ranges, seconds(0), nobody));
    assert_eq!(pool.allocate(&key(4), &ranges, seconds(0), nobody), Ok(first));
    let held = pool.hold(&key(5), first).unwrap_err().to_string();
    assert_eq!(held, "10.1.0.4 is held by eth0 of container c4");
    assert_eq!(pool.release(&key(4), seconds(1)), [first]);
    assert_eq!(pool.release(&key(4), seconds(1)), [first; 0], "once");
    pool.hold(&key(5), first).unwrap();
    assert_eq!(pool.holder(first), Some(&key(5)));
}

/// An operation on a pool.
#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Hold(usize, u8),
    Release(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..12_usize).prop_map(Step::Allocate),
        1 => (0..12_usize, 0..10_u8).prop_map(|(key, last)| Step::Hold(key, last)),
        3 => (0..12_usize).prop_map(Step::Release),
        2 => (1..25_u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Compared with a simple model: the holder of each address, and when each free address was
    /// released.
    #[test]
    fn an_address_has_one_holder_and_cools_down(steps in steps()) {
        let ranges = [range("10.1.0.0/29")];
        let members: BTreeSet<IpAddr> = ranges[0].from(0).map(|(_, address)| address).collect();
        let mut pool = Pool::new(COOL_DOWN);
        let mut held: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let mut released: BTreeMap<IpAddr, Duration> = BTreeMap::new();
        let mut now = Duration::ZERO;
        for step in steps {
            match step {
                Step::Allocate(number) => {
                    let is_free = |address: &&IpAddr| !held.contains_key(*address);
                    let is_ready = |address: &&IpAddr| {
                        released.get(*address).is_none_or(|at| now - *at >= COOL_DOWN)
                    };
                    let ready: Vec<&IpAddr> =
                        members.iter().filter(is_free).filter(is_ready).collect();
                    match pool.allocate(&key(number), &ranges, now, nobody) {
                        Ok(address) => {
                            prop_assert!(ready.contains(&&address), "{address} of {ready:?}");
                            // Never-used addresses first, then the one released longest ago.
                            let age = |address: &IpAddr| released.get(address).copied();
                            prop_assert!(ready.iter().all(|other| age(&address) <= age(other)));
                            held.insert(address, number);
                            released.remove(&address);
                        }
                        Err(_) => prop_assert!(ready.is_empty(), "{ready:?}"),
                    }
                }
                Step::Hold(number, last) => {
                    let address: IpAddr = [10, 1, 0, last].into();
                    let may = held.get(&address).is_none_or(|holder| *holder == number);
                    prop_assert_eq!(pool.hold(&key(number), address).is_ok(), may);
                    if may {
                        held.insert(address, number);
                        released.remove(&address);
                    }
                }
                Step::Release(number) => {
                    let gone: BTreeSet<IpAddr> =
                        held.iter().filter(|(_, h)| **h == number).map(|(a, _)| *a).collect();
                    let told: BTreeSet<IpAddr> =
                        pool.release(&key(number), now).into_iter().collect();
                    prop_assert_eq!(&told, &gone);
                    for address in gone {
                        held.remove(&address);
                        released.insert(address, now);
                    }
                }
                Step::Pass(time) => now += seconds(time),
            }
            prop_assert_eq!(pool.len(), held.len());
            let is_cooling = |at: &Duration| now.saturating_sub(*at) < COOL_DOWN;
            let inside = |a: &&IpAddr| ranges.iter().any(|range| range.contains(**a));
            let cooling = released.iter().filter(|(_, at)| is_cooling(at)).map(|(a, _)| a);
            let used = held.keys().chain(cooling).filter(inside).count();
            let size: usize = ranges.iter().map(|range| range.from(0).count()).sum();
            prop_assert_eq!(pool.free(&ranges, now), (size - used) as u128);
            for (address, number) in &held {
                prop_assert_eq!(pool.holder(*address), Some(&key(*number)));
            }
        }
    }
}
