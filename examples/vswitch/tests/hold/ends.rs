//! How holders begin and end.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use podswitch_vswitch_testkit::cluster::{Fabric, Limit, Node, PATIENCE, put};
use podswitch_vswitch_testkit::running::Running;
use podswitch_vswitch_testkit::{Folder, RunDir, program};
use rustix::process::{Pid, Signal, kill_process};

use super::{Datagrams, Open, has_carrier, holder, holder_begins, holder_ends, loses_carrier};

struct World {
    _fabric: Fabric,
    node: Node,
    folder: Folder,
    run_dir: RunDir,
}

impl World {
    fn new(name: &str) -> Self {
        let fabric = Fabric::new(1500);
        let node = Node::new(&fabric, 1, &[false], &["tap", "tap", "tap"]);
        let folder = Folder::new();
        put(&folder, &[node.manifest()]);
        Self { _fabric: fabric, node, folder, run_dir: RunDir::new(name) }
    }

    fn start(&self, more: &[&str]) -> Running {
        let own = ["--run-dir", &self.run_dir.0];
        let switch = self.node.start(&self.folder, &[&own, more].concat());
        switch.event("ready");
        switch
    }

    fn open(&self) -> Open {
        let [from, to, ..] = &self.node.pods[..] else { panic!("two pods") };
        Open::new(&from.ns, &to.ns, to.addresses[0], 8080)
    }

    /// Both ends hear each other.
    fn talk(open: &mut Open, byte: u8) {
        open.client_sends(&[byte; 2000]);
        open.server_sends(&[!byte; 2000]);
        open.server_gets(&[byte; 2000]);
        open.client_gets(&[!byte; 2000]);
    }
}

/// Without a holder the switch goes on, and connections outlive a kill as they do without; a holder that is started later,
/// by hand, is used.
#[test]
fn the_holder_is_killed_too() {
    podswitch_testkit::require_privilege!();
    let world = World::new("hold-killed");
    let pod = &world.node.pods[0];
    let mut switch = world.start(&[]);
    let mut open = world.open();
    World::talk(&mut open, 1);
    holder(&world.run_dir).expect("it listens").kill().expect("ended");
    holder_ends(&world.run_dir);
    World::talk(&mut open, 2);
    drop(switch);
    loses_carrier(&pod.ns, "eth0");
    switch = world.start(&[]);
    World::talk(&mut open, 3);
    // Both at once.
    let process = holder(&world.run_dir).expect("the new run has started one");
    drop(switch);
    process.kill().expect("ended");
    holder_ends(&world.run_dir);
    let log = world.folder.path("log");
    let netns = world.node.ns.path().display().to_string();
    let manifests = world.folder.text("state");
    let head = ["--json", "--node", &world.node.name, "--manifests", &manifests];
    let flags = ["--node-netns", &netns, "--run-dir", &world.run_dir.0, "--hold", "use"];
    switch = Running::start_with(&[&head[..], &flags].concat(), |command| {
        command.stderr(fs::File::create(&log).expect("a file"));
    });
    switch.event("ready");
    World::talk(&mut open, 4);
    assert!(holder(&world.run_dir).is_none(), "it starts none");
    let mut own = Command::new(program())
        .args(["hold", "--run-dir", &world.run_dir.0])
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    holder_begins(&world.run_dir);
    // Once it has the devices, they outlive the switch, which looks for one every few seconds.
    let limit = Limit::new(PATIENCE);
    while !fs::read_to_string(&log).expect("a log").contains("keeps the devices again") {
        limit.left().expect("it is found");
        thread::sleep(Duration::from_millis(50));
    }
    drop(switch);
    assert!(has_carrier(&pod.ns, "eth0"));
    open.client_sends(&[5; 2000]);
    switch = world.start(&["--hold", "use"]);
    open.server_gets(&[5; 2000]);
    // It serves the next one, too.
    assert_eq!(switch.stop(), Some(0));
    assert!(own.try_wait().expect("a child").is_none());
    kill_process(Pid::from_child(&own), Signal::TERM).expect("it runs");
    assert_eq!(own.wait().expect("it ends").code(), Some(0));
    holder_ends(&world.run_dir);
}

/// Nobody comes back in time: the devices are as without a holder, and connections go on with the next run.
#[test]
fn the_time_is_bounded() {
    podswitch_testkit::require_privilege!();
    let world = World::new("hold-bounded");
    let switch = world.start(&["--hold-for", "1"]);
    let mut open = world.open();
    drop(switch);
    for (ns, name) in [(&world.node.pods[0].ns, "eth0"), (&world.node.pods[1].ns, "eth0")] {
        loses_carrier(ns, name);
    }
    holder_ends(&world.run_dir);
    let switch = world.start(&[]);
    World::talk(&mut open, 1);
    assert_eq!(switch.stop(), Some(0));
}

/// A stop with `--keep` leaves the devices to the next run, too; `--hold off` closes them.
#[test]
fn a_planned_stop_leaves_the_devices_open() {
    podswitch_testkit::require_privilege!();
    let world = World::new("hold-planned");
    let [from, to, ..] = &world.node.pods[..] else { panic!("two pods") };
    let mut switch = world.start(&["--keep"]);
    let mut open = world.open();
    let mut stream = Datagrams::new(&from.ns, &to.ns, to.addresses[0], 9000);
    stream.send(1);
    assert_eq!(stream.receive(1), [0]);
    assert_eq!(switch.stop(), Some(0));
    for (ns, name) in [(&from.ns, "eth0"), (&to.ns, "eth0"), (&world.node.ns, "podswitch0")] {
        assert!(has_carrier(ns, name), "{name} in {ns}");
    }
    stream.send(5);
    // One that cannot start changes nothing.
    let run_dir = ["--run-dir", &world.run_dir.0];
    let flags = [&run_dir[..], &["--underlay", "packet", "--uplink", "nosuch0"]].concat();
    assert_eq!(world.node.start(&world.folder, &flags).ends(), Some(1));
    for (ns, name) in [(&from.ns, "eth0"), (&world.node.ns, "podswitch0")] {
        assert!(has_carrier(ns, name), "{name} in {ns}, after a start that failed");
    }
    switch = world.start(&["--keep"]);
    assert_eq!(stream.receive(5), [1, 2, 3, 4, 5]);
    World::talk(&mut open, 1);
    // The successor of a running switch has the same holder.
    let next = world.start(&["--keep", "--take-over"]);
    assert_eq!(switch.ends(), Some(0));
    World::talk(&mut open, 2);
    drop(next);
    assert!(has_carrier(&from.ns, "eth0"));
    switch = world.start(&["--hold", "off"]);
    World::talk(&mut open, 3);
    assert!(holder(&world.run_dir).is_none());
    drop(switch);
    loses_carrier(&from.ns, "eth0");
    let switch = world.start(&[]);
    World::talk(&mut open, 4);
    assert_eq!(switch.stop(), Some(0));
}

/// A pod that is deleted while there is no switch: the next run closes its device, here and in the holder.
#[test]
fn a_deleted_pod_is_not_held() {
    podswitch_testkit::require_privilege!();
    let mut world = World::new("hold-deleted");
    let switch = world.start(&[]);
    let mut open = world.open();
    drop(switch);
    let gone = world.node.pods.pop().expect("a third one");
    assert!(has_carrier(&gone.ns, "eth0"));
    put(&world.folder, &[world.node.manifest()]);
    let switch = world.start(&[]);
    loses_carrier(&gone.ns, "eth0");
    World::talk(&mut open, 1);
    drop(switch);
    assert!(has_carrier(&world.node.pods[0].ns, "eth0"));
    assert!(!has_carrier(&gone.ns, "eth0"));
    let switch = world.start(&[]);
    World::talk(&mut open, 2);
    assert_eq!(switch.stop(), Some(0));
}
