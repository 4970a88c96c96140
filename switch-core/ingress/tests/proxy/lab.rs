//! A proxy with endpoints on loopback, and a client.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use podswitch_ingress::proxy::{LogWriter, Options as ProxyOptions, Proxy};
use podswitch_ingress::{Objects, Options, compile};
use podswitch_kubernetes::Record;
use serde_json::{Value, json};

/// No test waits longer.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) const CONTROLLER: &str = "podswitch.io/ingress";

/// A running proxy and the objects that it serves.
pub(crate) struct Lab {
    pub(crate) proxy: Proxy,
    pub(crate) objects: Objects,
    pub(crate) options: Options,
    slices: usize,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut ProxyOptions)) -> Self {
        Self::with_log(change, None)
    }

    pub(crate) fn with_log(change: impl FnOnce(&mut ProxyOptions), log: Option<LogWriter>) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let mut options =
            ProxyOptions { http: Some(any), https: Some(any), workers: 2, ..Default::default() };
        change(&mut options);
        let mut lab = Self {
            proxy: Proxy::start(options, log).unwrap(),
            objects: Objects::default(),
            options: Options { allow_local_endpoints: true, ..Default::default() },
            slices: 0,
        };
        lab.add(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {"name": "podswitch",
                "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
            "spec": {"controller": CONTROLLER},
        }));
        lab
    }

    pub(crate) fn add(&mut self, value: Value) {
        assert!(self.objects.upsert(None, value));
    }

    /// A Service with a port 8080 named `http`, and its endpoints.
    pub(crate) fn service(&mut self, name: &str, endpoints: &[SocketAddr]) {
        self.add(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"name": "http", "port": 8080}]},
        }));
        // One slice a port, as every endpoint of a test has its own.
        for endpoint in endpoints {
            self.slices += 1;
            self.add(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": format!("slice-{}", self.slices),
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": [endpoint.ip().to_string()]}],
                "ports": [{"name": "http", "port": endpoint.port()}],
            }));
        }
    }

    /// A Service with one endpoint that echoes requests.
    pub(crate) fn echo(&mut self, name: &str) -> SocketAddr {
        let endpoint = echo(name);
        self.service(name, &[endpoint]);
        endpoint
    }

    pub(crate) fn publish(&self) -> Vec<Record> {
        let compiled = compile(&self.objects, &self.options);
        let mut records = compiled.records;
        records.extend(self.proxy.publish(compiled.routes));
        records
    }

    /// An Ingress `name` with one rule for everything of a host, and annotations.
    pub(crate) fn ingress(&mut self, name: &str, host: &str, service: &str, annotations: Value) {
        let rule = json!([{"path": "/", "pathType": "Prefix", "backend": backend(service)}]);
        self.add(ingress(
            name,
            annotations,
            json!({"rules": [{"host": host, "http": {"paths": rule}}]}),
        ));
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.proxy.http().unwrap()
    }

    pub(crate) fn get(&self, host: &str, target: &str) -> Response {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    /// Sends text on a connection of its own and reads one response.
    pub(crate) fn send(&self, text: &str) -> Response {
        Client::new(self.http()).send(text).unwrap_or_else(|| panic!("no response to {text:?}"))
    }

    /// The value of a metric; `name` with its labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.proxy.metrics().text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    pub(crate) fn refused(&self, reason: &str) -> u64 {
        self.metric(&format!("podswitch_ingress_refused_total{{reason=\"{reason}\"}}"))
    }

    pub(crate) fn wait_refused(&self, reason: &str, count: u64) {
        wait(&format!("{count} refused for {reason}"), || self.refused(reason) >= count);
    }
}

/// Waits until something holds.
pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..LONG.as_millis() / 10 {
        if holds() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

pub(crate) fn backend(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"number": 8080}}})
}

pub(crate) fn ingress(name: &str, annotations: Value, spec: Value) -> Value {
    let prefixed: serde_json::Map<_, _> = annotations
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (format!("nginx.ingress.kubernetes.io/{key}"), value.clone()))
        .collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "annotations": prefixed}, "spec": spec,
    })
}

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_str())
    }

    /// What the endpoint got, of an `echo` endpoint.
    pub(crate) fn echo(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn service(&self) -> String {
        self.echo()["service"].as_str().unwrap().to_owned()
    }

    /// A field of the request that the endpoint got.
    pub(crate) fn seen(&self, name: &str) -> Option<String> {
        self.echo()["fields"][name].as_str().map(str::to_owned)
    }
}

/// A client's connection.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: BufReader<S>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self { stream: BufReader::new(stream) }
    }
}

impl<S: Read + Write> Client<S> {
    /// Sends text and reads a response; None if the connection ends instead.
    pub(crate) fn send(&mut self, text: &str) -> Option<Response> {
        self.stream.get_mut().write_all(text.as_bytes()).ok()?;
        self.response()
    }

    /// Reads a response; informational ones are skipped.
    pub(crate) fn response(&mut self) -> Option<Response> {
        loop {
            let response = self.one()?;
            if response.status >= 200 || response.status == 101 {
                return Some(response);
            }
        }
    }

    fn one(&mut self) -> Option<Response> {
        let line = self.line()?;
        let status: u16 = line.split(' ').nth(1)?.parse().ok()?;
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut response = Response { status, fields, body: Vec::new() };
        if let Some(length) = response.field("content-length") {
            response.body = vec![0; length.parse().ok()?];
            self.stream.read_exact(&mut response.body).ok()?;
        } else if response.field("transfer-encoding").is_some() {
            loop {
                let length = usize::from_str_radix(self.line()?.trim(), 16).ok()?;
                let mut chunk = vec![0; length + 2];
                self.stream.read_exact(&mut chunk).ok()?;
                response.body.extend_from_slice(&chunk[..length]);
                if length == 0 {
                    break;
                }
            }
        }
        Some(response)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line).ok()?;
        (length > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// A server whose responses say what it got. With `Upgrade` it echoes bytes.
pub(crate) fn echo(service: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let service = service.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let service = service.clone();
            thread::spawn(move || _ = echo_requests(stream, &service, address));
        }
    });
    address
}

fn echo_requests(stream: TcpStream, service: &str, address: SocketAddr) -> Option<()> {
    let mut client = Client { stream: BufReader::new(stream) };
    loop {
        let line = client.line()?;
        let mut fields = serde_json::Map::new();
        loop {
            let line = client.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            let (name, value) = (name.to_ascii_lowercase(), value.trim());
            match fields.get_mut(&name) {
                Some(Value::String(text)) => _ = write!(text, ", {value}"),
                _ => _ = fields.insert(name, value.into()),
            }
        }
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        if text("upgrade").is_some() {
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                        Upgrade: websocket\r\n\r\n";
            client.stream.get_mut().write_all(head.as_bytes()).ok()?;
            let mut buffer = [0; 4096];
            loop {
                let length = client.stream.read(&mut buffer).ok().filter(|n| *n > 0)?;
                client.stream.get_mut().write_all(&buffer[..length]).ok()?;
            }
        }
        let mut body = Vec::new();
        if let Some(length) = text("content-length") {
            body = vec![0; length.parse().ok()?];
            client.stream.read_exact(&mut body).ok()?;
        } else if text("transfer-encoding").is_some() {
            loop {
                let length = usize::from_str_radix(client.line()?.trim(), 16).ok()?;
                let mut chunk = vec![0; length + 2];
                client.stream.read_exact(&mut chunk).ok()?;
                body.extend_from_slice(&chunk[..length]);
                if length == 0 {
                    break;
                }
            }
        }
        let mut words = line.split(' ');
        let answer = json!({
            "service": service, "endpoint": address.to_string(), "method": words.next(),
            "target": words.next(), "proto": words.next(), "fields": fields,
            "body": String::from_utf8_lossy(&body),
        });
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        let out = if line.starts_with("HEAD") { head } else { head + &answer };
        client.stream.get_mut().write_all(out.as_bytes()).ok()?;
    }
}
