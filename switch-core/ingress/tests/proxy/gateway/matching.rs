//! Which rule has a request.

use serde_json::json;

use super::*;

/// HTTPRouteSimpleSameNamespace.
#[test]
fn a_route_of_the_gateways_namespace() {
    let mut lab = base();
    lab.add(route("simple", same(), &[], json!([{"backendRefs": v(1)}])));
    assert_eq!(lab.publish(), []);
    assert_eq!(of_route(&lab, "simple"), GOOD);
    check(&lab, SAME, Ask("GET", "", "/", &[]), 1);
    // Another Gateway does not have it.
    check(&lab, ALL, Ask("GET", "", "/", &[]), 404);
}

/// HTTPRouteExactPathMatching.
#[test]
fn exact_paths() {
    let mut lab = base();
    let exact = |path: &str, to: u8| json!({"matches": [{"path": {"type": "Exact", "value": path}}], "backendRefs": v(to)});
    lab.add(route("exact", same(), &[], json!([exact("/one", 1), exact("/two", 2)])));
    assert_eq!(lab.publish(), []);
    for (path, expected) in
        [("/one", 1), ("/two", 2), ("/", 404), ("/one/example", 404), ("/two/", 404), ("/Two", 404)]
    {
        check(&lab, SAME, Ask("GET", "", path, &[]), expected);
    }
}

/// HTTPRouteMatching.
#[test]
fn any_match_of_a_rule() {
    let mut lab = base();
    let version = |value: &str| json!({"headers": [{"name": "version", "value": value}]});
    lab.add(route(
        "matching",
        same(),
        &[],
        json!([
            {"matches": [prefix("/"), version("one")], "backendRefs": v(1)},
            {"matches": [prefix("/v2"), version("two")], "backendRefs": v(2)},
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (path, fields, expected) in [
        ("/", &[][..], 1),
        ("/example", &[], 1),
        ("/", &[("Version", "one")], 1),
        ("/v2", &[], 2),
        ("/v2/example", &[], 2),
        ("/", &[("Version", "two")], 2),
        ("/v2/", &[], 2),
        ("/v2example", &[], 1),
        ("/foo/v2/example", &[], 1),
    ] {
        check(&lab, SAME, Ask("GET", "", path, fields), expected);
    }
}

/// HTTPRouteMatchingAcrossRoutes.
#[test]
fn rules_of_several_routes() {
    let mut lab = base();
    let version = |value: &str| json!({"headers": [{"name": "version", "value": value}]});
    let one = json!([{"matches": [prefix("/"), version("one")], "backendRefs": v(1)}]);
    let two = json!([{"matches": [prefix("/v2"), version("two")], "backendRefs": v(2)}]);
    lab.add(route("matching-part1", same(), &["example.com", "example.net"], one));
    lab.add(route("matching-part2", same(), &["example.com"], two));
    assert_eq!(lab.publish(), []);
    for (host, path, fields, expected) in [
        ("example.com", "/", &[][..], 1),
        ("example.com", "/example", &[], 1),
        ("example.net", "/example", &[], 1),
        ("example.com", "/example", &[("Version", "one")], 1),
        ("example.com", "/v2", &[], 2),
        ("example.net", "/v2", &[], 1),
        ("example.com", "/v2/example", &[], 2),
        ("example.com", "/", &[("Version", "two")], 2),
    ] {
        check(&lab, SAME, Ask("GET", host, path, fields), expected);
    }
}

/// HTTPRouteHeaderMatching.
#[test]
fn header_fields() {
    let mut lab = base();
    let fields = |list: &[(&str, &str)]| {
        let list: Vec<_> =
            list.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        json!({"headers": list})
    };
    lab.add(route(
        "header-matching",
        same(),
        &[],
        json!([
            {"matches": [fields(&[("version", "one")])], "backendRefs": v(1)},
            {"matches": [fields(&[("version", "two")])], "backendRefs": v(2)},
            {"matches": [fields(&[("version", "two"), ("color", "orange")])], "backendRefs": v(1)},
            {"matches": [fields(&[("color", "blue")]), fields(&[("color", "green")])],
                "backendRefs": v(1)},
            {"matches": [fields(&[("color", "red")]), fields(&[("color", "yellow")])],
                "backendRefs": v(2)},
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (fields, expected) in [
        (&[("Version", "one")][..], 1),
        (&[("Version", "two")], 2),
        (&[("Version", "two"), ("Color", "orange")], 1),
        (&[("Version", "two"), ("Color", "blue")], 2),
        (&[("Color", "orange")], 404),
        (&[("Some-Other-Header", "one")], 404),
        (&[("Color", "blue")], 1),
        (&[("Color", "green")], 1),
        (&[("Color", "red")], 2),
        (&[("Color", "yellow")], 2),
        (&[("Color", "purple")], 404),
        // Two lines are one value.
        (&[("Color", "red"), ("Color", "yellow")], 404),
    ] {
        check(&lab, SAME, Ask("GET", "", "/", fields), expected);
    }
}

/// HTTPRoutePathMatchOrder.
#[test]
fn the_order_of_paths() {
    let mut lab = base();
    let rule = |kind: &str, path: &str, to: u8| json!({"matches": [{"path": {"type": kind, "value": path}}], "backendRefs": v(to)});
    lab.add(route(
        "path-matching-order",
        same(),
        &[],
        json!([
            rule("Exact", "/match", 1),
            rule("Exact", "/match/exact", 2),
            rule("Exact", "/match/exact/one", 3),
            rule("PathPrefix", "/match/", 3),
            rule("PathPrefix", "/match/prefix/", 1),
            rule("PathPrefix", "/match/prefix/one", 2),
            // Not of the suite.
            rule("RegularExpression", "/match/[0-9]+", 1),
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (path, expected) in [
        ("/match/exact/one", 3),
        ("/match/exact", 2),
        ("/match", 1),
        ("/match/prefix/one/any", 2),
        ("/match/prefix/any", 1),
        ("/match/any", 3),
        ("/match/12", 1),
        ("/match/12/any", 3),
    ] {
        check(&lab, SAME, Ask("GET", "", path, &[]), expected);
    }
}

/// HTTPRouteMethodMatching.
#[test]
fn methods() {
    let mut lab = base();
    let version = |value: &str| json!([{"name": "version", "value": value}]);
    let path = |path: &str| json!({"type": "PathPrefix", "value": path});
    lab.add(route(
        "method-matching",
        same(),
        &[],
        json!([
            {"matches": [{"method": "POST"}], "backendRefs": v(1)},
            {"matches": [{"method": "GET"}], "backendRefs": v(2)},
            {"matches": [{"path": path("/path1"), "method": "GET"}], "backendRefs": v(1)},
            {"matches": [{"headers": version("one"), "method": "PUT"}], "backendRefs": v(2)},
            {"matches": [{"path": path("/path2"), "headers": version("two"), "method": "POST"}],
                "backendRefs": v(3)},
            {"matches": [
                {"path": path("/path3"), "method": "PATCH"},
                {"path": path("/path4"), "headers": version("three"), "method": "DELETE"},
            ], "backendRefs": v(1)},
            {"matches": [{"path": path("/path5")}], "backendRefs": v(1)},
            {"matches": [{"method": "PATCH"}], "backendRefs": v(2)},
            {"matches": [{"headers": version("four")}], "backendRefs": v(3)},
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (method, path, fields, expected) in [
        ("POST", "/", &[][..], 1),
        ("GET", "/", &[], 2),
        ("HEAD", "/", &[], 404),
        ("GET", "/path1", &[], 1),
        ("PUT", "/", &[("version", "one")], 2),
        ("POST", "/path2", &[("version", "two")], 3),
        ("PATCH", "/path3", &[], 1),
        ("DELETE", "/path4", &[("version", "three")], 1),
        ("PUT", "/", &[], 404),
        ("DELETE", "/path4", &[], 404),
        ("PATCH", "/path5", &[], 1),
        ("PATCH", "/", &[("version", "four")], 2),
    ] {
        if method == "HEAD" {
            let address = SocketAddr::new(SAME.parse().unwrap(), lab.http().port());
            let text = "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let status = head(address, text);
            assert_eq!(status, expected);
        } else {
            check(&lab, SAME, Ask(method, "", path, fields), expected);
        }
    }
}

/// HTTPRouteQueryParamMatching.
#[test]
fn query_parameters() {
    let mut lab = base();
    let params = |list: &[(&str, &str)]| -> Value {
        list.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
    };
    let animal = |value: &str| params(&[("animal", value)]);
    let version = |value: &str| json!([{"name": "version", "value": value}]);
    let path = |path: &str| json!({"type": "PathPrefix", "value": path});
    lab.add(route(
        "query-param-matching",
        same(),
        &[],
        json!([
            {"matches": [{"queryParams": animal("whale")}], "backendRefs": v(1)},
            {"matches": [{"queryParams": animal("dolphin")}], "backendRefs": v(2)},
            {"matches": [
                {"queryParams": params(&[("animal", "dolphin"), ("color", "blue")])},
                {"queryParams": params(&[("ANIMAL", "Whale")])},
            ], "backendRefs": v(3)},
            {"matches": [{"path": path("/path1"), "queryParams": animal("whale")}],
                "backendRefs": v(1)},
            {"matches": [{"headers": version("one"), "queryParams": animal("whale")}],
                "backendRefs": v(2)},
            {"matches": [{"path": path("/path2"), "headers": version("two"),
                "queryParams": animal("whale")}], "backendRefs": v(3)},
            {"matches": [
                {"path": path("/path3"), "queryParams": animal("shark")},
                {"path": path("/path4"), "headers": version("three"),
                    "queryParams": animal("kraken")},
            ], "backendRefs": v(1)},
            {"matches": [{"path": path("/path5")}], "backendRefs": v(1)},
            {"matches": [{"queryParams": animal("hydra")}], "backendRefs": v(2)},
            {"matches": [{"headers": version("four")}], "backendRefs": v(3)},
        ]),
    ));
    assert_eq!(lab.publish(), []);
    for (target, fields, expected) in [
        ("/?animal=whale", &[][..], 1),
        ("/?animal=dolphin", &[], 2),
        ("/?animal=dolphin&color=blue", &[], 3),
        ("/?ANIMAL=Whale", &[], 3),
        ("/?animal=whale&otherparam=irrelevant", &[], 1),
        ("/?animal=dolphin&color=yellow", &[], 2),
        ("/?color=blue", &[], 404),
        ("/?animal=dog", &[], 404),
        ("/?animal=whaledolphin", &[], 404),
        ("/", &[], 404),
        ("/path1?animal=whale", &[], 1),
        ("/?animal=whale", &[("version", "one")], 2),
        ("/path2?animal=whale", &[("version", "two")], 3),
        ("/path3?animal=shark", &[], 1),
        ("/path4?animal=kraken", &[("version", "three")], 1),
        ("/?animal=shark", &[], 404),
        ("/path4?animal=kraken", &[], 404),
        ("/path5?animal=hydra", &[], 1),
        ("/?animal=hydra", &[("version", "four")], 3),
    ] {
        check(&lab, SAME, Ask("GET", "", target, fields), expected);
    }
}

/// HTTPRouteOmittedBackendRefs.
#[test]
fn rules_without_backends() {
    let mut lab = base();
    let exact = |path: &str| json!([{"path": {"type": "Exact", "value": path}}]);
    lab.add(route(
        "omitted-backendrefs",
        same(),
        &[],
        json!([
            {"matches": exact("/omitted-no-forward")},
            {"matches": exact("/empty-no-forward"), "backendRefs": []},
            {"matches": [prefix("/")], "backendRefs": v(1)},
        ]),
    ));
    let records = lab.publish();
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!(of_route(&lab, "omitted-backendrefs"), GOOD);
    check(&lab, SAME, Ask("GET", "", "/forward", &[]), 1);
    check(&lab, SAME, Ask("GET", "", "/omitted-no-forward", &[]), 500);
    check(&lab, SAME, Ask("GET", "", "/empty-no-forward", &[]), 500);
    assert_eq!(lab.refused("backend_invalid"), 2);
}

/// HTTPRouteMultipleGateways.
#[test]
fn a_route_of_two_gateways() {
    let mut lab = base();
    let both = json!([{"name": "same-namespace"}, {"name": "all-namespaces"}]);
    let rule = |path: &str, to: u8| json!([{"matches": [prefix(path)], "backendRefs": v(to)}]);
    lab.add(route("multiple-gateways-shared-route", both, &[], rule("/shared", 1)));
    lab.add(route("same-namespace-dedicated-route", same(), &[], rule("/", 2)));
    let all = json!([{"name": "all-namespaces"}]);
    lab.add(route("all-namespaces-dedicated-route", all, &[], rule("/", 3)));
    assert_eq!(lab.publish(), []);
    for (gateway, path, expected) in
        [(SAME, "/shared", 1), (SAME, "/", 2), (ALL, "/shared", 1), (ALL, "/", 3)]
    {
        check(&lab, gateway, Ask("GET", "", path, &[]), expected);
    }
    // Metrics name the routes.
    let name = "podswitch_ingress_object_responses_total";
    let object = format!("HTTPRoute/{INFRA}/multiple-gateways-shared-route");
    assert_eq!(lab.metric(&format!("{name}{{object=\"{object}\",status=\"2xx\"}}")), 2);
}

/// HTTPRouteNamedRule.
#[test]
fn rules_with_names() {
    let mut lab = base();
    lab.add(route(
        "http-named-rules",
        same(),
        &[],
        json!([
            {"name": "named-rule", "matches": [prefix("/named")], "backendRefs": v(1)},
            {"matches": [prefix("/unnamed")], "backendRefs": v(2)},
        ]),
    ));
    assert_eq!(lab.publish(), []);
    check(&lab, SAME, Ask("GET", "", "/named", &[]), 1);
    check(&lab, SAME, Ask("GET", "", "/unnamed", &[]), 2);
}

/// The oldest route has what is equal, then the first by namespace and name. Not of the suite.
#[test]
fn the_oldest_route_first() {
    let mut lab = base();
    let rules = |to: u8| json!([{"matches": [prefix("/x")], "backendRefs": v(to)}]);
    let aged = |name: &str, created: Option<&str>, to: u8| {
        let mut it = route(name, same(), &[], rules(to));
        it["metadata"]["creationTimestamp"] = json!(created);
        it
    };
    lab.add(aged("b", Some("2026-01-02T00:00:00Z"), 1));
    lab.add(aged("a", Some("2026-01-02T00:00:00Z"), 2));
    lab.publish();
    check(&lab, SAME, Ask("GET", "", "/x", &[]), 2);
    lab.add(aged("c", Some("2026-01-01T00:00:00Z"), 3));
    lab.publish();
    check(&lab, SAME, Ask("GET", "", "/x", &[]), 3);
}
