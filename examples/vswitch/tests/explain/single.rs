//! One connection, explained.

use serde_json::{Value, json};

use podswitch_vswitch_testkit::cases::cluster;
use podswitch_vswitch_testkit::{Folder, run};

const POLICIES: &str = "\
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {ns: y}}}]
    ports: [{port: 80}]
  - from: [{podSelector: {matchLabels: {pod: b}}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut, namespace: x}
spec: {podSelector: {matchLabels: {pod: a}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: z}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: admins}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {matchLabels: {ns: y}}}
  ingress:
  - {action: Deny, from: [{namespaces: {matchLabels: {ns: z}}}], protocols: [{tcp: {destinationPort: {number: 81}}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: x}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: x}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: x}
spec: {nodeName: n1}
status: {phase: Succeeded, podIPs: [{ip: 10.0.0.77}]}
";

struct World {
    folder: Folder,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: Folder::new() };
        world.folder.manifest("state", &(cluster(["n1", "n2", "n2"]) + POLICIES));
        world
    }

    /// Exit status, standard output and error.
    fn explain(&self, arguments: &[&str]) -> (i32, String, String) {
        let state = self.folder.text("state");
        let output = run(&[&["explain", "--manifests", &state], arguments].concat());
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code().expect("it ends"), text(output.stdout), text(output.stderr))
    }

    /// The answer for programs; its exit status must fit its verdict.
    #[track_caller]
    fn json(&self, from: &str, to: &str, more: &[&str]) -> Value {
        let asked = [&["--json", "--from", from, "--to", to], more].concat();
        let (status, out, err) = self.explain(&asked);
        let answer: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        assert_eq!(status, i32::from(answer["verdict"] != "allow"), "{answer}");
        answer
    }
}

#[test]
fn an_allowance_names_the_rule() {
    let answer = World::new().json("y/c", "pod/x/a:80", &[]);
    assert_eq!(answer["verdict"], "allow");
    assert_eq!(answer["reason"], Value::Null);
    assert_eq!(answer["egress"]["verdict"], "allow");
    assert_eq!(answer["egress"]["policy"], Value::Null);
    assert_eq!(answer["ingress"]["verdict"], "allow");
    assert_eq!(answer["ingress"]["policy"], "NetworkPolicy/x/guard");
    assert_eq!(answer["ingress"]["rule"], 0);
    assert!(answer["ingress"].get("isolated_by").is_none());
    assert_eq!(answer["service"], Value::Null);
    assert_eq!(answer["from"]["object"], "Pod/y/c");
    assert_eq!(answer["to"]["address"], "10.0.0.1");
    assert_eq!(answer["family"], "ipv4");
    let second = World::new().json("x/b", "x/a:9/SCTP", &["--family", "ipv6"]);
    assert_eq!((&second["verdict"], &second["ingress"]["rule"]), (&json!("allow"), &json!(1)));
    assert_eq!(second["to"]["address"], "fd00::1");
}

#[test]
fn a_denial_names_who_isolates_and_what_almost_matched() {
    let world = World::new();
    // The destination is on another node than the source: both ends are evaluated all the same.
    let answer = world.json("y/c", "x/a:81", &[]);
    assert_eq!(answer["verdict"], "deny");
    assert_eq!(answer["reason"], "policy_ingress");
    assert_eq!(answer["ingress"]["verdict"], "deny");
    let isolated_by = json!(["NetworkPolicy/x/guard", "NetworkPolicy/x/shut"]);
    assert_eq!(answer["ingress"]["isolated_by"], isolated_by);
    assert_eq!(answer["ingress"]["rule"], Value::Null);
    assert_eq!(answer["ingress"]["nearest"]["policy"], "NetworkPolicy/x/guard");
    assert_eq!(answer["ingress"]["nearest"]["rule"], 0);
    assert_eq!(answer["ingress"]["nearest"]["differs"], json!(["port"]));
    // Of a stranger the peer differs, of another protocol that.
    let stranger = world.json("198.51.100.7", "x/a:80", &[]);
    assert_eq!(stranger["ingress"]["nearest"]["differs"], json!(["peer"]));
    let other = world.json("y/a", "x/a:80/UDP", &[]);
    assert_eq!(other["ingress"]["nearest"]["differs"], json!(["protocol"]));
    let (status, text, _) = world.explain(&["--from", "y/c", "--to", "x/a:81"]);
    assert_eq!(status, 1);
    assert!(text.starts_with("deny: 81/TCP from Pod/y/c (10.0.1.3, on n2) to Pod/x/a"), "{text}");
    for part in [
        "isolated by NetworkPolicy/x/guard, NetworkPolicy/x/shut",
        "nearest is",
        "80/TCP",
        "route:",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn egress_and_tiers_decide_too() {
    let world = World::new();
    let out = world.json("z/a", "203.0.113.9:443", &[]);
    assert_eq!((&out["verdict"], &out["reason"]), (&json!("deny"), &json!("policy_egress")));
    assert_eq!(out["egress"]["isolated_by"], json!(["NetworkPolicy/z/out"]));
    assert_eq!(out["ingress"]["verdict"], "allow");
    let allowed = world.json("z/a", "198.51.100.7:443/UDP", &[]);
    assert_eq!(allowed["egress"]["policy"], "NetworkPolicy/z/out");
    assert_eq!(allowed["route"]["kind"], "outside");
    // A rule that denies is the policy that decided.
    let tier = world.json("z/b", "y/b:81", &[]);
    assert_eq!(tier["ingress"]["policy"], "ClusterNetworkPolicy/admins");
    assert_eq!((&tier["ingress"]["rule"], &tier["verdict"]), (&json!(0), &json!("deny")));
    // Egress of z isolates, and is reported first.
    assert_eq!(tier["reason"], "policy_egress");
}

#[test]
fn what_policy_never_forbids() {
    let world = World::new();
    let own = world.json("x/a", "x/a:80", &[]);
    assert_eq!((&own["verdict"], &own["ingress"]["why"]), (&json!("allow"), &json!("own_address")));
    let node = world.json("node/n1", "x/a:81", &[]);
    assert_eq!((&node["verdict"], &node["ingress"]["why"]), (&json!("allow"), &json!("own_node")));
    assert_eq!(
        node["route"],
        json!({"node": "n1", "kind": "pod", "port": "x/a", "remote": null,
        "tunnel": false})
    );
    // A pod in its node's network is its node.
    assert_eq!(world.json("x/h", "x/a:81", &[])["verdict"], "allow");
    assert_eq!(world.json("z/c", "node/n2", &[])["verdict"], "allow");
    assert_eq!(world.json("z/c", "node/n1", &[])["reason"], "policy_egress");
    // The gateway that pods see is nobody's peer.
    let gateway = world.json("z/c", "169.254.1.1", &[]);
    assert_eq!(
        (&gateway["verdict"], &gateway["route"]["kind"]),
        (&json!("allow"), &json!("gateway"))
    );
}

#[test]
fn drops_are_told_from_denials() {
    let world = World::new();
    let drop = world.json("x/b", "127.0.0.1:80", &[]);
    let expected = (&json!("drop"), &json!("martian_destination"), &Value::Null);
    assert_eq!((&drop["verdict"], &drop["reason"], &drop["route"]), expected);
    let group = world.json("x/b", "[ff02::1]:5353/UDP", &[]);
    assert_eq!(group["reason"], "multicast_unsupported");
    let from = world.json("127.0.0.1", "x/a:80", &[]);
    assert_eq!((&from["verdict"], &from["reason"]), (&json!("drop"), &json!("martian_source")));
}

#[test]
fn every_way_of_naming_an_end() {
    let world = World::new();
    for (from, to, object) in [
        ("pod/y/a", "x/b:80", "Pod/y/a"),
        ("10.0.1.1", "10.0.0.2:80/TCP", "Pod/y/a"),
        ("fd00:0:0:1::1", "[fd00::2]:80/TCP", "Pod/y/a"),
        ("fd00:0:0:1::1", "fd00::2", "Pod/y/a"),
        ("node/n2", "node/n1:10250", "Node/n2"),
        ("192.0.2.2", "x/b", "Node/n2"),
        ("x/h", "x/b:53/udp", "Pod/x/h"),
        ("203.0.113.9", "198.51.100.7:80", "203.0.113.9"),
    ] {
        let answer = world.json(from, to, &[]);
        assert_eq!(
            (&answer["verdict"], &answer["from"]["object"]),
            (&json!("allow"), &json!(object))
        );
    }
    for (to, traffic) in [
        ("x/b", "ICMP"),
        ("[fd00::2]", "ICMPv6"),
        ("x/b:80", "80/TCP"),
        ("pod/x/b:53/udp", "53/UDP"),
        ("node/n1:9/SCTP", "9/SCTP"),
        ("10.0.0.2:65535/Tcp", "65535/TCP"),
        ("[fd00::2]:1/UDP", "1/UDP"),
    ] {
        assert_eq!(world.json("y/a", to, &[])["traffic"], traffic);
    }
    assert_eq!(world.json("y/a", "x/b", &["--family", "ipv6"])["traffic"], "ICMPv6");
}

#[test]
fn bad_references_are_bad_usage() {
    let world = World::new();
    for (from, to, reason) in [
        ("x/nobody", "x/a:80", "no such pod or Service"),
        ("pod/x/nobody", "x/a:80", "no such pod"),
        ("x/done", "x/a:80", "no such pod"),
        ("x/b", "node/n9", "no such node; did you mean n"),
        ("x/bb", "x/a:80", "no such pod or Service; did you mean x/b"),
        ("x/b", "svc/x/other:80", "no such Service"),
        ("x/b", "svc/x/plain:80", "Service/x/plain: it has no cluster IP"),
        ("10.0.0.2", "fd00::1", "no family in common"),
        ("x/b", "x/a:http", "is no port"),
        ("x/b", "x/a:80/ICMP", "not one of TCP, UDP, SCTP"),
        ("x/b:80", "x/a:80", "--sport"),
        ("x", "x/a", "none of"),
    ] {
        let (status, out, err) = world.explain(&["--from", from, "--to", to]);
        assert_eq!((status, out.as_str()), (2, ""), "{from} {to}: {err}");
        assert!(err.contains(reason), "{from} {to}: {err}");
    }
    for to in [
        "",
        "x",
        "a/",
        "/x",
        "a/b/c",
        "pod/a/b/c",
        "x/b:",
        "x/b:0",
        "x/b:65536",
        "x/b:80/",
        "x/b:+80",
        "x/b:1:2",
        "10.0.0.256",
        "10.0.0.1/8",
        "fd00::1:80/TCP",
        "[fd00::1",
        "node/",
        "[fd00::1]80",
        "[10.0.0.1]:80",
        "[fd00::1]:",
        "[x/b]:80",
    ] {
        let (status, out, err) = world.explain(&["--from", "x/b", "--to", to]);
        assert_eq!((status, out.as_str()), (2, ""), "{to}: {err}");
    }
    let status = |arguments: &[&str]| world.explain(arguments).0;
    assert_eq!(status(&["--from", "x/a"]), 2);
    assert_eq!(status(&[]), 2);
    assert_eq!(status(&["--from", "10.0.0.1", "--to", "x/b", "--family", "ipv6"]), 2);
    assert_eq!(status(&["--matrix", "80", "--from", "x/a", "--to", "x/b"]), 2);
    assert_eq!(status(&["--matrix", "80/XYZ"]), 2);
    assert_eq!(status(&["--with", "10.0.0.1", "--from", "x/a", "--to", "x/b"]), 2);
    assert_eq!(
        run(&["explain", "--manifests", "/nowhere", "--matrix", "80"]).status.code(),
        Some(2)
    );
    let bad = world.folder.manifest("bad", "apiVersion: v1\nkind: Pod\nmetadata: {name: A}\n");
    // One object that cannot be used is left out, with a warning; the rest is explained.
    let output = run(&["explain", "--manifests", &bad, "--matrix", "80"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("warning: "));
}

#[test]
fn a_matrix_is_of_what_was_asked() {
    let world = World::new();
    let (status, text, _) = world.explain(&[
        "--matrix",
        "80,53/UDP",
        "--family",
        "ipv4",
        "--with",
        "8.8.8.8",
        "--with",
        "2001:db8::1",
        "--with",
        "8.8.8.8",
    ]);
    assert_eq!(status, 0);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 13 * 13 * 2);
    assert_eq!(lines[0], "x/a\tx/a\tipv4\t80/TCP\tallow");
    assert!(lines.contains(&"y/b\tx/a\tipv4\t80/TCP\tallow"));
    assert!(lines.contains(&"y/b\tx/a\tipv4\t53/UDP\tdeny"));
    assert!(lines.contains(&"8.8.8.8\tx/a\tipv4\t80/TCP\tdeny"));
    assert!(lines.contains(&"x/h\tx/a\tipv4\t53/UDP\tallow"));
    assert!(!text.contains("ipv6") && !text.contains("done"));
    let (_, json, _) = world.explain(&["--json", "--matrix", "80/TCP", "--family", "ipv6"]);
    let first: Value = serde_json::from_str(json.lines().next().expect("a line")).expect("JSON");
    let expected = json!({"from": "x/a", "to": "x/a", "family": "ipv6", "port": "80/TCP",
        "verdict": "allow"});
    assert_eq!((first, json.lines().count()), (expected, 12 * 12));
}

#[test]
fn one_connection_has_the_verdict_of_the_matrix() {
    let world = World::new();
    let (_, text, _) =
        world.explain(&["--matrix", "80", "--family", "ipv6", "--with", "2001:db8::1"]);
    let mut counts = [0, 0];
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [from, to, .., verdict] = fields[..] else { panic!("{line}") };
        let to = if to.contains("::") { format!("[{to}]:80") } else { format!("{to}:80") };
        let answer = world.json(from, &to, &["--family", "ipv6"]);
        assert_eq!(answer["verdict"], verdict, "{line}: {answer}");
        counts[usize::from(verdict == "allow")] += 1;
    }
    assert!(counts[0] > 20 && counts[1] > 50, "{counts:?}");
}
