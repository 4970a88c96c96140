//! The table beside a plain map.

use std::collections::HashMap;

use proptest::prelude::*;
use wire::flow_key::{Family, proto};

use super::*;

const HASH: HashKey = HashKey::new(3);

fn key(n: u16) -> FlowKey {
    let mut src = [0; 16];
    src[..2].copy_from_slice(&n.to_be_bytes());
    let dst = [9; 16];
    FlowKey { src, dst, src_port: 1, dst_port: 2, proto: proto::UDP, family: Family::V6, zone: 0 }
}

fn connection() -> ConnectionRef {
    ConnectionRef::NONE.reversed()
}

fn entry(n: u16, mark: u32) -> FlowEntry {
    FlowEntry {
        key: key(n),
        sender: 0,
        connection: connection(),
        epoch: Epoch(1),
        last_seen: mark,
        plan: Plan::default(),
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// So many keys from the first on.
    Insert(u16, u16),
    Remove(u16, u16),
    Find(u16),
    /// Goes round this often, removing entries whose mark is this modulo 7.
    Sweep(usize, u32),
    Settle(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0u16..3000;
    prop_oneof![
        5 => (key(), 1u16..400).prop_map(|(first, count)| Op::Insert(first, count)),
        3 => (key(), 1u16..300).prop_map(|(first, count)| Op::Remove(first, count)),
        3 => key().prop_map(Op::Find),
        2 => (1usize..800, 0u32..7).prop_map(|(budget, mark)| Op::Sweep(budget, mark)),
        1 => (1usize..20).prop_map(Op::Settle),
    ]
}

/// Looks a key up as the engine does: by candidate, then certain.
fn find(table: &FlowTable, n: u16) -> Option<EntryId> {
    let key = key(n);
    let hash = key.hash(&HASH);
    table.prefetch(hash);
    let found = table.find(table.candidate(hash), hash, &key);
    assert_eq!(found, table.find(None, hash, &key), "with and without a candidate");
    found
}

fn check(table: &FlowTable, plain: &HashMap<u16, u32>) {
    assert_eq!(table.len(), plain.len());
    for n in 0..3400 {
        let found = find(table, n).map(|id| (table.entry(id).key, table.entry(id).last_seen));
        assert_eq!(found, plain.get(&n).map(|&mark| (key(n), mark)), "key {n}");
    }
    let mut all: Vec<_> = table.iter().map(|e| (e.key, e.last_seen)).collect();
    let mut wanted: Vec<_> = plain.iter().map(|(&n, &mark)| (key(n), mark)).collect();
    all.sort_unstable_by_key(|e| e.0.src);
    wanted.sort_unstable_by_key(|e| e.0.src);
    assert_eq!(all, wanted);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Through growth, which happens at 385, 769 and 1537 entries, and at the bound.
    #[test]
    fn agrees_with_a_plain_map(
        limit in prop::sample::select(vec![1usize, 100, 1000, 2000, 5000]),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut table = FlowTable::new(FlowTableConfig { entries: limit, hash_key: HASH });
        let mut plain: HashMap<u16, u32> = HashMap::new();
        let mut mark = 0;
        for op in ops {
            mark += 1;
            match op {
                Op::Insert(first, count) => for n in first..first + count {
                    let fits = plain.contains_key(&n) || plain.len() < limit;
                    let inserted = table.insert(key(n).hash(&HASH), entry(n, mark));
                    prop_assert_eq!(inserted.is_some(), fits);
                    if fits {
                        plain.insert(n, mark);
                    }
                }
                Op::Remove(first, count) => for n in first..first + count {
                    let found = find(&table, n);
                    prop_assert_eq!(found.is_some(), plain.remove(&n).is_some());
                    if let Some(id) = found {
                        table.remove(id);
                        table.remove(id);
                    }
                }
                Op::Find(n) => prop_assert_eq!(find(&table, n).is_some(), plain.contains_key(&n)),
                Op::Sweep(budget, remainder) => {
                    let before = table.len();
                    let mut seen = 0;
                    table.sweep(budget, |entry| {
                        seen += 1;
                        entry.last_seen % 7 == remainder
                    });
                    prop_assert!(seen <= budget);
                    let left: HashMap<FlowKey, u32> =
                        table.iter().map(|e| (e.key, e.last_seen)).collect();
                    plain.retain(|&n, &mut mark| {
                        let stays = left.contains_key(&key(n));
                        assert!(stays || mark % 7 == remainder, "only those that were picked");
                        stays
                    });
                    if budget >= before {
                        // It may have begun among free numbers, but a second round sees all.
                        table.sweep(limit, |entry| entry.last_seen % 7 == remainder);
                        plain.retain(|_, mark| *mark % 7 != remainder);
                    }
                }
                Op::Settle(buckets) => table.settle(buckets),
            }
        }
        check(&table, &plain);
    }
}

#[test]
fn it_is_empty_again_after_much_coming_and_going() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 4000, hash_key: HASH });
    for round in 0..50u32 {
        for n in 0..3000 {
            table.insert(key(n).hash(&HASH), entry(n, round)).unwrap();
        }
        assert_eq!(table.len(), 3000);
        table.sweep(4000, |_| true);
        assert!(table.is_empty());
    }
    // No trace of what passed: a look-up of what is not there ends at its first bucket.
    table.settle(10_000);
    assert!(table.old.is_none());
    assert!(table.index.buckets.iter().all(|b| b.passed == 0 && b.tags == [0; SLOTS]));
    assert_eq!(table.entries.len(), 3000, "numbers were used again");
}

/// Many keys with one tag and one home: found and removed all the same.
#[test]
fn keys_that_collide_stand_side_by_side() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 4000, hash_key: HASH });
    let hash = key(0).hash(&HASH);
    // The same hash for all, as if somebody had found them (T-C4). Removal hashes anew, so the
    // index is asked itself.
    for n in 0..100 {
        table.entries.push(entry(n, 0));
        table.index.insert(hash, u32::from(n));
    }
    for n in 0..100 {
        let found = table.find(table.candidate(hash), hash, &key(n));
        assert_eq!(found, Some(EntryId(u32::from(n))));
    }
    for n in (0..100).rev() {
        assert!(table.index.remove(hash, n));
        assert!(!table.index.remove(hash, n));
    }
    assert!(table.index.buckets.iter().all(|b| b.passed == 0));
}
