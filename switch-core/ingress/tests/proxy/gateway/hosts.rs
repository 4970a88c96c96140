//! Hosts of listeners and routes.

use serde_json::json;

use super::*;

fn own(lab: &mut Lab, name: &str, hosts: &[Option<&str>]) {
    let listeners: Vec<_> = hosts
        .iter()
        .enumerate()
        .map(|(at, host)| http(&format!("listener-{}", at + 1), *host, json!({"from": "Same"})))
        .collect();
    lab.add(gateway(name, OWN, json!(listeners)));
}

/// HTTPRouteListenerHostnameMatching.
#[test]
fn the_listener_with_the_most_specific_host() {
    let mut lab = base();
    let hosts = [Some("bar.com"), Some("foo.bar.com"), Some("*.bar.com"), Some("*.foo.com")];
    own(&mut lab, "listeners", &hosts);
    let at = |section: &str| json!({"name": "listeners", "sectionName": section});
    let rules = |to: u8| json!([{"backendRefs": v(to)}]);
    lab.add(route("backend-v1", json!([at("listener-1")]), &[], rules(1)));
    lab.add(route("backend-v2", json!([at("listener-2")]), &[], rules(2)));
    lab.add(route("backend-v3", json!([at("listener-3"), at("listener-4")]), &[], rules(3)));
    assert_eq!(lab.publish(), []);
    for (host, expected) in [
        ("bar.com", 1),
        ("foo.bar.com", 2),
        ("baz.bar.com", 3),
        ("boo.bar.com", 3),
        ("multiple.prefixes.bar.com", 3),
        ("multiple.prefixes.foo.com", 3),
        ("foo.com", 404),
        ("no.matching.host", 404),
    ] {
        check(&lab, OWN, Ask("GET", host, "/", &[]), expected);
    }
}

/// HTTPRouteHostnameIntersection.
#[test]
fn hosts_that_listener_and_route_have_in_common() {
    let mut lab = base();
    let hosts = [Some("very.specific.com"), Some("*.wildcard.io"), Some("*.anotherwildcard.io")];
    own(&mut lab, "intersection", &hosts);
    let parent = || json!([{"name": "intersection"}]);
    let rule = |path: &str, to: u8| json!([{"matches": [prefix(path)], "backendRefs": v(to)}]);
    let one = ["non.matching.com", "*.nonmatchingwildcard.io", "very.specific.com"];
    lab.add(route("specific-specific", parent(), &one, rule("/s1", 1)));
    let two = [
        "non.matching.com",
        "wildcard.io",
        "foo.wildcard.io",
        "bar.wildcard.io",
        "foo.bar.wildcard.io",
    ];
    lab.add(route("specific-wildcard", parent(), &two, rule("/s2", 2)));
    lab.add(route(
        "wildcard-specific",
        parent(),
        &["non.matching.com", "*.specific.com"],
        rule("/s3", 3),
    ));
    lab.add(route("wildcard-wildcard", parent(), &["*.anotherwildcard.io"], rule("/s4", 1)));
    let none = ["specific.but.wrong.com", "wildcard.io"];
    lab.add(route("no-intersecting-hosts", parent(), &none, rule("/s5", 2)));
    let records = lab.publish();
    assert_eq!(records.len(), 1, "{records:?}");
    for (host, path, expected) in [
        ("very.specific.com", "/s1", 1),
        ("very.specific.com:1234", "/s1", 1),
        ("non.matching.com", "/s1", 404),
        ("foo.nonmatchingwildcard.io", "/s1", 404),
        ("foo.wildcard.io", "/s1", 404),
        ("very.specific.com", "/non-matching-prefix", 404),
        ("foo.wildcard.io", "/s2", 2),
        ("bar.wildcard.io", "/s2", 2),
        ("foo.bar.wildcard.io", "/s2", 2),
        ("non.matching.com", "/s2", 404),
        ("wildcard.io", "/s2", 404),
        ("very.specific.com", "/s2", 404),
        ("foo.wildcard.io", "/non-matching-prefix", 404),
        ("very.specific.com", "/s3", 3),
        ("non.matching.com", "/s3", 404),
        ("foo.specific.com", "/s3", 404),
        ("foo.wildcard.io", "/s3", 404),
        ("foo.anotherwildcard.io", "/s4", 1),
        ("bar.anotherwildcard.io", "/s4", 1),
        ("foo.bar.anotherwildcard.io", "/s4", 1),
        ("anotherwildcard.io", "/s4", 404),
        ("foo.wildcard.io", "/s4", 404),
        ("very.specific.com", "/s4", 404),
        ("foo.anotherwildcard.io", "/non-matching-prefix", 404),
        ("specific.but.wrong.com", "/s5", 404),
        ("wildcard.io", "/s5", 404),
    ] {
        check(&lab, OWN, Ask("GET", host, path, &[]), expected);
    }
    let refused = ["Accepted=false/NoMatchingListenerHostname", "ResolvedRefs=true/ResolvedRefs"];
    assert_eq!(of_route(&lab, "no-intersecting-hosts"), refused);
    assert_eq!(of_route(&lab, "specific-wildcard"), GOOD);
    // Only accepted routes count.
    assert_eq!(attached(&lab, "intersection"), [2, 1, 1]);
}

/// HTTPRouteHostnameIntersection, with a listener for every host.
#[test]
fn a_listener_without_a_host() {
    let mut lab = base();
    own(&mut lab, "intersection-all", &[None]);
    let hosts = ["first.com", "sub.first.com", "second.com", "sub.second.com"];
    let parent = json!([{"name": "intersection-all"}]);
    lab.add(route("all", parent, &hosts, json!([{"backendRefs": v(2)}])));
    assert_eq!(lab.publish(), []);
    for host in hosts {
        check(&lab, OWN, Ask("GET", host, "/", &[]), 2);
    }
    for host in ["third.com", "sub.third.com"] {
        check(&lab, OWN, Ask("GET", host, "/", &[]), 404);
    }
}

/// GatewayHTTPListenerIsolation, with hosts of listeners alone, and of listeners and routes.
#[test]
fn listeners_are_isolated() {
    for with_hosts in [false, true] {
        let mut lab = base();
        let all =
            [None, Some("*.example.com"), Some("*.foo.example.com"), Some("abc.foo.example.com")];
        own(&mut lab, "isolation", &all);
        let paths = ["/empty-hostname", "/wildcard", "/wildcard-foo", "/abc"];
        let own_hosts: [&[&str]; 4] = [
            &["bar.com", "*.example.com", "*.foo.example.com", "abc.foo.example.com"],
            &["bar.com", "*.example.com", "*.foo.example.com", "abc.foo.example.com"],
            &["bar.com", "*.example.com", "*.foo.example.com", "abc.foo.example.com"],
            &["bar.com", "*.example.com", "*.foo.example.com", "abc.foo.example.com"],
        ];
        for (at, path) in paths.iter().enumerate() {
            let parent =
                json!([{"name": "isolation", "sectionName": format!("listener-{}", at + 1)}]);
            let hosts = if with_hosts { own_hosts[at] } else { &[] };
            let rules = json!([{"matches": [prefix(path)], "backendRefs": v(1)}]);
            lab.add(route(&path[1..], parent, hosts, rules));
        }
        assert_eq!(lab.publish(), []);
        let hosts = ["bar.com", "bar.example.com", "bar.foo.example.com", "abc.foo.example.com"];
        for (listener, host) in hosts.iter().enumerate() {
            for (at, path) in paths.iter().enumerate() {
                let expected = if at == listener { 1 } else { 404 };
                check(&lab, OWN, Ask("GET", host, path, &[]), expected);
            }
        }
    }
}

/// HTTPRoute hostnames: rules of the more specific host come first, whatever the path. Not of the suite.
#[test]
fn the_routes_most_specific_host_comes_first() {
    let mut lab = base();
    let rule = |path: &str, to: u8| json!([{"matches": [prefix(path)], "backendRefs": v(to)}]);
    lab.add(route("exact", same(), &["a.b.test"], rule("/", 1)));
    lab.add(route("wildcard", same(), &["*.b.test"], rule("/long/path", 2)));
    lab.add(route("any", same(), &[], rule("/long", 3)));
    assert_eq!(lab.publish(), []);
    check(&lab, SAME, Ask("GET", "a.b.test", "/long/path", &[]), 1);
    check(&lab, SAME, Ask("GET", "x.b.test", "/long/path", &[]), 2);
    check(&lab, SAME, Ask("GET", "x.b.test", "/long", &[]), 3);
    check(&lab, SAME, Ask("GET", "x.b.test", "/", &[]), 404);
}

/// Ingresses and Gateways without addresses share those of the proxy. Not of the suite.
#[test]
fn ingresses_and_gateways_share_addresses() {
    let mut lab = base();
    let mut shared = gateway("shared", OWN, json!([http("http", None, json!({"from": "Same"}))]));
    shared["spec"]["addresses"] = json!(null);
    lab.add(shared);
    let parent = || json!([{"name": "shared"}]);
    let rule = |path: &str, to: u8| json!([{"matches": [prefix(path)], "backendRefs": v(to)}]);
    lab.add(route("all", parent(), &[], rule("/", 1)));
    lab.add(route("one", parent(), &["one.test"], rule("/new", 2)));
    lab.echo("web");
    for host in ["shop.test", "one.test", "*.wild.test"] {
        lab.ingress(&host.replace("*.", ""), host, "web", json!({}));
    }
    lab.publish();
    let any = "127.0.0.1";
    // The exact host of an Ingress, before every host of the Gateway.
    assert_eq!(ask(&lab, any, Ask("GET", "shop.test", "/new", &[])).service(), "web");
    assert_eq!(ask(&lab, any, Ask("GET", "a.wild.test", "/", &[])).service(), "web");
    check(&lab, any, Ask("GET", "a.b.wild.test", "/", &[]), 1);
    check(&lab, any, Ask("GET", "other.test", "/", &[]), 1);
    // The same host: the Ingress has it.
    assert_eq!(ask(&lab, any, Ask("GET", "one.test", "/new", &[])).service(), "web");
    // An address of a Gateway is its alone, but for hosts of Ingresses.
    check(&lab, SAME, Ask("GET", "other.test", "/", &[]), 404);
    assert_eq!(ask(&lab, SAME, Ask("GET", "shop.test", "/", &[])).service(), "web");
}
