//! HTTPS listeners, through the real proxy.

use std::net::TcpStream;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;

use super::*;
use crate::lab::LONG;
use crate::tls::{certificate, secret, trusting};

fn https(name: &str, host: Option<&str>, secret: &str) -> Value {
    let mut it = http(name, host, json!({"from": "Same"}));
    it["port"] = 443.into();
    it["protocol"] = "HTTPS".into();
    it["tls"] = json!({"certificateRefs": [{"group": "", "kind": "Secret", "name": secret}]});
    it
}

fn add_secret(lab: &mut Lab, name: &str, names: &[&str]) -> Vec<u8> {
    let made = certificate(names);
    let mut secret = secret(name, &made);
    secret["metadata"]["namespace"] = INFRA.into();
    lab.add(secret);
    made.der
}

/// A request over TLS to a Gateway, with the host as the server name; None: no trusted handshake.
fn ask_tls(lab: &Lab, gateway: &str, host: &str, path: &str, trusted: &[u8]) -> Option<Response> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut connection = ClientConnection::new(trusting(trusted, &[]), name).unwrap();
    let port = lab.proxy.https().unwrap().port();
    let mut stream = TcpStream::connect((gateway, port)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).ok()?;
    }
    let stream = std::io::BufReader::new(StreamOwned::new(connection, stream));
    Client { stream }.send(&Ask("GET", host, path, &[]).text())
}

/// HTTPRouteHTTPSListener.
#[test]
fn routes_of_https_listeners() {
    let mut lab = base();
    let names = ["example.org", "unknown-example.org", "second-example.org", "x.wildcard.org"];
    let der = add_secret(&mut lab, "validity", &names);
    lab.add(gateway(
        "secure",
        OWN,
        json!([
            https("https", None, "validity"),
            https("https-with-hostname", Some("second-example.org"), "validity"),
            https("https-with-wildcard-hostname", Some("*.wildcard.org"), "validity"),
        ]),
    ));
    let rules = |to: u8| json!([{"backendRefs": v(to)}]);
    lab.add(route("https-test", json!([{"name": "secure"}]), &["example.org"], rules(1)));
    let named = json!([{"name": "secure", "sectionName": "https-with-hostname"}]);
    lab.add(route("https-test-no-hostname", named, &[], rules(2)));
    assert_eq!(lab.publish(), []);
    assert_eq!(attached(&lab, "secure"), [1, 1, 0]);
    for (host, expected) in
        [("example.org", 1), ("unknown-example.org", 404), ("second-example.org", 2)]
    {
        let response = ask_tls(&lab, OWN, host, "/", &der).expect("a response");
        match expected {
            404 => assert_eq!(response.status, 404),
            number => assert_eq!(response.service(), format!("infra-backend-v{number}")),
        }
    }
    // Plain HTTP has none of it, and the address of another Gateway no certificate.
    check(&lab, OWN, Ask("GET", "example.org", "/", &[]), 404);
    assert!(ask_tls(&lab, SAME, "example.org", "/", &der).is_none());
}

/// The certificate of the listener with the most specific host, at the address of its Gateway. Not of
/// the suite.
#[test]
fn certificates_by_listener_and_address() {
    let mut lab = base();
    let names = ["a.b.test", "x.b.test", "y.test"];
    let ders: Vec<_> = ["one", "two", "three", "four"]
        .into_iter()
        .map(|name| add_secret(&mut lab, name, &names))
        .collect();
    lab.add(gateway(
        "first",
        OWN,
        json!([
            https("exact", Some("a.b.test"), "one"),
            https("wildcard", Some("*.b.test"), "two"),
            https("any", None, "three"),
        ]),
    ));
    lab.add(gateway("second", OTHER, json!([https("exact", Some("a.b.test"), "four")])));
    for name in ["first", "second"] {
        lab.add(route(name, json!([{"name": name}]), &[], json!([{"backendRefs": v(1)}])));
    }
    assert_eq!(lab.publish(), []);
    for (gateway, host, expected) in [
        (OWN, "a.b.test", Some(0)),
        (OWN, "x.b.test", Some(1)),
        (OWN, "y.test", Some(2)),
        (OTHER, "a.b.test", Some(3)),
        (OTHER, "x.b.test", None),
    ] {
        for (at, der) in ders.iter().enumerate() {
            let is_shown = ask_tls(&lab, gateway, host, "/", der).is_some();
            assert_eq!(is_shown, expected == Some(at), "{gateway} {host} {at}");
        }
    }
}

/// HTTPRouteRedirectPortAndScheme, at the HTTPS listener.
#[test]
fn redirections_of_https_listeners() {
    let mut lab = base();
    let der = add_secret(&mut lab, "validity", &["example.org"]);
    lab.add(gateway("secure", OWN, json!([https("https", None, "validity")])));
    let rule = |path: &str, it: Value| {
        json!({"matches": [prefix(path)],
            "filters": [{"type": "RequestRedirect", "requestRedirect": it}]})
    };
    let host = "example.org";
    lab.add(route(
        "redirect",
        json!([{"name": "secure"}]),
        &[],
        json!([
            rule("/nil-nil", json!({"hostname": host})),
            rule("/nil-443", json!({"hostname": host, "port": 443})),
            rule("/nil-8443", json!({"hostname": host, "port": 8443})),
            rule("/http-nil", json!({"hostname": host, "scheme": "http"})),
            rule("/http-80", json!({"hostname": host, "scheme": "http", "port": 80})),
            rule("/http-8080", json!({"hostname": host, "scheme": "http", "port": 8080})),
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (path, start) in [
        ("/nil-nil", "https://example.org"),
        ("/nil-443", "https://example.org"),
        ("/nil-8443", "https://example.org:8443"),
        ("/http-nil", "http://example.org"),
        ("/http-80", "http://example.org"),
        ("/http-8080", "http://example.org:8080"),
    ] {
        let response = ask_tls(&lab, OWN, host, path, &der).expect("a response");
        assert_eq!(response.status, 302);
        assert_eq!(response.field("location"), Some(&*format!("{start}{path}")));
    }
}
