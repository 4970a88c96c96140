//! Switches whose supervisor starts them again when they end: `--stay` and `--wait`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_linux::handover::Listener;
use podswitch_testkit::require_privilege;
use podswitch_vswitch_testkit::cluster::{Fabric, Node, put, serve, tcp, try_tcp};
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, RunDir};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

const PORT: u16 = 8080;

#[test]
fn a_replaced_switch_stays_until_none_runs() {
    require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap", "tap"]);
    let folder = Folder::new();
    put(&folder, &[node.manifest()]);
    let run_dir = RunDir::new(&node.name);
    let flags = ["--run-dir", &run_dir.0, "--wait", "--take-over", "--stay", "--keep"];
    let start = || -> Running {
        let running = node.start(&folder, &flags);
        running.event("ready");
        running
    };
    let [x, y] = &node.pods[..] else { panic!("two pods") };
    serve(&y.ns, PORT);
    let connects = || tcp(&x.ns, y.addresses[0], PORT, 100_000);

    // Each stays while the next one runs, and ends on SIGTERM.
    let mut first = start();
    let mut second = start();
    connects();
    let third = start();
    assert!(first.is_running() && second.is_running());
    assert_eq!(second.stop(), Some(0));
    // Time in which it would look twice.
    thread::sleep(Duration::from_secs(2));
    assert!(first.is_running(), "the third one runs");
    connects();

    // None runs: the first one wants to be started again.
    third.signal(Signal::KILL);
    assert_eq!(first.ends(), Some(1));
    let again = start();
    connects();
    assert_eq!(again.stop(), Some(0));
}

/// The running switch refuses to hand over, as one in another PID namespace does, or ends before it has: with `--wait` the
/// new one goes on when the run directory is free.
#[test]
fn a_refused_switch_waits() {
    require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap"]);
    let folder = Folder::new();
    put(&folder, &[node.manifest()]);
    let run_dir = RunDir::new(&node.name);
    fs::create_dir(&run_dir.0).expect("a folder");
    let path = Path::new(&run_dir.0);
    let lock = File::create(path.join("lock")).expect("a file");
    flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("nobody else has it");
    let listener = Listener::bind(&path.join("handover.sock")).expect("a socket");

    let next = node.start(&folder, &["--run-dir", &run_dir.0, "--wait", "--take-over", "--stay"]);
    let limit = Limit::new(PATIENCE);
    let connected = loop {
        assert!(limit.left().is_some(), "it does not connect");
        match listener.accept().expect("it listens") {
            Some(channel) => break channel,
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    // It ends without an answer.
    drop((connected, listener));
    drop(lock);
    next.event("ready");
    assert_eq!(next.stop(), Some(0));
}

/// A version that takes the node over and then fails, again and again: the one before, which stays, takes the node back each
/// time, with the connections and counts that there are by then. Nobody starts anything again.
#[test]
fn a_replaced_switch_takes_the_node_back_from_one_that_fails() {
    require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap", "tap"]);
    let folder = Folder::new();
    put(&folder, &[node.manifest(), service(&node)]);
    let run_dir = RunDir::new(&node.name);
    let flags = ["--run-dir", &run_dir.0, "--wait", "--take-over", "--stay", "--keep"];
    let start = || -> Running {
        let running = node.start(&folder, &[&flags[..], &SERVICES].concat());
        running.event("ready");
        running
    };
    let [x, y] = &node.pods[..] else { panic!("two pods") };
    serve(&y.ns, PORT);
    let vip: IpAddr = "10.96.0.10".parse().expect("an address");
    let opened = |stats: &Value| stats["opened"].as_u64().expect("a count");

    let mut first = start();
    tcp(&x.ns, vip, 80, 1000);
    let mut before = Talk::open(&x.ns, vip);
    let mut counted = opened(&first.next_event("stats"));
    assert!(counted >= 2, "{counted}");
    for round in 0..3 {
        let mut bad = start();
        // One connection of before, one that the first switch does not know, and one that ends meanwhile.
        let (mut meanwhile, over) = (Talk::open(&x.ns, vip), Talk::open(&x.ns, vip));
        before.talk();
        drop(over);
        let more = opened(&bad.event_with("stats", |stats| opened(stats) >= counted + 2));
        // Its own failure, not a stop.
        bad.signal(if round == 1 { Signal::ABORT } else { Signal::KILL });
        bad.ends();
        before.talk();
        meanwhile.talk();
        let stats = first.next_event("stats");
        assert!(opened(&stats) >= more, "{round}: {} of {more}", opened(&stats));
        counted = opened(&stats);
        tcp(&x.ns, vip, 80, 100_000);
        assert!(first.is_running());
        assert!(Path::new(&run_dir.0).join("ctl.sock").exists());
    }
    // A kill of the first one now loses nothing either: its file of connections is the one that is read.
    first.signal(Signal::KILL);
    first.ends();
    let last = start();
    before.talk();
    // One that is stopped for another to follow, as when a rollout is undone, is followed by the one before.
    let good = start();
    before.talk();
    assert_eq!(good.stop(), Some(0));
    before.talk();
    last.next_event("stats");
    // One that is stopped for good is not.
    let one = node.start(&folder, &[&flags[..4], &["--stay"][..], &SERVICES].concat());
    one.event("ready");
    assert_eq!(one.stop(), Some(0));
    let mut last = last;
    assert_eq!(last.ends(), Some(1), "none runs");
}

/// Another configuration is in force before the node is taken back: what it denies stays denied.
#[test]
fn the_present_state_is_in_force_before_the_node_is_taken_back() {
    require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap", "tap"]);
    let folder = Folder::new();
    put(&folder, &[node.manifest(), service(&node)]);
    let run_dir = RunDir::new(&node.name);
    let flags = ["--run-dir", &run_dir.0, "--wait", "--take-over", "--stay", "--keep"];
    let start = || -> Running {
        let running = node.start(&folder, &[&flags[..], &SERVICES].concat());
        running.event("ready");
        running
    };
    let [x, y] = &node.pods[..] else { panic!("two pods") };
    serve(&y.ns, PORT);
    let first = start();
    tcp(&x.ns, y.addresses[0], PORT, 1000);
    let bad = start();
    let deny = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                metadata: {name: deny, namespace: a}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n";
    put(&folder, &[node.manifest(), service(&node), deny.to_owned()]);
    bad.event("applied");
    bad.signal(Signal::KILL);
    first.event("applied");
    assert!(try_tcp(&x.ns, y.addresses[0], PORT, 10).is_err());
    put(&folder, &[node.manifest(), service(&node)]);
    first.event("applied");
    tcp(&x.ns, y.addresses[0], PORT, 1000);
    assert_eq!(first.stop(), Some(0));
}

const SERVICES: [&str; 2] = ["--service-cidr", "10.96.0.0/16"];

/// A Service of the second pod.
fn service(node: &Node) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\n\
         spec: {{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], \
         ports: [{{port: 80, targetPort: {PORT}}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: s, namespace: a, labels: {{kubernetes.io/service-name: s}}}}\n\
         addressType: IPv4\nports: [{{name: \"\", port: {PORT}, protocol: TCP}}]\n\
         endpoints: [{{addresses: [{}], nodeName: {}}}]\n",
        node.pods[1].addresses[0], node.name
    )
}

/// A connection that stays open.
struct Talk(TcpStream);

impl Talk {
    fn open(from: &NetNs, to: IpAddr) -> Self {
        let stream = from.enter(|| TcpStream::connect((to, 80))).expect("entered");
        let stream = stream.expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut talk = Self(stream);
        talk.talk();
        talk
    }

    #[track_caller]
    fn talk(&mut self) {
        self.0.write_all(b"echo").expect("sent");
        let mut back = [0; 4];
        self.0.read_exact(&mut back).expect("it comes back");
        assert_eq!(&back, b"echo");
    }
}
