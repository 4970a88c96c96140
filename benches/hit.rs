//! `hit/*`: the cost of a packet of a known flow, including reception and transmission by memory ports. 64-byte
//! packets, flows visited in a scattered order over the whole table.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use podswitch_benches::cpu_time::CpuTime;
use podswitch_benches::full;
use podswitch_benches::full::Case;
use podswitch_benches::rig::{
    Rig, answer, bridged, overlay, plain, policed, routed, scattered, tcp, tunnelled, udp,
};
use podswitch_core::config::Config;
use podswitch_core::packet::BATCH;

const COUNTS: [(usize, &str); 4] = [(1, "1"), (1_000, "1k"), (100_000, "100k"), (1_000_000, "1M")];

/// `hit/NAME/FLOWS` with one worker. Nothing is built for figures that the command line excludes.
fn measure(
    c: &mut Criterion<CpuTime>,
    name: &str,
    config: &Config,
    make: impl Fn(usize) -> Vec<u8>,
) {
    measure_with(c, name, config, make, answer);
}

/// As [`measure`], with the reply that each frame gets while tables are filled.
fn measure_with(
    c: &mut Criterion<CpuTime>,
    name: &str,
    config: &Config,
    make: impl Fn(usize) -> Vec<u8>,
    back: impl Fn(&[u8]) -> Vec<u8>,
) {
    let mut group = c.benchmark_group(format!("hit/{name}"));
    group.throughput(Throughput::Elements(BATCH as u64));
    for (count, label) in COUNTS {
        let mut rig = None;
        group.bench_function(BenchmarkId::from_parameter(label), |b| {
            let rig = rig.get_or_insert_with(|| {
                let frames = scattered(count).map(&make).collect::<Vec<_>>();
                Rig::answered(config, &frames, 1, &back)
            });
            let (now, worker) = (rig.now, &mut rig.workers[0]);
            b.iter(|| black_box(worker.poll(now)));
        });
        rig.iter().for_each(Rig::check);
    }
    group.finish();
}

/// `hit/vxlan_encap*`, `hit/vxlan_decap*`: between a pod and the uplink.
fn measure_tunnel(c: &mut Criterion<CpuTime>) {
    for (v6, family) in [(false, ""), (true, "_ipv6")] {
        let out = |flow| udp(flow, v6);
        measure_with(c, &format!("vxlan_encap{family}"), &overlay(1), out, |f| {
            tunnelled(&answer(f))
        });
        // The reply to a received tunnel packet is the reply to its inner frame.
        let inside = move |flow| tunnelled(&udp(flow, v6));
        let back = |frame: &[u8]| answer(&frame[50..]);
        measure_with(c, &format!("vxlan_decap{family}"), &overlay(0), inside, back);
    }
}

/// `hit/NAME_2_workers/FLOWS`: the cost of a packet of one worker while another is equally busy, each with half of the
/// flows.
fn measure_two(
    c: &mut Criterion<CpuTime>,
    name: &str,
    config: &Config,
    make: impl Fn(usize) -> Vec<u8>,
) {
    let mut group = c.benchmark_group(format!("hit/{name}_2_workers"));
    group.throughput(Throughput::Elements(BATCH as u64));
    for (count, label) in &COUNTS[1..] {
        let mut rig = None;
        group.bench_function(BenchmarkId::from_parameter(label), |b| {
            let rig = rig.get_or_insert_with(|| {
                Rig::new(config, &scattered(*count).map(&make).collect::<Vec<_>>(), 2)
            });
            let (now, stop) = (rig.now, AtomicBool::new(false));
            let [first, second] = &mut rig.workers[..] else { unreachable!("two were made") };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        black_box(second.poll(now));
                    }
                });
                b.iter(|| black_box(first.poll(now)));
                stop.store(true, Relaxed);
            });
        });
        rig.iter().for_each(Rig::check);
    }
    group.finish();
}

/// `hit/policy/N`: 1,000 flows with N policies.
fn measure_policies(c: &mut Criterion<CpuTime>) {
    for (name, v6) in [("policy", false), ("policy_ipv6", true)] {
        let mut group = c.benchmark_group(format!("hit/{name}"));
        group.throughput(Throughput::Elements(BATCH as u64));
        for count in [10, 1_000, 10_000] {
            let mut rig = None;
            group.bench_function(BenchmarkId::from_parameter(count), |b| {
                let rig = rig.get_or_insert_with(|| {
                    let frames: Vec<_> = scattered(1_000).map(|n| udp(n, v6)).collect();
                    Rig::new(&policed(count), &frames, 1)
                });
                let (now, worker) = (rig.now, &mut rig.workers[0]);
                b.iter(|| black_box(worker.poll(now)));
            });
            rig.iter().for_each(Rig::check);
        }
        group.finish();
    }
}

/// `hit/{service_nat,full}…/FLOWS`: connections to 200 Services with 25 endpoints each. `full` has connection tracking,
/// policy in both directions, translation and the tunnel, and counters.
fn measure_services(c: &mut Criterion<CpuTime>) {
    for full in [false, true] {
        for (v6, tcp) in [(false, false), (true, false), (false, true), (true, true)] {
            let case = Case { full, v6, tcp };
            let name = [
                if full { "full" } else { "service_nat" },
                if tcp { "_tcp" } else { "" },
                if v6 { "_ipv6" } else { "" },
            ];
            for workers in [1, 2] {
                let name = format!("{}{}", name.concat(), ["", "_2_workers"][workers - 1]);
                measure_case(c, &name, case, workers);
            }
        }
    }
}

fn measure_case(c: &mut Criterion<CpuTime>, name: &str, case: Case, workers: usize) {
    let mut group = c.benchmark_group(format!("hit/{name}"));
    group.throughput(Throughput::Elements(BATCH as u64));
    for (count, label) in &COUNTS[workers - 1..] {
        let mut rig = None;
        group.bench_function(BenchmarkId::from_parameter(label), |b| {
            let rig = rig.get_or_insert_with(|| full::rig(case, scattered(*count), workers));
            let (now, stop) = (rig.now, AtomicBool::new(false));
            let (first, others) = rig.workers.split_at_mut(1);
            std::thread::scope(|scope| {
                for other in others {
                    scope.spawn(|| {
                        while !stop.load(Relaxed) {
                            black_box(other.poll(now));
                        }
                    });
                }
                b.iter(|| black_box(first[0].poll(now)));
                stop.store(true, Relaxed);
            });
        });
        rig.iter().for_each(Rig::check);
    }
    group.finish();
}

fn hit(c: &mut Criterion<CpuTime>) {
    measure_services(c);
    measure_policies(c);
    measure(c, "l3", &routed(), |n| udp(n, false));
    measure(c, "l3_ipv6", &routed(), |n| udp(n, true));
    measure(c, "l3_tcp", &routed(), |n| tcp(n, false));
    measure(c, "l3_tcp_ipv6", &routed(), |n| tcp(n, true));
    measure(c, "l2", &bridged(), plain);
    measure_tunnel(c);
    measure_two(c, "l3", &routed(), |n| udp(n, false));
    measure_two(c, "l3_ipv6", &routed(), |n| udp(n, true));
    measure_two(c, "l3_tcp", &routed(), |n| tcp(n, false));
    measure_two(c, "l3_tcp_ipv6", &routed(), |n| tcp(n, true));
    measure_two(c, "l2", &bridged(), plain);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    targets = hit
}
criterion_main!(benches);
