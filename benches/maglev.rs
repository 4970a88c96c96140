//! `maglev/*`, `miss/service`, `compile/service`: building the table that selects backends, looking up a new
//! connection's backend in the Service table, and changing that table.
//!
//! Services have 25 endpoints on as many nodes. Keys are spread over all Services and visited in a scattered order, so
//! that a large table is measured from main memory and not from the cache. Memory is printed first: the growth of the
//! process, and the part of it that is the compiled table.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use podswitch_benches::cpu_time::CpuTime;
use podswitch_benches::memory::resident;
use podswitch_policy::maglev::{Maglev, default_size};
use podswitch_policy::service::compile::{Compiler, Settings};
use podswitch_policy::service::endpoints::Viewpoint;
use podswitch_policy::service::model::{Endpoint, EndpointSlice, Service, ServicePort, SlicePort};
use podswitch_policy::service::table::{Lookup, Origin, Prefetched, ServiceTable};
use podswitch_wire::flow_key::{Family, FlowKey, HashKey};

const KEY: HashKey = HashKey::new(0x5eed);
const ENDPOINTS: u32 = 25;

fn pod(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))
}

fn cluster_ip(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a60_0001 + n))
}

fn settings() -> Settings {
    Settings {
        view: Viewpoint { node: "node-0".into(), zone: None },
        node_addresses: vec![IpAddr::from([192, 0, 2, 1])],
        service_cidrs: vec!["10.96.0.0/12".parse().expect("a range")],
        cluster_key: KEY,
        ..Settings::default()
    }
}

fn service(n: u32) -> Arc<Service> {
    let mut service = Service::cluster_ip("bench", &format!("service-{n}"), [cluster_ip(n)]);
    service.ports = vec![ServicePort::tcp("http", 80)];
    Arc::new(service)
}

/// The slice of a Service; `shift` replaces one endpoint by another.
fn slice(n: u32, shift: u32) -> Arc<EndpointSlice> {
    let endpoint = |i: u32| {
        let i = if i == 0 { shift * ENDPOINTS } else { i };
        Endpoint::ready(pod(n * ENDPOINTS + i)).on(&format!("node-{}", i % 16))
    };
    Arc::new(EndpointSlice {
        namespace: "bench".into(),
        name: format!("slice-{n}").into(),
        service: format!("service-{n}").into(),
        family: Family::V4,
        ports: vec![SlicePort::tcp("http", 8080)],
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
    })
}

fn compiler(services: u32) -> Compiler {
    let mut compiler = Compiler::new(settings());
    for n in 0..services {
        compiler.set_service(service(n)).expect("a good Service");
        compiler.set_slice(slice(n, 0));
    }
    compiler.publish();
    compiler
}

/// Keys of pods' connections to all Services, scattered.
fn keys(services: u32, destination: impl Fn(u32) -> IpAddr) -> Vec<FlowKey> {
    let scattered = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) % services;
    (0..1 << 16)
        .filter_map(|i| {
            let port = 1024 + (i % 60_000) as u16;
            FlowKey::new(pod(i), destination(scattered(i)), 6, port, 80)
        })
        .collect()
}

fn maglev(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("maglev/build");
    for (backends, size) in
        [2, 10, 25, 100, 1000].map(|n| (n, default_size(n))).into_iter().chain([(1000, 65_537)])
    {
        let list: Vec<_> = (0..backends).map(|i| (SocketAddr::new(pod(i as u32), 80), 1)).collect();
        group.bench_function(format!("{backends}_in_{size}"), |b| {
            b.iter(|| Maglev::new(black_box(&list), size, &KEY));
        });
    }
    let weighted: Vec<_> =
        (0..25u16).map(|i| (SocketAddr::new(pod(i.into()), 80), 1 + i)).collect();
    group.bench_function("25_weighted_in_2503", |b| {
        b.iter(|| Maglev::new(black_box(&weighted), 2503, &KEY));
    });
    group.finish();
}

fn ask(table: &ServiceTable, keys: &[FlowKey]) -> usize {
    let found = |key: &&FlowKey| matches!(table.lookup(key, Origin::InCluster), Lookup::Backend(_));
    keys.iter().filter(found).count()
}

/// Looks up the keys as a worker does for a batch of misses.
fn prefetch_and_look_up(table: &ServiceTable, keys: &[FlowKey]) -> usize {
    let batch = |keys: &[FlowKey]| {
        table.prefetch(keys, &mut [Prefetched::default(); 64]);
        ask(table, keys)
    };
    keys.chunks(64).map(batch).sum()
}

fn misses(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("miss/service");
    for services in [10, 1_000, 10_000] {
        let before = resident();
        let mut compiler = compiler(services);
        let table = compiler.publish();
        report(services, resident().saturating_sub(before), &table);
        let keys_to = keys(services, cluster_ip);
        let keys_beside = keys(services, |n| pod(n * ENDPOINTS));
        group.throughput(Throughput::Elements(keys_to.len() as u64));
        group.bench_with_input(BenchmarkId::new("backend", services), &keys_to, |b, keys| {
            b.iter(|| assert_eq!(ask(&table, black_box(keys)), keys.len()));
        });
        group.bench_with_input(BenchmarkId::new("batch_of_64", services), &keys_to, |b, keys| {
            b.iter(|| assert_eq!(prefetch_and_look_up(&table, black_box(keys)), keys.len()));
        });
        group.bench_with_input(
            BenchmarkId::new("no_service", services),
            &keys_beside,
            |b, keys| {
                b.iter(|| assert_eq!(ask(&table, black_box(keys)), 0));
            },
        );
    }
    group.finish();
}

fn compile(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("compile/service");
    group.sample_size(10);
    for services in [10, 1_000, 10_000] {
        group
            .bench_function(BenchmarkId::new("whole", services), |b| b.iter(|| compiler(services)));
        let mut compiler = compiler(services);
        let mut shift = 0;
        // The previous table stays in force while the next is built.
        let mut held = compiler.publish();
        group.bench_function(BenchmarkId::new("one_endpoint", services), |b| {
            b.iter(|| {
                shift = (shift + 1) % 100;
                compiler.set_slice(slice(services / 2, shift));
                held = compiler.publish();
            });
        });
        black_box(&held);
    }
    group.finish();
}

fn report(services: u32, grown: usize, table: &ServiceTable) {
    let entries: usize = table.iter().map(|(_, entry)| entry.heap_bytes()).sum();
    let compiled = entries + table.heap_bytes();
    let endpoints = (services * ENDPOINTS) as usize;
    eprintln!(
        "{services} Services, {endpoints} endpoints: compiled {compiled} bytes ({} a Service, {} an \
         endpoint), process grew by {grown} ({} an endpoint)",
        compiled / services as usize,
        compiled / endpoints,
        grown / endpoints,
    );
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20);
    targets = maglev, misses, compile
}
criterion_main!(benches);
