//! The FDB under `loom`, with one row of two slots so that threads conflict.

#![allow(dead_code, unreachable_pub, reason = "this copy calls only code that can race")]

/// loom's atomics, each with a companion that is modified with relaxed ordering before every access.
///
/// loom 0.7 decides which accesses to interleave by the last access to an object. If a thread loads an atomic and then
/// exchanges it, its own load hides that another thread loaded it before, and the order in which the exchange comes
/// first is never tried. Modifications all depend on each other, so those of the companion hide nothing; and as they
/// are relaxed they order nothing.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicUsize, Ordering, fence};

    macro_rules! watched {
        ($name:ident, $value:ty) => {
            #[derive(Debug)]
            pub(super) struct $name {
                inner: loom::sync::atomic::$name,
                touched: AtomicUsize,
            }

            impl $name {
                pub(super) fn new(value: $value) -> Self {
                    let inner = loom::sync::atomic::$name::new(value);
                    Self { inner, touched: AtomicUsize::new(0) }
                }

                fn touch(&self) -> &loom::sync::atomic::$name {
                    self.touched.fetch_add(1, Ordering::Relaxed);
                    &self.inner
                }

                pub(super) fn load(&self, order: Ordering) -> $value {
                    self.touch().load(order)
                }

                pub(super) fn store(&self, value: $value, order: Ordering) {
                    self.touch().store(value, order);
                }

                pub(super) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    self.touch().fetch_sub(value, order)
                }

                pub(super) fn compare_exchange(
                    &self,
                    old: $value,
                    new: $value,
                    good: Ordering,
                    bad: Ordering,
                ) -> Result<$value, $value> {
                    self.touch().compare_exchange(old, new, good, bad)
                }

                pub(super) fn fetch_update(
                    &self,
                    set: Ordering,
                    fetch: Ordering,
                    update: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    self.touch().fetch_update(set, fetch, update)
                }
            }
        };
    }

    watched!(AtomicU32, u32);
    watched!(AtomicU64, u64);
}

const WAYS: usize = 2;
const SLOTS_PER_ENTRY: usize = 2;
const PORTS: usize = 4;

#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "slot.rs"]
mod slot;
#[expect(clippy::duplicate_mod, reason = "the same source with other atomics")]
#[path = "table.rs"]
mod table;

use loom::sync::Arc;
use loom::thread;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::HashKey;

use self::table::{Bounds, Domain, Fdb, Learn};
use crate::id::PortId;
use crate::time::Instant;

const D: Domain = Domain(1);
const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
const FILLER: Mac = Mac([2, 0, 0, 0, 0, 0xf]);
const NOW: Instant = Instant::from_secs(100);
const LATER: Instant = Instant::from_secs(1000);
const BOUNDS: Bounds = Bounds { ageing_secs: 300, limit: 10 };

/// Runs `test` on a table in every interleaving of up to `preemptions` preemptions.
fn model(preemptions: usize, test: impl Fn(Arc<Fdb>) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || test(Arc::new(Fdb::new(1, &HashKey::new(1)))));
}

fn learn(fdb: &Fdb, mac: Mac, port: u16) -> Learn {
    fdb.learn(D, mac, PortId(port), BOUNDS, NOW)
}

/// All entries, after a check that the counters agree with them.
fn check_consistency(fdb: &Fdb) -> Vec<(Mac, PortId)> {
    let entries: Vec<_> = fdb.dump(NOW).iter().map(|entry| (entry.mac, entry.port)).collect();
    for port in 0..PORTS as u16 {
        let there = entries.iter().filter(|(mac, at)| *at == PortId(port) && *mac != FILLER);
        assert_eq!(fdb.learned(PortId(port)), there.count() as u32, "port {port}: {entries:?}");
    }
    entries
}

/// One free slot, which is used by one address, another and the first again while it is read.
#[test]
fn a_reader_never_gets_the_port_of_another_address() {
    model(2, |fdb| {
        assert!(fdb.set_static(D, FILLER, PortId(3), NOW));
        learn(&fdb, A, 1);
        let writer = {
            let fdb = fdb.clone();
            thread::spawn(move || {
                fdb.remove(D, A);
                assert_eq!(learn(&fdb, B, 2), Learn::New);
                fdb.remove(D, B);
                assert_eq!(learn(&fdb, A, 1), Learn::New);
            })
        };
        assert!(matches!(fdb.lookup(D, A, NOW), None | Some(PortId(1))));
        assert!(matches!(fdb.lookup(D, B, NOW), None | Some(PortId(2))));
        writer.join().unwrap();
        assert_eq!(fdb.lookup(D, A, NOW), Some(PortId(1)));
        assert_eq!(check_consistency(&fdb).len(), 2);
    });
}

#[test]
fn two_threads_that_learn_one_address_create_one_entry() {
    for (first, second) in [(1, 1), (1, 2)] {
        model(2, move |fdb| {
            let other = fdb.clone();
            let other = thread::spawn(move || learn(&other, A, first));
            learn(&fdb, A, second);
            other.join().unwrap();
            let entries = check_consistency(&fdb);
            assert_eq!(entries.len(), 1, "{entries:?}");
            assert!(entries[0].1 == PortId(first) || entries[0].1 == PortId(second));
        });
    }
}

#[test]
fn two_threads_that_move_one_address_keep_the_counters_right() {
    model(2, |fdb| {
        learn(&fdb, A, 0);
        let other = fdb.clone();
        let other = thread::spawn(move || learn(&other, A, 1));
        learn(&fdb, A, 2);
        assert!(fdb.lookup(D, A, NOW).is_some());
        other.join().unwrap();
        assert_eq!(check_consistency(&fdb).len(), 1);
    });
}

#[test]
fn a_limit_holds_for_both() {
    model(2, |fdb| {
        let once = Bounds { limit: 1, ..BOUNDS };
        let other = fdb.clone();
        let other = thread::spawn(move || other.learn(D, A, PortId(1), once, NOW));
        let mine = fdb.learn(D, B, PortId(1), once, NOW);
        let mut outcomes = [mine, other.join().unwrap()];
        outcomes.sort_by_key(|outcome| *outcome != Learn::New);
        assert_eq!(outcomes, [Learn::New, Learn::LimitReached]);
        assert_eq!(check_consistency(&fdb).len(), 1);
    });
}

/// An expired entry is swept, replaced by another address and seen again, at the same time.
#[test]
fn sweeping_and_learning() {
    model(2, |fdb| {
        learn(&fdb, A, 1);
        let other = fdb.clone();
        let other = thread::spawn(move || {
            other.sweep(LATER, WAYS);
            other.learn(D, B, PortId(2), BOUNDS, LATER)
        });
        fdb.learn(D, A, PortId(1), BOUNDS, LATER);
        assert_eq!(other.join().unwrap(), Learn::New);
        assert_eq!(fdb.lookup(D, A, LATER), Some(PortId(1)));
        assert_eq!(fdb.lookup(D, B, LATER), Some(PortId(2)));
        assert_eq!((fdb.learned(PortId(1)), fdb.learned(PortId(2))), (1, 1));
    });
}

#[test]
fn a_static_address_stays_static() {
    model(2, |fdb| {
        let other = fdb.clone();
        let other = thread::spawn(move || {
            learn(&other, A, 1);
            learn(&other, A, 2)
        });
        assert!(fdb.set_static(D, A, PortId(3), NOW));
        other.join().unwrap();
        assert_eq!(fdb.lookup(D, A, NOW), Some(PortId(3)));
        assert_eq!(learn(&fdb, A, 1), Learn::Pinned);
        assert_eq!((fdb.learned(PortId(1)), fdb.learned(PortId(2))), (0, 0));
        assert_eq!(fdb.dump(NOW).len(), 1);
    });
}

#[test]
fn flushing_a_port_that_still_learns_keeps_the_counters_right() {
    model(2, |fdb| {
        learn(&fdb, A, 1);
        let other = fdb.clone();
        let other = thread::spawn(move || learn(&other, A, 2));
        fdb.flush_port(PortId(1));
        other.join().unwrap();
        assert_eq!(check_consistency(&fdb), [(A, PortId(2))]);
    });
}
