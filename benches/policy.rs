//! The cost of policy: an evaluation on the miss path, a whole compilation, and a change of one
//! object, at 10, 1,000 and 10,000 policies over 150,000 pods.
//!
//! `miss/policy` looks up both parties by address and evaluates one end, with keys spread over all
//! policies and their rules; `miss/policy_both_ends` evaluates both ends. Nothing is cached between
//! probes except in the processor's caches. `compile/policy_whole` builds the first table from
//! objects that were already upserted; `compile/policy_one_*` upserts one changed object and
//! publishes.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use podswitch_benches::world;
use podswitch_policy::rule::Direction;
use podswitch_policy::table::{Decision, PolicyTable};

use podswitch_benches::memory::resident;
use podswitch_benches::world::Probe;

const POLICIES: [usize; 3] = [10, 1_000, 10_000];
const PROBES: usize = 1 << 16;

fn evaluate(table: &PolicyTable, probe: &Probe) -> Decision {
    let (source, destination) = (table.party(probe.from), table.party(probe.to));
    match probe.direction {
        Direction::Egress => table.evaluate_egress(&source, &destination, probe.traffic),
        Direction::Ingress => table.evaluate_ingress(&source, &destination, probe.traffic),
    }
}

/// Memory of compiled policies, without the pods, whose number does not depend on the number of
/// policies.
fn report() {
    let grown = POLICIES.map(|policies| {
        let mut compiler = world::compiler(policies);
        let before = resident();
        let table = compiler.publish();
        // Held, so that no other allocation reuses its memory.
        (policies, resident().saturating_sub(before), compiler, table)
    });
    let (few, base, ..) = grown[0];
    for (policies, bytes, ..) in &grown[1..] {
        eprintln!(
            "{policies} policies: process grew by {bytes} bytes when they were compiled, {} a policy more than with {few}",
            bytes.saturating_sub(base) / (policies - few)
        );
    }
}

fn miss(criterion: &mut Criterion) {
    report();
    for policies in POLICIES {
        let table = world::compiler(policies).publish();
        let probes = world::probes(policies, PROBES);
        let mut group = criterion.benchmark_group("miss");
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("policy", policies), |bencher| {
            let mut all = probes.iter().cycle();
            bencher.iter(|| black_box(evaluate(&table, all.next().expect("endless"))));
        });
        group.bench_function(BenchmarkId::new("policy_both_ends", policies), |bencher| {
            let mut all = probes.iter().cycle();
            bencher.iter(|| {
                let probe = all.next().expect("endless");
                let (source, destination) = (table.party(probe.from), table.party(probe.to));
                black_box(table.verdict(&source, &destination, probe.traffic))
            });
        });
        group.finish();
    }
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for policies in POLICIES {
        group.bench_function(BenchmarkId::new("policy_whole", policies), |bencher| {
            let setup = || world::compiler(policies);
            bencher.iter_batched_ref(setup, |c| c.publish(), BatchSize::PerIteration);
        });
    }
    for policies in POLICIES {
        let mut compiler = world::compiler(policies);
        // As in the switch, the table in force is held while the next is built.
        let mut in_force = compiler.publish();
        let whole = Arc::new(world::network_policy(policies / 2));
        let mut less = world::network_policy(policies / 2);
        less.ingress.iter_mut().for_each(|rules| rules.truncate(1));
        let versions = [Arc::new(less), whole];
        let mut turn = versions.iter().cycle();
        group.bench_function(BenchmarkId::new("policy_one_policy", policies), |bencher| {
            bencher.iter(|| {
                compiler.upsert_network_policy(turn.next().expect("endless"));
                in_force = compiler.publish();
            });
        });
        let (pod, other) = (world::pod(77), world::pod(77 + world::NAMESPACES));
        let mut fresh = 0u32;
        group.bench_function(BenchmarkId::new("policy_one_pod", policies), |bencher| {
            bencher.iter(|| {
                fresh += 1;
                let mut workload = other.workload.clone();
                // Alternately two labels that other pods have, and new ones.
                if fresh.is_multiple_of(2) {
                    workload.labels = workload.labels.with("revision", fresh.to_string());
                }
                compiler.upsert_pod(&pod.cookie, &workload, &pod.node);
                in_force = compiler.publish();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, miss, compile);
criterion_main!(benches);
