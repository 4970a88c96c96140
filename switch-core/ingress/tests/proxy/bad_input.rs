//! Requests that are malformed, ambiguous, too large or too slow: answered by the right status,
//! counted, and never passed on.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use serde_json::json;

use crate::lab::{Client, Lab, Response};

fn lab(change: impl FnOnce(&mut podswitch_ingress::proxy::Options)) -> Lab {
    let mut lab = Lab::with(change);
    lab.echo("web");
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    lab
}

/// The response, and whether the connection ends after it.
fn raw(lab: &Lab, text: &[u8]) -> (Option<Response>, bool) {
    let mut client = Client::new(lab.http());
    client.stream.get_mut().write_all(text).unwrap();
    let response = client.response();
    let is_closed = client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").is_none();
    (response, is_closed)
}

/// Each of these could be understood in two ways by two servers.
#[test]
fn ambiguous_requests_are_refused_and_their_connection_ends() {
    let lab = lab(|_| {});
    let post =
        |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{body}");
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let cases = [
        ("CL.TE", post("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nX")),
        (
            "TE.CL",
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
                &format!("0\r\n\r\n{smuggled}"),
            ),
        ),
        ("two lengths", post("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd")),
        ("list of lengths", post("Content-Length: 3, 4\r\n", "abcd")),
        ("signed length", post("Content-Length: +3\r\n", "abc")),
        ("negative length", post("Content-Length: -1\r\n", "")),
        ("hexadecimal length", post("Content-Length: 0x3\r\n", "abc")),
        ("huge length", post("Content-Length: 99999999999999999999999\r\n", "")),
        ("TE not chunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
        ("TE chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n")),
        ("TE identity", post("Transfer-Encoding: identity\r\n", "")),
        (
            "TE with a tab",
            post("Transfer-Encoding:\tchunked\r\nContent-Length: 3\r\n", "0\r\n\r\n"),
        ),
        ("space before the colon", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n")),
        ("obs-fold", post("X-A: b\r\n c\r\n", "")),
        ("obs-fold of TE", post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n")),
        ("field without colon", post("Nonsense\r\n", "")),
        ("NUL in a field", post("X-A: b\0c\r\n", "")),
        ("CR in a field", post("X-A: b\rc\r\n", "")),
        ("two hosts", post("Host: b.test\r\n", "")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n".to_owned()),
        ("host with a path", "GET / HTTP/1.1\r\nHost: a.test/x\r\n\r\n".to_owned()),
        ("host with a user", "GET / HTTP/1.1\r\nHost: u@a.test\r\n\r\n".to_owned()),
        ("clash", "GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("other scheme", "GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("no version", "GET /\r\nHost: a.test\r\n\r\n".to_owned()),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: a.test\r\n\r\n".to_owned()),
        ("HTTP/3.0", "GET / HTTP/3.0\r\nHost: a.test\r\n\r\n".to_owned()),
        ("space in the target", "GET /a b HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("bad method", "G@T / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        (
            "HTTP/1.0 with TE",
            "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
        ),
        ("above the root", "GET /../../etc/passwd HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("encoded above the root", "GET /%2e%2e/x HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("encoded NUL", "GET /%00 HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("bad encoding", "GET /%zz HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("asterisk", "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("TLS", "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n".to_owned()),
    ];
    for (name, text) in cases {
        let (response, is_closed) = raw(&lab, text.as_bytes());
        let response = response.unwrap_or_else(|| panic!("{name}: no response"));
        assert_eq!(response.status, 400, "{name}: {response:?}");
        assert!(is_closed, "{name}: the connection stays");
    }
    assert!(lab.refused("ambiguous_length") >= 2);
    assert!(lab.refused("host") >= 5);
    assert!(lab.refused("path") >= 5);
    assert!(lab.refused("malformed_head") >= 10);
}

#[test]
fn what_is_unusual_but_clear_is_served() {
    let lab = lab(|_| {});
    for (name, text, target) in [
        ("absolute form", "GET http://a.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n", "/x"),
        ("upper case", "GET /x HTTP/1.1\r\nHOST: A.TEST\r\n\r\n", "/x"),
        (
            "same length twice",
            "POST /x HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
            "/x",
        ),
        (
            "chunk extension",
            "POST /x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n0\r\n\r\n",
            "/x",
        ),
        ("HTTP/1.0", "GET /x HTTP/1.0\r\nHost: a.test\r\n\r\n", "/x"),
        ("empty lines first", "\r\n\r\nGET /x HTTP/1.1\r\nHost: a.test\r\n\r\n", "/x"),
        ("normalised once", "GET //a/./b/../x%2e HTTP/1.1\r\nHost: a.test\r\n\r\n", "/a/x."),
        ("encoded twice", "GET /%252e%252e/x HTTP/1.1\r\nHost: a.test\r\n\r\n", "/%252e%252e/x"),
    ] {
        let response = Client::new(lab.http()).send(text).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(response.echo()["target"], target, "{name}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let lab = lab(|_| {});
    let mut client = Client::new(lab.http());
    let one =
        |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nab");
    let all: String = (0..5).map(|number| one(&format!("/{number}"))).collect();
    client.stream.get_mut().write_all(all.as_bytes()).unwrap();
    for number in 0..5 {
        assert_eq!(client.response().unwrap().echo()["target"], format!("/{number}"));
    }
}

/// An ambiguous request behind a good one on the same connection is found as well.
#[test]
fn an_ambiguous_request_in_a_pipeline_is_refused() {
    let lab = lab(|_| {});
    let mut client = Client::new(lab.http());
    let text = "POST /1 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n\
                POST /2 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc\
                POST /3 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\
                Content-Length: 3\r\n\r\n0\r\n\r\nGET /4 HTTP/1.1\r\nHost: a.test\r\n\r\n";
    client.stream.get_mut().write_all(text.as_bytes()).unwrap();
    assert_eq!(client.response().unwrap().echo()["body"], "hello");
    assert_eq!(client.response().unwrap().echo()["body"], "abc");
    assert_eq!(client.response().unwrap().status, 400);
    assert!(client.response().is_none());
}

#[test]
fn methods_that_are_not_proxied() {
    let lab = lab(|_| {});
    for text in [
        "CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    ] {
        assert_eq!(lab.send(text).status, 405, "{text}");
    }
}

#[test]
fn heads_are_bounded() {
    let lab = lab(|options| options.max_head = 8 << 10);
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
    assert_eq!(lab.send(&head(&format!("X-A: {}\r\n", "x".repeat(7 << 10)))).status, 200);
    assert_eq!(lab.send(&head(&format!("X-A: {}\r\n", "x".repeat(9 << 10)))).status, 431);
    let many: String = (0..200).map(|number| format!("X-{number}: 1\r\n")).collect();
    assert_eq!(lab.send(&head(&many)).status, 431);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "x".repeat(9 << 10));
    assert!(matches!(lab.send(&long).status, 414 | 431));
    lab.wait_refused("head_too_large", 2);
}

/// Clients that send a head or a body slowly hold nothing for long.
#[test]
fn slow_clients_are_let_go() {
    let lab = lab(|options| {
        options.head_timeout = Duration::from_secs(1);
        options.client_timeout = Duration::from_secs(1);
    });
    let mut head = Client::new(lab.http());
    head.stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a.te").unwrap();
    let mut idle = Client::new(lab.http());
    let mut body = Client::new(lab.http());
    let text = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nabc";
    body.stream.get_mut().write_all(text.as_bytes()).unwrap();
    let mut tls = Client::new(lab.proxy.https().unwrap());
    assert_eq!(body.response().unwrap().status, 408);
    assert_eq!(head.response().expect("a response").status, 408);
    let mut rest = Vec::new();
    assert_eq!(head.stream.read_to_end(&mut rest).ok(), Some(0), "the connection ends");
    // Without a request, there is nothing to answer.
    assert!(idle.response().is_none());
    assert!(tls.response().is_none());
    lab.wait_refused("head_timeout", 2);
    lab.wait_refused("body_timeout", 1);
    lab.wait_refused("tls_handshake", 1);
    crate::lab::wait("no open connections", || {
        lab.metric("podswitch_ingress_open_connections") == 0
    });
}

#[test]
fn connections_are_bounded() {
    let lab = lab(|options| options.max_connections = 8);
    let mut clients: Vec<_> = (0..8).map(|_| Client::new(lab.http())).collect();
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    for client in &mut clients {
        assert_eq!(client.send(request).unwrap().status, 200);
    }
    assert!(Client::new(lab.http()).send(request).is_none());
    lab.wait_refused("connection_limit", 1);
    drop(clients);
    crate::lab::wait("served again", || {
        Client::new(lab.http()).send(request).is_some_and(|response| response.status == 200)
    });
}

/// A client that ends in its body.
#[test]
fn a_body_that_ends_early_is_not_passed_on_as_complete() {
    let lab = lab(|_| {});
    let mut client = Client::new(lab.http());
    let text = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nabc";
    client.stream.get_mut().write_all(text.as_bytes()).unwrap();
    client.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.response().is_none_or(|response| response.status == 400));
    let (response, _) = raw(
        &lab,
        b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
    );
    assert!(response.is_none_or(|response| response.status == 400));
    lab.wait_refused("body", 1);
}
