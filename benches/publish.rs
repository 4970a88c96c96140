//! The cost of a change from the call to every worker's acknowledgement, at the target size:
//! 5,000 nodes, 150,000 pods, 10,000 policies, 10,000 Services with 25 endpoints each, both
//! families, 250 pods on this node; and the cost of the whole state, in time and memory.
//!
//! `publish/one_*` is one object through `ControlPlane::update`, published and acknowledged by a
//! worker that runs on a thread of its own. `publish/whole` applies the whole configuration to an
//! empty switch, once. The compilers alone are in `policy` and `maglev`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use podswitch_benches::cpu_time;
use podswitch_benches::rig;
use podswitch_benches::world;
use podswitch_core::config::{
    Config, Endpoint, LocalNode, PortConfig, PortRole, RemoteNode, VtepMac,
};
use podswitch_core::control::{Change, ControlPlane, Options, Pinning};
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::packet::BATCH;
use podswitch_core::stats::WorkerCounters;
use podswitch_policy::rule::{Labels, Namespace, Protocol};
use podswitch_policy::service::model::{
    Endpoint as Backend, EndpointSlice, Service, ServicePort, SlicePort, family_of,
};
use podswitch_wire::addr::Mac;

use podswitch_benches::memory::resident;

const POLICIES: usize = 10_000;
const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 25;

fn vips(number: usize) -> [IpAddr; 2] {
    let v4 = Ipv4Addr::from(0x0b00_0000 + number as u32);
    let v6 = Ipv6Addr::from((0xfd96 << 112) + number as u128);
    [v4.into(), v6.into()]
}

fn service(number: usize) -> Arc<Service> {
    let mut service = Service::cluster_ip("shop", &format!("svc{number}"), vips(number));
    service.ports = vec![ServicePort::tcp("http", 80)];
    Arc::new(service)
}

/// The slice of one family; `shift` selects other pods.
fn slice(number: usize, family: usize, shift: usize) -> Arc<EndpointSlice> {
    let backend = |n: usize| {
        let pod = (number * ENDPOINTS + n + shift) % world::PODS;
        let node = format!("node{}", pod % world::NODES);
        Backend::ready(world::pod_addresses(pod)[family]).on(&node)
    };
    Arc::new(EndpointSlice {
        namespace: "shop".into(),
        name: format!("svc{number}-{family}").into(),
        service: format!("svc{number}").into(),
        family: family_of(vips(0)[family]),
        ports: vec![SlicePort::tcp("http", 8080)],
        endpoints: (0..ENDPOINTS).map(backend).collect(),
    })
}

fn pod(number: usize) -> Arc<Endpoint> {
    let pod = world::pod(number);
    Arc::new(Endpoint {
        cookie: Cookie::new(pod.cookie.clone()),
        workload: pod.workload,
        node: pod.node,
        attachment: None,
        precedence: Default::default(),
    })
}

fn node(number: usize) -> Arc<RemoteNode> {
    let n = number as u32;
    let [_, a, b, c] = n.to_be_bytes();
    Arc::new(RemoteNode {
        cookie: Cookie::new(format!("Node/node{number}")),
        name: format!("node{number}").into(),
        labels: Default::default(),
        addresses: vec![Ipv4Addr::from(0xc612_0000 + n).into()],
        pod_cidrs: vec![
            format!("10.{b}.{c}.0/24").parse().expect("a range"),
            format!("fd00:0:0:{n:x}::/64").parse().expect("a range"),
        ],
        vtep: VtepMac { ipv4: Mac([0x0e, 0x58, 1, a, b, c]), ipv6: None },
        underlay_mac: Mac([0x0a, 0x58, 1, a, b, c]),
        precedence: Default::default(),
    })
}

fn config() -> Config {
    let namespaces = world::namespaces().map(Arc::new).collect();
    Config {
        node: LocalNode {
            name: "node0".into(),
            addresses: vec![Ipv4Addr::from(0xc612_0000).into()],
            ..LocalNode::default()
        },
        endpoints: (0..world::PODS).map(pod).collect(),
        namespaces,
        policies: (0..POLICIES).map(|n| Arc::new(world::network_policy(n))).collect(),
        services: (0..SERVICES).map(service).collect(),
        slices: (0..SERVICES).flat_map(|n| [slice(n, 0, 0), slice(n, 1, 0)]).collect(),
        service_cidrs: vec!["11.0.0.0/8".parse().expect("a range")],
        nodes: (1..world::NODES).map(node).collect(),
        ..Config::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn publish(criterion: &mut Criterion) {
    let config = config();
    let options = Options { pinning: Pinning::None, ..Options::default() };
    let mut control = ControlPlane::new(options);
    control.set_workers(1).expect("a worker");
    let (before, start) = (resident(), Instant::now());
    let epoch = control.apply(&config).expect("a good state");
    control.wait(epoch, Duration::from_secs(60)).expect("acknowledged");
    println!(
        "publish/whole: {:.2} s, {} MiB more resident (compiled state; the objects were there)",
        start.elapsed().as_secs_f64(),
        resident().saturating_sub(before) >> 20
    );

    let mut group = criterion.benchmark_group("publish");
    group.sample_size(20);
    let mut run = |name: &str, mut changes: Box<dyn FnMut(usize) -> Change>| {
        let mut turn = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                turn += 1;
                let epoch = control.update([changes(turn)]).expect("a good change");
                control.wait(epoch, Duration::from_secs(10)).expect("acknowledged");
            });
        });
    };
    run("one_pod_labels", {
        let versions = [pod(77), {
            let mut other = (*pod(77)).clone();
            other.workload.labels = other.workload.labels.with("revision", "2");
            Arc::new(other)
        }];
        Box::new(move |turn| Change::Pod(versions[turn % 2].clone()))
    });
    run("one_pod_comes_and_goes", {
        let fresh = {
            let mut fresh = (*pod(world::PODS)).clone();
            fresh.workload.addresses = vec![Ipv4Addr::new(100, 64, 0, 1).into()];
            Arc::new(fresh)
        };
        Box::new(move |turn| match turn % 2 {
            0 => Change::PodDeleted(fresh.cookie.clone()),
            _ => Change::Pod(fresh.clone()),
        })
    });
    run("one_policy", {
        let whole = world::network_policy(POLICIES / 2);
        let mut less = whole.clone();
        less.ingress.iter_mut().for_each(|rules| rules.truncate(1));
        let versions = [Arc::new(whole), Arc::new(less)];
        Box::new(move |turn| Change::Policy(versions[turn % 2].clone()))
    });
    run("one_service", {
        let mut sticky = (*service(5000)).clone();
        sticky.affinity = Some(100);
        let versions = [service(5000), Arc::new(sticky)];
        Box::new(move |turn| Change::Service(versions[turn % 2].clone()))
    });
    run("one_endpoint", {
        let versions = [slice(5000, 0, 0), slice(5000, 0, 1)];
        Box::new(move |turn| Change::Slice(versions[turn % 2].clone()))
    });
    run("one_node", {
        let mut moved = (*node(77)).clone();
        moved.addresses = vec![Ipv4Addr::new(198, 19, 255, 1).into()];
        let versions = [node(77), Arc::new(moved)];
        Box::new(move |turn| Change::Node(versions[turn % 2].clone()))
    });
    run("one_namespace", {
        let namespace = Namespace { name: "idle".into(), labels: Labels::default() };
        let namespace = Arc::new(namespace);
        Box::new(move |turn| match turn % 2 {
            0 => Change::NamespaceDeleted(namespace.name.clone()),
            _ => Change::Namespace(namespace.clone()),
        })
    });
    run("one_port", {
        let port = PortConfig { port: PortId(9), role: PortRole::Pod };
        Box::new(move |turn| match turn % 2 {
            0 => Change::PortDeleted(port.port),
            _ => Change::Port(port.clone()),
        })
    });
    // The address moves from one pod to the other and back.
    group.bench_function("one_address_contested", |bencher| {
        let newer = {
            let mut newer = (*pod(77)).clone();
            newer.cookie = Cookie::new("Pod/shop/newer");
            newer.precedence.created = 1;
            Arc::new(newer)
        };
        let mut turn = 0;
        bencher.iter(|| {
            turn += 1;
            let change = match turn % 2 {
                0 => Change::PodDeleted(newer.cookie.clone()),
                _ => Change::Pod(newer.clone()),
            };
            let published = control.update_lenient([change]).expect("a good change");
            assert_eq!(published.left_out.is_empty(), turn % 2 == 0);
            control.wait(published.epoch, Duration::from_secs(10)).expect("acknowledged");
        });
        control.update_lenient([Change::PodDeleted(newer.cookie.clone())]).expect("a good change");
    });
    // The whole configuration, with one changed object.
    group.bench_function("whole_with_one_changed", |bencher| {
        let mut config = config.clone();
        let versions = [pod(77), {
            let mut other = (*pod(77)).clone();
            other.workload.labels = other.workload.labels.with("revision", "2");
            Arc::new(other)
        }];
        let mut turn = 0;
        control.apply(&config).expect("a good state");
        bencher.iter(|| {
            turn += 1;
            config.endpoints[77] = versions[turn % 2].clone();
            let epoch = control.apply(&config).expect("a good state");
            control.wait(epoch, Duration::from_secs(10)).expect("acknowledged");
        });
    });
    group.finish();
}

/// Address of the Service that one flow uses.
const IDLE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);

/// The second pod behind an address.
fn idle(affinity: bool) -> Arc<Service> {
    let mut service = Service::cluster_ip("bench", "idle", [IDLE.into()]);
    service.ports = vec![ServicePort { protocol: Protocol::Udp, ..ServicePort::tcp("", 53) }];
    service.affinity = affinity.then_some(100);
    Arc::new(service)
}

fn through_idle() -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([0x0a, 0x58, 10, 1, 0, 0], rig::GATEWAY)
        .ipv4([10, 1, 0, 0], IDLE.octets(), 64)
        .udp(4000, 53)
        .write(&mut frame, &[0; 18])
        .expect("fits");
    frame
}

/// Flows between two pods, and one through a Service.
fn known(flows: usize, v6: bool, workers: usize) -> rig::Rig {
    let mut config = rig::policed(1_000);
    config.services = vec![idle(false)];
    config.slices = vec![Arc::new(EndpointSlice {
        namespace: "bench".into(),
        name: "idle".into(),
        service: "idle".into(),
        family: family_of(IDLE.into()),
        ports: vec![SlicePort { protocol: Protocol::Udp, ..SlicePort::tcp("", 53) }],
        endpoints: vec![Backend::ready([10, 1, 0, 1].into())],
    })];
    let frames = rig::scattered(flows).map(|n| rig::udp(n, v6));
    let frames: Vec<_> = frames.chain((0..workers).map(|_| through_idle())).collect();
    let first = rig::answer(&frames[0]);
    // Only its backend could reply for the Service.
    let answer = |frame: &[u8]| match frame == through_idle() {
        true => first.clone(),
        false => rig::answer(frame),
    };
    rig::Rig::answered(&config, &frames, workers, answer)
}

/// The kinds of changes, which alternate.
type Changes = fn(u32) -> Change;

/// A namespace without pods.
fn nobodys(turn: u32) -> Change {
    let namespace = Namespace { name: "idle".into(), labels: Labels::default() };
    match turn.is_multiple_of(2) {
        true => Change::NamespaceDeleted(namespace.name),
        false => Change::Namespace(Arc::new(namespace)),
    }
}

/// The Service that one flow uses.
fn of_one(turn: u32) -> Change {
    Change::Service(idle(!turn.is_multiple_of(2)))
}

/// A label of the pod that sends all flows.
fn of_all(turn: u32) -> Change {
    let mut pod = (*rig::policed(1).endpoints[0]).clone();
    if !turn.is_multiple_of(2) {
        pod.workload.labels = pod.workload.labels.with("turn", "odd");
    }
    Change::Pod(Arc::new(pod))
}

/// Packets of the first worker per second of its processor time, while the state changes `rate`
/// times a second. The time of publishing is charged to the control plane's thread.
fn packets(rig: &mut rig::Rig, rate: u32, changes: Changes) -> f64 {
    const SPAN: Duration = Duration::from_millis(500);
    let (now, control) = (rig.now, &mut rig.control);
    let [first, others @ ..] = &mut rig.workers[..] else { unreachable!("one at least") };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for other in others {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    other.poll(now);
                }
            });
        }
        let (mut spent, mut polls, mut made) = (Duration::ZERO, 0, 0);
        while spent < SPAN {
            let start = cpu_time::now();
            for _ in 0..16 {
                first.poll(now);
            }
            spent += cpu_time::now() - start;
            polls += 16;
            if (spent.as_secs_f64() * f64::from(rate)) as u32 > made {
                made += 1;
                control.update([changes(made)]).expect("a good change");
            }
        }
        stop.store(true, Relaxed);
        f64::from(polls) * BATCH as f64 / spent.as_secs_f64()
    })
}

/// `publish/hits`: packets of known flows while the state changes 10 and 100 times a second,
/// relative to a state that does not change: the median of five such pairs. The changes affect none
/// of the flows, one of them, or all.
fn hits(_: &mut Criterion) {
    println!("publish/hits: packets a second, ratio to a state that stays (median of 5)");
    let kinds: [(&str, Changes); 3] = [("none", nobodys), ("one", of_one), ("all", of_all)];
    for (name, v6, workers) in [("", false, 1), ("_ipv6", true, 1), ("_2_workers", false, 2)] {
        for flows in [1_000, 100_000] {
            let mut rig = known(flows, v6, workers);
            for (kind, changes) in kinds {
                let mut quiet = 0.0;
                let ratios = [10, 100].map(|rate| {
                    let pair = |_| {
                        quiet = packets(&mut rig, 0, changes);
                        packets(&mut rig, rate, changes) / quiet
                    };
                    let mut seen: Vec<f64> = (0..5).map(pair).collect();
                    seen.sort_by(f64::total_cmp);
                    seen[2]
                });
                println!(
                    "publish/hits{name}/{flows}/{kind}: {:.2} Mpps quiet, {:.3} at 10/s, {:.3} at 100/s",
                    quiet / 1e6,
                    ratios[0],
                    ratios[1]
                );
            }
            let sum = |of: fn(&WorkerCounters) -> u64| -> u64 {
                rig.control.workers().map(|worker| of(&worker.counters)).sum()
            };
            let (kept, reevaluated) = (sum(|c| c.kept.get()), sum(|c| c.rederived.get()));
            println!(
                "publish/hits{name}/{flows}: {kept} times a flow was kept, {reevaluated} re-evaluated"
            );
        }
    }
}

criterion_group!(benches, publish, hits);
criterion_main!(benches);
