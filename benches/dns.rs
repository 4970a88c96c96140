//! The cost of an answer of the cluster's DNS: from the datagram of a query in memory to the datagram of its answer,
//! with 10,000 Services of two families with three endpoints each. Queries are spread over the whole table, so that
//! each reads its Service from main memory and not from a cache.
//!
//! `answer/mix` has the queries of typical pods: A and AAAA of a name, most of them from the search list (NXDOMAIN).
//! `switched/a` is a burst of 64 queries through a switch with memory ports, from frame to frame, on one worker.
//! `publish/one_slice` changes one endpoint of one Service while the previous zone is kept, as a switch does.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use podswitch_core::config::Config;
use podswitch_dns::facts::{
    EndpointFacts, PortFacts, Protocol, ServiceFacts, ServiceKind, SliceFacts,
};
use podswitch_dns::{
    MAX_SIZE, Name, Outcome, Rcode, Settings, Transport, Zone, answer, query, record_type as rt,
};
use podswitch_policy::rule;
use podswitch_policy::service::model::{EndpointSlice, Service, ServicePort, SlicePort};
use podswitch_testkit::rig::services::{self, vip};
use podswitch_testkit::rig::{Switch, addresses as pod, framed, frames};
use podswitch_wire::flow_key::proto;

const SERVICES: u32 = 10_000;
/// A prime that divides none of the counts used here.
const STRIDE: u32 = 7_919;

fn addresses(n: u32, base: u8) -> [IpAddr; 2] {
    let [_, a, b, c] = n.to_be_bytes();
    let v6 = [0xfd00, 0, 0, u16::from(base), 0, 0, u16::from(a), u16::from_be_bytes([b, c])];
    [IpAddr::from([10, base + a, b, c]), IpAddr::from(v6)]
}

fn slice(n: u32, version: u32) -> Arc<SliceFacts> {
    let endpoint = |at| EndpointFacts {
        addresses: addresses(4 * n + at, 128).into(),
        hostname: None,
        is_ready: at != version % 3 || version == 0,
    };
    Arc::new(SliceFacts {
        namespace: format!("ns-{}", n % 100).into(),
        name: format!("service-{n}-abcde").into(),
        service: format!("service-{n}").into(),
        cluster: None,
        ports: ports(8080),
        endpoints: (0..3).map(endpoint).collect(),
    })
}

fn ports(number: u16) -> Vec<PortFacts> {
    let port = |name: &str, number| PortFacts {
        name: name.into(),
        protocol: Protocol::Tcp,
        number: Some(number),
    };
    vec![port("http", number), port("metrics", number + 1)]
}

/// One Service in eight is headless.
fn zone() -> Zone {
    let mut zone = Zone::new(Settings::default()).expect("settings");
    for n in 0..SERVICES {
        let kind = match n % 8 {
            7 => ServiceKind::Headless,
            _ => ServiceKind::ClusterIps(addresses(n, 96).into()),
        };
        let service = ServiceFacts {
            namespace: format!("ns-{}", n % 100).into(),
            name: format!("service-{n}").into(),
            kind,
            ports: ports(80),
            publish_not_ready: false,
        };
        zone.upsert_service(Arc::new(service)).expect("a Service");
        zone.upsert_slice(slice(n, 0)).expect("a slice");
    }
    zone.set_synced(true);
    zone
}

/// Numbers of Services, each once, in an order in which successive ones are far apart; either the headless ones or the
/// others.
fn spread(headless: bool) -> impl Iterator<Item = u32> {
    let all = (0..SERVICES).map(|n| n * STRIDE % SERVICES);
    all.filter(move |n| (n % 8 == 7) == headless)
}

fn named(front: &str, n: u32, qtype: u16) -> Vec<u8> {
    let text = format!("{front}service-{n}.ns-{}.svc.cluster.local", n % 100);
    query(n as u16, &Name::parse(&text).expect("a name"), qtype, Some(1232))
}

/// A query, and the expected response code.
struct Case {
    name: &'static str,
    rcode: Rcode,
    queries: Vec<Vec<u8>>,
}

fn cases() -> Vec<Case> {
    let case = |name, rcode, queries| Case { name, rcode, queries };
    let of = |front: &str, qtype| spread(false).map(|n| named(front, n, qtype)).collect();
    let reverse = |at: usize| {
        let name = |n| Name::reverse(addresses(n, 96)[at]);
        spread(false).map(|n| query(n as u16, &name(n), rt::PTR, Some(1232))).collect()
    };
    // ndots:5 sends each name of another zone through the search list first.
    let search = |n: u32, qtype| {
        let text = format!("www.example-{n}.com.ns-{}.svc.cluster.local", n % 100);
        query(n as u16, &Name::parse(&text).expect("a name"), qtype, Some(1232))
    };
    vec![
        case("a", Rcode::NoError, of("", rt::A)),
        case("aaaa", Rcode::NoError, of("", rt::AAAA)),
        case("srv", Rcode::NoError, of("_http._tcp.", rt::SRV)),
        case("ptr_ipv4", Rcode::NoError, reverse(0)),
        case("ptr_ipv6", Rcode::NoError, reverse(1)),
        case("nodata", Rcode::NoError, of("", rt::TXT)),
        case("nxdomain", Rcode::NxDomain, of("none.", rt::A)),
        case("nxdomain_search", Rcode::NxDomain, spread(false).map(|n| search(n, rt::A)).collect()),
        case("headless_a", Rcode::NoError, spread(true).map(|n| named("", n, rt::A)).collect()),
        case(
            "headless_srv",
            Rcode::NoError,
            spread(true).map(|n| named("_http._tcp.", n, rt::SRV)).collect(),
        ),
    ]
}

/// Answers one query, and checks the response code.
fn one(zone: &Zone, query: &[u8], rotation: u32, out: &mut [u8]) -> (usize, Rcode) {
    match answer(zone, query, Transport::Udp, rotation, out) {
        Outcome::Answered(it) => (it.len, it.rcode),
        other => panic!("{other:?}"),
    }
}

fn answers(criterion: &mut Criterion) {
    let zone = zone();
    let mut group = criterion.benchmark_group("answer");
    group.throughput(Throughput::Elements(1));
    let mut out = [0; MAX_SIZE];
    let mut mix = Vec::new();
    for Case { name, rcode, queries } in cases() {
        for query in &queries {
            assert_eq!(one(&zone, query, 0, &mut out).1, rcode, "{name}");
        }
        let (mut all, mut turn) = (queries.iter().cycle(), 0_u32);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                turn = turn.wrapping_add(1);
                black_box(one(&zone, all.next().expect("endless"), turn, &mut out))
            });
        });
        let share = match name {
            "a" | "aaaa" => 3,
            "nxdomain_search" => 4,
            _ => 1,
        };
        mix.extend(queries.into_iter().take(1_000 * share));
    }
    // The kinds of queries alternate.
    let len = mix.len();
    let mut at = 0;
    group.bench_function("mix", |bencher| {
        bencher.iter(|| {
            at = (at + STRIDE as usize) % len;
            black_box(one(&zone, &mix[at], at as u32, &mut out))
        });
    });
    group.finish();
}

fn changes(criterion: &mut Criterion) {
    let mut zone = zone();
    let mut group = criterion.benchmark_group("publish");
    let mut version = 0_u32;
    group.bench_function("one_slice", |bencher| {
        bencher.iter(|| {
            version = version.wrapping_add(1);
            let before = zone.clone();
            zone.upsert_slice(slice(version.wrapping_mul(STRIDE) % SERVICES, version))
                .expect("a slice");
            black_box(before)
        });
    });
    group.finish();
}

/// Frames from a pod's memory port to their answers there: reception, source checks, the Service's backend, policy, the
/// answer, transmission. Source ports differ, as those of clients do.
fn switched(criterion: &mut Criterion) {
    let (client, server) = (pod(0)[0], vip(0));
    let dns = Service {
        ports: vec![ServicePort { protocol: rule::Protocol::Udp, ..ServicePort::tcp("dns", 53) }],
        ..Service::cluster_ip("kube-system", "kube-dns", [server])
    };
    let port = SlicePort { protocol: rule::Protocol::Udp, ..SlicePort::tcp("dns", 53) };
    let slice = EndpointSlice {
        namespace: "kube-system".into(),
        ports: vec![port],
        ..services::slice("kube-dns", 0, &[1])
    };
    let config = Config {
        services: vec![Arc::new(dns)],
        slices: vec![Arc::new(slice)],
        zone: Some(Arc::new(zone())),
        ..services::config(&[])
    };
    let mut switch = Switch::new(&config);
    let frames: Vec<Vec<u8>> = spread(false)
        .enumerate()
        .map(|(at, n)| {
            let ports = (1024 + (at as u16 % 60_000), 53);
            let udp = frames::udp(client, server, ports, &named("", n, rt::A));
            framed(0, &frames::ip(client, server, proto::UDP, 64, None, &udp))
        })
        .collect();
    let mut group = criterion.benchmark_group("switched");
    const BURST: usize = 64;
    group.throughput(Throughput::Elements(BURST as u64));
    let (mut all, mut asked) = (frames.iter().cycle(), 0);
    group.bench_function("a", |bencher| {
        bencher.iter(|| {
            asked += BURST as u64;
            for _ in 0..BURST {
                switch.ends[0].send_frame(all.next().expect("endless")).expect("room");
            }
            switch.workers[0].poll(switch.now);
            let mut answers = 0;
            while let Some(answer) = switch.ends[0].recv() {
                switch.ends[0].recycle(answer);
                answers += 1;
            }
            assert_eq!(answers, BURST);
        });
    });
    // None of them was an ICMP error, or the backend's.
    assert_eq!(switch.count(|counters| counters.names.rcodes[0].get()), asked, "NOERROR");
    group.finish();
}

criterion_group!(benches, answers, switched, changes);
criterion_main!(benches);
