//! What a change costs from the call to every worker's acknowledgement, at the size to be held:
//! 5,000 nodes, 150,000 pods, 10,000 policies, 10,000 Services with 25 endpoints each, both
//! families, 250 pods on this node; and what the whole state costs, in time and memory.
//!
//! `publish/one_*` is one object through `ControlPlane::update`, published and acknowledged by a
//! worker that runs on a thread of its own. `publish/whole` applies the whole configuration to an
//! empty switch, once. The compilers alone are in `policy` and `maglev`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use policy::service::model::{
    Endpoint as Backend, EndpointSlice, Service, ServicePort, SlicePort, family_of,
};
use switch_core::config::{Config, Endpoint, LocalNode, RemoteNode, VtepMac};
use switch_core::control::{Change, ControlPlane, Options, Pinning};
use switch_core::id::Cookie;
use wire::addr::Mac;

#[path = "support/rig.rs"]
#[allow(dead_code, reason = "the hit bench uses the rest")]
mod rig;
#[path = "policy/world.rs"]
#[allow(dead_code, reason = "the policy bench uses the rest")]
mod world;

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

/// The slice of one family; `shift` takes other pods.
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

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
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
        (resident() - before) / 1024
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
            0 => Change::PodGone(fresh.cookie.clone()),
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
    group.finish();
}

/// `publish/hits`: packets a second of flows that are known, while the state changes 0, 10 and 100
/// times a second: every flow is judged again after each change.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn hits(_: &mut Criterion) {
    const SPAN: Duration = Duration::from_secs(1);
    println!("publish/hits: packets a second, ratio to a state that stays (median of 3)");
    for flows in [1_000, 10_000, 100_000] {
        let frames: Vec<_> = rig::scattered(flows).map(|n| rig::udp(n, false)).collect();
        let mut rig = rig::Rig::new(&rig::policed(1_000), &frames, 1);
        let mut rates = [0, 10, 100].map(|rate: u32| {
            let mut seen: Vec<f64> = (0..3)
                .map(|_| {
                    let (start, mut packets, mut changes) = (Instant::now(), 0, 0);
                    while start.elapsed() < SPAN {
                        packets += rig.burst();
                        // Those due by now: coalesced, as a control plane does that falls behind.
                        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u32;
                        if due > changes {
                            changes = due;
                            rig.change();
                        }
                    }
                    f64::from(packets) / start.elapsed().as_secs_f64()
                })
                .collect();
            seen.sort_by(f64::total_cmp);
            seen[1]
        });
        let quiet = std::mem::replace(&mut rates[0], 1.0);
        println!(
            "publish/hits/{flows}: {:.2} Mpps quiet, {:.3} at 10/s, {:.3} at 100/s",
            quiet / 1e6,
            rates[1] / quiet,
            rates[2] / quiet
        );
    }
}

criterion_group!(benches, publish, hits);
criterion_main!(benches);
