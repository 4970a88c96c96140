//! The source against an in-memory API server: what it publishes and when, and how it handles
//! server faults.
#![allow(clippy::disallowed_methods, reason = "tests wait")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podswitch_core::control::{Change, ControlPlane, LeftOut};
use podswitch_core::id::Epoch;
use podswitch_kubernetes::Kind;
use podswitch_kubernetes_api::{ApiOptions, ApiSource};
use podswitch_kubernetes_api_testkit::{
    ApiServer, Certificate, World, eventually, kubeconfig, kubeconfig_tls,
};
use podswitch_node::cni::ViewError;
use podswitch_node::source::{Followed, Source, StateSink};
use podswitch_node::{
    Meters, NodeError, ObjectCounts, PodName, Probes, State, StateChanges, Stats,
};
use serde_json::{Value, json};

/// The states that a node received.
struct Sink {
    control: ControlPlane,
    wholes: usize,
    updates: usize,
    objects: BTreeSet<String>,
}

impl Sink {
    fn start(state: &State) -> Self {
        let control = ControlPlane::new(podswitch_core::control::Options::default());
        let mut sink = Self { control, wholes: 0, updates: 0, objects: BTreeSet::new() };
        sink.take(state);
        sink
    }

    fn take(&mut self, state: &State) {
        let config = &state.config;
        let pods = config.endpoints.iter().map(|pod| pod.cookie.to_string());
        let policies = config.policies.iter().map(|policy| policy.cookie.to_string());
        let services = config.services.iter().map(|service| format!("Service/{}", service.name));
        self.objects = pods.chain(policies).chain(services).collect();
        self.control.apply_lenient(config).expect("a valid state");
        self.wholes += 1;
    }

    fn has(&self, object: &str) -> bool {
        self.objects.contains(object)
    }
}

impl StateSink for Sink {
    fn apply_state(&mut self, state: State) -> Result<Epoch, NodeError> {
        self.take(&state);
        Ok(self.control.snapshot().epoch)
    }

    fn update_state(&mut self, changes: StateChanges) -> Result<Epoch, NodeError> {
        for change in &changes.objects {
            let known = &mut self.objects;
            // Whether it was there already is not asked.
            let _ = match change {
                Change::Pod(pod) => known.insert(pod.cookie.to_string()),
                Change::PodDeleted(pod) => known.remove(pod.as_str()),
                Change::Policy(policy) => known.insert(policy.cookie.to_string()),
                Change::PolicyDeleted(policy) => known.remove(&**policy),
                Change::Service(it) => known.insert(format!("Service/{}", it.name)),
                Change::ServiceDeleted(name) => known.remove(&format!("Service/{name}")),
                _ => false,
            };
        }
        self.updates += 1;
        Ok(self.control.update_lenient(changes.objects)?.epoch)
    }

    fn left_out(&self) -> Vec<LeftOut> {
        self.control.left_out()
    }
}

fn node(name: &str, last: u8) -> Value {
    json!({
        "metadata": { "name": name, "managedFields": [{ "manager": "kubelet" }] },
        "spec": { "podCIDRs": [format!("10.244.{last}.0/24")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.0.2.{last}") }] },
    })
}

fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": { "nodeName": node, "containers": [{ "ports": [{ "name": "http", "containerPort": 80 }] }] },
        "status": { "phase": "Running", "podIPs": [{ "ip": address }] },
    })
}

fn policy(name: &str, from: &Value) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "podSelector": {}, "ingress": [{ "from": [from] }] },
    })
}

/// A cluster of two nodes with a pod each.
fn cluster() -> Arc<World> {
    let world = Arc::new(World::default());
    world.put(Kind::Namespace, json!({ "metadata": { "name": "default" } }));
    world.put(Kind::Node, node("n1", 1));
    world.put(Kind::Node, node("n2", 2));
    world.put(Kind::Pod, pod("here", "n1", "10.244.1.2"));
    world.put(Kind::Pod, pod("there", "n2", "10.244.2.2"));
    world
}

struct Rig {
    folder: tempfile::TempDir,
    server: Option<ApiServer>,
    world: Arc<World>,
}

impl Rig {
    fn new() -> Self {
        let (folder, world) = (tempfile::tempdir().expect("a folder"), cluster());
        let server = ApiServer::start(world.clone());
        kubeconfig(&folder.path().join("kubeconfig"), &server.url(), None);
        Self { folder, server: Some(server), world }
    }

    fn server(&self) -> &ApiServer {
        self.server.as_ref().expect("it runs")
    }

    fn stop_server(&mut self) -> SocketAddr {
        self.server.take().expect("it runs").stop()
    }

    fn start_server(&mut self, address: SocketAddr) {
        self.server = Some(ApiServer::start_at(self.world.clone(), address).expect("it is free"));
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn options(&self) -> ApiOptions {
        let mut options = ApiOptions::new("n1");
        options.kubeconfig = Some(self.folder.path().join("kubeconfig"));
        options.run_dir = Some(self.run_dir());
        options
    }

    fn open(&self) -> ApiSource {
        ApiSource::open(self.options()).expect("credentials")
    }

    fn started(&self) -> (ApiSource, Sink) {
        started(self.open())
    }
}

fn started(mut source: ApiSource) -> (ApiSource, Sink) {
    let until = Instant::now() + Duration::from_secs(30);
    let mut why = String::new();
    let state = source.first_state(&mut |text| {
        text.clone_into(&mut why);
        std::thread::sleep(Duration::from_millis(5));
        Instant::now() < until
    });
    let state = state.expect("a state").unwrap_or_else(|| panic!("{why}"));
    let sink = Sink::start(&state);
    (source, sink)
}

/// Pods that the last changes in force added, changed and removed.
fn pods(source: &ApiSource) -> (usize, usize, usize) {
    let of_pods = source.object_changes().of(Kind::Pod);
    (of_pods.added, of_pods.changed, of_pods.removed)
}

/// Follows until `what` holds.
#[track_caller]
fn follow(source: &mut ApiSource, sink: &mut Sink, text: &str, what: impl Fn(&Sink) -> bool) {
    eventually(text, || {
        source.follow(sink, false).expect("a good state");
        what(sink)
    });
}

#[test]
fn the_first_state_is_complete_and_then_only_changes_are_published() {
    let rig = Rig::new();
    rig.world.put(
        Kind::NetworkPolicy,
        policy("blocks", &json!({ "ipBlock": { "cidr": "10.0.0.0/8" } })),
    );
    let (mut source, mut sink) = rig.started();
    assert!(sink.has("Pod/default/here") && sink.has("NetworkPolicy/default/blocks"));
    assert!(!sink.has("Pod/default/there"), "no policy has peers: only this node's pods");
    assert_eq!(source.watches_all_pods(), Some(false));
    assert!(!source.is_stale());

    rig.world.put(Kind::Pod, pod("new", "n1", "10.244.1.3"));
    follow(&mut source, &mut sink, "a pod", |sink| sink.has("Pod/default/new"));
    assert_eq!(pods(&source), (1, 0, 0), "what was there at the start does not count");
    rig.world.put(Kind::Pod, pod("new", "n1", "10.244.1.4"));
    let before = sink.updates;
    follow(&mut source, &mut sink, "its address", |sink| sink.updates > before);
    assert_eq!(pods(&source), (0, 1, 0));
    rig.world.delete(Kind::Pod, "default/new");
    follow(&mut source, &mut sink, "its end", |sink| !sink.has("Pod/default/new"));
    assert_eq!(pods(&source), (0, 0, 1));
    let whole_by_annotation = sink.wholes;
    // The annotations that this node writes itself are not a change.
    eventually("annotations", || {
        source.follow(&mut sink, false).expect("a good state");
        let node = rig.world.get(Kind::Node, "n1").expect("it is there");
        node["metadata"]["annotations"]["podswitch.io/vtep-mac"] == "0e:58:c0:00:02:01"
            && node["metadata"]["annotations"]["podswitch.io/public-address"] == "192.0.2.1"
    });
    assert_eq!(sink.wholes, whole_by_annotation);
    assert_eq!(source.follow(&mut sink, false).expect("nothing"), Followed::Unchanged);
    // A burst is coalesced.
    let before = sink.updates;
    for number in 0..100 {
        rig.world.put(
            Kind::Pod,
            pod(&format!("b{number}"), "n1", &format!("10.244.1.{}", 100 + number)),
        );
    }
    follow(&mut source, &mut sink, "a burst", |sink| sink.has("Pod/default/b99"));
    assert!(sink.updates - before < 50, "{} publishes of 100 pods", sink.updates - before);
}

#[test]
fn changes_without_effect_are_not_published() {
    let rig = Rig::new();
    let (mut source, mut sink) = rig.started();
    let mut same = pod("here", "n1", "10.244.1.2");
    same["metadata"]["managedFields"] = json!([{ "manager": "somebody" }]);
    same["status"]["startTime"] = json!("2026-11-30T00:00:00Z");
    rig.world.put(Kind::Pod, same);
    rig.world.put(Kind::Pod, pod("mark", "n1", "10.244.1.9"));
    follow(&mut source, &mut sink, "the mark", |sink| sink.has("Pod/default/mark"));
    assert!(sink.updates <= 2 && sink.wholes == 1, "{} {}", sink.updates, sink.wholes);
}

#[test]
fn a_policy_with_peers_widens_the_watch_and_waits_for_all_pods() {
    let rig = Rig::new();
    let (mut source, mut sink) = rig.started();
    rig.world.put(Kind::NetworkPolicy, policy("peers", &json!({ "podSelector": {} })));
    follow(&mut source, &mut sink, "the policy", |sink| {
        let has_policy = sink.has("NetworkPolicy/default/peers");
        assert!(
            !has_policy || sink.has("Pod/default/there"),
            "it was published before the pods that it allows"
        );
        has_policy
    });
    assert_eq!(source.watches_all_pods(), Some(true));
    rig.world.put(Kind::Pod, pod("far", "n2", "10.244.2.3"));
    follow(&mut source, &mut sink, "a pod elsewhere", |sink| sink.has("Pod/default/far"));
    assert_eq!(sink.wholes, 1, "all of it by single changes");
    // A start with such a policy lists all pods at once.
    drop(source);
    let (source, sink) = rig.started();
    assert!(sink.has("Pod/default/far") && sink.has("NetworkPolicy/default/peers"));
    assert_eq!(source.watches_all_pods(), Some(true));
}

#[test]
fn a_watch_resumes_after_a_disconnect_and_lists_again_after_410() {
    let rig = Rig::new();
    let (mut source, mut sink) = rig.started();
    let lists = |rig: &Rig| {
        let requests = rig.world.requests();
        let is_list = |t: &str| t.starts_with("/api/v1/pods") && !t.contains("watch=1");
        requests.iter().filter(|request| is_list(&request.target)).count()
    };
    assert_eq!(lists(&rig), 1);
    rig.server().cut();
    rig.world.put(Kind::Pod, pod("cut", "n1", "10.244.1.3"));
    follow(&mut source, &mut sink, "after the cut", |sink| sink.has("Pod/default/cut"));
    assert_eq!(lists(&rig), 1, "it went on where it was");
    // While the source is not polled, a pod is deleted and the history is forgotten.
    let address = rig.server().address();
    let mut rig = rig;
    rig.stop_server();
    rig.world.delete(Kind::Pod, "default/cut");
    rig.world.put(Kind::Pod, pod("late", "n1", "10.244.1.4"));
    rig.world.compact();
    rig.start_server(address);
    follow(&mut source, &mut sink, "after 410", |sink| {
        sink.has("Pod/default/late") && !sink.has("Pod/default/cut")
    });
    assert!(sink.has("Pod/default/here"), "a pod in both lists stays");
    assert!(lists(&rig) >= 2);
    assert_eq!(sink.wholes, 1);
}

#[test]
fn a_bookmark_spares_a_list() {
    let rig = Rig::new();
    let (mut source, mut sink) = rig.started();
    let pods = |rig: &Rig, watches: bool| {
        let requests = rig.world.requests().into_iter().map(|request| request.target);
        let of_pods = requests.filter(|target| target.starts_with("/api/v1/pods"));
        of_pods.filter(|target| target.contains("watch=1") == watches).collect::<Vec<_>>()
    };
    // No pod changes: only bookmarks tell the watch of pods the new version.
    rig.world.put(Kind::Namespace, json!({ "metadata": { "name": "other" } }));
    let other = rig.world.get(Kind::Namespace, "other").expect("it is there");
    let version = |text: &str| text.parse::<u64>().expect("a version");
    let new = version(other["metadata"]["resourceVersion"].as_str().expect("it has one"));
    let mut pause = Duration::from_millis(300);
    eventually("a watch of pods from the new version", || {
        rig.server().cut();
        // The source waits longer after each cut, and then for a bookmark.
        pause = (pause * 2).min(Duration::from_secs(8));
        std::thread::sleep(pause);
        source.follow(&mut sink, false).expect("a good state");
        let last = pods(&rig, true).pop().expect("a watch");
        last.rsplit_once("resourceVersion=").is_some_and(|(_, text)| version(text) >= new)
    });
    rig.world.forget(new);
    rig.server().cut();
    rig.world.put(Kind::Pod, pod("after", "n1", "10.244.1.3"));
    follow(&mut source, &mut sink, "after the cut", |sink| sink.has("Pod/default/after"));
    assert_eq!(pods(&rig, false).len(), 1, "the history before is not needed");
}

#[test]
fn an_event_directly_before_an_error_is_not_lost() {
    let rig = Rig::new();
    let (mut source, mut sink) = rig.started();
    rig.world.fail_watch(500);
    rig.world.put(Kind::Pod, pod("before", "n1", "10.244.1.3"));
    follow(&mut source, &mut sink, "before the error", |sink| sink.has("Pod/default/before"));
    rig.world.put(Kind::Pod, pod("after", "n1", "10.244.1.4"));
    follow(&mut source, &mut sink, "after the error", |sink| sink.has("Pod/default/after"));
}

#[test]
fn a_start_without_an_api_server_loads_the_last_good_state_and_follows_when_one_returns() {
    let mut rig = Rig::new();
    rig.world.put(Kind::NetworkPolicy, policy("peers", &json!({ "podSelector": {} })));
    let (mut source, mut sink) = rig.started();
    rig.world.put(Kind::Pod, pod("later", "n2", "10.244.2.9"));
    follow(&mut source, &mut sink, "a change", |sink| sink.has("Pod/default/later"));
    // The change is saved before the next poll.
    source.follow(&mut sink, false).expect("nothing");
    drop(source);
    let address = rig.stop_server();
    eventually("it is on disk", || {
        std::fs::read_to_string(rig.run_dir().join("state"))
            .is_ok_and(|text| text.contains("Pod/default/later"))
    });
    rig.world.delete(Kind::Pod, "default/later");
    let began = Instant::now();
    let (mut source, mut sink) = rig.started();
    assert!(began.elapsed() >= Duration::from_secs(5), "not before the timeout");
    assert!(source.is_stale());
    for object in [
        "Pod/default/here",
        "Pod/default/there",
        "Pod/default/later",
        "NetworkPolicy/default/peers",
    ] {
        assert!(sink.has(object), "{object}");
    }
    rig.start_server(address);
    follow(&mut source, &mut sink, "what vanished meanwhile", |sink| {
        !sink.has("Pod/default/later")
    });
    assert!(!source.is_stale());
    assert!(sink.has("Pod/default/there"));
}

#[test]
fn servers_are_tried_in_turn() {
    let mut rig = Rig::new();
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    let second = ApiServer::start(rig.world.clone());
    let mut options = rig.options();
    options.servers = vec![format!("http://{dead}"), second.url()];
    let (mut source, mut sink) = started(ApiSource::open(options).expect("credentials"));
    // The current server stops; that of the kubeconfig remains.
    drop(second);
    rig.world.put(Kind::Pod, pod("third", "n1", "10.244.1.3"));
    follow(&mut source, &mut sink, "by another server", |sink| sink.has("Pod/default/third"));
    rig.stop_server();
    for bad in ["ftp://192.0.2.1", "https://", "192.0.2.1:6443", "https://a b"] {
        let mut options = rig.options();
        options.servers = vec![bad.into()];
        let error = ApiSource::open(options).expect_err(bad).to_string();
        assert!(error.contains("servers") && error.contains(bad), "{error}");
    }
}

#[test]
fn endpoints_of_the_api_server_are_saved() {
    let rig = Rig::new();
    rig.world.put(
        Kind::EndpointSlice,
        json!({
            "metadata": { "name": "kubernetes", "namespace": "default" }, "addressType": "IPv4",
            "endpoints": [{ "addresses": ["192.0.2.7"], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": 6443, "protocol": "TCP" }],
        }),
    );
    let (_source, _sink) = rig.started();
    let kept = std::fs::read_to_string(rig.run_dir().join("api-servers")).expect("it is kept");
    assert_eq!(kept, "192.0.2.7:6443");
}

#[test]
fn a_replaced_token_is_read_again() {
    let rig = Rig::new();
    let token = rig.folder.path().join("token");
    std::fs::write(&token, "first").expect("it can be written");
    kubeconfig(&rig.folder.path().join("kubeconfig"), &rig.server().url(), Some(&token));
    rig.world.set_token(Some("first"));
    let (mut source, mut sink) = rig.started();
    std::fs::write(&token, "second").expect("it can be written");
    rig.world.set_token(Some("second"));
    rig.server().cut();
    rig.world.put(Kind::Pod, pod("after", "n1", "10.244.1.3"));
    // kube reads the file each minute. After a refusal it is read at once, before this test times
    // out.
    follow(&mut source, &mut sink, "with the new token", |sink| sink.has("Pod/default/after"));
}

#[test]
fn a_replaced_authority_and_token_are_read_again() {
    let mut rig = Rig::new();
    rig.stop_server();
    let (first, second) = (Certificate::default(), Certificate::default());
    let (authority, token) = (rig.folder.path().join("ca.crt"), rig.folder.path().join("token"));
    std::fs::write(&authority, first.pem()).expect("it can be written");
    std::fs::write(&token, "first").expect("it can be written");
    rig.world.set_token(Some("first"));
    let server = ApiServer::start_tls(rig.world.clone(), first);
    let file = rig.folder.path().join("kubeconfig");
    kubeconfig_tls(&file, &server.url(), Some(&token), &authority);
    let (mut source, mut sink) = rig.started();
    // The server is given both first, as when an administrator rotates them in the wrong order.
    server.set_certificate(second.clone());
    rig.world.set_token(Some("second"));
    server.cut();
    rig.world.put(Kind::Pod, pod("untrusted", "n1", "10.244.1.3"));
    eventually("the certificate is refused", || {
        source.follow(&mut sink, false).expect("a good state");
        source.stale_for() > Duration::ZERO
    });
    assert!(!sink.has("Pod/default/untrusted") && sink.has("Pod/default/here"));
    // kube reads both files each minute. After a refusal they are read at once, before this test
    // times out.
    std::fs::write(&authority, second.pem()).expect("it can be written");
    std::fs::write(&token, "second").expect("it can be written");
    rig.world.put(Kind::Pod, pod("after", "n1", "10.244.1.4"));
    follow(&mut source, &mut sink, "with the new ones", |sink| {
        sink.has("Pod/default/after") && sink.has("Pod/default/untrusted")
    });
    eventually("it is up to date", || {
        source.follow(&mut sink, false).expect("a good state");
        source.stale_for() == Duration::ZERO
    });
}

#[test]
fn a_bad_object_is_left_out_with_an_event_and_blocks_no_other() {
    let rig = Rig::new();
    let (mut source, mut sink) = rig.started();
    rig.world.put(Kind::NetworkPolicy, policy("bad", &json!({ "ipBlock": { "cidr": 7 } })));
    rig.world.put(Kind::NetworkPolicy, policy("unknown", &json!({ "newPeer": {} })));
    let mut broken = pod("broken", "n1", "10.244.1.300");
    broken["spec"]["containers"] = json!("none");
    rig.world.put(Kind::Pod, broken);
    rig.world.put(Kind::Pod, pod("good", "n1", "10.244.1.3"));
    follow(&mut source, &mut sink, "the good one", |sink| {
        sink.has("Pod/default/good") && sink.has("NetworkPolicy/default/bad")
    });
    assert!(!sink.has("Pod/default/broken"));
    let events = || {
        let requests = rig.world.requests();
        let events =
            requests.into_iter().filter(|r| r.method == "POST" && r.target.ends_with("/events"));
        events.map(|request| request.body).collect::<Vec<_>>()
    };
    // Records are collected once a second: those of the policies may be present before that of the
    // pod.
    eventually("two Events, and a record of each of the three", || {
        source.follow(&mut sink, false).expect("a good state");
        let counts = source.counts();
        events().len() >= 2 && (counts.closed, counts.left_out) == (2, 1)
    });
    let bad = events().into_iter().find(|event| event["involvedObject"]["name"] == "bad");
    let bad = bad.expect("an Event of it");
    assert_eq!(bad["reason"], "PolicyClosed");
    assert_eq!(bad["involvedObject"]["kind"], "NetworkPolicy");
    assert_eq!(bad["involvedObject"]["uid"], "uid-default/bad");
    assert!(
        bad["message"]
            .as_str()
            .is_some_and(|text| text.contains("spec.ingress[0].from[0].ipBlock.cidr")),
        "{bad}"
    );
    // Once corrected, the policy is in force as written.
    rig.world
        .put(Kind::NetworkPolicy, policy("bad", &json!({ "ipBlock": { "cidr": "10.0.0.0/8" } })));
    rig.world.delete(Kind::NetworkPolicy, "default/unknown");
    eventually("no fault", || {
        source.follow(&mut sink, false).expect("a good state");
        source.counts().closed == 0
    });
}

#[test]
fn what_only_the_switch_leaves_out_has_an_event_and_is_counted() {
    let rig = Rig::new();
    let balanced = |name: &str| {
        json!({
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": "LoadBalancer", "clusterIP": "None", "ports": [{ "port": 80 }] },
            "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.9" }] } },
        })
    };
    let address = |last: u8| json!(format!("10.96.0.{last}"));
    let (mut first, mut second) = (balanced("first"), balanced("second"));
    (first["spec"]["clusterIP"], second["spec"]["clusterIP"]) = (address(1), address(2));
    rig.world.put(Kind::Service, first);
    rig.world.put(Kind::Service, second);
    // The switch leaves this one out as well, because it was given as refused.
    rig.world.put(Kind::NetworkPolicy, policy("bad", &json!({ "ipBlock": { "cidr": 7 } })));
    let (mut source, mut sink) = rig.started();
    let named = |source: &ApiSource, name: &str| {
        let records = source.records().iter().filter(|record| record.object.as_str() == name);
        records.map(ToString::to_string).collect::<Vec<_>>()
    };
    source.add_left_out(&sink);
    assert_eq!(named(&source, "Service/default/second").len(), 1, "with the first state");
    assert_eq!(named(&source, "NetworkPolicy/default/bad").len(), 1, "not once more");
    let events = || {
        let requests = rig.world.requests();
        let events =
            requests.into_iter().filter(|r| r.method == "POST" && r.target.ends_with("/events"));
        events.map(|request| request.body).collect::<Vec<_>>()
    };
    eventually("two Events, and counts", || {
        source.follow(&mut sink, false).expect("a good state");
        let counts = source.counts();
        events().len() >= 2 && (counts.closed, counts.fields_left_out) == (1, 1)
    });
    let of_second = |event: &Value| event["involvedObject"]["name"] == "second";
    let event = events().into_iter().find(of_second).expect("an Event of it");
    assert_eq!(event["involvedObject"]["uid"], "uid-default/second");
    assert_eq!((&event["reason"], &event["type"]), (&json!("FieldLeftOut"), &json!("Warning")));
    let text = event["message"].as_str().unwrap_or_default();
    assert!(text.contains("203.0.113.9") && text.contains("default/first"), "{text}");
    // What it conflicts with is gone.
    rig.world.delete(Kind::Service, "default/first");
    eventually("nothing is left out", || {
        source.follow(&mut sink, false).expect("a good state");
        source.counts().fields_left_out == 0
    });
    assert_eq!(events().len(), 2);
}

#[test]
fn optional_kinds_may_be_missing_and_required_ones_may_not() {
    let rig = Rig::new();
    rig.world.serve_kind(Kind::ClusterNetworkPolicy, false);
    rig.world.serve_kind(Kind::ServiceCidr, false);
    let (_source, sink) = rig.started();
    assert!(sink.has("Pod/default/here"));
    rig.world.serve_kind(Kind::NetworkPolicy, false);
    let (mut source, mut why) = (rig.open(), String::new());
    let until = Instant::now() + Duration::from_secs(4);
    let state = source.first_state(&mut |text| {
        if text.contains("networkpolicies") {
            text.clone_into(&mut why);
        }
        std::thread::sleep(Duration::from_millis(5));
        Instant::now() < until
    });
    assert!(state.expect("no error").is_none());
    assert!(why.contains("networkpolicies"), "{why}");
}

#[test]
fn a_refused_request_is_retried() {
    let rig = Rig::new();
    for code in [500, 429, 403, 410] {
        rig.world.refuse(code);
    }
    let (_source, sink) = rig.started();
    assert!(sink.has("Pod/default/here"));
}

#[test]
fn a_node_waits_for_its_object_and_keeps_its_state_if_it_is_deleted() {
    let rig = Rig::new();
    rig.world.delete(Kind::Node, "n1");
    let (mut source, mut waited) = (rig.open(), String::new());
    let until = Instant::now() + Duration::from_secs(30);
    let state = source.first_state(&mut |why| {
        if why.contains("Node object") && waited.is_empty() {
            why.clone_into(&mut waited);
            rig.world.put(Kind::Node, node("n1", 1));
        }
        std::thread::sleep(Duration::from_millis(5));
        Instant::now() < until
    });
    let mut sink = Sink::start(&state.expect("no error").expect("it came"));
    assert!(waited.contains("n1"), "{waited}");
    rig.world.delete(Kind::Node, "n1");
    eventually("it is refused", || source.follow(&mut sink, false).is_err());
    assert!(sink.has("Pod/default/here"));
}

#[test]
fn the_view_gets_a_pod_that_the_watch_does_not_have() {
    let mut rig = Rig::new();
    let (source, _sink) = rig.started();
    let view = source.view();
    let (here, soon) =
        (PodName::new("default", "here").unwrap(), PodName::new("default", "new").unwrap());
    // The source is not polled meanwhile: events of the watch are not processed.
    let at = |seconds| Instant::now() + Duration::from_secs(seconds);
    let facts = view.pod(&here, Some("uid-default/here"), at(0)).expect("it is known");
    assert_eq!(facts.labels.get("app"), Some("here"));
    assert_eq!(facts.ports.len(), 1);
    assert_eq!(view.pod(&soon, None, at(0)), Err(ViewError::Unknown));
    let mut without_address = pod("new", "n1", "");
    without_address["status"] = json!({ "phase": "Pending" });
    rig.world.put(Kind::Pod, without_address);
    let facts = view.pod(&soon, Some("uid-default/new"), at(10)).expect("by GET");
    assert_eq!(facts.uid.as_deref(), Some("uid-default/new"));
    let other = view.pod(&soon, Some("another"), at(1));
    assert_eq!(other, Err(ViewError::OtherUid("uid-default/new".into())));

    view.report_addresses(
        &soon,
        Some("uid-default/new"),
        &["10.244.1.7".parse().unwrap(), "fd00::7".parse().unwrap()],
    );
    eventually("the annotation", || {
        let pod = rig.world.get(Kind::Pod, "default/new").expect("it is there");
        pod["metadata"]["annotations"]["podswitch.io/addresses"] == "10.244.1.7,fd00::7"
    });
    let patch = rig
        .world
        .requests()
        .into_iter()
        .find(|request| request.method == "PATCH" && request.target.contains("pods"));
    assert_eq!(patch.expect("it was sent").body["metadata"]["uid"], "uid-default/new");
    rig.stop_server();
    std::thread::sleep(Duration::from_secs(3));
    let gone = view.pod(&PodName::new("default", "gone").unwrap(), None, at(1));
    assert!(matches!(gone, Err(ViewError::Away(_))), "{gone:?}");
}

#[test]
fn peers_take_an_address_from_the_annotation_first() {
    let rig = Rig::new();
    rig.world.put(Kind::NetworkPolicy, policy("peers", &json!({ "podSelector": {} })));
    let mut early = pod("early", "n2", "");
    early["status"] = json!({ "phase": "Pending" });
    early["metadata"]["annotations"] = json!({ "podswitch.io/addresses": "10.244.2.50" });
    rig.world.put(Kind::Pod, early.clone());
    let (mut source, mut sink) = rig.started();
    assert!(sink.has("Pod/default/early"));
    // A claim to the address of a live pod does not take the address away.
    let mut thief = early;
    thief["metadata"]["name"] = json!("thief");
    thief["metadata"]["uid"] = Value::Null;
    thief["metadata"]["annotations"] = json!({ "podswitch.io/addresses": "10.244.2.2" });
    rig.world.put(Kind::Pod, thief);
    rig.world.put(Kind::Pod, pod("mark", "n1", "10.244.1.9"));
    follow(&mut source, &mut sink, "the mark", |sink| sink.has("Pod/default/mark"));
    assert!(sink.has("Pod/default/there") && !sink.has("Pod/default/thief"));
}

#[test]
fn probes_succeed_whatever_happens_to_the_api_server() {
    let mut rig = Rig::new();
    let mut options = rig.options();
    let (probes, meters) = (Probes::default(), Meters::default());
    (options.probes, options.meters) = (probes.clone(), meters.clone());
    let source = ApiSource::open(options).expect("credentials");
    assert!(!probes.is_ready());
    let (mut source, mut sink) = started(source);
    source.follow(&mut sink, false).expect("nothing");
    assert!(probes.is_alive() && probes.is_ready());
    eventually("it has an API server", || source.stale_for() == Duration::ZERO);
    rig.stop_server();
    source.follow(&mut sink, false).expect("nothing");
    assert!(probes.is_alive() && probes.is_ready());
    eventually("it has none", || source.stale_for() > Duration::ZERO);
    // Each kind's watch notices it separately.
    eventually("a watch that began again", || {
        let text = Stats::default().to_prometheus(&ObjectCounts::default(), &meters);
        text.contains("podswitch_watch_restarts_total{kind=\"pods\"} ")
    });
}
