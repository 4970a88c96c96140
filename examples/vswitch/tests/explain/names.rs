//! `vswitch dns` as people and programs see it.

use podswitch_vswitch_testkit::{Folder, head, run};
use serde_json::Value;

/// A Service of each kind, and a pod.
const NAMES: &str = "---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00::7'], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-1
  namespace: shop
  labels: {kubernetes.io/service-name: db, service.kubernetes.io/headless: ''}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints: [{addresses: [10.1.0.9], hostname: db-0}]
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: api.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: db.example.com}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.1.0.5}]}
";

fn with(arguments: &[&str]) -> (Option<i32>, String, String) {
    let folder = Folder::new();
    let manifests = folder.manifest("names", &[&*head(), NAMES].concat());
    let output = run(&[&["dns", "--manifests", &manifests], arguments].concat());
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn json(arguments: &[&str]) -> (Option<i32>, Value) {
    let (status, out, _) = with(&[&["--json"], arguments].concat());
    (status, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}")))
}

/// Data of the answer's records.
fn data(report: &Value) -> Vec<&str> {
    let lines = report["answer"].as_array().expect("a list");
    lines.iter().map(|line| line["data"].as_str().expect("text")).collect()
}

#[test]
fn answers_and_reasons() {
    for (arguments, rcode, expected, rule, object) in [
        (
            &["api.shop.svc.cluster.local"][..],
            "NOERROR",
            &["10.96.0.7"][..],
            "cluster-ips",
            "Service/shop/api",
        ),
        (
            &["API.shop.svc.cluster.local.", "aaaa"],
            "NOERROR",
            &["fd00::7"],
            "cluster-ips",
            "Service/shop/api",
        ),
        (&["api.shop.svc.cluster.local", "TXT"], "NOERROR", &[], "cluster-ips", "Service/shop/api"),
        (
            &["_http._tcp.api.shop.svc.cluster.local", "SRV"],
            "NOERROR",
            &["0 50 80 api.shop.svc.cluster.local."],
            "named-port",
            "Service/shop/api",
        ),
        (
            &["db-0.db.shop.svc.cluster.local"],
            "NOERROR",
            &["10.1.0.9"],
            "endpoint",
            "Service/shop/db",
        ),
        (&["10.96.0.7"], "NOERROR", &["api.shop.svc.cluster.local."], "service-address", ""),
        (&["10.1.0.9"], "NOERROR", &["db-0.db.shop.svc.cluster.local."], "endpoint-address", ""),
        (&["10-1-0-5.shop.pod.cluster.local"], "NOERROR", &["10.1.0.5"], "pod-address", ""),
        (&["10-1-0-6.shop.pod.cluster.local"], "NXDOMAIN", &[], "no-such-pod", ""),
        (
            &["10-1-0-6.shop.pod.cluster.local", "--pods", "insecure"],
            "NOERROR",
            &["10.1.0.6"],
            "pod-address",
            "",
        ),
        (&["no.shop.svc.cluster.local"], "NXDOMAIN", &[], "no-such-service", ""),
        (&["api.shop.svc.k8s.test"], "NOT-OURS", &[], "other-zone", ""),
        (
            &["api.shop.svc.k8s.test", "--cluster-domain", "k8s.test"],
            "NOERROR",
            &["10.96.0.7"],
            "cluster-ips",
            "Service/shop/api",
        ),
    ] {
        let (status, report) = json(arguments);
        assert_eq!(report["rcode"], rcode, "{arguments:?}: {report}");
        assert_eq!(data(&report), expected, "{arguments:?}");
        assert_eq!(status, Some(i32::from(expected.is_empty())), "{arguments:?}");
        assert_eq!(report["steps"][0]["rule"], rule, "{arguments:?}");
        assert_eq!(
            report["steps"][0]["object"].as_str().unwrap_or_default(),
            object,
            "{arguments:?}"
        );
    }
}

#[test]
fn aliases_are_followed() {
    let (status, report) = json(&["alias.shop.svc.cluster.local", "--node", "n1"]);
    assert_eq!(status, Some(0));
    assert_eq!(data(&report), ["api.shop.svc.cluster.local.", "10.96.0.7"]);
    assert_eq!(report["steps"][1]["object"], "Service/shop/api");
    let (_, report) = json(&["outside.shop.svc.cluster.local"]);
    assert_eq!(data(&report), ["db.example.com."]);
    assert_eq!(report["partial"], true);
    assert_eq!(report["steps"][1]["rule"], "other-zone");
}

#[test]
fn in_words() {
    let (status, out, _) = with(&["alias.shop.svc.cluster.local"]);
    assert_eq!(status, Some(0));
    for line in [
        "alias.shop.svc.cluster.local. A: NOERROR, 102 bytes",
        "  alias.shop.svc.cluster.local.  Service/shop/alias: an alias: type ExternalName (2.5)",
        "  api.shop.svc.cluster.local.  Service/shop/api: a Service with cluster IPs (2.3)",
        "answer:",
        "  alias.shop.svc.cluster.local. 5 IN CNAME api.shop.svc.cluster.local.",
        "  api.shop.svc.cluster.local. 5 IN A 10.96.0.7",
    ] {
        assert!(out.lines().any(|it| it == line), "{line}\n{out}");
    }
}

#[test]
fn bad_usage() {
    for (arguments, said) in [
        (&["a..b"][..], "empty label"),
        (&["a.b", "XYZ"], "no type of records"),
        (&["a.b", "--cluster-domain", "x..y"], "empty label"),
        (&["a.b", "--node", "n9"], "n9"),
    ] {
        let (status, _, err) = with(arguments);
        assert_eq!(status, Some(2), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}
