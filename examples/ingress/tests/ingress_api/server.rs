//! A server that has the API of Kubernetes as far as the program needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::follow::LONG;

/// Objects by their paths, and the changes of them.
#[derive(Default)]
pub(crate) struct Server {
    pub(crate) inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
pub(crate) struct Inner {
    version: u64,
    pub(crate) objects: BTreeMap<String, Value>,
    events: Vec<(u64, &'static str, String, Value)>,
    pub(crate) requests: Vec<String>,
    /// Requests for these kinds, by their plural, are refused with status 403 and a message.
    pub(crate) denied: BTreeMap<&'static str, &'static str>,
    /// Kinds, by their plural, that the server does not have: status 404.
    pub(crate) missing: BTreeSet<&'static str>,
}

impl Server {
    pub(crate) fn start() -> (Arc<Self>, SocketAddr) {
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
    pub(crate) fn put(&self, path: &str, mut object: Value) -> Value {
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

    pub(crate) fn delete(&self, path: &str) {
        let mut inner = self.inner.lock().unwrap();
        inner.version += 1;
        let (version, object) = (inner.version, inner.objects.remove(path).unwrap());
        inner.events.push((version, "DELETED", path.to_owned(), object));
        self.changed.notify_all();
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.inner.lock().unwrap().objects.get(path).cloned()
    }

    /// Waits until an object is as wanted.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&Inner) -> bool) {
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
        // An object without a namespace has its own path, too.
        let is_list = !path.contains("/namespaces/") && self.get(path).is_none();
        let of = |path: &str| path.rsplit('/').nth(1) == Some(plural);
        let from = query.split('&').find_map(|it| it.strip_prefix("resourceVersion="));
        let denied = self.inner.lock().unwrap().denied.clone();
        let denied = path.split('/').find_map(|part| denied.get(part).copied());
        let is_missing = self.inner.lock().unwrap().missing.contains(plural);
        let answer = match method {
            _ if denied.is_some() || is_missing => None,
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
                let (seen, own) = (&body["metadata"], &object["metadata"]);
                let is_current =
                    seen.is_null() || seen["resourceVersion"] == own["resourceVersion"];
                object["status"] = body["status"].clone();
                is_current.then(|| self.put(path, object))
            }
            _ => None,
        };
        let (status, code, message) = match (&answer, denied) {
            (Some(_), _) => ("200 OK", 200, ""),
            (None, Some(message)) => ("403 Forbidden", 403, message),
            (None, None) => ("404 Not Found", 404, "no such object"),
        };
        let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": message, "code": code});
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
