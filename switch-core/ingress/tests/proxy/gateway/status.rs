//! The status of classes, Gateways and listeners.

use serde_json::json;

use super::*;
use crate::tls::{certificate, secret};

fn of_gateway(lab: &Lab, name: &str) -> Vec<String> {
    let status = compiled(lab).status;
    let found = status.gateways.iter().find(|it| it.name == name).expect("a status");
    texts(&found.conditions)
}

fn https(name: &str, host: Option<&str>, secret: Value) -> Value {
    let mut it = http(name, host, json!({"from": "All"}));
    it["port"] = 443.into();
    it["protocol"] = "HTTPS".into();
    it["tls"] = json!({"certificateRefs": [secret]});
    it
}

fn with_secret(lab: &mut Lab) {
    let mut secret = secret("certificate", &certificate(&["a.test"]));
    secret["metadata"]["namespace"] = WEB.into();
    lab.add(secret.clone());
    secret["metadata"]["namespace"] = INFRA.into();
    lab.add(secret);
}

/// `Accepted`, `Conflicted`, `ResolvedRefs`, `Programmed` of a listener.
fn four(accepted: &str, conflicted: &str, resolved: &str, programmed: &str) -> Vec<String> {
    let pairs = [
        ("Accepted", accepted),
        ("Conflicted", conflicted),
        ("ResolvedRefs", resolved),
        ("Programmed", programmed),
    ];
    let text = |(kind, it): (&str, &str)| match it {
        "" if kind == "Conflicted" => "Conflicted=false/NoConflicts".to_owned(),
        "" => format!("{kind}=true/{kind}"),
        it if kind == "Conflicted" => format!("{kind}=true/{it}"),
        it => format!("{kind}=false/{it}"),
    };
    pairs.map(text).to_vec()
}

/// GatewayInvalidListenersUnsupportedProtocol.
#[test]
fn protocols_that_are_not_supported() {
    let mut lab = base();
    let invalid = json!({"name": "invalid", "port": 1111, "protocol": "INVALID"});
    let good = json!({"name": "http", "port": 80, "protocol": "HTTP"});
    lab.add(gateway("only", OWN, json!([invalid])));
    lab.add(gateway("both", OTHER, json!([good, invalid])));
    let bad = four("UnsupportedProtocol", "", "", "Invalid");
    assert_eq!(listeners(&lab, "only"), [("invalid".into(), 0, bad.clone())]);
    assert_eq!(
        of_gateway(&lab, "only"),
        ["Accepted=false/ListenersNotValid", "Programmed=false/Invalid"]
    );
    assert_eq!(
        listeners(&lab, "both"),
        [("http".into(), 0, four("", "", "", "")), ("invalid".into(), 0, bad)]
    );
    assert_eq!(
        of_gateway(&lab, "both"),
        ["Accepted=true/ListenersNotValid", "Programmed=true/Programmed"]
    );
    let kinds: Vec<_> = compiled(&lab)
        .status
        .gateways
        .iter()
        .find(|it| it.name == "both")
        .unwrap()
        .listeners
        .iter()
        .map(|it| it.is_http_route)
        .collect();
    assert_eq!(kinds, [true, false]);
}

/// GatewayInvalidRouteKind.
#[test]
fn kinds_of_routes_that_are_not_supported() {
    let mut lab = base();
    let allowing = |kinds: Value| {
        let mut it = http("http", None, json!({"from": "All"}));
        it["allowedRoutes"]["kinds"] = kinds;
        json!([it])
    };
    let other = json!({"kind": "InvalidRoute"});
    lab.add(gateway("only", OWN, allowing(json!([other]))));
    lab.add(gateway("both", OTHER, allowing(json!([other, {"kind": "HTTPRoute"}]))));
    lab.add(route(
        "r",
        json!([{"name": "only"}, {"name": "both"}]),
        &[],
        json!([{"backendRefs": v(1)}]),
    ));
    let bad = four("", "", "InvalidRouteKinds", "");
    assert_eq!(listeners(&lab, "only"), [("http".into(), 0, bad.clone())]);
    assert_eq!(listeners(&lab, "both"), [("http".into(), 1, bad)]);
    let status = compiled(&lab).status;
    let supported: Vec<_> =
        status.gateways.iter().map(|it| it.listeners[0].is_http_route).collect();
    assert_eq!(supported.iter().filter(|it| !**it).count(), 1);
    lab.publish();
    check(&lab, OWN, Ask("GET", "", "/", &[]), 404);
    check(&lab, OTHER, Ask("GET", "", "/", &[]), 1);
}

/// GatewayInvalidTLSConfiguration.
#[test]
fn certificates_that_cannot_be_used() {
    let mut lab = base();
    with_secret(&mut lab);
    lab.add(json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "malformed", "namespace": INFRA},
        "data": {"tls.crt": "SGVsbG8gd29ybGQK", "tls.key": "SGVsbG8gd29ybGQK"}}));
    for (at, secret) in [
        json!({"group": "", "kind": "Secret", "name": "nonexistent"}),
        json!({"group": "wrong.group.company.io", "kind": "Secret", "name": "certificate"}),
        json!({"group": "", "kind": "WrongKind", "name": "certificate"}),
        json!({"name": "malformed"}),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("gateway-{at}");
        lab.add(gateway(
            &name,
            &format!("127.0.0.{}", 20 + at),
            json!([https("https", None, secret)]),
        ));
        let bad = four("", "", "InvalidCertificateRef", "Invalid");
        assert_eq!(listeners(&lab, &name), [("https".into(), 0, bad)]);
    }
}

/// GatewaySecretMissingReferenceGrant, -InvalidReferenceGrant, -ReferenceGrantSpecific and
/// -ReferenceGrantAllInNamespace.
#[test]
fn certificates_of_other_namespaces() {
    let secret = json!({"name": "certificate", "namespace": WEB});
    let group = "gateway.networking.k8s.io";
    let from = [group, "Gateway", INFRA];
    let good = four("", "", "", "");
    let bad = four("", "", "RefNotPermitted", "Invalid");
    for (namespace, from, to, expected) in [
        (APP, from, ["", "Secret", "certificate"], &bad),
        (WEB, ["wrong", "Gateway", INFRA], ["", "Secret", "certificate"], &bad),
        (WEB, [group, "HTTPRoute", INFRA], ["", "Secret", "certificate"], &bad),
        (WEB, [group, "Gateway", "wrong"], ["", "Secret", "certificate"], &bad),
        (WEB, from, ["wrong", "Secret", "certificate"], &bad),
        (WEB, from, ["", "Service", "certificate"], &bad),
        (WEB, from, ["", "Secret", "other"], &bad),
        (WEB, from, ["", "Secret", "certificate"], &good),
        (WEB, from, ["", "Secret", ""], &good),
    ] {
        let mut lab = base();
        with_secret(&mut lab);
        let to = match to {
            [group, kind, ""] => json!({"group": group, "kind": kind}),
            [group, kind, name] => json!({"group": group, "kind": kind, "name": name}),
        };
        let from = json!({"group": from[0], "kind": from[1], "namespace": from[2]});
        lab.add(json!({"apiVersion": API, "kind": "ReferenceGrant",
            "metadata": {"name": "grant", "namespace": namespace},
            "spec": {"from": [from], "to": [to]}}));
        lab.add(gateway("secret", OWN, json!([https("https", None, secret.clone())])));
        assert_eq!(
            listeners(&lab, "secret"),
            [("https".into(), 0, expected.clone())],
            "{from} {to}"
        );
    }
}

/// GatewayWithAttachedRoutes.
#[test]
fn attached_routes_are_counted() {
    let mut lab = base();
    let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": INFRA}});
    let mut one = http("http", None, json!({"from": "Selector", "selector": selector}));
    one["allowedRoutes"]["kinds"] = json!([{"kind": "HTTPRoute"}]);
    lab.add(gateway("one", OWN, json!([one])));
    one["hostname"] = "foo.example.com".into();
    lab.add(gateway("two", OTHER, json!([one])));
    let unresolved = https("tls", None, json!({"name": "does-not-exist"}));
    lab.add(gateway("unresolved", "127.0.0.16", json!([unresolved])));
    let rules = || json!([{"backendRefs": v(1)}]);
    lab.add(route("http-route-1", json!([{"kind": "Gateway", "name": "one"}]), &[], rules()));
    lab.add(route("http-route-2", json!([{"name": "two"}]), &[], rules()));
    lab.add(route("http-route-3", json!([{"name": "two"}]), &[], rules()));
    lab.add(route("not-accepted", json!([{"name": "two"}]), &["not-accepted.test.com"], rules()));
    let missing = json!([{"backendRefs": to("does-not-exist")}]);
    let tls = json!([{"name": "unresolved", "sectionName": "tls"}]);
    lab.add(route("http-route-4", tls, &[], missing));
    let good = four("", "", "", "");
    assert_eq!(listeners(&lab, "one"), [("http".into(), 1, good.clone())]);
    assert_eq!(listeners(&lab, "two"), [("http".into(), 2, good)]);
    let bad = four("", "", "InvalidCertificateRef", "Invalid");
    assert_eq!(listeners(&lab, "unresolved"), [("tls".into(), 1, bad)]);
    assert_eq!(of_route(&lab, "not-accepted")[0], "Accepted=false/NoMatchingListenerHostname");
    assert_eq!(of_route(&lab, "http-route-4")[1], "ResolvedRefs=false/BackendNotFound");
}

/// GatewayNameMaximumLength.
#[test]
fn long_names() {
    let mut lab = base();
    let name = "a".repeat(63);
    lab.add(gateway(&name, OWN, json!([http("http", None, json!({"from": "All"}))])));
    assert_eq!(of_gateway(&lab, &name), ["Accepted=true/Accepted", "Programmed=true/Programmed"]);
}

/// GatewayModifyListeners.
#[test]
fn listeners_that_come_and_go() {
    let mut lab = base();
    with_secret(&mut lab);
    let secure = https("https", Some("secure.test.com"), json!({"name": "certificate"}));
    let plain = http("http", Some("data.test.com"), json!({"from": "All"}));
    lab.add(gateway("modified", OWN, json!([secure])));
    lab.add(route("r", json!([{"name": "modified"}]), &[], json!([{"backendRefs": v(1)}])));
    lab.publish();
    check(&lab, OWN, Ask("GET", "data.test.com", "/", &[]), 404);
    lab.add(gateway("modified", OWN, json!([secure, plain])));
    lab.publish();
    assert_eq!(attached(&lab, "modified"), [1, 1]);
    check(&lab, OWN, Ask("GET", "data.test.com", "/", &[]), 1);
    check(&lab, OWN, Ask("GET", "secure.test.com", "/", &[]), 404);
    lab.add(gateway("modified", OWN, json!([secure])));
    lab.publish();
    assert_eq!(attached(&lab, "modified"), [1]);
    check(&lab, OWN, Ask("GET", "data.test.com", "/", &[]), 404);
}

/// GatewayClassObservedGenerationBump, GatewayObservedGenerationBump, HTTPRouteObservedGenerationBump.
#[test]
fn the_generation_that_is_described() {
    let mut lab = base();
    for generation in [1, 2] {
        let mut changed = route("r", same(), &[], json!([{"backendRefs": v(1)}]));
        changed["metadata"]["generation"] = generation.into();
        lab.add(changed);
        let mut changed = gateway("g", OWN, json!([http("http", None, json!({"from": "All"}))]));
        changed["metadata"]["generation"] = generation.into();
        lab.add(changed);
        lab.add(json!({"apiVersion": API, "kind": "GatewayClass",
            "metadata": {"name": "ours", "generation": generation},
            "spec": {"controllerName": crate::lab::CONTROLLER, "description": generation.to_string()}}));
        let status = compiled(&lab).status;
        assert_eq!(status.classes[0].generation, generation);
        assert_eq!(texts(&status.classes[0].conditions), ["Accepted=true/Accepted"]);
        let gateway = status.gateways.iter().find(|it| it.name == "g").unwrap();
        assert_eq!(gateway.generation, generation);
        assert_eq!(status.routes[0].generation, generation);
    }
}

/// GatewayInvalidParametersRef; and what else a Gateway as a whole cannot be. The first is of the suite.
#[test]
fn gateways_that_are_not_served() {
    let mut lab = base();
    let base_of =
        |name: &str| gateway(name, OWN, json!([http("http", None, json!({"from": "All"}))]));
    let reference = json!({"group": "invalid.io", "kind": "InvalidParameters", "name": "invalid"});
    for (part, value, reason) in [
        ("infrastructure", json!({"parametersRef": reference}), "InvalidParameters"),
        ("addresses", json!([{"type": "Hostname", "value": "a.test"}]), "UnsupportedAddress"),
        ("addresses", json!([{"value": "1.2.3"}]), "UnsupportedAddress"),
        ("tls", json!({"frontend": {"default": {"validation": {}}}}), "UnsupportedValue"),
        ("listeners", json!([]), "ListenersNotValid"),
    ] {
        let mut it = base_of("bad");
        it["spec"][part] = value;
        lab.add(it);
        lab.add(route("r", json!([{"name": "bad"}]), &[], json!([{"backendRefs": v(1)}])));
        let records = lab.publish();
        assert!(records.iter().any(|it| it.object.as_str().ends_with("/bad")), "{records:?}");
        assert_eq!(of_gateway(&lab, "bad")[0], format!("Accepted=false/{reason}"));
        check(&lab, OWN, Ask("GET", "", "/", &[]), 404);
    }
    // A foreign class: neither routes nor a status.
    let mut foreign = base_of("bad");
    foreign["spec"]["gatewayClassName"] = "other".into();
    lab.add(foreign);
    assert!(compiled(&lab).status.gateways.iter().all(|it| it.name != "bad"));
    // One Gateway only.
    lab.add(base_of("good"));
    lab.options.gateway = Some((INFRA.to_owned(), "good".to_owned()));
    let status = compiled(&lab).status;
    assert_eq!(status.gateways.len(), 1);
    assert_eq!(status.gateways[0].name, "good");
}

/// Two listeners with one host: neither of one Gateway is served, that of the older of two Gateways is.
/// Not of the suite: its API server refuses the first.
#[test]
fn listeners_in_conflict() {
    let mut lab = base();
    let any = json!({"from": "All"});
    let same_host = [
        http("a", Some("x.test"), any.clone()),
        http("b", Some("x.test"), any.clone()),
        http("c", Some("y.test"), any.clone()),
        json!({"name": "d", "port": 8080, "protocol": "HTTP"}),
    ];
    lab.add(gateway("a-twice", OWN, json!(same_host)));
    let bad = four("HostnameConflict", "HostnameConflict", "", "Invalid");
    let good = four("", "", "", "");
    let port = four("PortUnavailable", "", "", "Invalid");
    let listed = |rows: [(&str, &Vec<String>); 4]| {
        rows.map(|(name, it)| (name.to_owned(), 0, it.clone())).to_vec()
    };
    assert_eq!(
        listeners(&lab, "a-twice"),
        listed([("a", &bad), ("b", &bad), ("c", &good), ("d", &port)])
    );
    assert_eq!(of_gateway(&lab, "a-twice")[0], "Accepted=true/ListenersNotValid");
    lab.add(gateway("b-later", OWN, json!([http("y", Some("y.test"), any)])));
    assert_eq!(listeners(&lab, "b-later"), [("y".into(), 0, bad)]);
    assert_eq!(of_gateway(&lab, "b-later")[0], "Accepted=false/ListenersNotValid");
}
