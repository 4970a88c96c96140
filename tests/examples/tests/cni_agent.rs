//! `examples/cni_agent.rs` as a running program: pods in real namespaces are added and removed
//! through its socket.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use podswitch::linux::{NetNs, Netlink};

/// Timeout for any event on an overloaded machine.
const PATIENCE: Duration = Duration::from_secs(40);

struct Agent {
    child: Child,
    socket: PathBuf,
    folder: PathBuf,
    events: Receiver<String>,
}

impl Agent {
    fn start(node: &NetNs) -> Self {
        let folder = std::env::temp_dir().join(format!("podswitch-cni-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let socket = folder.join("cni.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_cni_agent"));
        let name = format!("cni-{}", std::process::id());
        command.arg(&socket).arg(name).arg(node.path());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut ready = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut ready).expect("it says so");
        assert!(ready.starts_with("ready node=cni-"), "{ready:?}");
        let errors = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, events) = channel();
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                eprintln!("agent: {line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, socket, folder, events }
    }

    fn ask(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        writeln!(stream, "{command}").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        eprintln!("{command}: {answer}");
        answer.trim_end().to_owned()
    }

    /// Waits for an event that contains `text`.
    #[track_caller]
    fn tells(&self, text: &str) {
        while let Ok(line) = self.events.recv_timeout(PATIENCE) {
            if line.contains(text) {
                return;
            }
        }
        panic!("it reported no event with {text}");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn socket(namespace: &NetNs, address: &str) -> UdpSocket {
    let address: IpAddr = address.parse().expect("an address");
    let socket = namespace.enter(|| UdpSocket::bind((address, 7000))).expect("entered");
    let socket = socket.expect("the pod has its address");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    socket
}

/// Whether a datagram arrives; the first ones may be lost while neighbours are resolved.
fn reaches(from: &UdpSocket, to: &UdpSocket, tries: usize) -> bool {
    let target = to.local_addr().expect("bound");
    (0..tries).any(|_| {
        from.send_to(b"?", target).expect("sent");
        to.recv_from(&mut [0; 16]).is_ok()
    })
}

fn has_interface(namespace: &NetNs, name: &str) -> bool {
    let mut netlink = Netlink::open(namespace).expect("netlink");
    netlink.find_link(name).expect("a result").is_some()
}

/// Both pods, and a policy that isolates one of them.
fn manifests(node: &str) -> String {
    let pod = |name: &str, number: u8| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: {node}}}\n\
             status: {{podIPs: [{{ip: 10.9.0.{number}}}, {{ip: 'fd09::{number}'}}]}}\n---\n"
        )
    };
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: shut}\n\
                  spec: {podSelector: {matchLabels: {app: blue}}}\n";
    format!("{}{}{policy}", pod("red", 2), pod("blue", 3))
}

#[test]
fn pods_are_added_and_removed_through_the_socket() {
    podswitch_testkit::require_privilege!();
    let [node, red, blue, green] = [(); 4].map(|()| NetNs::anonymous().expect("a namespace"));
    let mut agent = Agent::start(&node);
    assert!(has_interface(&node, "podswitch0"));
    let add = |name: &str, ns: &NetNs, number: u8, labels: &str| {
        let addresses = format!("10.9.0.{number},fd09::{number}");
        agent.ask(&format!("add default/{name} {} {addresses} {labels}", ns.path().display()))
    };

    // ADD, the same again, and one that conflicts.
    let port = add("red", &red, 2, "app=red");
    assert!(port.starts_with("ok port="), "{port}");
    assert_eq!(add("red", &red, 2, "app=red"), port);
    assert!(add("blue", &blue, 3, "app=blue").starts_with("ok port="));
    let clash = add("green", &green, 2, "app=green");
    assert!(clash.starts_with("error: ") && clash.contains("Pod/default/"), "{clash}");
    assert!(!has_interface(&green, "eth0"));
    for wrong in ["add default/x /nowhere 10.9.0.9", "add x /nowhere 10.9.0.9", "del", "fly"] {
        assert!(agent.ask(wrong).starts_with("error: "), "{wrong}");
    }

    for (from, to) in [("10.9.0.2", "10.9.0.3"), ("fd09::2", "fd09::3")] {
        let (from, to) = (socket(&red, from), socket(&blue, to));
        assert!(reaches(&from, &to, 100) && reaches(&to, &from, 100));
    }
    let flows = agent.ask("flows");
    assert!(
        flows.contains("UDP 10.9.0.2:7000 -> 10.9.0.3:7000 (default/red -> default/blue)"),
        "{flows}"
    );
    assert!(agent.ask("why 10.9.0.2 10.9.0.3 80").starts_with("allow\n"));
    assert!(agent.ask("stats").contains("pods: 2"));

    // A state with a policy: the pods stay attached as they are.
    let name = format!("cni-{}", std::process::id());
    let path = agent.folder.join("state.yaml");
    fs::write(&path, manifests(&name)).expect("written");
    let applied = agent.ask(&format!("apply {}", path.display()));
    assert!(applied.starts_with("ok epoch="), "{applied}");
    let (from, to) = (socket(&red, "10.9.0.2"), socket(&blue, "10.9.0.3"));
    assert!(!reaches(&from, &to, 3), "the policy isolates blue");
    agent.tells(
        " policy_ingress UDP default/red 10.9.0.2:7000 -> default/blue 10.9.0.3:7000, \
         no ingress rule allows it; isolated by NetworkPolicy/default/shut",
    );
    let why = agent.ask("why 10.9.0.2 10.9.0.3 7000/UDP");
    assert!(why.starts_with("deny\n") && why.contains("NetworkPolicy/default/shut"), "{why}");
    fs::write(&path, "kind: [").expect("written");
    assert!(agent.ask(&format!("apply {}", path.display())).starts_with("error: "));
    assert!(
        agent.ask("why 10.9.0.2 10.9.0.3 80").starts_with("deny\n"),
        "the old state stays in force"
    );

    // DEL, twice.
    assert_eq!(agent.ask("del default/blue"), "ok");
    assert!(!has_interface(&blue, "eth0") && has_interface(&red, "eth0"));
    assert_eq!(agent.ask("del default/blue"), "ok, there was none");
    agent.tells("default/blue is detached");

    assert_eq!(agent.ask("stop"), "ok");
    assert_eq!(agent.child.wait().expect("it ends").code(), Some(0));
    assert!(!has_interface(&node, "podswitch0"));
    assert!(has_interface(&red, "eth0"), "only DEL removes what was added");
    assert!(!agent.socket.exists());
}
