//! `vswitch capture` of a running switch; what it writes is read by other programs.

mod ports;

use std::fs::File;
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use podswitch_linux::NetNs;
use podswitch_testkit::privilege::is_there;
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, Y, Y6, head, program, run, veth_pod};

const PORT: u16 = 8080;

/// A switch with the pods a/x and a/y; y lets TCP to [`PORT`] in and nothing else.
struct Switch {
    running: Running,
    socket: String,
    folder: Folder,
    x: NetNs,
    y: NetNs,
}

/// A captured frame, as another library reads it.
#[derive(Debug)]
struct Frame {
    interface: String,
    time: Duration,
    original_len: u32,
    bytes: Vec<u8>,
    comment: String,
    inbound: bool,
}

impl Switch {
    fn start() -> Self {
        let [x, y, node] = [(); 3].map(|()| NetNs::anonymous().expect("a namespace"));
        let policy = format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: only, namespace: a}}\n\
             spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {PORT}}}]}}]}}\n"
        );
        let state = [head(), veth_pod("x", 2, &x), veth_pod("y", 3, &y), policy].concat();
        let name = format!("capture-{}", std::process::id());
        let folder = Folder::new();
        folder.manifest("state", &state.replace("n1", &name));
        let arguments = [
            ["--node", &name],
            ["--manifests", &folder.text("state")],
            ["--node-netns", &node.path().display().to_string()],
            ["--masquerade", "off"],
            ["--workers", "2"],
            ["--run-dir", &folder.text("run")],
        ];
        let running = Running::start(&arguments.concat());
        running.says("ready");
        let socket = folder.text("run/ctl.sock");
        Self { running, socket, folder, x, y }
    }

    /// Starts a capture that goes to a file.
    fn begin(&self, file: &str, arguments: &[&str]) -> Child {
        let file = self.folder.path(file);
        let mut child = Command::new(program())
            .args(["capture", "--socket", &self.socket, "-w"])
            .arg(&file)
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        let patience = Limit::new(PATIENCE);
        while std::fs::metadata(&file).map_or(0, |found| found.len()) == 0 {
            let ended = child.try_wait().expect("its state");
            assert!(ended.is_none(), "{:?}", child.wait_with_output());
            assert!(patience.left().is_some(), "no capture begins");
            thread::sleep(Duration::from_millis(10));
        }
        child
    }

    /// The frames of a capture that comes to its end, and what is said of it.
    fn end(&self, file: &str, child: Child) -> (Vec<Frame>, String) {
        let output = child.wait_with_output().expect("ends");
        let says = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{says}");
        (frames(&self.folder.path(file)), says)
    }

    fn ask(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let file = self.folder.text("unused");
        let output =
            run(&[&["capture", "--socket", &self.socket, "-w", &file][..], arguments].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Reads a capture with a library that shares nothing with the switch.
fn frames(file: &Path) -> Vec<Frame> {
    let file = BufReader::new(File::open(file).expect("a file"));
    let mut reader = PcapNgReader::new(file).expect("a section");
    let (mut interfaces, mut frames) = (Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        match block.expect("a block") {
            Block::InterfaceDescription(interface) => {
                let name = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                interfaces.push(name.expect("a name"));
            }
            Block::EnhancedPacket(packet) => {
                let (mut comment, mut flags) = (String::new(), 0);
                for option in &packet.options {
                    match option {
                        EnhancedPacketOption::Comment(text) => comment = text.to_string(),
                        EnhancedPacketOption::Flags(bits) => flags = *bits,
                        other => panic!("{other:?}"),
                    }
                }
                frames.push(Frame {
                    interface: interfaces[packet.interface_id as usize].clone(),
                    time: packet.timestamp,
                    original_len: packet.original_len,
                    bytes: packet.data.to_vec(),
                    comment,
                    inbound: flags == 1,
                });
            }
            _ => {}
        }
    }
    frames
}

#[expect(clippy::disallowed_methods, reason = "frames have the time of day")]
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970")
}

/// A TCP connection from x to y with some bytes, and its end.
fn talk(switch: &Switch) {
    let listener =
        switch.y.enter(|| TcpListener::bind((Y, PORT))).expect("entered").expect("bound");
    let to = SocketAddr::from((Y, PORT));
    let client = switch.x.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("entered");
    let client = client.expect("the policy allows it");
    drop((client, listener.accept().expect("a connection")));
}

/// A datagram from x that y's policy refuses.
fn refused(switch: &Switch) {
    let socket = switch.x.enter(|| UdpSocket::bind(("::", 0))).expect("entered").expect("bound");
    socket.send_to(b"?", (Y6, 53)).expect("sent");
}

#[test]
fn captures_of_a_running_switch() {
    podswitch_testkit::require_privilege!();
    let switch = Switch::start();
    forwarded_and_dropped(&switch);
    only_drops(&switch);
    bounds(&switch);
    wrong_requests(&switch);
    clients_that_go_away(&switch);
    assert_eq!(switch.running.stop(), Some(0));
}

fn forwarded_and_dropped(switch: &Switch) {
    let begin = now();
    let child = switch.begin("all", &["--pod", "a/x", "--seconds", "3", "--snaplen", "64"]);
    talk(switch);
    refused(switch);
    let (frames, says) = switch.end("all", child);
    let count = format!("note: {} frames captured, 0 lost; the time was over\n", frames.len());
    assert_eq!(says, count);
    let syn = |inbound: bool, interface: &str| {
        frames.iter().find(|frame| {
            frame.inbound == inbound
                && frame.interface == interface
                && frame.comment.contains("TCP [S] a/x")
        })
    };
    let received = syn(true, "a/x").expect("what x sent");
    let [head, tail] = ["forwarded to a/y: TCP [S] a/x 10.1.0.2:", " -> a/y 10.1.0.3:8080"];
    assert!(received.comment.starts_with(head), "{}", received.comment);
    let way = received.comment.split_once(tail).expect("both ends").1;
    assert_eq!(way, ", allowed by NetworkPolicy/a/only ingress[0]");
    assert!((begin..now()).contains(&received.time), "{:?}", received.time);
    assert_eq!((received.bytes.len(), received.original_len > 64), (64, true));
    let sent = syn(false, "a/y").expect("what y got");
    assert!(sent.comment.starts_with("sent, received by a/x: TCP [S] a/x"), "{}", sent.comment);
    let reply = |frame: &&Frame| frame.inbound && frame.comment.contains("TCP [S.] a/y");
    let reply = frames.iter().find(reply).expect("what y answered");
    assert_eq!(reply.interface, "a/y");
    assert!(reply.comment.contains(", reply, allowed by NetworkPolicy/a/only"), "{reply:?}");
    let dropped = frames.iter().find(|frame| frame.comment.starts_with("dropped: "));
    let comment = &dropped.expect("the datagram").comment;
    let [head, tail] = [
        "dropped: policy_ingress UDP a/x [fd00:1::2]:",
        " -> a/y [fd00:1::3]:53, no ingress rule allows it; isolated by NetworkPolicy/a/only",
    ];
    assert!(comment.starts_with(head) && comment.ends_with(tail), "{comment}");
    read_by_tshark(&switch.folder.path("all"), &frames);
}

/// Wireshark's own reader sees the same.
fn read_by_tshark(file: &Path, frames: &[Frame]) {
    let fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment"];
    let mut command = Command::new("tshark");
    match command.arg("-r").arg(file).args(fields).output() {
        Err(_) => drop(is_there("captures read by tshark", "tshark (Debian: tshark)", false)),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let expected: Vec<String> = frames
                .iter()
                .map(|frame| format!("{}\t{}", frame.interface, frame.comment))
                .collect();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{error}");
        }
    }
}

fn only_drops(switch: &Switch) {
    let arguments = ["--drops", "--count", "1", "--host", &Y6.to_string(), "--port", "53"];
    let child = switch.begin("drops", &[&arguments[..], &["--protocol", "udp"]].concat());
    talk(switch);
    refused(switch);
    let (frames, says) = switch.end("drops", child);
    assert_eq!(says, "note: 1 frames captured, 0 lost; the number of frames was reached\n");
    assert!(frames[0].inbound && frames[0].interface == "a/x", "{frames:?}");
    assert!(frames[0].comment.starts_with("dropped: policy_ingress"), "{frames:?}");
}

fn bounds(switch: &Switch) {
    let arguments = ["--from", "a/x", "--to", "a/y", "--count", "5", "--seconds", "30"];
    let child = switch.begin("five", &arguments);
    // Another one while it runs.
    let (status, says) = switch.ask(&["--seconds", "1"]);
    let running = "vswitch: another capture is running, and there can be one at a time\n";
    assert_eq!((status, &*says), (Some(2), running));
    (0..3).for_each(|_| talk(switch));
    let (frames, _) = switch.end("five", child);
    assert_eq!(frames.len(), 5);
    assert!(frames.iter().all(|frame| frame.comment.contains("10.1.0.")), "no ARP: {frames:?}");
}

fn wrong_requests(switch: &Switch) {
    let unknown = "vswitch: there is no a/xx; did you mean a/x?\n";
    for arguments in [&["--pod", "a/xx"][..], &["--from", "a/xx", "--to", "a/y"]] {
        assert_eq!(switch.ask(arguments), (Some(2), unknown.to_owned()), "{arguments:?}");
    }
    let (status, says) = switch.ask(&["--protocol", "tcpp"]);
    assert!(status == Some(2) && says.contains("no protocol tcpp; did you mean TCP?"), "{says}");
    assert!(!switch.folder.path("unused").exists(), "nothing is written");
    let missing = switch.folder.text("no/folder");
    let output = run(&["capture", "--socket", &switch.socket, "-w", &missing]);
    let says = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(says.contains(&format!("-w {missing}: ")), "{says}");
    until_none_runs(switch);
}

/// The switch ends a capture whose client is gone: another one can begin long before its time is over.
fn clients_that_go_away(switch: &Switch) {
    for busy in [false, true] {
        let mut child = switch.begin("gone", &["--seconds", "600"]);
        if busy {
            talk(switch);
        }
        child.kill().expect("ends");
        child.wait().expect("ends");
        // Whole blocks, wherever it was cut off.
        frames(&switch.folder.path("gone"));
        std::fs::remove_file(switch.folder.path("gone")).expect("there is one");
        until_none_runs(switch);
    }
}

/// Waits until a capture can begin.
fn until_none_runs(switch: &Switch) {
    let patience = Limit::new(PATIENCE);
    while switch.ask(&["--count", "1", "--seconds", "1"]).0 != Some(0) {
        assert!(patience.left().is_some(), "the capture goes on without its client");
        thread::sleep(Duration::from_millis(100));
    }
}
