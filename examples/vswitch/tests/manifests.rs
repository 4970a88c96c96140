//! Objects that cannot be used, through the program: what `check` says, what `run` does, and that
//! manifests are never read half written.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use podswitch_linux::{NetNs, Netlink};
use podswitch_vswitch_testkit::running::Running;
use podswitch_vswitch_testkit::{Folder, X, Y, head, node_namespace, pod, run, veth_pod};
use rustix::process::Signal;
use serde_json::Value;

const DENY: &str = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                    metadata: {name: deny, namespace: a}, spec: {podSelector: {}}}\n";

/// Exit status and report of `check --json`.
fn check(text: &str, more: &[&str]) -> (Option<i32>, Value) {
    let folder = Folder::new();
    let state = folder.manifest("state", text);
    let output = run(&[&["check", "--json", "--manifests", &state], more].concat());
    let report = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code(), report)
}

#[test]
fn check_passes_what_an_api_server_stores() {
    let old = pod("old", 2, "")
        .replace("namespace: a,", "namespace: a, deletionTimestamp: '2026-01-01T00:00:00Z',");
    let twin = "---\n{apiVersion: v1, kind: Node, metadata: {name: n1-before}, \
                status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}\n";
    let balancer = "---\n{apiVersion: v1, kind: Service, metadata: {name: lb, namespace: a}, \
                    spec: {type: LoadBalancer, clusterIP: 10.96.0.1, trafficDistribution: Later, ports: [{port: 80}]}, \
                    status: {loadBalancer: {ingress: [{ip: 127.0.0.1}, {ip: 192.0.2.9, ipMode: Later}]}}}\n";
    for (more, object) in
        [(&*old, "Pod/a/old"), (twin, "Node/n1-before"), (balancer, "Service/a/lb")]
    {
        for text in [
            [&head(), more, &pod("x", 2, "")].concat(),
            [&head(), &*pod("x", 2, ""), more].concat(),
        ] {
            let (status, report) = check(&text, &["--node", "n1"]);
            assert_eq!(
                (status, &report["refused"]),
                (Some(0), &Value::Array(Vec::new())),
                "{report}"
            );
            let notes = report["notes"].as_array().expect("a list");
            assert!(notes.iter().any(|note| note["object"] == object), "{report}");
        }
    }
}

#[test]
fn check_fails_for_what_switches_security_or_attachment_off() {
    let namespace = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: aa}}\n";
    let old_version = DENY.replace("k8s.io/v1", "k8s.io/v1beta1");
    let plural = DENY.replace("kind: NetworkPolicy", "kind: NetworkPolicies");
    let key = pod("x", 2, "podswitch.io/netsn: /run/netns/x");
    for (more, object, field, action) in [
        (&*old_version, "NetworkPolicy/a/deny", "apiVersion", Some("closed")),
        (&plural, "NetworkPolicy/a/deny", "kind", Some("closed")),
        (&key, "Pod/a/x", "metadata.annotations[podswitch.io/netsn]", None),
        (namespace, "Namespace/aa", "", None),
    ] {
        let (status, report) = check(&[&head(), more].concat(), &[]);
        let refused = report["refused"].as_array().expect("a list");
        assert_eq!((status, refused.len()), (Some(1), 1), "{report}");
        assert_eq!((&refused[0]["object"], &refused[0]["field"]), (&object.into(), &field.into()));
        assert_eq!(refused[0]["action"].as_str(), action, "{report}");
    }
    let (status, report) = check(&head(), &["--node", "n2"]);
    assert_eq!((status, &report["refused"][0]["object"]), (Some(1), &"Node/n2".into()));
    // Cut or unreadable documents are not manifests at all.
    let folder = Folder::new();
    let state = folder.manifest("state", &[&head(), "---\nkind: [\n"].concat());
    assert_eq!(run(&["check", "--manifests", &state]).status.code(), Some(2));
}

/// The switch of a node with pods x and y in namespaces of their own.
struct World {
    folder: Folder,
    name: String,
    node: NetNs,
    x: NetNs,
    y: NetNs,
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let node = node_namespace();
        let [x, y] = [(); 2].map(|()| NetNs::anonymous().expect("a namespace"));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("objects-{}-{number}", std::process::id());
        let folder = Folder::new();
        fs::create_dir_all(folder.path("state")).expect("a folder");
        Self { folder, name, node, x, y }
    }

    fn pods(&self) -> String {
        let pods = [veth_pod("x", 2, &self.x), veth_pod("y", 3, &self.y)];
        [head(), pods.concat()].concat().replace("n1", &self.name)
    }

    fn write(&self, text: &str) {
        fs::write(self.folder.path("next"), text).expect("written");
        fs::rename(self.folder.path("next"), self.folder.path("state/state.yaml"))
            .expect("renamed");
    }

    fn start(&self, more: &[&str]) -> Running {
        let (manifests, netns) =
            (self.folder.text("state"), self.node.path().display().to_string());
        let head = ["--node", &self.name, "--manifests", &manifests, "--node-netns", &netns];
        Running::start(&[&head, more].concat())
    }

    fn sockets(&self) -> (UdpSocket, UdpSocket) {
        (socket(&self.x, X), socket(&self.y, Y))
    }
}

fn socket(namespace: &NetNs, address: impl Into<IpAddr>) -> UdpSocket {
    let address = SocketAddr::new(address.into(), 7000);
    let bind = || namespace.enter(|| UdpSocket::bind(address)).expect("entered");
    let socket = (0..200)
        .find_map(|_| bind().inspect_err(|_| thread::sleep(Duration::from_millis(20))).ok())
        .expect("the address is there");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
    socket
}

/// Whether something arrives, if it is tried this often.
fn arrives(from: &UdpSocket, to: &UdpSocket, tries: usize) -> bool {
    let target = to.local_addr().expect("bound");
    let mut buffer = [0; 64];
    (0..tries).any(|_| {
        from.send_to(b"?", target).expect("sent");
        to.recv_from(&mut buffer).is_ok()
    })
}

#[test]
fn one_bad_object_blocks_no_other() {
    podswitch_testkit::require_privilege!();
    let world = World::new();
    world.write(&world.pods());
    let switch = world.start(&["--json"]);
    assert!(switch.event("ready").get("left_out").is_none());
    let (x, y) = world.sockets();
    assert!(arrives(&x, &y, 50));
    // A Service that cannot be used, and a policy that has nothing to do with it.
    let broken = "---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: x}}\n";
    world.write(&[&world.pods(), broken, DENY].concat());
    let applied = switch.event("applied");
    assert_eq!(applied["left_out"][0]["object"], "Service/a/s", "{applied}");
    assert_eq!(applied["left_out"][0]["action"], "left_out");
    while arrives(&x, &y, 1) {}
    assert!(!arrives(&x, &y, 3));
    // The policy becomes one that cannot be used: its last good version stays.
    world.write(&[&world.pods(), &*DENY.replace("podSelector", "podselector")].concat());
    let applied = switch.event("applied");
    assert_eq!(applied["left_out"][0]["action"], "kept_last_good", "{applied}");
    assert!(!arrives(&x, &y, 3));
    // It goes: what it closed is open.
    world.write(&world.pods());
    assert!(switch.event("applied").get("left_out").is_none());
    assert!(arrives(&x, &y, 50));
    // One that never was good closes what it selects.
    world.write(&[&world.pods(), &*DENY.replace("podSelector: {}", "podSelector: [x]")].concat());
    let applied = switch.event("applied");
    assert_eq!(applied["left_out"][0]["action"], "closed", "{applied}");
    while arrives(&x, &y, 1) {}
    assert!(!arrives(&x, &y, 3));
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn strict_refuses_the_state_for_one_object() {
    podswitch_testkit::require_privilege!();
    let world = World::new();
    world.write(&world.pods());
    let switch = world.start(&["--strict"]);
    switch.says("ready");
    let (x, y) = world.sockets();
    assert!(arrives(&x, &y, 50));
    let broken = "---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {clusterIP: x}}\n";
    world.write(&[&world.pods(), broken, DENY].concat());
    switch.says("refused");
    assert!(arrives(&x, &y, 50));
    world.write(&[&world.pods(), DENY].concat());
    switch.says("applied");
    while arrives(&x, &y, 1) {}
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn manifests_are_not_read_half_written() {
    podswitch_testkit::require_privilege!();
    let world = World::new();
    let whole = [&world.pods(), DENY].concat();
    world.write(&whole);
    let switch = world.start(&[]);
    switch.says("ready");
    let (x, y) = world.sockets();
    assert!(!arrives(&x, &y, 5), "a policy denies it");
    let path = world.folder.path("state/state.yaml");
    // Written slowly, in place: the policy comes last. And emptied for a while.
    for pause in [world.pods().len(), 0] {
        let mut file = File::create(&path).expect("opened");
        file.write_all(&whole.as_bytes()[..pause]).expect("written");
        assert!(!arrives(&x, &y, 10), "half of it was read");
        file.write_all(&whole.as_bytes()[pause..]).expect("written");
        drop(file);
        switch.says("applied");
        assert!(!arrives(&x, &y, 3));
    }
    // Cut for good, or emptied: the old state stays.
    for text in [[&world.pods(), "---\n"].concat(), String::new(), pod("x", 2, "")] {
        world.write(&text);
        switch.says("refused");
        assert!(!arrives(&x, &y, 3));
    }
    fs::remove_file(&path).expect("removed");
    switch.says("refused");
    let mut netlink = Netlink::open(&world.x).expect("netlink");
    assert!(netlink.find_link("eth0").expect("asked").is_some(), "the pods stay attached");
    switch.signal(Signal::HUP);
    switch.says("refused");
    world.write(&world.pods());
    switch.says("applied");
    assert!(arrives(&x, &y, 50));
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn annotations_reach_nothing_but_their_own_pod() {
    podswitch_testkit::require_privilege!();
    let world = World::new();
    let pipe = world.folder.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).expect("a pipe");
    world.write(&world.pods());
    let switch = world.start(&[]);
    switch.says("ready");
    let (x, y) = world.sockets();
    let links = |namespace: &NetNs| {
        let links =
            namespace.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("entered");
        let mut names: Vec<_> = links
            .expect("read")
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
            .collect();
        names.sort();
        names
    };
    let (node, victim) = (links(&world.node), links(&world.x));
    // By another path than the victim's own annotation has.
    let alias = world.folder.path("alias");
    std::os::unix::fs::symlink(world.x.path(), &alias).expect("a link");
    for netns in [
        world.node.path().display().to_string(),
        "/proc/self/ns/net".to_owned(),
        "/proc/1/ns/net".to_owned(),
        world.x.path().display().to_string(),
        alias.display().to_string(),
        pipe.display().to_string(),
        "/etc/passwd".to_owned(),
        "/dev/null".to_owned(),
    ] {
        let annotations = format!(
            "podswitch.io/netns: {netns}, podswitch.io/interface: evil0, podswitch.io/port: veth"
        );
        let evil = pod("a-evil", 9, &annotations).replace("n1", &world.name);
        world.write(&[world.pods(), evil].concat());
        switch.says("applied");
        assert_eq!(links(&world.node), node, "{netns}");
        assert_eq!(links(&world.x), victim, "{netns}");
        assert!(arrives(&x, &y, 50), "{netns}");
    }
    world.write(&world.pods());
    switch.says("applied");
    assert_eq!(links(&world.x), victim);
    assert!(arrives(&y, &x, 50));
    assert_eq!(switch.stop(), Some(0));
    // Where annotations may be a tenant's, they have no effect at all.
    let switch = world.start(&["--pod-annotations", "ignore"]);
    switch.says("ready");
    assert!(!links(&world.x).contains(&"eth0".to_owned()));
    assert_eq!(switch.stop(), Some(0));
}
