//! Commands that ask a running switch, as an operator would: who talks to whom, what is dropped and why.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, X, Y, Y6, head, pod, program, run};
use serde_json::Value;

const PORT: u16 = 8080;

/// A switch with the pods a/x and a/y; y lets TCP to [`PORT`] in and nothing else.
struct Switch {
    running: Running,
    socket: String,
    folder: Folder,
    name: String,
    collectors: Collectors,
}

/// What takes records beside the file.
struct Collectors {
    ipfix: UdpSocket,
    elasticsearch: TcpListener,
}

impl Collectors {
    fn new() -> Self {
        let ipfix = UdpSocket::bind("127.0.0.1:0").expect("bound");
        ipfix.set_read_timeout(Some(PATIENCE)).expect("set");
        Self { ipfix, elasticsearch: TcpListener::bind("127.0.0.1:0").expect("bound") }
    }

    /// Checks that each got something of its kind.
    fn got_records(&self) {
        let own = self.ipfix.local_addr().expect("an address");
        if self.ipfix.send_to(b"?", own).is_err() {
            eprintln!("SKIPPED: collectors on loopback, which is down here");
            return;
        }
        let mut message = [0; 2048];
        let templates = std::iter::from_fn(|| self.ipfix.recv(&mut message).ok());
        assert!(templates.take(8).any(|length| length > 100), "templates and records of IPFIX");
        let (stream, _) = self.elasticsearch.accept().expect("a connection");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("a request");
        assert!(line.starts_with("POST /es/_bulk?"), "{line}");
    }
}

impl Switch {
    fn start(x: &NetNs, y: &NetNs, node: &NetNs) -> Self {
        let name = format!("inspect-{}", std::process::id());
        let attached = |pod_name, number, netns: &NetNs| {
            let netns = netns.path();
            let annotations =
                format!("podswitch.io/netns: {}, podswitch.io/port: veth", netns.display());
            pod(pod_name, number, &annotations)
        };
        let policy = format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: only, namespace: a}}\n\
             spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {PORT}}}]}}]}}\n"
        );
        let state = [head(), attached("x", 2, x), attached("y", 3, y), policy].concat();
        let folder = Folder::new();
        folder.manifest("state", &state.replace("n1", &name));
        let (manifests, netns) = (folder.text("state"), node.path().display().to_string());
        let run_dir = folder.text("run");
        let collectors = Collectors::new();
        let [ipfix, elasticsearch] = [
            collectors.ipfix.local_addr().expect("an address"),
            collectors.elasticsearch.local_addr().expect("an address"),
        ];
        let running = Running::start(&[
            "--node",
            &name,
            "--manifests",
            &manifests,
            "--node-netns",
            &netns,
            "--masquerade",
            "off",
            "--run-dir",
            &run_dir,
            "--output",
            &format!("jsonl={}", folder.text("records")),
            "--output",
            &format!("ipfix={ipfix}"),
            "--output=elasticsearch",
            "--elasticsearch-url",
            &format!("http://{elasticsearch}/es"),
        ]);
        running.says("ready");
        Self { running, socket: folder.text("run/ctl.sock"), folder, name, collectors }
    }

    /// Runs a command, and returns its exit status and what it prints.
    fn ask(&self, command: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = run(&[&[command, "--socket", &self.socket][..], arguments].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn says(&self, command: &str, arguments: &[&str]) -> String {
        let (status, out, err) = self.ask(command, arguments);
        assert_eq!((status, &*err), (Some(0), ""), "{out}");
        out
    }

    /// Waits until there is such a record in the file.
    #[track_caller]
    fn has_recorded(&self, r#type: &str, field: &str, value: &str) {
        let patience = Limit::new(PATIENCE);
        while patience.left().is_some() {
            let text = std::fs::read_to_string(self.folder.path("records")).expect("a file");
            let mut records =
                text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if records.any(|record| record["type"] == r#type && record[field] == value) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("there is no {} with {field}={value}", r#type);
    }

    #[track_caller]
    fn json(&self, command: &str, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.says(command, &[arguments, &["--json"]].concat())).expect("JSON")
    }
}

#[test]
fn an_operator_asks() {
    podswitch_testkit::require_privilege!();
    let [x, y, node] = [(); 3].map(|()| NetNs::anonymous().expect("a namespace"));
    let switch = Switch::start(&x, &y, &node);
    let status = switch.says("status", &[]);
    assert!(status.contains(&format!("node         {}", switch.name)), "{status}");
    assert!(
        status.contains("pods         2\n") && status.contains("problems     none"),
        "{status}"
    );

    // Who talks to y?
    let listener = y.enter(|| TcpListener::bind((Y, PORT))).expect("entered").expect("bound");
    let to = SocketAddr::from((Y, PORT));
    let client = x.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("entered");
    let client = client.expect("the policy allows it");
    let server = listener.accept().expect("a connection");
    let flows = switch.json("flows", &["--pod", "a/y", "--state", "established"]);
    assert_eq!(flows["total"], 1, "{flows}");
    assert_eq!(flows["flows"][0]["src_pod"], "a/x");
    assert_eq!(switch.json("flows", &["--port", "9999"])["total"], 0);
    let text = switch.says("flows", &["--address", &Y.to_string()]);
    assert!(text.lines().next().expect("a head").starts_with("PROTO  CLIENT"), "{text}");
    let sport = client.local_addr().expect("known").port();
    assert!(text.contains(&format!("TCP    a/x {X}:{sport}")), "{text}");

    // What is dropped, live?
    let mut follower = Command::new(program())
        .args(["drops", "-f", "--socket", &switch.socket, "--reason", "policy"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let (sender, received) = channel();
    thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    let socket = x.enter(|| UdpSocket::bind(("::", 0))).expect("entered").expect("bound");
    socket.send_to(b"?", (Y6, 53)).expect("sent");
    let line = received.recv_timeout(PATIENCE).expect("a line");
    assert!(line.contains(" policy_ingress UDP a/x ["), "{line}");
    let ends =
        format!("-> a/y [{Y6}]:53, no ingress rule allows it; isolated by NetworkPolicy/a/only");
    assert!(line.ends_with(&ends), "{line}");
    follower.kill().expect("ends");
    follower.wait().expect("ends");
    let drops = switch.json("drops", &["--namespace", "a", "--port", "53"]);
    assert_eq!(drops["drops"][0]["dst"]["pod"], "y", "{drops}");
    assert!(switch.says("counters", &["policy"]).contains("drops.policy_ingress  1"));

    // Why can x not reach y?
    let (status, out, _) = switch.ask("trace", &["--from", "a/x", "--to", "a/y:53/UDP"]);
    assert_eq!(status, Some(1), "{out}");
    assert!(out.contains("deny") && out.contains("NetworkPolicy/a/only"), "{out}");
    assert!(
        switch
            .says("trace", &["--from", "a/x", "--to", &format!("[{Y6}]:{PORT}")])
            .contains("allow")
    );
    let (status, _, err) = switch.ask("trace", &["--from", "a/xx", "--to", "a/y:1"]);
    assert_eq!((status, &*err), (Some(2), "vswitch: there is no a/xx; did you mean a/x?\n"));

    assert!(switch.says("pods", &[]).contains("a/x"));
    let policies = switch.says("policies", &["only"]);
    assert!(policies.contains("NetworkPolicy/a/only ingress[0]"), "{policies}");
    switch.says("services", &[]);
    switch.has_recorded("drop", "reason", "policy_ingress");
    switch.has_recorded("flow_opened", "dst_pod", "a/y");
    switch.collectors.got_records();
    drop((client, server));
    let Switch { running, socket, folder, .. } = switch;
    assert_eq!(running.stop(), Some(0));
    let records = std::fs::read_to_string(folder.path("records")).expect("a file");
    let closed: Vec<Value> = records
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|record: &Value| record["type"] == "flow_closed" && record["dport"] == PORT)
        .collect();
    assert!(!closed.is_empty(), "each connection has a last record");
    for record in closed {
        assert!(["fin", "shutdown"].contains(&record["reason"].as_str().expect("a reason")));
        assert_eq!(record["ingress"]["policy"], "NetworkPolicy/a/only", "{record}");
        assert!(record["packets"].as_u64() > Some(1), "{record}");
    }
    assert!(!std::path::Path::new(&socket).exists(), "the socket is removed");
    let output = run(&["status", "--socket", &socket]);
    assert_eq!(output.status.code(), Some(1));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("is the switch running"), "{err}");
    drop(folder);
}
