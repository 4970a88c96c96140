//! Gateway API: the scenarios of kubernetes-sigs/gateway-api's conformance suite (core, and those
//! extended ones that are supported) through the real proxy. Each test names the scenario that it
//! mirrors. Gateways ask for addresses of their own, as every Gateway of the suite has one.

mod filters;
mod hosts;
mod matching;
mod references;
mod secure;
mod status;
mod weights;

use std::net::SocketAddr;

use podswitch_ingress::{Compiled, Condition, compile};
use serde_json::{Value, json};

use crate::lab::{Client, Lab, Response};

const API: &str = "gateway.networking.k8s.io/v1";
const INFRA: &str = "gateway-conformance-infra";
const WEB: &str = "gateway-conformance-web-backend";
const APP: &str = "gateway-conformance-app-backend";

/// Addresses of the Gateways of the suite's base manifests.
const SAME: &str = "127.0.0.11";
const ALL: &str = "127.0.0.12";
const BACKENDS: &str = "127.0.0.13";
/// For the Gateway of a test.
const OWN: &str = "127.0.0.14";
const OTHER: &str = "127.0.0.15";

/// The base manifests: three Gateways, and Services in three namespaces.
fn base() -> Lab {
    let mut lab = Lab::with(|options| {
        options.http = Some("0.0.0.0:0".parse().unwrap());
        options.https = Some("0.0.0.0:0".parse().unwrap());
    });
    lab.add(json!({"apiVersion": API, "kind": "GatewayClass", "metadata": {"name": "ours"},
        "spec": {"controllerName": crate::lab::CONTROLLER}}));
    for (name, role) in [(INFRA, "infra"), (WEB, "backend"), (APP, "backend")] {
        let labels = json!({"gateway-conformance": role});
        lab.add(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": labels}}));
    }
    lab.add(gateway("same-namespace", SAME, json!([http("http", None, json!({"from": "Same"}))])));
    lab.add(gateway("all-namespaces", ALL, json!([http("http", None, json!({"from": "All"}))])));
    let selected = json!({"from": "Selector",
        "selector": {"matchLabels": {"gateway-conformance": "backend"}}});
    lab.add(gateway("backend-namespaces", BACKENDS, json!([http("http", None, selected)])));
    for (namespace, name) in [
        (INFRA, "infra-backend-v1"),
        (INFRA, "infra-backend-v2"),
        (INFRA, "infra-backend-v3"),
        (WEB, "web-backend"),
        (APP, "app-backend-v1"),
        (APP, "app-backend-v2"),
    ] {
        let endpoint = crate::lab::echo(name);
        service(&mut lab, namespace, name, endpoint);
    }
    lab
}

fn service(lab: &mut Lab, namespace: &str, name: &str, endpoint: SocketAddr) {
    lab.add(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": [{"name": "first-port", "port": 8080}]}}));
    lab.add(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [endpoint.ip().to_string()]}],
        "ports": [{"name": "first-port", "port": endpoint.port()}]}));
}

fn gateway(name: &str, address: &str, listeners: Value) -> Value {
    json!({"apiVersion": API, "kind": "Gateway",
        "metadata": {"name": name, "namespace": INFRA, "generation": 1},
        "spec": {"gatewayClassName": "ours", "addresses": [{"value": address}],
            "listeners": listeners}})
}

fn http(name: &str, hostname: Option<&str>, namespaces: Value) -> Value {
    let mut it = json!({"name": name, "port": 80, "protocol": "HTTP",
        "allowedRoutes": {"namespaces": namespaces}});
    if let Some(hostname) = hostname {
        it["hostname"] = hostname.into();
    }
    it
}

/// An HTTPRoute in the infra namespace.
fn route(name: &str, parents: Value, hostnames: &[&str], rules: Value) -> Value {
    route_in(INFRA, name, parents, hostnames, rules)
}

fn route_in(namespace: &str, name: &str, parents: Value, hosts: &[&str], rules: Value) -> Value {
    let mut it = json!({"apiVersion": API, "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": {"parentRefs": parents, "rules": rules}});
    if !hosts.is_empty() {
        it["spec"]["hostnames"] = json!(hosts);
    }
    it
}

fn same() -> Value {
    json!([{"name": "same-namespace"}])
}

fn to(backend: &str) -> Value {
    json!([{"name": backend, "port": 8080}])
}

fn v(number: u8) -> Value {
    to(&format!("infra-backend-v{number}"))
}

fn prefix(path: &str) -> Value {
    json!({"path": {"type": "PathPrefix", "value": path}})
}

/// A request: method, host, target and header fields.
#[derive(Clone, Copy)]
struct Ask<'a>(&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)]);

impl Ask<'_> {
    fn text(&self) -> String {
        let Self(method, host, target, fields) = self;
        let host = if host.is_empty() { "any.test" } else { host };
        let fields: String = fields.iter().map(|(name, it)| format!("{name}: {it}\r\n")).collect();
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
    }
}

/// Sends a request to a Gateway.
fn ask(lab: &Lab, gateway: &str, request: Ask<'_>) -> Response {
    let port = lab.http().port();
    let mut client = Client::new(SocketAddr::new(gateway.parse().unwrap(), port));
    client.send(&request.text()).unwrap_or_else(|| panic!("no response to {:?}", request.text()))
}

/// The number of the infra backend that is to answer, or a status.
#[track_caller]
fn check(lab: &Lab, gateway: &str, request: Ask<'_>, expected: u16) {
    let response = ask(lab, gateway, request);
    if expected < 100 {
        assert_eq!(response.service(), format!("infra-backend-v{expected}"), "{}", request.text());
        assert_eq!(response.echo()["target"], request.2);
    } else {
        assert_eq!(response.status, expected, "{}", request.text());
    }
}

fn compiled(lab: &Lab) -> Compiled {
    compile(&lab.objects, &lab.options)
}

/// `Kind=Status/Reason` of every condition.
fn texts(conditions: &[Condition]) -> Vec<String> {
    let text = |it: &Condition| format!("{}={}/{}", it.kind, it.holds, it.reason);
    conditions.iter().map(text).collect()
}

/// The conditions of a route of the infra namespace at its first parent.
fn of_route(lab: &Lab, name: &str) -> Vec<String> {
    let status = compiled(lab).status;
    let found = status.routes.iter().find(|it| it.name == name);
    let found = found.unwrap_or_else(|| panic!("no status of {name}"));
    texts(&found.parents[0].conditions)
}

/// The listeners of a Gateway: name, attached routes, conditions.
fn listeners(lab: &Lab, gateway: &str) -> Vec<(String, usize, Vec<String>)> {
    let status = compiled(lab).status;
    let found = status.gateways.iter().find(|it| it.name == gateway).expect("a status");
    let listener = |it: &podswitch_ingress::ListenerStatus| {
        (it.name.clone(), it.attached, texts(&it.conditions))
    };
    found.listeners.iter().map(listener).collect()
}

fn attached(lab: &Lab, gateway: &str) -> Vec<usize> {
    listeners(lab, gateway).into_iter().map(|it| it.1).collect()
}

const GOOD: [&str; 2] = ["Accepted=true/Accepted", "ResolvedRefs=true/ResolvedRefs"];

/// The status of a response to HEAD, which has no body.
fn head(address: SocketAddr, request: &str) -> u16 {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::lab::LONG)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0)
}
