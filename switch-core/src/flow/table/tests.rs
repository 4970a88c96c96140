//! The flow table compared with an ordinary map, and its counting.

use std::collections::HashMap;

use podswitch_policy::affected::AffectedAddresses;
use podswitch_vxlan::template::SourcePort;
use podswitch_wire::flow_key::{Family, proto, to_addr};
use proptest::prelude::*;

use super::shared_plans::PlanRef;
use super::*;
use crate::id::Epoch;
use crate::id::PortId;
use crate::invalidation::Invalidation;
use podswitch_wire::addr::Mac;

const HASH: HashKey = HashKey::new(3);

fn key(n: u16) -> FlowKey {
    let mut src = [0; 16];
    src[..2].copy_from_slice(&n.to_be_bytes());
    let dst = [9; 16];
    FlowKey { src, dst, src_port: 1, dst_port: 2, proto: proto::UDP, family: Family::V6, zone: 0 }
}

fn connection(n: u16) -> ConnectionRef {
    ConnectionRef::from_parts([u32::from(n), 1])
}

/// One of several next hops.
fn plan(n: u16) -> Plan {
    Plan::route(PortId(n % 5), 1500, Mac([n as u8 % 3; 6]), Mac([9; 6]))
}

fn entry(n: u16, mark: u32) -> FlowEntry {
    FlowEntry {
        key: key(n),
        sender: 0,
        connection: connection(n),
        groups: Groups::of_key(&key(n)),
        last_seen: mark,
        plan: plan(n),
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// First key and number of keys.
    Insert(u16, u16),
    Remove(u16, u16),
    Find(u16),
    /// Budget, and the mark modulo 7 of the entries to remove.
    Sweep(usize, u32),
    Migrate(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0u16..3000;
    prop_oneof![
        5 => (key(), 1u16..400).prop_map(|(first, count)| Op::Insert(first, count)),
        3 => (key(), 1u16..300).prop_map(|(first, count)| Op::Remove(first, count)),
        3 => key().prop_map(Op::Find),
        2 => (1usize..800, 0u32..7).prop_map(|(budget, mark)| Op::Sweep(budget, mark)),
        1 => (1usize..20).prop_map(Op::Migrate),
    ]
}

fn flow(candidate: EntryId, key: &FlowKey, sender: u64) -> Flow<'_> {
    Flow { candidate, hash: key.hash(&HASH), key, sender }
}

/// The valid entry of a packet while nothing changes.
fn find_by(table: &mut FlowTable, candidate: EntryId, key: &FlowKey, sender: u64) -> EntryId {
    let touched = Invalidation::everything(Epoch(0));
    table.find(&flow(candidate, key, sender), &touched).unwrap_or(EntryId::NONE)
}

/// Finds an entry by its candidate, and by search.
fn find(table: &mut FlowTable, n: u16) -> Option<EntryId> {
    let key = key(n);
    let hash = key.hash(&HASH);
    table.prefetch(hash);
    let candidate = table.candidate(hash);
    let found = find_by(table, candidate, &key, 0);
    let searched = find_by(table, EntryId::NONE, &key, 0);
    assert_eq!(found, searched, "with and without a candidate");
    Some(found).filter(|id| !id.is_none())
}

/// Every entry's key and mark.
fn all(table: &FlowTable) -> Vec<(FlowKey, u32)> {
    let used = table.connections.iter().zip(&table.lines).filter(|(c, _)| !c.is_none());
    used.map(|(_, line)| (line.key, line.seen.seconds())).collect()
}

fn check(table: &mut FlowTable, plain: &HashMap<u16, u32>) {
    assert_eq!(table.len(), plain.len());
    for n in 0..3400 {
        let found = find(table, n).map(|id| {
            let line = &table.lines[id.0 as usize];
            assert!(matches!(table.plans.get(line.plan), PlanRef::Shared(p) if *p == plan(n)));
            assert_eq!(table.connections[id.0 as usize], connection(n));
            (line.key, line.seen.seconds())
        });
        assert_eq!(found, plain.get(&n).map(|&mark| (key(n), mark)), "key {n}");
    }
    let mut all = all(table);
    let mut wanted: Vec<_> = plain.iter().map(|(&n, &mark)| (key(n), mark)).collect();
    all.sort_unstable_by_key(|e| e.0.src);
    wanted.sort_unstable_by_key(|e| e.0.src);
    assert_eq!(all, wanted);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Covers growth, at 385, 769 and 1537 entries, and the limit.
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
                    let inserted = table.insert(key(n).hash(&HASH), &entry(n, mark));
                    prop_assert_eq!(inserted.is_some(), fits);
                    if fits {
                        plain.insert(n, mark);
                    }
                }
                Op::Remove(first, count) => for n in first..first + count {
                    let found = find(&mut table, n);
                    prop_assert_eq!(found.is_some(), plain.remove(&n).is_some());
                    if let Some(id) = found {
                        table.remove(id);
                        table.remove(id);
                    }
                }
                Op::Find(n) => prop_assert_eq!(find(&mut table, n).is_some(), plain.contains_key(&n)),
                Op::Sweep(budget, remainder) => {
                    let before = table.len();
                    let mut seen = 0;
                    table.sweep(budget, |_| (), |_, mark| {
                        seen += 1;
                        mark % 7 == remainder
                    });
                    prop_assert!(seen <= budget);
                    let left: HashMap<FlowKey, u32> =
                        all(&table).into_iter().collect();
                    plain.retain(|&n, &mut mark| {
                        let stays = left.contains_key(&key(n));
                        assert!(stays || mark % 7 == remainder, "only those that were selected");
                        stays
                    });
                    if budget >= before {
                        // The first may have begun among free entries. A second visits all.
                        table.sweep(limit, |_| (), |_, mark| mark % 7 == remainder);
                        plain.retain(|_, mark| *mark % 7 != remainder);
                    }
                }
                Op::Migrate(buckets) => table.migrate(buckets),
            }
        }
        check(&mut table, &plain);
    }
}

#[test]
fn the_table_is_pristine_after_all_entries_were_removed() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 4000, hash_key: HASH });
    for round in 0..50u32 {
        for n in 0..3000 {
            table.insert(key(n).hash(&HASH), &entry(n, round)).unwrap();
        }
        assert_eq!(table.len(), 3000);
        table.sweep(4000, |_| (), |_, _| true);
        assert!(table.is_empty());
    }
    // No overflow count remains: a lookup of an absent key reads one bucket.
    table.migrate(10_000);
    assert!(table.index.is_pristine());
    assert_eq!(table.lines.len(), 3000, "entry numbers were used again");
}

/// Many keys with one hash, as an attacker might find them (T-C4).
#[test]
fn keys_with_one_hash_are_found_and_removed() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 4000, hash_key: HASH });
    let hash = key(0).hash(&HASH);
    for n in 0..100 {
        table.insert(key(n).hash(&HASH), &entry(n, 0)).unwrap();
    }
    // The table would compute the real hashes for a removal, so the index is used directly.
    table.index = IncrementalIndex::new(SMALLEST_INDEX, MAX_LOAD);
    for n in 0..100u16 {
        table.index.insert(hash, u32::from(n), |_| hash);
    }
    for n in 0..100u16 {
        let candidate = table.candidate(hash);
        let touched = Invalidation::everything(Epoch(1));
        let (key, sender) = (key(n), 0);
        let found = table.find(&Flow { candidate, hash, key: &key, sender }, &touched);
        assert_eq!(found, Ok(EntryId(u32::from(n))));
    }
    for n in (0..100).rev() {
        assert!(table.index.remove(hash, n));
        assert!(!table.index.remove(hash, n));
    }
    assert!(table.index.is_pristine());
}

/// The result for a packet of `bytes` bytes in second `now`.
fn hit(table: &mut FlowTable, n: u16, bytes: usize, now: u32) -> Option<(Plan, Follow)> {
    let id = find(table, n)?;
    match table.hit(&flow(id, &key(n), 0), (1500, bytes as u32), now) {
        Hit::Counted(plan) => Some((*plan, Follow::Counted)),
        Hit::Tcp(plan, connection) => Some((*plan, Follow::Each(connection))),
        Hit::Other(other) => {
            assert_eq!(other, id);
            table.hit_entry(id, bytes, now, |_| true).map(|(plan, follow)| (*plan, follow))
        }
        Hit::Unknown => panic!("the entry of {n} was found"),
    }
}

/// Begins an epoch in which everything changed.
fn everything(table: &mut FlowTable, epoch: u32) {
    table.begin(Epoch(epoch), &Invalidation::everything(Epoch(epoch)));
}

fn table() -> FlowTable {
    let mut table = FlowTable::new(FlowTableConfig { entries: 5000, hash_key: HASH });
    everything(&mut table, 1);
    table
}

/// Generation numbers wrap after half a million epochs. An entry from before must not become valid
/// again.
#[test]
fn no_entry_becomes_valid_when_generations_wrap() {
    let mut table = table();
    for n in 0..100 {
        table.insert(key(n).hash(&HASH), &entry(n, 0)).unwrap();
    }
    hit(&mut table, 5, 60, 0).unwrap();
    let mut epoch = 1;
    while !table.is_empty() {
        epoch += 1;
        everything(&mut table, epoch);
        assert!(find(&mut table, 5).is_none(), "epoch {epoch}");
    }
    assert!(epoch > 500_000);
    assert_eq!(table.take_pending().map(|u| u.packets).collect::<Vec<_>>(), [1]);
}

#[test]
fn flows_beyond_the_limit_of_shared_plans_have_their_own() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 20_000, hash_key: HASH });
    let far = |n: u16| Plan { mtu: 1500 + n, ..plan(0) };
    for n in 1..10_000 {
        table.insert(key(n).hash(&HASH), &FlowEntry { plan: far(n), ..entry(n, 50) }).unwrap();
    }
    for n in 1..10_000 {
        let (plan, follow) = hit(&mut table, n, 60, 50).unwrap();
        assert_eq!(plan, far(n));
        let counted = follow == Follow::Counted;
        assert_eq!(counted, n < 8_192, "{n}: index 0 stands for an own plan");
        assert!(counted || follow == Follow::Each(connection(n)));
    }
}

mod hits;
mod validity;
