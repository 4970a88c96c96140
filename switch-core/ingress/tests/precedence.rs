//! Which rule of which HTTPRoute has a request: compared with a reference that looks at every match
//! and sorts them by the order that HTTPRouteRule.matches lists.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::net::IpAddr;

use podswitch_ingress::{Ask, Objects, Options, Target, compile};
use proptest::prelude::*;
use serde_json::{Value, json};

const API: &str = "gateway.networking.k8s.io/v1";

/// Hosts of listeners, routes and requests; the first is none.
const LISTENERS: [&str; 4] = ["", "*.test", "*.b.test", "a.b.test"];
const HOSTS: [&str; 7] = ["", "*.test", "*.b.test", "*.a.b.test", "a.b.test", "b.test", "c.test"];
const ASKED: [&str; 6] = ["a.b.test", "x.b.test", "y.a.b.test", "b.test", "c.test", "other"];
const PATHS: [&str; 5] = ["/", "/a", "/a/b", "/a/b/", "/c"];
const METHODS: [&str; 3] = ["", "GET", "PUT"];

#[derive(Clone, Debug)]
struct Match {
    path: &'static str,
    is_exact: bool,
    method: &'static str,
    fields: Vec<&'static str>,
    params: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct Route {
    hosts: Vec<&'static str>,
    /// Matches by rule.
    rules: Vec<Vec<Match>>,
}

#[derive(Clone, Debug)]
struct Request {
    host: &'static str,
    path: &'static str,
    method: &'static str,
    fields: Vec<&'static str>,
    params: Vec<&'static str>,
}

fn names() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(vec!["x", "y"], 0..=2)
}

fn a_match() -> impl Strategy<Value = Match> {
    let of = proptest::sample::select;
    (of(&PATHS[..]), any::<bool>(), of(&METHODS[..]), names(), names()).prop_map(
        |(path, is_exact, method, fields, params)| Match { path, is_exact, method, fields, params },
    )
}

fn a_route() -> impl Strategy<Value = Route> {
    let hosts = proptest::sample::subsequence(HOSTS[1..].to_vec(), 0..=2);
    let rules = proptest::collection::vec(proptest::collection::vec(a_match(), 1..3), 1..3);
    (hosts, rules).prop_map(|(hosts, rules)| Route { hosts, rules })
}

fn a_request() -> impl Strategy<Value = Request> {
    let of = proptest::sample::select;
    const PATHS: [&str; 8] = ["/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/ab", "/c/d"];
    (of(&ASKED[..]), of(&PATHS[..]), of(&METHODS[1..]), names(), names()).prop_map(
        |(host, path, method, fields, params)| Request { host, path, method, fields, params },
    )
}

/// Whether a name has a host as written.
fn has(host: &str, name: &str) -> bool {
    match host.strip_prefix('*') {
        _ if host.is_empty() => true,
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => host == name,
    }
}

/// More specific hosts are greater.
fn rank(host: &str) -> (bool, usize) {
    (!host.is_empty() && !host.starts_with('*'), host.len())
}

fn holds(it: &Match, ask: &Request) -> bool {
    let prefix = it.path.trim_end_matches('/');
    let path = if it.is_exact {
        it.path == ask.path
    } else {
        let rest = ask.path.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    path && (it.method.is_empty() || it.method == ask.method)
        && it.fields.iter().all(|name| ask.fields.contains(name))
        && it.params.iter().all(|name| ask.params.contains(name))
}

/// Route and rule.
fn expected(listeners: &[&str], routes: &[Route], ask: &Request) -> Option<(usize, usize)> {
    let mine = listeners.iter().filter(|host| has(host, ask.host));
    let listener = mine.max_by_key(|host| rank(host))?;
    assert!(has(listener, ask.host));
    let mut found = Vec::new();
    for (number, route) in routes.iter().enumerate() {
        let any = vec![""];
        let hosts = if route.hosts.is_empty() { &any } else { &route.hosts };
        // The name is one of the listener, too: both have it in common.
        let hosts = hosts.iter().filter(|host| has(host, ask.host));
        let Some(host) = hosts.map(|host| rank(host)).max() else { continue };
        for (at, rule) in route.rules.iter().enumerate() {
            for it in rule.iter().filter(|it| holds(it, ask)) {
                let length = it.path.trim_end_matches('/').len();
                let path = (!it.is_exact, Reverse(if it.is_exact { 0 } else { length }));
                let counts = (Reverse(it.fields.len()), Reverse(it.params.len()));
                let key = (Reverse(host), path, it.method.is_empty(), counts, number, at);
                found.push((key, (number, at)));
            }
        }
    }
    found.into_iter().min_by(|a, b| a.0.cmp(&b.0)).map(|(_, rule)| rule)
}

fn objects(listeners: &[&str], routes: &[Route]) -> Objects {
    let mut objects = Objects::default();
    objects.upsert(
        None,
        json!({"apiVersion": API, "kind": "GatewayClass",
        "metadata": {"name": "ours"}, "spec": {"controllerName": "podswitch.io/ingress"}}),
    );
    let host = |host: &&str| (!host.is_empty()).then(|| (*host).to_owned());
    let list: Vec<_> = listeners
        .iter()
        .enumerate()
        .map(|(at, it)| {
            json!({"name": format!("l{at}"), "hostname": host(it), "port": 80, "protocol": "HTTP"})
        })
        .collect();
    objects.upsert(
        None,
        json!({"apiVersion": API, "kind": "Gateway", "metadata": {"name": "g"},
        "spec": {"gatewayClassName": "ours", "listeners": list}}),
    );
    let pairs = |names: &[&str]| -> Value {
        names.iter().map(|name| json!({"name": name, "value": "1"})).collect()
    };
    for (number, route) in routes.iter().enumerate() {
        let rules: Vec<_> = route.rules.iter().enumerate().map(|(at, rule)| {
            let matches: Vec<_> = rule.iter().map(|it| {
                let kind = if it.is_exact { "Exact" } else { "PathPrefix" };
                json!({"path": {"type": kind, "value": it.path}, "headers": pairs(&it.fields),
                    "queryParams": pairs(&it.params),
                    "method": (!it.method.is_empty()).then_some(it.method)})
            }).collect();
            // It is missing: its name says which rule it was.
            json!({"matches": matches, "backendRefs": [{"name": format!("{number}-{at}"), "port": 80}]})
        }).collect();
        objects.upsert(
            None,
            json!({"apiVersion": API, "kind": "HTTPRoute",
            "metadata": {"name": format!("r{number}")},
            "spec": {"parentRefs": [{"name": "g"}], "hostnames": route.hosts, "rules": rules}}),
        );
    }
    objects
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_rule_with_precedence_has_the_request(
        listeners in proptest::sample::subsequence(LISTENERS.to_vec(), 1..=4),
        routes in proptest::collection::vec(a_route(), 1..4),
        requests in proptest::collection::vec(a_request(), 8),
    ) {
        let compiled = compile(&objects(&listeners, &routes), &Options::default());
        for ask in requests {
            let query: Vec<_> = ask.params.iter().map(|name| format!("{name}=1")).collect();
            let query = query.join("&");
            let field = |name: &str| ask.fields.contains(&name).then_some(Cow::Borrowed(&b"1"[..]));
            let request = Ask {
                address: IpAddr::from([127, 0, 0, 1]),
                is_tls: false,
                host: ask.host,
                path: ask.path,
                query: Some(&query),
                method: ask.method,
                field: &field,
            };
            let found = match compiled.routes.choose(&request, || 0) {
                Target::Route(route) => route.filters.as_ref().and_then(|it| it.invalid.clone()),
                Target::None => None,
            };
            let wanted = expected(&listeners, &routes, &ask)
                .map(|(route, rule)| format!("there is no Service \"{route}-{rule}\""));
            prop_assert_eq!(found.as_deref(), wanted.as_deref(), "{:?}", ask);
        }
    }
}
