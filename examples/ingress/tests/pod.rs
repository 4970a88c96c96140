//! The program as a pod of the switch: in a pod's network namespace, behind a Service, with a policy
//! that lets its address alone reach the endpoints. Both families.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use podswitch_linux::NetNs;
use podswitch_vswitch_testkit::running::{PATIENCE, Running};
use podswitch_vswitch_testkit::{Folder, NODE, node_namespace};

/// Pods by their place; their addresses end in it plus 2.
const INGRESS: usize = 0;
const CLIENT: usize = 3;
const NAMES: [&str; 4] = ["ingress", "y", "z", "client"];

/// The program's Service.
const FRONT: [&str; 2] = ["10.96.0.10", "fd96::10"];
const NODE_PORT: u16 = 30080;

/// Ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn manifests(node: &str, pods: &[NetNs; 4]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: a}}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n\
         spec: {{podCIDRs: [10.1.0.0/24, \"fd00:1::/64\"]}}\n\
         status: {{addresses: [{{type: InternalIP, address: {NODE}}}]}}\n"
    );
    for (number, (name, netns)) in NAMES.iter().zip(pods).enumerate() {
        let (last, path) = (number + 2, netns.path());
        let role = if matches!(*name, "y" | "z") { "web" } else { name };
        _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, \
             labels: {{role: {role}}}, annotations: {{podswitch.io/netns: {}}}}}\n\
             spec: {{nodeName: {node}}}\nstatus: {{phase: Running, \
             podIPs: [{{ip: 10.1.0.{last}}}, {{ip: \"fd00:1::{last}\"}}]}}\n",
            path.display()
        );
    }
    for (service, ports, more, ends) in [
        (
            "front",
            "{name: http, port: 80, targetPort: 8080, nodePort: 30080}",
            "type: NodePort, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, \"fd96::10\"], ",
            &[2][..],
        ),
        ("web", "{name: http, port: 8000}", "clusterIP: None, ", &[3, 4][..]),
    ] {
        _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: a}}\n\
             spec: {{{more}ipFamilies: [IPv4, IPv6], ports: [{ports}]}}\n"
        );
        for (family, prefix) in [("IPv4", "10.1.0."), ("IPv6", "fd00:1::")] {
            let ends: Vec<_> = ends
                .iter()
                .map(|end| format!("{{addresses: ['{prefix}{end}'], nodeName: {node}}}"))
                .collect();
            _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: \
                 {{name: {service}-{}, namespace: a, labels: {{kubernetes.io/service-name: \
                 {service}}}}}\naddressType: {family}\nports: [{{name: http, port: 8080}}]\n\
                 endpoints: [{}]\n",
                family.to_lowercase(),
                ends.join(", ")
            );
        }
    }
    text + "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: a}
spec:
  podSelector: {matchLabels: {role: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {role: ingress}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: podswitch}
spec: {controller: podswitch.io/ingress}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: shop
  namespace: a
  annotations: {nginx.ingress.kubernetes.io/proxy-connect-timeout: '1'}
spec:
  ingressClassName: podswitch
  rules:
  - host: shop.test
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}
"
}

/// Answers with its name and whom it sees.
fn serve(name: &'static str, pod: &NetNs) {
    let listener = pod.enter(|| TcpListener::bind("[::]:8080")).expect("entered").expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let Ok(peer) = stream.peer_addr() else { return };
                let mut head = Vec::new();
                let mut part = [0; 1024];
                while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                    match stream.read(&mut part) {
                        Ok(length @ 1..) => head.extend_from_slice(&part[..length]),
                        _ => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let client = head.lines().find_map(|it| it.strip_prefix("x-forwarded-for: "));
                let peer = peer.ip().to_canonical();
                let text = format!("{name} {peer} {}", client.unwrap_or_default());
                _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                );
            });
        }
    });
}

/// Status and body.
fn get(from: &NetNs, to: SocketAddr, host: &str) -> std::io::Result<(u16, String)> {
    let connect = || TcpStream::connect_timeout(&to, PATIENCE);
    let mut stream = from.enter(connect).expect("entered")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|it| it.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

#[test]
fn the_program_is_a_pod_of_the_switch() {
    podswitch_testkit::require_tap!();
    let name = format!("ingress-{}", std::process::id());
    let node = node_namespace();
    let pods = [(); 4].map(|()| NetNs::anonymous().expect("a namespace"));
    let folder = Folder::new();
    let state = folder.manifest("state", &manifests(&name, &pods));
    let netns = node.path().display().to_string();
    let switch = Running::start(&[
        "--node",
        &name,
        "--manifests",
        &state,
        "--node-netns",
        &netns,
        "--service-cidr",
        "10.96.0.0/16",
        "--service-cidr",
        "fd96::/112",
        "--workers",
        "1",
    ]);
    switch.says("ready");
    serve("y", &pods[1]);
    serve("z", &pods[2]);

    // The same manifests, in the pod's namespace.
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_ingress"))
            .args(["--manifests", &state, "--http", "[::]:8080", "--workers", "1"])
            .stderr(Stdio::piped())
            .spawn()
    };
    let mut child = pods[INGRESS].enter(start).expect("entered").expect("the program starts");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let _ended = Ended(child);
    // Read to the end: a pipe that is full stops the program.
    let (ready, is_ready) = channel();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            eprintln!("{line}");
            if line == "ready" {
                _ = ready.send(());
            }
        }
    });
    is_ready.recv_timeout(PATIENCE).expect("it is ready");

    let client = &pods[CLIENT];
    let fronts = FRONT.map(|ip| SocketAddr::new(ip.parse().expect("an address"), 80));
    let node_port = SocketAddr::new(NODE.into(), NODE_PORT);
    for (from, to, sees) in [
        (client, fronts[0], Some("10.1.0.5")),
        (client, fronts[1], Some("fd00:1::5")),
        (client, node_port, None),
        (&node, fronts[0], None),
    ] {
        let mut servers = Vec::new();
        for _ in 0..8 {
            let (status, text) = get(from, to, "shop.test").expect("a response");
            assert_eq!(status, 200, "{to}: {text}");
            let words: Vec<_> = text.split(' ').collect();
            assert_eq!(words[1], "10.1.0.2", "{to}: the endpoint sees the proxy's pod address");
            if let Some(sees) = sees {
                assert_eq!(words[2], sees, "{to}: the client");
            }
            servers.push(words[0].to_owned());
        }
        servers.sort();
        servers.dedup();
        assert_eq!(servers, ["y", "z"], "{to}");
        assert_eq!(get(from, to, "other.test").expect("a response").0, 404);
    }

    // The policy: the proxy reaches the endpoints, the client does not.
    let direct = SocketAddr::new("10.1.0.3".parse().expect("an address"), 8080);
    let connect = || TcpStream::connect_timeout(&direct, Duration::from_secs(1));
    assert!(client.enter(connect).expect("entered").is_err(), "the policy denies it");

    // A policy that no longer selects the proxy: its connections fail, with a status.
    let text = manifests(&name, &pods)
        .replace("matchLabels: {role: ingress}", "matchLabels: {role: none}");
    fs::write(folder.path("next"), text).expect("written");
    fs::rename(folder.path("next"), folder.path("state/state.yaml")).expect("renamed");
    switch.says("applied");
    let (status, _) = get(client, fronts[0], "shop.test").expect("a response");
    assert!(matches!(status, 502 | 504), "{status}");
    assert_eq!(switch.stop(), Some(0));
}
