//! The cost of a changed Kubernetes object from its arrival as JSON to every worker's
//! acknowledgement, at the target size: 5,000 nodes, 150,000 pods, 10,000 policies, 10,000 Services
//! with 25 endpoints each, both families. The target is 5 ms.
//!
//! `objects/one_*`: `Object::from_json`, `Store::upsert`, `Store::take_changes` and a `Node` in a
//! network namespace of its own. Included are the worker's acknowledgement and the routes, steering
//! and masquerading in the node's kernel. `objects/read_one_*` is the part without the node.
//! `objects/reload_*`: one object changed in manifests of about 100 MB, read again by `Files::load`.
//! The cost of reading everything is printed, too.
//!
//! Needs root or a user namespace.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group};
use podswitch_kubernetes::{Files, Object, Store};
use podswitch_linux::NetNs;
use podswitch_linux::userns::ensure_privilege;
use podswitch_node::{ClusterOptions, Node, NodeOptions, PodAttachment, PodName, State};
use serde_json::{Value, json};

const NODES: usize = 5_000;
const PODS: usize = 150_000;
const NAMESPACES: usize = 500;
const POLICIES: usize = 10_000;
const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 25;
/// The Service that has a node port.
const NODE_PORT: usize = 6000;
/// A pod of this node, and one that is attached to it.
const OWN: usize = NODES;
const ATTACHED: usize = 2 * NODES;

fn address(pod: usize) -> [String; 2] {
    let (node, n) = (pod % NODES, pod / NODES);
    [
        format!("10.{}.{}.{}", 64 + node / 256, node % 256, 10 + n),
        format!("fd00:0:{node:x}::{:x}", 10 + n),
    ]
}

fn meta(name: String, namespace: usize) -> Value {
    json!({"name": name, "namespace": format!("n{}", namespace % NAMESPACES),
        "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1"})
}

fn pod(number: usize, revision: usize) -> Value {
    let mut meta = meta(format!("p{number}"), number);
    meta["labels"] = json!({"app": format!("a{}", number % 1000), "tier": format!("x{}", number % 7), "revision": revision.to_string()});
    let [v4, v6] = address(number);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta,
        "spec": {"nodeName": format!("node{}", number % NODES), "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]}})
}

fn node(number: usize, last: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node{number}")},
        "spec": {"podCIDRs": [format!("10.{}.{}.0/24", 64 + number / 256, number % 256), format!("fd00:0:{number:x}::/64")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.{}.{}.{last}", 16 + number / 256, number % 256)}]}})
}

fn policy(number: usize, port: usize) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta(format!("pol{number}"), number),
        "spec": {"podSelector": {"matchLabels": {"app": format!("a{}", number % 1000)}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": format!("t{}", number % 50)}},
                    "podSelector": {"matchLabels": {"tier": format!("x{}", number % 7)}}},
                    {"ipBlock": {"cidr": "192.0.2.0/24", "except": [format!("192.0.2.{}/32", number % 250)]}}],
                "ports": [{"protocol": "TCP", "port": port}]}],
            "egress": [{"to": [{"podSelector": {}}]}]}})
}

fn service(number: usize, affinity: bool) -> Value {
    let node_port = (number == NODE_PORT).then_some(30_000 + u16::from(affinity));
    json!({"apiVersion": "v1", "kind": "Service", "metadata": meta(format!("svc{number}"), number),
        "spec": {"clusterIPs": [format!("11.0.{}.{}", number / 256, number % 256), format!("fd96::{number:x}")],
            "sessionAffinity": if affinity { "ClientIP" } else { "None" },
            "type": if number == NODE_PORT { "NodePort" } else { "ClusterIP" },
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": node_port}]}})
}

fn slice(number: usize, family: usize, shift: usize) -> Value {
    let mut meta = meta(format!("svc{number}-{family}"), number);
    meta["labels"] = json!({"kubernetes.io/service-name": format!("svc{number}")});
    let endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|n| {
            let pod = (number * ENDPOINTS + n + shift) % PODS;
            json!({"addresses": [address(pod)[family]], "conditions": {"ready": true},
                "nodeName": format!("node{}", pod % NODES),
                "targetRef": {"kind": "Pod", "namespace": format!("n{}", pod % NAMESPACES), "name": format!("p{pod}")}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta,
        "addressType": if family == 0 { "IPv4" } else { "IPv6" }, "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints})
}

fn write_list(folder: &Path, name: &str, items: impl Iterator<Item = Value>) {
    let items: Vec<_> = items.collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    fs::write(folder.join(name), list.to_string()).expect("a file");
}

/// The whole cluster as manifests.
fn write(folder: &Path) {
    let namespaces = (0..NAMESPACES).map(|n| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("n{n}"), "labels": {"team": format!("t{}", n % 50)}}})
    });
    write_list(folder, "0-nodes.json", namespaces.chain((0..NODES).map(|n| node(n, 1))));
    for part in 0..15 {
        let pods = (part * 10_000..(part + 1) * 10_000).map(|n| pod(n, 0));
        write_list(folder, &format!("1-pods{part:02}.json"), pods);
    }
    write_list(folder, "2-policies.json", (0..POLICIES).map(|n| policy(n, 1000)));
    write_list(folder, "3-services.json", (0..SERVICES).map(|n| service(n, false)));
    for part in 0..10 {
        let slices =
            (part * 1000..(part + 1) * 1000).flat_map(|n| [slice(n, 0, 0), slice(n, 1, 0)]);
        write_list(folder, &format!("4-slices{part}.json"), slices);
    }
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "k"}, "spec": {"cidrs": ["11.0.0.0/8", "fd96::/112"]}});
    write_list(folder, "5-cidr.json", [range].into_iter());
}

struct Cluster {
    files: Files,
    store: Store,
    node: Node,
    cluster: ClusterOptions,
}

impl Cluster {
    /// Applies the changes.
    fn publish(&mut self) {
        let changes = self.store.take_changes();
        let applied = self.node.update_state(self.cluster.changes(changes));
        applied.expect("a good change");
    }
}

/// Reads the manifests and applies the state.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn start(folder: &Path) -> Cluster {
    let mut files = Files::new(folder);
    let mut store = Store::new(Some("node0"), podswitch_kubernetes::Options::default());
    let begun = Instant::now();
    let loading = files.load(&mut store).expect("readable");
    let read = begun.elapsed();
    let compiled = store.compiled();
    let compile = begun.elapsed() - read;
    drop(store.take_changes());
    assert!(compiled.refused().next().is_none(), "{:?}", compiled.refused().next());
    let options = NodeOptions::new("node0").namespace(NetNs::anonymous().expect("privilege"));
    let begun = Instant::now();
    let node = Node::start(options, State::from(compiled)).expect("a good state");
    let start = begun.elapsed();
    let bytes: u64 = fs::read_dir(folder)
        .expect("the folder")
        .map(|entry| entry.and_then(|entry| entry.metadata()).map_or(0, |metadata| metadata.len()))
        .sum();
    println!(
        "objects/whole: {} objects, {} MB read in {:.2} s, whole state in {:.2} s, in force in {:.2} s",
        loading.objects,
        bytes / 1_000_000,
        read.as_secs_f64(),
        compile.as_secs_f64(),
        start.as_secs_f64()
    );
    Cluster { files, store, node, cluster: ClusterOptions::default() }
}

fn objects(criterion: &mut Criterion) {
    let folder = std::env::temp_dir().join(format!("podswitch-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    write(&folder);
    let mut cluster = start(&folder);

    let of_node = address(ATTACHED).map(|address| address.parse().expect("an address"));
    let name = PodName::new(&format!("n{}", ATTACHED % NAMESPACES), &format!("p{ATTACHED}"));
    let namespace = NetNs::anonymous().expect("privilege");
    let attachment = PodAttachment::new(name.expect("a name"), namespace, of_node);
    cluster.node.add_pod(attachment).expect("attached");
    let outside = |number: usize, last: usize| {
        let mut pod = pod(number, 0);
        let address = format!("198.51.100.{last}");
        pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        pod
    };
    let labelled = |mut object: Value, value: &str| {
        object["metadata"]["labels"] = json!({"team": "t1", "revision": value});
        object
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n1"}});

    let kinds: [(&str, [Value; 2]); 14] = [
        ("own_pod_labels", [pod(OWN, 1), pod(OWN, 2)]),
        ("own_pod_address", [outside(OWN, 3), outside(OWN, 4)]),
        ("attached_pod_labels", [pod(ATTACHED, 1), pod(ATTACHED, 2)]),
        ("outside_pod", [outside(78, 1), outside(78, 2)]),
        ("namespace", [labelled(namespace.clone(), "1"), labelled(namespace, "2")]),
        ("node_port", [service(NODE_PORT, false), service(NODE_PORT, true)]),
        ("own_node_labels", [labelled(node(0, 1), "1"), labelled(node(0, 1), "2")]),
        ("node_range", {
            let mut other = node(79, 1);
            other["spec"]["podCIDRs"] = json!(["10.250.79.0/24"]);
            [node(79, 1), other]
        }),
        ("pod_labels", [pod(77, 1), pod(77, 2)]),
        ("policy", [policy(5000, 1001), policy(5000, 1002)]),
        ("service", [service(5000, false), service(5000, true)]),
        ("endpoint", [slice(5000, 0, 0), slice(5000, 0, 1)]),
        ("node", [node(77, 1), node(77, 2)]),
        // A newer pod gets the address of one that terminates.
        ("address", {
            let mut old = pod(77, 0);
            let mut new = pod(77, 0);
            new["metadata"]["name"] = json!("newcomer");
            new["metadata"]["deletionTimestamp"] = json!("2026-02-01T00:00:00Z");
            old["metadata"]["name"] = json!("newcomer");
            old["metadata"]["creationTimestamp"] = json!("2026-03-01T00:00:00Z");
            [old, new]
        }),
    ];
    let mut group = criterion.benchmark_group("objects");
    group.sample_size(20);
    for (name, versions) in &kinds {
        let texts = versions.each_ref().map(Value::to_string);
        cluster.store.upsert(&Object::from_json(&texts[0]).expect("an object"));
        cluster.publish();
        let mut turn = 0;
        group.bench_function(format!("one_{name}"), |bencher| {
            bencher.iter(|| {
                turn += 1;
                let object = Object::from_json(&texts[turn % 2]).expect("an object");
                cluster.store.upsert(&object);
                cluster.publish();
            });
        });
        group.bench_function(format!("read_one_{name}"), |bencher| {
            bencher.iter(|| {
                turn += 1;
                let object = Object::from_json(&texts[turn % 2]).expect("an object");
                cluster.store.upsert(&object);
                cluster.store.take_changes()
            });
        });
        // Reports again the changes that did not reach the control plane.
        cluster.store.upsert(&Object::from_json(&texts[0]).expect("an object"));
        let _ = cluster.store.take_changes();
    }
    let mut turn = 0;
    group.bench_function("reload_one_policy", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                turn += 1;
                let changed = |n| policy(n, if n == 0 { 2000 + turn % 2 } else { 1000 });
                write_list(&folder, "2-policies.json", (0..POLICIES).map(changed));
                #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
                let begun = Instant::now();
                let loading = cluster.files.load(&mut cluster.store).expect("readable");
                assert_eq!(loading.objects, 1);
                cluster.publish();
                spent += begun.elapsed();
            }
            spent
        });
    });
    group.finish();
    fs::remove_dir_all(&folder).expect("removed");
}

criterion_group!(benches, objects);

fn main() {
    ensure_privilege().expect("namespaces need privilege");
    benches();
    Criterion::default().configure_from_args().final_summary();
}
