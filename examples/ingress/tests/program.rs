//! The program: manifests in, HTTP routed; reload, check, drain.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(manifests: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ingress"))
            .arg("--manifests")
            .arg(manifests)
            .args(["--allow-local-endpoints", "--workers", "1"])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                _ = send.send(line);
            }
        });
        Self { child, lines }
    }

    /// Waits for a line that begins with `start`; returns the rest of it.
    fn line(&self, start: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(LONG).unwrap_or_else(|_| panic!("no {start:?}"));
            if let Some(rest) = line.strip_prefix(start) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// An endpoint that answers every request with its name and closes the connection.
fn endpoint(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut head = [0; 4096];
                _ = stream.read(&mut head);
                let length = name.len();
                _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}"
                );
            });
        }
    });
    address
}

fn get(address: &str, host: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

fn manifests(host: &str, service: &str, endpoint: SocketAddr) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {{name: podswitch}}
spec: {{controller: podswitch.io/ingress}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: web}}
spec:
  ingressClassName: podswitch
  rules:
  - host: {host}
    http:
      paths:
      - {{path: /, pathType: Prefix, backend: {{service: {{name: {service}, port: {{name: http}}}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {service}}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}
addressType: IPv4
endpoints: [{{addresses: [\"{}\"]}}]
ports: [{{name: http, port: {}}}]
",
        endpoint.ip(),
        endpoint.port()
    )
}

/// Waits until a request is answered like this.
fn wait(address: &str, host: &str, expected: (u16, &str)) {
    let mut last = (0, String::new());
    for _ in 0..600 {
        last = get(address, host, "/");
        if (last.0, last.1.trim()) == expected {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("{host}: {last:?}, not {expected:?}");
}

#[test]
fn manifests_are_served_and_followed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.yaml");
    let (one, two) = (endpoint("one"), endpoint("two"));
    fs::write(&file, manifests("a.test", "one", one)).unwrap();
    let any = "127.0.0.1:0";
    let mut running = Running::start(folder.path(), &["--http", any, "--metrics", any]);
    let http = running.line("HTTP at ");
    let metrics = running.line("metrics at ");
    running.line("ready");
    assert_eq!(get(&http, "a.test", "/x"), (200, "one".to_owned()));
    assert_eq!(get(&http, "b.test", "/").0, 404);

    // A change, and a file that cannot be read: it hurts nobody else.
    fs::write(folder.path().join("broken.yaml"), "kind: [").unwrap();
    fs::write(&file, manifests("b.test", "two", two)).unwrap();
    assert!(running.line("warning: ").contains("broken.yaml"));
    wait(&http, "b.test", (200, "two"));
    wait(&http, "a.test", (404, "404 Not Found"));
    // The Ingress stays, the endpoints go.
    let text = manifests("b.test", "two", two).replace("kind: EndpointSlice", "kind: Nothing");
    fs::write(&file, text).unwrap();
    wait(&http, "b.test", (503, "503 Service Unavailable"));

    let (status, text) = get(&metrics, "m", "/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("podswitch_ingress_refused_total{reason=\"no_route\"}"), "{text}");
    assert_eq!(get(&metrics, "m", "/healthz"), (200, "ok\n".to_owned()));

    let id = rustix::process::Pid::from_child(&running.child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert!(running.child.wait().unwrap().success());
}

/// The reader of the output may end first.
#[test]
fn a_closed_output_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.yaml");
    let (one, two) = (endpoint("one"), endpoint("two"));
    fs::write(&file, manifests("a.test", "one", one)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ingress"))
        .args(["--http", "127.0.0.1:0", "--allow-local-endpoints", "--workers", "1", "--manifests"])
        .arg(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let (_send, none) = channel();
    let mut running = Running { child, lines: none };
    let http = lines.find_map(|line| Some(line.strip_prefix("HTTP at ")?.to_owned())).unwrap();
    lines.find(|line| line == "ready").unwrap();
    drop(lines);
    // A warning that nobody reads, and then a change that is served.
    fs::write(folder.path().join("broken.yaml"), "kind: [").unwrap();
    thread::sleep(Duration::from_millis(500));
    fs::write(&file, manifests("b.test", "two", two)).unwrap();
    wait(&http, "b.test", (200, "two"));
    let id = rustix::process::Pid::from_child(&running.child);
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    assert!(running.child.wait().unwrap().success());

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let check = Command::new(env!("CARGO_BIN_EXE_ingress"))
        .args(["--check", "--allow-local-endpoints", "--manifests"])
        .arg(&file)
        .stdout(writer)
        .status();
    assert_eq!(check.unwrap().code(), Some(0), "the result does not depend on a reader");
}

/// A Gateway and an HTTPRoute beside the Ingress; the access log names the route.
#[test]
fn gateways_of_manifests_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let web = manifests("a.test", "one", endpoint("one"));
    fs::write(folder.path().join("web.yaml"), web).unwrap();
    let gateway = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: ours}
spec: {controllerName: podswitch.io/ingress}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: door}
spec:
  gatewayClassName: ours
  listeners:
  - {name: http, port: 80, protocol: HTTP}
  - {name: other, port: 81, protocol: HTTP}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: door}]
  hostnames: [shop.test]
  rules:
  - backendRefs: [{name: one, port: 80}]
";
    fs::write(folder.path().join("gateway.yaml"), gateway).unwrap();
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("log");
    let flags = ["--http", "127.0.0.1:0", "--log", log.to_str().unwrap()];
    let running = Running::start(folder.path(), &flags);
    let warning = running.line("warning: ");
    assert!(
        warning
            .contains("gateway.yaml:6: Gateway/default/door: spec.listeners[1].port: 81 is not 80"),
        "{warning}"
    );
    let http = running.line("HTTP at ");
    running.line("ready");
    assert_eq!(get(&http, "shop.test", "/x"), (200, "one".to_owned()));
    assert_eq!(get(&http, "a.test", "/x"), (200, "one".to_owned()));
    assert_eq!(get(&http, "b.test", "/x").0, 404);
    let is_named = || fs::read_to_string(&log).unwrap().contains("\"HTTPRoute/default/shop\"");
    assert!((0..600).any(|_| is_named() || {
        thread::sleep(Duration::from_millis(50));
        false
    }));
    drop(running);
    let check = Command::new(env!("CARGO_BIN_EXE_ingress"))
        .args(["--check", "--allow-local-endpoints", "--manifests"])
        .arg(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(text.contains("1 Ingresses, 1 HTTPRoutes, 2 routes"), "{text}");
    assert_eq!(check.status.code(), Some(1));
}

#[test]
fn check_reports_what_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.yaml");
    let check = || {
        let output = Command::new(env!("CARGO_BIN_EXE_ingress"))
            .args(["--check", "--manifests"])
            .arg(folder.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let good = manifests("a.test", "one", "10.0.0.7:80".parse().unwrap());
    fs::write(&file, &good).unwrap();
    assert_eq!(check(), (Some(0), "1 Ingresses, 0 HTTPRoutes, 1 routes\n".to_owned()));
    fs::write(&file, good.replace("host: a.test", "host: A_test")).unwrap();
    let (code, text) = check();
    assert_eq!(code, Some(1));
    let expected =
        "web.yaml:6: Ingress/default/web: spec.rules[0].host: \"A_test\" is not a DNS name";
    assert!(text.contains(expected), "{text}");
}
