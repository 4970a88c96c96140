//! `vswitch run` and `demo` with real sockets in network namespaces: pods that go on talking
//! while the switch is killed and started again, and states that change meanwhile.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use podswitch_linux::port::tap;
use podswitch_linux::{NetNs, Netlink, userns};
use podswitch_testkit::privilege::is_there;
use podswitch_testkit::test_name;
use podswitch_vswitch_testkit::running::{PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, NODE, X, X6, Y, Y6, head, node_namespace, pod};
use rustix::process::Signal;
use serde_json::Value;

fn start(folder: &Folder, name: &str, node: &NetNs, more: &[&str]) -> Running {
    let (manifests, netns) = (folder.text("state"), node.path().display().to_string());
    let head = ["--node", name, "--manifests", &manifests, "--node-netns", &netns];
    Running::start(&[&head, more].concat())
}

/// A socket inside a namespace, which may get its address only in a moment.
fn socket(namespace: &NetNs, address: impl Into<IpAddr>) -> UdpSocket {
    let address = SocketAddr::new(address.into(), 7000);
    let bind = || namespace.enter(|| UdpSocket::bind(address)).expect("entered");
    let socket = (0..200)
        .find_map(|_| bind().inspect_err(|_| thread::sleep(Duration::from_millis(20))).ok())
        .expect("the address is there");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    socket
}

/// Sends until it arrives; the network may lose what comes too early.
#[track_caller]
fn reaches(from: &UdpSocket, to: &UdpSocket) {
    let target = to.local_addr().expect("bound");
    let mut buffer = [0; 64];
    for round in 0..100u8 {
        from.send_to(&[round], target).expect("sent");
        while let Ok((1, peer)) = to.recv_from(&mut buffer) {
            if buffer[0] == round {
                assert_eq!(peer, from.local_addr().expect("bound"));
                return;
            }
        }
    }
    panic!("nothing of {:?} arrives at {target}", from.local_addr());
}

/// Whether the namespace has an interface of that name.
fn has_interface(namespace: &NetNs, name: &str) -> bool {
    let mut netlink = Netlink::open(namespace).expect("netlink");
    netlink.find_link(name).expect("asked").is_some()
}

fn attached(name: &str, number: u8, namespace: &NetNs, kind: &str) -> String {
    let netns = namespace.path();
    let annotations = format!("podswitch.io/netns: {}, podswitch.io/port: {kind}", netns.display());
    pod(name, number, &annotations)
}

/// A name that no other node on this machine has: the switch keeps things under it.
fn node_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn pods_outlive_the_switch() {
    podswitch_testkit::require_privilege!();
    let folder = Folder::new();
    let [x, y] = [(); 2].map(|()| NetNs::anonymous().expect("a namespace"));
    let (name, node) = (node_name(), node_namespace());
    let kind = if tap::is_available().is_ok() { "tap" } else { "veth" };
    let pods = [head(), attached("x", 2, &x, kind), attached("y", 3, &y, "veth")].concat();
    folder.manifest("state", &pods.replace("n1", &name));
    let first = start(&folder, &name, &node, &[]);
    assert_eq!(first.says("ready"), format!("ready node={name} epoch=1"));
    let (x4, y4, x6, y6) = (socket(&x, X), socket(&y, Y), socket(&x, X6), socket(&y, Y6));
    let at_node = socket(&node, NODE);
    let talk = || {
        for (one, other) in [(&x4, &y4), (&x6, &y6), (&at_node, &x4), (&at_node, &y4)] {
            reaches(one, other);
            reaches(other, one);
        }
    };
    talk();
    drop(first);
    // Nobody carries their frames now: neither the node's kernel nor anything else.
    let mut buffer = [0; 64];
    while x4.recv_from(&mut buffer).is_ok() {}
    let _ = y4.send_to(b"!", x4.local_addr().expect("bound"));
    assert!(x4.recv_from(&mut buffer).is_err());
    // The same sockets, untouched.
    let second = start(&folder, &name, &node, &["--workers", "2"]);
    second.says("ready");
    talk();
    assert_eq!(second.stop(), Some(0));
    for namespace in [&x, &y] {
        assert!(!has_interface(namespace, "eth0"));
    }
    assert!(!has_interface(&node, "podswitch0"));
    assert!(NetNs::find(&format!("podswitch-{name}")).expect("asked").is_none());
}

#[test]
fn states_change_while_pods_talk() {
    podswitch_testkit::require_privilege!();
    let folder = Folder::new();
    let [x, y] = [(); 2].map(|()| NetNs::anonymous().expect("a namespace"));
    let (name, node) = (node_name(), node_namespace());
    let state = |pods: &[String]| {
        // Atomically, as writers of manifests should.
        let text = [&[head()], pods].concat().concat().replace("n1", &name);
        fs::write(folder.path("next"), text).expect("written");
        fs::create_dir_all(folder.path("state")).expect("a folder");
        fs::rename(folder.path("next"), folder.path("state/state.yaml")).expect("renamed");
    };
    let (with_x, with_y) = (attached("x", 2, &x, "veth"), attached("y", 3, &y, "veth"));
    state(std::slice::from_ref(&with_x));
    let switch = start(&folder, &name, &node, &["--masquerade", "off"]);
    switch.says("ready");
    let (x4, at_node) = (socket(&x, X), socket(&node, NODE));
    reaches(&at_node, &x4);
    state(&[with_x.clone(), with_y.clone()]);
    switch.says(&format!("applied node={name} epoch="));
    let y4 = socket(&y, Y);
    reaches(&x4, &y4);
    // Two pods with one address: the one that had it keeps it, and nothing else is held up.
    state(&[with_x.clone(), with_y.clone(), pod("thief", 2, "")]);
    assert!(switch.says(&format!("applied node={name} epoch=")).ends_with(" left_out=1"));
    reaches(&y4, &x4);
    // A state without this node is refused.
    fs::write(folder.path("state/state.yaml"), pod("x", 2, "")).expect("written");
    assert_eq!(switch.says("refused"), format!("refused node={name}"));
    reaches(&y4, &x4);
    state(std::slice::from_ref(&with_x));
    switch.says("applied");
    assert!(!has_interface(&y, "eth0"));
    reaches(&x4, &at_node);
    switch.signal(Signal::HUP);
    switch.says("applied");
    reaches(&at_node, &x4);
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn a_pod_that_starts_again_is_attached_again() {
    podswitch_testkit::require_privilege!();
    let folder = Folder::new();
    let (name, node) = (node_name(), node_namespace());
    let pod_name = format!("pod-{name}");
    let pod = NetNs::create(&pod_name).expect("a namespace");
    let state = [head(), attached("x", 2, &pod, "veth")].concat();
    folder.manifest("state", &state.replace("n1", &name));
    let switch = start(&folder, &name, &node, &[]);
    switch.says("ready");
    let at_node = socket(&node, NODE);
    reaches(&at_node, &socket(&pod, X));
    // Another namespace under the same path; nobody tells the switch.
    drop(pod);
    let again = NetNs::create(&pod_name).expect("a namespace");
    let step = Duration::from_millis(100);
    let steps = PATIENCE.as_millis() / step.as_millis();
    let attached = (0..steps).any(|_| {
        thread::sleep(step);
        has_interface(&again, "eth0")
    });
    assert!(attached);
    reaches(&at_node, &socket(&again, X));
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn a_refused_state_ends_the_start() {
    let folder = Folder::new();
    let wrong = pod("z", 3, "").replace("10.1.0.3", "10.1.0.333");
    let state = folder.manifest("state", &[head(), pod("x", 2, ""), wrong].concat());
    let no_node = folder.manifest("no-node", &pod("x", 2, ""));
    let status = |arguments: &[&str]| {
        let arguments = [&["run", "--node", "n1", "--manifests"], arguments].concat();
        podswitch_vswitch_testkit::run(&arguments).status.code()
    };
    assert_eq!(status(&[&state, "--strict"]), Some(1));
    assert_eq!(status(&[&no_node]), Some(1));
    assert_eq!(status(&["/nowhere"]), Some(2));
    assert_eq!(status(&[&state, "--masquerade", "192.0.2.9,192.0.2.8"]), Some(2));
    assert_eq!(status(&[&state, "--route", "10.0.0.0/8=router"]), Some(2));
}

#[test]
fn the_demo_passes() {
    let output = podswitch_vswitch_testkit::run(&["demo", "--json"]);
    let told = String::from_utf8_lossy(&output.stderr);
    let possible = userns::has_privilege() || !told.contains("user namespace:");
    if !is_there(&test_name!(), "the privilege to make user namespaces", possible) {
        return;
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{told}"));
    let checks = report["checks"].as_array().expect("a list");
    let failed: Vec<_> = checks.iter().filter(|check| check["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &Value::Bool(true)));
    // Of every kind some: on one node, through the tunnel, and policy and translation there.
    let names: Vec<_> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    for kind in [
        "TCP red (TAP) → green (TAP)",
        "TCP node one → cyan",
        "on the wire",
        "path MTU",
        "policy: blue → cyan is denied",
        "Services: NodePort of node two",
        "DNS: white asks for api.default.svc",
        "spoofed VXLAN",
        "counters of node two",
    ] {
        let kind =
            if tap::is_available().is_ok() { kind } else { &kind.replace("TAP", "AF_PACKET") };
        assert!(names.iter().any(|name| name.starts_with(kind)), "no check of {kind}");
    }
    let has_https = names.iter().any(|name| name.starts_with("HTTPS: a cookie keeps the client"));
    assert_eq!(has_https, cfg!(feature = "ingress"));
    assert!(checks.len() > 200);
    let measured = report["measurements"].as_array().expect("a list");
    for (name, unit) in
        [("TCP stream, across nodes", "Gbit/s"), ("round trip p50, same node", "µs")]
    {
        let is_it = |m: &&Value| {
            m["name"].as_str().is_some_and(|n| n.starts_with(name)) && m["unit"] == unit
        };
        let found = measured.iter().find(is_it).expect("measured");
        assert!(found["value"].as_f64().is_some_and(|value| value > 0.0), "{found}");
    }
}
