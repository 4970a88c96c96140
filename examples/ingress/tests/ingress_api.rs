//! The API server as the source: objects by list and watch, the status of Ingresses by the holder
//! of a Lease.
#![cfg(feature = "kubernetes")]
#![allow(clippy::disallowed_types, reason = "threads of a test that wait for each other")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(30);

/// Objects by their paths, and the changes of them.
#[derive(Default)]
struct Server {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<String, Value>,
    events: Vec<(u64, &'static str, String, Value)>,
    requests: Vec<String>,
}

impl Server {
    fn start() -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Self::default());
        let own = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = own.clone();
                thread::spawn(move || while server.answer(&stream).is_some() {});
            }
        });
        (server, address)
    }

    /// Stores the object at `path`, `…/namespaces/NS/PLURAL/NAME`.
    fn put(&self, path: &str, mut object: Value) -> Value {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let version = inner.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let before = inner.objects.insert(path.to_owned(), object.clone());
        let what = if before.is_some() { "MODIFIED" } else { "ADDED" };
        inner.events.push((version, what, path.to_owned(), object.clone()));
        self.changed.notify_all();
        object
    }

    fn delete(&self, path: &str) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let (version, object) = (inner.version, inner.objects.remove(path).unwrap());
        inner.events.push((version, "DELETED", path.to_owned(), object));
        self.changed.notify_all();
    }

    fn get(&self, path: &str) -> Option<Value> {
        self.inner.lock().unwrap().objects.get(path).cloned()
    }

    /// Waits until an object is as wanted.
    fn wait(&self, what: &str, wanted: impl Fn(&Inner) -> bool) {
        let inner = self.inner.lock().unwrap();
        let (_inner, timeout) =
            self.changed.wait_timeout_while(inner, LONG, |inner| !wanted(inner)).unwrap();
        assert!(!timeout.timed_out(), "never: {what}");
    }

    /// Answers one request of a connection.
    fn answer(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::with_capacity(1, stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let (mut length, mut field) = (0, String::new());
        loop {
            field.clear();
            reader.read_line(&mut field).ok()?;
            if field.trim().is_empty() {
                break;
            }
            if let Some(value) = field.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mut words = line.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        self.inner.lock().unwrap().requests.push(format!("{method} {target}"));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let plural = path.rsplit('/').next()?;
        let is_list = !path.contains("/namespaces/");
        let of = |path: &str| path.rsplit('/').nth(1) == Some(plural);
        let from = query.split('&').find_map(|it| it.strip_prefix("resourceVersion="));
        let answer = match method {
            "GET" if query.contains("watch=1") => {
                return self.watch(stream, &of, from?.parse().ok()?);
            }
            "GET" if is_list => {
                let inner = self.inner.lock().unwrap();
                let items: Vec<_> =
                    inner.objects.iter().filter(|it| of(it.0)).map(|it| it.1.clone()).collect();
                let version = inner.version.to_string();
                Some(json!({"metadata": {"resourceVersion": version}, "items": items}))
            }
            "GET" => self.get(path),
            "POST" => {
                let name = body["metadata"]["name"].as_str()?;
                Some(self.put(&format!("{path}/{name}"), body.clone()))
            }
            "PUT" => Some(self.put(path, body)),
            "PATCH" => {
                let path = path.strip_suffix("/status")?;
                let mut object = self.get(path)?;
                object["status"] = body["status"].clone();
                Some(self.put(path, object))
            }
            _ => None,
        };
        let status = if answer.is_some() { "200 OK" } else { "404 Not Found" };
        let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": "no such object", "reason": "NotFound", "code": 404});
        let text = answer.unwrap_or(refusal).to_string();
        let length = text.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n");
        write!(&*stream, "{head}Content-Length: {length}\r\n\r\n{text}").ok()
    }

    fn watch(
        &self,
        mut stream: &TcpStream,
        of: &dyn Fn(&str) -> bool,
        mut from: u64,
    ) -> Option<()> {
        write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
        loop {
            let inner = self.inner.lock().unwrap();
            let (inner, _) = self
                .changed
                .wait_timeout_while(inner, LONG, |inner| inner.version <= from)
                .unwrap();
            let new: Vec<_> = inner.events.iter().filter(|event| event.0 > from).cloned().collect();
            from = inner.version;
            drop(inner);
            for (_, what, _, object) in new.iter().filter(|event| of(&event.2)) {
                let line = format!("{}\n", json!({"type": what, "object": object}));
                write!(stream, "{:x}\r\n{line}\r\n", line.len()).ok()?;
            }
        }
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn status(address: &str, host: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0)
}

fn wait_status(address: &str, host: &str, expected: u16) {
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
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let _ended = Ended(child);
    let line = lines.find(|line| line.starts_with("HTTP at ")).expect("it listens");
    let http = line.trim_start_matches("HTTP at ").to_owned();
    thread::spawn(move || lines.for_each(|line| eprintln!("{line}")));

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
    // Secrets of other types are never asked for.
    let requests = server.inner.lock().unwrap().requests.clone();
    let mut secrets = requests.iter().filter(|it| it.contains("/secrets")).peekable();
    assert!(secrets.peek().is_some() && secrets.all(|it| it.contains("kubernetes.io%2Ftls")));
}
