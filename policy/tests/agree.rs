//! The compiled table compared with the reference evaluator, over random clusters, policies and
//! probes.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::{cluster, compile, disagreement};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// The minimum number of verdicts that one run compares; both families, all protocols, both ends
/// each.
const VERDICTS: u64 = 1_000_000;

/// Runs random clusters until enough verdicts have been compared.
fn compare(
    cluster: impl Strategy<Value = podswitch_policy::reference::Cluster>,
    cases: u32,
    at_least: u64,
) {
    let verdicts = AtomicU64::new(0);
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&cluster, |cluster| {
        let table = compile(&cluster).publish();
        match disagreement(&cluster, &table) {
            Ok(count) => verdicts.fetch_add(count, Ordering::Relaxed),
            Err(difference) => return Err(TestCaseError::fail(difference)),
        };
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let verdicts = verdicts.into_inner();
    println!("{verdicts} verdicts");
    assert!(verdicts >= at_least, "only {verdicts} verdicts");
}

#[test]
fn network_policies_agree_with_the_reference() {
    compare(cluster(12, 6, 0), 300, VERDICTS / 2);
}

#[test]
fn all_tiers_agree_with_the_reference() {
    compare(cluster(10, 4, 4), 300, VERDICTS / 2);
}
