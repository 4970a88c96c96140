//! Counters of Service ports and backends are kept through recompilation.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::service::entry::ServiceEntry;
use crate::service::table::Found;

/// The entry behind the cluster IP.
fn entry(table: &ServiceTable) -> Arc<ServiceEntry> {
    match table.find(&key("10.0.9.9:1", VIP), Origin::InCluster) {
        Found::Service(found) => found.entry.clone(),
        Found::Reject(_, subject) | Found::Drop(_, subject) => subject.entry.unwrap().clone(),
        Found::NotAService => panic!("no Service at {VIP}"),
    }
}

fn opened(entry: &ServiceEntry) -> BTreeMap<String, u64> {
    let counts = entry.backends().iter().enumerate();
    counts.map(|(n, b)| (b.to_string(), entry.opened(n))).collect()
}

#[test]
fn counts_made_with_an_old_table_are_kept() {
    let mut compiler = compiler(&[web()], &[slice("s", 80, [ready(A), ready(B)])]);
    let old = compiler.publish();
    entry(&old).count_opened(1);
    compiler.set_slice(Arc::new(slice("s", 80, [ready(C), ready(B)])));
    let new = compiler.publish();
    entry(&old).count_opened(1);
    entry(&old).count_rejected();
    entry(&old).count_dropped();
    let of = |list: &[(&str, u64)]| -> BTreeMap<String, u64> {
        list.iter().map(|(a, n)| (format!("{a}:80"), *n)).collect()
    };
    assert_eq!(opened(&entry(&new)), of(&[(B, 2), (C, 0)]));
    assert_eq!((entry(&new).rejected(), entry(&new).dropped()), (1, 1));
    // Other changes of a Service leave its counts alone.
    let mut changed = web();
    changed.affinity = Some(5);
    compiler.set_service(Arc::new(changed)).unwrap();
    assert_eq!(opened(&entry(&compiler.publish())), of(&[(B, 2), (C, 0)]));
    // Those of another Service in its place start at zero.
    compiler.remove_service(&web().name);
    compiler.publish();
    compiler.set_service(Arc::new(web())).unwrap();
    assert_eq!(opened(&entry(&compiler.publish())), of(&[(B, 0), (C, 0)]));
}

#[test]
fn host_ports_and_families_are_counted_separately() {
    let mut dual = web();
    dual.cluster_ips.push(ip("fd00:96::10"));
    let mut six = slice("s6", 80, [ready("fd00:10::1")]);
    six.family = Family::V6;
    let mut compiler = compiler(&[dual], &[slice("s", 80, [ready(A)]), six]);
    let target = socket("10.0.0.7:443");
    let port = HostPort { address: None, protocol: crate::rule::Protocol::Tcp, port: 8443, target };
    compiler.set_host_ports("Pod/ns/p".into(), [port.clone()].into());
    let chosen = |table: &ServiceTable, to: &str| {
        let from = if to.starts_with('[') { "[fd00:10::99]:1" } else { "10.0.9.9:1" };
        match table.lookup(&key(from, to), Origin::InCluster) {
            Lookup::Backend(chosen) => (chosen.entry.clone(), chosen.index),
            other => panic!("{other:?}"),
        }
    };
    let all = [VIP, "[fd00:96::10]:80", "192.0.2.1:8443"];
    let table = compiler.publish();
    for (n, to) in all.iter().enumerate() {
        let (entry, index) = chosen(&table, to);
        (0..=n).for_each(|_| entry.count_opened(index));
    }
    compiler.set_settings(Settings { view: Default::default(), ..settings() });
    compiler.set_host_ports("Pod/ns/p".into(), [port.clone(), HostPort { port: 1, ..port }].into());
    let table = compiler.publish();
    let counts = all.map(|to| {
        let (entry, index) = chosen(&table, to);
        entry.opened(index)
    });
    assert_eq!(counts, [1, 2, 3]);
}

/// Bytes for each Service and endpoint.
#[test]
fn counters_are_small() {
    let endpoints: Vec<Endpoint> = (0..25).map(|n| ready(&format!("10.0.1.{n}"))).collect();
    let none = entry(&table(&[web()], &[])).heap_bytes();
    let all = entry(&table(&[web()], &[slice("s", 80, endpoints)])).heap_bytes();
    // Maglev's slots for 25 endpoints are the largest part.
    assert!(none <= 512, "{none} bytes without endpoints");
    assert!((all - none) / 25 <= 400, "{} bytes an endpoint", (all - none) / 25);
}

proptest! {
    /// As backends appear and disappear, no backend gets another's count, and no count is lost.
    #[test]
    fn counts_follow_their_backends(
        steps in prop::collection::vec(
            (prop::collection::btree_set(0u8..40, 0..30), prop::collection::vec(0usize..64, 0..40)),
            1..12,
        ),
    ) {
        let mut compiler = compiler(&[web()], &[]);
        let mut model: BTreeMap<String, u64> = BTreeMap::new();
        let mut departed = 0;
        for (backends, connections) in steps {
            let endpoints = backends.iter().map(|n| ready(&format!("10.0.3.{n}")));
            compiler.set_slice(Arc::new(slice("s", 80, endpoints)));
            let entry = entry(&compiler.publish());
            let now: BTreeMap<String, u64> = entry
                .backends()
                .iter()
                .map(|b| (b.to_string(), model.get(&b.to_string()).copied().unwrap_or(0)))
                .collect();
            let left = model.iter().filter(|(name, _)| !now.contains_key(*name));
            departed += left.map(|(_, count)| count).sum::<u64>();
            model = now;
            prop_assert_eq!(&opened(&entry), &model);
            prop_assert_eq!(entry.departed(), departed);
            for index in connections {
                entry.count_opened(index);
                if let Some(backend) = entry.backends().get(index) {
                    *model.get_mut(&backend.to_string()).unwrap() += 1;
                }
            }
            prop_assert_eq!(&opened(&entry), &model);
        }
    }
}
