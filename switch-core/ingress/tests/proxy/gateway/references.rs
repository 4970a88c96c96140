//! Backends, parents and ReferenceGrants.

use podswitch_ingress::Protocol;
use serde_json::json;

use super::*;

fn unresolved(reason: &str) -> [String; 2] {
    [GOOD[0].to_owned(), format!("ResolvedRefs=false/{reason}")]
}

fn refused(reason: &str) -> [String; 2] {
    [format!("Accepted=false/{reason}"), GOOD[1].to_owned()]
}

fn grant(namespace: &str, from: [&str; 3], to: [&str; 3]) -> Value {
    let to = match to {
        [group, kind, ""] => json!({"group": group, "kind": kind}),
        [group, kind, name] => json!({"group": group, "kind": kind, "name": name}),
    };
    let name = format!("{}-{}", from.concat(), to);
    json!({"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"from": [{"group": from[0], "kind": from[1], "namespace": from[2]}], "to": [to]}})
}

const GROUP: &str = "gateway.networking.k8s.io";

fn web() -> Value {
    json!([{"name": "web-backend", "namespace": WEB, "port": 8080}])
}

/// HTTPRouteCrossNamespace and HTTPRouteInvalidCrossNamespaceParentRef.
#[test]
fn routes_of_other_namespaces() {
    let mut lab = base();
    let parent = |name: &str| json!([{"name": name, "namespace": INFRA}]);
    let rules = || json!([{"backendRefs": to("web-backend")}]);
    lab.add(route_in(WEB, "cross-namespace", parent("backend-namespaces"), &[], rules()));
    assert_eq!(lab.publish(), []);
    let response = ask(&lab, BACKENDS, Ask("GET", "", "/", &[]));
    assert_eq!(response.service(), "web-backend");
    lab.add(route_in(WEB, "not-allowed", parent("same-namespace"), &[], rules()));
    assert_eq!(lab.publish().len(), 1);
    assert_eq!(of_route(&lab, "not-allowed"), refused("NotAllowedByListeners"));
    assert_eq!(attached(&lab, "same-namespace"), [0]);
    check(&lab, SAME, Ask("GET", "", "/", &[]), 404);
}

/// HTTPRouteReferenceGrant: it ends when the grant does.
#[test]
fn a_grant_permits_a_backend() {
    let mut lab = base();
    let permit = grant(WEB, [GROUP, "HTTPRoute", INFRA], ["", "Service", "web-backend"]);
    lab.add(permit.clone());
    lab.add(route("reference-grant", same(), &[], json!([{"backendRefs": web()}])));
    assert_eq!(lab.publish(), []);
    assert_eq!(of_route(&lab, "reference-grant"), GOOD);
    assert_eq!(ask(&lab, SAME, Ask("GET", "", "/", &[])).service(), "web-backend");
    lab.objects.delete(&permit);
    lab.publish();
    check(&lab, SAME, Ask("GET", "", "/", &[]), 500);
    assert_eq!(of_route(&lab, "reference-grant"), unresolved("RefNotPermitted"));
}

/// HTTPRouteInvalidReferenceGrant and HTTPRouteInvalidCrossNamespaceBackendRef.
#[test]
fn grants_that_permit_something_else() {
    let mut lab = base();
    let from = [GROUP, "HTTPRoute", INFRA];
    let to = ["", "Service", "web-backend"];
    for (namespace, from, to) in [
        (INFRA, from, to),
        (WEB, ["not-the-group", "HTTPRoute", INFRA], to),
        (WEB, [GROUP, "Gateway", INFRA], to),
        (WEB, [GROUP, "HTTPRoute", "not-the-namespace"], to),
        (WEB, from, ["not-the-group", "Service", "web-backend"]),
        (WEB, from, ["", "Secret", "web-backend"]),
        (WEB, from, ["", "Service", "not-the-service"]),
    ] {
        lab.add(grant(namespace, from, to));
    }
    lab.add(route("reference-grant", same(), &[], json!([{"backendRefs": web()}])));
    let records = lab.publish();
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].field, "spec.rules[0].backendRefs[0]");
    assert_eq!(of_route(&lab, "reference-grant"), unresolved("RefNotPermitted"));
    check(&lab, SAME, Ask("GET", "", "/", &[]), 500);
}

/// HTTPRoutePartiallyInvalidViaInvalidReferenceGrant.
#[test]
fn one_rule_without_permission() {
    let mut lab = base();
    lab.add(grant(APP, [GROUP, "HTTPRoute", INFRA], ["", "Service", "app-backend-v1"]));
    let app = |name: &str| json!([{"name": name, "namespace": APP, "port": 8080}]);
    lab.add(route(
        "invalid-reference-grant",
        same(),
        &[],
        json!([
            {"matches": [prefix("/v2")], "backendRefs": app("app-backend-v2")},
            {"backendRefs": app("app-backend-v1")},
        ]),
    ));
    lab.publish();
    assert_eq!(of_route(&lab, "invalid-reference-grant"), unresolved("RefNotPermitted"));
    check(&lab, SAME, Ask("GET", "", "/v2", &[]), 500);
    assert_eq!(ask(&lab, SAME, Ask("GET", "", "/", &[])).service(), "app-backend-v1");
}

/// HTTPRouteInvalidBackendRefUnknownKind and HTTPRouteInvalidNonExistentBackendRef; and what else no
/// backend is.
#[test]
fn backends_that_are_none() {
    for (backend, reason) in [
        (
            json!({"group": "unknownkind.example.com", "kind": "NonExistent",
            "name": "infra-backend-v1", "port": 8080}),
            "InvalidKind",
        ),
        (json!({"kind": "Pod", "name": "infra-backend-v1", "port": 8080}), "InvalidKind"),
        (json!({"name": "nonexistent", "namespace": INFRA, "port": 8080}), "BackendNotFound"),
        (json!({"name": "infra-backend-v1", "port": 9}), "BackendNotFound"),
        (json!({"name": "infra-backend-v1"}), "BackendNotFound"),
        (json!({"name": "external", "port": 8080}), "BackendNotFound"),
    ] {
        let mut lab = base();
        lab.add(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "external", "namespace": INFRA},
            "spec": {"type": "ExternalName", "externalName": "x.test", "ports": [{"port": 8080}]}}));
        lab.add(route("invalid", same(), &[], json!([{"backendRefs": [backend]}])));
        assert_eq!(lab.publish().len(), 1);
        assert_eq!(of_route(&lab, "invalid"), unresolved(reason), "{backend}");
        check(&lab, SAME, Ask("GET", "", "/v2", &[]), 500);
    }
}

/// HTTPRouteInvalidParentRefNotMatchingSectionName, -NotMatchingListenerPort and
/// -SectionNameNotMatchingPort.
#[test]
fn parents_that_are_none() {
    let mut lab = base();
    let rules = || json!([{"backendRefs": v(1)}]);
    for (name, parent) in [
        ("section", json!({"name": "same-namespace", "port": 80, "sectionName": "http1"})),
        ("port", json!({"name": "same-namespace", "port": 81})),
        ("both", json!({"name": "same-namespace", "port": 81, "sectionName": "http"})),
    ] {
        lab.add(route(name, json!([parent]), &[], rules()));
        lab.publish();
        assert_eq!(of_route(&lab, name), refused("NoMatchingParent"), "{name}");
    }
    assert_eq!(attached(&lab, "same-namespace"), [0]);
    check(&lab, SAME, Ask("GET", "", "/", &[]), 404);
    // Foreign parents are nobody's of ours.
    lab.add(route("foreign", json!([{"name": "unknown"}]), &[], rules()));
    let status = compiled(&lab).status;
    assert!(status.routes.iter().all(|it| it.name != "foreign"));
}

/// HTTPRouteDisallowedKind.
#[test]
fn a_listener_for_other_kinds_of_routes() {
    let mut lab = base();
    let tls = json!({"name": "tls", "port": 443, "protocol": "TLS", "tls": {"mode": "Passthrough"},
        "allowedRoutes": {"namespaces": {"from": "Same"}, "kinds": [{"kind": "TLSRoute"}]}});
    lab.add(gateway("tlsroutes-only", OWN, json!([tls])));
    let parent = json!([{"name": "tlsroutes-only", "namespace": INFRA}]);
    lab.add(route("disallowed-kind", parent, &[], json!([{"backendRefs": v(1)}])));
    lab.publish();
    assert_eq!(of_route(&lab, "disallowed-kind"), refused("NotAllowedByListeners"));
    assert_eq!(attached(&lab, "tlsroutes-only"), [0]);
}

/// HTTPRouteBackendProtocolWebSocket, through the proxy; HTTPRouteBackendProtocolH2C and protocols that
/// are not supported, as the routes have them.
#[test]
fn protocols_of_backends() {
    let mut lab = base();
    let rule = |port: u16| {
        json!({"matches": [prefix(&format!("/{port}"))],
            "backendRefs": [{"name": "protocols", "port": port}]})
    };
    let endpoint = crate::lab::echo("protocols");
    service(&mut lab, INFRA, "protocols", endpoint);
    lab.add(json!({"apiVersion": "v1", "kind": "Service",
    "metadata": {"name": "protocols", "namespace": INFRA},
    "spec": {"ports": [
        {"name": "first-port", "port": 8080, "appProtocol": "kubernetes.io/ws"},
        {"name": "h2c", "port": 8081, "appProtocol": "kubernetes.io/h2c"},
        {"name": "wss", "port": 8082, "appProtocol": "kubernetes.io/wss"},
    ]}}));
    lab.add(route("protocols", same(), &[], json!([rule(8080), rule(8081), rule(8082)])));
    lab.publish();
    let fields = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let response = ask(&lab, SAME, Ask("GET", "", "/8080", &fields));
    assert_eq!((response.status, response.field("upgrade")), (101, Some("websocket")));
    check(&lab, SAME, Ask("GET", "", "/8082", &[]), 500);
    assert_eq!(of_route(&lab, "protocols"), unresolved("UnsupportedProtocol"));
    let routes = compiled(&lab).routes;
    let mut seen: Vec<_> =
        routes.all().map(|it| (it.path.to_string(), it.settings.protocol)).collect();
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    let expected =
        [("/8080", Protocol::Http), ("/8081", Protocol::Grpc), ("/8082", Protocol::Http)];
    assert_eq!(seen, expected.map(|(path, it)| (path.to_owned(), it)));
}

/// HTTPRouteServiceTypes: Services without a selector or without an address have EndpointSlices, too.
#[test]
fn headless_services() {
    let mut lab = base();
    let endpoint = crate::lab::echo("infra-backend-v1");
    for (name, address) in [("manual", None), ("headless", Some("None"))] {
        service(&mut lab, INFRA, name, endpoint);
        lab.add(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": INFRA},
            "spec": {"clusterIP": address, "ports": [{"name": "first-port", "port": 8080}]}}));
        let rules = json!([{"matches": [prefix(&format!("/{name}"))], "backendRefs": to(name)}]);
        lab.add(route(name, same(), &[], rules));
    }
    assert_eq!(lab.publish(), []);
    check(&lab, SAME, Ask("GET", "", "/manual", &[]), 1);
    check(&lab, SAME, Ask("GET", "", "/headless", &[]), 1);
}
