//! `miss/*`: the cost of the first packet of a connection, from its reception by a memory port to its transmission by
//! another, with 10, 1,000 and 10,000 policies and the same number of Services in a cluster of 150,000 pods. See
//! `support/fresh.rs`.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::Measurement;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use podswitch_benches::cpu_time::CpuTime;
use podswitch_benches::fresh::{Case, Rig};

const OBJECTS: [usize; 3] = [10, 1_000, 10_000];

fn miss(criterion: &mut Criterion<CpuTime>) {
    for objects in OBJECTS {
        measure(criterion, "new_connection", Case::of(objects));
        measure(criterion, "via_service", Case::via_service(objects));
    }
    let most = OBJECTS[OBJECTS.len() - 1];
    measure(criterion, "new_connection_2_workers", Case { workers: 2, ..Case::of(most) });
    measure(criterion, "via_service_2_workers", Case { workers: 2, ..Case::via_service(most) });
}

/// Both families. With two workers, the figure is that of one while the other is equally busy.
fn measure(criterion: &mut Criterion<CpuTime>, name: &str, case: Case) {
    let mut rig = None;
    for (family, v6) in [("", false), ("_ipv6", true)] {
        let mut group = criterion.benchmark_group(format!("miss/{name}{family}"));
        group.bench_function(BenchmarkId::from_parameter(case.policies), |bencher| {
            let rig = rig.get_or_insert_with(|| Rig::new(case));
            rig.set_v6(v6);
            let packets = rig.packets() as u64;
            rig.beside_others(|poll| {
                // The time of one packet, although a poll receives some thousands.
                bencher.iter_custom(|times| {
                    let polls = times.div_ceil(packets);
                    let begun = CpuTime.start();
                    for _ in 0..polls {
                        black_box(poll());
                    }
                    CpuTime.end(begun).mul_f64(times as f64 / (polls * packets) as f64)
                });
            });
        });
        group.finish();
        rig.iter().for_each(Rig::check);
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
