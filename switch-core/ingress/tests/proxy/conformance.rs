//! The scenarios of ingress-controller-conformance: default_backend, host_rules, path_rules,
//! ingress_class and load_balancing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::lab::{Lab, backend, echo, ingress};
use crate::tls::{certificate, secret};

/// `default_backend`: method, host and path do not matter.
#[test]
fn an_ingress_without_rules_sends_everything_to_its_default_backend() {
    let mut lab = Lab::new();
    lab.echo("echo-service");
    lab.add(ingress(
        "default-backend",
        json!({}),
        json!({"defaultBackend": backend("echo-service")}),
    ));
    assert_eq!(lab.publish(), []);
    for (method, host, path) in [
        ("GET", "my-host", "/"),
        ("GET", "my-host", "/sub-path"),
        ("POST", "some-host", "/"),
        ("PUT", "", "/resource"),
        ("DELETE", "some-host", "/resource"),
        ("PATCH", "my-host", "/resource"),
    ] {
        let host = if host.is_empty() { lab.http().to_string() } else { host.to_owned() };
        let response = lab.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Go-http-client/1.1\r\n\r\n"
        ));
        let seen = response.echo();
        assert_eq!((&seen["service"], &seen["method"]), (&json!("echo-service"), &json!(method)));
        assert_eq!((&seen["target"], &seen["proto"]), (&json!(path), &json!("HTTP/1.1")));
        assert_eq!(response.seen("user-agent").as_deref(), Some("Go-http-client/1.1"));
        for field in ["content-length", "content-type", "date", "server"] {
            assert!(response.field(field).is_some(), "{field}");
        }
    }
}

fn host_rules() -> (Lab, Vec<u8>) {
    let mut lab = Lab::with(|options| options.ssl_redirect = false);
    let one = certificate(&["foo.bar.com"]);
    lab.add(secret("conformance-tls", &one));
    lab.echo("wildcard-foo-com");
    lab.echo("foo-bar-com");
    let path = |service: &str, port: Value| {
        json!({"paths": [{"path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": service, "port": port}}}]})
    };
    lab.add(ingress(
        "host-rules",
        json!({}),
        json!({
            "tls": [{"hosts": ["foo.bar.com"], "secretName": "conformance-tls"}],
            "rules": [
                {"host": "*.foo.com", "http": path("wildcard-foo-com", json!({"number": 8080}))},
                {"host": "foo.bar.com", "http": path("foo-bar-com", json!({"name": "http"}))},
            ],
        }),
    ));
    assert_eq!(lab.publish(), []);
    (lab, one.der)
}

/// `host_rules`.
#[test]
fn hosts_choose_the_backend() {
    let (lab, _) = host_rules();
    for (host, expected) in [
        ("foo.bar.com", Some("foo-bar-com")),
        ("subdomain.bar.com", None),
        ("bar.foo.com", Some("wildcard-foo-com")),
        ("baz.bar.foo.com", None),
        ("foo.com", None),
    ] {
        let response = lab.get(host, "/");
        match expected {
            Some(service) => {
                assert_eq!(response.service(), service, "{host}");
                assert_eq!(response.seen("host").as_deref(), Some(host));
            }
            None => assert_eq!(response.status, 404, "{host}"),
        }
    }
}

/// `host_rules`, by TLS.
#[test]
fn the_certificate_of_the_host_is_shown() {
    let (lab, der) = host_rules();
    let mut client = crate::tls::connect(&lab, "foo.bar.com", &der).expect("a verified connection");
    let response = client.send("GET / HTTP/1.1\r\nHost: foo.bar.com\r\n\r\n").unwrap();
    assert_eq!(response.service(), "foo-bar-com");
    assert_eq!(response.seen("host").as_deref(), Some("foo.bar.com"));
    assert_eq!(response.seen("x-forwarded-proto").as_deref(), Some("https"));
}

/// `path_rules`.
#[test]
fn paths_choose_the_backend() {
    let mut lab = Lab::new();
    let rules = [
        ("exact-path-rules", vec![("/foo", "Exact", "foo-exact")]),
        (
            "prefix-path-rules",
            vec![
                ("/foo", "Prefix", "foo-prefix"),
                ("/aaa/bbb", "Prefix", "aaa-slash-bbb-prefix"),
                ("/aaa", "Prefix", "aaa-prefix"),
            ],
        ),
        (
            "mixed-path-rules",
            vec![("/foo", "Prefix", "foo-prefix"), ("/foo", "Exact", "foo-exact")],
        ),
        (
            "trailing-slash-path-rules",
            vec![
                ("/aaa/bbb/", "Prefix", "aaa-slash-bbb-slash-prefix"),
                ("/foo/", "Exact", "foo-slash-exact"),
            ],
        ),
    ];
    let names: BTreeSet<_> = rules.iter().flat_map(|(_, paths)| paths).map(|it| it.2).collect();
    for name in names {
        lab.echo(name);
    }
    let rules: Vec<Value> = rules
        .iter()
        .map(|(host, paths)| {
            let paths: Vec<_> = paths
                .iter()
                .map(|(path, kind, service)| {
                    json!({"path": path, "pathType": kind, "backend": backend(service)})
                })
                .collect();
            json!({"host": host, "http": {"paths": paths}})
        })
        .collect();
    lab.add(ingress("path-rules", json!({}), json!({"rules": rules})));
    assert_eq!(lab.publish(), []);
    for (host, path, expected) in [
        ("exact-path-rules", "/foo", Some("foo-exact")),
        ("exact-path-rules", "/foo/", None),
        ("exact-path-rules", "/FOO", None),
        ("exact-path-rules", "/bar", None),
        ("prefix-path-rules", "/foo", Some("foo-prefix")),
        ("prefix-path-rules", "/foo/", Some("foo-prefix")),
        ("prefix-path-rules", "/FOO", None),
        ("prefix-path-rules", "/aaa/bbb", Some("aaa-slash-bbb-prefix")),
        ("prefix-path-rules", "/aaa/bbb/ccc", Some("aaa-slash-bbb-prefix")),
        ("prefix-path-rules", "/aaa/ccc", Some("aaa-prefix")),
        ("prefix-path-rules", "/aaaccc", None),
        ("mixed-path-rules", "/foo", Some("foo-exact")),
        ("trailing-slash-path-rules", "/aaa/bbb", Some("aaa-slash-bbb-slash-prefix")),
        ("trailing-slash-path-rules", "/aaa/bbb/", Some("aaa-slash-bbb-slash-prefix")),
        ("trailing-slash-path-rules", "/foo", None),
    ] {
        let response = lab.get(host, path);
        match expected {
            Some(service) => {
                assert_eq!(response.service(), service, "{host} {path}");
                assert_eq!(response.echo()["target"], path);
            }
            None => assert_eq!(response.status, 404, "{host} {path}"),
        }
    }
}

/// `ingress_class`.
#[test]
fn an_ingress_of_an_unknown_class_is_not_served() {
    let mut lab = Lab::new();
    lab.echo("ingress-class-prefix");
    let paths =
        json!([{"path": "/", "pathType": "Prefix", "backend": backend("ingress-class-prefix")}]);
    lab.add(ingress(
        "test-ingress-class",
        json!({}),
        json!({
            "ingressClassName": "some-invalid-class-name",
            "rules": [{"host": "ingress-class", "http": {"paths": paths}}],
        }),
    ));
    let compiled = podswitch_ingress::compile(&lab.objects, &lab.options);
    assert!(compiled.served.is_empty(), "its status would name an address");
    assert_eq!(compiled.records.len(), 1);
    assert_eq!(compiled.records[0].field, "spec.ingressClassName");
    lab.publish();
    assert_eq!(lab.get("ingress-class", "/").status, 404);
}

/// `load_balancing`.
#[test]
fn every_endpoint_gets_requests() {
    let mut lab = Lab::new();
    let endpoints: Vec<_> = (0..10).map(|_| echo("echo-service")).collect();
    lab.service("echo-service", &endpoints);
    lab.add(ingress(
        "load-balancing",
        json!({}),
        json!({"defaultBackend": backend("echo-service")}),
    ));
    lab.publish();
    let seen: BTreeSet<String> =
        (0..100).map(|_| lab.get("load-balancing", "/").echo()["endpoint"].to_string()).collect();
    assert_eq!(seen.len(), 10, "{seen:?}");
}

#[test]
fn without_a_service_or_endpoints_the_status_is_503() {
    let mut lab = Lab::new();
    lab.ingress("a", "a.test", "missing", json!({}));
    lab.service("empty", &[]);
    lab.ingress("b", "b.test", "empty", json!({}));
    let records = lab.publish();
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!((lab.get("a.test", "/").status, lab.get("b.test", "/").status), (503, 503));
    assert_eq!((lab.refused("no_endpoints"), lab.get("c.test", "/").status), (2, 404));
    let endpoint = echo("empty");
    lab.service("empty", &[endpoint]);
    lab.publish();
    assert_eq!(lab.get("b.test", "/x?y=1").echo()["target"], "/x?y=1");
}
