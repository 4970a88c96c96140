//! The cost of the policy table at full size: compile time, memory, time of one change, and a loop
//! of look-ups for counting instructions.
//!
//! `cargo run --release -p podswitch-policy --example scale -- POLICIES [LOOKUPS]`, and for the
//! instructions `valgrind --tool=callgrind --toggle-collect='*look_up*' …/examples/scale …`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use podswitch_benches::world;
use podswitch_benches::world::Probe;
use podswitch_policy::rule::Direction;
use podswitch_policy::table::PolicyTable;

#[expect(clippy::disallowed_methods, reason = "a measurement, far from any packet")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// Evaluates one end's policies for each probe, with both parties looked up. Returns how many were
/// allowed.
#[inline(never)]
fn look_up(table: &PolicyTable, probes: &[Probe]) -> usize {
    let allowed = |probe: &&Probe| {
        let (source, destination) = (table.party(probe.from), table.party(probe.to));
        let decision = match probe.direction {
            Direction::Egress => table.evaluate_egress(&source, &destination, probe.traffic),
            Direction::Ingress => table.evaluate_ingress(&source, &destination, probe.traffic),
        };
        black_box(decision).allow
    };
    probes.iter().filter(allowed).count()
}

/// The part that looks up both parties.
#[inline(never)]
fn find_parties(table: &PolicyTable, probes: &[Probe]) -> usize {
    let pods = |probe: &&Probe| {
        let ends = (table.party(probe.from), table.party(probe.to));
        black_box(ends).0.is_pod()
    };
    probes.iter().filter(pods).count()
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().expect("a number"));
    let policies = args.next().unwrap_or(10_000).max(1);
    let lookups = args.next().unwrap_or(1_000_000);

    let (mut compiler, upserted) = timed(|| world::compiler(policies));
    let (table, published) = timed(|| compiler.publish());
    println!("{policies} policies: upserted in {upserted:?}, first table in {published:?}");
    let footprint = compiler.footprint();
    println!("{footprint:?}");
    let per_policy = footprint.stage_bytes / policies;
    let per_pod = footprint.address_bytes / world::PODS;
    println!("per policy {per_policy} B, per pod with two addresses {per_pod} B");

    let probes = world::probes(policies, lookups.clamp(1, 1 << 16));
    let rounds = lookups.div_ceil(probes.len());
    let (allowed, taken) = timed(|| (0..rounds).map(|_| look_up(&table, &probes)).sum::<usize>());
    let each = taken.as_nanos() as f64 / (rounds * probes.len()) as f64;
    println!("{} look-ups, {allowed} allowed, {each:.1} ns each", rounds * probes.len());
    let (_, taken) = timed(|| (0..rounds).map(|_| find_parties(&table, &probes)).sum::<usize>());
    let each = taken.as_nanos() as f64 / (rounds * probes.len()) as f64;
    println!("of that {each:.1} ns to find both parties");

    let mut policy = world::network_policy(policies / 2);
    policy.ingress.iter_mut().for_each(|rules| rules.truncate(1));
    let policy = Arc::new(policy);
    let change = timed(|| {
        compiler.upsert_network_policy(&policy);
        compiler.publish()
    });
    println!("one policy changed: {:?}", change.1);
    let mut pod = world::pod(77);
    pod.workload.labels = world::pod(77 + world::NAMESPACES).workload.labels;
    let change = timed(|| {
        compiler.upsert_pod(&pod.cookie, &pod.workload, &pod.node);
        compiler.publish()
    });
    println!("one pod with labels that others have: {:?}", change.1);
    pod.workload.labels = pod.workload.labels.with("new", "label");
    let change = timed(|| {
        compiler.upsert_pod(&pod.cookie, &pod.workload, &pod.node);
        compiler.publish()
    });
    println!("one pod with labels of its own: {:?}", change.1);
    drop(table);
    let change = timed(|| {
        compiler.remove_pod(&pod.cookie);
        compiler.publish()
    });
    println!("one pod removed: {:?}", change.1);
}
