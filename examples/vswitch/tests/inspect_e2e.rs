//! Commands that ask a running switch, as an operator would: who talks to whom, what is dropped and why.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_vswitch_testkit::running::{Limit, PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, X, Y, Y6, head, program, run, veth_pod};
use serde_json::Value;

const PORT: u16 = 8080;
/// A port of y that no rule allows.
const SHUT: u16 = 5432;
/// In the environment of the switch, in its kubeconfig and in its run directory.
const SECRET: &str = "planted-secret-7f3a";
const HASH_KEY: &str = "00112233445566778899aabbccddeeff";

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
        let policy = format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: only, namespace: a}}\n\
             spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {PORT}}}]}}, {{ports: [{{port: 1}}]}}]}}\n"
        );
        let service = |name: &str, address: &str, port: u16| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\n\
                 spec: {{clusterIP: {address}, clusterIPs: [{address}], ports: [{{port: 80, targetPort: {port}}}]}}\n\
                 ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {{name: {name}-1, namespace: a, labels: {{kubernetes.io/service-name: {name}}}}}\n\
                 ports: [{{port: {port}}}]\nendpoints: [{{addresses: [{Y}], nodeName: n1, \
                 targetRef: {{kind: Pod, namespace: a, name: y}}}}]\n"
            )
        };
        let services = [service("api", "10.96.0.7", PORT), service("off", "10.96.0.8", SHUT)];
        let services = services.concat();
        let state = [head(), veth_pod("x", 2, x), veth_pod("y", 3, y), policy, services].concat();
        let folder = Folder::new();
        folder.manifest("state", &state.replace("n1", &name));
        let (manifests, netns) = (folder.text("state"), node.path().display().to_string());
        let run_dir = folder.text("run");
        let collectors = Collectors::new();
        let [ipfix, elasticsearch] = [
            collectors.ipfix.local_addr().expect("an address"),
            collectors.elasticsearch.local_addr().expect("an address"),
        ];
        let kubeconfig = folder.text("kubeconfig");
        let arguments = [
            "--node",
            &name,
            "--manifests",
            &manifests,
            "--node-netns",
            &netns,
            "--masquerade",
            "off",
            "--hash-key",
            HASH_KEY,
            "--run-dir",
            &run_dir,
            "--output",
            &format!("jsonl={}", folder.text("records")),
            "--output",
            &format!("ipfix={ipfix}"),
            "--output=elasticsearch",
            "--elasticsearch-url",
            &format!("http://{elasticsearch}/es"),
        ];
        let running = Running::start_with(&arguments, |command| {
            command.envs([("PODSWITCH_TOKEN", SECRET), ("KUBECONFIG", &kubeconfig)]);
        });
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

    /// The only connection, with what allows it, its node, its age and rates.
    fn knows_what_allows_it(&self, mut client: &TcpStream) {
        let flow = &self.json("flows", &["--pod", "a/x"])["flows"][0];
        assert_eq!(flow["policy"], "NetworkPolicy/a/only", "{flow}");
        assert_eq!(
            (&flow["ingress"]["verdict"], &flow["ingress"]["rule"]),
            (&"allow".into(), &0.into())
        );
        assert_eq!(flow["egress"]["policy"], Value::Null, "{flow}");
        for node in ["src_node", "dst_node"] {
            assert_eq!(flow[node], *self.name, "{flow}");
        }
        assert_eq!(flow["source_nat"], Value::Null);
        assert!(flow["age_seconds"].as_u64().is_some_and(|age| age < 3600), "{flow}");
        let text = self.says("flows", &["--sort", "age", "--address", "10.1.0.0/16"]);
        assert!(text.contains("  NetworkPolicy/a/only ingress[0]\n"), "{text}");
        assert!(!text.contains("RATE"), "{text}");
        client.write_all(&[0; 1000]).expect("sent");
        let rated = self.json("flows", &["--sort", "rate", "--interval", "0.2"]);
        assert_eq!((&rated["sort"], &rated["total"]), (&"rate".into(), &1.into()), "{rated}");
        assert!(rated["interval_seconds"].as_f64() >= Some(0.2), "{rated}");
        assert!(rated["flows"][0]["bytes_per_second"].is_number(), "{rated}");
        let limited = self.json("flows", &["--limit", "0"]);
        assert_eq!((&limited["total"], &limited["left_out"]), (&1.into(), &1.into()), "{limited}");
        let (_, _, note) = self.ask("flows", &["--limit", "0"]);
        assert!(note.starts_with("note: 1 of 1 connections are left out"), "{note}");
    }

    /// A report opens with `tar`, has its parts, and none of the secrets that lie around.
    fn reports_without_secrets(&self) {
        let kubeconfig = format!("users: [{{user: {{token: {SECRET}}}}}]");
        for (name, text) in [("run/token", SECRET), ("kubeconfig", &kubeconfig)] {
            std::fs::write(self.folder.path(name), text).expect("written");
        }
        let report = self.folder.text("report.tar.gz");
        let (status, out, err) = self.ask("bugreport", &["-o", &report]);
        assert_eq!((status, out.trim_end()), (Some(0), &*report), "{err}");
        let unpacked = self.folder.text("unpacked");
        std::fs::create_dir(&unpacked).expect("a folder");
        let tar = Command::new("tar")
            .args(["-xzf", &report, "-C", &unpacked, "--strip-components=1"])
            .status();
        assert!(tar.expect("tar is installed").success());
        let read = |name: &str| {
            let path = format!("{unpacked}/{name}");
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let json = |name: &str| serde_json::from_str::<Value>(&read(name)).expect("JSON");
        assert_eq!(json("switch/status.json")["node"], *self.name);
        assert_eq!(json("switch/pods.json")["pods"][0]["pod"], "a/x");
        assert_eq!(json("switch/flows.json")["total"], 1);
        let drops = json("switch/drops.json");
        let list = drops["drops"].as_array().expect("a list");
        assert!(list.iter().any(|drop| drop["reason"] == "policy_ingress"), "{drops}");
        assert!(list.iter().all(|drop| drop["frame"].is_null()), "bytes of packets");
        for name in ["counters", "policies", "services"] {
            assert!(json(&format!("switch/{name}.json")).is_object());
        }
        assert!(read("switch/metrics").contains("podswitch_pods 2"));
        assert!(read("process/status").contains(&format!("Pid:\t{}\n", self.running.id())));
        assert!(read("process/limits").contains("Max open files"));
        let flags = read("process/command-line");
        assert!(flags.contains(&format!("run --node {}", self.name)), "{flags}");
        assert!(flags.contains("--hash-key [removed]"), "{flags}");
        let variables = read("process/environment");
        assert!(variables.contains(&self.folder.text("kubeconfig")), "{variables}");
        assert!(variables.contains("other variables are left out"), "{variables}");
        assert!(read("process/threads").contains("(podswitch-node)"));
        assert!(read("run-dir").contains("token"), "names of files are shown");
        assert!(read("network/dev").contains("podswitch0"));
        assert!(read("sysctls").contains("net.ipv4.ip_forward = "));
        assert!(read("machine/version").contains("Linux"));
        assert!(read("README").contains("Not in this archive:"));
        // Standard error is that of the test: a file, or not.
        let log = std::path::Path::new(&unpacked);
        assert!(log.join("log-tail").exists() || log.join("log-tail.error").exists());
        let grep =
            Command::new("grep").args(["-rE", &format!("{SECRET}|{HASH_KEY}"), &unpacked]).output();
        let found = grep.expect("grep is installed").stdout;
        assert_eq!(String::from_utf8_lossy(&found), "");
        // An existing file is left alone.
        let (status, _, err) = self.ask("bugreport", &["-o", &report]);
        assert_eq!(status, Some(1));
        assert!(err.contains("report.tar.gz: File exists"), "{err}");
    }

    /// A Service is listed with its backend before anything connects to it.
    fn lists_services(&self) {
        let backend = format!("{Y}:{PORT}");
        let text = self.says("services", &["--never"]);
        let row = format!("Service/a/api 80/TCP  {backend}  ready  yes     Pod/a/y  {}", self.name);
        assert!(text.contains(&row), "{text}");
        let page = self.json("services", &["api"]);
        assert_eq!(page["services"][format!("Service/a/api 80/TCP {backend}")], 0, "{page}");
        let port = &page["ports"][0];
        assert_eq!(port["addresses"][0]["kind"], "ClusterIP", "{page}");
        assert_eq!(port["backends"][0]["address"], *backend, "{page}");
        let (status, _, err) = self.ask("services", &["ap/i"]);
        assert_eq!(status, Some(2));
        assert!(err.contains("there is no Service port ap/i"), "{err}");
    }

    /// Wrong names are refused, with the nearest right ones.
    fn helps_with_names(&self) {
        for (command, arguments, says) in [
            ("flows", ["--pod", "a/yy"], "there is no pod a/yy; did you mean a/y?"),
            ("flows", ["--namespace", "aa"], "there is no namespace aa; did you mean a?"),
            ("flows", ["--service", "a/web"], "there is no Service a/web"),
            (
                "flows",
                ["--state", "establishd"],
                "there is no state establishd; did you mean established?",
            ),
            ("flows", ["--sort", "age s"], "there is no order age s"),
            ("flows", ["--protocol", "tpc"], "there is no protocol tpc; did you mean TCP?"),
            ("flows", ["-l", "app=@"], "label selector app=@: "),
            ("drops", ["--reason", "polcy"], "there is no drop reason polcy; did you mean policy?"),
            ("drops", ["--pod", "b/y"], "there is no pod b/y; did you mean a/y"),
            (
                "trace",
                ["--from=a/x", "--to=a/y:53/udo"],
                "there is no protocol udo; did you mean UDP?",
            ),
        ] {
            let (status, _, err) = self.ask(command, &arguments);
            assert_eq!(status, Some(2), "{command} {arguments:?}: {err}");
            assert!(err.starts_with(&format!("vswitch: {says}")), "{command} {arguments:?}: {err}");
        }
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
    switch.knows_what_allows_it(&client);

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
    let of_time = |arguments: [&str; 2]| {
        let found = switch.json("drops", &[&["--reason", "policy"], &arguments[..]].concat());
        found["drops"].as_array().map(Vec::len)
    };
    let at = drops["drops"][0]["time"].as_str().expect("a time").to_owned();
    assert_eq!(of_time(["--since", "10m"]), Some(1));
    assert_eq!(of_time(["--until", "10m"]), Some(0));
    assert_eq!((of_time(["--since", &at]), of_time(["--until", &at])), (Some(1), Some(1)));
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
    // Through a Service: the backend's policies decide.
    let (status, out, _) = switch.ask("trace", &["--from", "a/x", "--to", "service/a/off:80"]);
    assert_eq!(status, Some(1), "{out}");
    assert!(out.contains(&format!("backend: {Y}:{SHUT}")), "{out}");
    assert!(out.contains("ingress of Pod/a/y: deny, isolated by NetworkPolicy/a/only"), "{out}");
    let (status, _, err) = switch.ask("trace", &["--from", "a/xx", "--to", "a/y:1"]);
    assert_eq!((status, &*err), (Some(2), "vswitch: there is no a/xx; did you mean a/x?\n"));

    switch.helps_with_names();
    switch.reports_without_secrets();
    assert!(switch.says("pods", &[]).contains("a/x"));
    let policies = switch.says("policies", &["only"]);
    assert!(policies.contains("NetworkPolicy/a/only ingress[0]"), "{policies}");
    let never = switch.says("policies", &["--never"]);
    assert_eq!(never.trim_end().lines().count(), 2, "{never}");
    assert!(never.contains("NetworkPolicy/a/only ingress[1]  0\n"), "{never}");
    assert_eq!(
        switch.json("policies", &["--never"])["policies"],
        serde_json::json!({ "NetworkPolicy/a/only ingress[1]": 0 })
    );
    let (status, _, err) = switch.ask("policies", &["onl/y"]);
    assert_eq!(status, Some(2));
    assert!(err.contains("there is no policy that applies to a pod of this node onl/y"), "{err}");
    switch.lists_services();
    let perf = switch.says("perf", &["--seconds", "0"]);
    assert!(perf.starts_with(&format!("{}, since the switch began\nworker 0: ", switch.name)));
    assert!(
        perf.contains("\n  time of a poll mean ") && perf.contains("\n  longest pause "),
        "{perf}"
    );
    let perf = switch.json("perf", &["--seconds", "1"]);
    assert!(perf["seconds"].as_f64() >= Some(1.0), "{perf}");
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
        // An end that is closed with bytes unread resets its connection.
        let reason = record["reason"].as_str().expect("a reason");
        assert!(["fin", "rst", "shutdown"].contains(&reason), "{record}");
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
