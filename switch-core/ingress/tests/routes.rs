//! Compiled routes: classes, conflicts, ports, endpoints, what is left out; and compared with a
//! plain reference.

use std::net::SocketAddr;

use podswitch_ingress::{Compiled, Objects, Options, Target, compile};
use proptest::prelude::*;
use serde_json::{Value, json};

fn class(name: &str, controller: &str, is_default: bool) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": name, "annotations":
            {"ingressclass.kubernetes.io/is-default-class": is_default.to_string()}},
        "spec": {"controller": controller},
    })
}

fn ingress(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    })
}

fn backend(service: &str) -> Value {
    json!({"service": {"name": service, "port": {"number": 80}}})
}

fn rule(host: &str, path: &str, kind: &str, service: &str) -> Value {
    json!({"host": host,
        "http": {"paths": [{"path": path, "pathType": kind, "backend": backend(service)}]}})
}

fn objects(values: impl IntoIterator<Item = Value>) -> Objects {
    let mut objects = Objects::default();
    objects.upsert(None, class("podswitch", "podswitch.io/ingress", true));
    for value in values {
        objects.upsert(None, value);
    }
    objects
}

fn compiled(values: impl IntoIterator<Item = Value>) -> Compiled {
    compile(&objects(values), &Options::default())
}

/// Namespace and name of the backend's Service, with the port.
fn backend_of(it: &Compiled, host: &str, path: &str) -> Option<String> {
    match it.routes.find(host, path) {
        Target::Route(route) => Some(route.backend.name.to_string()),
        Target::None => None,
    }
}

fn fields(it: &Compiled) -> Vec<String> {
    it.records.iter().map(|it| format!("{}: {}", it.object, it.field)).collect()
}

#[test]
fn classes() {
    let spec = |class: Option<&str>| {
        let mut spec = json!({"rules": [rule("a.test", "/", "Prefix", "web")]});
        if let Some(class) = class {
            spec["ingressClassName"] = class.into();
        }
        spec
    };
    let annotated = |class: &str| {
        let mut value = ingress("web", spec(None));
        value["metadata"]["annotations"] = json!({"kubernetes.io/ingress.class": class});
        value
    };
    let ours = || class("ours", "podswitch.io/ingress", false);
    let other = |is_default| class("other", "example.com/other", is_default);
    // The classes, the Ingress, whether it is served, and whether that is reported.
    let cases = [
        (vec![ours()], ingress("web", spec(Some("ours"))), true, false),
        (vec![other(false)], ingress("web", spec(Some("other"))), false, false),
        (vec![], ingress("web", spec(Some("absent"))), false, true),
        (vec![], ingress("web", spec(None)), false, false),
        (vec![ours(), other(true)], ingress("web", spec(None)), false, false),
        (
            vec![class("ours", "podswitch.io/ingress", true), other(false)],
            ingress("web", spec(None)),
            true,
            false,
        ),
        (
            vec![class("ours", "podswitch.io/ingress", true), other(true)],
            ingress("web", spec(None)),
            false,
            true,
        ),
        (vec![], annotated("podswitch"), true, false),
        (vec![ours()], annotated("ours"), true, false),
        (vec![class("ours", "podswitch.io/ingress", true)], annotated("nginx"), false, false),
    ];
    for (number, (classes, ingress, is_served, is_reported)) in cases.into_iter().enumerate() {
        let mut objects = Objects::default();
        for value in classes.into_iter().chain([ingress]) {
            objects.upsert(None, value);
        }
        let it = compile(&objects, &Options::default());
        assert_eq!(!it.served.is_empty(), is_served, "case {number}");
        let about_class = fields(&it).iter().any(|field| field.contains("ingressClassName"));
        assert_eq!(about_class, is_reported, "case {number}: {:?}", it.records);
        assert_eq!(backend_of(&it, "a.test", "/").is_some(), is_served, "case {number}");
    }
}

#[test]
fn the_oldest_wins_then_the_first_by_name() {
    let at = |name: &str, created: Option<&str>, service: &str| {
        let mut value = ingress(name, json!({"rules": [rule("a.test", "/x", "Prefix", service)]}));
        if let Some(created) = created {
            value["metadata"]["creationTimestamp"] = created.into();
        }
        value
    };
    let (old, new) = (Some("2024-01-01T00:00:00Z"), Some("2025-01-01T00:00:00Z"));
    for (values, winner) in [
        (vec![at("a", new, "a"), at("b", old, "b")], "b"),
        (vec![at("b", old, "b"), at("a", old, "a")], "a"),
        (vec![at("a", None, "a"), at("b", new, "b")], "b"),
        (vec![at("a", None, "a"), at("b", None, "b")], "a"),
    ] {
        let it = compiled(values);
        assert_eq!(backend_of(&it, "a.test", "/x/y"), Some(format!("shop/{winner}:80")));
        let lost: Vec<_> =
            it.records.iter().filter(|it| it.reason.contains("belongs to")).collect();
        assert_eq!(lost.len(), 1, "{:?}", it.records);
        assert_eq!(lost[0].field, "spec.rules[0].http.paths[0].path");
    }
}

#[test]
fn default_backends() {
    let it = compiled([
        ingress("any", json!({"defaultBackend": backend("any")})),
        ingress(
            "a",
            json!({"defaultBackend": backend("a-default"),
                "rules": [rule("a.test", "/x", "Exact", "a")]}),
        ),
        ingress("b", json!({"rules": [rule("b.test", "/x", "Exact", "b"), {"host": "c.test"}]})),
    ]);
    for (host, path, service) in [
        ("a.test", "/x", "a"),
        ("a.test", "/y", "a-default"),
        ("b.test", "/x", "b"),
        ("b.test", "/y", "any"),
        ("c.test", "/", "any"),
        ("d.test", "/", "any"),
    ] {
        assert_eq!(backend_of(&it, host, path), Some(format!("shop/{service}:80")), "{host}{path}");
    }
}

#[test]
fn what_cannot_be_used_is_left_out_and_hurts_nobody_else() {
    let good = || ingress("good", json!({"rules": [rule("a.test", "/", "Prefix", "web")]}));
    let paths = |path: Value| json!({"rules": [{"host": "b.test", "http": {"paths": [path]}}]});
    for (bad, field) in [
        (json!({}), "spec"),
        (json!({"rules": "x"}), "spec.rules"),
        (json!({"rules": [{"host": 7}]}), "spec.rules[0].host"),
        (json!({"rules": [rule("*", "/", "Prefix", "web")]}), "spec.rules[0].host"),
        (json!({"rules": [rule("B.test", "/", "Prefix", "web")]}), "spec.rules[0].host"),
        (json!({"rules": [rule("10.0.0.1", "/", "Prefix", "web")]}), "spec.rules[0].host"),
        (paths(json!({"path": "/", "backend": backend("web")})), "paths[0].pathType"),
        (paths(json!({"path": "/", "pathType": "Regex", "backend": backend("web")})), "pathType"),
        (
            paths(json!({"path": "x", "pathType": "Exact", "backend": backend("web")})),
            "paths[0].path",
        ),
        (paths(json!({"path": "/a//b", "pathType": "Exact", "backend": backend("web")})), ".path"),
        (paths(json!({"path": "/../b", "pathType": "Prefix", "backend": backend("web")})), ".path"),
        (paths(json!({"path": "/", "pathType": "Prefix"})), "paths[0].backend"),
        (paths(json!({"path": "/", "pathType": "Prefix", "backend": {}})), "backend.service"),
        (
            paths(
                json!({"path": "/", "pathType": "Prefix", "backend": {"resource": {"kind": "X"}}}),
            ),
            "backend.resource",
        ),
        (
            paths(json!({"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "w", "port": {"name": "a", "number": 1}}}})),
            "backend.service.port",
        ),
        (
            paths(json!({"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "w", "port": {"number": 70_000}}}})),
            "backend.service.port.number",
        ),
    ] {
        let it = compiled([ingress("bad", bad.clone()), good()]);
        let found = it.records.iter().find(|it| it.object.as_str() == "Ingress/shop/bad");
        let found = found.unwrap_or_else(|| panic!("{bad}: no record"));
        assert!(found.refused && found.field.contains(field), "{bad}: {found:?}");
        assert_eq!(backend_of(&it, "a.test", "/x"), Some("shop/web:80".to_owned()), "{bad}");
    }
    let old = json!({"apiVersion": "networking.k8s.io/v1beta1", "kind": "Ingress",
        "metadata": {"name": "old"}, "spec": {}});
    assert!(fields(&compiled([old])).contains(&"Ingress/default/old: apiVersion".to_owned()));
    // A regular expression that the engine does not have.
    let mut value = ingress("re", json!({"rules": [rule("b.test", "/(?=x)", "Prefix", "web")]}));
    value["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/use-regex": "true"});
    let it = compiled([value, good()]);
    assert!(fields(&it).contains(&"Ingress/shop/re: spec.rules[0].http.paths[0].path".to_owned()));
}

/// What is wrong with a Secret is said without its content.
#[test]
fn a_secret_is_not_quoted() {
    let it = compiled([json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "s", "namespace": "shop"}, "data": "TOP-SECRET"})]);
    assert_eq!(fields(&it), ["Secret/shop/s: data"]);
    assert!(!format!("{:?}", it.records).contains("TOP-SECRET"), "{:?}", it.records);
}

fn service(ports: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": ports})
}

fn slice(name: &str, family: &str, endpoints: Value, ports: Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family, "endpoints": endpoints, "ports": ports})
}

/// The endpoints of a rule's backend.
fn endpoints(port: Value, values: Vec<Value>) -> Result<Vec<String>, String> {
    let paths = json!([{"path": "/", "pathType": "Prefix",
        "backend": {"service": {"name": "web", "port": port}}}]);
    let rules = json!({"rules": [{"http": {"paths": paths}}]});
    let it = compiled(values.into_iter().chain([ingress("i", rules)]));
    let Target::Route(route) = it.routes.find("x", "/") else { panic!("no route") };
    match &route.backend.missing {
        Some(reason) => Err(reason.to_string()),
        None => Ok(route.backend.endpoints.iter().map(SocketAddr::to_string).collect()),
    }
}

#[test]
fn ports_lead_through_the_service_to_the_slices() {
    let two = service(json!({"ports": [
        {"name": "http", "port": 80, "targetPort": "web"}, {"name": "admin", "port": 81}]}));
    let ready = json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["10.1.0.2"]}]);
    let ports = json!([{"name": "admin", "port": 9001}, {"name": "http", "port": 8080}]);
    let one = slice("a", "IPv4", ready, ports);
    let other = slice(
        "b",
        "IPv4",
        json!([{"addresses": ["10.1.0.3"]}]),
        json!([{"name": "http", "port": 8090}]),
    );
    let all = || vec![two.clone(), one.clone(), other.clone()];
    let http = Ok(["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8090"].map(str::to_owned).to_vec());
    assert_eq!(endpoints(json!({"number": 80}), all()), http);
    assert_eq!(endpoints(json!({"name": "http"}), all()), http);
    let admin = Ok(["10.1.0.1:9001", "10.1.0.2:9001"].map(str::to_owned).to_vec());
    assert_eq!(endpoints(json!({"number": 81}), all()), admin);
    // The number is the Service's port, not the target's.
    assert!(endpoints(json!({"number": 8080}), all()).is_err());
    assert!(endpoints(json!({"name": "web"}), all()).is_err());
    assert!(endpoints(json!({"number": 80}), vec![one.clone()]).is_err(), "no Service");
    assert!(endpoints(json!({"number": 80}), vec![two.clone()]).is_err(), "no slice");
    let external = service(json!({"type": "ExternalName", "externalName": "x.test"}));
    assert!(endpoints(json!({"number": 80}), vec![external]).is_err());
}

#[test]
fn only_endpoints_that_are_ready_get_requests() {
    let web = service(json!({"ports": [{"port": 80}]}));
    let ports = json!([{"port": 80}]);
    let with = |endpoints_: Value| {
        let slice = slice("a", "IPv4", endpoints_, ports.clone());
        endpoints(json!({"number": 80}), vec![web.clone(), slice]).unwrap_or_default()
    };
    let ready = json!({"addresses": ["10.1.0.1"], "conditions": {"ready": true}});
    let unready = json!({"addresses": ["10.1.0.2"], "conditions": {"ready": false}});
    let leaving = json!({"addresses": ["10.1.0.3"],
        "conditions": {"ready": false, "serving": true, "terminating": true}});
    assert_eq!(with(json!([ready, unready, leaving])), ["10.1.0.1:80"]);
    assert_eq!(with(json!([unready, leaving])), ["10.1.0.3:80"]);
    assert!(with(json!([unready])).is_empty());
    // A slice that a tenant writes does not lead to the proxy's own host.
    for local in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "x"] {
        assert!(with(json!([{"addresses": [local]}])).is_empty(), "{local}");
    }
    // A pod with two families is one endpoint.
    let six = slice("b", "IPv6", json!([{"addresses": ["fd00::1"]}]), ports.clone());
    let four = slice("a", "IPv4", json!([ready]), ports.clone());
    let both = vec![web.clone(), four, six.clone()];
    assert_eq!(endpoints(json!({"number": 80}), both).unwrap(), ["10.1.0.1:80"]);
    assert_eq!(endpoints(json!({"number": 80}), vec![web, six]).unwrap(), ["[fd00::1]:80"]);
}

/// A slice with endpoints that are left out for their addresses is reported, once.
#[test]
fn endpoints_that_are_not_used_are_reported() {
    let rules = |port: u16| {
        json!([{"path": format!("/{port}"), "pathType": "Prefix",
            "backend": {"service": {"name": "web", "port": {"number": port}}}}])
    };
    let web = service(json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}));
    let addresses = [
        "10.1.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "x",
    ];
    let all = addresses.map(|address| json!({"addresses": [address]}));
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let four = slice("four", "IPv4", json!(all), ports.clone());
    let six = ["::1", "fe80::1", "::ffff:10.0.0.1"].map(|address| json!({"addresses": [address]}));
    let six = slice("six", "IPv6", json!(six), ports.clone());
    let name = slice("name", "FQDN", json!([{"addresses": ["x.test"]}]), ports);
    let spec = |number: u16| json!({"rules": [{"http": {"paths": rules(number)}}]});
    let ingresses = || [ingress("a", spec(80)), ingress("b", spec(81))];
    let it = compiled([web.clone(), four, name].into_iter().chain(ingresses()));
    let wanted = [
        "EndpointSlice/shop/four: endpoints[1].addresses[0]",
        "EndpointSlice/shop/name: addressType",
    ];
    assert_eq!(fields(&it), wanted);
    let reason = &it.records[0].reason;
    assert!(reason.contains("127.0.0.1 is a loopback address"), "{reason}");
    assert!(reason.ends_with("5 more of its endpoints are not used"), "{reason}");
    assert!(it.records.iter().all(|record| record.refused));
    // Of the second family, when the first has none.
    let it = compiled([web, six].into_iter().chain(ingresses()));
    let of_six =
        |it: &&podswitch_kubernetes::Record| it.object.as_str() == "EndpointSlice/shop/six";
    let [one] = *it.records.iter().filter(of_six).collect::<Vec<_>>() else { panic!("one record") };
    assert_eq!(one.field, "endpoints[0].addresses[0]");
    assert!(one.reason.contains("::1 is a loopback") && one.reason.contains("; 2 more"), "{one}");
}

#[test]
fn canaries_without_effect_are_reported() {
    let canary = |name: &str, created: &str, spec: Value| {
        let mut value = ingress(name, spec);
        value["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/canary": "true",
            "nginx.ingress.kubernetes.io/canary-weight": "10"});
        value["metadata"]["creationTimestamp"] = created.into();
        value
    };
    let rules = |service: &str| json!({"rules": [rule("a.test", "/", "Prefix", service)]});
    let with_default = |service: &str| {
        let mut spec = rules(service);
        spec["defaultBackend"] = backend("other");
        spec
    };
    let it = compiled([
        ingress("main", rules("web")),
        canary("new", "2025-01-01T00:00:00Z", rules("new")),
        canary("old", "2024-01-01T00:00:00Z", with_default("old")),
        canary("none", "2024-01-01T00:00:00Z", json!({"defaultBackend": backend("other")})),
    ]);
    let Target::Route(route) = it.routes.find("a.test", "/") else { panic!("no route") };
    let taken = route.canary.as_ref().expect("a canary");
    assert_eq!(taken.ingress.as_str(), "Ingress/shop/old", "the oldest");
    let about = |object: &str, field: &str| {
        let found = it.records.iter().find(|it| it.object.as_str() == object && it.field == field);
        found.unwrap_or_else(|| panic!("{object} {field}: {:?}", it.records)).reason.clone()
    };
    let key = "metadata.annotations[nginx.ingress.kubernetes.io/canary]";
    assert!(about("Ingress/shop/new", key).contains("has the canary Ingress/shop/old already"));
    for name in ["old", "none"] {
        let reason = about(&format!("Ingress/shop/{name}"), "spec.defaultBackend");
        assert!(reason.contains("a canary takes requests of paths only"), "{reason}");
    }
    assert!(matches!(it.routes.find("b.test", "/"), Target::None));
}

/// Both types that `kubectl` makes, with both keys; anything else is reported with the Secret's name.
#[test]
fn secrets_of_two_types_are_used() {
    let both = json!({"tls.crt": "Y2VydA==", "tls.key": "a2V5"});
    let one = json!({"tls.crt": "Y2VydA=="});
    for (kind, data, wrong) in [
        (json!("kubernetes.io/tls"), &both, None),
        (json!("Opaque"), &both, None),
        (json!(null), &both, None),
        (json!("Opaque"), &one, Some("has no tls.key")),
        (json!("kubernetes.io/tls"), &one, Some("has no tls.key")),
        (json!("example.com/x"), &both, Some("is of type \"example.com/x\"")),
    ] {
        let spec = json!({"tls": [{"hosts": ["a.test"], "secretName": "s"}],
            "rules": [rule("a.test", "/", "Prefix", "web")]});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": kind, "data": data,
            "metadata": {"name": "s", "namespace": "shop"}});
        let it = compiled([secret, ingress("web", spec)]);
        let certificate = it.routes.certificate(Some("a.test"));
        assert_eq!(certificate.is_some(), wrong.is_none(), "{kind} {:?}", it.records);
        let about = it.records.iter().find(|it| it.field == "spec.tls[0].secretName");
        assert_eq!(about.is_some(), wrong.is_some(), "{kind} {:?}", it.records);
        if let (Some(about), Some(wrong)) = (about, wrong) {
            assert!(about.reason.contains("Secret \"s\"") && about.reason.contains(wrong));
            assert!(about.refused, "{about:?}");
        }
    }
}

/// A rule of the plain reference.
#[derive(Clone, Debug)]
struct Plain {
    ingress: usize,
    host: String,
    path: String,
    is_exact: bool,
}

/// The rules of Ingress v1, word by word.
fn reference<'r>(rules: &'r [Plain], host: &str, path: &str) -> Option<&'r Plain> {
    let rank = |rule: &Plain| match rule.host.strip_prefix('*') {
        _ if rule.host.is_empty() => Some(0),
        Some(suffix) => {
            let label = host.strip_suffix(suffix)?;
            (!label.is_empty() && !label.contains('.')).then_some(1)
        }
        None => (rule.host == host).then_some(2),
    };
    let elements = |path: &str| -> Vec<String> {
        path.split('/').filter(|element| !element.is_empty()).map(str::to_owned).collect()
    };
    let best = rules.iter().filter_map(rank).max()?;
    rules
        .iter()
        .filter(|rule| rank(rule) == Some(best))
        .filter(|rule| match rule.is_exact {
            true => rule.path == path,
            false => elements(path).starts_with(&elements(&rule.path)),
        })
        // The longest, then Exact, then the oldest.
        .max_by_key(|rule| {
            (elements(&rule.path).len(), rule.is_exact, std::cmp::Reverse(rule.ingress))
        })
}

fn host() -> impl Strategy<Value = String> {
    let known = ["", "a.test", "b.a.test", "*.test", "*.a.test", "x.test", "c.b.a.test"];
    prop::sample::select(known.map(str::to_owned).to_vec())
}

fn path() -> impl Strategy<Value = String> {
    let element = prop::sample::select(vec!["a", "b", "A", "ab"]);
    (prop::collection::vec(element, 0..4), any::<bool>()).prop_map(|(elements, is_open)| {
        let text: String = elements.iter().map(|element| format!("/{element}")).collect();
        if is_open || text.is_empty() { text + "/" } else { text }
    })
}

proptest! {
    #[test]
    fn compiled_routes_agree_with_the_reference(
        rules in prop::collection::vec((host(), path(), any::<bool>()), 0..12),
        requests in prop::collection::vec((host(), path()), 1..20),
    ) {
        let rules: Vec<Plain> = rules
            .into_iter()
            .enumerate()
            .map(|(ingress, (host, path, is_exact))| Plain { ingress, host, path, is_exact })
            .collect();
        let it = compiled(rules.iter().map(|it| {
            let kind = if it.is_exact { "Exact" } else { "Prefix" };
            let rule = rule(&it.host, &it.path, kind, &format!("s{}", it.ingress));
            ingress(&format!("i{:02}", it.ingress), json!({"rules": [rule]}))
        }));
        for (host, path) in &requests {
            let host = host.replace('*', "w");
            let expected = reference(&rules, &host, path);
            let found = backend_of(&it, &host, path);
            let expected = expected.map(|rule| format!("shop/s{}:80", rule.ingress));
            prop_assert_eq!(found, expected, "{} {}", host, path);
        }
    }
}
