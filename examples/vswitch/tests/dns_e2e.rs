//! Cluster DNS by a running switch: glibc's resolver in pods, real sockets, no CoreDNS.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use podswitch_dns::{Name, query, record_type};
use podswitch_linux::NetNs;
use podswitch_testkit::privilege;
use podswitch_vswitch_testkit::cluster::{Fabric, Limit, Node, PATIENCE, Running, ip, put};
use podswitch_vswitch_testkit::{Folder, run};

const SERVER: [&str; 2] = ["10.96.0.10", "fd96::a"];
const FLAGS: [&str; 4] = ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd96::/112"];

/// A Service of both families in a namespace.
fn service(namespace: &str, name: &str, ips: [&str; 2], ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: {0}, clusterIPs: [{0}, '{1}'], ports: [{ports}]}}\n",
        ips[0], ips[1]
    )
}

fn kube_dns() -> String {
    let ports = "{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}";
    service("kube-system", "kube-dns", SERVER, ports)
}

struct World {
    /// Holds the node's link.
    _fabric: Fabric,
    folder: Folder,
    node: Node,
    switch: Running,
}

impl World {
    /// A node with one pod, whose switch runs with these objects and options.
    fn start(objects: &[String], options: &[&str]) -> Self {
        let fabric = Fabric::new(1500);
        let node = Node::new(&fabric, 1, &[false], &["tap"]);
        let folder = Folder::new();
        put(&folder, &[&[node.manifest()], objects].concat());
        let switch = node.start(&folder, &[&FLAGS, options].concat());
        switch.event("ready");
        Self { _fabric: fabric, folder, node, switch }
    }

    fn change(&self, objects: &[String]) {
        put(&self.folder, &[&[self.node.manifest()], objects].concat());
        self.switch.next_event("applied");
    }

    fn pod(&self) -> &NetNs {
        &self.node.pods[0].ns
    }

    /// What glibc in the pod finds of a name, by the name server at this address.
    fn getent(&self, database: &str, name: &str, server: &str) -> String {
        let resolv = self.folder.path("resolv.conf");
        let search = "search default.svc.cluster.local svc.cluster.local cluster.local";
        let text =
            format!("nameserver {server}\n{search}\noptions ndots:5 timeout:2 attempts:10\n");
        fs::write(&resolv, text).unwrap();
        let script = format!(
            "mount --bind {} /etc/resolv.conf && getent {database} {name}",
            resolv.display()
        );
        let mut command = self.pod().command("unshare");
        let output = command.args(["--mount", "sh", "-c", &script]).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The answer that the pod gets to a query of its own making.
    fn ask(&self, server: &str, name: &str, qtype: u16) -> Vec<u8> {
        self.ask_from(self.pod(), server, name, qtype)
    }

    fn ask_from(&self, from: &NetNs, server: &str, name: &str, qtype: u16) -> Vec<u8> {
        let server: IpAddr = ip(server);
        let any = if server.is_ipv4() { ip("0.0.0.0") } else { ip("::") };
        let socket = from.enter(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        // Answers from any other address or port are not received.
        socket.connect((server, 53)).unwrap();
        let query = query(0x1234, &Name::parse(name).unwrap(), qtype, Some(1232));
        let limit = Limit::new(PATIENCE);
        let mut buffer = [0; 2000];
        while limit.left().is_some() {
            let _ = socket.send(&query);
            if let Ok(len) = socket.recv(&mut buffer) {
                return buffer[..len].to_vec();
            }
        }
        panic!("no answer from {server} for {name}");
    }
}

fn has_tools() -> bool {
    let has = |program: &str| {
        let status = std::process::Command::new(program).arg("--version").output();
        status.is_ok_and(|output| output.status.success())
    };
    let all = ["unshare", "mount", "getent"].into_iter().all(has);
    if !all {
        privilege::skip("glibc's resolver in a pod", "no unshare, mount or getent");
    }
    all
}

#[test]
fn glibc_in_a_pod_resolves_without_any_dns_pod() {
    podswitch_testkit::require_privilege!();
    if !has_tools() {
        return;
    }
    let api = service("default", "api", ["10.96.0.7", "fd96::7"], "{name: http, port: 80}");
    let sockets = Folder::new();
    let socket = sockets.text("ctl.sock");
    fs::create_dir_all(sockets.path(".")).unwrap();
    let world = World::start(&[kube_dns(), api.clone()], &["--control-socket", &socket]);
    for server in SERVER {
        let found = world.getent("ahosts", "api.default.svc.cluster.local", server);
        assert!(found.contains("10.96.0.7") && found.contains("fd96::7"), "{found}");
        // By the search list: other names are asked for first.
        assert!(world.getent("hosts", "api", server).contains("api.default.svc.cluster.local"));
        assert!(
            world.getent("hosts", "10.96.0.7", server).contains("api.default.svc.cluster.local")
        );
        assert_eq!(world.getent("hosts", "nothing.default.svc.cluster.local", server), "");
    }
    // What changes is resolvable once it is in force.
    let other = service("default", "other", ["10.96.0.8", "fd96::8"], "{name: http, port: 80}");
    world.change(&[kube_dns(), other]);
    assert!(world.getent("hosts", "other", SERVER[0]).contains("fd96::8"));
    assert_eq!(world.getent("hosts", "api", SERVER[0]), "");
    let answer = world.ask(SERVER[1], "other.default.svc.cluster.local", record_type::A);
    assert!(answer.windows(4).any(|bytes| bytes == [10, 96, 0, 8]), "{answer:?}");
    // The node itself, and pods in its network, ask by its own port.
    let answer = world.ask_from(&world.node.ns, SERVER[0], "other.default.svc.cluster.local", 28);
    assert!(answer.windows(2).any(|bytes| bytes == [0, 8]), "{answer:?}");
    // What the running switch says of it.
    let asked = |name: &str| run(&["dns", name, "--socket", &socket]);
    let output = asked("other.default.svc.cluster.local");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Service/default/other: a Service with cluster IPs"), "{said}");
    assert!(said.contains("IN A 10.96.0.8") && output.status.success(), "{said}");
    assert_eq!(asked("api.default.svc.cluster.local").status.code(), Some(1));
    let client = podswitch_api::Client::new(&socket);
    let counters: serde_json::Value = client.get("/v1/counters").unwrap();
    let dns = &counters["dns"];
    assert_eq!(dns["zone"], "cluster.local.", "{counters}");
    assert!(dns["queries"]["ipv4"]["A"].as_u64() > Some(1), "{counters}");
    assert!(dns["queries"]["ipv6"]["AAAA"].as_u64() > Some(0), "{counters}");
    assert!(dns["rcodes"]["NXDOMAIN"].as_u64() > Some(1), "{counters}");
    assert_eq!(world.switch.stop(), Some(0));
}

/// Asks the pod's name server by TCP.
fn ask_by_tcp(world: &World, server: &str, names: &[(&str, u16)]) -> Vec<Vec<u8>> {
    let limit = Limit::new(PATIENCE);
    let mut stream = loop {
        assert!(limit.left().is_some(), "no connection to {server}");
        let connect = || TcpStream::connect_timeout(&(ip(server), 53).into(), PATIENCE);
        if let Ok(stream) = world.pod().enter(connect).unwrap() {
            break stream;
        }
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // All of them at once: answers may come in any order (RFC 7766 section 7).
    for (id, (name, qtype)) in names.iter().enumerate() {
        let query = query(id as u16, &Name::parse(name).unwrap(), *qtype, None);
        stream.write_all(&(query.len() as u16).to_be_bytes()).unwrap();
        stream.write_all(&query).unwrap();
    }
    let mut answers = vec![Vec::new(); names.len()];
    for _ in names {
        let mut len = [0; 2];
        stream.read_exact(&mut len).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut answer).unwrap();
        let id = usize::from(answer[1]);
        answers[id] = answer;
    }
    answers
}

/// A server of names outside the cluster: by UDP it says that the answer is cut for names that begin with `long`.
fn serve_names(ns: &NetNs, at: SocketAddr) {
    fn reply(query: &[u8], is_cut: bool) -> Vec<u8> {
        let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
        let mut bytes = query[..end].to_vec();
        bytes[2] |= if is_cut { 0x82 } else { 0x80 };
        bytes[6..12].copy_from_slice(&[0, u8::from(!is_cut), 0, 0, 0, 0]);
        if !is_cut {
            bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 198, 51, 100, 7]);
        }
        bytes
    }
    let (udp, tcp) = ns.enter(|| (UdpSocket::bind(at), TcpListener::bind(at))).unwrap();
    let (udp, tcp) = (udp.unwrap(), tcp.unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, peer)) = udp.recv_from(&mut buffer) {
            let is_cut = buffer[13..].starts_with(b"long");
            let _ = udp.send_to(&reply(&buffer[..len], is_cut), peer);
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().map_while(Result::ok) {
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut query).unwrap();
            let reply = reply(&query, false);
            stream.write_all(&(reply.len() as u16).to_be_bytes()).unwrap();
            stream.write_all(&reply).unwrap();
        }
    });
}

const ELSEWHERE: [u8; 4] = [198, 51, 100, 7];

fn has(answer: &[u8], address: [u8; 4]) -> bool {
    answer.windows(4).any(|bytes| bytes == address)
}

#[test]
fn tcp_and_names_outside_the_cluster() {
    podswitch_testkit::require_privilege!();
    let api = service("default", "api", ["10.96.0.7", "fd96::7"], "{name: http, port: 80}");
    let alias = "---\napiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: default}\n\
                 spec: {type: ExternalName, externalName: www.example.com}\n";
    let upstream = "192.0.2.1:1053";
    let world = World::start(&[kube_dns(), api, alias.to_owned()], &["--dns-upstream", upstream]);
    serve_names(&world.node.ns, upstream.parse().unwrap());
    const API: &str = "api.default.svc.cluster.local";
    const NONE: &str = "none.default.svc.cluster.local";
    for server in SERVER {
        let questions =
            [(API, 1), (API, 28), (NONE, 1), ("www.example.com", 1), ("long.example.com", 1)];
        let answers = ask_by_tcp(&world, server, &questions);
        assert!(has(&answers[0], [10, 96, 0, 7]), "{answers:?}");
        assert!(answers[1].ends_with(&[0, 7]), "{answers:?}");
        assert_eq!(answers[2][3] & 15, 3, "NXDOMAIN");
        assert!(has(&answers[3], ELSEWHERE) && has(&answers[4], ELSEWHERE), "{answers:?}");
        for name in ["www.example.com", "long.example.com", "alias.default.svc.cluster.local"] {
            let answer = world.ask(server, name, record_type::A);
            assert!(has(&answer, ELSEWHERE), "{name}: {answer:?}");
        }
    }
    assert_eq!(world.switch.stop(), Some(0));
}

#[test]
fn a_changed_corefile_is_followed_while_the_switch_runs() {
    podswitch_testkit::require_privilege!();
    let files = Folder::new();
    fs::create_dir_all(files.path(".")).unwrap();
    let path = files.text("Corefile");
    let forward = |server: &str| format!(".:53 {{\n forward . {server}\n}}\n");
    // Nobody is there.
    fs::write(&path, forward("192.0.2.1:1054")).unwrap();
    let world = World::start(&[kube_dns()], &["--dns-corefile", &path]);
    serve_names(&world.node.ns, "192.0.2.1:1053".parse().unwrap());
    let ask = || world.ask(SERVER[0], "www.example.com", record_type::A);
    assert_eq!(ask()[3] & 15, 2, "SERVFAIL");
    fs::write(&path, forward("192.0.2.1:1053")).unwrap();
    let limit = Limit::new(PATIENCE);
    while !has(&ask(), ELSEWHERE) {
        assert!(limit.left().is_some(), "the change is not followed");
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(world.switch.stop(), Some(0));
}
