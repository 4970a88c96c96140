//! Connections to Services' addresses: which Service, which backend and why, or why none.

use serde_json::{Value, json};

use podswitch_vswitch_testkit::cases::cluster;
use podswitch_vswitch_testkit::{Folder, run};

/// Zones of the nodes are z1 and z2. Backends of x/web: x/a on n1, y/a and y/b on n2.
const SERVICES: &str = "---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: x}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, 'fd96::10']
  clusterIP: 10.96.0.10
  ipFamilies: [IPv4, IPv6]
  ports: [{name: http, port: 80, targetPort: 80, nodePort: 30080}]
  loadBalancerSourceRanges: [198.51.100.0/24]
  externalIPs: [192.0.2.210]
status: {loadBalancer: {ingress: [{ip: 192.0.2.200}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: x, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints:
- {addresses: [10.0.0.1], nodeName: n1, zone: z1, targetRef: {kind: Pod, namespace: x, name: a}}
- {addresses: [10.0.1.1], nodeName: n2, zone: z2, hints: {forZones: [{name: z2}]}}
- {addresses: [10.0.1.2], nodeName: n2, conditions: {ready: false, serving: true, terminating: true}}
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: x}
spec: {clusterIP: 10.96.0.11, internalTrafficPolicy: Local, sessionAffinity: ClientIP, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: near-1, namespace: x, labels: {kubernetes.io/service-name: near}}
addressType: IPv4
ports: [{name: '', port: 80}]
endpoints:
- {addresses: [10.0.1.1], nodeName: n2}
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: x}
spec: {clusterIP: 10.96.0.12, ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard, namespace: y}
spec:
  podSelector: {}
  ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}], ports: [{port: 80}]}]
";

struct World {
    folder: Folder,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: Folder::new() };
        world.folder.manifest("state", &(cluster(["n1", "n2", "n2"]) + SERVICES));
        world
    }

    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let state = self.folder.text("state");
        let common = ["explain", "--manifests", &state, "--service-cidr", "10.96.0.0/16"];
        let output = run(&[&common, arguments].concat());
        let text = String::from_utf8(output.stdout).expect("text");
        // Notes go to standard error.
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().expect("it ends"), text)
    }

    /// The answer for programs; its exit status must fit its verdict.
    #[track_caller]
    fn json(&self, from: &str, to: &str, more: &[&str]) -> Value {
        let asked = [&["--json", "--from", from, "--to", to], more].concat();
        let (status, out) = self.run(&asked);
        let answer: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}"));
        assert_eq!(status, i32::from(answer["verdict"] != "allow"), "{answer}");
        answer
    }
}

#[test]
fn a_service_names_its_backends_and_the_one_that_is_chosen() {
    let world = World::new();
    let mut seen = Vec::new();
    for port in 1..40 {
        let answer = world.json("x/b", "x/web:80", &["--sport", &port.to_string()]);
        let service = &answer["service"];
        assert_eq!(answer["verdict"], "allow");
        assert_eq!(service["name"], "Service/x/web");
        assert_eq!(service["kind"], "ClusterIP");
        assert_eq!(service["scope"], "Cluster");
        assert_eq!(answer["to"]["address"], "10.96.0.10");
        let chosen = service["backend"].as_str().expect("a backend").to_owned();
        let lines = service["backends"].as_array().expect("a list");
        let of = |field: &str| lines.iter().map(|line| line[field].clone()).collect::<Vec<_>>();
        assert_eq!(of("address"), ["10.0.0.1:80", "10.0.1.1:80", "10.0.1.2:80"]);
        assert_eq!(of("usable"), [true, true, false]);
        assert_eq!(of("local"), [true, false, false]);
        assert_eq!(of("terminating"), [false, false, true]);
        assert_eq!(lines[0]["target"], "Pod/x/a");
        let marked = lines.iter().find(|line| line["chosen"] == true).expect("one is chosen");
        assert_eq!(marked["address"], chosen);
        // Its way is the backend's.
        let (kind, leads) = match &*chosen {
            "10.0.0.1:80" => ("pod", "x/a"),
            _ => ("remote", "n2"),
        };
        assert_eq!(answer["route"]["kind"], kind);
        let told =
            if kind == "pod" { &answer["route"]["port"] } else { &answer["route"]["remote"] };
        assert_eq!(told, leads);
        // The very same port chooses the very same backend.
        let again = world.json("x/b", "10.96.0.10:80", &["--sport", &port.to_string()]);
        assert_eq!(again["service"]["backend"], chosen);
        assert_eq!(again["to"]["object"], "Service/x/web");
        seen.push(chosen);
        if seen.contains(&"10.0.0.1:80".into()) && seen.contains(&"10.0.1.1:80".into()) {
            return;
        }
    }
    panic!("always the same backend");
}

#[test]
fn every_kind_of_address_is_a_services() {
    let world = World::new();
    for (to, kind) in [
        ("svc/x/web:80", "ClusterIP"),
        ("192.0.2.1:30080", "NodePort"),
        ("node/n1:30080", "NodePort"),
        ("192.0.2.200:80", "LoadBalancer"),
    ] {
        let answer = world.json("198.51.100.7", to, &[]);
        assert_eq!(answer["service"]["kind"], kind, "{to}");
        // A client off the cluster is hidden (S8).
        assert_eq!(answer["service"]["source_nat"], true, "{to}");
        assert_eq!(world.json("x/b", to, &[])["service"]["source_nat"], false, "{to}");
    }
    assert_eq!(
        world.json("198.51.100.7", "192.0.2.200:80", &["--node", "n2"])["route"]["node"],
        "n2"
    );
    // Not a Service's port of the node: the node itself.
    assert_eq!(world.json("x/b", "node/n1:22", &[])["service"], Value::Null);
}

/// Policy sees the client and the backend as they are (N15).
#[test]
fn policy_judges_client_and_backend() {
    let world = World::new();
    let mut verdicts = Vec::new();
    for port in 1..40 {
        let answer = world.json("z/a", "x/web:80", &["--sport", &port.to_string()]);
        let wanted = match answer["service"]["backend"].as_str().expect("a backend") {
            "10.0.0.1:80" => json!(["allow", Value::Null]),
            _ => json!(["deny", "policy_ingress"]),
        };
        assert_eq!(json!([answer["verdict"], answer["reason"]]), wanted);
        verdicts.push(wanted);
        if verdicts.iter().any(|v| v != &verdicts[0]) {
            assert_eq!(answer["ingress"]["verdict"], answer["verdict"]);
            return;
        }
    }
    panic!("always the same backend");
}

#[test]
fn refusals_say_why() {
    let world = World::new();
    for (from, to, verdict, reason, name) in [
        ("x/b", "x/none:80", "reject", "service_no_endpoints", json!("Service/x/none")),
        ("x/b", "x/web:81", "reject", "service_undefined_port", json!("Service/x/web")),
        ("x/b", "10.96.9.9:80", "drop", "service_unallocated", Value::Null),
        ("x/b", "x/near:80", "drop", "service_no_local_endpoints", json!("Service/x/near")),
        ("203.0.113.9", "192.0.2.200:80", "drop", "service_source_range", json!("Service/x/web")),
    ] {
        let answer = world.json(from, to, &[]);
        assert_eq!(answer["verdict"], verdict, "{to}: {answer}");
        assert_eq!(answer["reason"], reason, "{to}");
        assert_eq!(answer["service"]["name"], name, "{to}");
        assert_eq!(answer["service"]["backend"], Value::Null, "{to}");
        assert_eq!(answer["route"], Value::Null, "{to}");
    }
    // On the endpoint's node the same Service answers, and its client stays with its backend.
    let near = world.json("y/b", "x/near:80", &[]);
    assert_eq!((&near["verdict"], &near["service"]["scope"]), (&json!("deny"), &json!("Local")));
    assert_eq!(near["service"]["affinity"], 10_800);
}

/// What no manifest says: the cluster's key, and where external IPs are honoured.
#[test]
fn options_of_the_cluster() {
    let world = World::new();
    let choices = |more: &[&str]| -> Vec<Value> {
        let choice = |port: u16| {
            let port = port.to_string();
            let asked = [&["--sport", &port], more].concat();
            world.json("x/b", "x/web:80", &asked)["service"]["slot"].clone()
        };
        (1..9).map(choice).collect()
    };
    let key = "000102030405060708090a0b0c0d0e0f";
    assert_eq!(choices(&[]), choices(&[]));
    assert_eq!(choices(&["--hash-key", key]), choices(&["--hash-key", key]));
    assert_ne!(choices(&["--hash-key", key]), choices(&[]));
    let outside = |more: &[&str]| world.json("x/b", "192.0.2.210:80", more)["service"].clone();
    assert_eq!(outside(&[]), Value::Null);
    assert_eq!(outside(&["--allow-external-ips", "192.0.2.192/26"])["kind"], "ExternalIP");
    for wrong in [
        ["--hash-key", "0102"],
        ["--masquerade", "on"],
        ["--masquerade", "192.0.2.1,192.0.2.2"],
        ["--service-cidr", "10.96.0.0"],
        ["--node", "n9"],
    ] {
        let asked = [&["--from", "x/b", "--to", "x/web:80"], &wrong[..]].concat();
        assert_eq!(world.run(&asked).0, 2, "{wrong:?}");
    }
}

#[test]
fn in_words() {
    let world = World::new();
    let (status, text) = world.run(&["--from", "x/b", "--to", "x/web:80"]);
    assert_eq!(status, 0, "{text}");
    for part in [
        "allow: 80/TCP from Pod/x/b (10.0.0.2, on n1) to Service/x/web (10.96.0.10)",
        "Service/x/web port 80 (http) by ClusterIP: to 10.0.",
        "chosen by the hash of both addresses and ports: slot ",
        "10.0.0.1:80 ready, node n1, zone z1, Pod/x/a, 5",
        "10.0.1.2:80 terminating, serving, node n2",
        "traffic policy: internal Cluster, external Cluster; the client is in the cluster",
        "backends in question: those of all nodes",
        "topology hints ignored: 10.0.0.1:80 has none for zones",
        "route: on n1 through the overlay to n2 (VXLAN 1, 192.0.2.1 to 192.0.2.2",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let (status, text) = world.run(&["--from", "x/b", "--to", "x/none:80"]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("reject: 80/TCP from Pod/x/b"), "{text}");
    assert!(
        text.contains("Service/x/none port 80 by ClusterIP: rejected: no usable endpoint"),
        "{text}"
    )
}
