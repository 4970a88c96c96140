//! The table beside a plain map.

use std::collections::HashMap;

use podswitch_policy::touched::Touched;
use podswitch_vxlan::template::SourcePort;
use podswitch_wire::flow_key::{Family, proto, to_addr};
use proptest::prelude::*;

use super::*;
use crate::id::Epoch;
use crate::id::PortId;
use crate::snapshot::Group;
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

/// A look after nothing was touched.
fn look(table: &mut FlowTable, candidate: EntryId, key: &FlowKey, sender: u64) -> EntryId {
    let touched = LastTouched::everything(Epoch(0));
    table.look(candidate, key.hash(&HASH), key, sender, &touched).unwrap_or(EntryId::NONE)
}

/// Looks a key up as the engine does: by candidate, then certain.
fn find(table: &mut FlowTable, n: u16) -> Option<EntryId> {
    let key = key(n);
    let hash = key.hash(&HASH);
    table.prefetch(hash);
    let found = look(table, table.candidate(hash), &key, 0);
    let searched = look(table, EntryId::NONE, &key, 0);
    assert_eq!(found, searched, "with and without a candidate");
    Some(found).filter(|id| !id.is_none())
}

/// Every entry's key and mark.
fn all(table: &FlowTable) -> Vec<(FlowKey, u32)> {
    let used = table.connections.iter().zip(&table.lines).filter(|(c, _)| !c.is_none());
    used.map(|(_, line)| (line.key, line.last_seen)).collect()
}

fn check(table: &mut FlowTable, plain: &HashMap<u16, u32>) {
    assert_eq!(table.len(), plain.len());
    for n in 0..3400 {
        let found = find(table, n).map(|id| {
            let line = &table.lines[id.0 as usize];
            assert!(matches!(table.ways.lead(line.way), Lead::Shared(p) if *p == plan(n)));
            assert_eq!(table.connections[id.0 as usize], connection(n));
            (line.key, line.last_seen)
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
                        assert!(stays || mark % 7 == remainder, "only those that were picked");
                        stays
                    });
                    if budget >= before {
                        // It may have begun among free numbers, but a second round sees all.
                        table.sweep(limit, |_| (), |_, mark| mark % 7 == remainder);
                        plain.retain(|_, mark| *mark % 7 != remainder);
                    }
                }
                Op::Settle(buckets) => table.settle(buckets),
            }
        }
        check(&mut table, &plain);
    }
}

#[test]
fn it_is_empty_again_after_much_coming_and_going() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 4000, hash_key: HASH });
    for round in 0..50u32 {
        for n in 0..3000 {
            table.insert(key(n).hash(&HASH), &entry(n, round)).unwrap();
        }
        assert_eq!(table.len(), 3000);
        table.sweep(4000, |_| (), |_, _| true);
        assert!(table.is_empty());
    }
    // No trace of what passed: a look-up of what is not there ends at its first bucket.
    table.settle(10_000);
    assert!(table.old.is_none());
    assert!(table.index.is_clean());
    assert_eq!(table.lines.len(), 3000, "numbers were used again");
}

/// Many keys with one tag and one home: found and removed all the same.
#[test]
fn keys_that_collide_stand_side_by_side() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 4000, hash_key: HASH });
    let hash = key(0).hash(&HASH);
    // The same hash for all, as if somebody had found them (T-C4). Removal hashes anew, so the
    // index is asked itself.
    for n in 0..100 {
        table.insert(key(n).hash(&HASH), &entry(n, 0)).unwrap();
    }
    table.index = Index::new(64);
    table.old = None;
    for n in 0..100u16 {
        table.index.insert(hash, u32::from(n));
    }
    for n in 0..100u16 {
        let candidate = table.candidate(hash);
        let touched = LastTouched::everything(Epoch(1));
        let found = table.look(candidate, hash, &key(n), 0, &touched);
        assert_eq!(found, Ok(EntryId(u32::from(n))));
    }
    for n in (0..100).rev() {
        assert!(table.index.remove(hash, n));
        assert!(!table.index.remove(hash, n));
    }
    assert!(table.index.none_passed());
}

/// What a packet of `bytes` bytes finds in second `now`.
fn hit(table: &mut FlowTable, n: u16, bytes: usize, now: u32) -> Option<(Plan, Follow)> {
    let id = find(table, n)?;
    if let Some(plan) = table.pass(id, &key(n), 0, (1500, bytes as u32), now) {
        return Some((*plan, Follow::Counted));
    }
    table.hit(id, bytes, now, |_| true).map(|(plan, follow)| (*plan, follow))
}

/// Epoch `epoch` begins, and touches everything.
fn everything(table: &mut FlowTable, epoch: u32) {
    table.begin(Epoch(epoch), &LastTouched::everything(Epoch(epoch)));
}

fn table() -> FlowTable {
    let mut table = FlowTable::new(FlowTableConfig { entries: 5000, hash_key: HASH });
    everything(&mut table, 1);
    table
}

#[test]
fn packets_are_counted_in_the_entry_and_told_once_a_second() {
    let mut table = table();
    table.insert(key(1).hash(&HASH), &entry(1, 50)).unwrap();
    for _ in 0..3 {
        assert_eq!(hit(&mut table, 1, 100, 50), Some((plan(1), Follow::Counted)));
    }
    let told = Untold { connection: connection(1), packets: 3, bytes: 300 };
    assert_eq!(hit(&mut table, 1, 60, 51), Some((plan(1), Follow::Tell(told))));
    assert_eq!(hit(&mut table, 1, 60, 51), Some((plan(1), Follow::Counted)));
    assert!(table.untold().next().is_none());
    table.sweep(1, |_| (), |_, _| false);
    let rest = Untold { connection: connection(1), packets: 2, bytes: 120 };
    assert_eq!(table.untold().collect::<Vec<_>>(), [rest]);
    // What is counted when the entry goes, or gets another answer, is not lost.
    hit(&mut table, 1, 60, 51).unwrap();
    table.insert(key(1).hash(&HASH), &entry(1, 51)).unwrap();
    hit(&mut table, 1, 70, 51).unwrap();
    let id = find(&mut table, 1).unwrap();
    table.remove(id);
    let one = |bytes| Untold { connection: connection(1), packets: 1, bytes };
    assert_eq!(table.untold().collect::<Vec<_>>(), [one(60), one(70)]);
}

#[test]
fn what_does_not_fit_is_not_called_absent() {
    let mut table = table();
    let touched = LastTouched::everything(Epoch(0));
    let (key, hash) = (key(1), key(1).hash(&HASH));
    let look = |table: &mut FlowTable, sender| {
        table.look(table.candidate(hash), hash, &key, sender, &touched)
    };
    assert_eq!(look(&mut table, 0), Err(Unfit::Absent));
    let id = table.insert_absent(hash, &entry(1, 50)).unwrap();
    assert_eq!(look(&mut table, 0), Ok(id));
    assert_eq!(look(&mut table, 1), Err(Unfit::Other), "another sender's");
    everything(&mut table, 2);
    assert_eq!(look(&mut table, 0), Err(Unfit::Other), "of another state");
    assert_eq!(table.insert(hash, &entry(1, 50)), Some(id), "in its own place");
    assert_eq!(table.len(), 1);
}

#[test]
fn bytes_that_would_run_over_are_told_at_once() {
    let mut table = table();
    table.insert(key(1).hash(&HASH), &entry(1, 50)).unwrap();
    let (mut bytes, mut packets) = (0, 0);
    for _ in 0..200_000 {
        match hit(&mut table, 1, 65_535, 50).unwrap().1 {
            Follow::Counted => {}
            Follow::Tell(untold) => {
                bytes += u64::from(untold.bytes);
                packets += u64::from(untold.packets);
            }
            Follow::Each(_) => panic!("not of each"),
        }
    }
    table.sweep(1, |_| (), |_, _| true);
    let rest: Vec<_> = table.untold().collect();
    assert_eq!(bytes + u64::from(rest[0].bytes), 200_000 * 65_535);
    assert_eq!(packets + u64::from(rest[0].packets), 200_000);
}

#[test]
fn tcp_and_what_is_translated_is_followed_packet_by_packet() {
    let mut table = table();
    let tcp = FlowKey { proto: proto::TCP, ..key(2) };
    let mut translated = entry(1, 50);
    translated.plan = plan(1).translate(&key(1), &key(3));
    table.insert(key(1).hash(&HASH), &translated).unwrap();
    let each = Follow::Each(connection(1));
    assert_eq!(hit(&mut table, 1, 60, 50), Some((translated.plan, each)));
    assert_eq!(hit(&mut table, 1, 60, 51), Some((translated.plan, each)));
    let hash = tcp.hash(&HASH);
    let id = table.insert(hash, &FlowEntry { key: tcp, ..entry(2, 50) }).unwrap();
    let candidate = table.candidate(hash);
    assert_eq!(look(&mut table, candidate, &tcp, 0), id);
    assert_eq!(table.approach(id), Some(connection(2)));
    let translated = find(&mut table, 1).unwrap();
    assert_eq!(table.approach(translated), Some(connection(1)));
    let found = table.hit(id, 60, 50, |_| true).map(|(plan, follow)| (*plan, follow));
    assert_eq!(found, Some((plan(2), Follow::Each(connection(2)))));
    table.sweep(100, |_| (), |_, _| true);
    assert!(table.untold().next().is_none(), "the connection has heard of each");
}

/// What passes by one look is of flows whose answer is shared and asks for no tunnel.
#[test]
fn what_needs_more_than_one_look_does_not_pass() {
    let mut table = table();
    let tcp = |n| FlowKey { proto: proto::TCP, ..key(n) };
    let insert = |table: &mut FlowTable, key: FlowKey, plan: Plan| {
        let entry = FlowEntry { key, plan, groups: Groups::of_key(&key), ..entry(2, 50) };
        table.insert(key.hash(&HASH), &entry).unwrap()
    };
    let translated = plan(2).translate(&key(2), &key(9));
    let tunnel = plan(3).encap(1, SourcePort::from_hash(1));
    for (n, plan, passes) in [(1, plan(1), true), (2, translated, false), (3, tunnel, false)] {
        let (udp, id) = (key(n), insert(&mut table, key(n), plan));
        let tcp_id = insert(&mut table, tcp(n), plan);
        assert_eq!(table.pass(id, &udp, 0, (40, 60), 50), passes.then_some(&plan));
        assert!(table.pass(tcp_id, &tcp(n), 0, (40, 60), 50).is_none(), "TCP is followed");
        let found = table.pass_tcp(tcp_id, &tcp(n), 0, 40, 51);
        assert_eq!(found, passes.then_some((&plan, connection(2))));
        for (id, key, sender, length) in [
            (id, udp, 0, 40),
            (id, tcp(n), 0, 40),
            (tcp_id, tcp(n), 7, 40),
            (tcp_id, tcp(n), 0, 1501),
        ] {
            assert!(table.pass_tcp(id, &key, sender, length, 51).is_none());
        }
    }
}

/// Between the second step and the fourth another packet may have changed the table.
#[test]
fn a_candidate_that_was_removed_is_none() {
    let mut table = table();
    let hash = key(1).hash(&HASH);
    let id = table.insert(hash, &entry(1, 50)).unwrap();
    let candidate = table.candidate(hash);
    table.remove(id);
    assert_eq!(look(&mut table, candidate, &key(1), 0), EntryId::NONE);
    // Its place is another's now, and it has another place.
    assert_eq!(table.insert(key(2).hash(&HASH), &entry(2, 50)), Some(id));
    let again = table.insert(hash, &entry(1, 50)).unwrap();
    assert_ne!(again, id);
    assert_eq!(look(&mut table, candidate, &key(1), 0), again);
}

#[test]
fn an_answer_holds_for_its_epoch_and_sender_only() {
    let mut table = table();
    table.insert(key(1).hash(&HASH), &entry(1, 50)).unwrap();
    let looked = look(&mut table, EntryId::NONE, &key(1), 7);
    assert_eq!(looked, EntryId::NONE, "another sender");
    let id = find(&mut table, 1).unwrap();
    assert!(table.hit(id, 60, 50, |_| false).is_none(), "too long for its way");
    let mut pass =
        |id, n, sender, length, now| table.pass(id, &key(n), sender, (length, 60), now).copied();
    assert_eq!(pass(id, 1, 0, 1500, 50), Some(plan(1)));
    assert!(pass(id, 1, 0, 1501, 50).is_none(), "too long for its way");
    assert!(pass(EntryId::NONE, 1, 0, 40, 50).is_none());
    assert!(pass(id, 2, 0, 40, 50).is_none(), "another flow's packet");
    assert!(pass(id, 1, 7, 40, 50).is_none(), "another sender");
    assert!(pass(id, 1, 0, 40, 51).is_none(), "the connection is to be told");
    everything(&mut table, 1);
    assert!(hit(&mut table, 1, 60, 50).is_some());
    everything(&mut table, 2);
    assert!(table.pass(id, &key(1), 0, (40, 60), 50).is_none());
    assert!(find(&mut table, 1).is_none());
    assert!(table.hit(id, 60, 50, |_| true).is_none(), "looked up before");
    table.insert(key(1).hash(&HASH), &entry(1, 50)).unwrap();
    assert!(hit(&mut table, 1, 60, 50).is_some());
    assert_eq!(table.len(), 1);
}

/// Numbers of ways come round after half a million epochs; an entry from before must not be
/// taken for one of now.
#[test]
fn no_answer_comes_back_when_numbers_come_round() {
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
    assert_eq!(table.untold().map(|u| u.packets).collect::<Vec<_>>(), [1]);
}

#[test]
fn more_next_hops_than_can_be_shared_have_their_flows_own_answers() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 20_000, hash_key: HASH });
    let far = |n: u16| Plan { mtu: 1500 + n, ..plan(0) };
    for n in 1..10_000 {
        table.insert(key(n).hash(&HASH), &FlowEntry { plan: far(n), ..entry(n, 50) }).unwrap();
    }
    for n in 1..10_000 {
        let (plan, follow) = hit(&mut table, n, 60, 50).unwrap();
        assert_eq!(plan, far(n));
        let counted = follow == Follow::Counted;
        assert_eq!(counted, n < 8_192, "{n}: one number says that the answer is the flow's own");
        assert!(counted || follow == Follow::Each(connection(n)));
    }
}

/// States that touch some addresses each.
struct States(u32, LastTouched);

impl States {
    fn touch(&mut self, table: &mut FlowTable, addresses: &[[u8; 16]]) {
        self.0 += 1;
        let addresses = addresses.iter().map(|a| to_addr(a, Family::V6)).collect();
        self.1.touch(Epoch(self.0), Touched::Addresses(addresses));
        table.begin(Epoch(self.0), &self.1);
    }

    /// Whether the entry of a key holds in the present state.
    fn holds(&self, table: &mut FlowTable, n: u16) -> bool {
        let (key, hash) = (key(n), key(n).hash(&HASH));
        let held = table.look(table.candidate(hash), hash, &key, 0, &self.1);
        held == table.look(EntryId::NONE, hash, &key, 0, &self.1) && held.is_ok()
    }
}

fn judged_entries(entries: &[FlowEntry]) -> (FlowTable, States) {
    let mut table = table();
    for entry in entries {
        table.insert(entry.key.hash(&HASH), entry).unwrap();
    }
    (table, States(1, LastTouched::everything(Epoch(1))))
}

#[test]
fn what_depends_on_nothing_that_changed_holds() {
    // The third is translated: what it depends on is not in its key.
    let mut third = entry(3, 50);
    third.plan = plan(3).translate(&key(3), &key(40));
    third.groups.0[2] = Group::of(&key(40).src);
    let (mut table, mut states) = judged_entries(&[entry(1, 50), entry(2, 50), third]);
    hit(&mut table, 1, 60, 50).unwrap();
    states.touch(&mut table, &[key(7).src, key(8).src]);
    assert!((1..=3).all(|n| states.holds(&mut table, n)));
    assert_eq!(table.renewals(), Renewals::default(), "nobody was asked");
    states.touch(&mut table, &[key(2).src]);
    assert_eq!([1, 2, 3].map(|n| states.holds(&mut table, n)), [true, false, true]);
    assert_eq!(table.renewals(), Renewals { kept: 2, judged: 0 });
    states.touch(&mut table, &[key(40).src]);
    assert_eq!([1, 2, 3].map(|n| states.holds(&mut table, n)), [true, false, false]);
    assert_eq!(hit(&mut table, 1, 60, 50), Some((plan(1), Follow::Counted)));
    table.insert(key(2).hash(&HASH), &entry(2, 50)).unwrap();
    assert_eq!(table.renewals(), Renewals { kept: 1, judged: 1 });
    assert!(states.holds(&mut table, 2));
    // Their destination is the same.
    states.touch(&mut table, &[[9; 16]]);
    assert!(!(1..=3).any(|n| states.holds(&mut table, n)));
    table.sweep(3, |_| (), |_, _| true);
    assert_eq!(table.untold().map(|u| u.packets).collect::<Vec<_>>(), [2], "none is lost");
}

/// What is shared is asked about its key's addresses alone.
#[test]
fn an_answer_that_depends_on_more_than_its_key_is_not_shared() {
    let mut odd = entry(1, 50);
    odd.groups.0[3] = Group::of(&key(40).src);
    let (mut table, mut states) = judged_entries(&[odd]);
    states.touch(&mut table, &[key(40).src]);
    assert!(!states.holds(&mut table, 1));
}

#[test]
fn an_entry_holds_over_states_that_no_packet_saw() {
    let (mut table, mut states) = judged_entries(&[entry(1, 50), entry(2, 50)]);
    for _ in 0..50 {
        states.touch(&mut table, &[key(2).src]);
    }
    assert!(states.holds(&mut table, 1) && !states.holds(&mut table, 2));
    for _ in 0..70 {
        states.touch(&mut table, &[key(2).src]);
    }
    assert!(!states.holds(&mut table, 1), "longer than is known");
    // One touched meanwhile does not hold, however long ago that was.
    let (mut table, mut states) = judged_entries(&[entry(1, 50), entry(2, 50)]);
    states.touch(&mut table, &[key(1).src]);
    for _ in 0..20 {
        states.touch(&mut table, &[key(2).src]);
    }
    assert!(!states.holds(&mut table, 1));
}

#[test]
fn what_no_flow_depends_on_is_forgotten_when_the_sweep_has_gone_round() {
    let (mut table, mut states) = judged_entries(&[entry(1, 50), entry(2, 50)]);
    let id = find(&mut table, 2).unwrap();
    table.remove(id);
    let mut asked = Vec::new();
    for _ in 0..4 {
        states.touch(&mut table, &[key(2).src]);
        assert!(states.holds(&mut table, 1));
        asked.push(table.renewals().kept);
        table.sweep(2, |_| (), |_, _| false);
    }
    assert_eq!(asked, [1, 1, 0, 0]);
    // And what one does depend on is not.
    states.touch(&mut table, &[key(1).src]);
    assert!(!states.holds(&mut table, 1));
}

#[test]
fn ways_that_pile_up_are_cleared() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 20_000, hash_key: HASH });
    let mut states = States(1, LastTouched::everything(Epoch(1)));
    table.begin(Epoch(1), &states.1);
    let far = |n: u16| Plan { mtu: 1500 + n, ..plan(0) };
    for n in 1..=5000 {
        table.insert(key(n).hash(&HASH), &FlowEntry { plan: far(n), ..entry(n, 50) }).unwrap();
    }
    states.touch(&mut table, &[key(5000).src]);
    assert!(!states.holds(&mut table, 1), "all are judged again");
    for n in 4001..=5000 {
        table.insert(key(n).hash(&HASH), &FlowEntry { plan: far(n), ..entry(n, 50) }).unwrap();
        assert_eq!(hit(&mut table, n, 60, 50), Some((far(n), Follow::Counted)));
    }
    states.touch(&mut table, &[key(5000).src]);
    assert!(states.holds(&mut table, 4001));
}
