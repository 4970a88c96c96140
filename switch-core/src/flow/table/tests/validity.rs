//! Which entries stay valid when the configuration changes.

use super::*;
use crate::invalidation::Group;

/// A sequence of epochs, each of which changes some addresses.
struct Epochs(u32, Invalidation);

impl Epochs {
    fn touch(&mut self, table: &mut FlowTable, addresses: &[[u8; 16]]) {
        self.0 += 1;
        let addresses = addresses.iter().map(|a| to_addr(a, Family::V6)).collect();
        self.1.invalidate(Epoch(self.0), AffectedAddresses::Listed(addresses));
        table.begin(Epoch(self.0), &self.1);
    }

    /// Whether the entry of a key is valid now.
    fn is_valid(&self, table: &mut FlowTable, n: u16) -> bool {
        let (key, hash) = (key(n), key(n).hash(&HASH));
        let found = table.find(&flow(table.candidate(hash), &key, 0), &self.1);
        found == table.find(&flow(EntryId::NONE, &key, 0), &self.1) && found.is_ok()
    }
}

fn table_with(entries: &[FlowEntry]) -> (FlowTable, Epochs) {
    let mut table = table();
    for entry in entries {
        table.insert(entry.key.hash(&HASH), entry).unwrap();
    }
    (table, Epochs(1, Invalidation::everything(Epoch(1))))
}

#[test]
fn entries_without_changed_dependencies_stay_valid() {
    // The third is translated: its key does not show all its dependencies.
    let mut third = entry(3, 50);
    third.plan = plan(3).translate(&key(3), &key(40));
    third.groups.0[2] = Group::of(&key(40).src);
    let (mut table, mut epochs) = table_with(&[entry(1, 50), entry(2, 50), third]);
    hit(&mut table, 1, 60, 50).unwrap();
    epochs.touch(&mut table, &[key(7).src, key(8).src]);
    assert!((1..=3).all(|n| epochs.is_valid(&mut table, n)));
    assert_eq!(table.take_revalidations(), Revalidations::default(), "no entry was checked");
    epochs.touch(&mut table, &[key(2).src]);
    assert_eq!([1, 2, 3].map(|n| epochs.is_valid(&mut table, n)), [true, false, true]);
    assert_eq!(table.take_revalidations(), Revalidations { kept: 2, reevaluated: 0 });
    epochs.touch(&mut table, &[key(40).src]);
    assert_eq!([1, 2, 3].map(|n| epochs.is_valid(&mut table, n)), [true, false, false]);
    assert_eq!(hit(&mut table, 1, 60, 50), Some((plan(1), Follow::Counted)));
    table.insert(key(2).hash(&HASH), &entry(2, 50)).unwrap();
    assert_eq!(table.take_revalidations(), Revalidations { kept: 1, reevaluated: 1 });
    assert!(epochs.is_valid(&mut table, 2));
    // The destination of all three.
    epochs.touch(&mut table, &[[9; 16]]);
    assert!(!(1..=3).any(|n| epochs.is_valid(&mut table, n)));
    table.sweep(3, |_| (), |_, _| true);
    assert_eq!(table.take_pending().map(|u| u.packets).collect::<Vec<_>>(), [2], "none is lost");
}

/// The dependencies of a shared plan are those of the entry's key.
#[test]
fn a_plan_that_depends_on_more_than_its_key_is_not_shared() {
    let mut odd = entry(1, 50);
    odd.groups.0[3] = Group::of(&key(40).src);
    let (mut table, mut epochs) = table_with(&[odd]);
    epochs.touch(&mut table, &[key(40).src]);
    assert!(!epochs.is_valid(&mut table, 1));
}

#[test]
fn an_entry_stays_valid_over_epochs_without_packets() {
    let (mut table, mut epochs) = table_with(&[entry(1, 50), entry(2, 50)]);
    for _ in 0..50 {
        epochs.touch(&mut table, &[key(2).src]);
    }
    assert!(epochs.is_valid(&mut table, 1) && !epochs.is_valid(&mut table, 2));
    for _ in 0..70 {
        epochs.touch(&mut table, &[key(2).src]);
    }
    assert!(!epochs.is_valid(&mut table, 1), "more epochs than are stored");
    // An entry that was affected in the meantime is invalid, no matter how long ago.
    let (mut table, mut epochs) = table_with(&[entry(1, 50), entry(2, 50)]);
    epochs.touch(&mut table, &[key(1).src]);
    for _ in 0..20 {
        epochs.touch(&mut table, &[key(2).src]);
    }
    assert!(!epochs.is_valid(&mut table, 1));
}

#[test]
fn groups_without_entries_are_dropped_after_a_round_of_the_sweep() {
    let (mut table, mut epochs) = table_with(&[entry(1, 50), entry(2, 50)]);
    let id = find(&mut table, 2).unwrap();
    table.remove(id);
    let mut checked = Vec::new();
    for _ in 0..4 {
        epochs.touch(&mut table, &[key(2).src]);
        assert!(epochs.is_valid(&mut table, 1));
        checked.push(table.take_revalidations().kept);
        table.sweep(2, |_| (), |_, _| false);
    }
    assert_eq!(checked, [1, 1, 0, 0]);
    // Groups with entries are not.
    epochs.touch(&mut table, &[key(1).src]);
    assert!(!epochs.is_valid(&mut table, 1));
}

#[test]
fn shared_plans_are_cleared_when_there_are_many() {
    let mut table = FlowTable::new(FlowTableConfig { entries: 20_000, hash_key: HASH });
    let mut epochs = Epochs(1, Invalidation::everything(Epoch(1)));
    table.begin(Epoch(1), &epochs.1);
    let far = |n: u16| Plan { mtu: 1500 + n, ..plan(0) };
    for n in 1..=5000 {
        table.insert(key(n).hash(&HASH), &FlowEntry { plan: far(n), ..entry(n, 50) }).unwrap();
    }
    epochs.touch(&mut table, &[key(5000).src]);
    assert!(!epochs.is_valid(&mut table, 1), "all are evaluated again");
    for n in 4001..=5000 {
        table.insert(key(n).hash(&HASH), &FlowEntry { plan: far(n), ..entry(n, 50) }).unwrap();
        assert_eq!(hit(&mut table, n, 60, 50), Some((far(n), Follow::Counted)));
    }
    epochs.touch(&mut table, &[key(5000).src]);
    assert!(epochs.is_valid(&mut table, 4001));
}
