//! Successors that fail at every step of the protocol: the running switch goes on, and nothing is lost.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use podswitch_linux::handover::{Channel, Listener, Received};
use podswitch_vswitch_testkit::cluster::{Fabric, Node, PATIENCE, put, serve, tcp, udp};
use podswitch_vswitch_testkit::running::{Limit, Running};
use podswitch_vswitch_testkit::stream::Stream;
use podswitch_vswitch_testkit::{Folder, RunDir};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::{Value, json};

const PORT: u16 = 8080;
/// Names the socket and the node to the process that plays the successor, and the step at which it fails.
const SOCKET: &str = "PODSWITCH_TEST_SOCKET";
const NODE: &str = "PODSWITCH_TEST_NODE";
const STEP: &str = "PODSWITCH_TEST_STEP";

/// How a successor fails. Each ends by itself or is ended by the running switch, as the second value says.
const STEPS: [(&str, Ending); 14] = [
    ("nothing, and closes", Ending::Itself),
    ("nothing, and stays", Ending::Itself),
    ("rubbish", Ending::Itself),
    ("another boot", Ending::Itself),
    ("another node", Ending::Itself),
    ("forwarding, first", Ending::Itself),
    ("hello, and closes", Ending::Any),
    ("hello, and rubbish", Ending::Killed),
    ("settle, and closes", Ending::Any),
    ("freeze, and closes", Ending::Any),
    ("freeze, and is silent", Ending::Killed),
    ("freeze, and rubbish", Ending::Killed),
    ("token, and dies", Ending::Any),
    ("token, and hangs", Ending::Killed),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Itself,
    Killed,
    /// By itself, unless the switch was quicker.
    Any,
}

struct Played {
    channel: Channel,
}

impl Played {
    fn say(&self, message: &Value) {
        self.channel.send(message.to_string().as_bytes(), &[]).expect("sent");
    }

    fn hear(&self) -> Option<(Value, Vec<OwnedFd>)> {
        let Received { text, files } = self.channel.receive(PATIENCE).expect("a message")?;
        Some((serde_json::from_slice(&text).expect("JSON"), files))
    }

    fn hello(&self, boot: &str, node: &str) {
        self.say(
            &json!({"step": "hello", "format": 1, "boot": boot, "version": "9", "node": node}),
        );
    }

    /// The same with all features, and until nothing is attached any more.
    fn hello_and_settle(&self, boot: &str, node: &str) {
        let features = ["shared files", "stopping", "settle"];
        self.say(&json!({"step": "hello", "format": 1, "boot": boot, "version": "9", "node": node,
            "features": features}));
        self.files();
        self.say(&json!({"step": "settle"}));
        self.hear().expect("no more files");
    }

    /// Receives the devices' files.
    fn files(&self) -> Vec<OwnedFd> {
        let mut all = Vec::new();
        loop {
            let (message, files) = self.hear().expect("files");
            assert_eq!(message["step"], "files", "{message}");
            all.extend(files);
            if message["more"] == false {
                assert!(all.len() >= 2, "{all:?}");
                return all;
            }
        }
    }

    fn token(&self) -> UnixStream {
        self.say(&json!({"step": "freeze"}));
        let (message, mut files) = self.hear().expect("frozen");
        assert_eq!((message["step"].as_str(), files.len()), (Some("frozen"), 1));
        files.remove(0).into()
    }
}

/// The process that plays the successor.
#[test]
#[ignore = "a process that the_running_switch_goes_on starts"]
fn successor_that_fails() {
    let of = |name| std::env::var(name).expect("set by the test that starts it");
    let step = of(STEP);
    let (socket, node) = (of(SOCKET), of(NODE));
    let played = Played { channel: Channel::connect(Path::new(&socket)).expect("it listens") };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
    let boot = boot.trim();
    let refused = |words: &str| {
        let (message, _) = played.hear().expect("an answer");
        assert_eq!(message["step"], "refused", "{message}");
        assert!(message["reason"].as_str().unwrap().contains(words), "{message}");
    };
    let (first, then) = step.split_once(", ").unwrap_or((&step, ""));
    match first {
        "nothing" if then == "closes" || then == "and closes" => return,
        "nothing" => return assert!(played.hear().is_none(), "it is closed"),
        "rubbish" => {
            played.channel.send(b"{\"step\": 7", &[]).expect("sent");
            return assert!(played.hear().is_none());
        }
        "another boot" => {
            played.hello("00000000-0000-0000-0000-000000000000", &node);
            return refused("boot");
        }
        "another node" => {
            played.hello(boot, "elsewhere");
            return refused("elsewhere");
        }
        "forwarding" => {
            played.say(&json!({"step": "forwarding"}));
            return assert!(played.hear().is_none());
        }
        "settle" => return played.hello_and_settle(boot, &node),
        _ => {}
    }
    played.hello(boot, &node);
    let files = played.files();
    let token = (first != "hello").then(|| played.token());
    match (first, then) {
        (_, "and closes" | "and dies") if first != "token" => std::process::exit(0),
        (_, "and rubbish") => played.channel.send(b"[]", &[]).expect("sent"),
        ("freeze", "and is silent") => {}
        ("token", _) => {
            let mut token = token.expect("it was given");
            assert_eq!(token.read(&mut [0]).expect("the token"), 1);
            if then == "and dies" {
                std::process::exit(0);
            }
        }
        other => panic!("{other:?}"),
    }
    // It hangs, with all that it has, until it is ended.
    loop {
        thread::sleep(PATIENCE);
        assert!(!files.is_empty());
    }
}

fn fail(step: &str, socket: &str, node: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "--exact", "faults::successor_that_fails", "--nocapture"]);
    command.env(STEP, step).env(SOCKET, socket).env(NODE, node);
    command.status().expect("it starts")
}

#[test]
fn the_running_switch_goes_on() {
    podswitch_testkit::require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap", "tap"]);
    let folder = Folder::new();
    put(&folder, &[node.manifest()]);
    let folder_of_run = RunDir::new(&node.name);
    let run_dir = &folder_of_run.0;
    let start = || -> Running { node.start(&folder, &["--run-dir", run_dir, "--take-over"]) };
    let mut switch = start();
    switch.event("ready");
    let [x, y] = &node.pods[..] else { panic!("two pods") };
    serve(&y.ns, PORT);
    udp(&x.ns, y.addresses[0], PORT, 10);
    let slow = Duration::from_millis(10);
    let to = format!("{}:9000", y.addresses[0]);
    let stream = Stream::start(&x.ns, &y.ns, &to, 9000, slow);
    for (step, ending) in STEPS {
        let status = fail(step, &format!("{run_dir}/handover.sock"), &node.name);
        match ending {
            Ending::Itself => assert!(status.success(), "{step}: {status}"),
            Ending::Killed => assert_eq!(status.code(), None, "{step}: {status}"),
            Ending::Any => assert!(status.success() || status.code().is_none(), "{step}: {status}"),
        }
        tcp(&x.ns, y.addresses[1], PORT, 100_000);
        switch.next_event("stats");
    }
    // Its file of connections is the only one, and the next one takes over.
    let next = start();
    next.event("ready");
    assert_eq!(switch.ends(), Some(0));
    tcp(&x.ns, y.addresses[0], PORT, 100_000);
    stream.is_complete("while successors fail");
    assert_eq!(next.stop(), Some(0));
}

/// A switch that is to stop while a successor prepares: it goes on until it has handed the node over, and ends then.
#[test]
fn a_stop_completes_a_hand_over_that_has_begun() {
    podswitch_testkit::require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap", "tap"]);
    let folder = Folder::new();
    put(&folder, &[node.manifest()]);
    let run_dir = RunDir::new(&node.name);
    let start = || node.start(&folder, &["--run-dir", &run_dir.0, "--take-over"]);
    let mut switch = start();
    switch.event("ready");
    let [x, y] = &node.pods[..] else { panic!("two pods") };
    serve(&y.ns, PORT);
    let socket = Path::new(&run_dir.0).join("handover.sock");
    let played = Played { channel: Channel::connect(&socket).expect("it listens") };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
    played.hello(boot.trim(), &node.name);
    let files = played.files();
    switch.signal(Signal::TERM);
    // Longer than it takes to look whether it is to stop.
    thread::sleep(Duration::from_secs(1));
    assert!(switch.is_running());
    tcp(&x.ns, y.addresses[0], PORT, 100_000);
    let mut token = played.token();
    assert_eq!(token.read(&mut [0]).expect("the token"), 1);
    played.say(&json!({"step": "forwarding"}));
    let (message, _) = played.hear().expect("it has let go");
    assert_eq!(message["step"], "gone");
    assert_eq!(switch.ends(), Some(0));
    // It was not the last one: the pods' interfaces are there.
    drop((files, played));
    let next = start();
    next.event("ready");
    tcp(&x.ns, y.addresses[0], PORT, 100_000);
    assert_eq!(next.stop(), Some(0));
}

/// A predecessor that has let go of the node but not of the run directory's lock: the switch forwards, and takes the lock as
/// soon as it is free.
#[test]
fn the_lock_is_taken_when_it_becomes_free() {
    podswitch_testkit::require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap"]);
    let folder = Folder::new();
    put(&folder, &[node.manifest()]);
    let run_dir = RunDir::new(&node.name);
    std::fs::create_dir(&run_dir.0).expect("a folder");
    let path = Path::new(&run_dir.0);
    let lock = || {
        let file = File::create(path.join("lock")).expect("a file");
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok().map(|()| file)
    };
    let held = lock().expect("nobody else has it");
    let listener = Listener::bind(&path.join("handover.sock")).expect("a socket");
    let next = node.start(&folder, &["--run-dir", &run_dir.0, "--take-over"]);
    let limit = Limit::new(PATIENCE);
    let channel = loop {
        assert!(limit.left().is_some(), "it does not connect");
        match listener.accept().expect("it listens") {
            Some(channel) => break channel,
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    let played = Played { channel };
    let (hello, _) = played.hear().expect("hello");
    assert_eq!(hello["step"], "hello");
    played.say(&json!({"step": "files", "format": 1, "files": [], "more": false}));
    let (freeze, _) = played.hear().expect("freeze");
    assert_eq!(freeze["step"], "freeze", "a predecessor without features is asked for none");
    let (given, mut kept) = UnixStream::pair().expect("sockets");
    given.set_nonblocking(true).expect("set");
    kept.write_all(b"t").expect("written");
    played.channel.send(br#"{"step": "frozen"}"#, &[given.as_fd()]).expect("sent");
    let (forwarding, _) = played.hear().expect("forwarding");
    assert_eq!(forwarding["step"], "forwarding");
    played.say(&json!({"step": "gone"}));
    next.event("ready");
    drop(held);
    let limit = Limit::new(PATIENCE);
    while lock().is_some() {
        assert!(limit.left().is_some(), "it does not take the lock");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(next.stop(), Some(0));
    assert!(lock().is_some());
}
