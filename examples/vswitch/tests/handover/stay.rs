//! Switches whose supervisor starts them again when they end: `--stay` and `--wait`.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::Duration;

use podswitch_linux::handover::Listener;
use podswitch_testkit::require_privilege;
use podswitch_vswitch_testkit::cluster::{Fabric, Node, put, serve, tcp};
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, RunDir};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

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
