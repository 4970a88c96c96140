//! Gateway API by list and watch, its status, and API servers without it.

use serde_json::{Value, json};

use crate::follow::{Program, status, wait_status};
use crate::server::Server;

const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1";

fn class() -> Value {
    json!({"metadata": {"name": "ours", "generation": 1},
        "spec": {"controllerName": "podswitch.io/ingress"}})
}

fn gateway(generation: i64) -> Value {
    json!({"metadata": {"name": "web", "namespace": "a", "generation": generation},
        "spec": {"gatewayClassName": "ours",
            "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]}})
}

fn route(host: &str) -> Value {
    json!({"metadata": {"name": "shop", "namespace": "a", "generation": 3},
        "spec": {"parentRefs": [{"name": "web"}], "hostnames": [host],
            "rules": [{"backendRefs": [{"name": "shop", "port": 80}]}]}})
}

fn at(plural: &str, name: &str) -> String {
    format!("{GATEWAY}/namespaces/a/{plural}/{name}")
}

/// `Type=Status/Reason/observedGeneration` of a list of conditions.
fn texts(conditions: &Value) -> Vec<String> {
    let text = |it: &Value| {
        assert!(it["lastTransitionTime"].as_str().is_some_and(|time| time.ends_with('Z')), "{it}");
        let part = |name: &str| it[name].as_str().unwrap_or_default().to_owned();
        let (kind, status, reason) = (part("type"), part("status"), part("reason"));
        format!("{kind}={status}/{reason}/{}", it["observedGeneration"])
    };
    conditions.as_array().into_iter().flatten().map(text).collect()
}

#[test]
fn gateways_are_followed_and_their_status_is_written() {
    let (server, address) = Server::start();
    server.put(&format!("{GATEWAY}/gatewayclasses/ours"), class());
    server.put(&at("gateways", "web"), gateway(1));
    let mut shop = route("shop.test");
    let foreign = json!({"controllerName": "other", "parentRef": {"name": "x"}, "conditions": []});
    shop["status"] = json!({"parents": [foreign]});
    server.put(&at("httproutes", "shop"), shop);
    let program = Program::start(address);
    let http = program.line("HTTP at ");
    // The Service is missing.
    assert_eq!((status(&http, "shop.test"), status(&http, "other.test")), (500, 404));

    let route_status = |object: &Value| texts(&object["status"]["parents"][1]["conditions"]);
    let missing = ["Accepted=True/Accepted/3", "ResolvedRefs=False/BackendNotFound/3"];
    server.wait("a status of the route", |inner| {
        route_status(&inner.objects[&at("httproutes", "shop")]) == missing
    });
    let it = server.get(&at("httproutes", "shop")).unwrap();
    assert_eq!(it["status"]["parents"][0], foreign);
    assert_eq!(it["status"]["parents"][1]["controllerName"], "podswitch.io/ingress");
    assert_eq!(it["status"]["parents"][1]["parentRef"], json!({"name": "web"}));

    let up = |generation: i64| {
        ["Accepted=True/Accepted", "Programmed=True/Programmed"]
            .map(|it| format!("{it}/{generation}"))
    };
    server.wait("a status of the Gateway", |inner| {
        texts(&inner.objects[&at("gateways", "web")]["status"]["conditions"]) == up(1)
    });
    let it = server.get(&at("gateways", "web")).unwrap();
    let addresses = json!([{"type": "IPAddress", "value": "192.0.2.7"},
        {"type": "Hostname", "value": "front.test"}]);
    assert_eq!(it["status"]["addresses"], addresses);
    let listener = &it["status"]["listeners"][0];
    assert_eq!((&listener["name"], &listener["attachedRoutes"]), (&json!("http"), &json!(1)));
    let kinds = json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}]);
    assert_eq!(listener["supportedKinds"], kinds);
    server.wait("a status of the class", |inner| {
        let class = &inner.objects[&format!("{GATEWAY}/gatewayclasses/ours")];
        texts(&class["status"]["conditions"]) == ["Accepted=True/Accepted/1"]
    });

    // Changes: a Service, a new generation, and the end of the Gateway.
    server.put(
        "/api/v1/namespaces/a/services/shop",
        json!({"metadata": {"name": "shop", "namespace": "a"}, "spec": {"ports": [{"port": 80}]}}),
    );
    wait_status(&http, "shop.test", 503);
    let found = ["Accepted=True/Accepted/3", "ResolvedRefs=True/ResolvedRefs/3"];
    server.wait("another status of the route", |inner| {
        route_status(&inner.objects[&at("httproutes", "shop")]) == found
    });
    server.put(&at("gateways", "web"), gateway(2));
    server.wait("the status of the new generation", |inner| {
        texts(&inner.objects[&at("gateways", "web")]["status"]["conditions"]) == up(2)
    });
    server.delete(&at("gateways", "web"));
    wait_status(&http, "shop.test", 404);
    server.wait("no parent of ours", |inner| {
        inner.objects[&at("httproutes", "shop")]["status"]["parents"] == json!([foreign])
    });
}

/// Without the kinds of Gateway API, Ingresses are served; they are found when they come. What may not
/// be read is reported.
#[test]
fn the_kinds_may_be_missing() {
    let (server, address) = Server::start();
    let kinds = ["gatewayclasses", "gateways", "httproutes", "referencegrants"];
    let set_missing = |list: &[&'static str]| {
        server.inner.lock().unwrap().missing = list.iter().copied().collect();
    };
    set_missing(&kinds);
    server.inner.lock().unwrap().denied.insert("namespaces", "namespaces is forbidden: no list");
    let program = Program::start(address);
    let http = program.line("HTTP at ");
    assert_eq!(status(&http, "shop.test"), 404);
    server.put(&format!("{GATEWAY}/gatewayclasses/ours"), class());
    server.put(&at("gateways", "web"), gateway(1));
    server.put(&at("httproutes", "shop"), route("shop.test"));
    set_missing(&[]);
    wait_status(&http, "shop.test", 500);
}
