//! The API server as source at the target size: 5,000 nodes, 150,000 pods, 10,000 Services with 250,000 endpoints in
//! 10,000 slices, 10,000 policies with pod peers. An API server in memory, in a process of its own, provides them by
//! list and watch over HTTP. Pods have about 3 KB each, as after kubelet has updated their status.
//!
//! Prints the time from the start to the first publish, the memory of the process, and for single changes the time from
//! the moment at which the server receives the change to the workers' acknowledgement. Not a criterion bench, because a
//! start cannot be repeated in one process.
//!
//!     cargo bench -p podswitch-benches --features kubernetes --bench api

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podswitch_benches::memory::resident;
use podswitch_core::control::{ControlPlane, LeftOut, Options, Pinning};
use podswitch_core::id::Epoch;
use podswitch_kubernetes::Kind;
use podswitch_kubernetes_api::{ApiOptions, ApiSource};
use podswitch_kubernetes_api_testkit::{ApiServer, World, kubeconfig};
use podswitch_linux::NetNs;
use podswitch_node::source::{Followed, Source, StateSink};
use podswitch_node::{Node, NodeError, NodeOptions, PodInterfaces, State, StateChanges};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const NODES: usize = 5_000;
const PODS: usize = 150_000;
const SERVICES: usize = 10_000;
const POLICIES: usize = 10_000;
const NAMESPACES: usize = 1_000;
const ENDPOINTS: usize = 25;
/// Number of changes of each kind that are measured.
const CHANGES: usize = 100;
/// Longer than the time for which changes are collected into one publish.
const QUIET: Duration = Duration::from_millis(60);

/// A field that an API server sends and the switch does not read.
const MANAGED: &str = concat!(
    r#""managedFields":[{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1","time":"2026-11-30T05:05:29Z","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:pod-template-hash":{},"f:tier":{}},"f:ownerReferences":{".":{},"k:{\"uid\":\"0f6e0d52-8f0a-4a3c-9d55-6d4f4f1f2d11\"}":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"main\"}":{".":{},"f:image":{},"f:imagePullPolicy":{},"f:name":{},"f:ports":{".":{},"k:{\"containerPort\":8080,\"protocol\":\"TCP\"}":{".":{},"f:containerPort":{},"f:name":{},"f:protocol":{}}},"f:resources":{".":{},"f:limits":{".":{},"f:cpu":{},"f:memory":{}},"f:requests":{".":{},"f:cpu":{},"f:memory":{}}},"f:terminationMessagePath":{},"f:terminationMessagePolicy":{}}},"f:dnsPolicy":{},"f:enableServiceLinks":{},"f:restartPolicy":{},"f:schedulerName":{},"f:securityContext":{},"f:terminationGracePeriodSeconds":{}}}},"#,
    r#"{"manager":"kubelet","operation":"Update","apiVersion":"v1","time":"2026-11-30T05:05:31Z","fieldsType":"FieldsV1","fieldsV1":{"f:status":{"f:conditions":{"k:{\"type\":\"ContainersReady\"}":{".":{},"f:lastProbeTime":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Initialized\"}":{".":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Ready\"}":{".":{},"f:status":{},"f:type":{}}},"f:containerStatuses":{},"f:hostIP":{},"f:phase":{},"f:podIP":{},"f:podIPs":{".":{},"k:{\"ip\":\"10.0.0.2\"}":{".":{},"f:ip":{}}},"f:startTime":{}}},"subresource":"status"}]"#
);

fn pod_address(number: usize) -> String {
    let (node, at) = (number % NODES, number / NODES);
    format!("10.{}.{}.{}", node / 256, node % 256, at + 2)
}

fn pod(number: usize, version: usize) -> String {
    let (address, node) = (pod_address(number), number % NODES);
    format!(
        r#"{{"metadata":{{"name":"app-{number}-7c9f8d6b5f-x2x9q","generateName":"app-{number}-7c9f8d6b5f-","namespace":"ns{}","uid":"0f6e0d52-8f0a-4a3c-9d55-{number:012}","resourceVersion":"{number}","creationTimestamp":"2026-11-30T05:05:29Z","labels":{{"app":"app{}","tier":"t{}","version":"v{version}","pod-template-hash":"7c9f8d6b5f"}},"annotations":{{"kubectl.kubernetes.io/restartedAt":"2026-11-29T00:00:00Z"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"app-{number}-7c9f8d6b5f","uid":"0f6e0d52-8f0a-4a3c-9d55-6d4f4f1f2d11","controller":true,"blockOwnerDeletion":true}}],{MANAGED}}},"spec":{{"nodeName":"node{node}","serviceAccountName":"default","restartPolicy":"Always","dnsPolicy":"ClusterFirst","schedulerName":"default-scheduler","volumes":[{{"name":"kube-api-access-8x7x2","projected":{{"sources":[{{"serviceAccountToken":{{"expirationSeconds":3607,"path":"token"}}}},{{"configMap":{{"name":"kube-root-ca.crt","items":[{{"key":"ca.crt","path":"ca.crt"}}]}}}}],"defaultMode":420}}}}],"containers":[{{"name":"main","image":"registry.example.com/shop/app:1.2.3","ports":[{{"name":"http","containerPort":8080,"protocol":"TCP"}}],"resources":{{"limits":{{"cpu":"1","memory":"512Mi"}},"requests":{{"cpu":"100m","memory":"128Mi"}}}},"volumeMounts":[{{"name":"kube-api-access-8x7x2","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}}]}}],"tolerations":[{{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}}]}},"status":{{"phase":"Running","hostIP":"198.18.{}.{}","podIP":"{address}","podIPs":[{{"ip":"{address}"}}],"conditions":[{{"type":"Ready","status":"True","lastTransitionTime":"2026-11-30T05:05:31Z"}}],"containerStatuses":[{{"name":"main","ready":true,"restartCount":0,"image":"registry.example.com/shop/app:1.2.3","imageID":"registry.example.com/shop/app@sha256:0f6e0d528f0a4a3c9d556d4f4f1f2d110f6e0d528f0a4a3c9d556d4f4f1f2d11","started":true}}],"startTime":"2026-11-30T05:05:29Z","qosClass":"Burstable"}}}}"#,
        number % NAMESPACES,
        number % 50,
        number % 7,
        node / 256,
        node % 256,
    )
}

fn node(number: usize) -> String {
    let (a, b) = (number / 256, number % 256);
    format!(
        r#"{{"metadata":{{"name":"node{number}","creationTimestamp":"2026-11-30T05:05:29Z","labels":{{"kubernetes.io/hostname":"node{number}","topology.kubernetes.io/zone":"z{}"}},"annotations":{{"podswitch.io/public-address":"198.18.{a}.{b}"}},{MANAGED}}},"spec":{{"podCIDR":"10.{a}.{b}.0/24","podCIDRs":["10.{a}.{b}.0/24"]}},"status":{{"addresses":[{{"type":"InternalIP","address":"198.18.{a}.{b}"}},{{"type":"Hostname","address":"node{number}"}}],"conditions":[{{"type":"Ready","status":"True"}},{{"type":"NetworkUnavailable","status":"False"}}]}}}}"#,
        number % 3,
    )
}

fn namespace(number: usize) -> String {
    format!(
        r#"{{"metadata":{{"name":"ns{number}","labels":{{"kubernetes.io/metadata.name":"ns{number}","team":"team{}"}}}}}}"#,
        number % 20
    )
}

fn policy(number: usize, version: usize) -> String {
    format!(
        r#"{{"metadata":{{"name":"policy{number}","namespace":"ns{}",{MANAGED}}},"spec":{{"podSelector":{{"matchLabels":{{"app":"app{}"}}}},"policyTypes":["Ingress"],"ingress":[{{"from":[{{"namespaceSelector":{{"matchLabels":{{"team":"team{}"}}}},"podSelector":{{"matchLabels":{{"tier":"t{}"}}}}}}],"ports":[{{"protocol":"TCP","port":"http"}},{{"protocol":"TCP","port":{}}}]}}]}}}}"#,
        number % NAMESPACES,
        number % 50,
        number % 20,
        number % 7,
        9000 + version % 1000,
    )
}

fn service(number: usize) -> String {
    format!(
        r#"{{"metadata":{{"name":"svc{number}","namespace":"ns{}","creationTimestamp":"2026-11-30T05:05:29Z",{MANAGED}}},"spec":{{"type":"ClusterIP","clusterIP":"172.20.{}.{}","clusterIPs":["172.20.{}.{}"],"selector":{{"app":"app{}"}},"ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":"http"}}],"sessionAffinity":"None","internalTrafficPolicy":"Cluster"}}}}"#,
        number % NAMESPACES,
        number / 250,
        number % 250 + 1,
        number / 250,
        number % 250 + 1,
        number % 50,
    )
}

fn slice(number: usize, version: usize) -> String {
    let endpoints: Vec<String> = (0..ENDPOINTS)
        .map(|at| (number * ENDPOINTS + at + version) % PODS)
        .map(|pod| {
            let (address, namespace) = (pod_address(pod), pod % NAMESPACES);
            format!(
                r#"{{"addresses":["{address}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node{}","targetRef":{{"kind":"Pod","namespace":"ns{namespace}","name":"app-{pod}-7c9f8d6b5f-x2x9q"}}}}"#,
                pod % NODES
            )
        })
        .collect();
    format!(
        r#"{{"metadata":{{"name":"svc{number}-abcde","namespace":"ns{}","labels":{{"kubernetes.io/service-name":"svc{number}"}}}},"addressType":"IPv4","endpoints":[{}],"ports":[{{"name":"http","protocol":"TCP","port":8080}}]}}"#,
        number % NAMESPACES,
        endpoints.join(",")
    )
}

/// The server's process: prints its address, then changes one object for each line of its input.
fn serve() {
    let world = Arc::new(World::default());
    world.generate(Kind::Namespace, NAMESPACES, namespace);
    world.generate(Kind::Node, NODES, node);
    world.generate(Kind::Pod, PODS, |number| pod(number, 0));
    world.generate(Kind::NetworkPolicy, POLICIES, |number| policy(number, 0));
    world.generate(Kind::Service, SERVICES, service);
    world.generate(Kind::EndpointSlice, SERVICES, |number| slice(number, 0));
    let server = ApiServer::start(world.clone());
    println!("{}", server.url());
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let mut words = line.split(' ');
        let sort = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let (kind, text) = match sort {
            "pod" => (Kind::Pod, pod(number(), number())),
            "policy" => (Kind::NetworkPolicy, policy(number(), number())),
            "slice" => (Kind::EndpointSlice, slice(number(), number())),
            _ => continue,
        };
        world.put(kind, serde_json::from_str(&text).expect("it is JSON"));
    }
}

/// The receiver of the states: a node with a worker, or without privilege the control plane with one worker.
enum Sink {
    Node(Box<Node>),
    Control(Box<ControlPlane>),
}

impl StateSink for Sink {
    fn apply_state(&mut self, state: State) -> Result<Epoch, NodeError> {
        match self {
            Self::Node(node) => node.apply(state),
            Self::Control(control) => {
                let epoch = control.apply_lenient(&state.config)?.epoch;
                control.wait(epoch, Duration::from_secs(60))?;
                Ok(epoch)
            }
        }
    }

    fn update_state(&mut self, changes: StateChanges) -> Result<Epoch, NodeError> {
        match self {
            Self::Node(node) => node.update_state(changes),
            Self::Control(control) => {
                let epoch = control.update_lenient(changes.objects)?.epoch;
                control.wait(epoch, Duration::from_secs(60))?;
                Ok(epoch)
            }
        }
    }

    fn left_out(&self) -> Vec<LeftOut> {
        match self {
            Self::Node(node) => node.left_out(),
            Self::Control(control) => control.left_out(),
        }
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn main() {
    if std::env::args().any(|argument| argument == "--serve") {
        return serve();
    }
    if std::env::args().any(|argument| argument == "--test") {
        // Skipped in `cargo test --benches`, because it takes more than a minute.
        return;
    }
    let program = std::env::current_exe().expect("it has a path");
    let mut child = Command::new(program)
        .arg("--serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts again");
    let (mut orders, answers) =
        (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    let _server = Server(child);
    let mut url = String::new();
    BufReader::new(answers).read_line(&mut url).expect("its address");

    let folder = std::env::temp_dir().join(format!("podswitch-bench-api-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    kubeconfig(&folder.join("kubeconfig"), url.trim(), None);
    let mut options = ApiOptions::new("node0");
    options.kubeconfig = Some(folder.join("kubeconfig"));
    options.run_dir = Some(folder.join("run"));
    options.write_status = false;

    let start = Instant::now();
    let mut source = ApiSource::open(options).expect("credentials");
    let state = source.first_state(&mut |_| {
        std::thread::sleep(Duration::from_millis(1));
        true
    });
    let state = state.expect("a good state").expect("nobody stopped it");
    println!(
        "api/listed: {:.2} s, {} MiB resident",
        start.elapsed().as_secs_f64(),
        resident() >> 20
    );
    let (pods, policies) = (state.config.endpoints.len(), state.config.policies.len());
    assert_eq!((pods, policies, state.config.services.len()), (PODS, POLICIES, SERVICES));
    assert_eq!(state.config.nodes.len() + 1, NODES);
    let mut sink = match NetNs::anonymous() {
        Ok(namespace) => {
            let options = NodeOptions::new("node0").namespace(namespace).lenient(true);
            Sink::Node(Box::new(Node::start(options, state).expect("a node")))
        }
        Err(error) => {
            println!("api: without a node of its own ({error}): the control plane with one worker");
            let options = Options { pinning: Pinning::None, ..Options::default() };
            let mut control = ControlPlane::new(options);
            control.set_workers(1).expect("a worker");
            let mut sink = Sink::Control(Box::new(control));
            sink.apply_state(state).expect("a good state");
            sink
        }
    };
    println!(
        "api/first_publish: {:.2} s, {} MiB resident",
        start.elapsed().as_secs_f64(),
        resident() >> 20
    );
    println!("api/peak: {}", peak());
    // Waits until the work that follows the start is done.
    for _ in 0..200 {
        source.follow(&mut sink, false).expect("a good state");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("api/settled: {} MiB resident", resident() >> 20);

    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for turn in 1..=CHANGES {
        for sort in ["pod", "policy", "slice"] {
            // A different object each time. Of the pods, 1 in 5,000 would be on this node.
            let number = turn * 37;
            std::thread::sleep(QUIET);
            while source.follow(&mut sink, false).expect("a good state") != Followed::Unchanged {}
            let start = Instant::now();
            writeln!(orders, "{sort} {number} {turn}").expect("it runs");
            loop {
                match source.follow(&mut sink, false).expect("a good state") {
                    Followed::Applied(_) => break,
                    _ => wait(&source),
                }
                assert!(start.elapsed() < Duration::from_secs(30), "{sort} {number} does not come");
            }
            times.entry(sort).or_default().push(start.elapsed());
        }
    }
    for (sort, times) in &mut times {
        times.sort_unstable();
        let at =
            |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        println!(
            "api/one_{sort}: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, from the change at the server to the acknowledgement",
            at(0.5),
            at(0.9),
            at(0.99)
        );
    }
    println!("api/end: {} MiB resident, {}", resident() >> 20, peak());
    if let Sink::Node(node) = sink {
        node.stop(PodInterfaces::Remove).expect("it stops");
    }
    let _ = std::fs::remove_dir_all(&folder);
}

/// Like the loop of `vswitch run`.
fn wait(source: &ApiSource) {
    let pause = source.next_check();
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(pause.subsec_nanos()) };
    let Some(fd) = source.wake_fd() else { return };
    let _ = poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::IN)], Some(&timeout));
}

/// The maximum resident memory, as the kernel reports it.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
