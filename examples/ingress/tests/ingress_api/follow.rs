//! The program follows the server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::server::Server;

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// The program, and what it says.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<String>,
}

impl Program {
    /// Starts it with the API server at an address.
    pub(crate) fn start(address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("config");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, users: [{{name: u, user: {{}}}}], \
             clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}], \
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
        );
        std::fs::write(&kubeconfig, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ingress"))
            .args(["--kubernetes", "--http", "127.0.0.1:0", "--workers", "1", "--kubeconfig"])
            .arg(&kubeconfig)
            .args(["--publish-address", "192.0.2.7", "--publish-address", "front.test"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = channel();
        thread::spawn(move || {
            // The file of the flags is read by then.
            let _folder = folder;
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("{line}");
                _ = send.send(line);
            }
        });
        Self { child, lines }
    }

    /// The rest of the next line that begins like this.
    pub(crate) fn line(&self, start: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(LONG).unwrap_or_else(|_| panic!("no {start:?}"));
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

pub(crate) fn status(address: &str, host: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0)
}

pub(crate) fn wait_status(address: &str, host: &str, expected: u16) {
    let is_so = (0..600).any(|_| {
        thread::sleep(Duration::from_millis(50));
        status(address, host) == expected
    });
    assert!(is_so, "{host} is never {expected}");
}

fn ingress(name: &str, class: &str, host: &str) -> Value {
    let paths = json!([{"path": "/", "pathType": "Prefix",
        "backend": {"service": {"name": "web", "port": {"number": 80}}}}]);
    json!({"metadata": {"name": name, "namespace": "a"},
        "spec": {"ingressClassName": class, "rules": [{"host": host, "http": {"paths": paths}}]}})
}

const NET: &str = "/apis/networking.k8s.io/v1";

#[test]
fn objects_are_followed_and_the_status_is_written() {
    let (server, address) = Server::start();
    let class =
        |controller: &str| json!({"metadata": {"name": "c"}, "spec": {"controller": controller}});
    server.put(&format!("{NET}/ingressclasses/ours"), {
        let mut class = class("podswitch.io/ingress");
        class["metadata"]["name"] = "ours".into();
        class
    });
    server.put(&format!("{NET}/ingressclasses/c"), class("example.com/other"));
    let at = |name: &str| format!("{NET}/namespaces/a/ingresses/{name}");
    server.put(&at("web"), ingress("web", "ours", "web.test"));
    server.put(&at("foreign"), ingress("foreign", "c", "foreign.test"));

    let program = Program::start(address);
    let http = program.line("HTTP at ");

    // Served without endpoints; a foreign class is not.
    assert_eq!((status(&http, "web.test"), status(&http, "foreign.test")), (503, 404));
    // A change of the watch, and a deletion.
    server.put(&at("late"), ingress("late", "ours", "late.test"));
    wait_status(&http, "late.test", 503);
    server.delete(&at("late"));
    wait_status(&http, "late.test", 404);

    // The status, by the holder of the Lease, of our Ingress alone.
    let points = json!([{"ip": "192.0.2.7"}, {"hostname": "front.test"}]);
    server.wait("a status", |inner| {
        inner.objects[&at("web")]["status"]["loadBalancer"]["ingress"] == points
    });
    assert!(server.get(&at("foreign")).unwrap()["status"].is_null());
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/podswitch-ingress";
    let lease = server.get(lease).expect("a Lease");
    assert!(lease["spec"]["holderIdentity"].as_str().unwrap().contains('_'), "{lease}");
    // Helm's Secrets are never asked for.
    let requests = server.inner.lock().unwrap().requests.clone();
    let mut secrets = requests.iter().filter(|it| it.contains("/secrets")).peekable();
    let select = "fieldSelector=type%21%3Dhelm.sh%2Frelease.v1";
    assert!(secrets.peek().is_some() && secrets.all(|it| it.contains(select)));
}

/// What the server says of a refusal is reported, for each kind, and nothing listens before all of
/// them can be read. A kind that is refused later does not take its last objects.
#[test]
fn refusals_are_reported_with_the_servers_message() {
    let (server, address) = Server::start();
    let deny = |plural, message| _ = server.inner.lock().unwrap().denied.insert(plural, message);
    deny("services", "services is forbidden: no list");
    deny("secrets", "secrets is forbidden: no list");
    let program = Program::start(address);
    // In either order.
    let reports = [program.line("warning: "), program.line("warning: ")];
    for kind in ["Service: status 403: services", "Secret: status 403: secrets"] {
        let expected = format!("{kind} is forbidden: no list");
        assert!(reports.contains(&expected), "{reports:?}");
    }
    server.inner.lock().unwrap().denied.clear();
    program.line("HTTP at ");
    program.line("ready");
    deny("leases", "leases is forbidden: no get");
    let line = program.line("warning: ");
    assert!(line.starts_with("status: GET /apis/coordination.k8s.io/v1/"), "{line}");
    assert!(line.ends_with(": status 403: leases is forbidden: no get"), "{line}");
}
