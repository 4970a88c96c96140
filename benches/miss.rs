//! `miss/new_connection*`: what the first packet of a connection costs, from its reception by a
//! memory port to its transmission by another, with 10, 1,000 and 10,000 policies over a cluster of
//! 150,000 pods. See `support/fresh.rs`.

#[path = "support/cpu_time.rs"]
mod cpu_time;
#[path = "support/fresh.rs"]
mod fresh;

use std::hint::black_box;
use std::time::Duration;

use cpu_time::CpuTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fresh::{BURST, Rig, WINDOW};

const POLICIES: [usize; 3] = [10, 1_000, 10_000];

fn miss(criterion: &mut Criterion<CpuTime>) {
    for policies in POLICIES {
        let mut rig = Rig::new(policies);
        for (name, v6) in [("new_connection", false), ("new_connection_ipv6", true)] {
            rig.set_v6(v6);
            let mut group = criterion.benchmark_group(format!("miss/{name}"));
            group.throughput(Throughput::Elements((WINDOW * BURST) as u64));
            group.bench_function(BenchmarkId::from_parameter(policies), |bencher| {
                bencher.iter(|| black_box(rig.poll()));
            });
            group.finish();
            rig.check();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .sample_size(20);
    targets = miss
}
criterion_main!(benches);
