//! `vswitch trace --send`: a packet is sent for real and followed through the switches of two nodes.

use podswitch_vswitch_testkit::cluster::{Fabric, Node, Running, ping, put, serve, udp};
use podswitch_vswitch_testkit::{Folder, run};
use serde_json::Value;

const PORT: u16 = 8080;
const CLOSED: u16 = 9;

/// Two nodes, each with the pods `a/pN-0` (TAP) and `a/pN-1` (veth). The pods of the second let TCP and ICMP in,
/// UDP only at [`PORT`].
struct World {
    // Stopped before their files and namespaces go.
    switches: Vec<Running>,
    nodes: [Node; 2],
    folder: Folder,
    _fabric: Fabric,
}

impl World {
    fn start() -> Self {
        let fabric = Fabric::new(1500);
        let nodes = [1, 2].map(|n| Node::new(&fabric, n, &[false], &["tap", "veth"]));
        let folder = Folder::new();
        let [v4, v6] = nodes[1].pods[0].addresses;
        let policy = format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: tcp, namespace: a}}\n\
             spec: {{podSelector: {{matchLabels: {{guarded: \"yes\"}}}}, policyTypes: [Ingress], \
             ingress: [{{ports: [{{protocol: TCP}}, {{protocol: UDP, port: {PORT}}}]}}]}}\n"
        );
        let service = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: a}}\n\
             spec: {{clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{{port: 80, targetPort: {PORT}}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: web-1, namespace: a, labels: {{kubernetes.io/service-name: web}}}}\n\
             ports: [{{port: {PORT}}}]\nendpoints: [{{addresses: [{v4}], nodeName: {}}}]\n",
            nodes[1].name
        );
        let guarded =
            "metadata: {name: p2-1, namespace: a, labels: {guarded: \"yes\"}, annotations";
        let second = nodes[1].manifest();
        let second = second.replace("metadata: {name: p2-1, namespace: a, annotations", guarded);
        assert!(second.contains(guarded));
        put(&folder, &[nodes[0].manifest(), second, policy, service]);
        let mut world = Self { nodes, folder, switches: Vec::new(), _fabric: fabric };
        for number in [0, 1] {
            let run_dir = world.folder.text(&format!("run{number}"));
            let more = ["--run-dir", &run_dir, "--service-cidr", "10.96.0.0/16"];
            let switch = world.nodes[number].start(&world.folder, &more);
            switch.event("ready");
            world.switches.push(switch);
        }
        for pod in &world.nodes[1].pods {
            serve(&pod.ns, PORT);
        }
        // The overlay is up.
        udp(&world.nodes[0].pods[0].ns, v6, PORT, 100);
        world
    }

    fn socket(&self, number: usize) -> String {
        self.folder.text(&format!("run{number}/ctl.sock"))
    }

    /// Runs `trace --send`, and returns its exit status and what it says of each packet.
    fn send(&self, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
        let socket = self.socket(0);
        let output =
            run(&[&["trace", "--send", "--json", "--socket", &socket], arguments].concat());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let sent = answer["sent"].as_array().cloned().unwrap_or_default();
        (output.status.code(), sent, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The places where a packet was seen on its way there: node and port.
fn places(packet: &Value) -> Vec<String> {
    let frames = packet["frames"].as_array().map(Vec::as_slice).unwrap_or_default();
    let there = frames.iter().filter(|frame| frame["is_answer"] == false);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    there.map(|f| format!("{} {}", text(&f["port"]), text(&f["direction"]))).collect()
}

#[test]
fn a_packet_is_sent_and_followed() {
    podswitch_testkit::require_privilege!();
    let world = World::start();
    let other = world.socket(1);
    let way = ["a/p1-0 received", "uplink sent", "uplink received", "a/p2-0 sent"];

    // Over both families, to an open port and a closed one; from a TAP and a veth pair.
    for (from, port) in [("a/p1-0", PORT), ("a/p1-1", CLOSED)] {
        let to = format!("a/p2-0:{port}");
        let (status, sent, err) = world.send(&["--also", &other, "--from", from, "--to", &to]);
        assert_eq!((status, sent.len()), (Some(0), 2), "{err} {sent:?}");
        for packet in &sent {
            assert_eq!(
                (&packet["result"], &packet["what"]),
                (&"answered".into(), &"TCP SYN".into())
            );
            let mut way = way.map(str::to_owned);
            way[0] = format!("{from} received");
            assert_eq!(places(packet), way, "{packet}");
            let says = packet["text"].as_str().expect("text");
            let flags = if port == PORT { "[S.]" } else { "[R.]" };
            assert!(says.contains(flags), "{says}");
        }
    }

    // A Service: the backend gets it.
    let service = ["--from", "a/p1-0", "--to", "service/a/web:80", "--also", &other];
    let (status, sent, err) = world.send(&service);
    assert_eq!((status, sent.len()), (Some(0), 1), "{err} {sent:?}");
    assert_eq!(places(&sent[0]), way, "{}", sent[0]);
    assert!(sent[0].to_string().contains("Service/a/web"), "{}", sent[0]);

    // Dropped by a policy: by the other node's switch, since its pod is isolated.
    let denied = ["--from", "a/p1-0", "--to", "a/p2-1:53/UDP", "--also", &other];
    let (status, sent, err) = world.send(&denied);
    assert_eq!((status, sent.len()), (Some(1), 2), "{err} {sent:?}");
    for packet in &sent {
        assert_eq!(packet["result"], "dropped", "{packet}");
        let says = packet["text"].as_str().expect("text");
        assert!(says.contains("policy_ingress") && says.contains("NetworkPolicy/a/tcp"), "{says}");
    }

    // UDP that is allowed, and ICMP: without the other switch only what comes back is seen.
    for (to, result) in
        [("a/p2-0:8080/UDP", "answered"), ("a/p2-0:0/ICMP", "answered"), ("a/p2-0:9/SCTP", "left")]
    {
        let (status, sent, err) = world.send(&["--from", "a/p1-0", "--to", to]);
        assert_eq!((status, sent.len()), (Some(0), 2), "{to} {err}");
        for packet in &sent {
            assert_eq!(packet["result"], result, "{to} {packet}");
        }
    }
    // Within a node.
    let (status, sent, _) = world.send(&["--from", "a/p1-1", "--to", "a/p1-0:9/UDP"]);
    assert_eq!(status, Some(0), "{sent:?}");
    assert!(["delivered", "answered"].contains(&sent[0]["result"].as_str().expect("text")));
    assert_eq!(places(&sent[0]), ["a/p1-1 received", "a/p1-0 sent"]);

    // The text for people.
    let socket = world.socket(0);
    let output =
        run(&["trace", "--send", "--socket", &socket, "--from", "a/p1-0", "--to", "a/p2-0:8080"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("sent TCP SYN from a/p1-0 10.1.0.2 port "), "{text}");
    assert!(text.contains("  answered: "), "{text}");

    // What cannot be sent.
    for (arguments, says) in [
        (
            ["--from", "a/p2-0", "--to", "a/p1-0:1"],
            "is not an address of a pod that is attached to this node",
        ),
        (["--from", "a/p1-9", "--to", "a/p1-0:1"], "there is no a/p1-9; did you mean a/p1-0"),
        (["--from", "a/p1-0", "--to", "a/p1-1:1/47"], "protocol 47: only TCP, UDP, SCTP and ICMP"),
    ] {
        let (status, sent, err) = world.send(&arguments);
        assert_eq!((status, sent.len()), (Some(2), 0), "{err}");
        assert!(err.contains(says), "{err}");
    }
    let nowhere = ["--from", "a/p1-0", "--to", "a/p2-0:1", "--also", "/nowhere/ctl.sock"];
    let (status, _, err) = world.send(&nowhere);
    assert_eq!(status, Some(1), "{err}");
    assert!(err.contains("--also /nowhere/ctl.sock: "), "{err}");
    // Nothing was broken by all this.
    let echo = ping(
        &world.nodes[0].pods[0].ns,
        world.nodes[1].pods[0].addresses[0],
        100,
        podswitch_vswitch_testkit::cluster::Cut::Never,
    );
    assert!(matches!(echo, Ok(true)), "{echo:?}");
}
