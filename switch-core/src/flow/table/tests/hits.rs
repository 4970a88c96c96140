//! The result for a packet that hits its flow's entry, and how it is counted.

use super::*;

#[test]
fn packets_are_counted_in_the_entry_and_flushed_once_a_second() {
    let mut table = table();
    table.insert(key(1).hash(&HASH), &entry(1, 50)).unwrap();
    for _ in 0..3 {
        assert_eq!(hit(&mut table, 1, 100, 50), Some((plan(1), Follow::Counted)));
    }
    let flushed = PendingCounts { connection: connection(1), packets: 3, bytes: 300 };
    assert_eq!(hit(&mut table, 1, 60, 51), Some((plan(1), Follow::Flush(flushed))));
    assert_eq!(hit(&mut table, 1, 60, 51), Some((plan(1), Follow::Counted)));
    assert!(table.take_pending().next().is_none());
    table.sweep(1, |_| (), |_, _| false);
    let rest = PendingCounts { connection: connection(1), packets: 2, bytes: 120 };
    assert_eq!(table.take_pending().collect::<Vec<_>>(), [rest]);
    // Counts are kept when the entry is removed or gets another plan.
    hit(&mut table, 1, 60, 51).unwrap();
    table.insert(key(1).hash(&HASH), &entry(1, 51)).unwrap();
    hit(&mut table, 1, 70, 51).unwrap();
    let id = find(&mut table, 1).unwrap();
    table.remove(id);
    let one = |bytes| PendingCounts { connection: connection(1), packets: 1, bytes };
    assert_eq!(table.take_pending().collect::<Vec<_>>(), [one(60), one(70)]);
}

#[test]
fn an_invalid_entry_is_not_reported_as_absent() {
    let mut table = table();
    let touched = Invalidation::everything(Epoch(0));
    let (key, hash) = (key(1), key(1).hash(&HASH));
    let find = |table: &mut FlowTable, sender| {
        table.find(&flow(table.candidate(hash), &key, sender), &touched)
    };
    assert_eq!(find(&mut table, 0), Err(LookupMiss::Absent));
    let id = table.insert_absent(hash, &entry(1, 50)).unwrap();
    assert_eq!(find(&mut table, 0), Ok(id));
    assert_eq!(find(&mut table, 1), Err(LookupMiss::Invalid), "another sender's");
    everything(&mut table, 2);
    assert_eq!(find(&mut table, 0), Err(LookupMiss::Invalid), "of an earlier epoch");
    assert_eq!(table.insert(hash, &entry(1, 50)), Some(id), "the entry is replaced");
    assert_eq!(table.len(), 1);
}

#[test]
fn byte_counts_that_would_overflow_are_flushed() {
    let mut table = table();
    table.insert(key(1).hash(&HASH), &entry(1, 50)).unwrap();
    let (mut bytes, mut packets) = (0, 0);
    for _ in 0..200_000 {
        match hit(&mut table, 1, 65_535, 50).unwrap().1 {
            Follow::Counted => {}
            Follow::Flush(pending) => {
                bytes += u64::from(pending.bytes);
                packets += u64::from(pending.packets);
            }
            Follow::Each(_) => panic!("not packet by packet"),
        }
    }
    table.sweep(1, |_| (), |_, _| true);
    let rest: Vec<_> = table.take_pending().collect();
    assert_eq!(bytes + u64::from(rest[0].bytes), 200_000 * 65_535);
    assert_eq!(packets + u64::from(rest[0].packets), 200_000);
}

#[test]
fn tcp_and_translated_flows_are_followed_packet_by_packet() {
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
    assert_eq!(find_by(&mut table, candidate, &tcp, 0), id);
    assert_eq!(table.prefetch_plan(id), Some(connection(2)));
    let translated = find(&mut table, 1).unwrap();
    assert_eq!(table.prefetch_plan(translated), Some(connection(1)));
    let found = table.hit_entry(id, 60, 50, |_| true).map(|(plan, follow)| (*plan, follow));
    assert_eq!(found, Some((plan(2), Follow::Each(connection(2)))));
    table.sweep(100, |_| (), |_, _| true);
    assert!(table.take_pending().next().is_none(), "the connection has each packet already");
}

/// Only flows with a shared plan and without a tunnel need no further step.
#[test]
fn a_hit_reports_the_remaining_work() {
    let mut table = table();
    let tcp = |n| FlowKey { proto: proto::TCP, ..key(n) };
    let insert = |table: &mut FlowTable, key: FlowKey, plan: Plan| {
        let entry = FlowEntry { key, plan, groups: Groups::of_key(&key), ..entry(2, 50) };
        table.insert(key.hash(&HASH), &entry).unwrap()
    };
    let translated = plan(2).translate(&key(2), &key(9));
    let tunnel = plan(3).encap(1, SourcePort::from_hash(1));
    for (n, plan, routed) in [(1, plan(1), true), (2, translated, false), (3, tunnel, false)] {
        let (udp, id) = (key(n), insert(&mut table, key(n), plan));
        let tcp_id = insert(&mut table, tcp(n), plan);
        let counted = if routed { Hit::Counted(&plan) } else { Hit::Other(id) };
        assert_eq!(table.hit(&flow(id, &udp, 0), (40, 60), 50), counted);
        let followed = if routed { Hit::Tcp(&plan, connection(2)) } else { Hit::Other(tcp_id) };
        assert_eq!(table.hit(&flow(tcp_id, &tcp(n), 0), (40, 60), 51), followed);
        for (id, key, sender) in [(id, tcp(n), 0), (tcp_id, udp, 0), (tcp_id, tcp(n), 7)] {
            assert_eq!(table.hit(&flow(id, &key, sender), (40, 60), 51), Hit::Unknown);
        }
        let too_long = table.hit(&flow(tcp_id, &tcp(n), 0), (1501, 1515), 51);
        assert_eq!(too_long, Hit::Other(tcp_id));
    }
}

/// Another packet may have changed the table since the candidate was found.
#[test]
fn a_candidate_may_have_been_removed() {
    let mut table = table();
    let hash = key(1).hash(&HASH);
    let id = table.insert(hash, &entry(1, 50)).unwrap();
    let candidate = table.candidate(hash);
    table.remove(id);
    assert_eq!(find_by(&mut table, candidate, &key(1), 0), EntryId::NONE);
    // The number belongs to another flow now, and the flow has another number.
    assert_eq!(table.insert(key(2).hash(&HASH), &entry(2, 50)), Some(id));
    let again = table.insert(hash, &entry(1, 50)).unwrap();
    assert_ne!(again, id);
    assert_eq!(find_by(&mut table, candidate, &key(1), 0), again);
}

#[test]
fn a_plan_is_valid_for_its_epoch_and_sender_only() {
    let mut table = table();
    table.insert(key(1).hash(&HASH), &entry(1, 50)).unwrap();
    let found = find_by(&mut table, EntryId::NONE, &key(1), 7);
    assert_eq!(found, EntryId::NONE, "another sender");
    let id = find(&mut table, 1).unwrap();
    assert!(table.hit_entry(id, 60, 50, |_| false).is_none(), "it does not fit");
    let (right, other) = (key(1), key(2));
    let mut hit_with = |id, key: &FlowKey, sender, length, now| matches!(table.hit(&flow(id, key, sender), (length, 60), now), Hit::Counted(p) if *p == plan(1));
    assert!(hit_with(id, &right, 0, 1500, 50));
    assert!(!hit_with(id, &right, 0, 1501, 50), "it does not fit");
    assert!(!hit_with(EntryId::NONE, &right, 0, 40, 50));
    assert!(!hit_with(id, &other, 0, 40, 50), "another flow's packet");
    assert!(!hit_with(id, &right, 7, 40, 50), "another sender");
    assert!(!hit_with(id, &right, 0, 40, 51), "the connection is due for an update");
    everything(&mut table, 1);
    assert!(hit(&mut table, 1, 60, 50).is_some());
    everything(&mut table, 2);
    assert_eq!(table.hit(&flow(id, &right, 0), (40, 60), 50), Hit::Unknown);
    assert!(find(&mut table, 1).is_none());
    assert!(table.hit_entry(id, 60, 50, |_| true).is_none(), "it was looked up before");
    table.insert(key(1).hash(&HASH), &entry(1, 50)).unwrap();
    assert!(hit(&mut table, 1, 60, 50).is_some());
    assert_eq!(table.len(), 1);
}
