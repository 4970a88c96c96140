//! What annotations ask for, through real sockets.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::lab::{Client, Lab, Response, backend, echo, ingress};

/// A lab with one Ingress for `a.test`.
fn lab(annotations: Value) -> Lab {
    let mut lab = Lab::new();
    lab.echo("web");
    lab.ingress("a", "a.test", "web", annotations);
    assert_eq!(lab.publish(), []);
    lab
}

fn located(response: &Response) -> (u16, Option<&str>) {
    (response.status, response.field("location"))
}

#[test]
fn redirections() {
    let it = lab(json!({"force-ssl-redirect": "true"}));
    assert_eq!(located(&it.get("a.test", "/x?y")), (308, Some("https://a.test/x?y")));
    let it = lab(json!({"permanent-redirect": "https://new.test/z"}));
    assert_eq!(located(&it.get("a.test", "/x")), (301, Some("https://new.test/z")));
    let it = lab(json!({"temporal-redirect": "https://new.test", "temporal-redirect-code": "307"}));
    assert_eq!(located(&it.get("a.test", "/x")), (307, Some("https://new.test")));
    let it = lab(json!({"app-root": "/app/"}));
    assert_eq!(located(&it.get("a.test", "/")), (302, Some("/app/")));
    assert_eq!(it.get("a.test", "/app/").echo()["target"], "/app/");
}

#[test]
fn paths_are_rewritten() {
    let mut lab = Lab::new();
    lab.echo("web");
    let spec = |path: &str, kind: &str| {
        let paths = json!([{"path": path, "pathType": kind, "backend": backend("web")}]);
        json!({"rules": [{"host": "a.test", "http": {"paths": paths}}]})
    };
    let groups = json!({"rewrite-target": "/$2", "use-regex": "true"});
    lab.add(ingress("a", groups, spec("/something(/|$)(.*)", "ImplementationSpecific")));
    lab.add(ingress("b", json!({"rewrite-target": "/fixed"}), spec("/plain", "Prefix")));
    lab.add(ingress("c", json!({"rewrite-target": "/files/$1?c=1"}), spec("/f(.*)", "Prefix")));
    assert_eq!(lab.publish(), []);
    for (path, target) in [
        ("/something", "/"),
        ("/something/", "/"),
        ("/something/new?a=b", "/new?a=b"),
        ("/SOMETHING/new", "/new"),
        ("/plain/x", "/fixed"),
        ("/plain?a=b", "/fixed?a=b"),
        ("/f/y", "/files/y?c=1"),
        ("/fy?a=b", "/files/y?c=1&a=b"),
        ("/f..y", "/files/..y?c=1"),
    ] {
        assert_eq!(lab.get("a.test", path).echo()["target"], target, "{path}");
    }
    // A group does not lead out of the target's folder.
    assert_eq!(lab.get("a.test", "/f../secret").status, 400);
    assert_eq!(lab.get("a.test", "/f%2E%2E/secret").status, 400);
    assert_eq!(lab.refused("path"), 2);
    assert_eq!(lab.get("a.test", "/somethingelse").status, 404);
    assert_eq!(lab.get("a.test", "/x/something/").status, 404);
}

#[test]
fn a_cookie_keeps_a_client_at_one_endpoint() {
    let mut lab = Lab::new();
    let endpoints: Vec<_> = (0..4).map(|_| echo("web")).collect();
    lab.service("web", &endpoints);
    let annotations = json!({
        "affinity": "cookie", "session-cookie-name": "route", "session-cookie-max-age": "600",
        "session-cookie-samesite": "Lax", "session-cookie-path": "/shop",
    });
    lab.ingress("a", "a.test", "web", annotations);
    lab.publish();
    let first = lab.get("a.test", "/");
    let cookie = first.field("set-cookie").unwrap().to_owned();
    let pair = cookie.split(';').next().unwrap().to_owned();
    assert!(pair.starts_with("route="), "{cookie}");
    for part in ["Max-Age=600", "Path=/shop", "SameSite=Lax", "HttpOnly"] {
        assert!(cookie.split("; ").any(|it| it == part), "{part} in {cookie}");
    }
    assert!(!cookie.contains("127.0.0.1") && !cookie.contains("Secure"), "{cookie}");
    let with_cookie = |lab: &Lab| {
        lab.send(&format!("GET / HTTP/1.1\r\nHost: a.test\r\nCookie: x=1; {pair}\r\n\r\n"))
    };
    let endpoint = first.echo()["endpoint"].clone();
    for _ in 0..20 {
        let response = with_cookie(&lab);
        assert_eq!(response.echo()["endpoint"], endpoint);
        assert_eq!(response.field("set-cookie"), None);
    }
    // Without the cookie, all endpoints are used.
    let seen: BTreeSet<_> =
        (0..40).map(|_| lab.get("a.test", "/").echo()["endpoint"].to_string()).collect();
    assert_eq!(seen.len(), 4);
    // The endpoint goes: another one, and another cookie.
    let rest: Vec<_> = endpoints.iter().copied().filter(|it| endpoint != it.to_string()).collect();
    let mut after = Lab::new();
    after.service("web", &rest);
    after.ingress(
        "a",
        "a.test",
        "web",
        json!({"affinity": "cookie", "session-cookie-name": "route"}),
    );
    after.publish();
    let response = with_cookie(&after);
    assert_ne!(response.echo()["endpoint"], endpoint);
    assert!(response.field("set-cookie").is_some());
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    let it = lab(json!({"proxy-body-size": "1k"}));
    let post = |length: usize| {
        it.send(&format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{}",
            "x".repeat(length)
        ))
    };
    assert_eq!(post(1024).echo()["body"].as_str().unwrap().len(), 1024);
    assert_eq!(post(1025).status, 413);
    let chunked = |length: usize| {
        format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n\
             {length:x}\r\n{}\r\n0\r\n\r\n",
            "x".repeat(length)
        )
    };
    assert_eq!(it.send(&chunked(1000)).echo()["body"].as_str().unwrap().len(), 1000);
    assert_eq!(it.send(&chunked(2000)).status, 413);
    assert_eq!(it.refused("body_too_large"), 2);
    let unlimited = lab(json!({"proxy-body-size": "0"}));
    let large = chunked(3 << 20);
    assert_eq!(unlimited.send(&large).echo()["body"].as_str().unwrap().len(), 3 << 20);
}

#[test]
fn clients_outside_the_ranges_are_refused() {
    let inside = lab(json!({"whitelist-source-range": "10.0.0.0/8, 127.0.0.0/8"}));
    assert_eq!(inside.get("a.test", "/").status, 200);
    let outside = lab(json!({"whitelist-source-range": "10.0.0.0/8"}));
    assert_eq!(outside.get("a.test", "/").status, 403);
    assert_eq!(outside.refused("source_range"), 1);
    // X-Forwarded-For is believed of trusted proxies only.
    let text = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 10.0.0.7\r\n\r\n";
    assert_eq!(outside.send(text).status, 403);
    let mut trusting =
        Lab::with(|options| options.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]);
    trusting.echo("web");
    trusting.ingress("a", "a.test", "web", json!({"whitelist-source-range": "10.0.0.0/8"}));
    trusting.publish();
    assert_eq!(trusting.send(text).status, 200);
    assert_eq!(trusting.get("a.test", "/").status, 403);
}

/// What restricts access and is not honoured closes the Ingress, and no other one.
#[test]
fn restrictions_that_are_not_honoured_close_the_ingress() {
    let mut lab = Lab::new();
    lab.echo("web");
    lab.ingress("a", "a.test", "web", json!({"auth-type": "basic", "auth-secret": "users"}));
    lab.ingress("b", "b.test", "web", json!({"proxy-buffer-size": "8k"}));
    let records = lab.publish();
    assert_eq!(records.len(), 3, "{records:?}");
    assert!(records.iter().all(|record| record.field.contains("nginx.ingress.kubernetes.io/")));
    assert_eq!((lab.get("a.test", "/").status, lab.get("b.test", "/").status), (503, 200));
}

#[test]
fn cross_origin_requests() {
    let it = lab(
        json!({"enable-cors": "true", "cors-allow-origin": "https://*.b.test, https://c.test"}),
    );
    let ask = |method: &str, origin: &str| {
        it.send(&format!(
            "{method} / HTTP/1.1\r\nHost: a.test\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: PUT\r\n\r\n"
        ))
    };
    let preflight = ask("OPTIONS", "https://x.b.test");
    assert_eq!(preflight.status, 204);
    let field = "access-control-allow-origin";
    assert_eq!(preflight.field(field), Some("https://x.b.test"));
    assert!(preflight.field("access-control-allow-methods").unwrap().contains("PUT"));
    assert_eq!(ask("GET", "https://c.test").field(field), Some("https://c.test"));
    for other in ["https://b.test", "https://xb.test", "http://x.b.test", "https://x.b.test.evil"] {
        assert_eq!(ask("GET", other).field(field), None, "{other}");
    }
}

/// The defaults are any origin and credentials: together they would let every site act in the name
/// of the user.
#[test]
fn any_origin_gets_no_credentials() {
    let it = lab(json!({"enable-cors": "true"}));
    for (method, status) in [("GET", 200), ("OPTIONS", 204)] {
        let response = it.send(&format!(
            "{method} / HTTP/1.1\r\nHost: a.test\r\nOrigin: https://evil.test\r\n\
             Access-Control-Request-Method: PUT\r\n\r\n"
        ));
        assert_eq!(response.status, status);
        assert_eq!(response.field("access-control-allow-origin"), Some("*"));
        assert_eq!(response.field("access-control-allow-credentials"), None);
    }
}

/// With the PROXY protocol, both the sender and the address that it names have to be trusted.
#[test]
fn a_claimed_address_alone_is_not_trusted() {
    for (trusted, expected) in [
        (vec!["127.0.0.0/8", "192.0.2.0/24"], "1.2.3.4, 192.0.2.7"),
        (vec!["127.0.0.0/8"], "192.0.2.7"),
        (vec!["192.0.2.0/24"], "192.0.2.7"),
    ] {
        let mut lab = Lab::with(|options| {
            options.proxy_protocol = true;
            options.trusted_proxies = trusted.iter().map(|it| it.parse().unwrap()).collect();
        });
        lab.echo("web");
        lab.ingress("a", "a.test", "web", json!({}));
        lab.publish();
        let response = lab.send(
            "PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n\
             GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
        );
        assert_eq!(response.seen("x-forwarded-for").as_deref(), Some(expected), "{trusted:?}");
    }
}

#[test]
fn a_canary_takes_its_part() {
    let mut lab = Lab::new();
    lab.echo("web");
    lab.echo("next");
    lab.ingress("a", "a.test", "web", json!({}));
    let canary = json!({"canary": "true", "canary-weight": "50", "canary-by-header": "x-canary"});
    lab.ingress("b", "a.test", "next", canary);
    assert_eq!(lab.publish(), []);
    let with = |value: &str| {
        lab.send(&format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-Canary: {value}\r\n\r\n")).service()
    };
    assert_eq!((with("always"), with("never")), ("next".to_owned(), "web".to_owned()));
    // 200 times the same side of an even chance: once in 10^59 runs.
    let seen: BTreeSet<_> = (0..200).map(|_| lab.get("a.test", "/").service()).collect();
    assert_eq!(seen.len(), 2);
}

/// A canary does not open what the Ingress restricts whose requests it takes.
#[test]
fn a_canary_inherits_restrictions() {
    let mut lab = Lab::new();
    lab.echo("web");
    lab.echo("next");
    lab.ingress("a", "a.test", "web", json!({"whitelist-source-range": "10.0.0.0/8"}));
    lab.ingress("b", "a.test", "next", json!({"canary": "true", "canary-weight": "100"}));
    assert_eq!(lab.publish(), []);
    assert_eq!(lab.get("a.test", "/").status, 403);
}

#[test]
fn forwarded_fields_name_the_client() {
    let it = lab(json!({"upstream-vhost": "inner.test"}));
    let response = it.send(
        "GET / HTTP/1.1\r\nHost: a.test:80\r\nX-Forwarded-For: 1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\n\
         X-Forwarded-Proto: https\r\nConnection: keep-alive, x-secret\r\nX-Secret: 1\r\n\
         Keep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip\r\n\r\n",
    );
    for (name, value) in [
        ("host", Some("inner.test")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-real-ip", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("a.test:80")),
        ("x-secret", None),
        ("keep-alive", None),
        ("proxy-connection", None),
        ("te", None),
    ] {
        assert_eq!(response.seen(name).as_deref(), value, "{name}");
    }
    assert_eq!(response.seen("x-request-id").unwrap().len(), 32);
}

#[test]
fn the_proxy_protocol_names_the_client() {
    let mut lab = Lab::with(|options| options.proxy_protocol = true);
    lab.echo("web");
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let response = lab.send(&format!("PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n{request}"));
    assert_eq!(response.seen("x-forwarded-for").as_deref(), Some("192.0.2.7"));
    assert!(Client::new(lab.http()).send(request).is_none(), "the header is missing");
    lab.wait_refused("proxy_header", 1);
}

#[test]
fn an_endpoint_that_refuses_or_ends_does_not_fail_a_request() {
    let mut lab = Lab::new();
    let living = echo("web");
    // Bound, so that nobody else gets their ports, but not listening.
    let sockets = [(); 2].map(|()| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket
    });
    let dead = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
    lab.service("web", &[dead[0], living, dead[1]]);
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    for _ in 0..12 {
        assert_eq!(lab.get("a.test", "/").status, 200);
    }
    let mut lab = Lab::new();
    lab.service("web", &dead);
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    assert_eq!((lab.get("a.test", "/").status, lab.refused("connect")), (502, 1));
}

/// An endpoint that closes a connection after its response, as idle ones are closed.
#[test]
fn a_kept_connection_that_ends_does_not_fail_a_request() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            _ = std::io::Read::read(&mut stream, &mut head);
            let text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            _ = std::io::Write::write_all(&mut stream, text.as_bytes());
        }
    });
    let mut lab = Lab::new();
    lab.service("web", &[address]);
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    let mut client = Client::new(lab.http());
    for _ in 0..20 {
        let response = client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        assert_eq!(response.status, 200);
    }
}

#[test]
fn an_endpoint_that_does_not_answer_is_504() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut lab = Lab::new();
    lab.service("web", &[listener.local_addr().unwrap()]);
    lab.ingress("a", "a.test", "web", json!({"proxy-read-timeout": "1"}));
    lab.publish();
    assert_eq!((lab.get("a.test", "/").status, lab.refused("endpoint_timeout")), (504, 1));
}
