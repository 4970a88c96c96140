//! Filters: header fields, redirections, rewrites; timeouts.

use std::io::Read as _;
use std::net::TcpListener;

use serde_json::json;

use super::*;

/// HTTPRouteRequestHeaderModifier.
#[test]
fn header_fields_of_requests() {
    let mut lab = base();
    let rule = |path: &str, changes: Value| {
        json!({"matches": [prefix(path)], "backendRefs": v(1), "filters":
            [{"type": "RequestHeaderModifier", "requestHeaderModifier": changes}]})
    };
    let pair = |name: &str, value: &str| json!({"name": name, "value": value});
    lab.add(route(
        "request-header-modifier",
        same(),
        &[],
        json!([
            rule("/set", json!({"set": [pair("X-Header-Set", "set-overwrites-values")]})),
            rule("/add", json!({"add": [pair("X-Header-Add", "add-appends-values")]})),
            rule("/remove", json!({"remove": ["X-Header-Remove"]})),
            rule("/multiple", json!({
                "set": [pair("X-Header-Set-1", "header-set-1"), pair("X-Header-Set-2", "header-set-2")],
                "add": [pair("X-Header-Add-1", "header-add-1"), pair("X-Header-Add-2", "header-add-2"),
                    pair("X-Header-Add-3", "header-add-3")],
                "remove": ["X-Header-Remove-1", "X-Header-Remove-2"],
            })),
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (path, sent, seen) in [
        (
            "/set",
            &[("Some-Other-Header", "val")][..],
            &[("some-other-header", Some("val")), ("x-header-set", Some("set-overwrites-values"))]
                [..],
        ),
        (
            "/set",
            &[("X-Header-Set", "some-other-value")],
            &[("x-header-set", Some("set-overwrites-values"))],
        ),
        ("/add", &[], &[("x-header-add", Some("add-appends-values"))]),
        (
            "/add",
            &[("x-header-add", "some-other-value")],
            &[("x-header-add", Some("some-other-value,add-appends-values"))],
        ),
        ("/remove", &[("X-Header-Remove", "val")], &[("x-header-remove", None)]),
        (
            "/multiple",
            &[
                ("X-Header-Set-2", "set-val-2"),
                ("X-Header-Add-2", "add-val-2"),
                ("x-header-remove-2", "remove-val-2"),
                ("Another-Header", "another-header-val"),
            ],
            &[
                ("x-header-set-1", Some("header-set-1")),
                ("x-header-set-2", Some("header-set-2")),
                ("x-header-add-1", Some("header-add-1")),
                ("x-header-add-2", Some("add-val-2,header-add-2")),
                ("x-header-add-3", Some("header-add-3")),
                ("x-header-remove-1", None),
                ("x-header-remove-2", None),
                ("another-header", Some("another-header-val")),
            ],
        ),
    ] {
        let response = ask(&lab, SAME, Ask("GET", "", path, sent));
        for (name, expected) in seen {
            assert_eq!(response.seen(name).as_deref(), *expected, "{path} {name}");
        }
    }
}

/// HTTPRouteResponseHeaderModifier, and filters of backends (HTTPRouteBackendRequestHeaderModifier).
#[test]
fn header_fields_of_responses_and_of_backends() {
    let mut lab = base();
    let pair = |name: &str, value: &str| json!({"name": name, "value": value});
    let changes = json!({"set": [pair("Content-Type", "text/x")], "add": [pair("X-Added", "1")],
        "remove": ["Server"]});
    let own = json!({"type": "RequestHeaderModifier",
        "requestHeaderModifier": {"add": [pair("X-Backend", "one")]}});
    let mut backend = v(1);
    backend[0]["filters"] = json!([own]);
    lab.add(route(
        "response",
        same(),
        &[],
        json!([{"backendRefs": backend, "filters": [
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": changes},
            {"type": "RequestHeaderModifier",
                "requestHeaderModifier": {"set": [pair("X-Backend", "rule")]}},
        ]}]),
    ));
    assert_eq!(lab.publish(), []);
    let response = ask(&lab, SAME, Ask("GET", "", "/", &[]));
    assert_eq!(response.field("content-type"), Some("text/x"));
    assert_eq!(response.field("x-added"), Some("1"));
    assert_eq!(response.seen("x-backend").as_deref(), Some("rule,one"));
}

fn redirect(path: &str, it: Value) -> Value {
    json!({"matches": [prefix(path)],
        "filters": [{"type": "RequestRedirect", "requestRedirect": it}]})
}

/// HTTPRouteRedirectHostAndStatus, and of the extended ones: Path, Port, Scheme, 303, 307, 308.
#[test]
fn redirections() {
    let mut lab = base();
    let part = |to: &str| json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": to});
    let full = |to: &str| json!({"type": "ReplaceFullPath", "replaceFullPath": to});
    let host = "example.org";
    lab.add(route(
        "redirect",
        same(),
        &[],
        json!([
            redirect("/hostname-redirect", json!({"hostname": host})),
            redirect("/host-and-status", json!({"hostname": host, "statusCode": 301})),
            redirect("/original-prefix", json!({"path": part("/replacement-prefix")})),
            redirect("/full", json!({"path": full("/full-path-replacement")})),
            redirect(
                "/path-and-host",
                json!({"hostname": host, "path": part("/replacement-prefix")})
            ),
            redirect(
                "/full-path-and-status",
                json!({"path": full("/replacement-full"), "statusCode": 301})
            ),
        ]),
    ));
    lab.add(route(
        "more",
        same(),
        &[],
        json!([
            redirect("/port", json!({"port": 8083})),
            redirect("/port-and-host", json!({"hostname": host, "port": 8083})),
            redirect("/scheme", json!({"scheme": "https"})),
            redirect("/scheme-and-port", json!({"scheme": "https", "hostname": host, "port": 443})),
            redirect(
                "/scheme-and-8443",
                json!({"scheme": "https", "hostname": host, "port": 8443})
            ),
            redirect("/port-80", json!({"port": 80, "hostname": host})),
            redirect("/303", json!({"statusCode": 303})),
            redirect("/307", json!({"statusCode": 307})),
            redirect("/308", json!({"statusCode": 308})),
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (target, status, location) in [
        ("/hostname-redirect", 302, "http://example.org/hostname-redirect"),
        ("/host-and-status", 301, "http://example.org/host-and-status"),
        ("/original-prefix/lemon", 302, "http://any.test/replacement-prefix/lemon"),
        ("/full/path/original?q=1", 302, "http://any.test/full-path-replacement?q=1"),
        ("/path-and-host", 302, "http://example.org/replacement-prefix"),
        ("/full-path-and-status", 301, "http://any.test/replacement-full"),
        ("/port", 302, "http://any.test:8083/port"),
        ("/port-and-host", 302, "http://example.org:8083/port-and-host"),
        ("/scheme", 302, "https://any.test/scheme"),
        ("/scheme-and-port", 302, "https://example.org/scheme-and-port"),
        ("/scheme-and-8443", 302, "https://example.org:8443/scheme-and-8443"),
        ("/port-80", 302, "http://example.org/port-80"),
        ("/303", 303, "http://any.test/303"),
        ("/307", 307, "http://any.test/307"),
        ("/308", 308, "http://any.test/308"),
    ] {
        let response = ask(&lab, SAME, Ask("GET", "", target, &[]));
        assert_eq!((response.status, response.field("location")), (status, Some(location)));
    }
}

/// HTTPRouteRewritePath and HTTPRouteRewriteHost.
#[test]
fn rewrites() {
    let mut lab = base();
    let rule = |path: &str, it: Value| {
        json!({"matches": [prefix(path)], "backendRefs": v(1),
            "filters": [{"type": "URLRewrite", "urlRewrite": it}]})
    };
    let part = |to: &str| json!({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": to}});
    let full = |to: &str| json!({"path": {"type": "ReplaceFullPath", "replaceFullPath": to}});
    lab.add(route(
        "rewrite",
        same(),
        &[],
        json!([
            rule("/prefix/one", part("/one")),
            rule("/strip-prefix", part("/")),
            rule("/full/one", full("/one")),
            rule("/host", json!({"hostname": "one.example.org"})),
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (target, expected, host) in [
        ("/prefix/one/two?x=1", "/one/two?x=1", "any.test"),
        ("/prefix/one", "/one", "any.test"),
        ("/strip-prefix/three", "/three", "any.test"),
        ("/strip-prefix", "/", "any.test"),
        ("/full/one/two", "/one", "any.test"),
        ("/host", "/host", "one.example.org"),
    ] {
        let response = ask(&lab, SAME, Ask("GET", "", target, &[]));
        assert_eq!(response.echo()["target"], expected);
        assert_eq!(response.seen("host").as_deref(), Some(host));
    }
}

/// HTTPRouteTimeoutRequest and HTTPRouteTimeoutBackendRequest: an endpoint that says nothing.
#[test]
fn timeouts() {
    let mut lab = base();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    service(&mut lab, INFRA, "silent", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut kept: Vec<_> = listener.incoming().flatten().collect();
        kept.iter_mut().for_each(|stream| _ = stream.read(&mut [0]));
    });
    let rule = |path: &str, to: &str, timeouts: Value| json!({"matches": [prefix(path)], "backendRefs": self::to(to), "timeouts": timeouts});
    lab.add(route(
        "timeouts",
        same(),
        &[],
        json!([
            rule("/request", "silent", json!({"request": "50ms"})),
            rule("/backend", "silent", json!({"request": "1h", "backendRequest": "50ms"})),
            rule("/none", "infra-backend-v1", json!({"request": "0s"})),
            rule("/long", "infra-backend-v1", json!({"request": "30s"})),
        ]),
    ));
    assert_eq!(lab.publish(), []);
    check(&lab, SAME, Ask("GET", "", "/request", &[]), 504);
    check(&lab, SAME, Ask("GET", "", "/backend", &[]), 504);
    check(&lab, SAME, Ask("GET", "", "/none", &[]), 1);
    check(&lab, SAME, Ask("GET", "", "/long", &[]), 1);
    assert_eq!(lab.refused("endpoint_timeout"), 2);
}

/// What a filter cannot do is not left out: the rule answers with status 500. Not of the suite.
#[test]
fn filters_that_cannot_be_used() {
    let mut lab = base();
    let rule = |path: &str, filter: Value| json!({"matches": [prefix(path)], "backendRefs": v(1), "filters": [filter]});
    let set = |name: &str, value: &str| {
        json!({"type": "RequestHeaderModifier",
            "requestHeaderModifier": {"set": [{"name": name, "value": value}]}})
    };
    let path = json!({"type": "ReplaceFullPath", "replaceFullPath": "/../x"});
    let bad = [
        json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "x"}}}),
        json!({"type": "ExtensionRef", "extensionRef": {"group": "g", "kind": "K", "name": "n"}}),
        json!({"type": "CORS", "cors": {}}),
        json!({"type": "Other"}),
        json!({"type": "RequestRedirect"}),
        set("Transfer-Encoding", "chunked"),
        set("a b", "x"),
        set("x", "a\r\nb: c"),
        json!({"type": "URLRewrite", "urlRewrite": {"path": path}}),
        json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "a/b"}}),
        json!({"type": "RequestRedirect", "requestRedirect": {"statusCode": 200}}),
    ];
    let count = bad.len();
    let rules = bad.into_iter().enumerate().map(|(at, filter)| rule(&format!("/{at}"), filter));
    let mut rules: Vec<_> = rules.collect();
    rules.push(json!({"backendRefs": v(2)}));
    lab.add(route("partly", same(), &[], json!(rules)));
    let records = lab.publish();
    assert_eq!(records.len(), count, "{records:#?}");
    let record = records[0].to_string();
    assert!(record.contains("HTTPRoute/gateway-conformance-infra/partly"), "{record}");
    assert!(record.contains("spec.rules[0].filters[0].type"), "{record}");
    for at in 0..count {
        check(&lab, SAME, Ask("GET", "", &format!("/{at}"), &[]), 500);
    }
    check(&lab, SAME, Ask("GET", "", "/", &[]), 2);
    let partly = ["PartiallyInvalid=true/UnsupportedValue".to_owned()];
    assert_eq!(of_route(&lab, "partly"), [&GOOD.map(str::to_owned)[..], &partly].concat());
    // Nothing of it is left.
    rules.pop();
    lab.add(route("partly", same(), &[], json!(rules)));
    lab.publish();
    let refused = ["Accepted=false/UnsupportedValue", GOOD[1]];
    assert_eq!(of_route(&lab, "partly"), refused);
    check(&lab, SAME, Ask("GET", "", "/0", &[]), 404);
}
